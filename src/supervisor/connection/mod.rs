//! The client half: a connection to a supervisor, and the way of one job over it.
//!
//! ```text
//! Connection ──submit──> Submitted ──attend──> Ended ──collect──> Outcome
//!      └────────────────────┴──────────────────┴── Refused, or the connection is lost
//! ```
//!
//! A connection is for one job at a time, since closing it is how a client that goes away takes its job
//! with it. [`Connections`] keeps it for the next one.
//! What the supervisor sends is bounded before it is kept or written, though it is root's: a defect
//! over there shall not fill a disk over here.

mod kept;

pub use kept::{Connections, Idle};

use super::wire::{
    self, Accepted, End, Hello, MAX_DATA, Message, PROTOCOL, Refusal, Run, Stats, ToClient,
    ToSupervisor, WireError,
};
use crate::job::{Captured, Outcome};
use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType};
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Bytes that are read at once; longer bodies go past the buffer.
const READ_AT_ONCE: usize = 16 << 10;

/// Bytes that are written at once: a job of ordinary size is one write.
const WRITE_AT_ONCE: usize = 256 << 10;

/// How long the supervisor may take to end a job that was cancelled. Its own backstop takes 0.5 s, and
/// the proof that nothing lives some milliseconds.
const CANCELLED: Duration = Duration::from_secs(10);

/// How long after a cancel a receiver that takes no output is waited for.
const FLUSH: Duration = Duration::from_secs(1);

/// How long a listener whose queue of connections is full is asked again.
const CROWDED: Duration = Duration::from_secs(1);

/// Bytes of a stream that are kept at most: what a configuration may say at most.
const MAX_CAPTURED: u64 = 100 << 20;

/// Files, bytes of one and of all at most: what the guest protocol and a configuration allow at most.
const MAX_FILES: usize = 1000;
const MAX_FILE_BYTES: u64 = 1 << 30;
const MAX_FILES_BYTES: u64 = 10 << 30;

/// Bytes of the path of a file at most, as the guest protocol has it.
const MAX_FILE_NAME: usize = 1024;

/// Why a supervisor did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
pub enum ConnectionError {
    #[error("no supervisor answers at `{}`", path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error("{}", refusal.message)]
    Refused { refusal: Box<Refusal> },
    #[error(
        "the supervisor speaks version {theirs} of its protocol, and this program version {PROTOCOL}: \
         install the same version of Tako VM for both, and restart the supervisor"
    )]
    Version { theirs: u32 },
    #[error("what the supervisor sends is no frame")]
    Wire { source: WireError },
    #[error("the supervisor does not keep to its protocol: {what}")]
    Protocol { what: &'static str },
    #[error("the connection to the supervisor was lost: it was stopped, or has failed")]
    Lost,
    #[error("the supervisor does not answer: it has not ended the job for {CANCELLED:?}")]
    Silent,
    #[error("cannot write a collected file to `{}`", path.display())]
    Write { path: PathBuf, source: io::Error },
}

impl ConnectionError {
    /// What can be done about it, where the message does not say it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Connect { source, .. } => Some(match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    "its socket is for root and members of the group `tako-vm`: become one with \
                     `sudo usermod -aG tako-vm \"$USER\"` and log in again, or use `sudo`"
                }
                _ => "start it as root with `tako-vm supervisor`",
            }),
            _ => None,
        }
    }
}

/// Connects to a supervisor, without a word so far.
///
/// This blocks until the supervisor's listener has room for one more, but not for ever: after a second
/// it is an error of the kind [`io::ErrorKind::WouldBlock`].
///
/// # Errors
/// [`ConnectionError::Connect`].
pub fn connect(path: &Path) -> Result<Idle, ConnectionError> {
    let connected = connect_within(path, CROWDED).and_then(|stream| {
        stream.set_nonblocking(true)?;
        Ok(Idle {
            stream,
            greeted: false,
        })
    });
    connected.map_err(|source| ConnectionError::Connect {
        path: path.to_owned(),
        source,
    })
}

