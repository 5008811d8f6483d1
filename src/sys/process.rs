//! Starting other programs, and burying them.
//!
//! A program started here inherits nothing by accident: its environment is empty but for a fixed
//! `PATH`, it starts in `/`, reads nothing from stdin, and every descriptor above 2 closes at exec.

use crate::sys::cgroup::Leaf;
use crate::sys::processor;
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Where programs are looked up, whatever the caller's own `PATH` says.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
pub enum ProcessError {
    #[error("cannot start `{program}`")]
    Start { program: String, source: io::Error },
    #[error("`{program}` did not end within {limit:?}")]
    TooSlow { program: String, limit: Duration },
    #[error("`{program}` failed ({status}){}", tail(stderr))]
    Failed {
        program: String,
        status: ExitStatus,
        stdout: String,
        stderr: String,
    },
}

/// The last lines of what a failed program said.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().rev().take(5).collect();
    let mut shown = String::new();
    for line in lines.iter().rev() {
        shown.push_str("\n  ");
        shown.push_str(line);
    }
    if shown.is_empty() {
        shown
    } else {
        format!(":{shown}")
    }
}

/// What a successful program printed.
#[derive(Debug)]
pub struct Printed {
    /// Standard output, invalid UTF-8 replaced.
    pub stdout: String,
    /// Standard error, invalid UTF-8 replaced.
    pub stderr: String,
}

/// A program to start, looked up in [`PATH`] unless it is a path; see the module for what it inherits.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place where programs are started"
)]
pub fn program(name: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(resolve(name.as_ref()));
    command
        .env_clear()
        .env("PATH", PATH)
        .current_dir("/")
        .stdin(Stdio::null());
    command
}

/// The first executable of that name in [`PATH`]; the name itself where there is none.
fn resolve(name: &OsStr) -> OsString {
    if name.as_encoded_bytes().contains(&b'/') {
        return name.to_owned();
    }
    find(name).unwrap_or_else(|| name.to_owned())
}

/// Where in [`PATH`] a program lies.
pub fn find(name: &OsStr) -> Option<OsString> {
    std::env::split_paths(PATH)
        .map(|directory| directory.join(name))
        .find(|path| nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok())
        .map(Into::into)
}

/// Runs a program to its end, keeping what it prints.
///
/// # Errors
/// [`ProcessError::Failed`] with both streams unless it exits with 0.
pub fn run(command: &mut Command) -> Result<Printed, ProcessError> {
    let name = command.get_program().to_string_lossy().into_owned();
    close_descriptors_at_exec(command);
    let output = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .map_err(|source| ProcessError::Start {
            program: name.clone(),
            source,
        })?;
    printed(name, &output)
}

fn printed(program: String, output: &Output) -> Result<Printed, ProcessError> {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        Ok(Printed { stdout, stderr })
    } else {
        Err(ProcessError::Failed {
            program,
            status: output.status,
            stdout,
            stderr,
        })
    }
}

/// How long a program may take to end once it was interrupted.
const PATIENCE: Duration = Duration::from_secs(2);

/// Runs a program as [`run`] does, without blocking the thread and in a process group of its own. A
/// cancel interrupts it (SIGINT), and kills what is left of its group when that has ended it, or has not
/// within two seconds; then nothing is kept.
///
/// # Errors
/// Those of [`run`].
pub async fn run_until_cancelled(
    mut command: Command,
    cancel: &CancellationToken,
) -> Result<Option<Printed>, ProcessError> {
    let name = command.get_program().to_string_lossy().into_owned();
    let failed = |source| ProcessError::Start {
        program: name.clone(),
        source,
    };
    close_descriptors_at_exec(&mut command);
    command
        .process_group(0) // a terminal's Ctrl-C is for us to handle
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = tokio::process::Command::from(command)
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    // Not waited for yet, so that the number is still its own.
    let leader = child.id().map(u32::cast_signed);
    let handle = leader.map(PidFd::open).transpose().map_err(failed)?;
    let mut ended = Box::pin(child.wait_with_output());
    if let Some(output) = cancel.run_until_cancelled(&mut ended).await {
        return printed(name.clone(), &output.map_err(failed)?).map(Some);
    }
    if let Some((leader, handle)) = leader.zip(handle) {
        handle.interrupt().map_err(failed)?;
        // Only watched, so that the number is still that of its group.
        drop(timeout(PATIENCE, handle.ended()).await);
        // `bwrap` is to take its child along, and does not when it dies just as it has made it.
        let killed = killpg(Pid::from_raw(leader), Signal::SIGKILL);
        killed.or_else(|errno| match errno {
            Errno::ESRCH => Ok(()),
            errno => Err(failed(errno.into())),
        })?;
    }
    drop(timeout(PATIENCE, ended).await);
    Ok(None)
}

