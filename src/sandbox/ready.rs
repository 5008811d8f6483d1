//! A sandbox that waits for its job, with its interpreter started and held.
//!
//! It is made cold, or restored from the checkpoint of another one that had never had a job. Either
//! way it serves one job and is destroyed, as every sandbox: [`Sandboxes::run_in`] takes it by value.

use super::attend::Attended;
use super::start::{Counters, Sandbox};
use super::{Order, Runtime, SandboxError, Sandboxes, attend, clear, conclude};
use crate::job::{JobSpec, Limits, Outcome, Start};
use crate::sys::cgroup::{CgroupError, Urgency};
use crate::sys::process::{self, ProcessError};
use std::any::Any;
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// How long runsc may take to write a checkpoint. It takes 0.1 s, and longer for what has imported
/// much.
const CHECKPOINT: Duration = Duration::from_secs(20);

/// How long whoever waits for a job is let go on before its sandbox is cleared away, in which nothing is left to
/// be done: that keeps processors busy for longer than the job has.
const BREATH: Duration = Duration::from_millis(5);

/// A sandbox that waits for its job.
///
/// Dropped, it is killed and cleared away on the spot; [`Ready::discard`] does so without holding up
/// a thread.
pub struct Ready {
    sandbox: Sandbox,
    since: Instant,
    restored: bool,
    asked: Option<Instant>,
}

/// Why there is no checkpoint.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
pub enum CheckpointError {
    #[error("a container is never checkpointed")]
    Container,
    #[error("runsc does not write it")]
    Write(#[source] ProcessError),
    #[error(transparent)]
    Sandbox(SandboxError),
}

/// A job that has ended.
#[derive(Debug)]
pub struct Finished {
    /// How, and what it left.
    pub outcome: Outcome,
    /// The sandbox never took the job up: nothing of the program has been run.
    pub untouched: bool,
    /// Ends when nothing is left of the sandbox, with the time that killing it took. Dropping it does
    /// not stop that.
    pub clearing: JoinHandle<Result<Duration, SandboxError>>,
}

impl Sandboxes {
    /// Starts a sandbox and lets it hold an interpreter for a job with these limits.
    ///
    /// # Errors
    /// [`SandboxError`]; nothing is left of it then.
    pub async fn ready(
        &self,
        image: &Path,
        limits: &Limits,
        urgency: Urgency,
    ) -> Result<Ready, SandboxError> {
        let mut sandbox = self.start(image, limits, urgency)?;
        let mut held = attend::await_ready(&mut sandbox).await;
        let environment = JobSpec::base_environment();
        if held.is_ok() {
            held = attend::hold(&mut sandbox, &environment).await;
        }
        // The first time gVisor rewrites the place of each system call, in a page that is brought in anew
        // the second time.
        for _ in 0..2 {
            if held.is_ok() {
                held = attend::rehearse(&mut sandbox, &environment).await;
            }
        }
        Ready::new(sandbox, held, limits).await
    }

    /// The same from a checkpoint of such a sandbox, of the same image and limits.
    ///
    /// # Errors
    /// [`SandboxError`]; nothing is left of it then.
    pub async fn restore(
        &self,
        image: &Path,
        limits: &Limits,
        urgency: Urgency,
        checkpoint: &Path,
    ) -> Result<Ready, SandboxError> {
        let Runtime::Gvisor(runsc) = &self.runtime else {
            let why = "containers are not restored".to_owned();
            return Err(SandboxError::NotReady { why });
        };
        let mut sandbox = process::blocking(|| {
            Sandbox::start_with(self, image, limits, urgency, |places, bundle, id| {
                runsc.restore(places, bundle, checkpoint, id)
            })
        })?;
        // What is rewritten is so in the checkpoint, and no page of it has been brought in.
        let held = attend::rehearse(&mut sandbox, &JobSpec::base_environment()).await;
        let ready = Ready::new(sandbox, held, limits).await?;
        Ok(Ready {
            restored: true,
            ..ready
        })
    }

    /// Runs a job in a sandbox that waits for one. It is told how it `start`ed from where the caller
    /// stands.
    ///
    /// A program that ended by itself is known to have ended before its sandbox is cleared away.
    ///
    /// # Errors
    /// [`SandboxError`] when the sandbox could not be thawed or not be cleared away.
    pub async fn run_in(
        &self,
        ready: Ready,
        order: &Order<'_>,
        start: Start,
    ) -> Result<Finished, SandboxError> {
        let mut sandbox = ready.sandbox;
        let span = self.span(start, ready.asked).of(&sandbox);
        let attended = attend::attend_ready(&mut sandbox, order).await;
        let untouched = !attended.touched;
        let (counters, clearing) = clear_or_begin_to(sandbox, &attended).await?;
        Ok(Finished {
            outcome: conclude(span, attended, &counters, order).await,
            untouched,
            clearing,
        })
    }

    /// Runs a job in a sandbox that is started for it, and otherwise like [`Sandboxes::run_in`].
    /// `starting` is dropped when that is done.
    ///
    /// # Errors
    /// [`SandboxError`] when the sandbox could not be made, or not be cleared away.
    pub async fn run_cold(
        &self,
        order: &Order<'_>,
        asked: Instant,
        starting: Box<dyn Any + Send>,
    ) -> Result<Finished, SandboxError> {
        let span = self.span(Start::Cold, Some(asked));
        let mut sandbox = self.start(order.image, &order.job.limits, Urgency::Job)?;
        sandbox.starting = Some(starting);
        let attended = attend::attend(&mut sandbox, order).await;
        let span = span.of(&sandbox);
        let untouched = !attended.touched;
        let (counters, clearing) = clear_or_begin_to(sandbox, &attended).await?;
        Ok(Finished {
            outcome: conclude(span, attended, &counters, order).await,
            untouched,
            clearing,
        })
    }

