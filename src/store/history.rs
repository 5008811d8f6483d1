//! What looks at jobs, and what forgets them.

use super::queue::State;
use super::{Store, StoreError};
use crate::job::{Captured, ResourceUsage, Skipped};
use jiff::Timestamp;
use serde::Serialize;
use std::time::Duration;

/// Where a job stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Queued, running or how it has ended.
    pub state: State,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When its first attempt began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Attempts that have begun.
    pub attempts: i16,
    /// Somebody wants it to end.
    pub cancel_asked: bool,
}

/// All that is known of a job but what it brought along.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    missing_docs,
    reason = "the fields are those of the API, described in its reference"
)]
pub struct Entry {
    pub id: String,
    pub state: State,
    pub owner: String,
    pub job_type: String,
    pub image: String,
    pub idempotency_key: Option<String>,
    pub correlation_id: Option<String>,
    pub parent_id: Option<String>,
    pub relationship: Option<String>,
    pub attempts: i16,
    pub max_attempts: i16,
    pub code_sha256: Vec<u8>,
    pub input_sha256: Vec<u8>,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    /// `None` until it has ended.
    pub left: Option<Box<Left>>,
}

/// How a job has ended.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "see `Entry`")]
pub struct End {
    pub state: State,
    pub started_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    pub left: Left,
}

/// What a job has left. Serialized, its names are those of the columns that `finish.sql` takes.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "see `Entry`")]
pub struct Left {
    /// What it used, and how long it took; `None` if no attempt has come to an end.
    #[serde(flatten)]
    pub run: Option<Run>,
    #[serde(flatten)]
    pub failure: Option<Failure>,
    #[serde(skip)]
    pub stdout: Captured,
    #[serde(skip)]
    pub stderr: Captured,
    /// What `/output/result.json` held, if that was JSON.
    #[serde(rename = "result")]
    pub output: Option<String>,
    #[serde(rename = "result_error")]
    pub output_error: Option<String>,
    #[serde(rename = "files")]
    pub artifacts: Vec<File>,
    pub artifacts_truncated: bool,
    pub artifacts_skipped: Vec<Skipped>,
}

/// The run that a job has ended with.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[expect(missing_docs, reason = "see `Entry`")]
pub struct Run {
    pub runtime: String,
    pub start: String,
    pub exit_code: Option<i16>,
    pub phase_at_exit: String,
    pub sandbox_ms: i64,
    pub startup_ms: Option<i64>,
    pub execution_ms: Option<i64>,
    pub total_ms: i64,
    #[serde(flatten)]
    pub usage: ResourceUsage,
}

/// Why a job has not succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "see `Entry`")]
pub struct Failure {
    #[serde(rename = "error_type")]
    pub kind: String,
    #[serde(rename = "error_message")]
    pub message: String,
    #[serde(rename = "error_phase")]
    pub phase: Option<String>,
}

/// A file that a job has left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "see `Entry`")]
pub struct File {
    pub name: String,
    pub size_bytes: u64,
    #[serde(with = "hex")]
    pub sha256: Vec<u8>,
}

/// How much of what an owner's jobs have left is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// Who it is.
    pub owner: String,
    /// Of all files of all records, equal ones too.
    pub bytes: u64,
}

/// Which jobs are asked for; `None` stands for any.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Where they stand.
    pub state: Option<State>,
    /// Of this job type.
    pub job_type: Option<String>,
    /// Of this owner.
    pub owner: Option<String>,
}

/// How many jobs stand where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depth {
    /// Jobs that wait.
    pub queued: u64,
    /// Jobs that run, on all hosts.
    pub running: u64,
}

/// A time that was read as microseconds.
pub(super) fn timestamp(microseconds: i64) -> Result<Timestamp, StoreError> {
    Timestamp::from_microsecond(microseconds).map_err(|error| StoreError::Unknown {
        what: format!("its time {microseconds}: {error}"),
    })
}

