//! Whether the controls hold on this host, found by trying to get past them.
//!
//! Each test runs a program of ours in a sandbox of its own, made as for every job, and believes what
//! the kernel says of it from outside.

use super::attend::{self, Attended};
use super::start::Counters;
use super::{Event, Order, Runtime, SandboxError, Sandboxes, clear};
use crate::job::{JobRequest, JobSpec, Killed, Maxima, Phase, SpecError, Termination};
use crate::sys::cgroup::{CgroupError, InForce, Outside, Urgency};
use crate::sys::process::PidFd;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// What did not hold, or why that is not known.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
pub enum SelfTestError {
    #[error("cannot make a sandbox to try out")]
    Sandbox(#[source] SandboxError),
    #[error("cannot make a job to try out")]
    Job(#[source] SpecError),
    #[error("it was given up, since it took too long")]
    Cancelled,
    #[error("its program ended otherwise than it must: {found}")]
    Otherwise { found: String },
    #[error("the sandbox granted what the seccomp profile denies: {calls}")]
    Granted { calls: String },
    #[error("{what} is {found} and not {wanted}")]
    NotHeld {
        what: &'static str,
        wanted: u64,
        found: String,
    },
    #[error("cannot read the limits that are in force")]
    Limits(#[source] CgroupError),
    #[error("cannot stop the sandbox")]
    Stop { source: io::Error },
    #[error("a stopped sandbox was dead {took:?} after its limit, and not within {within:?}")]
    Outlived { took: Duration, within: Duration },
    #[error("the kernel counted no out-of-memory kill: the program ended with {found}")]
    NotCounted { found: String },
}

/// Makes calls that gVisor itself would grant to anybody, and prints those that are not refused.
const CALLS: &str = "
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
calls = {
    'unshare': lambda: libc.unshare(0x10000000),
    'personality': lambda: libc.personality(0xffffffff),
    'process_vm_readv': lambda: libc.process_vm_readv(os.getpid(), None, 0, None, 0, 0),
}
for name, call in calls.items():
    if call() != -1 or ctypes.get_errno() != errno.EPERM:
        print(name)
";

/// How many calls [`CALLS`] makes.
const CALLS_MADE: usize = 3;

/// Prints its limits as it sees them: bytes of memory, processes, open files. Stays until they have been
/// looked at from outside as well.
const LIMITS: &str = "
import resource, time
print(int(open('/proc/meminfo').readline().split()[1]) << 10)
print(resource.getrlimit(resource.RLIMIT_NPROC)[0])
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], flush=True)
time.sleep(0.5)
";

/// Says that it is up, and stays.
const ENDLESS: &str = "
import time
print('up', flush=True)
time.sleep(1000)
";

/// Takes memory until the kernel ends it.
const GREEDY: &str = "
held = []
while True:
    held.append(bytearray(1 << 20))
";

/// The execution limit of the sandbox that is stopped.
const SHORT: Duration = Duration::from_millis(500);

/// From the limit of a sandbox that does not react until everything in it is dead: 3 s for the host's
/// backstop, and one to kill on a host that is out of breath.
const DEAD_WITHIN: Duration = Duration::from_secs(4);

/// The host's own patience before it kills: whatever was dead before that died by itself.
const NOT_BEFORE: Duration = Duration::from_millis(2500);

/// How far the peak of the memory may lie above its limit: the kernel charges what it cannot refuse,
/// such as what a process needs to die. Seen was one page.
const OVERSHOOT: u64 = 1 << 20;

/// Tests that run in sandboxes of this host, one each.
#[derive(Debug, Clone)]
pub struct SelfTests {
    /// What sandboxes are made of.
    pub sandboxes: Sandboxes,
    /// The EROFS file of a verified executor image.
    pub image: PathBuf,
    /// Ends every test at once.
    pub cancel: CancellationToken,
}

/// One test's sandbox, after it is gone.
struct Tried {
    attended: Attended,
    counters: Counters,
    gone: Instant,
}

impl Tried {
    fn verdict(&self) -> Termination {
        let mut evidence = self.attended.evidence.clone();
        evidence.oom_kills = self.counters.oom_kills;
        evidence.verdict()
    }

