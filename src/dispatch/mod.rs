//! Takes jobs from the queue and has the supervisor of this host run them, until each has a result.
//!
//! ```text
//!             hint, notice, or poll                      ┌─ finish ──> recorded
//! claims ──────────────────────────> attempt ────────────┼─ release ─> waits again, or has failed
//!   ^                                 │  ^               └─ nothing: it was taken away
//!   └── a free slot <─────────────────┘  │ cancel
//! heart: beats; what is not ours any more is killed ┘
//! ```
//!
//! Whatever is in memory here may be lost at any moment: the queue has all of it. A result that the
//! database cannot take yet is in the [journal], on disk.

mod attempt;
mod heart;
mod journal;
mod quota;
mod reach;
mod unheard;
mod wait;

pub use journal::JournalError;
pub use wait::{Waited, Waiter};

use crate::store::audit::Actor;
use crate::store::files::Files;
use crate::store::queue::{Cancelled, Enqueued, Held, Submission, Worker, tokens};
use crate::store::{Store, StoreError};
use crate::supervisor::connection::{self, Connections};
use journal::Journal;
use reach::{ANSWER, Reach};
use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, broadcast};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use unheard::Unheard;
use uuid::Uuid;
use wait::EndedHere;

/// How often the queue is looked at when nobody says that something has come.
const POLL: Duration = Duration::from_millis(500);

/// How often a job that runs elsewhere is looked at by whoever waits for its end.
const LOOK: Duration = Duration::from_millis(250);

/// How often it is tried whether files can be kept, when they could not be, and how many bytes.
const KEEP: Duration = Duration::from_secs(1);
const SOME: usize = 1 << 20;

/// How long the start waits to find out: what comes later is found out by whoever claims.
const AT_FIRST: Duration = Duration::from_secs(5);

/// Longest pause between two tries of what may succeed later.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// Ends that somebody who waits may have missed before he looks again.
const ENDS: usize = 1024;

/// How jobs are dispatched.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What this process is called in the queue: unlike any other that ever was.
    pub worker: String,
    /// How long a job is ours without a word of us.
    pub lease: Duration,
    /// Jobs at once.
    pub slots: u16,
    /// Before an attempt that was lost is repeated; twice as long each time.
    pub retry_base_delay: Duration,
    /// A directory of ours for results that wait, and for files that jobs leave.
    pub directory: PathBuf,
    /// How many bytes of files an owner may have kept.
    pub artifact_storage_bytes: u64,
}

/// What claims and runs jobs. Dropped, it ends them, and leaves them to others when their leases are over.
#[derive(Debug)]
pub struct Dispatcher {
    shared: Arc<Shared>,
    tasks: TaskTracker,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    reach: Reach,
    files: Files,
    supervisor: Connections,
    settings: Settings,
    worker: Worker,
    journal: Journal,
    /// Of the directory.
    _lock: File,
    slots: Arc<Semaphore>,
    /// Held while slots are held only to look whether there is something for them.
    look: tokio::sync::Mutex<()>,
    attempts: Mutex<BTreeMap<Held, Attempt>>,
    unheard: Unheard,
    /// Something may have come that can be claimed.
    work: Notify,
    /// Somebody may want something that runs here to end.
    beat: Notify,
    /// What has ended here.
    ends: broadcast::Sender<EndedHere>,
    /// Nothing is claimed before.
    pause: Mutex<Instant>,
    /// Files of a job, or its result, could not be kept, and nothing is claimed until some can.
    is_full: AtomicBool,
    over_quota: quota::Told,
    /// Nothing more is claimed.
    drain: CancellationToken,
    /// Nothing more is done.
    stop: CancellationToken,
    /// A task has failed without which nothing goes on.
    broken: CancellationToken,
}

/// An attempt that runs here.
#[derive(Debug, Clone, Default)]
struct Attempt {
    /// Ends its program.
    cancel: CancellationToken,
    why: Arc<Mutex<Option<Why>>>,
}

/// Why an attempt is ended from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// Somebody wants it to end.
    Cancelled,
    /// It was taken away.
    Lost,
    /// We end.
    Drained,
}

impl Attempt {
    fn end(&self, why: Why) {
        self.why
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(why);
        self.cancel.cancel();
    }

