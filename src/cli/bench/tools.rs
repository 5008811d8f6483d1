//! Programs of the host's that run ours: how each is prepared, started, and cleared away.

use super::subject::{Run, Subject};
use super::ways::{Way, WayError};
use crate::client::{self, Sandbox};
use crate::config;
use crate::image::{Image, Images};
use crate::runc::{Kind, Runc};
use crate::runsc::provision;
use crate::sys::cgroup;
use crate::sys::mount;
use crate::sys::process::{self, PidFd};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// A program of the host's that runs ours.
#[derive(Debug)]
pub(super) enum Tool {
    /// This very process.
    InProcess(Subject),
    /// This very program.
    Command {
        binary: PathBuf,
        options: Vec<OsString>,
        socket: Option<PathBuf>,
    },
    Runsc {
        binary: PathBuf,
        root: PathBuf,
        bundle: PathBuf,
    },
    Container {
        runc: Runc,
        bundle: PathBuf,
        image: PathBuf,
    },
    Bwrap {
        binary: OsString,
        tree: PathBuf,
    },
    Native {
        binary: OsString,
    },
}

impl Tool {
    pub(super) async fn run(
        &self,
        subject: &Subject,
        id: &str,
        cancel: &CancellationToken,
    ) -> Result<Option<Run>, WayError> {
        let Some(command) = self.command(&subject.code, id)? else {
            // As prepared, and not with the supervisor of the other one.
            return match self {
                Self::InProcess(own) => own.run(cancel).await,
                _ => subject.run(cancel).await,
            };
        };
        let called = Instant::now();
        let ran = process::run_until_cancelled(command, cancel).await;
        let ended = Instant::now();
        if !matches!(ran, Ok(Some(_))) {
            // Whatever stopped it: what it has started may still be there.
            tokio::task::block_in_place(|| self.discard(id));
        }
        let Some(printed) = ran.map_err(WayError::Program)? else {
            return Ok(None);
        };
        subject.check(&printed.stdout)?;
        Ok(Some(Run::outside(called, ended)))
    }

