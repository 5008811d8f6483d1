//! This program once more, as the user `tako-vm`: what root starts and is not to do itself.

use super::{FAILED, Failure, USER};
use crate::config::{self, Overrides, Server};
use crate::sys::privilege::PrivilegeError;
use crate::sys::process::{self, PidFd};
use crate::sys::{account, place};
use std::ffi::OsStr;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};

/// A user without privileges, and the directory that is his.
pub(super) struct Unprivileged {
    pub(super) data: PathBuf,
    uid: u32,
    gid: u32,
}

/// A process of that user's.
pub(super) struct Started {
    child: Child,
    handle: PidFd,
}

/// Where the data of this user lie.
pub(super) fn data_dir(config: &Server) -> Result<PathBuf, Failure> {
    absolute(&config.data_dir().map_err(|error| Failure::usage(&error))?)
}

fn absolute(data: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(data)
        .map_err(|error| Failure::io("cannot find out where the data directory is", &error))
}

impl Unprivileged {
    /// For root alone. Makes the directory, which the command line names, or root's configuration.
    pub(super) fn prepare(overrides: Overrides, file: Option<&Path>) -> Result<Self, Failure> {
        let ids = account::ids(USER).map_err(|error| Failure::ours(&error))?;
        let (uid, gid) = ids.ok_or_else(|| Failure {
            hint: Some("`tako-vm setup` makes it".to_owned()),
            ..Failure::ours(&PrivilegeError::NoUser {
                user: USER.to_owned(),
            })
        })?;
        let config =
            Server::load_as_root(file, overrides).map_err(|error| Failure::usage(&error))?;
        let data = config.data_dir.as_deref();
        let data = data.unwrap_or(Path::new(config::DEFAULT_DATA_DIR));
        let data = absolute(data)?;
        let user = Self { data, uid, gid };
        user.own(&user.data)?;
        Ok(user)
    }

    /// Makes a directory for the user alone.
    pub(super) fn own(&self, directory: &Path) -> Result<(), Failure> {
        place::directory_of(directory, self.uid, self.gid).map_err(|error| Failure::ours(&error))
    }

    /// A subcommand, with what it needs of ours.
    pub(super) fn command(&self, arguments: &[impl AsRef<OsStr>], file: Option<&Path>) -> Command {
        // Not by its path, which the user need not be able to walk.
        let mut command = process::program("/proc/self/exe");
        command.arg0("tako-vm").args(arguments);
        command.arg("--data-dir").arg(&self.data);
        if let Some(file) = file {
            command.arg("--config").arg(file);
        }
        command.envs(config::handed_down());
        command
    }

    /// Starts it as the user.
    pub(super) fn start(&self, command: Command) -> Result<Started, Failure> {
        let failed =
            |error: &io::Error| Failure::io(&format!("cannot start a process of `{USER}`"), error);
        let child = process::spawn_as(command, self.uid, self.gid);
        let child = child.map_err(|error| failed(&error))?;
        // Not waited for yet, so that the number is still its own.
        let pid = child.id().unwrap_or_default().cast_signed();
        let handle = PidFd::open(pid).map_err(|error| failed(&error))?;
        Ok(Started { child, handle })
    }
}

impl Started {
    /// Tells it to end.
    pub(super) fn tell(&self) {
        // One that has ended already need not be told.
        drop(self.handle.interrupt());
    }

    /// Waits for its end, and hands on what we are told to do; gives its exit status as a shell has it.
    pub(super) async fn attend(&mut self) -> Result<u8, Failure> {
        let status = self.status().await;
        let status = status.map_err(|error| Failure::io("cannot wait for a process", &error))?;
        let code = status
            .code()
            .or_else(|| status.signal().map(|signal| signal + 128));
        Ok(code
            .and_then(|code| u8::try_from(code).ok())
            .unwrap_or(FAILED))
    }

    async fn status(&mut self) -> io::Result<ExitStatus> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        // To wait for a child would close it, and that tells the child that we have ended.
        let _held = self.child.stdin.take();
        loop {
            tokio::select! {
                status = self.child.wait() => return status,
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = hangup.recv() => {}
            }
            self.tell();
        }
    }
}