fn connect_within(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    // It bounds a connect as well: unix_stream_connect() of Linux.
    sockopt::set_socket_timeout(&socket, Timeout::Send, Some(patience))?;
    rustix::io::retry_on_intr(|| rustix::net::connect(&socket, &address))?;
    sockopt::set_socket_timeout(&socket, Timeout::Send, None)?;
    Ok(UnixStream::from(socket))
}

/// A connection to a supervisor.
#[derive(Debug)]
pub struct Connection {
    incoming: Incoming,
    outgoing: Outgoing,
}

#[derive(Debug)]
struct Incoming {
    from: BufReader<OwnedReadHalf>,
    greeted: bool,
}

#[derive(Debug)]
struct Outgoing {
    to: OwnedWriteHalf,
    /// What has not been written yet.
    buffer: Vec<u8>,
}

/// A job that the supervisor runs.
#[derive(Debug)]
#[must_use = "dropping it ends the job"]
pub struct Submitted {
    connection: Connection,
    accepted: Accepted,
}

/// A job that was handed over, and whose program has not begun.
#[derive(Debug)]
#[must_use = "dropping it ends the job"]
pub struct Prepared {
    connection: Connection,
}

/// Output of a job, as it comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Bytes that it wrote to standard output.
    Stdout(Vec<u8>),
    /// Bytes that it wrote to standard error.
    Stderr(Vec<u8>),
}

