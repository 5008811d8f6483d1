//! What changes a job.
//!
//! ```text
//!                enqueue            claim                finish
//! (nothing) ─────────────> queued ────────> running ───────────────> succeeded, failed, timeout,
//!      │                   │  ^ ^             │  │                   oom, cancelled
//!      │   with a slot     │  │ └─────────────┘  │                       ^   ^
//!      └───────────────────┼──┼──────────────────┼─> running             │   │
//!                  cancel  │  │ release, rescue  │   the last attempt    │   │
//!                          │  └──────────────────┘   is lost ────────────┘   │
//!                          └─────────────────────────────────────────────────┘
//! ```
//!
//! An attempt begins with its claim, which gives it a lease, and a token of those that its worker has brought
//! along. So a worker that does not hear what became of a claim can still give back what it has begun
//! ([`Store::give_back`]). Whoever writes of an attempt shows the token and finds the job running; the lease
//! need not hold any more, since only [`Store::rescue`] takes a job away, and gives it up or a new token with
//! that. A lease that is over is never extended: its job may be somebody else's the next moment.
//!
//! The clock is that of the database, and may be set. Set ahead, it ends all leases: what runs is taken away
//! and repeated, if it may be. Set back, it keeps nothing waiting: what is new is claimed whatever the clock
//! says, a lease that ends later than it can is cut, and a retry waits for a minute at most.
//!
//! So a job runs at least once, and exactly one result of it is recorded.

use super::arrivals::Arrival;
use super::audit::Actor;
use super::endings::Ending;
use super::history::{End, Left, timestamp};
use super::{CONNECT, Store, StoreError};
use crate::job::{InputFile, JobRequest, Outcome, Status};
use sqlx::postgres::types::PgInterval;
use sqlx::{Connection, PgConnection};
use std::time::Duration;
use tokio::time::timeout;
use uuid::Uuid;

/// How long an attempt that is to be repeated can be made to wait.
const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// Rows that one rescue looks at: the next one looks at those that follow.
const RESCUED_AT_ONCE: i64 = 100;

/// A job on its way into the queue.
#[derive(Debug, Clone)]
pub struct Submission {
    /// Unique, 1 to 64 letters, digits, `.`, `_` and `-`, the first of which is no `.`.
    pub id: String,
    /// Whose it is; the owner of all that have none is the empty text.
    pub owner: String,
    /// -100 to 100; higher ones come first.
    pub priority: i16,
    /// Name of the job type.
    pub job_type: String,
    /// To be found again by its sender.
    pub idempotency: Option<Idempotency>,
    /// What its sender calls the request.
    pub correlation_id: Option<String>,
    /// Where it came from.
    pub client_address: Option<String>,
    /// The job that this one repeats or varies.
    pub parent: Option<Parent>,
    /// Attempts at most, 1 to 10.
    pub max_attempts: i16,
    /// The executor image, `NAME` or `NAME@sha256:HEX`.
    pub image: String,
    /// What runs.
    pub request: JobRequest,
    /// SHA-256 of the program and of the input.
    pub code_sha256: [u8; 32],
    /// See `code_sha256`.
    pub input_sha256: [u8; 32],
    /// Packages that it asked for.
    pub requirements: Vec<String>,
    /// It can have an effect outside of its sandbox.
    pub network: bool,
    /// Such an effect may come twice.
    pub repeatable: bool,
}

/// How a sender recognises what it has sent already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// Chosen by the sender, 8 to 255 characters; one of the owner's.
    pub key: String,
    /// SHA-256 of what was asked for: the same key may not stand for something else.
    pub fingerprint: [u8; 32],
}

/// Where a job came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// The other job.
    pub id: String,
    /// What became of it.
    pub relationship: Relationship,
}

/// How a job relates to its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relationship {
    /// The same once more.
    Rerun,
    /// Another program with the same input.
    Fork,
}

impl Relationship {
    /// Its name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rerun => "rerun",
            Self::Fork => "fork",
        }
    }
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It waits.
    Queued,
    /// It has been claimed.
    Running,
    /// It has ended, and its record is there.
    Ended(Status),
}

