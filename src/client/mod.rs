//! What a Rust program calls: [`Sandbox`] and what belongs to it, all of it found at the crate's root.
//!
//! A program is run by a supervisor where one listens, or else by the calling process itself, which
//! must be root. Nothing public here says so in its types: no runtime, no cgroup, no path of an image.

mod builder;
mod execution;
mod local;
mod remote;
mod request;
mod running;
mod target;

pub use builder::SandboxBuilder;
pub use execution::{Artifact, Execution, Unparsed};
pub use request::Job;
pub use running::{Canceller, Running};

pub(crate) use local::{Local, container, runtime};
pub(crate) use remote::Remote;
pub(crate) use target::Target;

use crate::job::{JobSpec, SpecError};
use crate::runsc::provision::ProvisionError;
use crate::supervisor::connection::ConnectionError;
use std::error;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What failed underneath.
type Cause = Box<dyn error::Error + Send + Sync>;

/// Why Tako VM could not do what it was asked for.
///
/// How a program ends is never an error: see [`Execution::termination`]. The message says what
/// failed, [`source`](error::Error::source) why.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Without a supervisor nobody but root can run sandboxes, and inside a container not every root.
    #[error(
        "sandboxes need root with all its capabilities: run this program with `sudo`, or start \
         `tako-vm supervisor` as root and be a member of the group `tako-vm`"
    )]
    Privilege(#[source] Cause),
    /// The configuration cannot be read, is not root's alone, or has a key that is not allowed.
    #[error(transparent)]
    Config(Cause),
    /// There is no such executor image, or it cannot be trusted: `tako-vm setup` provides one.
    #[error(transparent)]
    Image(Cause),
    /// The runtime is not installed, or cannot be trusted: `tako-vm setup` provides it.
    #[error(transparent)]
    Runtime(Cause),
    /// A control cannot be applied on this host, or a sandbox could not be made or cleared away.
    #[error(transparent)]
    Sandbox(Cause),
    /// What was asked for is not possible. Each problem names one field, and what to give instead.
    #[error(transparent)]
    Job(#[from] SpecError),
    /// The supervisor cannot be reached, or was lost: a job that ran then has been ended.
    #[error(transparent)]
    Connection(Cause),
    /// The supervisor runs as many jobs as it may: come back after this time.
    #[error("the supervisor runs as many jobs as it may: try again in {retry_after:?}")]
    #[expect(missing_docs, reason = "the message documents the fields")]
    Busy { retry_after: Duration },
    /// The supervisor does not do this, or not for this user, or has failed; the message says which.
    #[error(transparent)]
    Refused(Cause),
    /// The task that attended the job ended without a word: the tokio runtime was shut down.
    #[error("the job was abandoned")]
    Abandoned(#[source] Cause),
    /// The program has left no `/output/result.json`.
    #[error("the program has left no result: let it write `/output/result.json`")]
    NoResult,
    /// What the program has left as its result is not JSON of the type that was asked for.
    #[error("the result is not of the type that was asked for")]
    Result(#[source] serde_json::Error),
    /// A collected file cannot be read.
    #[error("cannot read the collected {what}")]
    #[expect(missing_docs, reason = "the message documents the fields")]
    Read { what: String, source: io::Error },
    /// Collected files were to go where no directory can be made.
    #[error("cannot make `{}`", path.display())]
    #[expect(missing_docs, reason = "the message documents the fields")]
    MakeDirectory { path: PathBuf, source: io::Error },
    /// Collected files were to go into what is no directory.
    #[error("`{}` is not a directory", path.display())]
    #[expect(missing_docs, reason = "the message documents the fields")]
    NotADirectory { path: PathBuf },
    /// A collected file cannot be written where it was to go.
    #[error("cannot write `{}`", path.display())]
    #[expect(missing_docs, reason = "the message documents the fields")]
    Write { path: PathBuf, source: io::Error },
}

impl Error {
    /// What can be done about it, where the message does not say it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Runtime(cause) => cause.downcast_ref::<ProvisionError>()?.hint(),
            Self::Connection(cause) => cause.downcast_ref::<ConnectionError>()?.hint(),
            _ => None,
        }
    }
}

/// A place to run untrusted Python: each program gets a gVisor sandbox of its own, which is used once
/// and then destroyed.
///
/// Where root's configuration asks for permissive mode it is a container instead, which is weaker:
/// [`Execution::runtime`] says which it was.
///
/// Where a supervisor listens, it runs the programs, and any member of its group may use it;
/// otherwise this process does, as root ([`SandboxBuilder::supervisor`] says which when).
///
/// It can be used for any number of programs, at once and one after the other; clones share it. Its
/// futures need a tokio runtime with time and I/O enabled. Without a supervisor, the process becomes the
/// parent of its orphans (`PR_SET_CHILD_SUBREAPER`), for as long as it lives.
///
/// # Examples
///
/// ```no_run
/// # #[tokio::main]
/// # async fn main() -> Result<(), tako_vm::Error> {
/// let sandbox = tako_vm::Sandbox::builder().build()?;
/// let (one, other) = tokio::join!(sandbox.run("print(1)"), sandbox.run("print(2)"));
/// assert_eq!(one?.stdout() + &other?.stdout(), "1\n2\n");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Sandbox {
    host: Arc<Host>,
    defaults: Job,
}

