//! How attempts have ended, as it is recorded together with others that end at the same time.

use super::queue::{Ended, Held, State, Written, without_nul};
use super::together::{Row, in_json};
use crate::job::{Outcome, Skipped};
use serde::Serialize;
use sqlx::PgPool;
use uuid::Uuid;

/// An ending as `finish.sql` takes it: the names are those of its columns there.
#[derive(Debug, Serialize)]
pub(super) struct Ending {
    id: String,
    token: Uuid,
    state: &'static str,
    execution_id: String,
    runtime: String,
    image: String,
    start: &'static str,
    exit_code: Option<u8>,
    stdout_bytes: i64,
    stderr_bytes: i64,
    result: Option<String>,
    result_error: Option<String>,
    error_type: Option<&'static str>,
    error_message: Option<String>,
    error_phase: Option<&'static str>,
    phase_at_exit: &'static str,
    started_at: jiff::Timestamp,
    ended_at: jiff::Timestamp,
    sandbox_ms: i64,
    startup_ms: Option<i64>,
    execution_ms: Option<i64>,
    total_ms: i64,
    max_rss_mb: f64,
    cpu_time_ms: i64,
    wall_time_ms: i64,
    oom_kills: i64,
    artifacts_truncated: bool,
    artifacts_skipped: Vec<serde_json::Value>,
    files: Vec<File>,
    #[serde(skip)]
    stdout: Vec<u8>,
    #[serde(skip)]
    stderr: Vec<u8>,
}

/// A file that a job has left.
#[derive(Debug, Serialize)]
struct File {
    name: String,
    size_bytes: i64,
    sha256: String,
}

impl Ending {
    pub(super) fn new(held: &Held, ended: Ended<'_>) -> Self {
        let Ended {
            outcome, result, ..
        } = ended;
        let (timing, usage) = (&outcome.timing, &outcome.usage);
        let error = outcome
            .termination
            .error(outcome.exception.as_ref(), timing.phase_at_exit);
        Self {
            id: held.id.clone(),
            token: held.token,
            state: State::Ended(outcome.termination.status()).name(),
            execution_id: outcome.id.clone(),
            runtime: outcome.runtime.to_string(),
            image: ended.image.to_owned(),
            start: timing.start.name(),
            exit_code: outcome.termination.exit_code(),
            stdout_bytes: outcome.stdout.total.cast_signed(),
            stderr_bytes: outcome.stderr.total.cast_signed(),
            result: result.and_then(Result::ok).map(str::to_owned),
            result_error: result.and_then(Result::err).map(without_nul),
            error_type: error.as_ref().map(|error| error.kind),
            error_phase: error.as_ref().and_then(|error| error.phase),
            error_message: error.map(|error| without_nul(&error.message)),
            phase_at_exit: timing.phase_at_exit,
            started_at: outcome.started_at,
            ended_at: outcome.ended_at,
            sandbox_ms: timing.sandbox_ms.cast_signed(),
            startup_ms: timing.startup_ms.map(u64::cast_signed),
            execution_ms: timing.execution_ms.map(u64::cast_signed),
            total_ms: timing.total_ms.cast_signed(),
            max_rss_mb: usage.max_rss_mb,
            cpu_time_ms: usage.cpu_time_ms.cast_signed(),
            wall_time_ms: usage.wall_time_ms.cast_signed(),
            oom_kills: usage.oom_kills.cast_signed(),
            artifacts_truncated: outcome.artifacts_truncated,
            artifacts_skipped: skipped(outcome),
            files: files(outcome),
            stdout: outcome.stdout.bytes.clone(),
            stderr: outcome.stderr.bytes.clone(),
        }
    }
}

fn skipped(outcome: &Outcome) -> Vec<serde_json::Value> {
    let skipped = outcome.artifacts_skipped.iter();
    let skipped = skipped.map(|Skipped { name, reason }| {
        serde_json::json!({ "name": without_nul(name), "reason": without_nul(reason) })
    });
    skipped.collect()
}

fn files(outcome: &Outcome) -> Vec<File> {
    let files = outcome.artifacts.iter().map(|file| File {
        name: file.name.clone(),
        size_bytes: file.size_bytes.cast_signed(),
        sha256: file.sha256.clone(),
    });
    files.collect()
}

impl Row for Ending {
    type Answer = Written;

    const DOING: &'static str = "record how a job ended";

    fn bytes(&self) -> usize {
        let result = self.result.as_ref().map_or(0, String::len);
        result + self.stdout.len() + self.stderr.len()
    }

    async fn write(pool: &PgPool, rows: &[Self]) -> Result<Vec<Written>, sqlx::Error> {
        let stdout: Vec<_> = rows.iter().map(|row| &row.stdout[..]).collect();
        let stderr: Vec<_> = rows.iter().map(|row| &row.stderr[..]).collect();
        let written = sqlx::query_file_scalar!(
            "src/store/queries/finish.sql",
            in_json(rows)?,
            &stdout as &[&[u8]],
            &stderr as &[&[u8]],
        )
        .fetch_all(pool)
        .await?;
        let mut answers: Vec<_> = rows.iter().map(|_| Written::Stale).collect();
        for place in written {
            // Places are counted from 1.
            let place = usize::try_from(place).unwrap_or(0).wrapping_sub(1);
            if let Some(answer) = answers.get_mut(place) {
                *answer = Written::Yes;
            }
        }
        Ok(answers)
    }
}
