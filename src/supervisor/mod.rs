//! The privileged service: it keeps single-use sandboxes ready and runs a job in one, for whoever may
//! use its socket.
//!
//! ```text
//!  client ──connect──> listen: who is it? ──> session: hello; one request after the other
//!                        │ forbidden, busy       │ run          │ stats   │ drain (root)
//!                        v                       v              v         v
//!                      closed     exchange: slot, bytes, check ─────> refused
//!                                                │ accepted
//!                            ┌───────────────────┴──────────────────┐
//!                     task of the job                        the connection
//!             pool: a sandbox, its end, its clearing   <── cancel, or closed
//!             holds a place until all is gone           ──> output, end, files
//! ```
//!
//! A client is not believed: what it asks for is checked here against root's maxima, whatever it has
//! checked itself. A job never outlives its connection, and its time limits hold without any client.
//! There is no queue: a job that finds no free slot is turned away with a hint when to come back.

pub mod connection;
mod exchange;
mod figures;
mod journal;
mod known;
mod link;
mod listen;
pub mod pool;
mod session;
mod slots;
pub mod staged;
pub mod wire;

use crate::image::Images;
use crate::job::{Maxima, milliseconds, one_line};
use crate::sandbox::{self, Sandboxes};
use crate::sys::endpoint::{Access, Endpoint, EndpointError};
use crate::sys::notify;
use figures::Figures;
use journal::Journal;
use known::Known;
use pool::Pool;
use slots::Slots;
use std::collections::BTreeSet;
use std::future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use tokio::net::UnixListener;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use wire::Stats;

/// How long the descriptors of a supervisor that was killed may outlive it.
const HEIRS: Duration = Duration::from_millis(500);

/// How often what could not be cleared away is tried again.
const SWEEP: Duration = Duration::from_mins(1);

/// How often the service manager is told how it stands.
const STATUS: Duration = Duration::from_secs(5);

/// How long the clients of the last jobs may take to take what is theirs.
const LAST_WORDS: Duration = Duration::from_secs(30);

/// How long jobs that are cancelled at the end may take to be cleared away: the kill of a sandbox has
/// 5 s, and the rest is for a host that is out of breath. The next start sweeps.
const LAST_KILLS: Duration = Duration::from_secs(10);

/// How long clients may take then to hear of it.
const LAST_NEWS: Duration = Duration::from_secs(1);

/// How many there may be at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// In all.
    pub all: usize,
    /// Of one user.
    pub per_user: usize,
}

/// How the service listens and what it takes on.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it listens; the directory is there.
    pub socket: PathBuf,
    /// The group whose members may connect besides root.
    pub access: Access,
    /// Jobs that run at once.
    pub jobs: Caps,
    /// Connections that are open at once.
    pub connections: Caps,
}

impl Settings {
    /// Connections at once, of all users: each costs a descriptor and some KiB.
    pub const CONNECTIONS: usize = 512;

    /// Connections beyond all bounds for root alone, on which no job is run: whatever others do, and
    /// root's own clients, root can see what goes on, and drain.
    pub const KEPT_FOR_ROOT: usize = 16;
}

/// What jobs are run with.
#[derive(Debug)]
pub struct Host {
    /// The state directory, which is swept.
    pub state_dir: PathBuf,
    /// Makes sandboxes, and the directories for their files.
    pub sandboxes: Sandboxes,
    /// Has sandboxes ready.
    pub pool: Pool,
    /// The executor images.
    pub images: Images,
    /// What root allows.
    pub maxima: Maxima,
}

/// How the service is told to end.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    draining: CancellationToken,
    now: CancellationToken,
}

impl Stop {
    /// No more jobs; the end comes with that of the last one.
    pub fn drain(&self) {
        self.draining.cancel();
    }

    /// Jobs that run are cancelled.
    pub fn now(&self) {
        self.now.cancel();
        self.draining.cancel();
    }

    /// Whether either was asked for.
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }
}

/// Why there is no service.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
pub enum ServeError {
    #[error("cannot listen at `{}`", path.display())]
    Listen {
        path: PathBuf,
        source: EndpointError,
    },
    #[error("cannot wait for connections")]
    Wait { source: io::Error },
    #[error("cannot tell the service manager")]
    Notify { source: io::Error },
    #[error("a task of the service itself has failed")]
    Task { source: JoinError },
}

/// A socket at which nobody is let in yet: whoever connects waits.
///
/// To be had before anything else of the state directory is touched: nobody has a second one, and so a
/// supervisor that is started by mistake sweeps nothing away from the first.
#[derive(Debug)]
pub struct Door {
    listener: std::os::unix::net::UnixListener,
    endpoint: Endpoint,
}

