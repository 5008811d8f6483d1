//! Supervisors: asking the one that is measured, and starting others for as long as they are.

use super::tools::Place;
use crate::config;
use crate::supervisor::connection::{self, Connection, ConnectionError};
use crate::supervisor::wire::Stats;
use crate::sys::process::{self, PidFd};
use serde_yaml_ng::{Mapping, Value};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// How long one may take until it listens: it may have to hash image and runsc.
const BEGINNING: Duration = Duration::from_secs(30);

/// How long one may take to end: every ready sandbox is killed.
const END: Duration = Duration::from_mins(1);

/// How often is looked whether something has come about.
const LOOK: Duration = Duration::from_millis(20);

/// How long a pool may take to be full.
const FILLING: Duration = Duration::from_secs(30);

/// For how long nothing is made before a pool is taken to be full: it may rest after a failure, or have
/// no memory for more.
const RESTED: Duration = Duration::from_millis(300);

/// What is read of the state directory.
const SHARED: [&str; 3] = ["images", "runsc", "digests"];

/// Why there is no supervisor.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServiceError {
    #[error("cannot prepare a supervisor")]
    Prepare { source: io::Error },
    #[error("cannot read the configuration `{}`", path.display())]
    Config { path: PathBuf, source: io::Error },
    #[error("the configuration `{}` does not parse", path.display())]
    Parse {
        path: PathBuf,
        source: serde_yaml_ng::Error,
    },
    #[error("cannot start a supervisor")]
    Start { source: io::Error },
    #[error("the supervisor does not listen: {said}")]
    Silent { said: String },
}

/// Keys of the configuration that are other than the user's: section, key, value.
pub(super) type Keys<'a> = [(&'a str, &'a str, Value)];

/// A supervisor of our own. It ends, with all its sandboxes, when this is dropped, and when we die.
#[derive(Debug)]
pub(super) struct Service {
    child: Child,
    handle: PidFd,
    directory: TempDir,
}

impl Service {
    /// One that listens, with the same images and runsc, and configured the same but for these keys.
    ///
    /// What it makes lies in a directory of its own: a supervisor removes the checkpoints below its state
    /// directory that it has no use for, and another may have.
    ///
    /// To be called on the thread that lives as long as we do.
    pub(super) fn start(place: &Place<'_>, keys: &Keys<'_>) -> Result<Self, ServiceError> {
        let prepare = |source| ServiceError::Prepare { source };
        let directory = tempfile::Builder::new()
            .prefix("tako-vm-bench-")
            .tempdir()
            .map_err(prepare)?;
        let at = directory.path();
        fs::write(at.join("config.yaml"), configuration(place.config, keys)?).map_err(prepare)?;
        let state = at.join("state");
        fs::create_dir(&state).map_err(prepare)?;
        for name in SHARED {
            symlink(place.state_dir.join(name), state.join(name)).map_err(prepare)?;
        }
        let own = std::env::current_exe().map_err(prepare)?;
        let mut command = process::program(own);
        command.arg("--state-dir").arg(state);
        command.arg("--config").arg(at.join("config.yaml"));
        command.args(["supervisor", "--socket"]).arg(socket(at));
        command.stdout(Stdio::null());
        command.stderr(File::create(at.join("log")).map_err(prepare)?);
        let start = |source| ServiceError::Start { source };
        let child = process::spawn_service(&mut command).map_err(start)?;
        let handle = PidFd::open(child.id().cast_signed()).map_err(start)?;
        let mut service = Self {
            child,
            handle,
            directory,
        };
        let socket = service.socket();
        let begun = Instant::now();
        while connection::connect(&socket).is_err() {
            let ended = !matches!(service.child.try_wait(), Ok(None));
            if ended || begun.elapsed() > BEGINNING {
                return Err(service.silent());
            }
            thread::sleep(LOOK);
        }
        Ok(service)
    }

    pub(super) fn socket(&self) -> PathBuf {
        socket(self.directory.path())
    }

