//! Requests as any client makes them.

use serde_json::Value;
use std::time::{Duration, Instant};
use ureq::Agent;

pub(crate) fn agent() -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_mins(1)))
        .build()
        .into()
}

fn answer(response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> (u16, Value) {
    let mut response = response.unwrap();
    let text = response.body_mut().read_to_string().unwrap();
    let value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    (response.status().as_u16(), value)
}

pub(crate) fn get(url: &str) -> (u16, Value) {
    answer(agent().get(url).call())
}

pub(crate) fn post(url: &str, body: &str) -> (u16, Value) {
    answer(agent().post(url).send(body))
}

/// The record of a job, once it has ended.
pub(crate) fn ended(url: &str, id: &str) -> Value {
    let begun = Instant::now();
    loop {
        let (status, record) = get(&format!(
            "{url}/jobs/{id}/result?wait=true&timeout=50&view=full"
        ));
        if status == 200 {
            return record;
        }
        assert_eq!(status, 408, "{record}");
        assert!(begun.elapsed() < Duration::from_secs(100), "{record}");
    }
}
