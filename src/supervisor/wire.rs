//! The wire protocol of the supervisor's socket: [`docs/supervisor-protocol.md`] in types.
//!
//! A frame is one byte that says its kind, a little-endian `u32` with the length of its body, and the
//! body: JSON for what is said, bytes as they are for what is carried. The decoder bounds the length
//! before it allocates, by the kind.
//!
//! [`docs/supervisor-protocol.md`]: https://github.com/tako-vm/tako-vm/blob/main/docs/supervisor-protocol.md

use crate::job::{
    Artifact, Captured, Exception, InputFile, JobRequest, MAX_FILES, MAX_VARIABLES, Outcome, Phase,
    ResourceUsage, Skipped, Start, Termination, Timing,
};
use jiff::Timestamp;
use serde::de::{DeserializeOwned, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::borrow::Cow;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::mem;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};

/// The version that both ends must share.
pub const PROTOCOL: u32 = 1;

/// Bytes of a greeting at most.
pub const MAX_HELLO: usize = 4 << 10;

/// Bytes of a JSON body at most: an environment of 256 KiB, each byte escaped, and its wrapping.
pub const MAX_CONTROL: usize = 2 << 20;

/// Bytes of an [`End`] at most: the names of 1,000 files, of 1 KiB each, every byte of them escaped.
pub const MAX_END: usize = 4 << 20;

/// Bytes of a body that is carried as it is at most.
pub const MAX_DATA: usize = 64 << 10;

/// Bytes before the body: kind and length.
pub const HEADER: usize = 5;

/// Why bytes are no frame. After it the connection cannot be used any more.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
pub enum WireError {
    #[error("a frame of the unknown kind {kind:#04x}")]
    Kind { kind: u8 },
    #[error("a frame of {length} bytes, and at most {most} are allowed for its kind")]
    TooLong { length: usize, most: usize },
    #[error("a frame whose body is not what its kind says")]
    Body { source: serde_json::Error },
    #[error("the connection ended within a frame")]
    Cut,
    #[error("cannot read from the connection")]
    Read { source: io::Error },
}

/// One side's frames: what is sent, and how it is told apart.
pub trait Message: Sized {
    /// Longest body of this kind in bytes; `None` for a kind that this side does not send.
    fn longest(kind: u8) -> Option<usize>;

    /// Kind and body.
    fn encode(&self) -> (u8, Cow<'_, [u8]>);

    /// The message with this body, which is no longer than [`Message::longest`].
    ///
    /// # Errors
    /// [`WireError::Kind`] or [`WireError::Body`].
    fn decode(kind: u8, body: Vec<u8>) -> Result<Self, WireError>;

    /// As it goes over the wire.
    fn to_frame(&self) -> Vec<u8> {
        let mut frame = Vec::new();
        self.append_to(&mut frame);
        frame
    }

    /// Puts it behind what is there, as it goes over the wire.
    fn append_to(&self, wire: &mut Vec<u8>) {
        let (kind, body) = self.encode();
        wire.reserve(HEADER + body.len());
        wire.push(kind);
        // Bodies are bounded by their makers, far below 4 GiB.
        wire.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
        wire.extend_from_slice(&body);
    }
}

/// Reads the next message; `None` when the peer has closed the connection between two frames.
///
/// Not to be dropped half-way: what was read of a frame would be lost. A [`Reader`] may be.
///
/// # Errors
/// [`WireError`].
pub async fn read<M: Message>(from: &mut (impl AsyncRead + Unpin)) -> Result<Option<M>, WireError> {
    Reader::new(from).next().await
}

/// Reads messages, and keeps what it has of one that is not whole yet.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    header: [u8; HEADER],
    body: Vec<u8>,
    /// Bytes of header and body that are there.
    filled: usize,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// At the beginning of a frame.
    pub fn new(from: R) -> Self {
        Self {
            from,
            header: [0; HEADER],
            body: Vec::new(),
            filled: 0,
        }
    }

    /// Waits until a message has begun; false when the peer has closed the connection instead.
    ///
    /// Nothing is lost when the future is dropped before it is ready.
    ///
    /// # Errors
    /// [`WireError::Read`].
    pub async fn begun(&mut self) -> Result<bool, WireError> {
        if self.filled == 0 {
            let read = self.from.read(&mut self.header[..1]).await;
            self.filled = read.map_err(|source| WireError::Read { source })?;
        }
        Ok(self.filled > 0)
    }

