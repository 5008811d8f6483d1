//! `tako-init`: pid 1 of every sandbox. One job, then the end.
//!
//! It runs as uid 0 *of the sandbox* with SETUID, SETGID and KILL only; the program runs as another
//! uid, which can neither signal nor trace it nor reach its pipes. Single-threaded, and blocked in
//! `read` until a job comes, because such a guest survives checkpoint and restore.
//!
//! Init never opens a file that the program made: what lies in `/output` is read by the
//! [`collect`]or, another process with the program's uid and no capability.

mod collect;
mod hold;
mod host;
mod job;
mod program;
mod report;
mod spawn;

use host::Host;
use job::{Files, Wish};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, umask};
use program::Left;
use std::os::unix::fs::PermissionsExt;
use std::process::ExitCode;
use tako_guest::{PROTOCOL, ToHost};

/// The uid and gid of the program inside the sandbox.
const PROGRAM_ID: u32 = 1000;

/// Why init gives up; the host hears of it as [`ToHost::Fault`].
#[derive(Debug, thiserror::Error)]
enum InitError {
    #[error("cannot {doing}")]
    System {
        doing: &'static str,
        source: std::io::Error,
    },
    #[error("the host does not speak the protocol")]
    Protocol { source: tako_guest::FrameError },
    #[error("the host sent a frame out of order")]
    OutOfOrder,
    #[error("the seccomp profile is not in force")]
    NoFilter,
    #[error("the host closed the connection")]
    HostGone,
    #[error("the interpreter ended before there was a program for it")]
    NotHeld,
    #[error("the interpreter can take no program: {why}")]
    Unfit { why: String },
}

impl InitError {
    /// For `map_err`: names what was being done.
    fn system<E: Into<std::io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System {
            doing,
            source: source.into(),
        }
    }
}

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(collect::ARGUMENT) {
        return collect::main();
    }
    umask(Mode::from_bits_truncate(0o022));
    let Ok(mut host) = Host::open() else {
        return ExitCode::from(2);
    };
    match serve(&mut host) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = describe(&error);
            // The host may be gone; then nobody is left to tell.
            if host.send(&ToHost::Fault(&text)).is_err() {
                return ExitCode::from(3);
            }
            ExitCode::FAILURE
        }
    }
}

/// gVisor puts these into every `/dev`, open to everybody; no program of ours has a use for them.
const DEVICES: [&str; 2] = ["/dev/fuse", "/dev/net/tun"];

fn remove_devices() -> Result<(), InitError> {
    DEVICES
        .iter()
        .try_for_each(|device| match std::fs::remove_file(device) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(InitError::system("remove a device")(error))
            }
            _ => Ok(()),
        })
}

/// Makes a call that the seccomp profile refuses, and that changes nothing where it is not in force.
fn require_filter() -> Result<(), InitError> {
    match unshare(CloneFlags::empty()) {
        Err(Errno::EPERM) => Ok(()),
        _ => Err(InitError::NoFilter),
    }
}

/// Lets the program write to `/output`: runc 1.1 mounts it with the mode of the image's directory.
fn open_output() -> Result<(), InitError> {
    std::fs::set_permissions(collect::OUTPUT, PermissionsExt::from_mode(0o1777))
        .map_err(InitError::system("open up `/output`"))
}

fn serve(host: &mut Host) -> Result<(), InitError> {
    require_filter()?;
    remove_devices()?;
    open_output()?;
    let mut reports = report::Reports::open()?;
    host.send(&ToHost::Ready { protocol: PROTOCOL })?;
    let mut held = None;
    let mut files = Files::none();
    let job = loop {
        match (job::receive(host, &mut files)?, &mut held) {
            (Wish::Run(job), _) => break job,
            (Wish::Hold(environment), held @ None) => {
                files = Files::prepared()?;
                *held = Some(hold::start(environment, &mut reports)?);
                host.send(&ToHost::Held)?;
            }
            (Wish::Ping, Some(held)) => {
                // It may be another sentry than the one that was asked before, with the state of that.
                require_filter()?;
                held.rehearse(&mut reports)?;
                files.empty()?;
                host.send(&ToHost::Held)?;
            }
            (Wish::Hold(_), Some(_)) | (Wish::Ping, None) => return Err(InitError::OutOfOrder),
        }
    };
    // Whatever init has open, a program may open too.
    drop(files);
    let finished = program::run(host, &job, held, reports)?;
    let skipped = match finished.left {
        Left::Nothing => 0,
        Left::Unknown => collect::forward(host, &job.limits)?,
    };
    host.send(&ToHost::Done { skipped })?;
    drop(finished);
    Ok(())
}

/// The error and its causes in one line.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
