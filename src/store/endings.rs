//! How attempts have ended, as it is recorded together with others that end at the same time.

use super::history::{Failure, File, Left, Run};
use super::queue::{Ended, Held, State, without_nul};
use super::together::{Row, in_json};
use crate::job::{Artifact, Skipped};
use serde::Serialize;
use sqlx::PgConnection;
use uuid::Uuid;

/// An ending as `finish.sql` takes it: the names are those of its columns there.
#[derive(Debug, Serialize)]
pub(super) struct Ending {
    id: String,
    token: Uuid,
    state: &'static str,
    execution_id: String,
    image: String,
    started_at: jiff::Timestamp,
    ended_at: jiff::Timestamp,
    stdout_bytes: u64,
    stderr_bytes: u64,
    #[serde(flatten)]
    left: Left,
}

/// In microseconds: when a job began, and when it ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) started_at: Option<i64>,
    pub(super) ended_at: Option<i64>,
}

impl Ending {
    pub(super) fn new(held: &Held, ended: Ended<'_>, left: Left) -> Self {
        let outcome = ended.outcome;
        Self {
            id: held.id.clone(),
            token: held.token,
            state: State::Ended(outcome.termination.status()).name(),
            execution_id: outcome.id.clone(),
            image: ended.image.to_owned(),
            started_at: outcome.started_at,
            ended_at: outcome.ended_at,
            stdout_bytes: left.stdout.total,
            stderr_bytes: left.stderr.total,
            left,
        }
    }

    async fn end(
        &self,
        run: &Run,
        database: &mut PgConnection,
    ) -> Result<Option<Times>, sqlx::Error> {
        let (left, usage) = (&self.left, &run.usage);
        let failure = left.failure.as_ref();
        let skipped = in_json(&left.artifacts_skipped)?;
        let ended = sqlx::query_file_as!(
            Times,
            "src/store/queries/end.sql",
            self.id,
            self.token,
            self.state,
            self.execution_id,
            run.runtime,
            self.image,
            run.start,
            run.exit_code,
            left.stdout.bytes,
            self.stdout_bytes.cast_signed(),
            left.stderr.bytes,
            self.stderr_bytes.cast_signed(),
            left.output.as_deref(),
            left.output_error.as_deref(),
            failure.map(|failure| &*failure.kind),
            failure.map(|failure| &*failure.message),
            failure.and_then(|failure| failure.phase.as_deref()),
            run.phase_at_exit,
            self.started_at.to_string(),
            self.ended_at.to_string(),
            run.sandbox_ms,
            run.startup_ms,
            run.execution_ms,
            run.total_ms,
            usage.max_rss_mb,
            usage.cpu_time_ms.cast_signed(),
            usage.wall_time_ms.cast_signed(),
            usage.oom_kills.cast_signed(),
            left.artifacts_truncated,
            skipped,
        );
        ended.fetch_optional(database).await
    }
}

impl Left {
    /// What an attempt leaves that ends its job.
    pub(super) fn of(ended: Ended<'_>) -> Self {
        let Ended {
            outcome, result, ..
        } = ended;
        let timing = &outcome.timing;
        let error = outcome
            .termination
            .error(outcome.exception.as_ref(), timing.phase_at_exit);
        Self {
            run: Some(Run {
                runtime: outcome.runtime.to_string(),
                start: timing.start.name().to_owned(),
                exit_code: outcome.termination.exit_code().map(i16::from),
                phase_at_exit: timing.phase_at_exit.to_owned(),
                sandbox_ms: timing.sandbox_ms.cast_signed(),
                startup_ms: timing.startup_ms.map(u64::cast_signed),
                execution_ms: timing.execution_ms.map(u64::cast_signed),
                total_ms: timing.total_ms.cast_signed(),
                usage: outcome.usage,
            }),
            failure: error.map(|error| Failure {
                kind: error.kind.to_owned(),
                message: without_nul(&error.message),
                phase: error.phase.map(str::to_owned),
            }),
            stdout: outcome.stdout.clone(),
            stderr: outcome.stderr.clone(),
            output: result.and_then(Result::ok).map(str::to_owned),
            output_error: result.and_then(Result::err).map(without_nul),
            artifacts: outcome.artifacts.iter().map(File::of).collect(),
            artifacts_truncated: outcome.artifacts_truncated,
            artifacts_skipped: outcome.artifacts_skipped.iter().map(skipped).collect(),
        }
    }
}

fn skipped(skipped: &Skipped) -> Skipped {
    Skipped {
        name: without_nul(&skipped.name),
        reason: without_nul(&skipped.reason).into(),
    }
}

impl File {
    fn of(artifact: &Artifact) -> Self {
        Self {
            name: artifact.name.clone(),
            size_bytes: artifact.size_bytes,
            // It was written in hexadecimal by ourselves.
            sha256: hex::decode(&artifact.sha256).unwrap_or_default(),
        }
    }
}

impl Row for Ending {
    /// Nothing if it was not recorded.
    type Answer = Option<Times>;

    const DOING: &'static str = "record how a job ended";

    fn bytes(&self) -> usize {
        let Left {
            output,
            stdout,
            stderr,
            ..
        } = &self.left;
        output.as_ref().map_or(0, String::len) + stdout.bytes.len() + stderr.bytes.len()
    }

    async fn write(
        database: &mut PgConnection,
        rows: &[Self],
    ) -> Result<Vec<Option<Times>>, sqlx::Error> {
        if let [row] = rows
            && let Some(run) = row.left.run.as_ref()
            && row.left.artifacts.is_empty()
        {
            return Ok(vec![row.end(run, database).await?]);
        }
        let stdout: Vec<_> = rows.iter().map(|row| &row.left.stdout.bytes[..]).collect();
        let stderr: Vec<_> = rows.iter().map(|row| &row.left.stderr.bytes[..]).collect();
        let written = sqlx::query_file!(
            "src/store/queries/finish.sql",
            in_json(rows)?,
            &stdout as &[&[u8]],
            &stderr as &[&[u8]],
        )
        .fetch_all(database)
        .await?;
        let mut answers: Vec<_> = rows.iter().map(|_| None).collect();
        for row in written {
            // Places are counted from 1.
            let place = usize::try_from(row.place).unwrap_or(0).wrapping_sub(1);
            if let Some(answer) = answers.get_mut(place) {
                *answer = Some(Times {
                    started_at: row.started_at,
                    ended_at: row.ended_at,
                });
            }
        }
        Ok(answers)
    }
}