    /// The next message; `None` when the peer has closed the connection between two.
    ///
    /// Nothing is lost when the future is dropped before it is ready.
    ///
    /// # Errors
    /// [`WireError`], after which there are no messages any more.
    pub async fn next<M: Message>(&mut self) -> Result<Option<M>, WireError> {
        if !self.begun().await? {
            return Ok(None);
        }
        while self.filled < HEADER {
            let read = self.from.read(&mut self.header[self.filled..]).await;
            self.filled += some(read)?;
        }
        let [kind, length @ ..] = self.header;
        let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
        let most = M::longest(kind).ok_or(WireError::Kind { kind })?;
        if length > most {
            return Err(WireError::TooLong { length, most });
        }
        // Fresh memory of the kernel's: no page of it is there before its bytes are.
        if self.body.len() != length {
            self.body = vec![0; length];
        }
        while self.filled < HEADER + length {
            let read = self.from.read(&mut self.body[self.filled - HEADER..]).await;
            self.filled += some(read)?;
        }
        self.filled = 0;
        M::decode(kind, mem::take(&mut self.body)).map(Some)
    }
}

/// Bytes that were read, of which there have to be some.
fn some(read: io::Result<usize>) -> Result<usize, WireError> {
    match read {
        Ok(0) => Err(WireError::Cut),
        Ok(bytes) => Ok(bytes),
        Err(source) => Err(WireError::Read { source }),
    }
}

/// What a client sends.
#[derive(Debug, Clone, PartialEq)]
pub enum ToSupervisor {
    /// First of all: which version it speaks.
    Hello(Hello),
    /// A job; the bytes that it announces follow as [`ToSupervisor::Data`].
    Run(Box<Run>),
    /// Bytes of the job that was announced.
    Data(Vec<u8>),
    /// Begin the program of the job that was announced to be held.
    Begin,
    /// End the job that runs.
    Cancel,
    /// Ask for [`Stats`].
    Stats,
    /// Take no more jobs, end when the last has ended. For root alone.
    Drain,
}

/// What the supervisor sends.
#[derive(Debug, Clone, PartialEq)]
pub enum ToClient {
    /// First of all: which version it speaks.
    Hello(Hello),
    /// What was asked for last is not done.
    Refused(Refusal),
    /// The job is checked and about to run.
    Accepted(Accepted),
    /// Bytes of the program's standard output.
    Stdout(Vec<u8>),
    /// Bytes of the program's standard error.
    Stderr(Vec<u8>),
    /// The job has ended; the bytes of its artifacts follow as [`ToClient::Data`], one after the other.
    End(Box<End>),
    /// Bytes of artifacts.
    Data(Vec<u8>),
    /// What was asked for.
    Stats(Box<Stats>),
    /// No more jobs are taken.
    Draining,
}

/// The first message of each side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// Version of Tako VM, for people.
    pub version: String,
}

impl Hello {
    /// Ours.
    pub fn ours() -> Self {
        Self {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// A job, without the bytes that it brings along. `None` stands for root's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// The executor image, `NAME` or `NAME@sha256:HEX`.
    pub image: String,
    /// Bytes of the program, UTF-8: the first that follow.
    pub code_bytes: u64,
    /// Bytes of the JSON for `/input/data.json`, which follow next.
    #[serde(default)]
    pub input_bytes: Option<u64>,
    /// Further files of `/input`, whose bytes follow in this order.
    #[serde(default, deserialize_with = "at_most::<MAX_FILES, _, _>")]
    pub files: Vec<FileSize>,
    /// Variables of the program's environment: name, value.
    #[serde(default, deserialize_with = "at_most::<MAX_VARIABLES, _, _>")]
    pub environment: Vec<(String, String)>,
    /// Bytes of memory.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// Thousandths of a CPU.
    #[serde(default)]
    pub millicpus: Option<u32>,
    /// Limit of the program's run, in milliseconds.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// Limit of the interpreter's start, in milliseconds.
    #[serde(default)]
    pub startup_timeout_ms: Option<u64>,
    /// All output, as it comes; otherwise, before the end, the beginning that is kept.
    #[serde(default)]
    pub stream: bool,
    /// All is made ready, and the program begins with [`ToSupervisor::Begin`].
    #[serde(default)]
    pub hold: bool,
}

/// A file that follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSize {
    /// A single path component.
    pub name: String,
    /// Bytes.
    pub size: u64,
}

/// A list that is given up at the first item too many: a byte or two of JSON can be an item of fifty
/// bytes here.
fn at_most<'de, const MOST: usize, T, D>(from: D) -> Result<Vec<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    from.deserialize_seq(AtMost::<MOST, T>(PhantomData))
}

