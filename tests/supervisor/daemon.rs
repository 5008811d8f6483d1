//! A supervisor of the test's own, with a state directory of its own.

use crate::client::Client;
use crate::host;
use nix::sys::signal::Signal;
use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};
use tako_vm::sys::process;
use tempfile::TempDir;

/// How long a supervisor may take to begin or to end: it starts no sandbox for that.
const PATIENCE: Duration = Duration::from_secs(20);

/// Keeps the pool empty.
pub(crate) const NOTHING_READY: &str = "pool: {maximum: 0}\n";

pub(crate) struct Daemon {
    child: Child,
    directory: TempDir,
}

impl Daemon {
    /// One with the defaults, but nothing ready: what there is belongs to a job.
    pub(crate) fn start() -> Self {
        Self::with("")
    }

    /// One with this configuration, and nothing ready.
    pub(crate) fn with(config: &str) -> Self {
        Self::in_directory(place(&format!("{config}{NOTHING_READY}")), |_| {})
    }

    /// One with this below `pool` in its configuration.
    pub(crate) fn with_pool(keys: &str) -> Self {
        Self::in_directory(place(&format!("pool: {{{keys}}}\n")), |_| {})
    }

    /// One whose command is changed before it is started.
    pub(crate) fn in_directory(directory: TempDir, change: impl FnOnce(&mut Command)) -> Self {
        let mut command = command(directory.path());
        change(&mut command);
        command.stderr(File::create(directory.path().join("log")).unwrap());
        let mut daemon = Self {
            child: command.spawn().unwrap(),
            directory,
        };
        let socket = daemon.socket();
        let listens = || answers(&socket);
        wait_for(
            PATIENCE,
            || listens() || daemon.child.try_wait().unwrap().is_some(),
            String::new,
        );
        assert!(listens(), "{}", daemon.log());
        daemon
    }

    pub(crate) fn connect(&self) -> Client {
        Client::connect(&self.socket())
    }

    pub(crate) fn socket(&self) -> PathBuf {
        socket(self.directory.path())
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    /// Waits until its log has this: it is written by a thread of its own.
    pub(crate) fn assert_logs(&self, text: &str) {
        let logged = || self.log().contains(text);
        wait_for(Duration::from_secs(5), logged, || self.log());
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Names of its sandboxes.
    pub(crate) fn sandboxes(&self) -> Vec<String> {
        names_below(&self.state().join("sandboxes"))
    }

    /// The one sandbox that there is, once it is.
    pub(crate) fn sandbox(&self) -> String {
        wait_for(
            PATIENCE,
            || self.sandboxes().len() == 1,
            || format!("{:?}", self.sandboxes()),
        );
        self.sandboxes().remove(0)
    }

    /// Waits until nothing is left of its jobs: no sandbox, no process of one, no file.
    pub(crate) fn assert_empty_within(&self, limit: Duration) {
        self.assert_without_sandboxes_within(limit);
        let spools = || names_below(&self.state().join("spools"));
        wait_for(
            limit,
            || spools().is_empty(),
            || format!("there is: {:?}", spools()),
        );
    }

    /// Waits until there are no sandboxes and no process of one.
    pub(crate) fn assert_without_sandboxes_within(&self, limit: Duration) {
        let state = self.state().join("sandboxes").display().to_string();
        let left = || [self.sandboxes(), host::processes_that_mention(&state)].concat();
        wait_for(
            limit,
            || left().is_empty(),
            || format!("there is: {:?}", left()),
        );
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the child is ours and not waited for: its number is not given anew"
    )]
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) fn end(&mut self) -> ExitStatus {
        let mut status = None;
        let mut ended = || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        };
        wait_for(PATIENCE, &mut ended, || "it has not ended".to_owned());
        status.unwrap()
    }

    /// Its end, which leaves its directory to the next.
    pub(crate) fn killed(mut self) -> TempDir {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let empty = tempfile::tempdir().unwrap();
        std::mem::replace(&mut self.directory, empty)
    }

    /// Bytes of memory that are its own, or the program's that it is.
    pub(crate) fn memory(&self) -> u64 {
        self.bytes_of("VmRSS:")
    }

    /// The most that it ever had.
    pub(crate) fn memory_peak(&self) -> u64 {
        self.bytes_of("VmHWM:")
    }

    fn bytes_of(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kilobytes = line.unwrap().split_whitespace().next().unwrap();
        kilobytes.parse::<u64>().unwrap() << 10
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        // One that has ended cannot be killed.
        drop(self.child.kill());
        drop(self.child.wait());
        drop(tako_vm::sandbox::sweep(&self.state()));
    }
}

/// Whether a supervisor that has begun to serve is there. One that has not lets those who connect wait.
fn answers(socket: &Path) -> bool {
    let Ok(mut stream) = UnixStream::connect(socket) else {
        return false;
    };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.read_exact(&mut [0]).is_ok()
}

/// Waits until something is so; otherwise says what is.
pub(crate) fn wait_for(
    limit: Duration,
    mut so: impl FnMut() -> bool,
    otherwise: impl Fn() -> String,
) {
    let limit = host::on_this_host(limit);
    let begun = Instant::now();
    while !so() {
        let over = begun.elapsed() >= limit;
        assert!(!over, "after {limit:?}: {}", otherwise());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn names_below(directory: &Path) -> Vec<String> {
    if directory.exists() {
        host::names_in(directory)
    } else {
        Vec::new()
    }
}

pub(crate) fn socket(directory: &Path) -> PathBuf {
    directory.join("supervisor.sock")
}

/// A directory with a state directory in it that has the images and the runsc of ours.
pub(crate) fn place(config: &str) -> TempDir {
    let directory = tempfile::Builder::new()
        .prefix("tako-vm-test-")
        .permissions(Permissions::from_mode(0o755))
        .tempdir()
        .unwrap();
    fs::write(directory.path().join("config.yaml"), config).unwrap();
    let (ours, state) = (host::state_dir(), directory.path().join("state"));
    fs::create_dir_all(state.join("images")).unwrap();
    for name in host::names_in(&ours.join("images")) {
        let (from, to) = (
            ours.join("images").join(&name),
            state.join("images").join(&name),
        );
        if name == "sha256" {
            symlink(from, to).unwrap();
        } else if from.is_file() {
            fs::copy(from, to).unwrap();
        }
    }
    for name in ["digests", "runsc"] {
        symlink(ours.join(name), state.join(name)).unwrap();
    }
    directory
}

/// The command that serves in a directory.
pub(crate) fn command(directory: &Path) -> Command {
    let mut command = process::program(env!("CARGO_BIN_EXE_tako-vm"));
    command
        .arg("supervisor")
        .arg("--socket")
        .arg(socket(directory))
        .arg("--config")
        .arg(directory.join("config.yaml"))
        .arg("--state-dir")
        .arg(directory.join("state"));
    command
}