impl State {
    /// Its name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Ended(Status::Succeeded) => "succeeded",
            Self::Ended(Status::Failed) => "failed",
            Self::Ended(Status::Timeout) => "timeout",
            Self::Ended(Status::Oom) => "oom",
            Self::Ended(Status::Cancelled) => "cancelled",
        }
    }

    /// The one of this name.
    ///
    /// # Errors
    /// [`StoreError::Unknown`].
    pub fn from_name(name: &str) -> Result<Self, StoreError> {
        Ok(match name {
            "queued" => Self::Queued,
            "running" => Self::Running,
            "succeeded" => Self::Ended(Status::Succeeded),
            "failed" => Self::Ended(Status::Failed),
            "timeout" => Self::Ended(Status::Timeout),
            "oom" => Self::Ended(Status::Oom),
            "cancelled" => Self::Ended(Status::Cancelled),
            other => {
                let what = format!("it is `{other}`");
                return Err(StoreError::Unknown { what });
            }
        })
    }
}

/// What became of a submission.
#[derive(Debug)]
pub enum Enqueued {
    /// It waits in the queue.
    Queued,
    /// It was claimed for the worker that was named.
    Claimed(Box<Claim>),
    /// It has been sent before.
    Known {
        /// The job that it became then.
        id: String,
        /// Where that stands.
        state: State,
    },
    /// Its idempotency key stands for something else.
    KeyReused,
    /// As many jobs wait as may. Its idempotency key is free.
    Full,
}

/// Who claims jobs, and for how long it has them without being heard of.
#[derive(Debug, Clone)]
pub struct Worker {
    /// Unique among all processes that ever were.
    pub name: String,
    /// From the claim, and from every beat.
    pub lease: Duration,
}

/// An attempt that was begun.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Which job, and which attempt of it.
    pub held: Held,
    /// The number of the attempt, from 1.
    pub attempt: i16,
    /// The executor image.
    pub image: String,
    /// What runs.
    pub request: JobRequest,
}

/// What shows that an attempt is one's own.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Held {
    /// The job.
    pub id: String,
    /// The attempt of it.
    pub token: Uuid,
}

/// What a beat found of an attempt that is still one's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    /// Which.
    pub held: Held,
    /// Somebody wants it to end.
    pub cancel_asked: bool,
    /// Its lease holds. Otherwise it can be taken away any moment, and is recorded if it ends before.
    pub holds: bool,
}

/// What a worker has to say of an attempt in the end.
#[derive(Debug, Clone, Copy)]
pub struct Ended<'a> {
    /// How it ended.
    pub outcome: &'a Outcome,
    /// What it ran.
    pub image: &'a str,
    /// What it wrote as its result, if that is JSON, or why it is none.
    pub result: Option<Result<&'a str, &'a str>>,
}

/// Whether what was written was still one's own to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// It is recorded.
    Yes,
    /// The attempt was taken away, or has been recorded before: nothing was written.
    Stale,
}

/// Why a worker gives an attempt back without a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release<'a> {
    /// It was not begun: it does not count.
    Unused,
    /// It was ended by us, who are to end, and does not count either; why.
    Interrupted(&'a str),
    /// It was lost to what lies between us and the program; when to try again at the earliest.
    Failed {
        /// In words.
        reason: &'a str,
        /// From now; a minute at most.
        retry_in: Duration,
    },
}

/// Tokens for so many attempts.
pub fn tokens(most: u16) -> Vec<Uuid> {
    (0..most).map(|_| Uuid::new_v4()).collect()
}

/// What became of a job whose attempt was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rescued {
    /// The job.
    pub id: String,
    /// Queued again, or ended.
    pub state: State,
}

/// What a cancel has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelled {
    /// It had not begun, and has ended now.
    Now,
    /// It runs, and whoever runs it was told.
    Asked,
    /// It had ended before, so.
    TooLate(Status),
    /// There is no such job.
    Unknown,
}