struct AtMost<const MOST: usize, T>(PhantomData<T>);

impl<'de, const MOST: usize, T: Deserialize<'de>> Visitor<'de> for AtMost<MOST, T> {
    type Value = Vec<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "an array of at most {MOST}")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
        let mut taken = Vec::new();
        while let Some(item) = items.next_element()? {
            if taken.len() == MOST {
                return Err(A::Error::invalid_length(MOST + 1, &self));
            }
            taken.push(item);
        }
        Ok(taken)
    }
}

/// Bytes of a program at most, whatever it says: a little above what a job may have.
pub const MAX_BYTES: u64 = 68 << 20;

impl Run {
    /// What is to be sent for a request: the announcement, and the bytes behind it.
    pub fn new<'a>(image: &str, request: &'a JobRequest, stream: bool) -> (Self, Vec<&'a [u8]>) {
        let whole_ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let run = Self {
            image: image.to_owned(),
            code_bytes: request.code.len() as u64,
            input_bytes: request.input.as_ref().map(|input| input.len() as u64),
            files: request
                .files
                .iter()
                .map(|file| FileSize {
                    name: file.name.clone(),
                    size: file.bytes.len() as u64,
                })
                .collect(),
            environment: request.environment.clone(),
            memory_bytes: request.memory_bytes,
            millicpus: request.millicpus,
            timeout_ms: request.timeout.map(whole_ms),
            startup_timeout_ms: request.startup_timeout.map(whole_ms),
            stream,
            hold: false,
        };
        let mut parts = vec![request.code.as_bytes()];
        parts.extend(request.input.as_ref().map(String::as_bytes));
        parts.extend(request.files.iter().map(|file| file.bytes.as_slice()));
        (run, parts)
    }

    /// Bytes that follow.
    pub fn bytes(&self) -> u64 {
        let files = self.files.iter().map(|file| file.size);
        files.fold(
            self.code_bytes
                .saturating_add(self.input_bytes.unwrap_or(0)),
            u64::saturating_add,
        )
    }
}

/// A job whose bytes are on their way. Memory is taken as they come, not as they are announced.
#[derive(Debug)]
pub struct Incoming {
    run: Run,
    /// Sizes of the parts, of which those at the front are whole.
    sizes: Vec<u64>,
    parts: Vec<Vec<u8>>,
    missing: u64,
}

impl Incoming {
    /// Of this job, nothing yet.
    pub fn new(run: Run) -> Self {
        let mut sizes = vec![run.code_bytes];
        sizes.extend(run.input_bytes);
        sizes.extend(run.files.iter().map(|file| file.size));
        Self {
            missing: run.bytes(),
            run,
            sizes,
            parts: vec![Vec::new()],
        }
    }

    /// Bytes that are still to come.
    pub fn missing(&self) -> u64 {
        self.missing
    }

    /// Takes the next bytes; false when they are more than are missing.
    #[must_use]
    pub fn take(&mut self, mut bytes: &[u8]) -> bool {
        let Some(missing) = self.missing.checked_sub(bytes.len() as u64) else {
            return false;
        };
        self.missing = missing;
        while !bytes.is_empty() {
            let at = self.parts.len() - 1;
            let size = self.sizes.get(at).copied().unwrap_or(0);
            let part = &mut self.parts[at];
            let room = size.saturating_sub(part.len() as u64);
            let room = usize::try_from(room).unwrap_or(usize::MAX);
            let (here, behind) = bytes.split_at(bytes.len().min(room));
            part.extend_from_slice(here);
            bytes = behind;
            if !bytes.is_empty() {
                self.parts.push(Vec::new());
            }
        }
        true
    }