/// A job that has ended, whose files are still over there.
#[derive(Debug)]
pub struct Ended {
    connection: Connection,
    end: Box<End>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Connection {
    /// Connects without blocking. Nothing is sent before something is asked for.
    ///
    /// # Errors
    /// [`ConnectionError::Connect`].
    pub async fn open(path: &Path) -> Result<Self, ConnectionError> {
        let begun = tokio::time::Instant::now();
        loop {
            match tokio::net::UnixStream::connect(path).await {
                Ok(stream) => return Ok(Self::over(stream, false)),
                // The listener's queue is full, and nothing tells when it is not any more.
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock && begun.elapsed() < CROWDED =>
                {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(source) => {
                    return Err(ConnectionError::Connect {
                        path: path.to_owned(),
                        source,
                    });
                }
            }
        }
    }

    /// Takes a connection up again, or one from [`connect`] for the first time.
    ///
    /// # Errors
    /// [`ConnectionError::Lost`] when it cannot be used.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn resume(idle: Idle) -> Result<Self, ConnectionError> {
        let Idle { stream, greeted } = idle;
        let stream =
            tokio::net::UnixStream::from_std(stream).map_err(|_unusable| ConnectionError::Lost)?;
        Ok(Self::over(stream, greeted))
    }

    fn over(stream: tokio::net::UnixStream, greeted: bool) -> Self {
        let (from, to) = stream.into_split();
        let buffer = if greeted {
            Vec::new()
        } else {
            // Goes out with what is asked for first.
            ToSupervisor::Hello(Hello::ours()).to_frame()
        };
        Self {
            incoming: Incoming {
                from: BufReader::with_capacity(READ_AT_ONCE, from),
                greeted,
            },
            outgoing: Outgoing { to, buffer },
        }
    }

    /// The connection without its runtime; `None` if something is still to be said or heard on it.
    fn set_aside(self) -> Option<Idle> {
        let Self { incoming, outgoing } = self;
        let nothing_is_left = outgoing.buffer.is_empty() && incoming.from.buffer().is_empty();
        if !nothing_is_left {
            return None;
        }
        let from = incoming.from.into_inner();
        let stream = from.reunite(outgoing.to).ok()?.into_std().ok()?;
        Some(Idle {
            stream,
            greeted: incoming.greeted,
        })
    }

    /// Hands a job over, with the bytes that it announces: [`Run::new`] makes both. Returns when the
    /// supervisor has checked it and is about to run it.
    ///
    /// # Errors
    /// [`ConnectionError::Refused`], or when the connection fails.
    pub async fn submit(
        mut self,
        run: &Run,
        parts: &[&[u8]],
    ) -> Result<Submitted, ConnectionError> {
        let answer = self.hand_over(run, parts).await?;
        self.submitted(&answer)
    }

    /// Hands a job over as [`Connection::submit`] does, and has its program held. The supervisor does that
    /// for 5 s, and is not heard before [`Prepared::begin`].
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn prepare(
        mut self,
        run: &Run,
        parts: &[&[u8]],
    ) -> Result<Prepared, ConnectionError> {
        let run = Run {
            hold: true,
            ..run.clone()
        };
        let written = self.outgoing.job(&run, parts).await;
        written.map_err(|_hung_up| ConnectionError::Lost)?;
        Ok(Prepared { connection: self })
    }

    fn submitted(self, answer: &ToClient) -> Result<Submitted, ConnectionError> {
        match *answer {
            ToClient::Accepted(accepted) => Ok(Submitted {
                connection: self,
                accepted,
            }),
            _ => Err(UNEXPECTED),
        }
    }

    async fn hand_over(&mut self, run: &Run, parts: &[&[u8]]) -> Result<ToClient, ConnectionError> {
        let mut answer = pin!(self.incoming.next());
        let written = tokio::select! {
            // Written first; only a refusal comes before all is written.
            biased;
            written = self.outgoing.job(run, parts) => written,
            early = &mut answer => return early.and(Err(UNEXPECTED)),
        };
        // A supervisor that hangs up may have said why, and that is the better error.
        let answer = answer.await?;
        written
            .map(|()| answer)
            .map_err(|_hung_up| ConnectionError::Lost)
    }

    /// The supervisor in numbers.
    ///
    /// # Errors
    /// When it refuses, or the connection fails.
    pub async fn stats(&mut self) -> Result<Stats, ConnectionError> {
        match self.ask(&ToSupervisor::Stats).await? {
            ToClient::Stats(stats) => Ok(*stats),
            _ => Err(UNEXPECTED),
        }
    }

    /// Has the supervisor take no more jobs, and end when the last has ended.
    ///
    /// # Errors
    /// When it refuses, or the connection fails.
    pub async fn drain(&mut self) -> Result<(), ConnectionError> {
        match self.ask(&ToSupervisor::Drain).await? {
            ToClient::Draining => Ok(()),
            _ => Err(UNEXPECTED),
        }
    }

    async fn ask(&mut self, question: &ToSupervisor) -> Result<ToClient, ConnectionError> {
        let written = self.outgoing.say(question).await;
        let answer = self.incoming.next().await?;
        written
            .map(|()| answer)
            .map_err(|_hung_up| ConnectionError::Lost)
    }
}

const UNEXPECTED: ConnectionError = protocol("a frame that does not belong here");

const fn protocol(what: &'static str) -> ConnectionError {
    ConnectionError::Protocol { what }
}

impl Incoming {
    /// The next message, which is no refusal. Not to be dropped half-way.
    async fn next(&mut self) -> Result<ToClient, ConnectionError> {
        loop {
            match self.read().await? {
                ToClient::Refused(refusal) => {
                    return Err(ConnectionError::Refused {
                        refusal: Box::new(refusal),
                    });
                }
                ToClient::Hello(Hello { protocol, .. }) if !self.greeted => {
                    if protocol != PROTOCOL {
                        return Err(ConnectionError::Version { theirs: protocol });
                    }
                    self.greeted = true;
                }
                message if self.greeted => return Ok(message),
                _ => return Err(protocol("it does not say its version")),
            }
        }
    }

    async fn read(&mut self) -> Result<ToClient, ConnectionError> {
        match wire::read(&mut self.from).await {
            Ok(Some(message)) => Ok(message),
            Ok(None) | Err(WireError::Cut | WireError::Read { .. }) => Err(ConnectionError::Lost),
            Err(source) => Err(ConnectionError::Wire { source }),
        }
    }
}

impl Outgoing {
    /// The announcement and the bytes, in as few writes as they fit into.
    async fn job(&mut self, run: &Run, parts: &[&[u8]]) -> io::Result<()> {
        self.push(&ToSupervisor::Run(Box::new(run.clone())));
        let mut chunk = Vec::new();
        for mut rest in parts.iter().copied() {
            while !rest.is_empty() {
                let (taken, behind) = rest.split_at(rest.len().min(MAX_DATA - chunk.len()));
                chunk.extend_from_slice(taken);
                rest = behind;
                if chunk.len() == MAX_DATA {
                    self.push(&ToSupervisor::Data(std::mem::take(&mut chunk)));
                    if self.buffer.len() >= WRITE_AT_ONCE {
                        self.flush().await?;
                    }
                }
            }
        }
        if !chunk.is_empty() {
            self.push(&ToSupervisor::Data(chunk));
        }
        self.flush().await
    }

