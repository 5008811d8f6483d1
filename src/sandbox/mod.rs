//! One sandbox, from its bundle until nothing of it is left.
//!
//! ```text
//! start ──> ready ──> job handed over ──> running ──> exit ──> files collected ──> done
//!   │         │              │               │          │             │             │
//!   └─────────┴──────────────┴───────┬───────┴──────────┴─────────────┴─────────────┘
//!                                    v
//!              killed (cgroup empty) ──> counted ──> removed
//! ```
//!
//! Every way leads through the same teardown: freeze the cgroup, kill all that is in it, prove it
//! empty, read its counters, remove it and the sandbox's directory. The runtime has no part in that. All
//! that comes from the guest is untrusted and goes through the bounded frame decoder.

mod attend;
mod confinement;
mod guest;
mod probe;
mod ready;
mod record;
mod runtime;
mod selftest;
mod spool;
mod start;
mod step;
mod sweep;

pub use attend::Event;
pub use probe::{ProbeError, probe};
pub use ready::{CheckpointError, Finished, Ready};
pub use runtime::Runtime;
pub use selftest::{SelfTestError, SelfTests};
pub use spool::SpoolDirectory;
pub use step::Step;
pub use sweep::{Left, Swept, orphans, strangers, sweep};

use crate::bundle::{self, BundleError, Isolation, seccomp};
use crate::job::{JobSpec, Limits, Outcome, Phase, ResourceUsage, Start, Timing, milliseconds};
use crate::runsc::Places;
use crate::sys::cgroup::{CgroupError, Hierarchies, Urgency};
use crate::sys::held::Registry;
use crate::sys::mount::{self, MountError};
use crate::sys::place::PlaceError;
use crate::sys::process;
use crate::sys::processor::{Assigned, Processors};
use attend::Attended;
use jiff::Timestamp;
use start::{Counters, Sandbox};
use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use step::Observer;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// How long after a cancel the last output may take to be taken.
const FLUSH: Duration = Duration::from_secs(1);