    /// The request, unchecked; `None` when bytes are missing, or code or input are not UTF-8.
    pub fn into_request(self) -> Option<JobRequest> {
        let Self { run, parts, .. } = self;
        let mut parts = parts.into_iter();
        // Parts of no bytes at the end have not begun.
        let mut next = |size: u64| {
            let part = parts.next().unwrap_or_default();
            (part.len() as u64 == size).then_some(part)
        };
        let code = String::from_utf8(next(run.code_bytes)?).ok()?;
        let input = match run.input_bytes {
            Some(size) => Some(String::from_utf8(next(size)?).ok()?),
            None => None,
        };
        let mut files = Vec::new();
        for FileSize { name, size } in run.files {
            let bytes = next(size)?;
            files.push(InputFile { name, bytes });
        }
        Some(JobRequest {
            code,
            input,
            files,
            environment: run.environment,
            memory_bytes: run.memory_bytes,
            millicpus: run.millicpus,
            timeout: run.timeout_ms.map(Duration::from_millis),
            startup_timeout: run.startup_timeout_ms.map(Duration::from_millis),
        })
    }
}

/// Why something is not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// For programs.
    pub code: RefusalCode,
    /// For people: what, why, what to do.
    pub message: String,
    /// Every problem of a job that was not accepted, each with what to do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// When to come back, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

/// Problems of a job that are told at most, and characters of one: a client may make as many as it likes.
const MAX_PROBLEMS: usize = 50;
const MAX_PROBLEM: usize = 1000;

impl Refusal {
    /// What is wrong with a job: each problem by itself, or else the message.
    pub fn into_problems(self) -> Vec<String> {
        if self.problems.is_empty() {
            vec![self.message]
        } else {
            self.problems
        }
    }

    /// A refusal for this reason.
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: shortened(message.into()),
            problems: Vec::new(),
            retry_after_ms: None,
        }
    }

    /// That of a job that asks for what is not possible; the first problems are told.
    pub fn invalid(problems: Vec<String>) -> Self {
        let (first, more) = (problems.len().min(MAX_PROBLEMS), problems.len());
        let problems: Vec<_> = problems.into_iter().take(first).map(shortened).collect();
        let message = match problems.as_slice() {
            [only] => only.clone(),
            _ => format!("the job has {more} problems"),
        };
        Self {
            problems,
            ..Self::new(RefusalCode::Invalid, message)
        }
    }

    /// That of a conversation that does not hold to the protocol, with what more there is to say.
    pub fn protocol(message: impl Into<String>, detail: String) -> Self {
        Self {
            problems: vec![shortened(detail)],
            ..Self::new(RefusalCode::Protocol, message)
        }
    }

    /// That of a defect of ours, of which the supervisor's log knows more.
    pub fn internal() -> Self {
        Self::new(RefusalCode::Internal, "the supervisor failed: see its log")
    }

    /// The same, with what failed. Causes are for the log alone: places of this host are in them.
    pub fn failed(what: impl fmt::Display) -> Self {
        let message = format!("the supervisor failed: {what}; its log says more");
        Self::new(RefusalCode::Internal, message)
    }
}

/// A text that may be a client's, as much of it as is kept.
pub(super) fn shortened(text: String) -> String {
    match text.char_indices().nth(MAX_PROBLEM) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// The classes of refusals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// Not for this peer.
    Forbidden,
    /// The peer does not speak the protocol, or not in this order. The connection is closed.
    Protocol,
    /// The job asks for what is not possible.
    Invalid,
    /// There is no such image, or it cannot be trusted.
    Image,
    /// As many jobs or connections as may be: come back.
    Busy,
    /// The supervisor ends.
    Draining,
    /// The supervisor failed.
    Internal,
}

/// What of a job's output is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Bytes of standard output that a record holds at most.
    pub stdout_limit: u64,
    /// Bytes of standard error that a record holds at most.
    pub stderr_limit: u64,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct End {
    /// Name of the sandbox, and of the execution.
    pub id: String,
    /// The executor image that it had.
    pub image: String,
    /// What ran it: `runsc`, `runc` or `crun`.
    pub runtime: String,
    /// How it ended.
    pub termination: Ended,
    /// What the interpreter said ended the program.
    pub exception: Option<Exception>,
    /// Bytes that the program wrote to standard output.
    pub stdout_bytes: u64,
    /// Bytes that the program wrote to standard error.
    pub stderr_bytes: u64,
    /// The files of `/output`, whose bytes follow in this order.
    pub artifacts: Vec<FileDigest>,
    /// Some file is missing.
    pub artifacts_truncated: bool,
    /// Some that are, and why.
    pub artifacts_skipped: Vec<FileReason>,
    /// When the job was taken up.
    pub started_at: Timestamp,
    /// When it had ended.
    pub ended_at: Timestamp,
    /// Time that each part took.
    pub timing: Times,
    /// What it used.
    pub usage: ResourceUsage,
}

