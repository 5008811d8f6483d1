//! Jobs as they are taken into the queue, together with others that come at the same time.

use super::queue::{Submission, Worker};
use super::together::{Row, in_json};
use crate::job::{InputFile, milliseconds};
use serde::Serialize;
use sqlx::PgConnection;
use std::collections::BTreeSet;
use std::time::Duration;
use uuid::Uuid;

/// A job as `enqueue.sql` takes it: the names are those of its columns there.
#[derive(Debug, Serialize)]
pub(super) struct Arrival {
    most: Option<u32>,
    token: Option<Uuid>,
    id: String,
    priority: i16,
    owner: String,
    job_type: String,
    idempotency_key: Option<String>,
    fingerprint: Option<String>,
    correlation_id: Option<String>,
    client_address: Option<String>,
    parent_id: Option<String>,
    relationship: Option<&'static str>,
    max_attempts: i16,
    worker: Option<String>,
    lease_ms: Option<i64>,
    code: String,
    input: String,
    code_sha256: String,
    input_sha256: String,
    requirements: Vec<String>,
    image: String,
    environment: Vec<(String, String)>,
    memory_bytes: Option<i64>,
    millicpus: Option<i32>,
    timeout_ms: Option<i64>,
    startup_timeout_ms: Option<i64>,
    network: bool,
    repeatable: bool,
    #[serde(skip)]
    files: Vec<InputFile>,
}

/// Bytes as PostgreSQL reads them from a text.
fn hexadecimal(bytes: &[u8]) -> String {
    format!("\\x{}", hex::encode(bytes))
}

fn in_milliseconds(time: Option<Duration>) -> Option<i64> {
    time.map(|time| i64::try_from(milliseconds(time)).unwrap_or(i64::MAX))
}

impl Arrival {
    pub(super) fn new(job: &Submission, most: Option<u32>, begun: Option<(&Worker, Uuid)>) -> Self {
        let request = job.request.clone();
        let idempotency = job.idempotency.as_ref();
        let parent = job.parent.as_ref();
        Self {
            most,
            token: begun.map(|(_, token)| token),
            id: job.id.clone(),
            priority: job.priority,
            owner: job.owner.clone(),
            job_type: job.job_type.clone(),
            idempotency_key: idempotency.map(|idempotency| idempotency.key.clone()),
            fingerprint: idempotency.map(|idempotency| hexadecimal(&idempotency.fingerprint)),
            correlation_id: job.correlation_id.clone(),
            client_address: job.client_address.clone(),
            parent_id: parent.map(|parent| parent.id.clone()),
            relationship: parent.map(|parent| parent.relationship.name()),
            max_attempts: job.max_attempts,
            worker: begun.map(|(worker, _)| worker.name.clone()),
            lease_ms: in_milliseconds(begun.map(|(worker, _)| worker.lease)),
            code: request.code,
            input: request.input.unwrap_or_else(|| "{}".to_owned()),
            code_sha256: hexadecimal(&job.code_sha256),
            input_sha256: hexadecimal(&job.input_sha256),
            requirements: job.requirements.clone(),
            image: job.image.clone(),
            environment: request.environment,
            memory_bytes: request.memory_bytes.map(u64::cast_signed),
            millicpus: request.millicpus.map(u32::cast_signed),
            timeout_ms: in_milliseconds(request.timeout),
            startup_timeout_ms: in_milliseconds(request.startup_timeout),
            network: job.network,
            repeatable: job.repeatable,
            files: request.files,
        }
    }

    /// Whether it begins at once, and brings nothing along that is not in its own row.
    fn begins_simply(&self) -> bool {
        self.token.is_some() && self.idempotency_key.is_none() && self.files.is_empty()
    }

    async fn begin(&self, database: &mut PgConnection) -> Result<(), sqlx::Error> {
        let environment = in_json(&self.environment)?;
        let begun = sqlx::query_file!(
            "src/store/queries/begin.sql",
            self.id,
            self.priority,
            self.owner,
            self.job_type,
            self.correlation_id.as_deref(),
            self.client_address.as_deref(),
            self.parent_id.as_deref(),
            self.relationship,
            self.max_attempts,
            self.token,
            self.worker.as_deref(),
            self.lease_ms,
            self.code,
            self.input,
            self.code_sha256,
            self.input_sha256,
            &self.requirements,
            self.image,
            environment,
            self.memory_bytes,
            self.millicpus,
            self.timeout_ms,
            self.startup_timeout_ms,
            self.network,
            self.repeatable,
        );
        begun.execute(database).await.map(drop)
    }
}

impl Row for Arrival {
    /// Whether it was taken.
    type Answer = bool;

    const DOING: &'static str = "take a job into the queue";

    fn bytes(&self) -> usize {
        let files: usize = self.files.iter().map(|file| file.bytes.len()).sum();
        files + self.code.len() + self.input.len()
    }

    async fn write(database: &mut PgConnection, rows: &[Self]) -> Result<Vec<bool>, sqlx::Error> {
        if let [row] = rows
            && row.begins_simply()
        {
            row.begin(database).await?;
            return Ok(vec![true]);
        }
        let (mut ids, mut names, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
        for row in rows {
            for file in &row.files {
                ids.push(row.id.clone());
                names.push(file.name.clone());
                bytes.push(file.bytes.clone());
            }
        }
        let taken = sqlx::query_file_scalar!(
            "src/store/queries/enqueue.sql",
            in_json(rows)?,
            &ids,
            &names,
            &bytes,
        )
        .fetch_all(database)
        .await?;
        let taken: BTreeSet<_> = taken.into_iter().collect();
        Ok(rows.iter().map(|row| taken.contains(&row.id)).collect())
    }
}
