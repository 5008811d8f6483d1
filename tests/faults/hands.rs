//! Workers and senders that need no sandbox: they do with the queue what servers do, and say what they see.

use super::history::{Log, Seen};
use super::jobs;
use std::time::Duration;
use tako_vm::job::Termination;
use tako_vm::store::Store;
use tako_vm::store::queue::{Claim, Enqueued, Idempotency, Submission, Worker, tokens};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// How many of their attempts workers are late with.
const LATE: f64 = 0.05;

/// How often what is lost is looked for: now and then only, so that some of it ends nevertheless.
const RESCUE: Duration = Duration::from_millis(300);

/// A job whose sender can send it again. It may be lost often.
pub(crate) fn keyed(id: &str) -> Submission {
    Submission {
        idempotency: Some(Idempotency {
            key: format!("key-of-{id}"),
            fingerprint: [7; 32],
        }),
        max_attempts: 10,
        ..jobs::job(id)
    }
}

/// What became of a submission, and of how many tries.
pub(crate) struct Sent {
    pub(crate) tries: u32,
    /// The first that was heard of was that it had been sent before.
    pub(crate) was_known: bool,
}

/// Sends a job until it is accepted.
pub(crate) async fn send(store: &Store, log: &Log, job: &Submission) -> Sent {
    for tries in 1.. {
        let enqueued = store.enqueue(job, None, None).await;
        if let Some(was_known) = accepted(log, job, enqueued.ok()) {
            return Sent { tries, was_known };
        }
        sleep(Duration::from_millis(20)).await;
    }
    unreachable!("it tries for ever");
}

/// Whether a submission was accepted, and if so whether it had been before.
pub(crate) fn accepted(log: &Log, job: &Submission, enqueued: Option<Enqueued>) -> Option<bool> {
    let (id, was_known) = match enqueued? {
        Enqueued::Queued | Enqueued::Claimed(_) => (job.id.clone(), false),
        Enqueued::Known { id, .. } => (id, true),
        refused => panic!("{refused:?}"),
    };
    let idempotency = job.idempotency.as_ref();
    log.add(Seen::Accepted {
        job: id,
        key: idempotency.map(|idempotency| idempotency.key.clone()),
    });
    Some(was_known)
}

/// A worker that runs nothing, and says so.
#[derive(Debug, Clone)]
pub(crate) struct Hand {
    pub(crate) store: Store,
    pub(crate) log: Log,
    pub(crate) worker: Worker,
}

impl Hand {
    pub(crate) fn new(store: Store, log: Log, name: &str, lease: Duration) -> Self {
        let worker = Worker {
            name: name.to_owned(),
            lease,
        };
        Self { store, log, worker }
    }

    /// Claims jobs and ends them until it is told to stop. What it has not heard of it gives back.
    pub(crate) async fn work(&self, stop: &CancellationToken) {
        let mut unheard = Vec::new();
        while !stop.is_cancelled() {
            if !unheard.is_empty() && self.store.give_back(&unheard).await.is_ok() {
                unheard.clear();
            }
            let tokens = tokens(2);
            let claims = self.store.claim(&self.worker, &tokens).await;
            let claims = claims.unwrap_or_else(|_lost| {
                unheard.extend(tokens);
                Vec::new()
            });
            for claim in &claims {
                self.log.add(Seen::Claimed {
                    job: claim.held.id.clone(),
                    token: claim.held.token,
                });
            }
            let nothing = claims.is_empty();
            for claim in claims {
                if rand::random_bool(LATE) {
                    self.be_late(&claim).await;
                }
                sleep(Duration::from_millis(rand::random_range(0..10))).await;
                self.finish(&claim, stop).await;
            }
            if nothing {
                sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// Is not heard of for about the time of a lease, and knows nothing of it.
    async fn be_late(&self, claim: &Claim) {
        sleep(self.worker.lease.mul_f64(rand::random_range(0.9..1.5))).await;
        if let Ok(mut pulse) = self.store.pulse().await {
            let held = std::slice::from_ref(&claim.held);
            drop(pulse.beat(&self.worker, held).await);
        }
    }

    /// Says that an attempt has ended until the database has heard it.
    pub(crate) async fn finish(&self, claim: &Claim, stop: &CancellationToken) {
        let outcome = jobs::outcome(Termination::Exited(0));
        while !stop.is_cancelled() {
            let end = self.store.finish(&claim.held, jobs::ended(&outcome)).await;
            if let Ok(end) = end {
                self.log.add(Seen::Finished {
                    job: claim.held.id.clone(),
                    token: claim.held.token,
                    counts: end.is_some(),
                });
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Takes away what is lost until it is told to stop.
pub(crate) async fn rescue(store: &Store, stop: &CancellationToken) {
    while !stop.is_cancelled() {
        drop(store.rescue().await);
        sleep(RESCUE).await;
    }
}
