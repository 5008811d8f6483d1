//! A program that has ended, and what it left.

use super::{Error, Target};
use crate::job::{
    self, Captured, ErrorReport, JobRequest, JobSpec, Outcome, Payload, RESULT_FILE, Record,
    ResourceUsage, Skipped, Termination, Timing,
};
use crate::sandbox::SpoolDirectory;
use serde::de::DeserializeOwned;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

/// A program that has ended: how, what it wrote, and what it used.
///
/// The files that it left are kept on disk for as long as this value lives.
///
/// # Examples
///
/// ```no_run
/// # #[tokio::main]
/// # async fn main() -> Result<(), tako_vm::Error> {
/// # let sandbox = tako_vm::Sandbox::builder().build()?;
/// use std::time::Duration;
/// use tako_vm::{Job, Termination};
///
/// let job = Job::new("print('begun')\nwhile True: pass").timeout(Duration::from_secs(1));
/// let done = sandbox.run(job).await?;
/// match done.termination() {
///     Termination::Exited(0) => println!("{}", done.stdout()),
///     Termination::TimedOut(_) => println!("too slow; until then it wrote {}", done.stdout()),
///     Termination::OutOfMemory => println!("{} MiB were too much", done.usage().max_rss_mb),
///     _ => println!("{:?}: {}", done.error(), done.stderr()),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Execution {
    job: Arc<Asked>,
    image: String,
    outcome: Outcome,
    /// Holds the collected files.
    _spool: Spool,
}

/// What was run: checked here, or by the supervisor that ran it.
#[derive(Debug)]
pub(super) enum Asked {
    Checked(JobSpec),
    Sent(Arc<JobRequest>),
}

impl Asked {
    fn payload(&self) -> Payload<'_> {
        match self {
            Self::Checked(job) => job.into(),
            Self::Sent(request) => (&**request).into(),
        }
    }
}

/// The directory of collected files. Dropped, it vanishes with all that is in it.
#[derive(Debug)]
pub(super) enum Spool {
    /// In the state directory.
    State(#[expect(dead_code, reason = "held, since it vanishes when dropped")] SpoolDirectory),
    /// In the caller's directory of temporary files.
    Temporary(TempDir),
    /// None, since there were no files.
    Empty,
}

impl Spool {
    pub(super) fn temporary() -> Result<Self, Error> {
        let directory = tempfile::Builder::new()
            .prefix("tako-vm-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir();
        directory
            .map(Self::Temporary)
            .map_err(|source| Error::MakeDirectory {
                path: std::env::temp_dir(),
                source,
            })
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Temporary(directory) => directory.path(),
            // Nothing of it is written by us.
            Self::State(_) | Self::Empty => Path::new(""),
        }
    }
}

impl Execution {
    pub(super) fn new(job: Asked, image: String, outcome: Outcome, spool: Spool) -> Self {
        Self {
            job: Arc::new(job),
            image,
            outcome,
            _spool: spool,
        }
    }

    /// A name that no other execution has.
    pub fn id(&self) -> &str {
        &self.outcome.id
    }

    /// What ran it: `runsc`, or in permissive mode `runc` or `crun`.
    pub fn runtime(&self) -> &str {
        &self.outcome.runtime
    }

    /// How it ended. A program cannot choose anything but [`Termination::Exited`] and
    /// [`Termination::Signalled`].
    pub fn termination(&self) -> &Termination {
        &self.outcome.termination
    }

    /// Whether the program exited with 0.
    pub fn success(&self) -> bool {
        self.outcome.termination == Termination::Exited(0)
    }

    /// The program's exit code, or the one that stands for how it ended, as `tako-vm run` has it;
    /// `None` when the sandbox was lost.
    pub fn exit_code(&self) -> Option<u8> {
        self.outcome.termination.exit_code()
    }

    /// Why it did not succeed; `None` when it did. The exception's text is the program's own.
    pub fn error(&self) -> Option<ErrorReport> {
        let exception = self.outcome.exception.as_ref();
        let phase = self.outcome.timing.phase_at_exit;
        self.outcome.termination.error(exception, phase)
    }

    /// The beginning of standard output as text, 64 KiB unless configured otherwise. What is not
    /// UTF-8 is replaced.
    pub fn stdout(&self) -> String {
        self.outcome.stdout.text()
    }

    /// The beginning of standard error as text, likewise.
    pub fn stderr(&self) -> String {
        self.outcome.stderr.text()
    }

    /// The same bytes of standard output as they are, and how many there were in all.
    pub fn stdout_captured(&self) -> &Captured {
        &self.outcome.stdout
    }

    /// The same bytes of standard error as they are, and how many there were in all.
    pub fn stderr_captured(&self) -> &Captured {
        &self.outcome.stderr
    }

    /// What it used.
    pub fn usage(&self) -> &ResourceUsage {
        &self.outcome.usage
    }

    /// How long each part took.
    pub fn timing(&self) -> &Timing {
        &self.outcome.timing
    }