/// [`Termination`] on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
#[expect(missing_docs, reason = "as `job::Termination` has them")]
pub enum Ended {
    Exited { code: u8 },
    Signalled { signal: u8 },
    TimedOut { phase: Phase },
    OutOfMemory,
    OutputLimit,
    Cancelled,
    SandboxLost { reason: String },
}

/// A collected file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDigest {
    /// Path below `/output`.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256, in hexadecimal.
    pub sha256: String,
}

/// A file that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileReason {
    /// Path below `/output`.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// How long each part took, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// How the sandbox came to be.
    pub start: Start,
    /// From the request until a sandbox waited for the job.
    pub sandbox_ms: u64,
    /// Until the interpreter was up.
    pub startup_ms: Option<u64>,
    /// The program itself.
    pub execution_ms: Option<u64>,
    /// From the request until the end was known.
    pub total_ms: u64,
}

impl End {
    /// What is told of an outcome, all but bytes.
    pub fn new(outcome: &Outcome, image: &str) -> Self {
        let artifacts = outcome.artifacts.iter().map(|artifact| FileDigest {
            name: artifact.name.clone(),
            size: artifact.size_bytes,
            sha256: artifact.sha256.clone(),
        });
        let skipped = outcome.artifacts_skipped.iter().map(|skipped| FileReason {
            name: skipped.name.clone(),
            reason: skipped.reason.to_string(),
        });
        let timing = &outcome.timing;
        Self {
            id: outcome.id.clone(),
            image: image.to_owned(),
            runtime: outcome.runtime.to_string(),
            termination: (&outcome.termination).into(),
            exception: outcome.exception.clone(),
            stdout_bytes: outcome.stdout.total,
            stderr_bytes: outcome.stderr.total,
            artifacts: artifacts.collect(),
            artifacts_truncated: outcome.artifacts_truncated,
            artifacts_skipped: skipped.collect(),
            started_at: outcome.started_at,
            ended_at: outcome.ended_at,
            timing: Times {
                start: timing.start,
                sandbox_ms: timing.sandbox_ms,
                startup_ms: timing.startup_ms,
                execution_ms: timing.execution_ms,
                total_ms: timing.total_ms,
            },
            usage: outcome.usage,
        }
    }

    /// The outcome, with the output that was kept, and its artifacts at `paths`, of which there are
    /// as many.
    pub fn into_outcome(self, stdout: Vec<u8>, stderr: Vec<u8>, paths: Vec<PathBuf>) -> Outcome {
        let termination = Termination::from(self.termination);
        let timing = &self.timing;
        let reached = match timing.startup_ms {
            None => Phase::Startup,
            Some(_) => Phase::Execution,
        };
        let artifacts = self.artifacts.into_iter().zip(paths);
        let skipped = self.artifacts_skipped.into_iter();
        Outcome {
            id: self.id,
            runtime: self.runtime.into(),
            exception: self.exception,
            stdout: Captured {
                bytes: stdout,
                total: self.stdout_bytes,
            },
            stderr: Captured {
                bytes: stderr,
                total: self.stderr_bytes,
            },
            artifacts: artifacts
                .map(|(file, path)| Artifact {
                    name: file.name,
                    size_bytes: file.size,
                    sha256: file.sha256,
                    content_type: None,
                    path,
                })
                .collect(),
            artifacts_truncated: self.artifacts_truncated,
            artifacts_skipped: skipped
                .map(|file| Skipped {
                    name: file.name,
                    reason: file.reason.into(),
                })
                .collect(),
            started_at: self.started_at,
            ended_at: self.ended_at,
            timing: Timing {
                start: timing.start,
                sandbox_ms: timing.sandbox_ms,
                startup_ms: timing.startup_ms,
                dep_install_ms: None,
                execution_ms: timing.execution_ms,
                total_ms: timing.total_ms,
                phase_at_exit: termination.phase_at_exit(reached),
            },
            usage: self.usage,
            kill_time: Duration::ZERO,
            termination,
        }
    }
}