impl Store {
    /// Where a job stands; `None` if there is none of this name.
    ///
    /// # Errors
    /// [`StoreError::Query`].
    pub async fn standing(&self, id: &str) -> Result<Option<Standing>, StoreError> {
        let found = sqlx::query!(
            r#"
            SELECT state, attempts, cancel_asked_at IS NOT NULL AS "cancel_asked!",
                (extract(epoch FROM created_at) * 1000000)::bigint AS "created_at!",
                (extract(epoch FROM started_at) * 1000000)::bigint AS started_at,
                (extract(epoch FROM ended_at) * 1000000)::bigint AS ended_at
            FROM jobs WHERE id = $1
            "#,
            id,
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(StoreError::query("look for a job"))?;
        let standing = found.map(|row| {
            Ok(Standing {
                state: State::from_name(&row.state)?,
                created_at: timestamp(row.created_at)?,
                started_at: row.started_at.map(timestamp).transpose()?,
                ended_at: row.ended_at.map(timestamp).transpose()?,
                attempts: row.attempts,
                cancel_asked: row.cancel_asked,
            })
        });
        standing.transpose()
    }

    /// The place of a job in the queue, from 1, as it is now; `None` if it does not wait.
    ///
    /// # Errors
    /// [`StoreError::Query`].
    pub async fn position(&self, id: &str) -> Result<Option<u64>, StoreError> {
        let before = sqlx::query_scalar!(
            r#"
            SELECT (
                SELECT count(*) FROM jobs other
                WHERE other.state = 'queued' AND (
                    other.priority > job.priority OR other.priority = job.priority
                    AND (other.turn, other.number) < (job.turn, job.number)
                )
            ) AS "before!"
            FROM jobs job WHERE id = $1 AND state = 'queued'
            "#,
            id,
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(StoreError::query("find the place of a job in the queue"))?;
        Ok(before.map(|before| before.cast_unsigned() + 1))
    }

    /// All that is known of a job; `None` if there is none of this name.
    ///
    /// # Errors
    /// [`StoreError::Query`].
    pub async fn entry(&self, id: &str) -> Result<Option<Entry>, StoreError> {
        Ok(self.entries(&[id.to_owned()]).await?.pop())
    }

    /// A page of all jobs, the newest first: at most `most` of them, after the first `skip`.
    ///
    /// # Errors
    /// [`StoreError::Query`].
    pub async fn page(
        &self,
        filter: &Filter,
        most: u32,
        skip: u32,
    ) -> Result<Vec<Entry>, StoreError> {
        let ids = sqlx::query_scalar!(
            r#"
            SELECT id FROM jobs
            WHERE ($1::text IS NULL OR state = $1) AND ($2::text IS NULL OR job_type = $2)
                AND ($3::text IS NULL OR owner = $3)
            ORDER BY created_at DESC, number DESC
            LIMIT $4 OFFSET $5
            "#,
            filter.state.map(State::name),
            filter.job_type,
            filter.owner,
            i64::from(most),
            i64::from(skip),
        )
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::query("list the jobs"))?;
        self.entries(&ids).await
    }

    async fn entries(&self, ids: &[String]) -> Result<Vec<Entry>, StoreError> {
        let rows = sqlx::query_file_as!(Row, "src/store/queries/records.sql", ids)
            .fetch_all(&self.pool)
            .await
            .map_err(StoreError::query("read what is known of jobs"))?;
        rows.into_iter().map(Row::into_entry).collect()
    }

    /// Which of these digests, in hexadecimal, no file of a job has.
    pub(super) async fn without_rows(&self, digests: &[String]) -> Result<Vec<String>, StoreError> {
        sqlx::query_scalar!(
            r#"
            SELECT digest AS "digest!" FROM unnest($1::text[]) digest
            WHERE NOT EXISTS (SELECT FROM artifacts WHERE sha256 = decode(digest, 'hex'))
            "#,
            digests,
        )
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::query("find out which files are in use"))
    }

    /// How much is kept of the owner of this job.
    ///
    /// # Errors
    /// [`StoreError::Query`].
    pub async fn usage(&self, id: &str) -> Result<Usage, StoreError> {
        let row = sqlx::query!(
            r#"
            SELECT owner, (
                SELECT COALESCE(sum(bytes), 0) FROM artifact_usage usage WHERE usage.owner = jobs.owner
            )::bigint AS "bytes!"
            FROM jobs WHERE id = $1
            "#,
            id,
        )
        .fetch_one(&self.pool)
        .await
        .map_err(StoreError::query("find out how much is kept of an owner"))?;
        Ok(Usage {
            owner: row.owner,
            bytes: row.bytes.cast_unsigned(),
        })
    }

