//! Sandboxes for jobs: one that waits already, or else a new one.
//!
//! ```text
//!             ┌──────────── keeper: makes them ahead, at low CPU weight ───────────┐
//!             v                                                                    │
//!  rack of a profile: thawed, thawed, frozen, frozen …                    checkpoint
//!             │ the oldest, once                                                   │
//!  job ───────┴──> alive? thawed ──> runs ──> destroyed                            │
//!      └── none there ──> restored ────────────────────────────────────────────────┘
//!                    └──> cold
//! ```
//!
//! A sandbox leaves the rack by being taken from it by value, and what is taken is never put back
//! for another job: that is what single use rests on.

mod checkpoint;
mod keeper;
mod rack;

use super::journal::{self, one_line};
use super::staged::Staged;
use super::wire::PoolStats;
use crate::image::{Image, Images};
use crate::job::{Limits, Outcome, Start};
use crate::sandbox::{Finished, Order, Ready, Runtime, SandboxError, Sandboxes};
use crate::sys::cgroup::Urgency;
use crate::sys::process;
use checkpoint::Checkpoints;
use rack::{Profile, Racks};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What is kept ready, in plain values.
#[derive(Debug)]
pub struct Settings {
    /// The state directory, below which checkpoints lie.
    pub state_dir: PathBuf,
    /// Digest of all the files of the runtime: a checkpoint fits no other.
    pub runtime: String,
    /// Where copies in huge pages are, if there are any.
    pub staged: Option<Arc<Staged>>,
    /// Bytes of memory that all ready sandboxes may use together.
    pub memory_bytes: u64,
    /// Ready sandboxes of a profile in use, at least.
    pub minimum: usize,
    /// Ready sandboxes of one profile, at most; 0 for no pool at all.
    pub maximum: usize,
    /// How long no job may have come before all of them are frozen.
    pub frozen_after: Duration,
    /// How old one may become.
    pub max_age: Duration,
    /// Images and limits that are kept ready from the start.
    pub profiles: Vec<(String, Limits)>,
}

/// The ready sandboxes of every profile, and whoever keeps them so. Dropped, it makes no more, and
/// those that wait are killed.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
}

/// A job that has ended.
#[derive(Debug)]
pub struct Done {
    /// How, and what it left.
    pub outcome: Outcome,
    /// Ends when nothing is left of its sandbox, with the time that killing it took.
    pub clearing: JoinHandle<Result<Duration, SandboxError>>,
}

#[derive(Debug)]
struct Shared {
    sandboxes: Sandboxes,
    images: Images,
    settings: Settings,
    checkpoints: Checkpoints,
    racks: Mutex<Racks>,
    /// Something was taken, or has come to wait.
    changed: Notify,
    /// Jobs whose sandbox is being started while they wait for it.
    waiting: AtomicUsize,
    ended: CancellationToken,
}

