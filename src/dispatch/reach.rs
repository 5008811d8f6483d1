//! Whether the database is reached. While it is not, one asks for all, once a second, however many wait.

use super::about;
use crate::store::{Store, StoreError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout};

/// From one try to reach a database that is away to the next: a second, and what [`about`] may take off.
const BETWEEN: Duration = Duration::from_millis(1250);

/// How long a try may take. The way of one may be dead when that of the next is not.
const TRY: Duration = Duration::from_secs(3);

/// How long the database may take for anything: longer than it lets a statement take, and than a connection
/// is waited for. A host that is gone says nothing.
pub(super) const ANSWER: Duration = Duration::from_secs(20);

/// How long somebody who wants an answer now waits for a database that is away.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Reach {
    store: Store,
    /// Absences that are shorter are none to others.
    short: Duration,
    state: Mutex<State>,
    /// When it is tried next. Held by whoever tries.
    next: tokio::sync::Mutex<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct State {
    is_away: bool,
    answered_at: Instant,
    there_since: Instant,
}

impl Reach {
    pub(super) fn new(store: Store, short: Duration) -> Self {
        let now = Instant::now();
        let state = State {
            is_away: false,
            answered_at: now,
            there_since: now,
        };
        Self {
            store,
            short,
            state: Mutex::new(state),
            next: tokio::sync::Mutex::new(now),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_away(&self) -> bool {
        self.state().is_away
    }

    /// How long everybody could have reached it, as far as is known from here.
    pub(super) fn there_for(&self) -> Duration {
        self.state().there_since.elapsed()
    }

    /// Something went wrong on the way to it, or with it.
    pub(super) fn note(&self, error: &StoreError) {
        if error.is_about_the_connection() {
            self.state().is_away = true;
        }
    }

    fn answered(&self) {
        let (now, mut state) = (Instant::now(), self.state());
        // Nobody noticed at once that it had gone.
        if state.is_away && now - state.answered_at >= self.short {
            state.there_since = now;
        }
        state.answered_at = now;
        state.is_away = false;
    }

    /// Waits until it is there, as far as is known.
    pub(super) async fn back(&self) {
        while self.is_away() {
            let mut next = self.next.lock().await;
            if !self.is_away() {
                return;
            }
            sleep_until(*next).await;
            // Before the try: that may be given up half-way.
            *next = Instant::now() + about(BETWEEN);
            if matches!(timeout(TRY, self.store.pulse()).await, Ok(Ok(_))) {
                self.answered();
            }
        }
    }

    /// Waits for an answer, but not for ever.
    pub(super) async fn within<T>(
        &self,
        doing: &'static str,
        answer: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let answer = timeout(ANSWER, answer).await;
        let answer = answer.unwrap_or_else(|_| Err(StoreError::late(doing)));
        match &answer {
            Ok(_) => self.answered(),
            Err(error) => self.note(error),
        }
        answer
    }

    /// An answer for somebody who waits for it: if the database is away, none after a few seconds.
    pub(super) async fn soon<T>(
        &self,
        doing: &'static str,
        answer: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        match timeout(PATIENCE, self.back()).await {
            Ok(()) => self.within(doing, answer).await,
            Err(_) => Err(StoreError::late(doing)),
        }
    }
}
