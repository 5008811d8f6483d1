//! The guest protocol: how the host and `tako-init` talk over the stdio of `runsc`.
//!
//! Host to guest (stdin): [`ToGuest`], one job and then at most a cancel. Guest to host (stdout):
//! [`ToHost`], what the program does, how it ended, and the files it left in `/output`.
//!
//! ```text
//! host                                   guest
//!   <------------------------------------ Ready
//!   Env*, Hold -------------------------->            (only where a job is not there yet)
//!   <------------------------------------ Held
//!   Env*, (File Data*)*, Ping ----------->            (any number of times)
//!   <------------------------------------ Held
//!   Env*, (File Data*)*, Start ---------->
//!   <------------------------------------ Started, Running, (Stdout | Stderr)*
//!   Cancel ------------------------------>            (at any time after Start)
//!   <------------------------------------ Exit
//!   <------------------------------------ (File Data* FileEnd | Skipped)*
//!   <------------------------------------ Done
//! ```
//!
//! Everything that comes from the guest is untrusted: the decoder bounds each length before it
//! allocates, and no frame can make it allocate more than [`MAX_FRAME`].

pub mod frame;

use serde::{Deserialize, Serialize};

pub use frame::{Buffer, FrameError, MAX_CHUNK, MAX_FRAME, encode};

/// The version that both ends must share; an image carries it in its manifest.
pub const PROTOCOL: u16 = 4;

/// Where `tako-init` lies inside an executor image.
pub const INIT_PATH: &str = "/usr/lib/tako-vm/tako-init";

/// The directory inside the sandbox that init alone writes to.
pub const RUN_DIR: &str = "/run/tako-vm";

/// The FIFO through which the interpreter's hook reports to init.
///
/// The program can write to it too. What it claims there names its own exception, or ends it with a status
/// of its choice.
pub const REPORT_FIFO: &str = "/run/tako-vm/report";

/// The FIFO on which an interpreter that is held ready waits for its program. It is gone before any
/// program runs.
pub const HOLD_FIFO: &str = "/run/tako-vm/hold";

/// Longest path of a collected file below `/output`, in bytes.
pub const MAX_FILE_NAME: usize = 1024;

/// What the host sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToGuest<'a> {
    /// One variable of the program's environment.
    Env {
        /// Name, without `=` or NUL.
        name: &'a str,
        /// Value, without NUL.
        value: &'a str,
    },
    /// A file to make; `size` bytes of [`ToGuest::Data`] follow.
    File {
        /// In which directory.
        area: Area,
        /// A single path component.
        name: &'a str,
        /// Bytes that follow.
        size: u64,
    },
    /// The next bytes of the file, at most [`MAX_CHUNK`].
    Data(#[serde(borrow)] &'a [u8]),
    /// Everything is there: run the program under these limits.
    Start(Limits),
    /// Kill the program now, and report.
    Cancel,
    /// Start the interpreter with the environment so far, and hold it until [`ToGuest::Start`].
    Hold,
    /// Rehearse the job that was sent, which is not begun, and say that the interpreter is held: a restored
    /// guest has said so to somebody else, and has none of its pages mapped.
    Ping,
}

/// The directories that the host may fill. Both belong to root inside the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Area {
    /// `/code`
    Code,
    /// `/input`
    Input,
}

/// What init enforces by itself; the host holds the same bounds from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Milliseconds from the start of the interpreter until it is up.
    pub startup_ms: u64,
    /// Milliseconds from there until the program is told to end.
    pub execution_ms: u64,
    /// Bytes of stdout and stderr together; the program is killed above it.
    pub output_bytes: u64,
    /// Bytes of one collected file; a larger one is skipped.
    pub artifact_bytes: u64,
    /// Bytes of all collected files together.
    pub artifacts_total_bytes: u64,
}

/// What the guest sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToHost<'a> {
    /// Init is up and waits for a job.
    Ready {
        /// [`PROTOCOL`] as init was built with it.
        protocol: u16,
    },
    /// The interpreter was started.
    Started,
    /// The interpreter is up and turns to the program.
    Running {
        /// Milliseconds that it took.
        startup_ms: u64,
    },
    /// Bytes of the program's standard output.
    Stdout(#[serde(borrow)] &'a [u8]),
    /// Bytes of the program's standard error.
    Stderr(&'a [u8]),
    /// The program has ended, and nothing else of it is left.
    Exit(Exit<'a>),
    /// A file of `/output`; `size` bytes of [`ToHost::Data`] follow, then [`ToHost::FileEnd`].
    File {
        /// Path below `/output`, `/` between components.
        name: &'a str,
        /// Bytes announced; fewer may follow if the file cannot be read to its end.
        size: u64,
    },
    /// The next bytes of the file.
    Data(&'a [u8]),
    /// The file is over.
    FileEnd {
        /// All announced bytes were sent.
        complete: bool,
    },
    /// A file that was left out.
    Skipped {
        /// Its path, or as much as can be shown.
        name: &'a str,
        /// Why.
        reason: SkipReason,
    },
    /// Nothing follows.
    Done {
        /// Entries left out, including those that no [`ToHost::Skipped`] names.
        skipped: u64,
    },
    /// Init could not do its own part; the job did not run, or its end is unknown.
    Fault(&'a str),
    /// The interpreter is up and waits for a program.
    Held,
}

/// How the program ended, as the kernel told init, or the interpreter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit<'a> {
    /// The wait status of the program, or the status with which the interpreter was about to exit.
    pub status: ExitStatus,
    /// Why init killed it, if init did.
    pub ended_by: Option<EndedBy>,
    /// Milliseconds from the start of the interpreter until it was up; `None` if it never was.
    pub startup_ms: Option<u64>,
    /// Milliseconds that the program ran after that.
    pub execution_ms: u64,
    /// The exception that the interpreter says ended the program.
    #[serde(borrow)]
    pub exception: Option<Exception<'a>>,
}

/// A wait status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It ended by itself with this code.
    Exited(u8),
    /// A signal of this number killed it.
    Signalled(u8),
}

/// Why init ended a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndedBy {
    /// The interpreter was not up within [`Limits::startup_ms`].
    StartupLimit,
    /// The program ran longer than [`Limits::execution_ms`].
    ExecutionLimit,
    /// It wrote more than [`Limits::output_bytes`].
    OutputLimit,
    /// The host sent [`ToGuest::Cancel`].
    Cancel,
}

/// An exception as the hook in the interpreter reported it: the program's own claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exception<'a> {
    /// Names of the class and its bases, most derived first, separated by spaces.
    pub classes: &'a str,
    /// `str(exception)`, cut.
    pub message: &'a str,
}

/// Why a file of `/output` was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SkipReason {
    /// Larger than one file may be.
    TooLarge,
    /// The total of all files, their number, the depth or the time was used up.
    LimitReached,
    /// Neither a regular file nor a directory.
    NotRegular,
    /// The name is not UTF-8, has control characters, or is too long.
    BadName,
    /// Opening or reading it failed.
    Unreadable,
}