    fn why(&self) -> Option<Why> {
        *self.why.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn attempts(&self) -> MutexGuard<'_, BTreeMap<Held, Attempt>> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn paused_until(&self) -> MutexGuard<'_, Instant> {
        self.pause.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims nothing for a while.
    fn pause_for(&self, time: Duration) {
        let mut until = self.paused_until();
        *until = (Instant::now() + time).max(*until);
    }
}

/// A time that differs a little from one process to the next, so that they do not all come at once.
fn about(time: Duration) -> Duration {
    time.mul_f64(rand::random_range(0.8..1.2))
}

impl Dispatcher {
    /// Begins to claim jobs. Results that an earlier process could not hand over are handed over first.
    ///
    /// # Errors
    /// [`JournalError`] when the directory cannot be used.
    pub async fn start(
        store: Store,
        files: Files,
        supervisor: Connections,
        settings: Settings,
    ) -> Result<Self, JournalError> {
        let (journal, lock) = Journal::open(&settings.directory)?;
        let shared = Arc::new(Shared {
            worker: Worker {
                name: settings.worker.clone(),
                lease: settings.lease,
            },
            slots: Arc::new(Semaphore::new(usize::from(settings.slots))),
            look: tokio::sync::Mutex::default(),
            attempts: Mutex::default(),
            unheard: Unheard::default(),
            work: Notify::new(),
            beat: Notify::new(),
            ends: broadcast::Sender::new(ENDS),
            pause: Mutex::new(Instant::now()),
            is_full: AtomicBool::new(false),
            over_quota: quota::Told::default(),
            drain: CancellationToken::new(),
            stop: CancellationToken::new(),
            broken: CancellationToken::new(),
            // With fewer beats than one missed, everybody is still heard of in time.
            reach: Reach::new(store.clone(), settings.lease / 3),
            store,
            files,
            supervisor,
            settings,
            journal,
            _lock: lock,
        });
        attempt::hand_over_what_waits(&shared).await?;
        shared.try_at_first().await;
        let tasks = TaskTracker::new();
        let alarm = || shared.broken.clone().drop_guard();
        tasks.spawn(vital(alarm(), claims(Arc::clone(&shared), tasks.clone())));
        tasks.spawn(vital(alarm(), heart::beats(Arc::clone(&shared))));
        tasks.spawn(vital(alarm(), heart::rescues(Arc::clone(&shared))));
        tasks.spawn(vital(alarm(), heart::notices(Arc::clone(&shared))));
        Ok(Self { shared, tasks })
    }

    /// Takes a job in, to be run when its turn has come; at most `most` may wait.
    ///
    /// # Errors
    /// Those of [`Store::enqueue`].
    pub async fn submit(
        &self,
        job: &Submission,
        most: Option<u32>,
    ) -> Result<Enqueued, StoreError> {
        let Shared { store, reach, .. } = &*self.shared;
        let enqueue = store.enqueue(job, most, None);
        let enqueued = reach.soon("take a job in", enqueue).await?;
        if matches!(enqueued, Enqueued::Queued) {
            self.shared.work.notify_one();
            if self.shared.slots.available_permits() == 0 {
                // Others may have time. If they do not hear of it they look by themselves.
                let announce = store.announce();
                drop(reach.within("tell other servers of a job", announce).await);
            }
        }
        Ok(enqueued)
    }

    /// Takes a job in for somebody who waits: with a free slot it begins at once.
    ///
    /// # Errors
    /// Those of [`Store::enqueue`].
    pub async fn submit_at_once(
        &self,
        job: &Submission,
        most: Option<u32>,
    ) -> Result<Enqueued, StoreError> {
        let shared = &self.shared;
        let paused = *shared.paused_until() > Instant::now()
            || shared.is_full.load(Ordering::Relaxed)
            || shared.drain.is_cancelled();
        let slot = if paused { None } else { shared.slot().await };
        let Some(slot) = slot else {
            return self.submit(job, most).await;
        };
        // In a task of its own, since who waits may go away: what is claimed is run all the same.
        let (shared, tasks, job) = (Arc::clone(shared), self.tasks.clone(), job.clone());
        let claim = async move {
            let token = Uuid::new_v4();
            let begun = Some((&shared.worker, token));
            let enqueue = shared.store.enqueue(&job, most, begun);
            let enqueue = shared.reach.soon("take a job in", enqueue);
            let (enqueued, prepared) = tokio::join!(enqueue, attempt::prepare(&shared, &job));
            let enqueued = shared.heard(enqueued, [token])?;
            if let Enqueued::Claimed(claim) = &enqueued {
                if shared.drain.is_cancelled() {
                    shared.unheard.add([token]);
                    unheard::give_back(&shared).await;
                    return Ok(Enqueued::Queued);
                }
                let claim = (**claim).clone();
                let attempt = attempt::run(Arc::clone(&shared), claim, Some(slot), prepared);
                tasks.spawn(attempt);
            }
            Ok(enqueued)
        };
        let claimed = self.tasks.spawn(claim).await;
        claimed.unwrap_or_else(|_panic| Err(StoreError::late("take a job in")))
    }

    /// Somebody who is to wait for a job.
    pub fn waiter(&self) -> Waiter<'_> {
        Waiter::new(&self.shared)
    }

    /// Ends a job, on whichever host it runs, and waits until nothing of it runs any more.
    ///
    /// # Errors
    /// Those of [`Store::cancel`].
    pub async fn cancel(
        &self,
        id: &str,
        actor: Actor<'_>,
        patience: Duration,
    ) -> Result<Cancelled, StoreError> {
        let cancel = self.shared.store.cancel(id, actor);
        let cancelled = self.shared.reach.soon("cancel a job", cancel).await?;
        if cancelled == Cancelled::Asked {
            self.shared.end_by_id(id);
            // It may have been claimed in this very moment.
            self.shared.beat.notify_one();
            self.waiter().wait(id, false, patience).await?;
        }
        Ok(cancelled)
    }

    /// Whether it comes to its end: whatever it takes in now waits for another server.
    pub fn is_draining(&self) -> bool {
        self.shared.drain.is_cancelled()
    }

    /// Waits until a task of ours has failed without which nothing goes on: then only a new process helps.
    pub async fn broken(&self) {
        self.shared.broken.cancelled().await;
    }

    /// Whether the supervisor of this host takes connections.
    pub async fn supervisor_answers(&self) -> bool {
        let socket = self.shared.supervisor.socket().to_owned();
        // It blocks while the supervisor is crowded.
        let connected = tokio::task::spawn_blocking(move || connection::connect(&socket).is_ok());
        connected.await.unwrap_or(false)
    }

    /// Whether files of a job, or its result, could not be kept, and nothing is claimed until some can.
    pub fn is_full(&self) -> bool {
        self.shared.is_full.load(Ordering::Relaxed)
    }

    /// Claims nothing more, and waits for what runs, at most so long; what runs then still is given back
    /// to the queue. What the database does not take meanwhile is left to the journal, and to others.
    pub async fn drain(&self, patience: Duration) {
        let Self { shared, tasks } = self;
        shared.drain.cancel();
        // What is being claimed now is the last.
        drop(shared.look.lock().await);
        if timeout(patience, shared.nothing_runs()).await.is_err() {
            let attempts = shared.attempts().clone();
            for attempt in attempts.values() {
                attempt.end(Why::Drained);
            }
            drop(timeout(shared.settings.lease, shared.nothing_runs()).await);
        }
        // The last occasion. What is missed waits for the end of its lease.
        if !shared.reach.is_away() {
            unheard::give_back(shared).await;
        }
        // The heart beats until now.
        shared.stop.cancel();
        tasks.close();
        tasks.wait().await;
    }
}

impl Drop for Dispatcher {
    fn drop(&mut self) {
        self.shared.drain.cancel();
        self.shared.stop.cancel();
        for attempt in self.shared.attempts().values() {
            attempt.end(Why::Lost);
        }
    }
}

impl Shared {
    /// A slot for whoever waits, if one is free: one that is only held to look is waited for, but not for
    /// long, since a look takes milliseconds where the database answers.
    async fn slot(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() {
            return Some(slot);
        }
        let _look = timeout(LOOK, self.look.lock()).await.ok()?;
        Arc::clone(&self.slots).try_acquire_owned().ok()
    }

