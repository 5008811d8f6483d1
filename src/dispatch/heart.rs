//! What goes on beside the jobs: beats, rescues of what others have lost, and what others tell.

use super::{Attempt, MAX_PAUSE, Shared, Why, about, attempt};
use crate::job::one_line;
use crate::store::StoreError;
use crate::store::listen::Notice;
use crate::store::queue::{Beat, Held, Pulse};
use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// How often it is looked whether others have lost a job.
const RESCUE: Duration = Duration::from_millis(500);

/// Something is wrong, and we cope.
pub(super) fn warn(doing: &str, error: &dyn Error) {
    tracing::warn!("{doing}: {}", one_line(error));
}

/// How long the database may take for anything: longer than it lets a statement take, and than a connection
/// is waited for. A host that is gone says nothing.
const ANSWER: Duration = Duration::from_secs(20);

/// Waits for an answer of the database, but not for ever.
pub(super) async fn within<T>(
    doing: &'static str,
    answer: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let answer = timeout(ANSWER, answer).await;
    answer.unwrap_or_else(|_| Err(StoreError::late(doing)))
}

/// Says that this worker is alive, thrice in the time of a lease, until nothing more is done.
pub(super) async fn beats(shared: Arc<Shared>) {
    let between = shared.settings.lease / 3;
    let mut pulse = None;
    let all = async {
        loop {
            tokio::select! {
                () = sleep(between.mul_f64(rand::random_range(0.8..1.0))) => {}
                () = shared.beat.notified() => {}
            }
            let attempts = shared.attempts().clone();
            if attempts.is_empty() {
                continue;
            }
            let held: Vec<_> = attempts.keys().cloned().collect();
            match timeout(between, beat(&shared, &mut pulse, &held)).await {
                Ok(Ok(beats)) => heed(&attempts, &beats),
                Ok(Err(error)) => {
                    warn("cannot say that this worker is alive", &error);
                    pulse = None;
                }
                Err(_late) => pulse = None,
            }
        }
    };
    shared.stop.run_until_cancelled(all).await;
}

async fn beat(
    shared: &Shared,
    pulse: &mut Option<Pulse>,
    held: &[Held],
) -> Result<Vec<Beat>, StoreError> {
    if pulse.is_none() {
        *pulse = Some(shared.store.pulse().await?);
    }
    match pulse {
        Some(pulse) => pulse.beat(&shared.worker, held).await,
        None => Ok(Vec::new()),
    }
}

/// Ends what was taken away, and what somebody wants to end. What has ended by itself meanwhile is
/// missing too, and there is nothing left of it to end.
fn heed(attempts: &BTreeMap<Held, Attempt>, beats: &[Beat]) {
    for (held, attempt) in attempts {
        match beats.iter().find(|beat| beat.held == *held) {
            None => attempt.end(Why::Lost),
            Some(beat) if beat.cancel_asked => attempt.end(Why::Cancelled),
            Some(_) => {}
        }
    }
}

/// Takes away what others have lost, and hands over what waits in the journal.
///
/// When the database was away, those who could not be heard of get the time of a lease to be heard of, or
/// to hand over what has ended meanwhile.
pub(super) async fn rescues(shared: Arc<Shared>) {
    let mut reached_since = None;
    let all = async {
        loop {
            sleep(about(RESCUE)).await;
            if let Err(error) = attempt::hand_over_what_waits(&shared).await {
                warn("cannot read the journal", &error);
            }
            let reached = reached_since.get_or_insert_with(Instant::now);
            let has_grace = reached.elapsed() < shared.settings.lease;
            let rescue = async {
                if has_grace {
                    shared.store.ping().await.map(|()| Vec::new())
                } else {
                    shared.store.rescue().await
                }
            };
            let rescued = within("look for jobs that others have lost", rescue).await;
            match rescued {
                Ok(rescued) => {
                    for job in &rescued {
                        let (id, state) = (&job.id, job.state.name());
                        tracing::warn!(
                            "the job `{id}` was taken from a worker that is gone: {state}"
                        );
                    }
                    if !rescued.is_empty() {
                        shared.work.notify_one();
                    }
                }
                Err(error) => {
                    warn("cannot look for jobs that others have lost", &error);
                    if error.is_about_the_connection() {
                        reached_since = None;
                    }
                }
            }
        }
    };
    shared.stop.run_until_cancelled(all).await;
}

/// Hears what other servers tell. What is missed is found out without it, only later.
pub(super) async fn notices(shared: Arc<Shared>) {
    let all = async {
        let mut pause = Duration::from_millis(100);
        loop {
            match shared.store.listen().await {
                Ok(mut listener) => {
                    pause = Duration::from_millis(100);
                    // What came while nobody listened.
                    shared.work.notify_one();
                    shared.beat.notify_one();
                    while let Ok(notice) = listener.next().await {
                        match notice {
                            Notice::Queued => shared.work.notify_one(),
                            // Whatever runs here asks whether it is meant.
                            Notice::Cancel(_) => shared.beat.notify_one(),
                        }
                    }
                }
                Err(error) => warn("cannot listen to other servers", &error),
            }
            sleep(about(pause)).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    };
    shared.stop.run_until_cancelled(all).await;
}