/// Runs a program as [`run`] does, but kills it when it takes longer than `limit`.
///
/// Its output goes to files without names: a pipe would be held open by whatever it leaves behind.
///
/// # Errors
/// [`ProcessError::TooSlow`], and those of [`run`].
pub fn run_within(command: &mut Command, limit: Duration) -> Result<Printed, ProcessError> {
    let name = command.get_program().to_string_lossy().into_owned();
    let failed = |source| ProcessError::Start {
        program: name.clone(),
        source,
    };
    let [mut stdout, mut stderr] = [
        tempfile::tempfile().map_err(failed)?,
        tempfile::tempfile().map_err(failed)?,
    ];
    close_descriptors_at_exec(command);
    command.stdout(stdout.try_clone().map_err(failed)?);
    command.stderr(stderr.try_clone().map_err(failed)?);
    let mut child = command.spawn().map_err(failed)?;
    let handle = PidFd::open(child.id().cast_signed()).map_err(failed)?;
    let (ended, watched) = mpsc::channel::<()>();
    let watch = thread::spawn(move || {
        let overdue = watched.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
        overdue && handle.kill().is_ok()
    });
    let status = child.wait().map_err(failed)?;
    drop(ended);
    if watch.join().is_ok_and(|killed| killed) {
        return Err(ProcessError::TooSlow {
            program: name,
            limit,
        });
    }
    let stdout = read_from_start(&mut stdout).map_err(failed)?;
    let stderr = read_from_start(&mut stderr).map_err(failed)?;
    if status.success() {
        Ok(Printed { stdout, stderr })
    } else {
        Err(ProcessError::Failed {
            program: name,
            status,
            stdout,
            stderr,
        })
    }
}

fn read_from_start(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Runs a program as [`run`] does, and tells it to end (SIGTERM) when we do, however that comes.
///
/// For long work that would otherwise go on writing to files that nobody waits for any more. The
/// kernel watches the thread that starts the program: call it from one that lives as long as we do.
///
/// # Errors
/// Those of [`run`].
pub fn run_while_we_live(command: &mut Command) -> Result<Printed, ProcessError> {
    end_with_us(command);
    run(command)
}

/// Starts a program that serves us, in a process group of its own, since a terminal's Ctrl-C is for us
/// to handle. It is told to end (SIGTERM) when we do, as [`run_while_we_live`] has it.
///
/// # Errors
/// When the program cannot be started.
pub fn spawn_service(command: &mut Command) -> io::Result<Child> {
    end_with_us(command);
    close_descriptors_at_exec(command);
    command.process_group(0).spawn()
}

/// Starts a program that goes on when we have ended, in a session of its own.
///
/// # Errors
/// When the program cannot be started.
pub fn spawn_detached(command: &mut Command) -> io::Result<Child> {
    // SAFETY: between fork and exec only async-signal-safe calls may run; setsid(2) is one.
    unsafe { command.pre_exec(|| Ok(nix::unistd::setsid().map(drop)?)) };
    close_descriptors_at_exec(command);
    command.spawn()
}

/// Starts a program as another user, who has no privileges, in a process group of its own. Its standard
/// input is a pipe: that it ends tells the program that we did.
///
/// # Errors
/// When the program cannot be started.
pub fn spawn_as(mut command: Command, uid: u32, gid: u32) -> io::Result<tokio::process::Child> {
    // With a user there are no supplementary groups any more (`std::os::unix::process::CommandExt`).
    command
        .uid(uid)
        .gid(gid)
        .process_group(0)
        .stdin(Stdio::piped());
    close_descriptors_at_exec(&mut command);
    tokio::process::Command::from(command).spawn()
}

/// The kernel watches the thread that starts the program.
fn end_with_us(command: &mut Command) {
    let us = nix::unistd::getpid();
    let bind = move || {
        nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?;
        // We may have died between fork and the call above, and then no signal will come.
        if nix::unistd::getppid() == us {
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(libc::ESRCH))
        }
    };
    // SAFETY: between fork and exec only async-signal-safe calls may run; the closure calls prctl(2)
    // and getppid(2) alone, and builds its errors without allocating.
    unsafe { command.pre_exec(bind) };
}

