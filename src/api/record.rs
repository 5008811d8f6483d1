//! What is told of a job: short, as an answer to who has waited, or as its record.

use crate::job::{Skipped, timestamp, timestamp_if_any};
use crate::store::history::{End, Entry, Failure, File, Left, Run, Standing};
use crate::store::queue::State;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// The answer of `POST /execute`.
#[derive(Debug, Serialize)]
pub(super) struct Executed {
    success: bool,
    output: Option<Box<RawValue>>,
    /// Seconds.
    execution_time: f64,
    stdout: String,
    stderr: String,
    exit_code: Option<i16>,
    error: Option<String>,
    job_type: String,
    execution_id: String,
    runtime: Option<String>,
}

/// Where a job stands: the answer of `GET /jobs/{id}`.
#[derive(Debug, Serialize)]
pub(super) struct JobStatus {
    job_id: String,
    status: &'static str,
    #[serde(serialize_with = "timestamp")]
    created_at: Timestamp,
    duration_ms: Option<i64>,
    queue_position: Option<u64>,
}

/// How much of a record is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    Slim,
    Full,
}

impl View {
    /// Whatever is not the full one is the other.
    pub(super) fn of(query: &BTreeMap<String, String>) -> Self {
        match query.get("view").map(String::as_str) {
            Some("full") => Self::Full,
            _ => Self::Slim,
        }
    }
}

/// All that is known of a job, in the words of Tako VM.
#[derive(Debug, Serialize)]
pub(super) struct Record {
    execution_id: String,
    status: &'static str,
    job_type: String,
    job_version: String,
    #[serde(serialize_with = "timestamp")]
    created_at: Timestamp,
    #[serde(serialize_with = "timestamp_if_any")]
    started_at: Option<Timestamp>,
    #[serde(serialize_with = "timestamp_if_any")]
    ended_at: Option<Timestamp>,
    duration_ms: Option<i64>,
    exit_code: Option<i16>,
    stdout: String,
    stderr: String,
    output: Option<Box<RawValue>>,
    error: Option<Error>,
    timing: Option<Timing>,
    runtime: Option<String>,
    #[serde(flatten)]
    rest: Option<Rest>,
}

/// What only the full view has.
#[derive(Debug, Serialize)]
struct Rest {
    job_ref: String,
    artifacts: Vec<Artifact>,
    artifacts_truncated: bool,
    artifacts_skipped: Vec<Skipped>,
    input_artifacts: Vec<Artifact>,
    resource_usage: Option<Usage>,
    code_hash: String,
    input_hash: String,
    parent_execution_id: Option<String>,
    relationship: Option<String>,
    stdout_bytes: u64,
    stderr_bytes: u64,
    stdout_truncated: bool,
    stderr_truncated: bool,
    result_error: Option<String>,
    idempotency_key: Option<String>,
    correlation_id: Option<String>,
    attempts: i16,
    max_attempts: i16,
}

#[derive(Debug, Serialize)]
struct Error {
    #[serde(rename = "type")]
    kind: String,
    message: String,
    phase: Option<String>,
}

#[derive(Debug, Serialize)]
struct Timing {
    startup_ms: Option<i64>,
    /// Nothing is installed at a job's start.
    dep_install_ms: Option<i64>,
    execution_ms: Option<i64>,
    total_ms: i64,
    phase_at_exit: String,
    sandbox_ms: i64,
    start: String,
}

#[derive(Debug, Serialize)]
struct Usage {
    max_rss_mb: f64,
    cpu_time_ms: u64,
    wall_time_ms: u64,
    oom_kills: u64,
}

#[derive(Debug, Serialize)]
struct Artifact {
    name: String,
    size_bytes: u64,
    sha256: String,
    content_type: Option<String>,
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self {
            kind: failure.kind,
            message: failure.message,
            phase: failure.phase,
        }
    }
}

impl Timing {
    fn of(run: &Run) -> Self {
        Self {
            startup_ms: run.startup_ms,
            dep_install_ms: None,
            execution_ms: run.execution_ms,
            total_ms: run.total_ms,
            phase_at_exit: run.phase_at_exit.clone(),
            sandbox_ms: run.sandbox_ms,
            start: run.start.clone(),
        }
    }
}

