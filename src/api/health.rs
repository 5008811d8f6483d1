//! How the server is: `GET /health` for people and clients, `GET /ready` for what sends requests.

use super::Api;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long the database and the supervisor may take to answer.
const ANSWER: Duration = Duration::from_secs(2);

impl Api {
    /// What keeps jobs from being taken in or run, each in one sentence.
    async fn obstacles(&self, supervisor_answers: bool) -> Vec<&'static str> {
        let database = timeout(ANSWER, self.store.ping()).await;
        let database_answers = database.is_ok_and(|answer| answer.is_ok());
        let obstacles = [
            (self.dispatcher.is_draining(), "the server is about to end"),
            (
                self.dispatcher.is_full(),
                "the files of jobs cannot be kept: the disk may be full or read-only, or the artifact \
                 store away",
            ),
            (!supervisor_answers, "the supervisor does not answer"),
            (!database_answers, "the database does not answer"),
        ];
        let there = obstacles.into_iter().filter(|(is_there, _)| *is_there);
        there.map(|(_, obstacle)| obstacle).collect()
    }
}

/// In the words of Tako VM, which had Docker and a circuit breaker.
pub(super) async fn health(State(api): State<Arc<Api>>) -> Json<Value> {
    let supervisor_answers = api.dispatcher.supervisor_answers().await;
    let obstacles = api.obstacles(supervisor_answers).await;
    let depth = timeout(ANSWER, api.store.depth()).await;
    let depth = depth.ok().and_then(Result::ok);
    Json(json!({
        "status": if obstacles.is_empty() { "healthy" } else { "degraded" },
        "problems": obstacles,
        "docker_available": false,
        "gvisor_available": supervisor_answers,
        "circuit_breaker": {
            "state": "closed", "failure_count": 0, "success_count": 0, "last_failure": null,
        },
        "version": env!("CARGO_PKG_VERSION"),
        "production_mode": api.settings.production_mode,
        "queue_stats": {
            "pending": depth.map(|depth| depth.queued),
            "running": depth.map(|depth| depth.running),
            "max_workers": api.settings.max_workers,
            "max_queue_size": api.settings.max_queue_size,
        },
    }))
}

/// Whether requests are to be sent here.
pub(super) async fn ready(State(api): State<Arc<Api>>) -> (StatusCode, Json<Value>) {
    let supervisor_answers = api.dispatcher.supervisor_answers().await;
    let problems = api.obstacles(supervisor_answers).await;
    let (status, ready) = if problems.is_empty() {
        (StatusCode::OK, true)
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, false)
    };
    (status, Json(json!({"ready": ready, "problems": problems})))
}
