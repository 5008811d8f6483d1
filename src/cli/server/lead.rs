//! `tako-vm server` as root: the server is another process, of the user `tako-vm`, and where no supervisor
//! listens, this one becomes the supervisor.

use super::Arguments;
use crate::cli::{FAILED, Failure, USER, supervisor};
use crate::config::{self, Config, Server};
use crate::supervisor::Stop;
use crate::supervisor::staged::Staged;
use crate::sys::digest::Digest;
use crate::sys::privilege::PrivilegeError;
use crate::sys::process::PidFd;
use crate::sys::{account, place, process};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};

/// What is made for the server, and its user.
struct Ground {
    data: PathBuf,
    run: PathBuf,
    uid: u32,
    gid: u32,
}

/// Who is the supervisor.
pub(super) enum Supervision {
    /// Another process, which listens.
    There,
    /// This one, with what was made ready for it before there was another thread.
    Ours(Option<Staged>),
}

/// Runs the server, and the supervisor if none listens; gives the server's exit status.
pub(super) async fn lead(
    arguments: &Arguments,
    state_dir: &Path,
    (file, config): (Option<&Path>, &Config),
    supervision: Supervision,
) -> Result<u8, Failure> {
    crate::cli::require_root("server")?;
    let stop = Stop::default();
    // First of all: it makes the directory that the server's lies in.
    let supervisor = match supervision {
        Supervision::There => None,
        Supervision::Ours(staged) => {
            let socket = &arguments.socket;
            Some(supervisor::prepare(socket, state_dir, config, staged)?)
        }
    };
    let ground = Ground::prepare(arguments, file)?;
    let mut child = ground.start(arguments, file)?;
    let handle = child.id().map(|pid| PidFd::open(pid.cast_signed()));
    let handle = handle.transpose();
    let handle = handle.map_err(|error| Failure::io("cannot watch the server", &error))?;
    let leading = async {
        let status = attend(&mut child, handle.as_ref()).await;
        stop.drain();
        status
    };
    let status = match supervisor {
        Some(supervisor) => {
            let supervising = supervisor.serve(stop.clone());
            tokio::pin!(leading, supervising);
            tokio::select! {
                status = &mut leading => {
                    supervising.await?;
                    status
                }
                // Without it the server is of no use; it hears of our end by its standard input.
                supervised = &mut supervising => {
                    tell(handle.as_ref());
                    let status = leading.await;
                    supervised?;
                    status
                }
            }
        }
        None => leading.await,
    };
    ground.clear();
    let status = status.map_err(|error| Failure::io("cannot wait for the server", &error))?;
    Ok(exit_status(status))
}

/// As a shell has it.
fn exit_status(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| signal + 128));
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(FAILED)
}

/// Waits for the server, and hands on what we are told.
async fn attend(child: &mut Child, handle: Option<&PidFd>) -> std::io::Result<ExitStatus> {
    // To wait for a child would close it.
    let _held = child.stdin.take();
    let mut signals = [
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
        signal(SignalKind::hangup())?,
    ];
    loop {
        let [terminate, interrupt, hangup] = &mut signals;
        tokio::select! {
            status = child.wait() => return status,
            _ = terminate.recv() => tell(handle),
            _ = interrupt.recv() => tell(handle),
            _ = hangup.recv() => tell(handle),
        }
    }
}

/// Tells the server to end.
fn tell(handle: Option<&PidFd>) {
    // One that has ended already need not be told.
    drop(handle.map(PidFd::interrupt));
}

impl Ground {
    fn prepare(arguments: &Arguments, file: Option<&Path>) -> Result<Self, Failure> {
        let ids = account::ids(USER).map_err(|error| Failure::ours(&error))?;
        let (uid, gid) = ids.ok_or_else(|| Failure {
            hint: Some("`tako-vm setup` makes it".to_owned()),
            ..Failure::ours(&PrivilegeError::NoUser {
                user: USER.to_owned(),
            })
        })?;
        let configured =
            Server::load(file, arguments.overrides()).map_err(|error| Failure::usage(&error))?;
        let data = configured
            .data_dir
            .unwrap_or_else(|| config::DEFAULT_DATA_DIR.into());
        let absolute = |path: &Path| {
            std::path::absolute(path)
                .map_err(|error| Failure::io("cannot find out where we are", &error))
        };
        let (data, socket) = (absolute(&data)?, absolute(&arguments.socket)?);
        // Short, since the path of a socket is, and another one for every server of a host.
        let digest = Digest::of(data.as_os_str().as_encoded_bytes()).to_string();
        let run = socket.with_file_name(format!("server-{}", &digest[..8]));
        for directory in [&data, &run] {
            place::directory_of(directory, uid, gid).map_err(|error| Failure::ours(&error))?;
        }
        Ok(Self {
            data,
            run,
            uid,
            gid,
        })
    }

    /// The server, which ends when we do.
    fn start(&self, arguments: &Arguments, file: Option<&Path>) -> Result<Child, Failure> {
        // Not by its path, which the user need not be able to walk.
        let mut command = process::program("/proc/self/exe");
        command.arg0("tako-vm").arg("server").arg("--attended");
        command.arg("--socket").arg(&arguments.socket);
        command.arg("--data-dir").arg(&self.data);
        if let Some(host) = &arguments.host {
            command.arg("--host").arg(host);
        }
        if let Some(port) = arguments.port {
            command.arg("--port").arg(port.to_string());
        }
        if let Some(file) = file {
            command.arg("--config").arg(file);
        }
        command.envs(config::handed_down());
        command.env(config::RUNTIME_DIRECTORY_VARIABLE, &self.run);
        process::spawn_as(command, self.uid, self.gid)
            .map_err(|error| Failure::io("cannot start the server", &error))
    }

    /// What lies there while it runs is gone, unless it was killed.
    fn clear(&self) {
        // The next start uses it.
        drop(std::fs::remove_dir(&self.run));
    }
}