    /// What the program printed, which ended by itself with 0.
    fn printed(&self) -> Result<String, SelfTestError> {
        match self.verdict() {
            Termination::Exited(0) => {
                Ok(String::from_utf8_lossy(&self.attended.stdout.bytes).into_owned())
            }
            found => Err(self.otherwise(found)),
        }
    }

    fn otherwise(&self, found: Termination) -> SelfTestError {
        match found {
            Termination::Cancelled => SelfTestError::Cancelled,
            Termination::SandboxLost(found) => SelfTestError::Otherwise { found },
            found => {
                let said = String::from_utf8_lossy(&self.attended.stderr.bytes);
                let found = format!("{found:?} {said}");
                SelfTestError::Otherwise { found }
            }
        }
    }
}

impl SelfTests {
    /// System calls that the seccomp profile denies are denied inside.
    ///
    /// # Errors
    /// [`SelfTestError::Granted`] names those that are not.
    pub async fn denied_call(&self) -> Result<String, SelfTestError> {
        let tried = self.run(&job(CALLS, |_| ())?).await?;
        let granted = tried.printed()?;
        if !granted.is_empty() {
            let calls = granted.split_whitespace().collect::<Vec<_>>().join(", ");
            return Err(SelfTestError::Granted { calls });
        }
        Ok(format!(
            "{CALLS_MADE} of {CALLS_MADE} calls refused with EPERM"
        ))
    }

    /// The limits of a sandbox are in force, read back from the kernel and seen from inside.
    ///
    /// # Errors
    /// [`SelfTestError::NotHeld`] names one that is not.
    pub async fn limits(&self) -> Result<String, SelfTestError> {
        let job = job(LIMITS, |request| {
            request.memory_bytes = Some(96 << 20);
            request.millicpus = Some(700);
        })?;
        let read = async |outside: Outside| outside.limits();
        let (tried, held) = self.run_with(&job, read).await?;
        let printed = tried.printed()?;
        let held: InForce = held.map_err(SelfTestError::Limits)?;
        let limits = &job.limits;
        is("the memory limit", held.memory_bytes, limits.memory_bytes)?;
        is("the process limit", held.pids, limits.host_processes())?;
        is("the CPU limit", held.millicpus, limits.millicpus.into())?;
        let mut inside = printed.lines().map(|line| line.parse::<u64>().ok());
        let mut seen = || inside.next().flatten();
        let memory = seen();
        let gvisor = matches!(self.sandboxes.runtime, Runtime::Gvisor(_));
        // A container is shown the memory of the host.
        if gvisor {
            is("the memory seen inside", memory, limits.memory_bytes)?;
        }
        is("the process limit inside", seen(), limits.processes.into())?;
        is(
            "the limit of open files inside",
            seen(),
            limits.open_files.into(),
        )?;
        Ok(format!(
            "memory, processes and CPU outside; {}processes and open files inside",
            if gvisor { "memory, " } else { "" }
        ))
    }

    /// A sandbox in which nothing runs any more, the sentry included, is dead in time.
    ///
    /// # Errors
    /// [`SelfTestError::Outlived`].
    pub async fn backstop(&self) -> Result<String, SelfTestError> {
        let mut job = job(ENDLESS, |_| ())?;
        job.limits.execution = SHORT;
        let (tried, stopped) = self.run_with(&job, async |outside| stop(&outside)).await?;
        match tried.verdict() {
            Termination::TimedOut(Phase::Execution) => {}
            found => return Err(tried.otherwise(found)),
        }
        let stopped = stopped.map_err(|source| SelfTestError::Stop { source })?;
        let took = tried.gone.duration_since(stopped).saturating_sub(SHORT);
        // Had init ended it, it would have been quicker, and have said so.
        let by_us = tried.attended.evidence.killed == Some(Killed::Deadline(Phase::Execution))
            && tried.attended.evidence.ending.is_none();
        if !by_us || !(NOT_BEFORE..=DEAD_WITHIN).contains(&took) {
            return Err(SelfTestError::Outlived {
                took,
                within: DEAD_WITHIN,
            });
        }
        Ok(format!(
            "a stopped sandbox was dead {:.1} s after its limit, {} ms after the kill began",
            took.as_secs_f64(),
            tried.counters.kill_time.as_millis()
        ))
    }

