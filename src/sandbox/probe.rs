//! Whether a runtime can do what we need, found by doing it: a version string proves nothing.

use super::attend::{self, Attended};
use super::start::Sandbox;
use super::{Order, Runtime, SandboxError, Sandboxes, SpoolDirectory, clear};
use crate::job::{JobRequest, JobSpec, Maxima, SpecError, Termination};
use crate::runsc::Runsc;
use crate::sys::cgroup::Urgency;
use crate::sys::process::{self, ProcessError};
use std::path::Path;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What a runtime lacks.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
pub enum ProbeError {
    #[error("cannot probe")]
    Sandbox(#[source] SandboxError),
    #[error("cannot probe")]
    Job(#[source] SpecError),
    #[error("it cannot run a program from an EROFS root: {why}")]
    Run { why: String },
    #[error("it does not apply a seccomp profile to the guest")]
    Seccomp,
    #[error("it cannot write a checkpoint")]
    Checkpoint { source: ProcessError },
    #[error("it cannot restore a checkpoint: {why}")]
    Restore { why: String },
}

/// Asks for a new user namespace, which gVisor grants to anybody unless the profile is in force.
const REFUSED: &str = "
import ctypes, errno, sys
libc = ctypes.CDLL(None, use_errno=True)
refused = libc.unshare(0x10000000) == -1 and ctypes.get_errno() == errno.EPERM
sys.exit(0 if refused else 9)
";

/// The exit code of [`REFUSED`] when the call was granted.
const GRANTED: u8 = 9;

/// Runs a program with an EROFS root under the seccomp profile; with gVisor also writes a checkpoint of
/// a sandbox that waits for its job, and runs a job in its restored copy. To write the checkpoint, which
/// takes 0.1 s, runsc has `patience`; the thread waits meanwhile.
///
/// # Errors
/// [`ProbeError`] names the first feature that is missing.
pub async fn probe(
    sandboxes: &Sandboxes,
    image: &Path,
    patience: Duration,
) -> Result<(), ProbeError> {
    let spool = sandboxes.spool();
    let job = job()?;
    let order = order(image, &job, &spool);
    run(sandboxes, &order).await?;
    // Of a container none is ever made.
    let Runtime::Gvisor(runsc) = &sandboxes.runtime else {
        return Ok(());
    };
    let directory = (spool.path()).map_err(|e| ProbeError::Sandbox(SandboxError::Directory(e)))?;
    let checkpoint = directory.join("checkpoint");
    write_checkpoint(runsc, sandboxes, &order, &checkpoint, patience).await?;
    restore(runsc, sandboxes, &order, &checkpoint).await
}

fn job() -> Result<JobSpec, ProbeError> {
    let request = JobRequest {
        code: REFUSED.to_owned(),
        timeout: Some(Duration::from_secs(20)),
        ..JobRequest::default()
    };
    JobSpec::check(request, &Maxima::default()).map_err(ProbeError::Job)
}

fn order<'a>(image: &'a Path, job: &'a JobSpec, spool: &'a SpoolDirectory) -> Order<'a> {
    Order {
        image,
        job,
        spool,
        events: None,
        begin: None,
        cancel: CancellationToken::new(),
    }
}

async fn run(sandboxes: &Sandboxes, order: &Order<'_>) -> Result<(), ProbeError> {
    let mut sandbox = start(sandboxes, order)?;
    let attended = attend::attend(&mut sandbox, order).await;
    clear(sandbox).await.map_err(ProbeError::Sandbox)?;
    judge(&attended, |why| ProbeError::Run { why })
}

fn start(sandboxes: &Sandboxes, order: &Order<'_>) -> Result<Sandbox, ProbeError> {
    sandboxes
        .start(order.image, &order.job.limits, Urgency::Job)
        .map_err(ProbeError::Sandbox)
}

async fn write_checkpoint(
    runsc: &Runsc,
    sandboxes: &Sandboxes,
    order: &Order<'_>,
    to: &Path,
    patience: Duration,
) -> Result<(), ProbeError> {
    let mut sandbox = start(sandboxes, order)?;
    let ready = attend::await_ready(&mut sandbox).await;
    let mut command = runsc.checkpoint(&sandbox.places(), to, sandbox.id());
    let written = process::run_within(&mut command, patience);
    clear(sandbox).await.map_err(ProbeError::Sandbox)?;
    ready.map_err(|why| ProbeError::Run { why })?;
    written
        .map(drop)
        .map_err(|source| ProbeError::Checkpoint { source })
}

async fn restore(
    runsc: &Runsc,
    sandboxes: &Sandboxes,
    order: &Order<'_>,
    from: &Path,
) -> Result<(), ProbeError> {
    let limits = &order.job.limits;
    let mut sandbox = Sandbox::start_with(
        sandboxes,
        order.image,
        limits,
        Urgency::Job,
        |places, bundle, id| runsc.restore(places, bundle, from, id),
    )
    .map_err(ProbeError::Sandbox)?;
    let attended = attend::attend_ready(&mut sandbox, order).await;
    clear(sandbox).await.map_err(ProbeError::Sandbox)?;
    judge(&attended, |why| ProbeError::Restore { why })
}

/// Whether the probing program ran and was refused what it asked for.
fn judge(attended: &Attended, failed: impl FnOnce(String) -> ProbeError) -> Result<(), ProbeError> {
    match attended.evidence.verdict() {
        Termination::Exited(0) => Ok(()),
        Termination::Exited(GRANTED) => Err(ProbeError::Seccomp),
        Termination::SandboxLost(why) => Err(failed(why)),
        other => {
            let said = String::from_utf8_lossy(&attended.stderr.bytes).into_owned();
            Err(failed(format!(
                "its program ended otherwise ({other:?}) {said}"
            )))
        }
    }
}