fn interval(time: Duration) -> PgInterval {
    PgInterval {
        months: 0,
        days: 0,
        microseconds: i64::try_from(time.as_micros()).unwrap_or(i64::MAX),
    }
}

fn from_milliseconds(time: Option<i64>) -> Option<Duration> {
    time.map(|time| Duration::from_millis(time.unsigned_abs()))
}

/// Text that PostgreSQL takes: it knows no NUL.
pub(super) fn without_nul(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

impl Store {
    /// Takes a job into the queue, unless `most` wait there already. With a worker it is claimed at once
    /// by the same statement, with this token, and the queue may be as full as it likes.
    ///
    /// # Errors
    /// [`StoreError::Query`]: then it is not known whether the job was taken, and to send it again with
    /// its idempotency key finds out. What may have begun is to be [given back](Self::give_back).
    pub async fn enqueue(
        &self,
        job: &Submission,
        most: Option<u32>,
        begun: Option<(&Worker, Uuid)>,
    ) -> Result<Enqueued, StoreError> {
        let arrival = Arrival::new(job, most, begun);
        if self.arrivals.write(arrival).await? {
            return Ok(match begun {
                Some((_, token)) => Enqueued::Claimed(Box::new(Claim {
                    held: Held {
                        id: job.id.clone(),
                        token,
                    },
                    attempt: 1,
                    image: job.image.clone(),
                    request: job.request.clone(),
                })),
                None => Enqueued::Queued,
            });
        }
        match &job.idempotency {
            Some(idempotency) => self.known(&job.owner, idempotency).await,
            None => Ok(Enqueued::Full),
        }
    }

    /// What stands in the way of a submission: its key, or that there was no room.
    async fn known(&self, owner: &str, idempotency: &Idempotency) -> Result<Enqueued, StoreError> {
        let job = sqlx::query!(
            r#"
            SELECT id, state, fingerprint AS "fingerprint!"
            FROM jobs WHERE owner = $1 AND idempotency_key = $2
            "#,
            owner,
            idempotency.key,
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(StoreError::query("look for a job by its idempotency key"))?;
        Ok(match job {
            None => Enqueued::Full,
            Some(job) if job.fingerprint != idempotency.fingerprint => Enqueued::KeyReused,
            Some(job) => Enqueued::Known {
                state: State::from_name(&job.state)?,
                id: job.id,
            },
        })
    }

    /// Begins an attempt of as many jobs at most as there are [`tokens`]: those of the highest priority,
    /// owners in turn, and of an owner in the order in which they came.
    ///
    /// # Errors
    /// [`StoreError::Query`]: then some may have been claimed, and are to be
    /// [given back](Self::give_back). [`StoreError::Unknown`]: some were, and are rescued when their lease is
    /// over.
    pub async fn claim(&self, worker: &Worker, tokens: &[Uuid]) -> Result<Vec<Claim>, StoreError> {
        let claimed = sqlx::query_file!(
            "src/store/queries/claim.sql",
            tokens,
            worker.name,
            interval(worker.lease),
            interval(LONGEST_WAIT),
        )
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::query("claim a job"))?;
        let claims = claimed.into_iter().map(|row| {
            let names = row.names.unwrap_or_default();
            let files = names.into_iter().zip(row.bytes.unwrap_or_default());
            Ok(Claim {
                held: Held {
                    id: row.id,
                    token: row.token,
                },
                attempt: row.attempts,
                image: row.image,
                request: JobRequest {
                    code: row.code,
                    input: Some(row.input),
                    files: files
                        .map(|(name, bytes)| InputFile { name, bytes })
                        .collect(),
                    environment: environment(row.environment)?,
                    memory_bytes: row.memory_bytes.map(i64::cast_unsigned),
                    millicpus: row.millicpus.map(i32::cast_unsigned),
                    timeout: from_milliseconds(row.timeout_ms),
                    startup_timeout: from_milliseconds(row.startup_timeout_ms),
                },
            })
        });
        claims.collect()
    }

    /// A connection that says that a worker is alive, and that nothing else can keep waiting.
    ///
    /// # Errors
    /// [`StoreError::Connect`].
    pub async fn pulse(&self) -> Result<Pulse, StoreError> {
        let options = self.pool.connect_options();
        let connected = timeout(CONNECT, PgConnection::connect_with(&options)).await;
        let connection = connected.unwrap_or(Err(sqlx::Error::PoolTimedOut));
        connection
            .map(Pulse)
            .map_err(|source| StoreError::Connect { source })
    }

    /// Records how a job ended, with its result and the rows of its files, if the attempt is still the
    /// worker's; gives how it ended then.
    ///
    /// # Errors
    /// [`StoreError::Query`]: then it is not known whether it was recorded, and to say it again does no
    /// harm.
    pub async fn finish(&self, held: &Held, ended: Ended<'_>) -> Result<Option<End>, StoreError> {
        let left = Left::of(ended);
        let ending = Ending::new(held, ended, left.clone());
        let Some(times) = self.endings.write(ending).await? else {
            return Ok(None);
        };
        Ok(Some(End {
            state: State::Ended(ended.outcome.termination.status()),
            started_at: times.started_at.map(timestamp).transpose()?,
            ended_at: times.ended_at.map(timestamp).transpose()?,
            left,
        }))
    }

    /// Gives an attempt back that has no result: its job waits again, or has failed if that was the last
    /// attempt, or if it may have had an effect that must not come twice.
    ///
    /// # Errors
    /// [`StoreError::Query`]; to say it again does no harm.
    pub async fn release(&self, held: &Held, release: Release<'_>) -> Result<Written, StoreError> {
        let taken = self
            .lose(std::slice::from_ref(held), Loss::of(release))
            .await?;
        Ok(if taken.is_empty() {
            Written::Stale
        } else {
            Written::Yes
        })
    }

    /// Gives back, as not begun, whatever attempts have these tokens, which nobody has heard of; gives the
    /// tokens that there were. A statement that was given up may still be carried out: so it is to be said
    /// again until it cannot be any more.
    ///
    /// # Errors
    /// [`StoreError::Query`]; to say it again does no harm.
    pub async fn give_back(&self, tokens: &[Uuid]) -> Result<Vec<Held>, StoreError> {
        let begun = sqlx::query_as!(
            Held,
            r#"SELECT id, token AS "token!" FROM jobs WHERE state = 'running' AND token = ANY ($1)"#,
            tokens,
        )
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::query("look for jobs that nobody has heard of"))?;
        if !begun.is_empty() {
            self.lose(&begun, Loss::of(Release::Unused)).await?;
        }
        Ok(begun)
    }

    /// Records that a job cannot be run as it is: a type of error, and why.
    ///
    /// # Errors
    /// [`StoreError::Query`]; to say it again does no harm.
    pub async fn refuse(
        &self,
        held: &Held,
        kind: &str,
        message: &str,
    ) -> Result<Written, StoreError> {
        let written = sqlx::query_file_scalar!(
            "src/store/queries/refuse.sql",
            held.id,
            held.token,
            kind,
            without_nul(message),
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(StoreError::query("record why a job cannot be run"))?;
        Ok(match written {
            Some(_) => Written::Yes,
            None => Written::Stale,
        })
    }

    /// Takes away the attempts whose lease is over, a hundred at most: their worker is dead, or was not
    /// heard of for as long.
    ///
    /// # Errors
    /// [`StoreError::Query`].
    pub async fn rescue(&self) -> Result<Vec<Rescued>, StoreError> {
        let over = sqlx::query_file_as!(Held, "src/store/queries/over.sql", RESCUED_AT_ONCE)
            .fetch_all(&self.pool)
            .await
            .map_err(StoreError::query("look for jobs whose worker is gone"))?;
        if over.is_empty() {
            return Ok(Vec::new());
        }
        let loss = Loss {
            ending: "lost",
            reason: "its worker was not heard of",
            retry_in: None,
            only_if_over: true,
        };
        self.lose(&over, loss).await
    }

    async fn lose(&self, held: &[Held], loss: Loss<'_>) -> Result<Vec<Rescued>, StoreError> {
        let (ids, tokens): (Vec<_>, Vec<_>) = held
            .iter()
            .map(|held| (held.id.clone(), held.token))
            .unzip();
        let taken = sqlx::query_file!(
            "src/store/queries/lose.sql",
            &ids,
            &tokens,
            loss.only_if_over,
            loss.ending,
            without_nul(loss.reason),
            loss.retry_in.map(|time| interval(time.min(LONGEST_WAIT))),
        )
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::query("take a job away from its worker"))?;
        let rescued = taken.into_iter().map(|row| {
            Ok(Rescued {
                state: State::from_name(&row.next)?,
                id: row.id,
            })
        });
        rescued.collect()
    }

    /// Ends a job that waits, and has one that runs be ended by whoever runs it. The audit says who wanted
    /// that.
    ///
    /// # Errors
    /// [`StoreError::Query`]; to say it again does no harm.
    pub async fn cancel(&self, id: &str, actor: Actor<'_>) -> Result<Cancelled, StoreError> {
        let found = sqlx::query_file!(
            "src/store/queries/cancel.sql",
            id,
            actor.owner,
            actor.client_address,
        )
        .fetch_one(&self.pool)
        .await
        .map_err(StoreError::query("cancel a job"))?;
        Ok(match (found.state.as_deref(), found.before.as_deref()) {
            (Some("running"), _) => Cancelled::Asked,
            (Some(_), _) => Cancelled::Now,
            (None, None) => Cancelled::Unknown,
            // It ended while we waited for its row.
            (None, Some("queued" | "running")) => return Box::pin(self.cancel(id, actor)).await,
            (None, Some(state)) => match State::from_name(state)? {
                State::Ended(status) => Cancelled::TooLate(status),
                State::Queued | State::Running => Cancelled::Unknown,
            },
        })
    }
}

