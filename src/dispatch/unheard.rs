//! Claims that were not heard of. They may have begun attempts that nobody runs, which are given back, also
//! when a claim is only carried out after it was given up.

use super::{ANSWER, Shared, heart};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;
use uuid::Uuid;

/// Tokens of claims whose answer was not heard.
#[derive(Debug, Default)]
pub(super) struct Unheard(Mutex<Vec<Doubt>>);

#[derive(Debug, Clone, Copy)]
struct Doubt {
    token: Uuid,
    /// When the claim was given up.
    since: Instant,
}

impl Unheard {
    fn doubts(&self) -> MutexGuard<'_, Vec<Doubt>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, tokens: impl IntoIterator<Item = Uuid>) {
        let since = Instant::now();
        let doubts = tokens.into_iter().map(|token| Doubt { token, since });
        self.doubts().extend(doubts);
    }
}

/// Gives back what was begun unheard, and forgets what can begin no more: after a lease it would be taken away
/// by others anyway, and no statement takes longer than the database may to answer.
pub(super) async fn give_back(shared: &Shared) {
    let (asked, doubts) = (Instant::now(), shared.unheard.doubts().clone());
    if doubts.is_empty() {
        return;
    }
    let tokens: Vec<_> = doubts.iter().map(|doubt| doubt.token).collect();
    let given_back = shared.store.give_back(&tokens);
    let given_back = shared.reach.within("give jobs back", given_back).await;
    let given_back = match given_back {
        Ok(given_back) => given_back,
        Err(error) => return heart::warn("cannot give jobs back that nobody has heard of", &error),
    };
    for held in &given_back {
        tracing::warn!("the job `{}` was begun unheard, and given back", held.id);
    }
    if !given_back.is_empty() {
        shared.work.notify_one();
    }
    let settled = shared.settings.lease.max(ANSWER);
    let is_settled = |doubt: &Doubt| {
        given_back.iter().any(|held| held.token == doubt.token) || doubt.since + settled <= asked
    };
    let settled: Vec<_> = doubts.into_iter().filter(is_settled).collect();
    let is_left = |doubt: &Doubt| !settled.iter().any(|other| other.token == doubt.token);
    shared.unheard.doubts().retain(is_left);
}