impl From<&Termination> for Ended {
    fn from(termination: &Termination) -> Self {
        match termination {
            Termination::Exited(code) => Self::Exited { code: *code },
            Termination::Signalled(signal) => Self::Signalled { signal: *signal },
            Termination::TimedOut(phase) => Self::TimedOut { phase: *phase },
            Termination::OutOfMemory => Self::OutOfMemory,
            Termination::OutputLimit => Self::OutputLimit,
            Termination::Cancelled => Self::Cancelled,
            Termination::SandboxLost(reason) => Self::SandboxLost {
                reason: reason.clone(),
            },
        }
    }
}

impl From<Ended> for Termination {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Exited { code } => Self::Exited(code),
            Ended::Signalled { signal } => Self::Signalled(signal),
            Ended::TimedOut { phase } => Self::TimedOut(phase),
            Ended::OutOfMemory => Self::OutOfMemory,
            Ended::OutputLimit => Self::OutputLimit,
            Ended::Cancelled => Self::Cancelled,
            Ended::SandboxLost { reason } => Self::SandboxLost(reason),
        }
    }
}

/// The supervisor in numbers. Counters run since it was started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Version of Tako VM.
    pub version: String,
    /// Since it was started, in milliseconds.
    pub uptime_ms: u64,
    /// It takes no more jobs.
    pub draining: bool,
    /// Connections that are open.
    pub connections: u64,
    /// Jobs that run.
    pub running: u64,
    /// Jobs that run at once at most.
    pub max_jobs: u64,
    /// Jobs that have ended.
    pub ended: u64,
    /// Jobs that were turned away because there were as many as may be.
    pub busy: u64,
    /// Sandboxes that exist, ready ones included.
    pub alive: u64,
    /// What killed owners had left when it started, and was cleared away.
    pub swept: u64,
    /// From the beginning of a kill until the cgroup was proven empty.
    pub kill: Kills,
    /// Bytes of memory that ready sandboxes may have together.
    pub pool_budget_bytes: u64,
    /// Bytes that they have at this moment.
    pub pool_bytes: u64,
    /// One for each profile.
    pub pools: Vec<PoolStats>,
}

/// How long kills took, in milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "percentiles")]
pub struct Kills {
    pub count: u64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
}

/// The ready sandboxes of one profile.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStats {
    /// The executor image.
    pub image: String,
    /// Bytes of memory that each may use.
    pub memory_bytes: u64,
    /// How many there should be.
    pub target: u64,
    /// How many wait for a job.
    pub ready: u64,
    /// How many of these are frozen.
    pub frozen: u64,
    /// How many are being made.
    pub starting: u64,
    /// Jobs that found one ready.
    pub hits: u64,
    /// Jobs that did not.
    pub misses: u64,
    /// Sandboxes made ahead.
    pub refills: u64,
    /// Of all that were made, how many by a restore.
    pub restored: u64,
    /// Restores that failed; a cold start took their place.
    pub restore_failures: u64,
    /// Destroyed without having had a job: too old, dead, out of date or too many.
    pub retired: u64,
    /// There is a checkpoint that new ones are restored from.
    pub checkpoint: bool,
}

const HELLO: u8 = b'h';
const RUN: u8 = b'r';
const DATA: u8 = b'd';
const BEGIN: u8 = b'b';
const CANCEL: u8 = b'c';
const STATS: u8 = b's';
const DRAIN: u8 = b'q';
const REFUSED: u8 = b'x';
const ACCEPTED: u8 = b'a';
const STDOUT: u8 = b'o';
const STDERR: u8 = b'e';
const END: u8 = b'z';

impl Message for ToSupervisor {
    fn longest(kind: u8) -> Option<usize> {
        match kind {
            HELLO => Some(MAX_HELLO),
            RUN => Some(MAX_CONTROL),
            DATA => Some(MAX_DATA),
            BEGIN | CANCEL | STATS | DRAIN => Some(0),
            _ => None,
        }
    }

    fn encode(&self) -> (u8, Cow<'_, [u8]>) {
        match self {
            Self::Hello(hello) => (HELLO, json(hello).into()),
            Self::Run(run) => (RUN, json(run).into()),
            Self::Data(bytes) => (DATA, bytes.into()),
            Self::Begin => (BEGIN, Cow::default()),
            Self::Cancel => (CANCEL, Cow::default()),
            Self::Stats => (STATS, Cow::default()),
            Self::Drain => (DRAIN, Cow::default()),
        }
    }