    /// Writes a checkpoint of a sandbox into `directory`, and ends it.
    ///
    /// # Errors
    /// [`CheckpointError`]; what lies in `directory` then is of no use.
    pub async fn checkpoint(&self, ready: Ready, directory: &Path) -> Result<(), CheckpointError> {
        let sandbox = ready.sandbox;
        let Runtime::Gvisor(runsc) = &self.runtime else {
            return Err(CheckpointError::Container);
        };
        // Short, and nothing stops it half-way: at the low weight it would hold up the end of everything.
        sandbox
            .hurry()
            .map_err(|source| CheckpointError::Sandbox(SandboxError::Cgroup(source)))?;
        let mut command = runsc.checkpoint(&sandbox.places(), directory, sandbox.id());
        let written = process::blocking(|| process::run_within(&mut command, CHECKPOINT));
        clear(sandbox).await.map_err(CheckpointError::Sandbox)?;
        written.map(drop).map_err(CheckpointError::Write)
    }
}

/// Clears a sandbox away; where the guest has told the whole story, that is only begun, since all that
/// is still to come is the death of those who have nothing left to do.
async fn clear_or_begin_to(
    sandbox: Sandbox,
    attended: &Attended,
) -> Result<(Counters, JoinHandle<Result<Duration, SandboxError>>), SandboxError> {
    if attended.complete
        && let Ok(counters) = sandbox.read_counters()
    {
        let clearing = tokio::spawn(async move {
            tokio::time::sleep(BREATH).await;
            Ok(clear(sandbox).await?.kill_time)
        });
        return Ok((counters, clearing));
    }
    let counters = clear(sandbox).await?;
    let kill_time = counters.kill_time;
    Ok((counters, tokio::spawn(async move { Ok(kill_time) })))
}

impl fmt::Debug for Ready {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Ready").field(&self.id()).finish()
    }
}

impl Ready {
    async fn new(
        mut sandbox: Sandbox,
        held: Result<(), String>,
        limits: &Limits,
    ) -> Result<Self, SandboxError> {
        sandbox.has_started();
        // Before there is a job: the kernel takes longer to set a limit than to show that it holds.
        let limited = process::blocking(|| sandbox.limit_cpu(limits.millicpus));
        let failed = match (held, limited) {
            (Ok(()), Ok(())) => None,
            (Err(why), _) => Some(SandboxError::NotReady { why }),
            (_, Err(source)) => Some(SandboxError::Cgroup(source)),
        };
        if let Some(error) = failed {
            clear(sandbox).await?;
            return Err(error);
        }
        Ok(Self {
            sandbox,
            since: Instant::now(),
            restored: false,
            asked: None,
        })
    }

    /// For a job that was asked for at this time: before this was made, perhaps.
    #[must_use]
    pub fn for_a_job_of(self, asked: Instant) -> Self {
        Self {
            asked: Some(asked),
            ..self
        }
    }

    /// Name of the sandbox.
    pub fn id(&self) -> &str {
        self.sandbox.id()
    }

    /// The processor of the host on which all of it runs, if it is one.
    pub fn processor(&self) -> Option<usize> {
        self.sandbox.processor()
    }

    /// How long it has been waiting.
    pub fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// Whether it was restored from a checkpoint.
    pub fn is_restored(&self) -> bool {
        self.restored
    }

    /// Whether it can still be handed a job, as far as can be seen without asking it.
    pub fn is_alive(&mut self) -> bool {
        let running = matches!(self.sandbox.runtime.try_wait(), Ok(None));
        running && self.sandbox.oom_kills().is_ok_and(|kills| kills == 0)
    }

    /// Stops it where it is: it takes no CPU time any more.
    ///
    /// # Errors
    /// [`SandboxError::Freezer`].
    pub fn freeze(&self) -> Result<(), SandboxError> {
        self.sandbox.freeze().map_err(|source| self.freezer(source))
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// [`SandboxError::Freezer`].
    pub fn thaw(&self) -> Result<(), SandboxError> {
        self.sandbox.thaw().map_err(|source| self.freezer(source))
    }

    /// Gives it the CPU weight of a job, which it is about to get: thawing takes CPU time too.
    ///
    /// # Errors
    /// [`SandboxError::Cgroup`].
    pub fn hurry(&self) -> Result<(), SandboxError> {
        self.sandbox.hurry().map_err(SandboxError::Cgroup)
    }

    fn freezer(&self, source: CgroupError) -> SandboxError {
        SandboxError::Freezer {
            id: self.id().to_owned(),
            source,
        }
    }

    /// Bytes of memory that are charged to it.
    ///
    /// # Errors
    /// [`SandboxError::Cgroup`].
    pub fn memory_used(&self) -> Result<u64, SandboxError> {
        self.sandbox.memory_used().map_err(SandboxError::Cgroup)
    }

    /// Destroys it, without having had a job.
    ///
    /// # Errors
    /// [`SandboxError::Teardown`].
    pub async fn discard(self) -> Result<(), SandboxError> {
        clear(self.sandbox).await.map(drop)
    }
}
