//! What has happened to jobs, as it was seen from outside and as the database itself saw it: triggers, which
//! nothing that changes a job can get round, write down every change of a job and of a result.

use super::checker;
use super::cluster;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use uuid::Uuid;

/// Something that a test has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    /// A sender was told that this job has his key, or that it is taken in.
    Accepted { job: String, key: Option<String> },
    /// A worker was given an attempt.
    Claimed { job: String, token: Uuid },
    /// A worker has said how an attempt ended, and was told whether that counts.
    Finished {
        job: String,
        token: Uuid,
        counts: bool,
    },
    /// A reader was told where a job stands.
    Read { job: String, state: String },
}

/// What tests have seen, in order. Nothing is ever taken out. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<Seen>>>);

impl Log {
    pub(crate) fn add(&self, seen: Seen) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(seen);
    }

    pub(crate) fn all(&self) -> Vec<Seen> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// What of a job's row tells where it stands. Of a result's row there is the token alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) state: Option<String>,
    pub(crate) token: Option<Uuid>,
    pub(crate) attempts: Option<i16>,
    /// In microseconds.
    pub(crate) lease_until: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    Jobs,
    Records,
}

/// A change of a row, as the database has seen it.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) table: Table,
    pub(crate) job: String,
    /// Owner and idempotency key.
    pub(crate) key: Option<(String, String)>,
    pub(crate) worker: Option<String>,
    /// In microseconds, by the clock of the database.
    pub(crate) at: i64,
    pub(crate) from: Option<Row>,
    pub(crate) to: Option<Row>,
}

#[derive(Debug, Clone)]
pub(crate) struct History {
    pub(crate) lease: Duration,
    pub(crate) seen: Vec<Seen>,
    pub(crate) changes: Vec<Change>,
}

const TRIGGERS: &str = "
CREATE TABLE public.test_history (
    number bigint GENERATED ALWAYS AS IDENTITY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    relation text NOT NULL, operation text NOT NULL, job text NOT NULL,
    owner text, key text, worker text,
    from_state text, from_token uuid, from_attempts smallint, from_lease timestamptz,
    to_state text, to_token uuid, to_attempts smallint, to_lease timestamptz
);
CREATE FUNCTION public.test_history_of_jobs() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.test_history (relation, operation, job, owner, key, worker,
        from_state, from_token, from_attempts, from_lease,
        to_state, to_token, to_attempts, to_lease)
    VALUES ('jobs', TG_OP, COALESCE(NEW.id, OLD.id), COALESCE(NEW.owner, OLD.owner),
        COALESCE(NEW.idempotency_key, OLD.idempotency_key), COALESCE(NEW.worker, OLD.worker),
        OLD.state, OLD.token, OLD.attempts, OLD.lease_until,
        NEW.state, NEW.token, NEW.attempts, NEW.lease_until);
    RETURN NULL;
END $$;
CREATE FUNCTION public.test_history_of_records() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.test_history (relation, operation, job, from_token, to_token)
    VALUES ('records', TG_OP, COALESCE(NEW.job_id, OLD.job_id), OLD.token, NEW.token);
    RETURN NULL;
END $$;
CREATE TRIGGER test_history AFTER INSERT OR UPDATE OR DELETE ON tako.jobs
    FOR EACH ROW EXECUTE FUNCTION public.test_history_of_jobs();
CREATE TRIGGER test_history AFTER INSERT OR UPDATE OR DELETE ON tako.records
    FOR EACH ROW EXECUTE FUNCTION public.test_history_of_records();
ALTER TABLE tako.jobs ENABLE ALWAYS TRIGGER test_history;
ALTER TABLE tako.records ENABLE ALWAYS TRIGGER test_history;
";

#[derive(sqlx::FromRow)]
struct Line {
    micros: i64,
    relation: String,
    operation: String,
    job: String,
    owner: Option<String>,
    key: Option<String>,
    worker: Option<String>,
    from_state: Option<String>,
    from_token: Option<Uuid>,
    from_attempts: Option<i16>,
    from_lease: Option<i64>,
    to_state: Option<String>,
    to_token: Option<Uuid>,
    to_attempts: Option<i16>,
    to_lease: Option<i64>,
}