    fn decode(kind: u8, body: Vec<u8>) -> Result<Self, WireError> {
        Ok(match kind {
            HELLO => Self::Hello(parse(&body)?),
            RUN => Self::Run(parse(&body)?),
            DATA => Self::Data(body),
            BEGIN => Self::Begin,
            CANCEL => Self::Cancel,
            STATS => Self::Stats,
            DRAIN => Self::Drain,
            kind => return Err(WireError::Kind { kind }),
        })
    }
}

impl Message for ToClient {
    fn longest(kind: u8) -> Option<usize> {
        match kind {
            HELLO => Some(MAX_HELLO),
            REFUSED | ACCEPTED | STATS => Some(MAX_CONTROL),
            END => Some(MAX_END),
            STDOUT | STDERR | DATA => Some(MAX_DATA),
            DRAIN => Some(0),
            _ => None,
        }
    }

    fn encode(&self) -> (u8, Cow<'_, [u8]>) {
        match self {
            Self::Hello(hello) => (HELLO, json(hello).into()),
            Self::Refused(refusal) => (REFUSED, json(refusal).into()),
            Self::Accepted(accepted) => (ACCEPTED, json(accepted).into()),
            Self::Stdout(bytes) => (STDOUT, bytes.into()),
            Self::Stderr(bytes) => (STDERR, bytes.into()),
            Self::End(end) => (END, json(end).into()),
            Self::Data(bytes) => (DATA, bytes.into()),
            Self::Stats(stats) => (STATS, json(stats).into()),
            Self::Draining => (DRAIN, Cow::default()),
        }
    }

