//! `tako-vm supervisor`: the privileged service.

use super::{Failure, supervisor_status};
use crate::client;
use crate::config::{self, Config};
use crate::image::Images;
use crate::job::Limits;
use crate::runsc::Runsc;
use crate::runsc::provision;
use crate::sandbox::{Runtime, Sandboxes};
use crate::supervisor::pool::{self, Pool};
use crate::supervisor::staged::Staged;
use crate::supervisor::{self, Caps, Door, Host, Settings, Stop};
use crate::sys::account;
use crate::sys::endpoint::{self, Access};
use crate::sys::{privilege, process};
use std::path::{self, Path, PathBuf};
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

/// Run the supervisor: the service that runs jobs for the members of the group `tako-vm`
///
/// SIGTERM lets it end when the last job has ended; a second one, or SIGINT, cancels the jobs.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// Where it listens
    #[arg(long, global = true, value_name = "PATH", env = config::SOCKET_VARIABLE,
          default_value = config::DEFAULT_SOCKET)]
    pub(super) socket: PathBuf,
    #[command(subcommand)]
    pub(super) command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    Status(supervisor_status::Arguments),
}

/// Serves until it is told to end.
pub(super) async fn serve(
    arguments: &Arguments,
    state_dir: &Path,
    config: &Config,
    staged: Option<Staged>,
) -> Result<(), Failure> {
    super::require_root("supervisor")?;
    let stop = stop_on_signals().map_err(|error| Failure::io("cannot watch signals", &error))?;
    let ready = prepare(&arguments.socket, state_dir, config, staged)?;
    ready.serve(stop).await
}

/// A supervisor that only has to begin. Whoever connects waits.
pub(super) struct Ready {
    door: Door,
    settings: Settings,
    host: Host,
}

/// Listens, looks for the runtime, and sweeps.
pub(super) fn prepare(
    socket: &Path,
    state_dir: &Path,
    config: &Config,
    staged: Option<Staged>,
) -> Result<Ready, Failure> {
    let settings = settings(socket, config)?;
    // A connection is one, and a sandbox is some.
    process::raise_open_files()
        .map_err(|error| Failure::io("cannot raise the limit of open files", &error))?;
    // First of all: where another one listens, nothing is touched.
    let door = Door::open(&settings).map_err(|error| Failure::ours(&error))?;
    let host = tokio::task::block_in_place(|| open(state_dir, config, staged))?;
    Ok(Ready {
        door,
        settings,
        host,
    })
}

impl Ready {
    /// Serves until it is told to end.
    pub(super) async fn serve(self, stop: Stop) -> Result<(), Failure> {
        supervisor::serve(self.door, self.settings, self.host, stop)
            .await
            .map_err(|error| Failure::ours(&error))
    }
}

fn settings(socket: &Path, config: &Config) -> Result<Settings, Failure> {
    let socket = path::absolute(socket)
        .map_err(|error| Failure::io("cannot find out where the socket is", &error))?;
    let group = account::group(super::USER).map_err(|error| Failure::ours(&error))?;
    let access = group.map_or(Access::Root, Access::Group);
    if access == Access::Root {
        super::warn(&format!(
            "there is no group `{}`: root alone may connect",
            super::USER
        ));
        super::hint("`tako-vm setup` makes it");
    }
    // Ours by its name; whatever else is named is the operator's, and only looked at.
    if socket == Path::new(config::DEFAULT_SOCKET)
        && let Some(directory) = socket.parent()
    {
        endpoint::own_directory(directory, access).map_err(|error| Failure::ours(&error))?;
    }
    let limits = &config.supervisor;
    Ok(Settings {
        socket,
        access,
        jobs: Caps {
            all: number(limits.max_jobs),
            per_user: number(limits.max_jobs_per_user),
        },
        connections: Caps {
            all: Settings::CONNECTIONS.max(number(limits.max_connections_per_user)),
            per_user: number(limits.max_connections_per_user),
        },
    })
}

fn number(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Makes room for what all sandboxes map, before there is another thread. Without it they are slower,
/// and nothing else.
pub(super) fn stage(state_dir: &Path, config: &Config) -> Option<Staged> {
    if config.pool.maximum == 0 || privilege::require_root().is_err() {
        return None;
    }
    Staged::mount(state_dir)
        .inspect_err(|error| super::warn(&super::one_line(error)))
        .ok()
}

/// The runtime, where there can be one in huge pages; and the digest of its files.
fn runtime(
    state_dir: &Path,
    config: &Config,
    staged: Option<&Staged>,
) -> Result<(Runtime, String), Failure> {
    let runtime = client::runtime(state_dir, config).map_err(|error| Failure {
        hint: error.hint().map(str::to_owned),
        ..Failure::ours(&error)
    })?;
    let installed = match &runtime {
        Runtime::Gvisor(_) => provision::installed(state_dir).ok(),
        Runtime::Container(_) => None,
    };
    let Some(installed) = installed else {
        return Ok((runtime, String::new()));
    };
    let Some(staged) = staged else {
        return Ok((runtime, installed.identity));
    };
    let copied = (staged.directory("runsc").ok())
        .and_then(|directory| provision::copied(&installed, &directory).ok());
    let runtime = copied.map_or(runtime, |copied| Runsc::new(copied.binary).into());
    Ok((runtime, installed.identity))
}

fn open(state_dir: &Path, config: &Config, staged: Option<Staged>) -> Result<Host, Failure> {
    let (runtime, identity) = runtime(state_dir, config, staged.as_ref())?;
    let sandboxes =
        Sandboxes::prepare(state_dir, runtime).map_err(|error| Failure::ours(&error))?;
    let pool = pool::Settings {
        state_dir: state_dir.to_owned(),
        runtime: identity,
        staged: staged.map(Arc::new),
        memory_bytes: config.pool.memory_bytes,
        minimum: number(config.pool.minimum),
        maximum: number(config.pool.maximum),
        frozen_after: config.pool.frozen_after,
        max_age: config.pool.max_age,
        profiles: (config.pool.profiles.iter())
            .map(|profile| {
                let limits = Limits {
                    memory_bytes: profile.memory_bytes,
                    ..config.maxima.defaults.clone()
                };
                (profile.image.clone(), limits)
            })
            .collect(),
    };
    Ok(Host {
        state_dir: state_dir.to_owned(),
        pool: Pool::new(sandboxes.clone(), Images::at(state_dir), pool),
        sandboxes,
        images: Images::at(state_dir),
        maxima: config.maxima.clone(),
    })
}

/// The first SIGTERM drains; a second one, SIGINT or SIGHUP ends it now.
fn stop_on_signals() -> std::io::Result<Stop> {
    let stop = Stop::default();
    let mut terminations = signal(SignalKind::terminate())?;
    let drained = stop.clone();
    tokio::spawn(async move {
        // One after a request to drain is the first all the same.
        terminations.recv().await;
        drained.drain();
        terminations.recv().await;
        drained.now();
    });
    for kind in [SignalKind::interrupt(), SignalKind::hangup()] {
        let mut signals = signal(kind)?;
        let stop = stop.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                stop.now();
            }
        });
    }
    Ok(stop)
}