    /// Waits until a slot is free, the supervisor takes jobs as far as is known, the database is there, and
    /// what jobs leave can be kept.
    async fn has_a_free_slot(&self) {
        loop {
            let until = *self.paused_until();
            sleep_until(until).await;
            drop(self.slots.acquire().await);
            self.reach.back().await;
            self.can_keep().await;
            if *self.paused_until() <= Instant::now() {
                return;
            }
        }
    }

    /// Waits until files and results can be kept, if that has failed.
    async fn can_keep(&self) {
        while self.is_full.load(Ordering::Relaxed) {
            if let Err(error) = self.try_to_keep().await {
                heart::warn("still cannot keep the files of a job", &*error);
                sleep(about(KEEP)).await;
            } else {
                // What has failed meanwhile is found out the next time.
                self.is_full.store(false, Ordering::Relaxed);
            }
        }
    }

    /// So that no attempt is begun in vain where nothing can be kept already.
    async fn try_at_first(&self) {
        let tried = timeout(AT_FIRST, self.try_to_keep()).await;
        let tried = tried.unwrap_or_else(|late| Err(late.into()));
        if let Err(error) = tried {
            self.is_full.store(true, Ordering::Relaxed);
            heart::warn("cannot keep files of jobs", &*error);
        }
    }

    async fn try_to_keep(&self) -> Result<(), Box<dyn Error + Send + Sync>> {
        let some = vec![0; SOME];
        for directory in [&self.settings.directory, self.journal.directory()] {
            let mut file = tempfile::tempfile_in(directory)?;
            file.write_all(&some)?;
            file.sync_all()?;
        }
        Ok(self.files.try_to_keep(some).await?)
    }