    /// How many jobs wait and run.
    ///
    /// # Errors
    /// [`StoreError::Query`].
    pub async fn depth(&self) -> Result<Depth, StoreError> {
        let row = sqlx::query!(
            r#"
            SELECT (SELECT count(*) FROM jobs WHERE state = 'queued') AS "queued!",
                (SELECT count(*) FROM jobs WHERE state = 'running') AS "running!"
            "#,
        )
        .fetch_one(&self.pool)
        .await
        .map_err(StoreError::query("count the jobs"))?;
        Ok(Depth {
            queued: row.queued.cast_unsigned(),
            running: row.running.cast_unsigned(),
        })
    }

    /// Forgets dead letters that are older than this, at most so many; gives how many they were. The audit
    /// says that it was this server.
    ///
    /// # Errors
    /// [`StoreError::Query`].
    pub async fn forget_dead_letters(
        &self,
        after: Duration,
        most: u32,
        server: &str,
    ) -> Result<u64, StoreError> {
        let forgotten = sqlx::query_scalar!(
            r#"
            WITH forgotten AS (
                DELETE FROM dead_letters WHERE id = ANY (ARRAY(
                    SELECT id FROM dead_letters
                    WHERE created_at < clock_timestamp() - $1::double precision * interval '1 s'
                    ORDER BY created_at
                    LIMIT $2
                ))
                RETURNING id
            ), note AS (
                INSERT INTO audit (owner, action, detail)
                SELECT '', 'forget_dead_letters',
                    jsonb_build_object('count', count(*), 'server', $3::text)
                FROM forgotten HAVING count(*) > 0
            )
            SELECT count(*) AS "count!" FROM forgotten
            "#,
            after.as_secs_f64(),
            i64::from(most),
            server,
        )
        .fetch_one(&self.pool)
        .await
        .map_err(StoreError::query("forget old dead letters"))?;
        Ok(forgotten.cast_unsigned())
    }

    /// Forgets jobs that ended longer ago than this, with all that belongs to them, at most so many;
    /// gives how many they were. Call it again until they are fewer. The audit says that it was this server.
    ///
    /// # Errors
    /// [`StoreError::Query`].
    pub async fn forget(
        &self,
        after: Duration,
        most: u32,
        server: &str,
    ) -> Result<u64, StoreError> {
        let forgotten = sqlx::query_scalar!(
            r#"
            WITH forgotten AS (
                DELETE FROM jobs WHERE id = ANY (ARRAY(
                    SELECT id FROM jobs
                    WHERE ended_at < clock_timestamp() - $1::double precision * interval '1 s'
                    ORDER BY ended_at
                    LIMIT $2
                    FOR UPDATE SKIP LOCKED
                ))
                RETURNING id
            ), note AS (
                INSERT INTO audit (owner, action, detail)
                SELECT '', 'forget_jobs', jsonb_build_object('count', count(*), 'server', $3::text)
                FROM forgotten HAVING count(*) > 0
            )
            SELECT count(*) AS "count!" FROM forgotten
            "#,
            after.as_secs_f64(),
            i64::from(most),
            server,
        )
        .fetch_one(&self.pool)
        .await
        .map_err(StoreError::query("forget old jobs"))?;
        Ok(forgotten.cast_unsigned())
    }
}