    /// What the program wrote to `/output/result.json`.
    ///
    /// The bytes are the program's, and the calling process parses them, with the privileges that it
    /// has. How deep they are nested is bounded (127), and so is their length (10 MiB unless
    /// configured otherwise).
    ///
    /// # Errors
    /// [`Error::NoResult`], [`Error::Result`] when it is not JSON of this type, [`Error::Read`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// #[derive(serde::Deserialize)]
    /// struct Answer {
    ///     mean: f64,
    /// }
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), tako_vm::Error> {
    /// # let sandbox = tako_vm::Sandbox::builder().build()?;
    /// let program = r#"
    /// import json, statistics
    /// json.dump({"mean": statistics.mean([1, 2, 6])}, open("/output/result.json", "w"))
    /// "#;
    /// let answer: Answer = sandbox.run(program).await?.result()?;
    /// assert_eq!(answer.mean, 3.0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn result<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let bytes = self.read_result()?.ok_or(Error::NoResult)?;
        serde_json::from_slice(&bytes).map_err(Error::Result)
    }

    /// The files that the program left in `/output`, its result among them.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), tako_vm::Error> {
    /// # let sandbox = tako_vm::Sandbox::builder().build()?;
    /// let done = sandbox.run("open('/output/squares.csv', 'w').write('1,1\\n2,4\\n')").await?;
    /// for file in done.artifacts() {
    ///     println!("{}: {} bytes", file.name(), file.size_bytes());
    /// }
    /// let squares = done.artifact("squares.csv").expect("the program wrote it");
    /// assert_eq!(squares.read()?, b"1,1\n2,4\n");
    /// done.save_artifacts("results")?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn artifacts(&self) -> impl ExactSizeIterator<Item = Artifact<'_>> {
        self.outcome.artifacts.iter().map(Artifact)
    }

    /// The file of this name.
    pub fn artifact(&self, name: &str) -> Option<Artifact<'_>> {
        self.artifacts().find(|artifact| artifact.name() == name)
    }

    /// Whether some file of `/output` is missing from the [artifacts](Self::artifacts).
    pub fn artifacts_truncated(&self) -> bool {
        self.outcome.artifacts_truncated
    }

    /// Some files that are missing, and why.
    pub fn artifacts_skipped(&self) -> &[Skipped] {
        &self.outcome.artifacts_skipped
    }

    /// Copies all artifacts into a directory, which is made if it is missing. Files of the same names
    /// are replaced, each in one step; no symbolic link below the directory is followed.
    ///
    /// # Errors
    /// [`Error::MakeDirectory`], [`Error::NotADirectory`] or [`Error::Write`].
    pub fn save_artifacts(&self, directory: impl AsRef<Path>) -> Result<(), Error> {
        self.save_to(&Target::open(directory.as_ref())?)
    }

    pub(crate) fn save_to(&self, target: &Target) -> Result<(), Error> {
        target.take(&self.outcome.artifacts)
    }

    /// The full record, as `tako-vm run --json` prints it.
    ///
    /// This parses what the program wrote as its result: see [`Execution::unparsed`] for processes
    /// that should not.
    ///
    /// # Errors
    /// [`Error::Read`]. A result that is no JSON is told in the record.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let sandbox = tako_vm::Sandbox::builder().build()?;
    /// let record = sandbox.run("print(1 + 1)").await?.record()?;
    /// println!("{}", serde_json::to_string_pretty(&record)?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn record(&self) -> Result<Record, Error> {
        self.unparsed().map(Unparsed::parse)
    }

    /// All that [the record](Self::record) is made of, in memory, for a process that gives up its
    /// privileges before it parses what the program wrote.
    ///
    /// # Errors
    /// [`Error::Read`].
    pub fn unparsed(&self) -> Result<Unparsed, Error> {
        Ok(Unparsed {
            job: Arc::clone(&self.job),
            image: self.image.clone(),
            outcome: self.outcome.clone(),
            result: self.read_result()?,
        })
    }

    fn read_result(&self) -> Result<Option<Vec<u8>>, Error> {
        let result = self.artifact(RESULT_FILE);
        result
            .map(|artifact| artifact.read_as("result"))
            .transpose()
    }
}

/// What a [`Record`] is made of.
#[derive(Debug)]
pub struct Unparsed {
    job: Arc<Asked>,
    image: String,
    outcome: Outcome,
    result: Option<Vec<u8>>,
}

impl Unparsed {
    /// Parses the result, and puts the record together.
    pub fn parse(self) -> Record {
        let result = self.result.as_deref();
        Record::new(self.job.payload(), &self.image, self.outcome, result)
    }
}

/// A file that a program left in `/output`.
#[derive(Debug, Clone, Copy)]
pub struct Artifact<'a>(&'a job::Artifact);

impl<'a> Artifact<'a> {
    /// Its path below `/output`: visible characters, no component of which is empty or starts with a
    /// dot.
    pub fn name(&self) -> &'a str {
        &self.0.name
    }

    /// Its size.
    pub fn size_bytes(&self) -> u64 {
        self.0.size_bytes
    }

    /// SHA-256 of its bytes, in hexadecimal.
    pub fn sha256(&self) -> &'a str {
        &self.0.sha256
    }

    /// Its bytes, which are the program's: 10 MiB at most unless configured otherwise.
    ///
    /// # Errors
    /// [`Error::Read`].
    pub fn read(&self) -> Result<Vec<u8>, Error> {
        self.read_as(&format!("file `{}`", self.name()))
    }

    fn read_as(self, what: &str) -> Result<Vec<u8>, Error> {
        fs::read(&self.0.path).map_err(|source| Error::Read {
            what: what.to_owned(),
            source,
        })
    }
}