    /// The answer to a claim with these tokens. Where there is none, it may have been carried out.
    fn heard<T>(
        &self,
        answer: Result<T, StoreError>,
        tokens: impl IntoIterator<Item = Uuid>,
    ) -> Result<T, StoreError> {
        answer.inspect_err(|error| {
            if error.is_about_the_connection() {
                self.unheard.add(tokens);
            }
        })
    }

    async fn nothing_runs(&self) {
        while !self.attempts().is_empty() {
            sleep(Duration::from_millis(10)).await;
        }
    }

    fn end_by_id(&self, id: &str) {
        let attempts = self.attempts();
        for (_, attempt) in attempts.iter().filter(|(held, _)| held.id == id) {
            attempt.end(Why::Cancelled);
        }
    }
}

/// Runs a task that must not fail: if it does not come to its end, the alarm goes off.
async fn vital(alarm: DropGuard, task: impl Future<Output = ()>) {
    task.await;
    alarm.disarm();
}

/// Claims as many jobs as there are free slots, until nothing more is to be claimed.
async fn claims(shared: Arc<Shared>, tasks: TaskTracker) {
    loop {
        let ready = shared.drain.run_until_cancelled(shared.has_a_free_slot());
        if ready.await.is_none() {
            return;
        }
        // Before the look: a job that comes between that and the wait is not missed.
        let hint = shared.work.notified();
        // Never given up in the middle: what it takes would be nobody's until its lease is over.
        if look(&shared, &tasks).await {
            continue;
        }
        tokio::select! {
            () = hint => {}
            () = sleep(about(POLL)) => {}
            () = shared.drain.cancelled() => return,
        }
    }
}

/// Claims once; gives whether there was anything.
async fn look(shared: &Arc<Shared>, tasks: &TaskTracker) -> bool {
    let _look = shared.look.lock().await;
    if shared.drain.is_cancelled() {
        return false;
    }
    let free = shared.slots.available_permits();
    let most = u16::try_from(free).unwrap_or(u16::MAX);
    let slots = Arc::clone(&shared.slots).try_acquire_many_owned(most.into());
    let (1.., Ok(mut slots)) = (most, slots) else {
        // Somebody was faster.
        return true;
    };
    let tokens = tokens(most);
    let claim = shared.store.claim(&shared.worker, &tokens);
    let claims = shared.reach.within("claim a job", claim).await;
    let claims = shared.heard(claims, tokens).unwrap_or_else(|error| {
        heart::warn("cannot claim a job", &error);
        Vec::new()
    });
    let some = !claims.is_empty();
    for claim in claims {
        let slot = slots.split(1);
        tasks.spawn(attempt::run(Arc::clone(shared), claim, slot, None));
    }
    some
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_fails_is_noticed_and_one_that_ends_is_not() {
        let broken = CancellationToken::new();
        let alarm = || broken.clone().drop_guard();
        tokio::spawn(vital(alarm(), async {})).await.unwrap();
        assert!(!broken.is_cancelled());
        let failed = tokio::spawn(vital(alarm(), async { panic!("as it is to") })).await;
        assert!(failed.is_err() && broken.is_cancelled());
    }
}
