//! `tako-vm server` as root: the server is another process, of the user `tako-vm`, and where no supervisor
//! listens, this one becomes the supervisor.

use super::Arguments;
use crate::cli::unprivileged::{Started, Unprivileged};
use crate::cli::{Failure, supervisor};
use crate::config::{self, Config};
use crate::supervisor::Stop;
use crate::supervisor::staged::Staged;
use crate::sys::digest::Digest;
use std::fs;
use std::path::{Path, PathBuf};

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
    // First of all: it makes the directory that the server's lies in.
    let supervisor = match supervision {
        Supervision::There => None,
        Supervision::Ours(staged) => {
            let socket = &arguments.socket;
            Some(supervisor::prepare(socket, state_dir, config, staged)?)
        }
    };
    let user = Unprivileged::prepare(arguments.overrides(), file)?;
    let run = run_directory(arguments, &user)?;
    let server = start(arguments, file, &user, &run)?;
    let status = beside(server, supervisor).await;
    // What lies there is gone with the server, unless that was killed, and then the next start uses it.
    drop(fs::remove_dir(&run));
    status
}

/// Attends the server, and is the supervisor meanwhile.
async fn beside(mut server: Started, supervisor: Option<supervisor::Ready>) -> Result<u8, Failure> {
    let Some(supervisor) = supervisor else {
        return server.attend().await;
    };
    let stop = Stop::default();
    let supervising = supervisor.serve(stop.clone());
    tokio::pin!(supervising);
    let ended = tokio::select! {
        status = server.attend() => Ok(status),
        supervised = &mut supervising => Err(supervised),
    };
    match ended {
        Ok(status) => {
            stop.drain();
            supervising.await?;
            status
        }
        // Without it the server is of no use.
        Err(supervised) => {
            server.tell();
            let status = server.attend().await;
            supervised?;
            status
        }
    }
}

/// For its sockets, beside the supervisor's: short, since the path of a socket is, and another one for
/// every server of a host.
fn run_directory(arguments: &Arguments, user: &Unprivileged) -> Result<PathBuf, Failure> {
    let socket = std::path::absolute(&arguments.socket)
        .map_err(|error| Failure::io("cannot find out where the socket is", &error))?;
    let digest = Digest::of(user.data.as_os_str().as_encoded_bytes()).to_string();
    let run = socket.with_file_name(format!("server-{}", &digest[..8]));
    user.own(&run)?;
    Ok(run)
}

fn start(
    arguments: &Arguments,
    file: Option<&Path>,
    user: &Unprivileged,
    run: &Path,
) -> Result<Started, Failure> {
    let mut command = user.command(&["server", "--attended"], file);
    command.arg("--socket").arg(&arguments.socket);
    if let Some(host) = &arguments.host {
        command.arg("--host").arg(host);
    }
    if let Some(port) = arguments.port {
        command.arg("--port").arg(port.to_string());
    }
    command.env(config::RUNTIME_DIRECTORY_VARIABLE, run);
    command.envs(config::artifact_store_key());
    user.start(command)
}