    /// Number of its process, which is its own as long as this lives.
    pub(super) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// It has ended, or does not come to listen: what it said last.
    fn silent(&self) -> ServiceError {
        let said = fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        let said = said.lines().last().unwrap_or("it says nothing").to_owned();
        ServiceError::Silent { said }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        process::blocking(|| {
            // What has ended by itself needs no signal, and then nothing else can be done either.
            drop(self.handle.interrupt());
            let begun = Instant::now();
            // Somebody may have buried it: then it is gone, too.
            while matches!(self.child.try_wait(), Ok(None)) {
                if begun.elapsed() > END {
                    // The next one that starts clears away what it leaves.
                    drop(self.handle.kill());
                    drop(self.child.wait());
                    return;
                }
                thread::sleep(LOOK);
            }
        });
    }
}

fn socket(directory: &Path) -> PathBuf {
    directory.join("socket")
}

/// The user's own configuration, with other values of these keys.
fn configuration(file: Option<&Path>, keys: &Keys<'_>) -> Result<String, ServiceError> {
    let path = file.unwrap_or(Path::new(config::DEFAULT_FILE));
    let text = match fs::read_to_string(path) {
        Err(error) if file.is_none() && error.kind() == io::ErrorKind::NotFound => String::new(),
        read => read.map_err(|source| ServiceError::Config {
            path: path.to_owned(),
            source,
        })?,
    };
    changed(&text, keys).map_err(|source| ServiceError::Parse {
        path: path.to_owned(),
        source,
    })
}

fn changed(text: &str, keys: &Keys<'_>) -> Result<String, serde_yaml_ng::Error> {
    let all: Option<Mapping> = serde_yaml_ng::from_str(text)?;
    let mut all = all.unwrap_or_default();
    for (section, key, value) in keys {
        let section = all
            .entry((*section).into())
            .or_insert_with(|| Value::Mapping(Mapping::new()));
        if section.is_null() {
            *section = Value::Mapping(Mapping::new());
        }
        if let Some(section) = section.as_mapping_mut() {
            section.insert((*key).into(), value.clone());
        }
    }
    serde_yaml_ng::to_string(&all)
}

/// The numbers of the supervisor that listens there.
pub(super) async fn stats(socket: &Path) -> Result<Stats, ConnectionError> {
    Connection::open(socket).await?.stats().await
}

/// Waits until its numbers are as they should be; false when that takes longer, or is cancelled.
pub(super) async fn until(
    socket: &Path,
    limit: Duration,
    cancel: &CancellationToken,
    mut fits: impl FnMut(&Stats) -> bool,
) -> bool {
    let begun = Instant::now();
    loop {
        if stats(socket).await.is_ok_and(|stats| fits(&stats)) {
            return true;
        }
        let pause = tokio::time::sleep(LOOK);
        if begun.elapsed() > limit || cancel.run_until_cancelled(pause).await.is_none() {
            return false;
        }
    }
}

/// Waits until the pool makes no more.
pub(super) async fn settled(socket: &Path, cancel: &CancellationToken) {
    let mut rests = None::<Instant>;
    let fits = |stats: &Stats| {
        let makes = stats.pools.iter().any(|pool| pool.starting > 0);
        if makes || stats.running > 0 {
            rests = None;
            return false;
        }
        let full = stats.pools.iter().all(|pool| pool.ready >= pool.target);
        full || rests.get_or_insert_with(Instant::now).elapsed() > RESTED
    };
    // However it is after so long, that is how it is measured.
    let _settled = until(socket, FILLING, cancel, fits).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_given_keys_are_other_than_the_users() {
        let text = "max_timeout: 60\npool: {minimum: 3, maximum: 9}\nsupervisor:\n";
        let keys = [
            ("pool", "minimum", 1.into()),
            ("supervisor", "max_jobs", 8.into()),
        ];
        let text = changed(text, &keys).unwrap();
        let all: Mapping = serde_yaml_ng::from_str(&text).unwrap();
        assert_eq!(all["max_timeout"], 60);
        assert_eq!(all["pool"]["minimum"], 1);
        assert_eq!(all["pool"]["maximum"], 9);
        assert_eq!(all["supervisor"]["max_jobs"], 8);
        assert_eq!(changed("", &[]).unwrap().trim(), "{}");
        assert!(changed("[", &[]).is_err());
    }
}