    fn decode(kind: u8, body: Vec<u8>) -> Result<Self, WireError> {
        Ok(match kind {
            HELLO => Self::Hello(parse(&body)?),
            REFUSED => Self::Refused(parse(&body)?),
            ACCEPTED => Self::Accepted(parse(&body)?),
            STDOUT => Self::Stdout(body),
            STDERR => Self::Stderr(body),
            END => Self::End(parse(&body)?),
            DATA => Self::Data(body),
            STATS => Self::Stats(parse(&body)?),
            DRAIN => Self::Draining,
            kind => return Err(WireError::Kind { kind }),
        })
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    // Maps with keys that are no strings are what serde_json refuses; there are none.
    serde_json::to_vec(value).unwrap_or_default()
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, WireError> {
    serde_json::from_slice(body).map_err(|source| WireError::Body { source })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read_all<M: Message>(mut wire: &[u8]) -> Result<Vec<M>, WireError> {
        let mut all = Vec::new();
        while let Some(message) = read(&mut wire).await? {
            all.push(message);
        }
        Ok(all)
    }

    #[tokio::test]
    async fn a_job_survives_the_wire_with_its_bytes() {
        let request = JobRequest {
            code: "print(1)".to_owned(),
            input: Some("{}".to_owned()),
            files: vec![InputFile {
                name: "a".to_owned(),
                bytes: vec![0, 255],
            }],
            environment: vec![("A".to_owned(), "\u{1}".to_owned())],
            timeout: Some(Duration::from_millis(1500)),
            ..JobRequest::default()
        };
        let (run, parts) = Run::new("python", &request, true);
        let mut wire = ToSupervisor::Hello(Hello::ours()).to_frame();
        wire.extend(ToSupervisor::Run(Box::new(run)).to_frame());
        wire.extend(ToSupervisor::Data(parts.concat()).to_frame());
        let mut messages = read_all::<ToSupervisor>(&wire).await.unwrap().into_iter();
        assert_eq!(messages.next(), Some(ToSupervisor::Hello(Hello::ours())));
        let (Some(ToSupervisor::Run(run)), Some(ToSupervisor::Data(bytes))) =
            (messages.next(), messages.next())
        else {
            panic!("a run and its bytes");
        };
        assert_eq!(run.bytes(), 12);
        let mut incoming = Incoming::new(*run);
        for piece in bytes.chunks(5) {
            assert!(incoming.take(piece));
        }
        assert!(!incoming.take(b"more"));
        assert_eq!(incoming.missing(), 0);
        let back = incoming.into_request().unwrap();
        assert_eq!(format!("{back:?}"), format!("{request:?}"));
    }

    #[test]
    fn a_list_is_given_up_at_the_first_item_too_many() {
        let body = |variables: usize, files: usize| {
            let variables = vec![r#"["a","b"]"#; variables].join(",");
            let files = vec![r#"{"name":"a","size":1}"#; files].join(",");
            format!(
                r#"{{"image":"p","code_bytes":1,"environment":[{variables}],"files":[{files}]}}"#
            )
        };
        let decode = |text: String| ToSupervisor::decode(RUN, text.into_bytes());
        let Ok(ToSupervisor::Run(run)) = decode(body(MAX_VARIABLES, MAX_FILES)) else {
            panic!("as many as may be");
        };
        assert_eq!(run.environment.len(), MAX_VARIABLES);
        assert_eq!(run.files.len(), MAX_FILES);
        for (variables, files, most) in [
            (MAX_VARIABLES + 1, 0, "at most 256"),
            (200_000, 0, "at most 256"),
            (0, MAX_FILES + 1, "at most 100"),
        ] {
            let Err(WireError::Body { source }) = decode(body(variables, files)) else {
                panic!("one too many");
            };
            assert!(source.to_string().contains(most), "{source}");
            assert!(source.column() < 4000, "{source}");
        }
    }

    #[test]
    fn parts_of_no_bytes_and_bytes_that_do_not_come_are_told_apart() {
        let run = Run {
            code_bytes: 2,
            input_bytes: Some(0),
            files: ["a", "b", "c"]
                .map(|name| FileSize {
                    name: name.to_owned(),
                    size: 0,
                })
                .to_vec(),
            ..Run::default()
        };
        assert!(Incoming::new(run.clone()).into_request().is_none());
        let mut incoming = Incoming::new(run.clone());
        assert!(incoming.take(b"ok"));
        let request = incoming.into_request().unwrap();
        assert_eq!(
            (request.code.as_str(), request.input.as_deref()),
            ("ok", Some(""))
        );
        assert_eq!(request.files.len(), 3);
        let mut incoming = Incoming::new(Run {
            code_bytes: 1,
            ..run
        });
        assert!(incoming.take(&[0xff]));
        assert!(incoming.into_request().is_none());
    }

    #[tokio::test]
    async fn a_reader_that_is_interrupted_goes_on_where_it_was() {
        let (mut client, service) = tokio::io::duplex(64);
        let mut reader = Reader::new(service);
        let frame = ToSupervisor::Data(b"bytes".to_vec()).to_frame();
        for byte in frame {
            let early =
                tokio::time::timeout(Duration::from_millis(1), reader.next::<ToSupervisor>());
            assert!(early.await.is_err());
            tokio::io::AsyncWriteExt::write_all(&mut client, &[byte])
                .await
                .unwrap();
        }
        let whole = reader.next().await.unwrap();
        assert_eq!(whole, Some(ToSupervisor::Data(b"bytes".to_vec())));
        drop(client);
        assert_eq!(reader.next::<ToSupervisor>().await.unwrap(), None);
    }

    #[tokio::test]
    async fn what_is_no_frame_is_refused_before_it_is_read() {
        let refused =
            |wire: Vec<u8>| async move { read_all::<ToSupervisor>(&wire).await.unwrap_err() };
        let huge = refused(vec![RUN, 255, 255, 255, 255]).await;
        assert!(matches!(
            huge,
            WireError::TooLong {
                length: 0xffff_ffff,
                most: MAX_CONTROL
            }
        ));
        let unknown = refused(vec![0, 0, 0, 0, 0]).await;
        assert!(matches!(unknown, WireError::Kind { kind: 0 }));
        let theirs = refused(vec![STDOUT, 0, 0, 0, 0]).await;
        assert!(matches!(theirs, WireError::Kind { kind: STDOUT }));
        assert!(matches!(refused(vec![RUN, 2, 0]).await, WireError::Cut));
        let cancel = refused(vec![CANCEL, 1, 0, 0, 0, 0]).await;
        assert!(matches!(cancel, WireError::TooLong { length: 1, most: 0 }));
        let body = refused(vec![RUN, 2, 0, 0, 0, b'{', b'}']).await;
        assert!(matches!(body, WireError::Body { .. }));
    }
}
