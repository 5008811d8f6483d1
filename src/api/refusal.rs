//! What is answered when a request is not carried out, in the three shapes of Tako VM.

use crate::job::one_line;
use crate::store::StoreError;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::error::Error;

/// After how many seconds to come again when a queue is full, or something is about to be mended.
const COME_AGAIN: u64 = 1;

/// Why a request is not carried out.
///
/// As a response it is only a note of itself: the [envelope](super::envelope) writes it out, since that
/// knows the correlation id.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    status: StatusCode,
    detail: Detail,
    come_again: bool,
}

#[derive(Debug, Clone)]
enum Detail {
    /// One sentence.
    Text(String),
    /// Each field that is wrong, as pydantic says it.
    Fields(Vec<Value>),
    /// The router's own, which knows of no correlation id.
    Plain(&'static str),
}

impl Refusal {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            status,
            detail: Detail::Text(detail.into()),
            come_again: false,
        }
    }

    /// 422 with every field that is wrong.
    pub(super) fn fields(problems: Vec<Value>) -> Self {
        Self {
            status: StatusCode::UNPROCESSABLE_ENTITY,
            detail: Detail::Fields(problems),
            come_again: false,
        }
    }

    /// 422 with one sentence.
    pub(super) fn unprocessable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
    }

    pub(super) fn plain(status: StatusCode, detail: &'static str) -> Self {
        Self {
            status,
            detail: Detail::Plain(detail),
            come_again: false,
        }
    }

    /// 503: the same request may succeed soon.
    pub(super) fn unavailable(detail: impl Into<String>) -> Self {
        Self {
            come_again: true,
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, detail)
        }
    }

    /// 404 of a job.
    pub(super) fn no_job() -> Self {
        Self::new(StatusCode::NOT_FOUND, "Job not found")
    }

    /// The cause is logged, and not told.
    fn internal(error: &dyn Error) -> Self {
        tracing::error!("a request failed: {}", one_line(error));
        let what = "Internal error: the server's log has the cause under this correlation id";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, what)
    }

    pub(super) fn write_out(self, correlation_id: &str) -> Response {
        let body = match self.detail {
            Detail::Text(detail) => json!({"detail": detail, "correlation_id": correlation_id}),
            Detail::Fields(problems) => json!({"detail": problems}),
            Detail::Plain(detail) => json!({"detail": detail}),
        };
        let mut response = (self.status, axum::Json(body)).into_response();
        if self.come_again {
            let headers = response.headers_mut();
            headers.insert(header::RETRY_AFTER, HeaderValue::from(COME_AGAIN));
        }
        response
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        if error.is_about_the_connection() {
            tracing::warn!("the database does not answer: {}", one_line(&error));
            let what = "The database does not answer; nothing is known of this request: send it again, a \
                        submission with an idempotency_key";
            return Self::unavailable(what);
        }
        Self::internal(&error)
    }
}
