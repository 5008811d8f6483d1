//! The history: `GET /executions` and `GET /executions/{id}`.

use super::Api;
use super::fields::wrong_query;
use super::record::{Record, View};
use super::refusal::Refusal;
use crate::store::history::Filter;
use crate::store::queue::State as JobState;
use axum::Json;
use axum::extract::{Path, Query, State};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// Records of a page, if nobody says how many.
const LIMIT: u32 = 100;

/// Records of a page at most.
const MAX_LIMIT: u32 = 1000;

/// Some records, the newest first.
#[derive(Debug, Serialize)]
pub(super) struct Page {
    items: Vec<Record>,
    limit: u32,
    offset: u32,
    has_more: bool,
    count: usize,
}

/// A page of all jobs.
pub(super) async fn page(
    State(api): State<Arc<Api>>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Result<Json<Page>, Refusal> {
    let mut problems = Vec::new();
    let limit = number(&query, "limit", LIMIT, 1..=MAX_LIMIT, &mut problems);
    let offset = number(
        &query,
        "offset",
        0,
        0..=i32::MAX.cast_unsigned(),
        &mut problems,
    );
    if !problems.is_empty() {
        return Err(Refusal::fields(problems));
    }
    let state = query
        .get("status")
        .map(|name| JobState::from_name(name).ok());
    let mut entries = match state {
        // Nothing stands so.
        Some(None) => Vec::new(),
        state => {
            let filter = Filter {
                state: state.flatten(),
                job_type: query.get("job_type").cloned(),
                owner: None,
            };
            // One more tells whether there are more.
            api.store.page(&filter, limit + 1, offset).await?
        }
    };
    let most = usize::try_from(limit).unwrap_or(usize::MAX);
    let has_more = entries.len() > most;
    entries.truncate(most);
    let view = View::of(&query);
    let items: Vec<_> = entries
        .into_iter()
        .map(|entry| Record::of(entry, view))
        .collect();
    Ok(Json(Page {
        count: items.len(),
        items,
        limit,
        offset,
        has_more,
    }))
}

/// The record of one job.
pub(super) async fn one(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Result<Json<Record>, Refusal> {
    let entry = api.store.entry(&id).await?.ok_or_else(Refusal::no_job)?;
    Ok(Json(Record::of(entry, View::of(&query))))
}

fn number(
    query: &BTreeMap<String, String>,
    name: &str,
    default: u32,
    range: RangeInclusive<u32>,
    problems: &mut Vec<Value>,
) -> u32 {
    let Some(text) = query.get(name) else {
        return default;
    };
    let (kind, message) = match text.parse::<i64>() {
        Err(_) => (
            "int_parsing",
            "Input should be a valid integer, unable to parse string as an integer".to_owned(),
        ),
        Ok(number) if number < i64::from(*range.start()) => (
            "greater_than_equal",
            format!("Input should be greater than or equal to {}", range.start()),
        ),
        Ok(number) if number > i64::from(*range.end()) => (
            "less_than_equal",
            format!("Input should be less than or equal to {}", range.end()),
        ),
        Ok(number) => return u32::try_from(number).unwrap_or(default),
    };
    problems.push(wrong_query(kind, name, &message, text));
    default
}