/// Who runs programs.
#[derive(Debug)]
enum Host {
    Local(Arc<Local>),
    Supervisor(Remote),
}

impl Sandbox {
    /// A sandbox with the image `python` and the limits that the configuration says, unless changed.
    pub fn builder() -> SandboxBuilder {
        SandboxBuilder::default()
    }

    /// Runs a program to its end.
    ///
    /// Dropping the future cancels the program, see [`Running`].
    ///
    /// # Errors
    /// [`Error::Job`] when what is asked for is not possible, and others when Tako VM itself fails. A
    /// program that fails, runs too long or is killed is no error.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), tako_vm::Error> {
    /// # let sandbox = tako_vm::Sandbox::builder().build()?;
    /// let done = sandbox.run("int('x')").await?;
    /// assert!(!done.success());
    /// assert_eq!(done.exit_code(), Some(1));
    /// let error = done.error().expect("a program that failed has one");
    /// assert_eq!(error.kind, "value_error");
    /// assert!(done.stderr().contains("invalid literal for int()"));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn run(&self, job: impl Into<Job>) -> Result<Execution, Error> {
        self.begin(job.into(), false).await?.wait().await
    }

    /// Starts a program, whose output can then be read as it comes.
    ///
    /// # Errors
    /// [`Error::Job`] when what is asked for is not possible; of a supervisor also [`Error::Image`],
    /// [`Error::Busy`], [`Error::Refused`] and [`Error::Connection`].
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), tako_vm::Error> {
    /// # let sandbox = tako_vm::Sandbox::builder().build()?;
    /// use tako_vm::Event;
    ///
    /// let mut running = sandbox.start("for n in range(3): print(n)").await?;
    /// let mut output = Vec::new();
    /// while let Some(event) = running.next().await {
    ///     match event {
    ///         Event::Stdout(bytes) | Event::Stderr(bytes) => output.extend(bytes),
    ///     }
    /// }
    /// assert_eq!(output, b"0\n1\n2\n");
    /// assert!(running.wait().await?.success());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn start(&self, job: impl Into<Job>) -> Result<Running, Error> {
        self.begin(job.into(), true).await
    }

    /// Starts a job; `stream` says whether all of its output is to be read.
    async fn begin(&self, job: Job, stream: bool) -> Result<Running, Error> {
        let request = job.or(&self.defaults).into_request();
        let cancel = CancellationToken::new();
        match &*self.host {
            Host::Local(local) => {
                let job = JobSpec::check(request, &local.maxima)?;
                Ok(local.launch(job, &cancel))
            }
            Host::Supervisor(remote) => remote.submit(Arc::new(request), stream, &cancel).await,
        }
    }
}