    async fn say(&mut self, message: &ToSupervisor) -> io::Result<()> {
        self.push(message);
        self.flush().await
    }

    fn push(&mut self, message: &ToSupervisor) {
        message.append_to(&mut self.buffer);
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.to.write_all(&self.buffer).await?;
        self.buffer.clear();
        Ok(())
    }
}

impl Prepared {
    /// Whether it is held still, as far as is known: the supervisor would say so if it were not.
    pub fn is_held(&self) -> bool {
        let Incoming { from, greeted } = &self.connection.incoming;
        *greeted && from.buffer().is_empty() && peek(from.get_ref().as_ref()) == Err(Errno::AGAIN)
    }

    /// Lets the program begin.
    ///
    /// # Errors
    /// [`ConnectionError::Refused`], or when the connection fails.
    pub async fn begin(mut self) -> Result<Submitted, ConnectionError> {
        let answer = self.connection.ask(&ToSupervisor::Begin).await?;
        self.connection.submitted(&answer)
    }
}

/// How many bytes could be read now, up to one; [`Errno::AGAIN`] as long as the other side says nothing.
fn peek(stream: impl AsFd) -> rustix::io::Result<usize> {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    rustix::net::recv(stream, &mut [0; 1], flags).map(|(read, _)| read)
}

impl Submitted {
    /// Waits for the end of the job. `events` takes its output as it comes; a slow receiver slows it
    /// down, and one that is gone does not.
    ///
    /// # Errors
    /// When the supervisor fails, or the connection.
    pub async fn attend<E: From<Output>>(
        mut self,
        events: Option<mpsc::Sender<E>>,
        cancel: &CancellationToken,
    ) -> Result<Ended, ConnectionError> {
        let Connection { incoming, outgoing } = &mut self.connection;
        let mut watch = Watch {
            accepted: self.accepted,
            events,
            cancel,
            stdout: Captured::default(),
            stderr: Captured::default(),
        };
        let cancelled = async {
            cancel.cancelled().await;
            // Where it cannot be written, the other side of the connection tells why.
            outgoing.say(&ToSupervisor::Cancel).await.ok();
            tokio::time::sleep(CANCELLED).await;
        };
        let end = tokio::select! {
            end = watch.until_end(incoming) => end?,
            () = cancelled => return Err(ConnectionError::Silent),
        };
        let Watch { stdout, stderr, .. } = watch;
        check(&end, &stdout, &stderr)?;
        Ok(Ended {
            connection: self.connection,
            end,
            stdout: stdout.bytes,
            stderr: stderr.bytes,
        })
    }
}

/// A job that runs, as far as it has come.
struct Watch<'a, E> {
    accepted: Accepted,
    events: Option<mpsc::Sender<E>>,
    cancel: &'a CancellationToken,
    stdout: Captured,
    stderr: Captured,
}

impl<E: From<Output>> Watch<'_, E> {
    async fn until_end(&mut self, incoming: &mut Incoming) -> Result<Box<End>, ConnectionError> {
        loop {
            match incoming.next().await? {
                ToClient::Stdout(bytes) => {
                    let limit = self.accepted.stdout_limit.min(MAX_CAPTURED);
                    self.stdout.push(&bytes, limit);
                    self.pass_on(Output::Stdout(bytes)).await;
                }
                ToClient::Stderr(bytes) => {
                    let limit = self.accepted.stderr_limit.min(MAX_CAPTURED);
                    self.stderr.push(&bytes, limit);
                    self.pass_on(Output::Stderr(bytes)).await;
                }
                ToClient::End(end) => return Ok(end),
                _ => return Err(UNEXPECTED),
            }
        }
    }

    /// Waits for the receiver, but after a cancel only for a moment.
    async fn pass_on(&mut self, output: Output) {
        let Some(events) = &self.events else {
            return;
        };
        let impatient = async {
            self.cancel.cancelled().await;
            tokio::time::sleep(FLUSH).await;
        };
        let taken = tokio::select! {
            biased;
            sent = events.send(output.into()) => sent.is_ok(),
            () = impatient => false,
        };
        if !taken {
            self.events = None;
        }
    }
}

