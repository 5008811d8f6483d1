//! Jobs that were taken in: `GET /jobs/{id}`, `GET /jobs/{id}/result`, `POST /jobs/{id}/cancel`.

use super::Api;
use super::fields::wrong_query;
use super::record::{JobStatus, Record, View};
use super::refusal::Refusal;
use crate::dispatch::Waited;
use crate::job::Status;
use crate::store::audit::Actor;
use crate::store::queue::{Cancelled, State as JobState};
use axum::Json;
use axum::extract::{ConnectInfo, Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// How long a cancel waits for the end of a job: what has to stop it is over long before.
const CANCEL: Duration = Duration::from_secs(10);

/// How long a result is waited for when nobody says how long.
const WAIT: Duration = Duration::from_secs(30);

/// Where a job stands.
pub(super) async fn status(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
) -> Result<Json<JobStatus>, Refusal> {
    let standing = api.store.standing(&id).await?.ok_or_else(Refusal::no_job)?;
    let position = match standing.state {
        JobState::Queued => api.store.position(&id).await?,
        _ => None,
    };
    Ok(Json(JobStatus::of(id, &standing, position)))
}

/// The record of a job, as it is or when it has ended.
pub(super) async fn result(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Result<Json<Record>, Refusal> {
    let wait = patience(&query)?;
    if let Some(patience) = wait
        && api.dispatcher.waiter().wait(&id, false, patience).await? == Waited::InVain
    {
        return Err(Refusal::new(
            StatusCode::REQUEST_TIMEOUT,
            format!(
                "The job has not ended within {} s; it goes on",
                patience.as_secs_f64()
            ),
        ));
    }
    let view = View::of(&query);
    let entry = api.store.entry(&id).await?.ok_or_else(Refusal::no_job)?;
    Ok(Json(Record::of(entry, view)))
}

/// How long to wait, if at all. Who gives a time and does not say whether to wait means it: the client
/// of 0.1.4 does so.
fn patience(query: &BTreeMap<String, String>) -> Result<Option<Duration>, Refusal> {
    let mut problems = Vec::new();
    let wait = query.get("wait").map(|text| (text, truth(text)));
    if let Some((text, None)) = wait {
        let message = "Input should be a valid boolean, unable to interpret input";
        problems.push(wrong_query("bool_parsing", "wait", message, text));
    }
    let time = query
        .get("timeout")
        .map(|text| (text, text.parse::<f64>().ok()));
    let patience = match time {
        None => WAIT,
        Some((_, Some(seconds @ 1.0..=300.0))) => Duration::from_secs_f64(seconds),
        Some((text, seconds)) => {
            let (kind, message) = match seconds {
                None => (
                    "float_parsing",
                    "Input should be a valid number, unable to parse string as a number",
                ),
                Some(seconds) if seconds > 300.0 => (
                    "less_than_equal",
                    "Input should be less than or equal to 300",
                ),
                Some(_) => (
                    "greater_than_equal",
                    "Input should be greater than or equal to 1",
                ),
            };
            problems.push(wrong_query(kind, "timeout", message, text));
            WAIT
        }
    };
    if !problems.is_empty() {
        return Err(Refusal::fields(problems));
    }
    let wanted = match wait {
        Some((_, wanted)) => wanted.unwrap_or_default(),
        None => time.is_some(),
    };
    Ok(wanted.then_some(patience))
}

/// As pydantic reads it.
fn truth(text: &str) -> Option<bool> {
    match text.to_lowercase().as_str() {
        "true" | "1" | "yes" | "on" | "t" | "y" => Some(true),
        "false" | "0" | "no" | "off" | "f" | "n" => Some(false),
        _ => None,
    }
}

/// Ends a job, and answers when nothing of it runs any more.
pub(super) async fn cancel(
    State(api): State<Arc<Api>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let address = peer.ip().to_string();
    let actor = Actor {
        client_address: Some(&address),
        ..Actor::default()
    };
    let over = || Refusal::new(StatusCode::NOT_FOUND, "Job not found or already finished");
    let state = match api.dispatcher.cancel(&id, actor, CANCEL).await? {
        Cancelled::Now => JobState::Ended(Status::Cancelled),
        Cancelled::Asked => api.store.standing(&id).await?.ok_or_else(over)?.state,
        Cancelled::TooLate(_) | Cancelled::Unknown => return Err(over()),
    };
    let cancelled = |status| Json(json!({"status": status, "job_id": id}));
    match state {
        JobState::Ended(Status::Cancelled) => Ok(cancelled("cancelled").into_response()),
        // Its program was faster.
        JobState::Ended(_) => Err(over()),
        // It is recorded, and whoever runs it has not answered yet.
        JobState::Queued | JobState::Running => {
            Ok((StatusCode::ACCEPTED, cancelled("cancelling")).into_response())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(query: &[(&str, &str)]) -> Result<Option<f64>, Refusal> {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let query = query.iter().map(own).collect();
        patience(&query).map(|time| time.map(|time| time.as_secs_f64()))
    }

    #[test]
    fn a_result_is_waited_for_when_that_is_asked_for() {
        assert_eq!(wait(&[]).unwrap(), None);
        assert_eq!(wait(&[("wait", "true")]).unwrap(), Some(30.0));
        assert_eq!(
            wait(&[("wait", "true"), ("timeout", "2.5")]).unwrap(),
            Some(2.5)
        );
        assert_eq!(wait(&[("wait", "0"), ("timeout", "5")]).unwrap(), None);
        assert_eq!(wait(&[("timeout", "5")]).unwrap(), Some(5.0));
        for bad in [
            [("wait", "maybe"), ("timeout", "5")],
            [("wait", "true"), ("timeout", "0.5")],
            [("wait", "true"), ("timeout", "301")],
            [("wait", "true"), ("timeout", "inf")],
            [("wait", "true"), ("timeout", "NaN")],
            [("wait", "false"), ("timeout", "x")],
        ] {
            assert!(wait(&bad).is_err(), "{bad:?}");
        }
    }
}