impl Pool {
    /// One that fills in the background. Blocks for the file system.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(sandboxes: Sandboxes, images: Images, settings: Settings) -> Self {
        let checkpoints = Checkpoints::below(&settings.state_dir, &settings.runtime);
        let shared = Arc::new(Shared {
            sandboxes,
            images,
            checkpoints,
            racks: Mutex::new(Racks::new(settings.memory_bytes)),
            settings,
            changed: Notify::new(),
            waiting: AtomicUsize::new(0),
            ended: CancellationToken::new(),
        });
        if shared.keeps_any() {
            tokio::spawn(keeper::keep(Arc::clone(&shared)));
        }
        Self { shared }
    }

    /// Runs a job in a sandbox of its own.
    ///
    /// # Errors
    /// [`SandboxError`] when no sandbox could be made, or not be cleared away.
    pub async fn run(&self, image: &Image, order: Order<'_>) -> Result<Done, SandboxError> {
        let asked = Instant::now();
        let shared = &self.shared;
        let path = process::blocking(|| shared.settings.path_of(image));
        let order = Order {
            image: &path,
            ..order
        };
        if !shared.keeps_any() || order.job.needs_own_interpreter() {
            return shared.run_cold(&order, asked).await;
        }
        let profile = Arc::new(Profile::new(image, path.clone(), &order.job.limits));
        shared.racks().asked_for(&profile);
        if let Some(ready) = shared.take(&profile).await {
            let finished = shared.run_in(ready, &order, Start::Warm, asked).await?;
            if !is_wasted(&finished, &order) {
                shared.racks().of(&profile).hits += 1;
                return Ok(finished.into());
            }
            journal::warn(&format!(
                "a ready sandbox was of no use: {:?}",
                finished.outcome.termination
            ));
        }
        shared.racks().of(&profile).misses += 1;
        let _waiting = shared.wait_for_a_start();
        if let Some(ready) = shared.restore(&profile, Urgency::Job).await {
            let finished = shared.run_in(ready, &order, Start::Restored, asked).await?;
            if !is_wasted(&finished, &order) {
                return Ok(finished.into());
            }
            shared.blame_checkpoint(&profile, &format!("{:?}", finished.outcome.termination));
        }
        shared.run_cold(&order, asked).await
    }

    /// One entry for each profile.
    pub fn stats(&self) -> Vec<PoolStats> {
        self.shared.racks().stats()
    }

    /// Bytes of memory that ready sandboxes may have together.
    pub fn budget_bytes(&self) -> u64 {
        if self.shared.keeps_any() {
            self.shared.settings.memory_bytes
        } else {
            0
        }
    }

    /// Bytes that they have, as far as is known.
    pub fn bytes(&self) -> u64 {
        self.shared.racks().bytes()
    }

    /// Makes no more, and destroys all that wait.
    pub async fn drain(&self) {
        self.shared.ended.cancel();
        self.shared.changed.notify_one();
        loop {
            let (left, starting) = self.shared.racks().clear();
            for ready in left {
                discard(ready).await;
            }
            if starting == 0 {
                return;
            }
            // They notice soon, and are destroyed by whoever makes them.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Settings {
    /// The file that sandboxes of this image map.
    fn path_of(&self, image: &Image) -> PathBuf {
        let staged = self.staged.as_ref();
        staged.map_or_else(|| image.path.clone(), |staged| staged.image(image))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.ended.cancel();
    }
}

impl From<Finished> for Done {
    fn from(finished: Finished) -> Self {
        Self {
            outcome: finished.outcome,
            clearing: finished.clearing,
        }
    }
}

/// Whether a sandbox failed before it took the job up, which another may then take.
fn is_wasted(finished: &Finished, order: &Order<'_>) -> bool {
    finished.untouched && !order.cancel.is_cancelled()
}

/// Destroys one that had no job.
async fn discard(ready: Ready) {
    if let Err(error) = ready.discard().await {
        journal::error(&one_line(&error));
    }
}

impl Shared {
    fn keeps_any(&self) -> bool {
        // A container is looked at from outside before it is given a program, with nobody but its init
        // inside: an interpreter that waits would be in the way.
        self.settings.maximum > 0 && matches!(self.sandboxes.runtime(), Runtime::Gvisor(_))
    }

    fn racks(&self) -> MutexGuard<'_, Racks> {
        self.racks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the oldest that is alive, thawed.
    async fn take(&self, profile: &Profile) -> Option<Ready> {
        loop {
            let mut waiting = self.racks().of(profile).take()?;
            self.changed.notify_one();
            if waiting.ready.is_alive() {
                if !waiting.frozen {
                    return Some(waiting.ready);
                }
                match process::blocking(|| waiting.ready.thaw()) {
                    Ok(()) => return Some(waiting.ready),
                    Err(error) => journal::warn(&one_line(&error)),
                }
            }
            self.racks().of(profile).retired += 1;
            discard(waiting.ready).await;
        }
    }

    async fn run_in(
        &self,
        ready: Ready,
        order: &Order<'_>,
        start: Start,
        asked: Instant,
    ) -> Result<Finished, SandboxError> {
        let ready = ready.for_a_job_of(asked);
        self.sandboxes.run_in(ready, order, start).await
    }

    async fn run_cold(&self, order: &Order<'_>, asked: Instant) -> Result<Done, SandboxError> {
        let _waiting = self.wait_for_a_start();
        self.sandboxes.run_cold(order, asked).await.map(Done::from)
    }

    /// Until it is dropped, nothing is made ahead: a job waits.
    fn wait_for_a_start(&self) -> impl Drop + '_ {
        struct Waiting<'a>(&'a Shared);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.waiting.fetch_sub(1, Ordering::Relaxed);
                self.0.changed.notify_one();
            }
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(self)
    }

    /// One from the profile's checkpoint, if there is one and that is the faster way here.
    async fn restore(&self, profile: &Profile, urgency: Urgency) -> Option<Ready> {
        let checkpoint = self.racks().of(profile).ways.checkpoint_to_use()?;
        let begun = Instant::now();
        let restored = self
            .sandboxes
            .restore(&profile.path, &profile.limits, urgency, &checkpoint)
            .await;
        match restored {
            Ok(ready) => {
                let mut racks = self.racks();
                let rack = racks.of(profile);
                rack.restored += 1;
                rack.ways.restored(begun.elapsed());
                Some(ready)
            }
            Err(error) => {
                self.blame_checkpoint(profile, &one_line(&error));
                None
            }
        }
    }

    /// A restore has failed: counted, told once.
    fn blame_checkpoint(&self, profile: &Profile, why: &str) {
        let mut racks = self.racks();
        let rack = racks.of(profile);
        rack.restore_failures += 1;
        let first = rack.restore_failures == 1;
        rack.ways.failed();
        drop(racks);
        if first {
            journal::error(&format!(
                "cannot restore a sandbox of the image `{}`, and starts cold instead: {why}",
                profile.name
            ));
        }
    }
}
