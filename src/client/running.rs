//! A program that runs.

use super::execution::{Asked, Spool};
use super::{Error, Execution, Local};
use crate::job::{JobRequest, JobSpec};
use crate::sandbox::{Event, Order, SandboxError};
use crate::supervisor::connection::{Connections, Submitted};
use futures_core::Stream;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Events on their way to a slow reader, beside those that the sandbox itself keeps.
const EVENTS: usize = 16;

/// A program that runs, or has ended: a stream of its output, and a handle on it.
///
/// Whoever reads slowly slows the program down, not its time limits; what waits to be read is bounded.
/// Dropping it cancels the program, and its sandbox is cleared away in the background. If the runtime
/// is shut down before that, the sandbox is cleared away with it.
///
/// # Examples
///
/// Read until there is enough:
///
/// ```no_run
/// # #[tokio::main]
/// # async fn main() -> Result<(), tako_vm::Error> {
/// # let sandbox = tako_vm::Sandbox::builder().build()?;
/// use tako_vm::{Event, Termination};
///
/// let mut running = sandbox.start("while True: print('more')").await?;
/// let first = running.next().await;
/// assert!(matches!(first, Some(Event::Stdout(_))));
/// running.cancel();
/// assert_eq!(running.wait().await?.termination(), &Termination::Cancelled);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "dropping it cancels the program"]
pub struct Running {
    events: mpsc::Receiver<Event>,
    completion: Completion,
}

/// The end of a program that runs. Dropping it cancels the program.
#[derive(Debug)]
pub(crate) struct Completion {
    task: JoinHandle<Result<Execution, Error>>,
    cancel: DropGuard,
}

impl Running {
    /// The next output of the program; `None` when it has ended and its sandbox is gone.
    ///
    /// Nothing is lost when the future is dropped before it is ready, as in `tokio::select!`.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// Ends the program at once. It has then [been cancelled](crate::Termination::Cancelled), unless it
    /// ended by itself before.
    pub fn cancel(&self) {
        self.canceller().cancel();
    }

    /// What other tasks can cancel the program with.
    pub fn canceller(&self) -> Canceller {
        Canceller(self.completion.cancel.token().clone())
    }

    /// Waits until the program has ended and nothing is left of its sandbox. Output that has not been
    /// read is not waited for.
    ///
    /// # Errors
    /// When Tako VM itself fails: [`Error::Sandbox`] or [`Error::Abandoned`].
    pub async fn wait(self) -> Result<Execution, Error> {
        drop(self.events);
        self.completion.wait().await
    }

    /// The output and the end, for two that wait.
    pub(crate) fn into_parts(self) -> (mpsc::Receiver<Event>, Completion) {
        (self.events, self.completion)
    }
}

impl Completion {
    pub(crate) async fn wait(mut self) -> Result<Execution, Error> {
        let ended = (&mut self.task).await;
        ended.unwrap_or_else(|error| Err(Error::Abandoned(error.into())))
    }
}

impl Stream for Running {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.events.poll_recv(context)
    }
}

/// Ends one program, from wherever it is called.
///
/// # Examples
///
/// ```no_run
/// # #[tokio::main]
/// # async fn main() -> Result<(), tako_vm::Error> {
/// # let sandbox = tako_vm::Sandbox::builder().build()?;
/// use tako_vm::Termination;
///
/// let running = sandbox.start("while True: pass").await?;
/// let canceller = running.canceller();
/// std::thread::spawn(move || canceller.cancel());
/// assert_eq!(running.wait().await?.termination(), &Termination::Cancelled);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Canceller(CancellationToken);

impl Canceller {
    /// See [`Running::cancel`]. Of a program that has ended, nothing can be ended any more.
    pub fn cancel(&self) {
        self.0.cancel();
    }
}

/// Starts a checked job in a task of its own, so that a caller who goes away does not take the
/// clearing away with it.
pub(super) fn launch(local: Arc<Local>, job: JobSpec, cancel: &CancellationToken) -> Running {
    spawn(cancel, |events, cancel| attend(local, job, events, cancel))
}

/// Follows a job that a supervisor runs.
pub(super) fn follow(
    submitted: Submitted,
    connections: Connections,
    request: Arc<JobRequest>,
    stream: bool,
    cancel: &CancellationToken,
) -> Running {
    spawn(cancel, |events, cancel| {
        let events = stream.then_some(events);
        receive(submitted, connections, request, events, cancel)
    })
}

fn spawn<F>(
    cancel: &CancellationToken,
    attend: impl FnOnce(mpsc::Sender<Event>, CancellationToken) -> F,
) -> Running
where
    F: Future<Output = Result<Execution, Error>> + Send + 'static,
{
    let (sender, events) = mpsc::channel(EVENTS);
    // A child, since this one is cancelled also when all is over.
    let cancel = cancel.child_token();
    let task = tokio::spawn(attend(sender, cancel.clone()));
    Running {
        events,
        completion: Completion {
            task,
            cancel: cancel.drop_guard(),
        },
    }
}

async fn attend(
    local: Arc<Local>,
    job: JobSpec,
    events: mpsc::Sender<Event>,
    cancel: CancellationToken,
) -> Result<Execution, Error> {
    let failed = |error: SandboxError| Error::Sandbox(error.into());
    let spool = local.sandboxes.spool();
    let order = Order {
        image: &local.image.path,
        job: &job,
        spool: &spool,
        events: Some(events),
        begin: None,
        cancel,
    };
    let outcome = local.sandboxes.run(order).await.map_err(failed)?;
    let image = local.image.manifest.name.to_string();
    let spool = Spool::State(spool);
    Ok(Execution::new(Asked::Checked(job), image, outcome, spool))
}

async fn receive(
    submitted: Submitted,
    connections: Connections,
    request: Arc<JobRequest>,
    events: Option<mpsc::Sender<Event>>,
    cancel: CancellationToken,
) -> Result<Execution, Error> {
    let ended = submitted.attend(events, &cancel).await?;
    let image = ended.end().image.clone();
    // Most jobs leave no file, and take no directory.
    let spool = if ended.end().artifacts.is_empty() {
        Spool::Empty
    } else {
        Spool::temporary()?
    };
    let (outcome, connection) = ended.collect(spool.path(), &cancel).await?;
    // Of one that was cancelled it is not known whether the word was sent.
    if !cancel.is_cancelled() {
        connections.put_back(connection);
    }
    Ok(Execution::new(Asked::Sent(request), image, outcome, spool))
}