impl Door {
    /// Listens.
    ///
    /// # Errors
    /// [`ServeError::Listen`], when a supervisor listens there already for one.
    pub fn open(settings: &Settings) -> Result<Self, ServeError> {
        let begun = Instant::now();
        loop {
            match Endpoint::listen(&settings.socket, settings.access) {
                Ok((listener, endpoint)) => return Ok(Self { listener, endpoint }),
                // A child of one that was killed has its descriptors until it executes runsc.
                Err(EndpointError::Listening { .. }) if begun.elapsed() < HEIRS => {
                    thread::sleep(Duration::from_millis(20));
                }
                Err(source) => {
                    return Err(ServeError::Listen {
                        path: settings.socket.clone(),
                        source,
                    });
                }
            }
        }
    }
}

/// What every connection shares.
#[derive(Debug)]
struct Shared {
    access: Access,
    sandboxes: Sandboxes,
    pool: Pool,
    known: Known,
    maxima: Maxima,
    connections: Arc<Slots>,
    /// Connections beyond these, for root to look and to drain.
    kept: Arc<Slots>,
    jobs: Arc<Slots>,
    /// Jobs that have ended, and whose sandboxes are still being cleared away.
    clearing: Arc<Slots>,
    /// Jobs as their clients see them: from the announcement until the last byte was sent.
    exchanges: Arc<Slots>,
    figures: Figures,
    journal: Journal,
    stop: Stop,
}

/// Serves until it is told to end, and nothing is left of the last job.
///
/// # Errors
/// [`ServeError`] when it cannot begin to, or not go on.
pub async fn serve(
    door: Door,
    settings: Settings,
    host: Host,
    stop: Stop,
) -> Result<(), ServeError> {
    let ended = let_in(door, settings, host, stop).await;
    journal::flush();
    ended
}

async fn let_in(door: Door, settings: Settings, host: Host, stop: Stop) -> Result<(), ServeError> {
    let Door { listener, endpoint } = door;
    let listener =
        UnixListener::from_std(listener).map_err(|source| ServeError::Wait { source })?;
    let state_dir = host.state_dir.clone();
    let shared = Arc::new(Shared::new(&settings, host, stop));
    let mut tasks = JoinSet::new();
    tasks.spawn(listen::accept(listener, Arc::clone(&shared)));
    tasks.spawn(sweep(state_dir, Arc::clone(&shared)));
    tasks.spawn(tell(Arc::clone(&shared)));
    tasks.spawn(live());
    notify::ready(&shared.status()).map_err(|source| ServeError::Notify { source })?;
    shared.report_begin(&settings);
    let failed = tokio::select! {
        () = shared.stop.draining.cancelled() => None,
        error = failure(&mut tasks) => Some(error),
    };
    if let Some(error) = &failed {
        journal::error(&format!("a task of the service itself has failed: {error}"));
        shared.stop.now();
    }
    shared.end().await;
    // Nobody is to connect to what does not listen any more.
    drop(endpoint);
    drop(tasks);
    journal::info("ended");
    failed.map_or(Ok(()), |source| Err(ServeError::Task { source }))
}

/// Waits until one of these tasks has not just ended, but failed.
async fn failure(tasks: &mut JoinSet<()>) -> JoinError {
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            return error;
        }
    }
    future::pending().await
}

impl Shared {
    fn new(settings: &Settings, host: Host, stop: Stop) -> Self {
        Self {
            access: settings.access,
            sandboxes: host.sandboxes,
            pool: host.pool,
            known: Known::new(host.images),
            maxima: host.maxima,
            connections: Slots::new(settings.connections),
            kept: Slots::new(Caps {
                all: Settings::KEPT_FOR_ROOT,
                per_user: Settings::KEPT_FOR_ROOT,
            }),
            jobs: Slots::new(settings.jobs),
            clearing: Slots::new(settings.jobs),
            exchanges: Slots::new(settings.connections),
            figures: Figures::new(),
            journal: Journal::default(),
            stop,
        }
    }

    fn report_begin(&self, settings: &Settings) {
        let swept = self.sandboxes.swept();
        for left in &swept.left {
            journal::error(&one_line(left));
        }
        if !swept.removed.is_empty() {
            journal::warn(&format!(
                "cleared away what killed processes had left: {}",
                swept.removed.join(", ")
            ));
        }
        let who = match settings.access {
            Access::Root => "root alone".to_owned(),
            Access::Group(gid) => format!("root and the group {gid}"),
        };
        journal::info(&format!(
            "listening at `{}` for {who}; {} jobs at once, {} of one user",
            settings.socket.display(),
            settings.jobs.all,
            settings.jobs.per_user
        ));
    }