/// Starts a program inside a cgroup, in a process group of its own, with pipes for all three streams.
///
/// It is in the cgroup before its first instruction, so that nothing it starts can be outside, and
/// neither it nor what it starts leaves a core dump. With a `processor` they run on that one, and take
/// turns there: see [`take_turns`].
///
/// # Errors
/// When the program cannot be started, or not be placed in every hierarchy of the cgroup.
pub fn spawn_in(
    mut command: Command,
    leaf: &Leaf,
    processor: Option<usize>,
) -> io::Result<tokio::process::Child> {
    let procs = leaf.open_procs()?;
    let descriptors: Vec<RawFd> = procs.iter().map(AsRawFd::as_raw_fd).collect();
    command
        .process_group(0) // a terminal's Ctrl-C is for us to handle, not for runsc
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let enter = move || {
        // A core dump is memory of the guest on a disk of the host. One byte is too little for any
        // file, and the only limit at which the kernel pipes none to a program (core(5)): 0 is not.
        setrlimit(Resource::RLIMIT_CORE, 1, 1)?;
        descriptors
            .iter()
            .try_for_each(|&descriptor| enter_cgroup(descriptor))?;
        // Last: entering a cpuset gives a process all the processors of it.
        processor.map_or(Ok(()), take_turns)
    };
    // SAFETY: between fork and exec only async-signal-safe calls may run; the closure calls
    // setrlimit(2), write(2) on descriptors that `procs` keeps open until the child was started,
    // sched_setaffinity(2) and sched_setscheduler(2), and allocates nothing.
    unsafe { command.pre_exec(enter) };
    close_descriptors_at_exec(&mut command);
    let child = tokio::process::Command::from(command)
        .kill_on_drop(true)
        .spawn();
    drop(procs);
    child
}

/// Lets the calling process run on one processor, where no thread of it interrupts another (sched(7),
/// `SCHED_BATCH`).
///
/// A thread of gVisor's that wakes another one often goes on to wait until the other is asleep. Were it
/// interrupted by the one it woke, that one would wait for it in vain, and busily, for a whole time
/// slice of 2 to 5 ms: on one processor nothing else can end that.
fn take_turns(processor: usize) -> io::Result<()> {
    match processor::confine(0, processor) {
        // It was taken away from us in the meantime: anywhere, then. Limits hold there as well.
        Ok(()) | Err(Errno::EINVAL) => {}
        Err(errno) => return Err(errno.into()),
    }
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: sched_setscheduler(2) reads one `sched_param`, which lives until it returns.
    let set = unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameters) };
    Errno::result(set).map(drop).map_err(Into::into)
}

