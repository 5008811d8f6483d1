//! What goes on beside the jobs: beats, rescues of what others have lost, and what others tell.

use super::{Attempt, MAX_PAUSE, Shared, Why, about, attempt, unheard};
use crate::job::one_line;
use crate::store::StoreError;
use crate::store::listen::{Listener, Notice};
use crate::store::queue::{Beat, Held, Pulse};
use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// How often it is looked whether others have lost a job.
const RESCUE: Duration = Duration::from_millis(500);

/// What is done by [`notices`].
const LISTEN: &str = "listen to other servers";

/// After how long without a word of others the connection to them is tried.
const SILENCE: Duration = Duration::from_secs(10);

/// Something is wrong, and we cope.
pub(super) fn warn(doing: &str, error: &dyn Error) {
    tracing::warn!("{doing}: {}", one_line(error));
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
            if pulse.is_none() {
                shared.reach.back().await;
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
                    shared.reach.note(&error);
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

/// Takes away what others have lost, gives back what was begun unheard, and hands over what waits in the
/// journal.
///
/// When the database was away, those who could not be heard of get the time of a lease to be heard of, or
/// to hand over what has ended meanwhile.
pub(super) async fn rescues(shared: Arc<Shared>) {
    let all = async {
        loop {
            sleep(about(RESCUE)).await;
            shared.reach.back().await;
            unheard::give_back(&shared).await;
            if let Err(error) = attempt::hand_over_what_waits(&shared).await {
                warn("cannot read the journal", &error);
            }
            let has_grace = shared.reach.there_for() < shared.settings.lease;
            let rescue = async {
                if has_grace {
                    shared.store.ping().await.map(|()| Vec::new())
                } else {
                    shared.store.rescue().await
                }
            };
            let rescued = shared
                .reach
                .within("look for jobs that others have lost", rescue);
            match rescued.await {
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
                Err(error) => warn("cannot look for jobs that others have lost", &error),
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
            shared.reach.back().await;
            let listen = Box::pin(shared.store.listen());
            match shared.reach.within(LISTEN, listen).await {
                Ok(listener) => {
                    pause = Duration::from_millis(100);
                    // What came while nobody listened.
                    shared.work.notify_one();
                    shared.beat.notify_one();
                    hear(&shared, listener).await;
                }
                Err(error) => warn("cannot listen to other servers", &error),
            }
            sleep(about(pause)).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    };
    shared.stop.run_until_cancelled(all).await;
}

/// Hears what is told until the connection is lost.
async fn hear(shared: &Shared, mut listener: Listener) {
    loop {
        match timeout(SILENCE, listener.next()).await {
            Ok(Ok(Notice::Queued)) => shared.work.notify_one(),
            Ok(Ok(Notice::Cancel)) => shared.beat.notify_one(),
            Ok(Err(error)) => return shared.reach.note(&error),
            // There is nothing to tell, or nobody there who could.
            Err(_silence) => {
                let answer = shared.reach.within(LISTEN, listener.ping()).await;
                if answer.is_err() {
                    return;
                }
            }
        }
    }
}