/// What a worker's heart beats with.
#[derive(Debug)]
pub struct Pulse(PgConnection);

impl Pulse {
    /// Says that a worker is alive, and hears which of its attempts it still has. Those that are missing
    /// were taken away, or are over.
    ///
    /// # Errors
    /// [`StoreError::Query`]: nothing is known then, the attempts may go on, and another pulse is needed.
    pub async fn beat(&mut self, worker: &Worker, held: &[Held]) -> Result<Vec<Beat>, StoreError> {
        let (ids, tokens): (Vec<_>, Vec<_>) = held
            .iter()
            .map(|held| (held.id.clone(), held.token))
            .unzip();
        let kept = sqlx::query_file!(
            "src/store/queries/beat.sql",
            &ids,
            &tokens,
            interval(worker.lease),
        )
        .fetch_all(&mut self.0)
        .await
        .map_err(StoreError::query("say that this worker is alive"))?;
        let beats = kept.into_iter().map(|row| Beat {
            held: Held {
                id: row.id,
                token: row.token,
            },
            cancel_asked: row.cancel_asked,
            holds: row.holds,
        });
        Ok(beats.collect())
    }
}

/// How an attempt was lost.
#[derive(Debug, Clone, Copy)]
struct Loss<'a> {
    ending: &'static str,
    reason: &'a str,
    /// `None` if it need not wait, by whatever clock.
    retry_in: Option<Duration>,
    /// Not if its worker was heard of meanwhile.
    only_if_over: bool,
}

impl<'a> Loss<'a> {
    fn of(release: Release<'a>) -> Self {
        let (ending, reason, retry_in) = match release {
            Release::Unused => ("returned", "", None),
            Release::Interrupted(why) => ("returned", why, None),
            Release::Failed { reason, retry_in } => ("failed", reason, Some(retry_in)),
        };
        Self {
            ending,
            reason,
            retry_in,
            only_if_over: false,
        }
    }
}

fn environment(value: serde_json::Value) -> Result<Vec<(String, String)>, StoreError> {
    serde_json::from_value(value).map_err(|error| StoreError::Unknown {
        what: format!("its environment: {error}"),
    })
}