/// Writes "0", which means the writing process itself, into an open `cgroup.procs`.
fn enter_cgroup(procs: RawFd) -> io::Result<()> {
    // SAFETY: the buffer is one static byte, and its length says so.
    let written = unsafe { libc::write(procs, b"0".as_ptr().cast(), 1) };
    if written == 1 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Descriptors that our own parent left open without close-on-exec must not reach the program.
fn close_descriptors_at_exec(command: &mut Command) {
    let close = || {
        // SAFETY: close_range(2) with CLOEXEC takes three integers and only sets a flag.
        let result = unsafe {
            libc::syscall(
                libc::SYS_close_range,
                3,
                u32::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    };
    // SAFETY: the closure makes one system call and touches no memory.
    unsafe { command.pre_exec(close) };
}

/// A handle on a process that stays on this very process, whatever becomes of its number.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// Opens a handle (`pidfd_open(2)`, Linux 5.3).
    ///
    /// # Errors
    /// `ESRCH` when no such process exists any more.
    pub fn open(pid: i32) -> io::Result<Self> {
        // SAFETY: pidfd_open takes two integers and reads no memory of ours.
        let opened = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let descriptor = RawFd::try_from(opened).map_err(io::Error::other)?;
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just handed us the descriptor; nothing else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(descriptor) }))
    }

    /// Kills the process; one that is dead already is no error.
    ///
    /// # Errors
    /// `EPERM` when the process is not ours to kill.
    pub fn kill(&self) -> io::Result<()> {
        self.signal(libc::SIGKILL)
    }

    /// Interrupts the process as Ctrl-C does (SIGINT); one that is dead already is no error.
    ///
    /// # Errors
    /// `EPERM` when the process is not ours to signal.
    pub fn interrupt(&self) -> io::Result<()> {
        self.signal(libc::SIGINT)
    }

    /// Stops the process (SIGSTOP); one that is dead already is no error.
    ///
    /// # Errors
    /// `EPERM` when the process is not ours to stop.
    pub fn stop(&self) -> io::Result<()> {
        self.signal(libc::SIGSTOP)
    }

    /// Waits until the process has ended, and leaves it to be buried.
    async fn ended(&self) -> io::Result<()> {
        let watched = self.0.try_clone()?;
        // SAFETY: an owned descriptor is always the same one, and open until it is dropped.
        let watched = unsafe { AsyncFd::register_with_interest(watched, Interest::READABLE) }?;
        watched.readable().await.map(drop)
    }

    /// `pidfd_send_signal(2)`.
    fn signal(&self, number: libc::c_int) -> io::Result<()> {
        let no_info: *const libc::siginfo_t = std::ptr::null();
        // SAFETY: a null siginfo is allowed and means "as kill(2) would fill it".
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                number,
                no_info,
                0,
            )
        };
        match Errno::result(sent) {
            Ok(_) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Raises the soft limit of open files to the hard one (getrlimit(2)), here and in what is started from
/// here: the soft limit of most systems, 1,024, is meant for programs that use `select(2)`.
///
/// # Errors
/// Those of getrlimit(2) and setrlimit(2).
pub fn raise_open_files() -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// Makes this process inherit the orphans of the programs it starts, so that it can bury them:
/// runsc takes a zombie for a living process.
///
/// # Errors
/// When the kernel refuses (`prctl(2)`, `PR_SET_CHILD_SUBREAPER`).
pub fn become_subreaper() -> io::Result<()> {
    Ok(nix::sys::prctl::set_child_subreaper(true)?)
}

/// Does what waits for the kernel, without holding up other tasks where the runtime has threads for
/// them.
pub fn blocking<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// Our children, inherited orphans included.
///
/// # Errors
/// Those of reading `/proc` (Linux 3.5, `CONFIG_PROC_CHILDREN`).
pub fn children() -> io::Result<BTreeSet<i32>> {
    let mut children = BTreeSet::new();
    for thread in fs::read_dir("/proc/self/task")? {
        match fs::read_to_string(thread?.path().join("children")) {
            Ok(pids) => children.extend(
                pids.split_whitespace()
                    .filter_map(|pid| pid.parse::<i32>().ok()),
            ),
            // A thread that has ended has left its children to another.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(children)
}

/// Buries `pid` if it is a dead child of ours; never waits, never touches any other child.
pub fn reap(pid: i32) {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
    match waitid(Id::Pid(Pid::from_raw(pid)), flags) {
        // ECHILD: it is no child of ours, or somebody else has buried it. Both are fine.
        Ok(_) | Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_program_keeps_its_status_and_both_streams() {
        let mut command = program("sh");
        command.args(["-c", "echo out; echo err >&2; exit 3"]);
        let error = run(&mut command).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("failed (exit status: 3):\n  err"),
            "{error}"
        );
        let ProcessError::Failed { stdout, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(stdout, "out\n");
    }

    #[test]
    fn a_program_that_hangs_is_killed_whatever_it_left_behind() {
        let mut command = program("sh");
        command.args(["-c", "echo begun; sleep 5 & wait"]);
        let started = std::time::Instant::now();
        let error = run_within(&mut command, Duration::from_millis(200)).unwrap_err();
        assert!(matches!(error, ProcessError::TooSlow { .. }), "{error}");
        assert!(started.elapsed() < Duration::from_secs(3));
        let printed = run_within(program("echo").arg("fine"), Duration::from_secs(9)).unwrap();
        assert_eq!(printed.stdout, "fine\n");
    }

    #[tokio::test]
    async fn a_cancelled_program_is_interrupted_and_killed_when_that_does_not_end_it() {
        let run = async |script: &str, cancel: &CancellationToken| {
            let mut command = program("sh");
            command.args(["-c", script]);
            run_until_cancelled(command, cancel).await
        };
        let never = CancellationToken::new();
        let printed = run("echo fine", &never).await.unwrap().unwrap();
        assert_eq!(printed.stdout, "fine\n");
        let error = run("echo why >&2; exit 3", &never).await.unwrap_err();
        assert!(error.to_string().ends_with("why"), "{error}");
        for (script, patient) in [
            ("exec sleep 100", false),
            ("trap '' INT; while :; do sleep 1; done", true),
        ] {
            let cancel = CancellationToken::new();
            let begun = std::time::Instant::now();
            let clock = cancel.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(200)).await;
                clock.cancel();
            });
            assert!(run(script, &cancel).await.unwrap().is_none());
            assert_eq!(begun.elapsed() > PATIENCE, patient, "{script}");
        }
    }

    #[tokio::test]
    async fn what_a_cancelled_program_leaves_in_its_group_is_killed() {
        let directory = tempfile::tempdir().unwrap();
        let (pid, cancel) = (directory.path().join("pid"), CancellationToken::new());
        let mut command = program("sh");
        // What a shell starts in the background does not hear an interrupt.
        command.args(["-c", "sleep 100 & echo $! > \"$1\"; wait", "sh"]);
        command.arg(&pid);
        let running = tokio::spawn({
            let cancel = cancel.clone();
            async move { run_until_cancelled(command, &cancel).await }
        });
        let text = loop {
            match fs::read_to_string(&pid) {
                Ok(text) if text.ends_with('\n') => break text,
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        cancel.cancel();
        assert!(running.await.unwrap().unwrap().is_none());
        // It dies when it is its turn, and whoever inherits it may not have buried it yet.
        let stat = format!("/proc/{}/stat", text.trim());
        let lives = || {
            let stat = fs::read_to_string(&stat).unwrap_or_default();
            !stat.is_empty() && !stat.contains(") Z ")
        };
        let begun = std::time::Instant::now();
        while lives() {
            assert!(begun.elapsed() < PATIENCE, "{}", text.trim());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[test]
    fn a_program_inherits_no_environment_and_no_descriptor() {
        // Deliberately without close-on-exec, as a careless parent would leave it.
        let leaked = std::fs::File::open("/dev/null").unwrap();
        nix::fcntl::fcntl(
            &leaked,
            nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()),
        )
        .unwrap();
        let mut command = program("sh");
        // The last descriptor is the one that `ls` reads the directory with.
        command.args(["-c", "env | sort; exec ls /proc/self/fd"]);
        let printed = run(&mut command).unwrap().stdout;
        assert_eq!(printed, format!("PATH={PATH}\nPWD=/\n0\n1\n2\n3\n"));
    }

    #[test]
    fn a_killed_process_is_dead_and_a_dead_one_is_no_error() {
        let mut child = program("sleep").arg("100").spawn().unwrap();
        let handle = PidFd::open(child.id().cast_signed()).unwrap();
        handle.kill().unwrap();
        assert!(!child.wait().unwrap().success());
        handle.kill().unwrap();
    }
}