    /// The program to start, where it is one.
    fn command(&self, code: &str, id: &str) -> Result<Option<Command>, WayError> {
        let mut command = match self {
            Self::InProcess(_) => return Ok(None),
            Self::Command {
                binary,
                options,
                socket,
            } => {
                let mut command = process::program(binary);
                command.args(options).args(["--code", code]);
                if let Some(socket) = socket {
                    command.env(config::SOCKET_VARIABLE, socket);
                }
                command
            }
            Self::Runsc {
                binary,
                root,
                bundle,
            } => {
                let mut command = process::program(binary);
                command.arg("--root").arg(root);
                command.args(["--network=none", "run", "--bundle"]);
                command.arg(bundle).arg(id);
                command
            }
            Self::Container {
                runc,
                bundle,
                image,
            } => {
                let root = mount::detached(image).map_err(|source| WayError::Mount { source })?;
                runc.run(bundle, id, root)
            }
            Self::Bwrap { binary, tree } => {
                let mut command = process::program(binary);
                command.args(["--unshare-all", "--die-with-parent"]);
                command.args(["--uid", "1000", "--gid", "1000", "--ro-bind"]);
                command.arg(tree).arg("/");
                command.args(["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]);
                command.args(["python3", "-c", code]);
                command
            }
            Self::Native { binary } => {
                let mut command = process::program(binary);
                command.args(["-c", code]);
                command
            }
        };
        command.stdin(std::process::Stdio::null());
        Ok(Some(command))
    }

    /// Removes what a run that was stopped has left.
    fn discard(&self, id: &str) {
        match self {
            // Not by its own `delete`: that takes the dead, whom we inherit, for living, and waits for
            // them for minutes.
            Self::Runsc { .. } => remove_cgroups(id),
            // There may be nothing to remove, and then it fails.
            Self::Container { runc, bundle, .. } => {
                drop(process::run(&mut runc.delete(bundle, id)));
            }
            Self::InProcess(_)
            | Self::Command { .. }
            | Self::Bwrap { .. }
            | Self::Native { .. } => {}
        }
    }
}

/// Kills and buries what is in the cgroups that plain runsc has made, and removes them.
fn remove_cgroups(id: &str) {
    let mounted = cgroup::mounted().unwrap_or_default();
    let leaves: Vec<_> = mounted.iter().map(|one| one.path.join(id)).collect();
    let mut members = BTreeSet::new();
    for _ in 0..MOMENTS {
        let lists = leaves
            .iter()
            .flat_map(|leaf| fs::read_to_string(leaf.join("cgroup.procs")));
        let lists: String = lists.collect();
        for member in lists.lines().filter_map(|pid| pid.parse().ok()) {
            // What has died meanwhile needs no killing.
            drop(PidFd::open(member).and_then(|handle| handle.kill()));
            members.insert(member);
        }
        for &member in &members {
            process::reap(member);
        }
        for leaf in &leaves {
            drop(fs::remove_dir(leaf));
        }
        if !leaves.iter().any(|leaf| leaf.exists()) {
            return;
        }
        thread::sleep(MOMENT);
    }
}

/// How often, and how long apart, it is tried: two seconds in all.
const MOMENTS: u32 = 100;
const MOMENT: Duration = Duration::from_millis(20);

/// Buries what other runtimes leave to whoever started them. Only while no run is under way, whose
/// own end would be taken away.
pub(super) fn bury_orphans() {
    for pid in process::children().unwrap_or_default() {
        process::reap(pid);
    }
}

/// What is needed to prepare the ways.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) state_dir: &'a Path,
    pub(super) config: Option<&'a Path>,
    pub(super) image: &'a str,
    /// Where the supervisor listens that is measured, if one is.
    pub(super) socket: Option<&'a Path>,
}

impl Place<'_> {
    /// Sandboxes that this process starts itself.
    pub(super) fn in_process(&self) -> Result<Sandbox, client::Error> {
        let mut builder = Sandbox::builder().in_process().image(self.image);
        builder = builder.state_dir(self.state_dir);
        if let Some(file) = self.config {
            builder = builder.config_file(file);
        }
        builder.build()
    }

    /// Sandboxes as the run has them: of the supervisor, or of this process.
    pub(super) fn sandbox(&self) -> Result<Sandbox, client::Error> {
        let Some(socket) = self.socket else {
            return self.in_process();
        };
        let builder = Sandbox::builder().supervisor(socket).image(self.image);
        builder.build()
    }
}

/// Where the ways are prepared.
pub(super) struct Workshop<'a> {
    place: &'a Place<'a>,
    code: &'a str,
    scratch: &'a Path,
}

impl<'a> Workshop<'a> {
    pub(super) fn new(place: &'a Place<'a>, code: &'a str, scratch: &'a Path) -> Self {
        Self {
            place,
            code,
            scratch,
        }
    }

    pub(super) fn tool(&self, way: Way) -> Result<Tool, WayError> {
        match way {
            Way::Library | Way::Command => self.command(self.place.socket),
            Way::ColdCommand => self.command(None),
            Way::Cold => self.in_process(),
            Way::Runsc => self.runsc(),
            Way::Runc => self.container(Kind::Runc),
            Way::Crun => self.container(Kind::Crun),
            Way::Bwrap => Ok(Tool::Bwrap {
                binary: installed("bwrap", "bubblewrap")?,
                tree: self.tree()?,
            }),
            Way::Native => Ok(Tool::Native {
                binary: installed("python3", "python3")?,
            }),
        }
    }

    fn in_process(&self) -> Result<Tool, WayError> {
        Ok(Tool::InProcess(Subject {
            sandbox: self.place.in_process().map_err(WayError::Client)?,
            code: self.code.to_owned(),
        }))
    }

