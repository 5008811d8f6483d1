//! The HTTP API: what Tako VM's clients send, and what they are answered.
//!
//! A handler decodes, asks the store and the dispatcher, and answers; whatever is refused is a `Refusal`.
//! Nothing here is the only copy of anything: who goes away in the middle of a request finds his job
//! under its id.

mod executions;
mod fields;
mod health;
mod jobs;
mod record;
mod refusal;
mod submit;

use crate::dispatch::Dispatcher;
use crate::job::Maxima;
use crate::store::Store;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use refusal::Refusal;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// What a request is called by whoever sends it, and in our log.
const CORRELATION_ID: HeaderName = HeaderName::from_static("x-correlation-id");

/// Letters of a correlation id at most, as its column has it.
const MAX_CORRELATION_ID: usize = 64;

/// Of every answer: nothing of a program's is ever taken for a page.
const SECURITY: [(HeaderName, HeaderValue); 3] = [
    (
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    ),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (
        header::X_XSS_PROTECTION,
        HeaderValue::from_static("1; mode=block"),
    ),
];

/// What requests are answered with.
#[derive(Debug)]
pub struct Api {
    /// Jobs and their history.
    pub store: Store,
    /// What runs them.
    pub dispatcher: Arc<Dispatcher>,
    /// Bounds.
    pub settings: Settings,
}

/// Bounds of what is taken in.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Bytes of a body at most.
    pub max_payload_bytes: usize,
    /// Jobs that wait at most.
    pub max_queue_size: u32,
    /// Jobs that run here at a time.
    pub max_workers: u16,
    /// Attempts of a job that is lost to infrastructure.
    pub max_attempts: i16,
    /// A job type that is not known is an error.
    pub production_mode: bool,
    /// Defaults and maxima of jobs.
    pub maxima: Maxima,
}

/// The correlation id of a request.
#[derive(Debug, Clone)]
struct Correlation(String);

/// Answers requests until `stop`, and then those that have come already.
///
/// # Errors
/// When nothing can be accepted any more.
pub async fn serve(listener: TcpListener, api: Api, stop: CancellationToken) -> io::Result<()> {
    let service = router(api).into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

fn router(api: Api) -> Router {
    let limit = DefaultBodyLimit::max(api.settings.max_payload_bytes);
    Router::new()
        .route("/execute", post(submit::execute))
        .route("/execute/async", post(submit::execute_async))
        .route("/jobs/{id}", get(jobs::status))
        .route("/jobs/{id}/result", get(jobs::result))
        .route("/jobs/{id}/cancel", post(jobs::cancel))
        .route("/executions", get(executions::page))
        .route("/executions/{id}", get(executions::one))
        .route("/health", get(health::health))
        .route("/ready", get(health::ready))
        .fallback(|| async { Refusal::plain(StatusCode::NOT_FOUND, "Not Found") })
        .method_not_allowed_fallback(|| async {
            Refusal::plain(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed")
        })
        .layer(limit)
        .layer(middleware::from_fn(envelope))
        .with_state(Arc::new(api))
}

/// What every request and every answer has in common.
async fn envelope(mut request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let (id, refused) = match correlation_id(&request) {
        Ok(id) => (id, None),
        Err(refusal) => (Uuid::new_v4().to_string(), Some(refusal)),
    };
    request.extensions_mut().insert(Correlation(id.clone()));
    let mut response = match refused {
        Some(refusal) => refusal.into_response(),
        None => next.run(request).await,
    };
    if let Some(refusal) = response.extensions_mut().remove::<Refusal>() {
        let allowed = response.headers_mut().remove(header::ALLOW);
        response = refusal.write_out(&id);
        if let Some(allowed) = allowed {
            response.headers_mut().insert(header::ALLOW, allowed);
        }
    }
    let headers = response.headers_mut();
    headers.extend(SECURITY);
    if let Ok(value) = HeaderValue::from_str(&id) {
        headers.insert(CORRELATION_ID, value);
    }
    tracing::info!(
        "{method} {path} {} in {:.1?} [{id}]",
        response.status().as_u16(),
        begun.elapsed()
    );
    response
}

/// The sender's, or one of ours.
fn correlation_id(request: &Request) -> Result<String, Refusal> {
    let Some(value) = request.headers().get(CORRELATION_ID) else {
        return Ok(Uuid::new_v4().to_string());
    };
    let text = value.to_str().ok();
    let text = text.filter(|text| (1..=MAX_CORRELATION_ID).contains(&text.len()));
    let text = text.ok_or_else(|| {
        Refusal::unprocessable(format!(
            "X-Correlation-ID: give 1 to {MAX_CORRELATION_ID} letters, digits and signs of ASCII"
        ))
    })?;
    Ok(text.to_owned())
}