impl From<File> for Artifact {
    fn from(file: File) -> Self {
        Self {
            name: file.name,
            size_bytes: file.size_bytes,
            sha256: hex::encode(file.sha256),
            content_type: None,
        }
    }
}

/// It was checked before it was stored.
fn json(output: Option<String>) -> Option<Box<RawValue>> {
    RawValue::from_string(output?).ok()
}

fn between(from: Option<Timestamp>, to: Option<Timestamp>) -> Option<i64> {
    Some(
        to?.duration_since(from?)
            .as_millis()
            .try_into()
            .unwrap_or(i64::MAX),
    )
}

impl Executed {
    /// Of a job that has ended.
    pub(super) fn recorded(entry: Entry) -> Self {
        let end = End {
            state: entry.state,
            started_at: entry.started_at,
            ended_at: entry.ended_at,
            left: entry.left.map_or_else(Left::default, |left| *left),
        };
        Self::of(entry.id, entry.job_type, &end)
    }

    /// Of the job of this name, which has ended like this.
    pub(super) fn of(execution_id: String, job_type: String, end: &End) -> Self {
        let (left, run) = (&end.left, end.left.run.as_ref());
        let took = between(end.started_at, end.ended_at).unwrap_or_default();
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of some hours")]
        let execution_time = took as f64 / 1e3;
        Self {
            success: end.state.name() == "succeeded",
            output: json(left.output.clone()),
            execution_time,
            stdout: left.stdout.text(),
            stderr: left.stderr.text(),
            exit_code: run.and_then(|run| run.exit_code),
            error: left.failure.as_ref().map(|failure| failure.message.clone()),
            job_type,
            execution_id,
            runtime: run.map(|run| run.runtime.clone()),
        }
    }
}

impl JobStatus {
    pub(super) fn of(job_id: String, standing: &Standing, queue_position: Option<u64>) -> Self {
        Self {
            job_id,
            // Here, and only here, a job that waits is called so.
            status: match standing.state {
                State::Queued => "pending",
                state => state.name(),
            },
            created_at: standing.created_at,
            duration_ms: between(standing.started_at, standing.ended_at),
            queue_position,
        }
    }
}

impl Record {
    pub(super) fn of(entry: Entry, view: View) -> Self {
        let left = entry.left.map_or_else(Left::default, |left| *left);
        let (stdout, stderr) = (left.stdout.text(), left.stderr.text());
        let usage = left.run.as_ref().map(|run| Usage {
            max_rss_mb: run.usage.max_rss_mb,
            cpu_time_ms: run.usage.cpu_time_ms,
            wall_time_ms: run.usage.wall_time_ms,
            oom_kills: run.usage.oom_kills,
        });
        let rest = Rest {
            job_ref: entry.image.clone(),
            artifacts: left.artifacts.into_iter().map(Artifact::from).collect(),
            artifacts_truncated: left.artifacts_truncated,
            artifacts_skipped: left.artifacts_skipped,
            input_artifacts: Vec::new(),
            resource_usage: usage,
            code_hash: hex::encode(entry.code_sha256),
            input_hash: hex::encode(entry.input_sha256),
            parent_execution_id: entry.parent_id,
            relationship: entry.relationship,
            stdout_bytes: left.stdout.total,
            stderr_bytes: left.stderr.total,
            stdout_truncated: left.stdout.truncated(),
            stderr_truncated: left.stderr.truncated(),
            result_error: left.output_error,
            idempotency_key: entry.idempotency_key,
            correlation_id: entry.correlation_id,
            attempts: entry.attempts,
            max_attempts: entry.max_attempts,
        };
        Self {
            execution_id: entry.id,
            status: entry.state.name(),
            job_type: entry.job_type,
            job_version: entry.image,
            created_at: entry.created_at,
            started_at: entry.started_at,
            ended_at: entry.ended_at,
            duration_ms: between(entry.started_at, entry.ended_at),
            exit_code: left.run.as_ref().and_then(|run| run.exit_code),
            stdout,
            stderr,
            output: json(left.output),
            error: left.failure.map(Error::from),
            timing: left.run.as_ref().map(Timing::of),
            runtime: left.run.map(|run| run.runtime),
            rest: (view == View::Full).then_some(rest),
        }
    }
}
