//! Typed client of a runtime that makes ordinary Linux containers: `runc` or `crun`.
//!
//! For permissive mode alone. What runs in such a container is a process of the host's kernel: the
//! seccomp profile is all that stands between a program and that kernel.

use crate::sys::host;
use crate::sys::mount::{self, Cgroups};
use crate::sys::place::{self, PlaceError};
use crate::sys::process;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the kernel says what becomes of a core dump (core(5)).
const CORE_PATTERN: &str = "/proc/sys/kernel/core_pattern";

/// Why there is no runtime to use.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
pub enum RuncError {
    #[error("there is no `{name}` in {path}: install the package `{name}`", path = process::PATH)]
    Missing { name: &'static str },
    #[error("cannot trust `{name}`")]
    Untrusted {
        name: &'static str,
        source: PlaceError,
    },
    #[error("cannot read `{CORE_PATTERN}`")]
    CorePattern { source: io::Error },
    #[error(
        "the kernel hands core dumps to a program of the host (`{CORE_PATTERN}` is `{pattern}`), and one that crashes in a container would have it read by root: `sysctl -w kernel.core_pattern=core`"
    )]
    CoresHandedOn { pattern: String },
}

/// The runtimes that are known to work: Debian 12's runc 1.1.5 and crun 1.8.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Of the Open Container Initiative.
    Runc,
    /// The one in C.
    Crun,
}

impl Kind {
    /// The name of its program, of its package, and of it in records and in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Crun => "crun",
        }
    }

    /// The runtime of that name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Runc, Self::Crun]
            .into_iter()
            .find(|kind| kind.name() == name)
    }
}

/// A container runtime.
#[derive(Debug, Clone)]
pub struct Runc {
    kind: Kind,
    binary: PathBuf,
}

impl Runc {
    /// The runtime that is installed in [`process::PATH`], where root alone can change it.
    ///
    /// # Errors
    /// When there is none, others could have put it there, or this host hands core dumps on.
    pub fn find(kind: Kind) -> Result<Self, RuncError> {
        let pattern =
            host::setting(CORE_PATTERN).map_err(|source| RuncError::CorePattern { source })?;
        require_cores_stay(&pattern.unwrap_or_default())?;
        let name = kind.name();
        let found = process::find(name.as_ref()).ok_or(RuncError::Missing { name })?;
        let binary = place::trusted(Path::new(&found))
            .map_err(|source| RuncError::Untrusted { name, source })?;
        Ok(Self::new(kind, binary))
    }

    /// A client of this binary, verified by whoever names it.
    pub fn new(kind: Kind, binary: impl Into<PathBuf>) -> Self {
        Self {
            kind,
            binary: binary.into(),
        }
    }

    /// Which one it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// `run`: create and start a container and stay attached to it. `root`, a detached mount, becomes
    /// its root file system and ends with it; the runtime's own state lies in the bundle's directory.
    pub fn run(&self, bundle: &Path, id: &str, root: OwnedFd) -> Command {
        let mut command = process::program(&self.binary);
        command.arg("--root").arg(bundle.join(self.kind.name()));
        // The process is in its cgroup already, and so will be all that it starts.
        let cgroups = match self.kind {
            // runc joins the cgroup that it is told, and has no way to be told none.
            Kind::Runc => Cgroups::Visible,
            // crun refuses to start at all where both versions have controllers, unless it sees none.
            Kind::Crun => {
                command.arg("--cgroup-manager=disabled");
                Cgroups::Hidden
            }
        };
        command.arg("run").arg("--bundle").arg(bundle).arg(id);
        mount::give_root(&mut command, root, cgroups);
        command
    }

    /// `delete --force`: end a container that [`Runc::run`] has started from this bundle, whatever it
    /// does.
    pub fn delete(&self, bundle: &Path, id: &str) -> Command {
        let mut command = process::program(&self.binary);
        command.arg("--root").arg(bundle.join(self.kind.name()));
        command.args(["delete", "--force", id]);
        command
    }
}

/// Refuses a host on which a crash inside starts or calls a program outside (`|`; `@` since Linux 6.16).
///
/// No limit holds that back: the kernel heeds only the limit 1, which a program can lower to 0.
fn require_cores_stay(pattern: &str) -> Result<(), RuncError> {
    if pattern.starts_with(['|', '@']) {
        return Err(RuncError::CoresHandedOn {
            pattern: pattern.to_owned(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_hands_core_dumps_to_a_program_is_refused() {
        for pattern in ["|/usr/share/apport/apport %p", "@/run/coredump.socket"] {
            let error = require_cores_stay(pattern).unwrap_err().to_string();
            assert!(error.contains(pattern), "{error}");
            assert!(
                error.contains("sysctl -w kernel.core_pattern=core"),
                "{error}"
            );
        }
        for pattern in ["core", "/var/crash/%p|%e", ""] {
            require_cores_stay(pattern).unwrap();
        }
    }

    fn arguments(kind: Kind) -> Vec<String> {
        let root = std::fs::File::open("/").unwrap().into();
        let bundle = Path::new("/state/sandboxes/tako-1");
        let command = Runc::new(kind, "/usr/sbin/runc").run(bundle, "tako-1", root);
        let arguments = command.get_args().map(|arg| arg.to_string_lossy());
        arguments.map(std::borrow::Cow::into_owned).collect()
    }

    #[test]
    fn the_command_line_has_our_own_places_and_nothing_else() {
        let run = ["run", "--bundle", "/state/sandboxes/tako-1", "tako-1"];
        let expected = ["--root", "/state/sandboxes/tako-1/runc"];
        assert_eq!(arguments(Kind::Runc), [&expected[..], &run].concat());
        let expected = [
            "--root",
            "/state/sandboxes/tako-1/crun",
            "--cgroup-manager=disabled",
        ];
        assert_eq!(arguments(Kind::Crun), [&expected[..], &run].concat());
    }

    #[test]
    fn a_container_is_ended_where_it_was_started() {
        let bundle = Path::new("/state/bundle");
        let command = Runc::new(Kind::Runc, "/usr/sbin/runc").delete(bundle, "one");
        let arguments: Vec<_> = command.get_args().collect();
        let expected = ["--root", "/state/bundle/runc", "delete", "--force", "one"];
        assert_eq!(arguments, expected);
    }

    #[test]
    fn a_runtime_has_one_name() {
        for kind in [Kind::Runc, Kind::Crun] {
            assert_eq!(Kind::named(kind.name()), Some(kind));
        }
        assert_eq!(Kind::named("runsc"), None);
    }
}