/// Our own failures. How a job ends is never one of them.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
pub enum SandboxError {
    #[error("cannot use the seccomp profile")]
    Seccomp(#[source] seccomp::SeccompError),
    #[error("cannot make the sandbox's cgroup")]
    Cgroup(#[source] CgroupError),
    #[error("cannot make the sandbox's bundle")]
    Bundle(#[source] BundleError),
    #[error("cannot make a directory for the sandbox")]
    Directory(#[source] PlaceError),
    #[error("cannot look for what killed processes have left")]
    Sweep(#[source] PlaceError),
    #[error("cannot mount the root file system of a container")]
    Mount(#[source] MountError),
    #[error("cannot start `{runtime}`")]
    Start {
        runtime: &'static str,
        source: io::Error,
    },
    #[error("cannot become the parent of orphans")]
    Subreaper { source: io::Error },
    #[error("a sandbox was not ready to take a job: {why}")]
    NotReady { why: String },
    #[error("cannot freeze or thaw the sandbox `{id}`")]
    Freezer { id: String, source: CgroupError },
    #[error("cannot clear the sandbox `{id}` away")]
    Teardown { id: String, source: TeardownError },
}

/// What of a sandbox could not be cleared away.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
pub enum TeardownError {
    #[error("its processes may be alive")]
    Kill(#[source] CgroupError),
    #[error("its counters cannot be read")]
    Counters(#[source] CgroupError),
    #[error("its cgroup is left")]
    Cgroup(#[source] CgroupError),
    #[error("its directory is left")]
    Directory(#[source] PlaceError),
    #[error("the task that clears it away did not end")]
    Task(#[source] tokio::task::JoinError),
}

/// What every sandbox of this host shares.
#[derive(Debug, Clone)]
pub struct Sandboxes {
    records: Registry,
    spools: Registry,
    hierarchies: Hierarchies,
    seccomp: oci_spec::runtime::LinuxSeccomp,
    runtime: Runtime,
    swept: Arc<Swept>,
    observer: Observer,
    processors: Processors,
}

/// Since when a program may begin whose job was handed over before it was to begin.
pub type Word = watch::Receiver<Option<Instant>>;

/// One job to run.
#[derive(Debug)]
pub struct Order<'a> {
    /// The EROFS file of a verified executor image.
    pub image: &'a Path,
    /// What to run.
    pub job: &'a JobSpec,
    /// Takes the bytes of collected files.
    pub spool: &'a SpoolDirectory,
    /// Takes output as it comes. A slow receiver slows the program down, not its deadlines.
    pub events: Option<mpsc::Sender<Event>>,
    /// The program begins with this, and at once without it.
    pub begin: Option<Word>,
    /// Ends the job at once.
    pub cancel: CancellationToken,
}

impl Sandboxes {
    /// Checks and prepares what all sandboxes share: the seccomp profile and the cgroup hierarchies.
    /// Makes this process the parent of its orphans, and clears away what processes that were killed
    /// have left in `state_dir`.
    ///
    /// What cannot be cleared away is in [`Sandboxes::swept`] and does not stop a start: it has another
    /// name and another cgroup than any new sandbox, and one process that not even SIGKILL ends would
    /// otherwise stop the whole host.
    ///
    /// # Errors
    /// When any control could not be applied to a sandbox later on, or the state directory cannot be
    /// read.
    pub fn prepare(state_dir: &Path, runtime: impl Into<Runtime>) -> Result<Self, SandboxError> {
        let mut prepared = Self::prepare_without_sweep(state_dir, runtime)?;
        prepared.swept = Arc::new(sweep::sweep_with(state_dir, &prepared.hierarchies)?);
        Ok(prepared)
    }

    /// Like [`Sandboxes::prepare`], but leaves what killed processes have left where it is.
    ///
    /// # Errors
    /// When any control could not be applied to a sandbox later on.
    pub fn prepare_without_sweep(
        state_dir: &Path,
        runtime: impl Into<Runtime>,
    ) -> Result<Self, SandboxError> {
        let seccomp = seccomp::load().map_err(SandboxError::Seccomp)?;
        let hierarchies = Hierarchies::prepare().map_err(SandboxError::Cgroup)?;
        process::become_subreaper().map_err(|source| SandboxError::Subreaper { source })?;
        Ok(Self {
            records: record::records(state_dir),
            spools: record::spools(state_dir),
            hierarchies,
            seccomp,
            runtime: runtime.into(),
            swept: Arc::default(),
            observer: Observer::default(),
            // Without a list of them a sandbox runs on any.
            processors: Processors::of_this_thread().unwrap_or_default(),
        })
    }

    /// What runs them.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// What was cleared away when this was made, and what could not be.
    pub fn swept(&self) -> &Swept {
        &self.swept
    }

    /// All that a sandbox of this image with these limits is started with, as text, but for what is new
    /// with each: its name, and the paths below the state directory. A checkpoint fits where this is
    /// the same.
    ///
    /// # Errors
    /// [`SandboxError::Bundle`].
    pub fn shape(&self, image: &Path, limits: &Limits) -> Result<String, SandboxError> {
        let spec = specification(self, image, limits, "/", 0).map_err(SandboxError::Bundle)?;
        let mut text = match &self.runtime {
            // With every flag.
            Runtime::Gvisor(runsc) => {
                let nowhere = Path::new("/");
                format!("{:?}\n", runsc.run(&Places::below(nowhere), nowhere, "id"))
            }
            Runtime::Container(runc) => format!("{runc:?}\n"),
        };
        // oci-spec keeps sets of capabilities in no order: a map of JSON values is sorted.
        let value = serde_json::to_value(&spec)
            .map_err(|source| SandboxError::Bundle(BundleError::Encode { source }))?;
        write_sorted(&value, &mut text);
        Ok(text)
    }

    /// Tells `observe` of each step of each sandbox, with its id, where it is made: the sandbox waits
    /// until it returns.
    #[must_use]
    pub fn observed(mut self, observe: impl Fn(&str, Step) + Send + Sync + 'static) -> Self {
        self.observer = Observer::new(observe);
        self
    }

    /// A place for the files that one job leaves.
    pub fn spool(&self) -> SpoolDirectory {
        SpoolDirectory::new(self.spools.clone())
    }

    /// Runs a job in a sandbox of its own, of which nothing is left afterwards.
    ///
    /// # Errors
    /// [`SandboxError`] when the sandbox could not be made, or not be cleared away.
    pub async fn run(&self, order: Order<'_>) -> Result<Outcome, SandboxError> {
        let span = self.span(Start::Cold, None);
        let mut sandbox = self.start(order.image, &order.job.limits, Urgency::Job)?;
        // The sandbox exists: no `?` from here until it is gone.
        let attended = attend::attend(&mut sandbox, &order).await;
        let span = span.of(&sandbox);
        let counters = clear(sandbox).await?;
        Ok(conclude(span, attended, &counters, &order).await)
    }

    fn start(
        &self,
        image: &Path,
        limits: &Limits,
        urgency: Urgency,
    ) -> Result<Sandbox, SandboxError> {
        process::blocking(|| Sandbox::start(self, image, limits, urgency))
    }

    /// The processor of a sandbox with these limits.
    ///
    /// A container has no sentry to take turns with.
    fn processor_for(&self, limits: &Limits) -> Option<Assigned> {
        match self.runtime {
            Runtime::Gvisor(_) if limits.millicpus <= Limits::ONE_CPU => self.processors.assign(),
            _ => None,
        }
    }

    fn span(&self, start: Start, asked: Option<Instant>) -> Span {
        let ago = asked.map_or(Duration::ZERO, |asked| asked.elapsed());
        Span {
            id: String::new(),
            runtime: self.runtime.name(),
            start,
            begun: asked.unwrap_or_else(Instant::now),
            started_at: Timestamp::now() - ago,
        }
    }
}

/// Sends what nobody has taken yet. The sandbox is gone: a slow receiver holds up nobody but itself,
/// and a cancel ends that too.
async fn flush(events: &mpsc::Sender<Event>, pending: VecDeque<Event>, cancel: &CancellationToken) {
    let send_all = async {
        for event in pending {
            if events.send(event).await.is_err() {
                return;
            }
        }
    };
    let impatient = async {
        cancel.cancelled().await;
        tokio::time::sleep(FLUSH).await;
    };
    tokio::select! {
        () = send_all => {}
        () = impatient => {}
    }
}

async fn clear(sandbox: Sandbox) -> Result<Counters, SandboxError> {
    let id = sandbox.id().to_owned();
    sandbox
        .teardown()
        .await
        .map_err(|source| SandboxError::Teardown { id, source })
}

/// Whose outcome it is, and since when.
struct Span {
    id: String,
    runtime: &'static str,
    start: Start,
    begun: Instant,
    started_at: Timestamp,
}

impl Span {
    fn of(self, sandbox: &Sandbox) -> Self {
        Self {
            id: sandbox.id().to_owned(),
            ..self
        }
    }

    /// While a job was held, nobody wanted it yet.
    fn since(self, word: Option<&Word>) -> Self {
        let said = word.and_then(|word| *word.borrow());
        let held = said.map_or(Duration::ZERO, |said| {
            said.saturating_duration_since(self.begun)
        });
        Self {
            begun: self.begun + held,
            started_at: self.started_at + held,
            ..self
        }
    }
}

/// The outcome; what nobody has taken yet of the output is sent before.
async fn conclude(
    span: Span,
    attended: Attended,
    counters: &Counters,
    order: &Order<'_>,
) -> Outcome {
    let span = span.since(order.begin.as_ref());
    let (outcome, pending) = outcome(span, attended, counters);
    if let Some(events) = &order.events {
        flush(events, pending, &order.cancel).await;
    }
    outcome
}

fn outcome(span: Span, attended: Attended, counters: &Counters) -> (Outcome, VecDeque<Event>) {
    let total_ms = milliseconds(span.begun.elapsed());
    let mut evidence = attended.evidence;
    evidence.oom_kills = counters.oom_kills;
    let termination = evidence.verdict();
    let reached = match attended.startup_ms {
        None => Phase::Startup,
        Some(_) => Phase::Execution,
    };
    let timing = Timing {
        start: span.start,
        sandbox_ms: (attended.ready_at).map_or(total_ms, |ready| {
            milliseconds(ready.saturating_duration_since(span.begun))
        }),
        startup_ms: attended.startup_ms,
        dep_install_ms: None,
        execution_ms: attended.execution_ms,
        total_ms,
        phase_at_exit: termination.phase_at_exit(reached),
    };
    #[expect(clippy::cast_precision_loss, reason = "a figure for people, in MiB")]
    let max_rss_mb = counters.memory_peak as f64 / f64::from(1 << 20);
    let usage = ResourceUsage {
        max_rss_mb: (max_rss_mb * 10.0).round() / 10.0,
        cpu_time_ms: milliseconds(counters.cpu_time),
        wall_time_ms: total_ms,
        oom_kills: counters.oom_kills,
    };
    let outcome = Outcome {
        id: span.id,
        runtime: span.runtime.into(),
        termination,
        exception: attended.exception,
        stdout: attended.stdout,
        stderr: attended.stderr,
        artifacts_truncated: attended.files.truncated,
        artifacts_skipped: attended.files.skipped,
        artifacts: attended.files.collected,
        started_at: span.started_at,
        ended_at: Timestamp::now(),
        timing,
        usage,
        kill_time: counters.kill_time,
    };
    (outcome, attended.pending)
}

/// The specification of a sandbox around `image`.
fn specification(
    shared: &Sandboxes,
    image: &Path,
    limits: &Limits,
    cgroups_path: &str,
    first_id: u32,
) -> Result<oci_spec::runtime::Spec, BundleError> {
    let isolation = match &shared.runtime {
        Runtime::Gvisor(_) => Isolation::Gvisor {
            image: image.to_owned(),
        },
        Runtime::Container(_) => Isolation::Container {
            root: mount::POINT.into(),
            first_id,
        },
    };
    bundle::spec(&bundle::Profile {
        isolation,
        init: tako_guest::INIT_PATH,
        cgroups_path: cgroups_path.to_owned(),
        limits: limits.clone(),
        seccomp: shared.seccomp.clone(),
    })
}

/// Writes a value with the elements of every list in the order of their own text.
fn write_sorted(value: &serde_json::Value, text: &mut String) {
    match value {
        serde_json::Value::Array(elements) => {
            let mut parts: Vec<String> = elements
                .iter()
                .map(|element| {
                    let mut part = String::new();
                    write_sorted(element, &mut part);
                    part
                })
                .collect();
            parts.sort();
            text.push('[');
            text.push_str(&parts.join(","));
            text.push(']');
        }
        serde_json::Value::Object(fields) => {
            text.push('{');
            for (name, field) in fields {
                text.push_str(name);
                text.push(':');
                write_sorted(field, text);
                text.push(',');
            }
            text.push('}');
        }
        other => text.push_str(&other.to_string()),
    }
}