impl From<Line> for Change {
    fn from(line: Line) -> Self {
        let from = Row {
            state: line.from_state,
            token: line.from_token,
            attempts: line.from_attempts,
            lease_until: line.from_lease,
        };
        let to = Row {
            state: line.to_state,
            token: line.to_token,
            attempts: line.to_attempts,
            lease_until: line.to_lease,
        };
        Self {
            table: match line.relation.as_str() {
                "jobs" => Table::Jobs,
                _ => Table::Records,
            },
            job: line.job,
            key: line.owner.zip(line.key),
            worker: line.worker,
            at: line.micros,
            from: (line.operation != "INSERT").then_some(from),
            to: (line.operation != "DELETE").then_some(to),
        }
    }
}

/// A database whose jobs are watched.
pub(crate) struct Watch {
    url: String,
    lease: Duration,
    pub(crate) log: Log,
}

impl Watch {
    /// In a database that has our schema, and no job yet.
    pub(crate) async fn begin(url: &str, lease: Duration) -> Self {
        sqlx::raw_sql(TRIGGERS)
            .execute(&mut cluster::connect(url).await)
            .await
            .unwrap();
        Self {
            url: url.to_owned(),
            lease,
            log: Log::default(),
        }
    }

    pub(crate) async fn history(&self) -> History {
        let lines: Vec<Line> = sqlx::query_as(
            "SELECT (extract(epoch FROM at) * 1000000)::bigint AS micros, relation, operation, job,
                owner, key, worker, from_state, from_token, from_attempts,
                (extract(epoch FROM from_lease) * 1000000)::bigint AS from_lease,
                to_state, to_token, to_attempts,
                (extract(epoch FROM to_lease) * 1000000)::bigint AS to_lease
            FROM public.test_history ORDER BY number",
        )
        .fetch_all(&mut cluster::connect(&self.url).await)
        .await
        .unwrap();
        History {
            lease: self.lease,
            seen: self.log.all(),
            changes: lines.into_iter().map(Change::from).collect(),
        }
    }

    /// Waits until every job has ended.
    pub(crate) async fn all_ended_within(&self, limit: Duration) {
        let mut connection = cluster::connect(&self.url).await;
        let begun = std::time::Instant::now();
        loop {
            let left: Vec<(String, String, i16)> =
                sqlx::query_as("SELECT id, state, attempts FROM jobs WHERE ended_at IS NULL")
                    .fetch_all(&mut connection)
                    .await
                    .unwrap();
            if left.is_empty() {
                return;
            }
            assert!(begun.elapsed() < limit, "after {limit:?}: {left:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Reads where every job stands, as a reader of the queue would, and holds the checker against all that
    /// has happened.
    pub(crate) async fn assert_holds(&self) -> History {
        let states: Vec<(String, String)> = sqlx::query_as("SELECT id, state FROM jobs")
            .fetch_all(&mut cluster::connect(&self.url).await)
            .await
            .unwrap();
        for (job, state) in states {
            self.log.add(Seen::Read { job, state });
        }
        let history = self.history().await;
        let violations = checker::violations(&history);
        assert!(violations.is_empty(), "{violations:#?}");
        history
    }
}

impl History {
    /// Claims of a job: by whom, and when.
    pub(crate) fn claims(&self, job: &str) -> Vec<(String, i64)> {
        let of_job = self.changes.iter().filter(|change| change.job == job);
        let claims = of_job.filter(|change| checker::is_claim(change));
        claims
            .map(|change| (change.worker.clone().unwrap(), change.at))
            .collect()
    }

    /// How jobs stand in the end, and how many.
    pub(crate) fn ended(&self, state: &str) -> usize {
        let ends = self.changes.iter().filter(|change| {
            change.table == Table::Jobs
                && change.to.as_ref().and_then(|row| row.state.as_deref()) == Some(state)
                && change.from.as_ref().and_then(|row| row.state.as_deref()) != Some(state)
        });
        ends.count()
    }
}
