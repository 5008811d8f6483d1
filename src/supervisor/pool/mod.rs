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

use super::journal;
use super::staged::Staged;
use super::wire::PoolStats;
use crate::image::{Image, Images};
use crate::job::one_line;
use crate::job::{Limits, Outcome, Start};
use crate::sandbox::{Finished, Order, Ready, Runtime, SandboxError, Sandboxes};
use crate::sys::cgroup::Urgency;
use crate::sys::{place, process};
use checkpoint::Checkpoints;
use rack::{Profile, Rack, Racks};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How long a job waits for a sandbox that is being frozen or thawed just now: less than a start takes.
const IN_HAND: Duration = Duration::from_millis(100);

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
    /// One that was off its rack to be frozen or thawed may be back.
    returned: Notify,
    /// Tasks that hold sandboxes which are on no rack.
    at_work: AtomicUsize,
    ended: CancellationToken,
}

/// A job waits for its own sandbox to start until this is dropped.
#[derive(Debug)]
struct Starting(Arc<Shared>);

impl Drop for Starting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
        self.0.changed.notify_one();
    }
}

/// Counts as at work until it is dropped, whatever becomes of the task that has it.
#[derive(Debug)]
struct AtWork(Arc<Shared>);

impl AtWork {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.at_work.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(shared))
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.at_work.fetch_sub(1, Ordering::AcqRel);
    }
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
            returned: Notify::new(),
            at_work: AtomicUsize::new(0),
            ended: CancellationToken::new(),
        });
        if shared.keeps_any() {
            tokio::spawn(keeper::keep(AtWork::new(&shared)));
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
        let path = shared.settings.path_of(image);
        let order = Order {
            image: &path,
            ..order
        };
        if !shared.keeps_any() || order.job.needs_own_interpreter() {
            return shared.run_cold(&order, asked).await;
        }
        let profile = Arc::new(Profile::new(image, path.clone(), &order.job.limits));
        let asked_for = shared.racks().asked_for(&profile);
        for forgotten in asked_for.forgotten {
            shared.throw_away(forgotten);
        }
        if !asked_for.has_rack {
            return shared.run_cold(&order, asked).await;
        }
        if let Some(ready) = shared.take(&profile).await {
            let finished = shared.run_in(ready, &order, Start::Warm, asked).await?;
            if !is_wasted(&finished, &order) {
                shared.on_rack(&profile, |rack| rack.hits += 1);
                return Ok(finished.into());
            }
            journal::warn(&format!(
                "a ready sandbox was of no use: {:?}",
                finished.outcome.termination
            ));
        }
        shared.on_rack(&profile, |rack| rack.misses += 1);
        let starting = shared.wait_for_a_start();
        let restored = tokio::select! {
            restored = shared.restore(&profile, Urgency::Job) => restored,
            // Nobody waits for it any more; the cold start below notices that at once.
            () = order.cancel.cancelled() => None,
        };
        drop(starting);
        if let Some(ready) = restored {
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
            // Looked at first: whoever was at work may have put one on a rack before the end.
            let idle = self.shared.at_work.load(Ordering::Acquire) == 0;
            let left = self.shared.racks().clear();
            let nothing_left = left.is_empty();
            for ready in left {
                self.shared.throw_away(ready);
            }
            if idle && nothing_left {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Settings {
    /// The file that sandboxes of this image map.
    fn path_of(&self, image: &Image) -> PathBuf {
        let copy = self.staged.as_ref().and_then(|staged| staged.copy(image));
        copy.unwrap_or_else(|| image.path.clone())
    }

    /// The same, after a copy was made if there is room for one. Blocks.
    fn stage(&self, image: &Image) -> PathBuf {
        if let Some(staged) = &self.staged {
            staged.stage(image);
        }
        self.path_of(image)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.ended.cancel();
        self.shared.changed.notify_one();
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

/// Whether a sandbox failed before it took the job up, which another may then take. One that ran out of
/// memory was given more than it can hold, as any other would be.
fn is_wasted(finished: &Finished, order: &Order<'_>) -> bool {
    let full = finished.outcome.usage.oom_kills > 0;
    finished.untouched && !full && !order.cancel.is_cancelled()
}

/// Thaws one for a job.
fn wake(ready: &Ready) -> Result<(), SandboxError> {
    ready.hurry()?;
    ready.thaw()
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

    /// Does something with the rack of a profile, unless that was forgotten.
    fn on_rack<T>(&self, profile: &Profile, with: impl FnOnce(&mut Rack) -> T) -> Option<T> {
        self.racks().get(profile).map(with)
    }

    /// Destroys one that had no job, in the background; the end of the pool waits for it.
    fn throw_away(self: &Arc<Self>, ready: Ready) {
        let at_work = AtWork::new(self);
        tokio::spawn(async move {
            discard(ready).await;
            drop(at_work);
        });
    }

    /// Takes the oldest that is alive, thawed.
    async fn take(&self, profile: &Profile) -> Option<Ready> {
        loop {
            let returned = self.returned.notified();
            let (taken, in_hand) = self.on_rack(profile, |rack| (rack.take(), rack.in_hand))?;
            let Some(mut waiting) = taken else {
                if in_hand == 0 || timeout(IN_HAND, returned).await.is_err() {
                    return None;
                }
                continue;
            };
            self.changed.notify_one();
            if waiting.ready.is_alive() {
                if !waiting.frozen {
                    return Some(waiting.ready);
                }
                match process::blocking(|| wake(&waiting.ready)) {
                    Ok(()) => return Some(waiting.ready),
                    Err(error) => journal::warn(&one_line(&error)),
                }
            }
            self.on_rack(profile, |rack| rack.retired += 1);
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

    async fn run_cold(
        self: &Arc<Self>,
        order: &Order<'_>,
        asked: Instant,
    ) -> Result<Done, SandboxError> {
        let starting = Box::new(self.wait_for_a_start());
        let finished = self.sandboxes.run_cold(order, asked, starting).await?;
        Ok(finished.into())
    }

    /// Until it is dropped, nothing is made ahead: a job waits for its own sandbox.
    fn wait_for_a_start(self: &Arc<Self>) -> Starting {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Starting(Arc::clone(self))
    }

    /// One from the profile's checkpoint, if there is one and that is the faster way here.
    async fn restore(&self, profile: &Profile, urgency: Urgency) -> Option<Ready> {
        let checkpoint = self.on_rack(profile, |rack| rack.ways.checkpoint_to_use())??;
        let begun = Instant::now();
        let restored = self
            .sandboxes
            .restore(&profile.path, &profile.limits, urgency, &checkpoint)
            .await;
        match restored {
            Ok(ready) => {
                let took = begun.elapsed();
                self.on_rack(profile, |rack| {
                    rack.restored += 1;
                    // Like is compared with like: what jobs wait for is never started for comparison.
                    if urgency == Urgency::Refill {
                        rack.ways.restored(took);
                    }
                });
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
        let blamed = self.on_rack(profile, |rack| {
            rack.restore_failures += 1;
            (rack.restore_failures == 1, rack.ways.failed())
        });
        let Some((first, useless)) = blamed else {
            return;
        };
        if let Some(checkpoint) = useless {
            // The next supervisor is not to find it and fail as often again.
            if let Err(error) = process::blocking(|| place::remove(&checkpoint)) {
                journal::warn(&one_line(&error));
            }
        }
        if first {
            journal::error(&format!(
                "cannot restore a sandbox of the image `{}`, and starts cold instead: {why}",
                profile.name
            ));
        }
    }
}