    /// A program that takes more memory than it may is ended by the kernel, who counts it.
    ///
    /// # Errors
    /// [`SelfTestError::NotCounted`].
    pub async fn out_of_memory(&self) -> Result<String, SelfTestError> {
        let job = job(GREEDY, |request| request.memory_bytes = Some(64 << 20))?;
        let tried = self.run(&job).await?;
        let (kills, peak) = (tried.counters.oom_kills, tried.counters.memory_peak);
        match tried.verdict() {
            Termination::OutOfMemory if peak <= job.limits.memory_bytes + OVERSHOOT => Ok(format!(
                "{kills} counted at {} MiB of {}",
                peak >> 20,
                job.limits.memory_bytes >> 20
            )),
            Termination::OutOfMemory => Err(SelfTestError::NotHeld {
                what: "the peak of the memory",
                wanted: job.limits.memory_bytes,
                found: peak.to_string(),
            }),
            Termination::Cancelled => Err(SelfTestError::Cancelled),
            found => Err(SelfTestError::NotCounted {
                found: format!("{found:?}"),
            }),
        }
    }

    async fn run(&self, job: &JobSpec) -> Result<Tried, SelfTestError> {
        let met = self.run_with(job, async |_| ()).await;
        met.map(|(tried, ())| tried)
    }

    /// Runs a job, and meddles with it from outside as soon as its program prints something.
    async fn run_with<T>(
        &self,
        job: &JobSpec,
        meddle: impl AsyncFnOnce(Outside) -> T,
    ) -> Result<(Tried, T), SelfTestError> {
        let spool = self.sandboxes.spool();
        let (sender, mut events) = mpsc::channel::<Event>(16);
        let order = Order {
            image: &self.image,
            job,
            spool: &spool,
            events: Some(sender),
            begin: None,
            cancel: self.cancel.clone(),
        };
        let mut sandbox = self
            .sandboxes
            .start(order.image, &job.limits, Urgency::Job)
            .map_err(SelfTestError::Sandbox)?;
        // The sandbox exists: no `?` from here until it is gone.
        let outside = sandbox.outside();
        let attending = async {
            let attended = attend::attend(&mut sandbox, &order).await;
            // Nothing more is to come for whoever waits for events.
            drop(order);
            attended
        };
        let meddling = async {
            events.recv().await;
            meddle(outside).await
        };
        let (attended, met) = tokio::join!(attending, meddling);
        let counters = clear(sandbox).await.map_err(SelfTestError::Sandbox)?;
        let tried = Tried {
            attended,
            counters,
            gone: Instant::now(),
        };
        Ok((tried, met))
    }
}

fn job(code: &str, adapt: impl FnOnce(&mut JobRequest)) -> Result<JobSpec, SelfTestError> {
    let mut request = JobRequest {
        code: code.to_owned(),
        timeout: Some(Duration::from_secs(5)),
        startup_timeout: Some(Duration::from_secs(5)),
        ..JobRequest::default()
    };
    adapt(&mut request);
    JobSpec::check(request, &Maxima::default()).map_err(SelfTestError::Job)
}

/// Stops every process of a cgroup: from then on nobody inside can help. Gives the moment.
fn stop(outside: &Outside) -> io::Result<Instant> {
    for pid in outside.processes().map_err(io::Error::other)? {
        PidFd::open(pid)?.stop()?;
    }
    Ok(Instant::now())
}

fn is(what: &'static str, found: Option<u64>, wanted: u64) -> Result<(), SelfTestError> {
    if found == Some(wanted) {
        return Ok(());
    }
    let found = found.map_or_else(|| "missing".to_owned(), |number| number.to_string());
    Err(SelfTestError::NotHeld {
        what,
        wanted,
        found,
    })
}