fn check(end: &End, stdout: &Captured, stderr: &Captured) -> Result<(), ConnectionError> {
    if end.stdout_bytes < stdout.total || end.stderr_bytes < stderr.total {
        return Err(protocol("it has sent more output than there was"));
    }
    if end.artifacts.len() > MAX_FILES {
        return Err(protocol("more files than a job may leave"));
    }
    let mut total: u64 = 0;
    for file in &end.artifacts {
        if !is_relative_path(&file.name) {
            return Err(protocol("a file whose name is no path below /output"));
        }
        total = total.saturating_add(file.size);
        if file.size > MAX_FILE_BYTES || total > MAX_FILES_BYTES {
            return Err(protocol("larger files than a job may leave"));
        }
    }
    Ok(())
}

/// Components of visible characters, none of them hidden, `.` or `..`, not starting at the root.
fn is_relative_path(name: &str) -> bool {
    name.len() <= MAX_FILE_NAME
        && !name.chars().any(char::is_control)
        && name
            .split('/')
            .all(|component| !component.is_empty() && !component.starts_with('.'))
}

impl Ended {
    /// How it ended.
    pub fn end(&self) -> &End {
        &self.end
    }

    /// Writes the files that the job has left into a directory, each under a number, and puts
    /// everything together. Without files, the directory need not exist. A cancel ends the patience
    /// with a supervisor that does not go on. The connection can be used for another job then.
    ///
    /// # Errors
    /// [`ConnectionError::Write`]; when a file is not what was announced; when the connection fails.
    pub async fn collect(
        mut self,
        directory: &Path,
        cancel: &CancellationToken,
    ) -> Result<(Outcome, Connection), ConnectionError> {
        let cancelled = async {
            cancel.cancelled().await;
            tokio::time::sleep(CANCELLED).await;
        };
        let paths = tokio::select! {
            biased;
            paths = self.write_files(directory) => paths?,
            () = cancelled => return Err(ConnectionError::Silent),
        };
        let outcome = self.end.into_outcome(self.stdout, self.stderr, paths);
        Ok((outcome, self.connection))
    }

    async fn write_files(&mut self, directory: &Path) -> Result<Vec<PathBuf>, ConnectionError> {
        let mut bytes = Bytes {
            incoming: &mut self.connection.incoming,
            frame: Vec::new(),
            taken: 0,
        };
        let mut paths = Vec::with_capacity(self.end.artifacts.len());
        for (number, announced) in self.end.artifacts.iter().enumerate() {
            let path = directory.join(number.to_string());
            let failed = |source| ConnectionError::Write {
                path: path.clone(),
                source,
            };
            let mut file = create(&path).map_err(failed)?;
            let (mut left, mut hash) = (announced.size, Sha256::new());
            while left > 0 {
                let chunk = bytes.next(left).await?;
                hash.update(chunk);
                file.write_all(chunk).map_err(failed)?;
                left -= chunk.len() as u64;
            }
            if hex::encode(hash.finalize()) != announced.sha256 {
                return Err(protocol("a file that is not what was announced"));
            }
            paths.push(path);
        }
        if !bytes.rest().is_empty() {
            return Err(protocol("more bytes than files were announced"));
        }
        Ok(paths)
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// The bytes of files, which follow each other without regard to frames.
struct Bytes<'a> {
    incoming: &'a mut Incoming,
    frame: Vec<u8>,
    taken: usize,
}

impl Bytes<'_> {
    fn rest(&self) -> &[u8] {
        &self.frame[self.taken..]
    }

    /// Some bytes, at least one and at most `most`.
    async fn next(&mut self, most: u64) -> Result<&[u8], ConnectionError> {
        while self.rest().is_empty() {
            self.frame = match self.incoming.next().await? {
                ToClient::Data(bytes) => bytes,
                _ => return Err(UNEXPECTED),
            };
            self.taken = 0;
        }
        let from = self.taken;
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        self.taken += self.rest().len().min(most);
        Ok(&self.frame[from..self.taken])
    }
}

#[cfg(test)]
mod tests;
