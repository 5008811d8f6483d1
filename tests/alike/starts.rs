//! Starting a job in every way that there is.

use crate::host::{Ran, assert_gone, names_in, runtime, runtime_binary, state_dir};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tako_vm::image::Images;
use tako_vm::job::{JobSpec, Limits, Outcome, Start, Termination};
use tako_vm::sandbox::{Finished, Order, Ready, Sandboxes};
use tako_vm::sys::cgroup::Urgency;
use tempfile::TempDir;
use tokio::sync::{OnceCell, Semaphore};
use tokio_util::sync::CancellationToken;

/// How the sandbox of a job comes about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Cold,
    Warm,
    /// Warm, and frozen for a while before the job came.
    Thawed,
    Restored,
}

impl Way {
    pub(crate) const ALL: [Self; 4] = [Self::Cold, Self::Warm, Self::Thawed, Self::Restored];
}

impl fmt::Display for Way {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, formatter)
    }
}

/// As many sandboxes at a time as this has permits, so that what is measured or limited in time is not
/// that of a crowd.
pub(crate) static ROOM: Semaphore = Semaphore::const_new(3);

/// The one checkpoint of each image, made by whoever needs it first.
static PYTHON: OnceCell<PathBuf> = OnceCell::const_new();
static DATA: OnceCell<PathBuf> = OnceCell::const_new();

/// Sandboxes of one image, with a directory of the test's own for their records.
pub(crate) struct Starts {
    name: &'static str,
    checkpoint: &'static OnceCell<PathBuf>,
    directory: TempDir,
    pub(crate) image: PathBuf,
    pub(crate) sandboxes: Sandboxes,
}

impl Starts {
    pub(crate) fn python() -> Self {
        Self::of("python", &PYTHON, &runtime_binary())
    }

    pub(crate) fn data() -> Self {
        Self::of("data", &DATA, &runtime_binary())
    }

    /// With another binary in the place of the runtime.
    pub(crate) fn with_runtime(binary: &Path) -> Self {
        Self::of("python", &PYTHON, binary)
    }

    fn of(name: &'static str, checkpoint: &'static OnceCell<PathBuf>, binary: &Path) -> Self {
        let image = Images::at(&state_dir())
            .find(name)
            .expect("the state directory has both executor images: run `make test`");
        let directory = tempfile::Builder::new()
            .prefix("tako-vm-test-")
            .tempdir()
            .unwrap();
        Self {
            name,
            checkpoint,
            sandboxes: Sandboxes::prepare(directory.path(), runtime(binary)).unwrap(),
            directory,
            image: image.path,
        }
    }

    pub(crate) async fn ready(&self) -> Ready {
        self.sandboxes
            .ready(&self.image, &Limits::default(), Urgency::Refill)
            .await
            .unwrap()
    }

    pub(crate) async fn restored(&self) -> Ready {
        let checkpoint = self.checkpoint.get_or_init(|| self.checkpoint()).await;
        self.sandboxes
            .restore(&self.image, &Limits::default(), Urgency::Refill, checkpoint)
            .await
            .unwrap()
    }

    /// Where the last run of the tests has left its own, if any.
    async fn checkpoint(&self) -> PathBuf {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("alike-{}", self.name));
        if path.exists() {
            fs::remove_dir_all(&path).unwrap();
        }
        let ready = self.ready().await;
        self.sandboxes.checkpoint(ready, &path).await.unwrap();
        path
    }

    /// Makes a sandbox ready in one of the ways that lead there.
    pub(crate) async fn prepared(&self, way: Way) -> Ready {
        match way {
            Way::Cold => panic!("nothing is prepared for a cold start"),
            Way::Warm => self.ready().await,
            Way::Restored => self.restored().await,
            Way::Thawed => {
                let ready = self.ready().await;
                ready.freeze().unwrap();
                tokio::time::sleep(Duration::from_millis(300)).await;
                ready.thaw().unwrap();
                ready
            }
        }
    }

    /// Runs a job started in this way, and checks that nothing is left of its sandbox.
    pub(crate) async fn run(&self, way: Way, job: &JobSpec) -> Ran {
        self.run_until(way, job, CancellationToken::new()).await
    }

    /// Like [`Starts::run`], with a way to cancel it.
    pub(crate) async fn run_until(
        &self,
        way: Way,
        job: &JobSpec,
        cancel: CancellationToken,
    ) -> Ran {
        let _permit = ROOM.acquire().await.unwrap();
        let ready = match way {
            Way::Cold => None,
            _ => Some(self.prepared(way).await),
        };
        self.run_in(ready, job, cancel).await
    }

    /// Runs a job, in what is ready for it or cold.
    pub(crate) async fn run_in(
        &self,
        ready: Option<Ready>,
        job: &JobSpec,
        cancel: CancellationToken,
    ) -> Ran {
        let spool = self.sandboxes.spool();
        let order = Order {
            image: &self.image,
            job,
            spool: &spool,
            events: None,
            begin: None,
            cancel,
        };
        let begun = Instant::now();
        let outcome = match ready {
            None => self.sandboxes.run(order).await.unwrap(),
            Some(ready) => {
                let start = start(&ready);
                let finished = self.sandboxes.run_in(ready, &order, start).await.unwrap();
                // Who cancels may be quicker than the guest.
                let cancelled = finished.outcome.termination == Termination::Cancelled;
                assert!(!finished.untouched || cancelled, "{:?}", finished.outcome);
                gone(finished).await
            }
        };
        let took = begun.elapsed();
        assert_gone(&outcome.id);
        let read = |artifact: &tako_vm::job::Artifact| {
            (artifact.name.clone(), fs::read(&artifact.path).unwrap())
        };
        Ran {
            files: outcome.artifacts.iter().map(read).collect(),
            outcome,
            took,
        }
    }

    /// Hands a job to a sandbox that may not take it.
    pub(crate) async fn hand_over(&self, ready: Ready, job: &JobSpec) -> Finished {
        let spool = self.sandboxes.spool();
        let order = Order {
            image: &self.image,
            job,
            spool: &spool,
            events: None,
            begin: None,
            cancel: CancellationToken::new(),
        };
        let start = start(&ready);
        self.sandboxes.run_in(ready, &order, start).await.unwrap()
    }

    /// Names of the sandboxes that there are.
    pub(crate) fn names(&self) -> Vec<String> {
        names_in(&self.directory.path().join("sandboxes"))
    }
}

fn start(ready: &Ready) -> Start {
    if ready.is_restored() {
        Start::Restored
    } else {
        Start::Warm
    }
}

/// The outcome of a job once nothing is left of its sandbox.
pub(crate) async fn gone(finished: Finished) -> Outcome {
    finished.clearing.await.unwrap().unwrap();
    finished.outcome
}