    /// Waits for the last job and its client; not as long once it is to be now.
    async fn end(&self) {
        journal::info(&format!(
            "draining: no more jobs are taken, {} run",
            self.jobs.taken()
        ));
        self.told(notify::stopping(&self.status()));
        let all_ended = async {
            tokio::join!(self.jobs.emptied(), self.pool.drain());
            self.clearing.emptied().await;
            if timeout(LAST_WORDS, self.exchanges.emptied()).await.is_err() {
                journal::warn("some clients have not taken what their jobs left");
            }
        };
        tokio::select! {
            () = all_ended => {}
            () = self.stop.now.cancelled() => self.end_now().await,
        }
    }

    async fn end_now(&self) {
        let running = self.jobs.taken();
        if running > 0 {
            journal::warn(&format!("{running} jobs are cancelled"));
        }
        let all_killed = async {
            tokio::join!(self.jobs.emptied(), self.pool.drain());
            self.clearing.emptied().await;
        };
        if timeout(LAST_KILLS, all_killed).await.is_err() {
            journal::error("some sandboxes are not cleared away: the next start does it");
        }
        // Whoever does not listen has not lost more than its job.
        drop(timeout(LAST_NEWS, self.exchanges.emptied()).await);
    }

    fn stats(&self) -> Stats {
        let pools = self.pool.stats();
        let waiting = pools.iter().map(|pool| pool.ready + pool.starting);
        let running = self.jobs.taken() as u64;
        Stats {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: milliseconds(self.figures.uptime()),
            draining: self.stop.is_draining(),
            connections: (self.connections.taken() + self.kept.taken()) as u64,
            running,
            max_jobs: self.jobs.all() as u64,
            ended: self.figures.ended(),
            busy: self.figures.busy(),
            alive: running + self.clearing.taken() as u64 + waiting.sum::<u64>(),
            swept: self.sandboxes.swept().removed.len() as u64,
            kill: self.figures.kills(),
            pool_budget_bytes: self.pool.budget_bytes(),
            pool_bytes: self.pool.bytes(),
            pools,
        }
    }

    /// One line for the service manager.
    fn status(&self) -> String {
        let ready: u64 = self.pool.stats().iter().map(|pool| pool.ready).sum();
        let doing = if self.stop.is_draining() {
            "draining: "
        } else {
            ""
        };
        let (running, all) = (self.jobs.taken(), self.jobs.all());
        format!("{doing}{running} of {all} jobs run, {ready} sandboxes ready")
    }

    fn told(&self, told: io::Result<()>) {
        if let Err(error) = told {
            self.journal
                .caused(|| format!("cannot tell the service manager: {error}"));
        }
    }
}

/// Clears away, again and again, what could not be cleared away.
async fn sweep(state_dir: PathBuf, shared: Arc<Shared>) {
    let mut known: BTreeSet<_> = left(shared.sandboxes.swept());
    let mut ticks = interval(SWEEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let state_dir = state_dir.clone();
        let swept = tokio::task::spawn_blocking(move || sandbox::sweep(&state_dir)).await;
        match swept {
            Ok(Ok(swept)) => {
                for id in &swept.removed {
                    journal::info(&format!("cleared away `{id}`"));
                }
                for left in swept.left.iter().filter(|left| !known.contains(&left.id)) {
                    journal::error(&one_line(left));
                }
                known = left(&swept);
            }
            Ok(Err(error)) => journal::error(&one_line(&error)),
            Err(error) => journal::error(&one_line(&error)),
        }
    }
}

/// Names of what could not be removed.
fn left(swept: &sandbox::Swept) -> BTreeSet<String> {
    swept.left.iter().map(|left| left.id.clone()).collect()
}

/// Tells the service manager how the service stands, when that has changed.
async fn tell(shared: Arc<Shared>) {
    let mut last = String::new();
    let mut ticks = interval(STATUS);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let status = shared.status();
        // After the end has begun, its own line stands.
        if status != last && !shared.stop.is_draining() {
            shared.told(notify::status(&status));
            last = status;
        }
    }
}

/// Tells the service manager that tasks are run here, as long as they are.
async fn live() {
    let Some(every) = notify::watchdog_interval() else {
        return;
    };
    let mut ticks = interval(every);
    loop {
        ticks.tick().await;
        // A service manager that does not hear it acts on that.
        drop(notify::alive());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_is_noticed_and_one_that_ends_is_not() {
        let mut tasks = JoinSet::new();
        tasks.spawn(async {});
        let unnoticed = timeout(Duration::from_millis(50), failure(&mut tasks)).await;
        assert!(unnoticed.is_err());
        tasks.spawn(future::pending());
        tasks.spawn(async { panic!("on purpose") });
        assert!(failure(&mut tasks).await.is_panic());
    }
}
