//! The runsc binary: its flags, a typed client of its commands, and where it comes from.
//!
//! What runsc says is evidence for people only. How a job ended and that a sandbox is dead are
//! decided elsewhere, without asking it.

mod flags;
pub mod provision;
pub mod release;

use crate::sys::process;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Command;

/// How much of the end of a log is looked at, in bytes.
const MAX_LOG: u64 = 64 << 10;

/// A runsc binary, verified by whoever made this.
#[derive(Debug, Clone)]
pub struct Runsc {
    binary: PathBuf,
}

/// The places that belong to one sandbox, all below one directory of its own.
#[derive(Debug, Clone)]
pub struct Places {
    directory: PathBuf,
}

impl Places {
    /// Names the places below `directory`.
    pub fn below(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
        }
    }

    /// runsc's own state: a socket, a lock, a state file.
    pub fn root(&self) -> PathBuf {
        self.directory.join("runsc")
    }

    /// runsc's log.
    pub fn log(&self) -> PathBuf {
        self.directory.join("runsc.log")
    }
}

impl Runsc {
    /// A client of this binary.
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        Self {
            binary: binary.into(),
        }
    }

    /// `runsc run`: create and start a sandbox and stay attached to it.
    pub fn run(&self, places: &Places, bundle: &Path, id: &str) -> Command {
        let mut command = self.command(places);
        command.arg("run").arg("--bundle").arg(bundle).arg(id);
        command
    }

    /// `runsc checkpoint`: write the state of a sandbox into `image`, and end it.
    pub fn checkpoint(&self, places: &Places, image: &Path, id: &str) -> Command {
        let mut command = self.command(places);
        command
            .arg("checkpoint")
            .arg("--image-path")
            .arg(image)
            .arg("--compression=none")
            .arg(id);
        command
    }

    /// `runsc restore`: like [`Runsc::run`], from a checkpoint.
    pub fn restore(&self, places: &Places, bundle: &Path, image: &Path, id: &str) -> Command {
        let mut command = self.command(places);
        command
            .arg("restore")
            .arg("--image-path")
            .arg(image)
            .arg("--bundle")
            .arg(bundle)
            .arg(id);
        command
    }

    fn command(&self, places: &Places) -> Command {
        let mut command = process::program(&self.binary);
        command
            .arg("--root")
            .arg(places.root())
            .arg("--log")
            .arg(places.log())
            .args(flags::FLAGS);
        command
    }
}

/// The last errors in runsc's log, for a message to people; empty where it logged none.
pub fn logged_errors(places: &Places) -> String {
    // Written by runsc alone, but about a guest: read with bounds, shown and never interpreted.
    let log = read_tail(&places.log()).unwrap_or_default();
    let errors = log
        .lines()
        .filter(|line| line.contains(r#""level":"error""#));
    let messages = errors.filter_map(|line| {
        let entry: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(
            entry
                .get("msg")?
                .as_str()?
                .trim()
                .chars()
                .take(500)
                .collect::<String>(),
        )
    });
    let mut messages: Vec<_> = messages.collect();
    messages.dedup();
    messages
        .split_off(messages.len().saturating_sub(2))
        .join("; ")
}

/// The end of a file, as text.
fn read_tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(MAX_LOG);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(MAX_LOG).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_the_constant_table_and_our_own_places() {
        let runsc = Runsc::new("/state/runsc/runsc");
        let places = Places::below(Path::new("/state/sandboxes/tako-1"));
        let command = runsc.run(&places, Path::new("/state/sandboxes/tako-1"), "tako-1");
        let arguments: Vec<_> = command
            .get_args()
            .map(|arg| arg.to_string_lossy())
            .collect();
        insta::assert_snapshot!(arguments.join("\n"), @r"
        --root
        /state/sandboxes/tako-1/runsc
        --log
        /state/sandboxes/tako-1/runsc.log
        --log-format=json
        --platform=systrap
        --oci-seccomp=true
        --network=none
        --net-raw=false
        --directfs=false
        --overlay2=none
        --host-uds=none
        --host-fifo=none
        --file-access=exclusive
        --file-access-mounts=exclusive
        --rootless=false
        --allow-flag-override=false
        run
        --bundle
        /state/sandboxes/tako-1
        tako-1
        ");
        let environment: Vec<_> = command.get_envs().collect();
        assert_eq!(
            environment,
            [("PATH".as_ref(), Some(process::PATH.as_ref()))]
        );
    }

    #[test]
    fn the_log_is_quoted_by_its_last_errors() {
        let directory = tempfile::tempdir().unwrap();
        let places = Places::below(directory.path());
        assert_eq!(logged_errors(&places), "");
        let log = "{\"msg\":\"fine\",\"level\":\"info\"}\nnot json \"level\":\"error\"\n\
                   {\"msg\":\"first\",\"level\":\"error\"}\n{\"msg\":\"last\\n\",\"level\":\"error\"}\n";
        std::fs::write(places.log(), log).unwrap();
        assert_eq!(logged_errors(&places), "first; last");
    }
}