    /// With a supervisor it names nothing else, as its users do.
    fn command(&self, socket: Option<&Path>) -> Result<Tool, WayError> {
        let own = |source| WayError::Own { source };
        let mut options: Vec<OsString> = Vec::new();
        if socket.is_none() {
            options.extend(["--state-dir".into(), self.place.state_dir.into()]);
            if let Some(file) = self.place.config {
                options.push("--config".into());
                options.push(std::path::absolute(file).map_err(own)?.into());
            }
        }
        options.extend(["run".into(), "--image".into(), self.place.image.into()]);
        Ok(Tool::Command {
            binary: std::env::current_exe().map_err(own)?,
            options,
            socket: socket.map(Path::to_owned),
        })
    }

    fn runsc(&self) -> Result<Tool, WayError> {
        let installed = provision::installed(self.place.state_dir)
            .map_err(|source| WayError::Runsc { source })?;
        let bundle = self.scratch.join("runsc-bundle");
        let mut spec = process::program(&installed.binary);
        spec.args(["spec", "--bundle"]).arg(&bundle);
        self.write_bundle(&mut spec, &bundle, &self.tree()?)?;
        Ok(Tool::Runsc {
            binary: installed.binary,
            root: self.scratch.join("runsc"),
            bundle,
        })
    }

    fn container(&self, kind: Kind) -> Result<Tool, WayError> {
        let name = kind.name();
        let runc = Runc::new(kind, installed(name, name)?);
        let bundle = self.scratch.join(name);
        let mut spec = process::program(name);
        spec.args(["spec", "--bundle"]).arg(&bundle);
        self.write_bundle(&mut spec, &bundle, Path::new(mount::POINT))?;
        Ok(Tool::Container {
            runc,
            bundle,
            image: self.image()?.path,
        })
    }

    /// What the runtime's own `spec` writes, for an unprivileged user, our program and our files.
    fn write_bundle(&self, spec: &mut Command, bundle: &Path, root: &Path) -> Result<(), WayError> {
        let failed = |source| WayError::Bundle { source };
        fs::create_dir(bundle).map_err(failed)?;
        process::run(spec).map_err(WayError::Program)?;
        let file = bundle.join("config.json");
        let written = fs::read(&file).map_err(failed)?;
        let mut spec: serde_json::Value =
            serde_json::from_slice(&written).map_err(|error| failed(error.into()))?;
        spec["process"]["args"] = serde_json::json!(["python3", "-c", self.code]);
        spec["process"]["user"] = serde_json::json!({ "uid": 1000, "gid": 1000 });
        spec["process"]["terminal"] = false.into();
        spec["root"] = serde_json::json!({ "path": root, "readonly": true });
        fs::write(&file, spec.to_string()).map_err(failed)
    }

    fn image(&self) -> Result<Image, WayError> {
        let images = Images::at(self.place.state_dir);
        images
            .find(self.place.image)
            .map_err(|source| WayError::Image { source })
    }

    /// The image's files as a directory: the one that `setup` keeps, else extracted.
    fn tree(&self) -> Result<PathBuf, WayError> {
        let image = self.image()?;
        let images = Images::at(self.place.state_dir);
        if let Some(tree) = images.kept_tree(&image.manifest) {
            return Ok(tree);
        }
        let tree = self.scratch.join("tree");
        if !tree.exists() {
            let mut extract = process::program("fsck.erofs");
            extract.arg(format!("--extract={}", tree.display()));
            process::run(extract.arg(&image.path))
                .map_err(|source| WayError::Extract { source })?;
        }
        Ok(tree)
    }
}

/// Where a program lies.
fn installed(program: &'static str, package: &'static str) -> Result<OsString, WayError> {
    let missing = WayError::NotInstalled { program, package };
    process::find(program.as_ref()).ok_or(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_not_installed_is_named_with_its_package() {
        let error = installed("no-such-program-here", "its-package").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("install the package `its-package`"), "{text}");
    }
}