/// A row of `records.sql`.
struct Row {
    id: String,
    state: String,
    owner: String,
    job_type: String,
    idempotency_key: Option<String>,
    correlation_id: Option<String>,
    parent_id: Option<String>,
    relationship: Option<String>,
    attempts: i16,
    max_attempts: i16,
    created_at: i64,
    started_at: Option<i64>,
    ended_at: Option<i64>,
    image: String,
    code_sha256: Vec<u8>,
    input_sha256: Vec<u8>,
    has_record: bool,
    runtime: Option<String>,
    start: Option<String>,
    exit_code: Option<i16>,
    stdout: Option<Vec<u8>>,
    stdout_bytes: Option<i64>,
    stderr: Option<Vec<u8>>,
    stderr_bytes: Option<i64>,
    result: Option<String>,
    result_error: Option<String>,
    error_type: Option<String>,
    error_message: Option<String>,
    error_phase: Option<String>,
    phase_at_exit: Option<String>,
    sandbox_ms: Option<i64>,
    startup_ms: Option<i64>,
    execution_ms: Option<i64>,
    total_ms: Option<i64>,
    max_rss_mb: Option<f64>,
    cpu_time_ms: Option<i64>,
    wall_time_ms: Option<i64>,
    oom_kills: Option<i64>,
    artifacts_truncated: Option<bool>,
    artifacts_skipped: Option<serde_json::Value>,
    names: Option<Vec<String>>,
    sizes: Option<Vec<i64>>,
    digests: Option<Vec<Vec<u8>>>,
}

impl Row {
    fn into_entry(mut self) -> Result<Entry, StoreError> {
        let left = self.has_record.then(|| Box::new(self.take_left()));
        Ok(Entry {
            state: State::from_name(&self.state)?,
            created_at: timestamp(self.created_at)?,
            started_at: self.started_at.map(timestamp).transpose()?,
            ended_at: self.ended_at.map(timestamp).transpose()?,
            id: self.id,
            owner: self.owner,
            job_type: self.job_type,
            image: self.image,
            idempotency_key: self.idempotency_key,
            correlation_id: self.correlation_id,
            parent_id: self.parent_id,
            relationship: self.relationship,
            attempts: self.attempts,
            max_attempts: self.max_attempts,
            code_sha256: self.code_sha256,
            input_sha256: self.input_sha256,
            left,
        })
    }

    fn take_left(&mut self) -> Left {
        let captured = |bytes: &mut Option<Vec<u8>>, total: Option<i64>| Captured {
            bytes: bytes.take().unwrap_or_default(),
            total: total.unwrap_or_default().cast_unsigned(),
        };
        let names = self.names.take().unwrap_or_default().into_iter();
        let files = names
            .zip(self.sizes.take().unwrap_or_default())
            .zip(self.digests.take().unwrap_or_default());
        Left {
            run: self.take_run(),
            failure: self.take_failure(),
            stdout: captured(&mut self.stdout, self.stdout_bytes),
            stderr: captured(&mut self.stderr, self.stderr_bytes),
            output: self.result.take(),
            output_error: self.result_error.take(),
            artifacts: files
                .map(|((name, size), sha256)| File {
                    name,
                    size_bytes: size.cast_unsigned(),
                    sha256,
                })
                .collect(),
            artifacts_truncated: self.artifacts_truncated.unwrap_or_default(),
            artifacts_skipped: self
                .artifacts_skipped
                .take()
                .and_then(|skipped| serde_json::from_value(skipped).ok())
                .unwrap_or_default(),
        }
    }

    fn take_failure(&mut self) -> Option<Failure> {
        Some(Failure {
            kind: self.error_type.take()?,
            message: self.error_message.take().unwrap_or_default(),
            phase: self.error_phase.take(),
        })
    }

    fn take_run(&mut self) -> Option<Run> {
        let count = |number: Option<i64>| number.unwrap_or_default().cast_unsigned();
        Some(Run {
            runtime: self.runtime.take()?,
            start: self.start.take()?,
            exit_code: self.exit_code,
            phase_at_exit: self.phase_at_exit.take().unwrap_or_default(),
            sandbox_ms: self.sandbox_ms.unwrap_or_default(),
            startup_ms: self.startup_ms,
            execution_ms: self.execution_ms,
            total_ms: self.total_ms.unwrap_or_default(),
            usage: ResourceUsage {
                max_rss_mb: self.max_rss_mb.unwrap_or_default(),
                cpu_time_ms: count(self.cpu_time_ms),
                wall_time_ms: count(self.wall_time_ms),
                oom_kills: count(self.oom_kills),
            },
        })
    }
}
