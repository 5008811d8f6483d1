//! Starting the program: the unsafe perimeter of init.
//!
//! With `clone(2)` that shares init's memory until exec (as vfork does), because a fork copies an
//! address space, which gVisor does in some 10 ms. Init is suspended meanwhile and has one thread, so
//! that the child may use its memory, allocate included.
#![expect(
    unsafe_code,
    reason = "the one place where init starts a process by hand"
)]

use crate::{InitError, PROGRAM_ID};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sched::{CloneFlags, clone};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{
    Gid, Pid, Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, execve, pipe2, setgroups, setpgid,
    setresgid, setresuid,
};
use std::convert::Infallible;
use std::ffi::{CStr, CString, NulError};
use std::fs::File;
use std::os::fd::OwnedFd;

/// The interpreter, and what it is told.
const INTERPRETER: &CStr = c"/usr/bin/python3";
const ARGUMENTS: [&CStr; 3] = [c"python3", c"-u", c"/code/main.py"];

/// For errors.
const DOING: &str = "start the interpreter";

/// Where the program starts.
const DIRECTORY: &CStr = c"/app";

/// The stack of the child until exec: it calls a dozen functions, none of them deep.
const STACK_BYTES: usize = 64 << 10;

/// A started program, and the read ends of its standard output and standard error, which do not block.
pub(crate) struct Started {
    pub(crate) pid: Pid,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// Starts the interpreter on `/code/main.py` as the program's user, with this environment alone.
pub(crate) fn start(environment: &[(String, String)]) -> Result<Started, InitError> {
    let variables = environment
        .iter()
        .map(|(name, value)| CString::new(format!("{name}={value}")))
        .collect::<Result<Vec<_>, NulError>>()
        .map_err(InitError::system(DOING))?;
    let stdin = File::open("/dev/null")
        .map_err(InitError::system(DOING))?
        .into();
    let (stdout, child_stdout) = pipe2(OFlag::O_CLOEXEC).map_err(InitError::system(DOING))?;
    let (stderr, child_stderr) = pipe2(OFlag::O_CLOEXEC).map_err(InitError::system(DOING))?;
    for end in [&stdout, &stderr] {
        fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(InitError::system(DOING))?;
    }
    let streams = [stdin, child_stdout, child_stderr];
    let mut stack = vec![0; STACK_BYTES];
    let mut refused = None;
    let child = Box::new(|| {
        // Reached by a failure only; init sees what is written here, the memory is its own.
        let Err(errno) = become_program(&streams, &variables);
        refused = Some(errno);
        1
    });
    let flags = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
    // SAFETY: the child runs on a stack of its own that outlives it, since CLONE_VFORK suspends this
    // thread, the only one, until the child has executed another program or ended.
    let cloned = unsafe { clone(child, &mut stack, flags, Some(Signal::SIGCHLD as i32)) };
    let pid = cloned.map_err(InitError::system(DOING))?;
    match refused {
        None => Ok(Started {
            pid,
            stdout,
            stderr,
        }),
        Some(errno) => Err(InitError::system(DOING)(errno)),
    }
}

/// In the child: everything between clone and exec, and no way back to being root.
fn become_program(streams: &[OwnedFd; 3], environment: &[CString]) -> Result<Infallible, Errno> {
    let [stdin, stdout, stderr] = streams;
    dup2_stdin(stdin)?;
    dup2_stdout(stdout)?;
    dup2_stderr(stderr)?;
    setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
    chdir(DIRECTORY)?;
    // SAFETY: the default action runs no code of ours. The Rust runtime has ignored the signal, and
    // without CLONE_SIGHAND the child's dispositions are its own.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }?;
    let (uid, gid) = (Uid::from_raw(PROGRAM_ID), Gid::from_raw(PROGRAM_ID));
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    // The last step of privilege: it takes every capability with it (capabilities(7)).
    setresuid(uid, uid, uid)?;
    execve(INTERPRETER, &ARGUMENTS, environment)
}
