//! Waiting for the end of a job, wherever it runs.

use super::{LOOK, Shared, about};
use crate::store::StoreError;
use crate::store::history::End;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast;
use tokio::time::{sleep, timeout};

/// An attempt that does not run here any more.
#[derive(Debug, Clone)]
pub(super) struct EndedHere {
    /// Of its job.
    pub(super) id: String,
    /// How its job has ended with it, if it has.
    pub(super) end: Option<Arc<End>>,
}

/// What came of waiting for a job.
#[derive(Debug, Clone, PartialEq)]
pub enum Waited {
    /// It has ended; how, if it was here.
    Ended(Option<Arc<End>>),
    /// It goes on.
    InVain,
}

/// Somebody who waits. What ends from its making on is not missed.
#[derive(Debug)]
pub struct Waiter<'a> {
    shared: &'a Shared,
    ends: broadcast::Receiver<EndedHere>,
}

impl<'a> Waiter<'a> {
    pub(super) fn new(shared: &'a Shared) -> Self {
        let ends = shared.ends.subscribe();
        Self { shared, ends }
    }

    /// Waits until a job has ended, at most so long. One that `is_here` was begun here after this was
    /// made, and need not be looked for first.
    ///
    /// # Errors
    /// Those of [`Store::standing`](crate::store::Store::standing).
    pub async fn wait(
        mut self,
        id: &str,
        is_here: bool,
        patience: Duration,
    ) -> Result<Waited, StoreError> {
        let mut look = !is_here;
        let ended = async {
            loop {
                if look && self.has_ended(id).await? {
                    return Ok(None);
                }
                look = true;
                if let Some(end) = self.hear(id).await {
                    return Ok(Some(end));
                }
            }
        };
        match timeout(patience, ended).await {
            Ok(ended) => ended.map(Waited::Ended),
            Err(_) => Ok(Waited::InVain),
        }
    }

    /// Also a job that is not known has: it was forgotten.
    async fn has_ended(&self, id: &str) -> Result<bool, StoreError> {
        let standing = self.shared.store.standing(id);
        let standing = self.shared.reach.soon("look at a job", standing).await?;
        Ok(standing.is_none_or(|standing| standing.ended_at.is_some()))
    }

    /// How it has ended; nothing if it is time to look for it.
    async fn hear(&mut self, id: &str) -> Option<Arc<End>> {
        let heard = async {
            loop {
                match self.ends.recv().await {
                    Ok(ended) if ended.id == id => return ended.end,
                    Ok(_) => {}
                    // Some were missed, and it may have been among them.
                    Err(_) => return None,
                }
            }
        };
        tokio::select! {
            end = heard => end,
            () = sleep(about(LOOK)) => None,
        }
    }
}
