//! How many of something there may be at once, in all and for each user.

use super::Caps;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// Places that are taken or not.
#[derive(Debug)]
pub(super) struct Slots {
    caps: Caps,
    by_user: Mutex<HashMap<u32, usize>>,
    taken: watch::Sender<usize>,
}

/// A place that is taken for as long as this lives.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Slots>,
    uid: u32,
}

impl Slots {
    pub(super) fn new(caps: Caps) -> Arc<Self> {
        Arc::new(Self {
            caps,
            by_user: Mutex::default(),
            taken: watch::Sender::new(0),
        })
    }

    /// A place for a user; `None` where all are taken, or all of this user's.
    pub(super) fn take(self: &Arc<Self>, uid: u32) -> Option<Slot> {
        let mut by_user = self.by_user.lock().unwrap_or_else(PoisonError::into_inner);
        let own = by_user.get(&uid).copied().unwrap_or(0);
        if own >= self.caps.per_user || self.taken() >= self.caps.all {
            return None;
        }
        by_user.insert(uid, own + 1);
        self.taken.send_modify(|taken| *taken += 1);
        Some(Slot {
            slots: Arc::clone(self),
            uid,
        })
    }

    /// How many are taken.
    pub(super) fn taken(&self) -> usize {
        *self.taken.borrow()
    }

    /// How many there are.
    pub(super) fn all(&self) -> usize {
        self.caps.all
    }

    /// Waits until none is taken.
    pub(super) async fn emptied(&self) {
        let mut taken = self.taken.subscribe();
        // The sender is ours: it is there for as long as we wait.
        drop(taken.wait_for(|taken| *taken == 0).await);
    }
}

impl Slot {
    /// Whose it is.
    pub(super) fn uid(&self) -> u32 {
        self.uid
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let slots = &self.slots;
        let mut by_user = slots.by_user.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = by_user.get_mut(&self.uid) {
            *own = own.saturating_sub(1);
            // Users come and go; this table is no record of them.
            if *own == 0 {
                by_user.remove(&self.uid);
            }
        }
        slots
            .taken
            .send_modify(|taken| *taken = taken.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slot_is_refused_above_either_bound_and_free_again_when_dropped() {
        let slots = Slots::new(Caps {
            all: 3,
            per_user: 2,
        });
        let first = slots.take(1).unwrap();
        let second = slots.take(1).unwrap();
        assert!(slots.take(1).is_none());
        let third = slots.take(2).unwrap();
        assert!(slots.take(2).is_none());
        assert_eq!((slots.taken(), slots.all()), (3, 3));
        drop(first);
        let again = slots.take(2).unwrap();
        assert!(slots.take(1).is_none());
        drop((third, again, second));
        slots.emptied().await;
        assert!(slots.by_user.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_slot_is_free_again_after_a_panic() {
        let slots = Slots::new(Caps {
            all: 1,
            per_user: 1,
        });
        let slot = slots.take(0).unwrap();
        let task = tokio::spawn(async move {
            let _slot = slot;
            panic!("on purpose");
        });
        assert!(task.await.is_err());
        assert!(slots.take(0).is_some());
    }
}
