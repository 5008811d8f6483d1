//! The ways to run the same program: ours, and those that it is compared with.

use super::PROGRAM;
use crate::cli::{one_line, output};
use crate::client::{self, Execution, Job, Sandbox};
use crate::config;
use crate::image::{Image, ImageError, Images};
use crate::job::Termination;
use crate::runc::{Kind, Runc};
use crate::runsc::provision::{self, ProvisionError};
use crate::sys::cgroup;
use crate::sys::mount::{self, MountError};
use crate::sys::process::{self, PidFd, ProcessError};
use serde::Serialize;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// What [`PROGRAM`] prints.
const OUTPUT: &str = "2\n";

/// A way to run a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Way {
    /// [`Sandbox::run`] in this process.
    Library,
    /// `tako-vm run`, from the start of the process to its end.
    Command,
    /// `runsc run` with its default flags on a directory root.
    Runsc,
    /// `runc run` on the mounted image.
    Runc,
    /// `crun run` on the mounted image.
    Crun,
    /// `bwrap` on a directory root.
    Bwrap,
    /// The interpreter of this host.
    Native,
}

/// What there is to compare with, in the order of the first round.
const COMPARED: [Way; 6] = [
    Way::Command,
    Way::Runsc,
    Way::Runc,
    Way::Crun,
    Way::Bwrap,
    Way::Native,
];

impl Way {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Library => "tako-vm, library",
            Self::Command => "tako-vm run",
            Self::Runsc => "plain runsc run",
            Self::Runc => "runc run",
            Self::Crun => "crun run",
            Self::Bwrap => "bwrap",
            Self::Native => "native python3",
        }
    }
}

/// Why a way did not run the program.
#[derive(Debug, thiserror::Error)]
pub(super) enum WayError {
    #[error("`{program}` is not installed: install the package `{package}`")]
    NotInstalled {
        program: &'static str,
        package: &'static str,
    },
    #[error("there is no runsc of ours")]
    Runsc { source: ProvisionError },
    #[error("there is no image to give it")]
    Image { source: ImageError },
    #[error("cannot extract the image: install the package `erofs-utils`")]
    Extract { source: ProcessError },
    #[error("cannot mount the image")]
    Mount { source: MountError },
    #[error("cannot write a bundle")]
    Bundle { source: io::Error },
    #[error("cannot find this program's own file")]
    Own { source: io::Error },
    #[error(transparent)]
    Program(ProcessError),
    #[error(transparent)]
    Client(client::Error),
    #[error("the program printed {found:?} instead of {OUTPUT:?}")]
    Output { found: String },
    #[error("the program did not succeed: {why}")]
    Unsuccessful { why: String },
}

/// One run of one way.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub(super) called: Instant,
    pub(super) ended: Instant,
    /// What is known of a sandbox that this process has run.
    pub(super) inside: Option<Inside>,
}

impl Run {
    pub(super) fn outside(called: Instant, ended: Instant) -> Self {
        Self {
            called,
            ended,
            inside: None,
        }
    }

    /// The same of a sandbox that came to be in this manner.
    #[cfg(test)]
    pub(super) fn started(self, start: &'static str) -> Self {
        let inside = Inside {
            start,
            sandbox: Duration::ZERO,
            startup: Duration::ZERO,
            execution: Duration::ZERO,
            cpu: Duration::ZERO,
            memory_mib: 0.0,
        };
        Self {
            inside: Some(inside),
            ..self
        }
    }

    /// How the sandbox came to be.
    pub(super) fn start(&self) -> Option<&'static str> {
        self.inside.as_ref().map(|inside| inside.start)
    }
}

/// What a sandbox says of itself.
#[derive(Debug, Clone)]
pub(super) struct Inside {
    start: &'static str,
    pub(super) sandbox: Duration,
    pub(super) startup: Duration,
    pub(super) execution: Duration,
    pub(super) cpu: Duration,
    pub(super) memory_mib: f64,
}

impl Inside {
    fn of(execution: &Execution) -> Self {
        let (timing, usage) = (execution.timing(), execution.usage());
        let milliseconds = |time: Option<u64>| Duration::from_millis(time.unwrap_or_default());
        Self {
            start: timing.start,
            sandbox: milliseconds(Some(timing.sandbox_ms)),
            startup: milliseconds(timing.startup_ms),
            execution: milliseconds(timing.execution_ms),
            cpu: milliseconds(Some(usage.cpu_time_ms)),
            memory_mib: usage.max_rss_mb,
        }
    }
}

/// Runs that did not go as they should.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Failures {
    pub(super) count: u64,
    pub(super) first: Option<String>,
}

impl Failures {
    pub(super) fn take(&mut self, error: &WayError) {
        self.count += 1;
        let text = || output::visible(&one_line(error));
        self.first.get_or_insert_with(text);
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.count += other.count;
        if self.first.is_none() {
            self.first.clone_from(&other.first);
        }
    }
}

/// What is measured: a program in sandboxes of ours, run as every user of the library runs one.
#[derive(Debug, Clone)]
pub(super) struct Subject {
    pub(super) sandbox: Sandbox,
    pub(super) code: String,
}

impl Subject {
    /// Runs the program once, from the call until its end is known; nothing when it is cancelled.
    pub(super) async fn run(&self, cancel: &CancellationToken) -> Result<Option<Run>, WayError> {
        let job = Job::new(self.code.as_str());
        let called = Instant::now();
        let running = self.sandbox.run(job);
        let Some(execution) = cancel.run_until_cancelled(running).await else {
            return Ok(None);
        };
        let ended = Instant::now();
        let execution = execution.map_err(WayError::Client)?;
        if !execution.success() {
            return Err(unsuccessful(&execution));
        }
        self.check(&execution.stdout())?;
        Ok(Some(Run {
            called,
            ended,
            inside: Some(Inside::of(&execution)),
        }))
    }

    /// Only of our own program it is known what it prints.
    fn check(&self, printed: &str) -> Result<(), WayError> {
        if self.code == PROGRAM && printed != OUTPUT {
            return Err(WayError::Output {
                found: printed.to_owned(),
            });
        }
        Ok(())
    }
}

fn unsuccessful(execution: &Execution) -> WayError {
    let why = match (execution.error(), execution.termination()) {
        (Some(error), Termination::Exited(code)) => {
            format!("{} (exit status {code})", error.message)
        }
        (Some(error), _) => error.message,
        (None, termination) => format!("{termination:?}"),
    };
    WayError::Unsuccessful { why }
}

/// What is needed to prepare the ways.
pub(super) struct Place<'a> {
    pub(super) state_dir: &'a Path,
    pub(super) config: Option<&'a Path>,
    pub(super) image: &'a str,
}

/// A way that cannot be compared with here.
#[derive(Debug, Serialize)]
pub(super) struct LeftOut {
    pub(super) way: Way,
    pub(super) why: String,
}

/// All ways that run here. Clones share what was prepared.
#[derive(Debug, Clone)]
pub(super) struct Contest {
    subject: Subject,
    others: Arc<Others>,
}

#[derive(Debug)]
struct Others {
    tools: Vec<(Way, Tool)>,
    /// For names that were not used yet.
    runs: AtomicU64,
    _scratch: Option<TempDir>,
}

/// A program of the host's that runs ours.
#[derive(Debug)]
enum Tool {
    /// This very program.
    Command {
        binary: PathBuf,
        options: Vec<OsString>,
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

impl Contest {
    /// Ours alone.
    pub(super) fn alone(subject: Subject) -> Self {
        let others = Others {
            tools: Vec::new(),
            runs: AtomicU64::new(0),
            _scratch: None,
        };
        Self {
            subject,
            others: Arc::new(others),
        }
    }

    /// Every way that is installed here and runs the program; what does not is named with the reason.
    pub(super) async fn prepare(
        subject: Subject,
        place: &Place<'_>,
        cancel: &CancellationToken,
    ) -> io::Result<(Self, Vec<LeftOut>)> {
        let scratch = tempfile::Builder::new()
            .prefix("tako-vm-bench-")
            .tempdir()?;
        let shop = Workshop::new(place, &subject.code, scratch.path());
        let (mut tools, mut left_out) = (Vec::new(), Vec::new());
        for way in COMPARED {
            let tool = tokio::task::block_in_place(|| shop.tool(way));
            let tried = match tool {
                Ok(tool) => try_out(&subject, way, tool, cancel).await,
                Err(error) => Err(error),
            };
            match tried {
                Ok(tool) => tools.push((way, tool)),
                Err(error) => left_out.push(LeftOut {
                    way,
                    why: output::visible(&one_line(&error)),
                }),
            }
        }
        let others = Others {
            tools,
            runs: AtomicU64::new(0),
            _scratch: Some(scratch),
        };
        let contest = Self {
            subject,
            others: Arc::new(others),
        };
        Ok((contest, left_out))
    }

    /// The ways that run here.
    pub(super) fn ways(&self) -> Vec<Way> {
        let others = self.others.tools.iter().map(|(way, _)| *way);
        std::iter::once(Way::Library).chain(others).collect()
    }

    /// Runs the program once; nothing when it is cancelled.
    pub(super) async fn run(
        &self,
        way: Way,
        cancel: &CancellationToken,
    ) -> Result<Option<Run>, WayError> {
        let found = self.others.tools.iter().find(|(other, _)| *other == way);
        let Some((_, tool)) = found else {
            return self.subject.run(cancel).await;
        };
        let id = format!(
            "bench-{}-{}",
            std::process::id(),
            self.others.runs.fetch_add(1, Ordering::Relaxed)
        );
        tool.run(&self.subject, &id, cancel).await
    }
}

/// Once before anything is measured: it fills the caches, too.
async fn try_out(
    subject: &Subject,
    way: Way,
    tool: Tool,
    cancel: &CancellationToken,
) -> Result<Tool, WayError> {
    let id = format!("bench-{}-{way:?}", std::process::id()).to_lowercase();
    tool.run(subject, &id, cancel).await?;
    Ok(tool)
}

impl Tool {
    async fn run(
        &self,
        subject: &Subject,
        id: &str,
        cancel: &CancellationToken,
    ) -> Result<Option<Run>, WayError> {
        let command = self.command(&subject.code, id)?;
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

    fn command(&self, code: &str, id: &str) -> Result<Command, WayError> {
        let mut command = match self {
            Self::Command { binary, options } => {
                let mut command = process::program(binary);
                command.args(options).args(["--code", code]);
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
        Ok(command)
    }

    /// Removes what a run that was stopped has left.
    fn discard(&self, id: &str) {
        let mut command = match self {
            Self::Runsc { binary, root, .. } => {
                // It would take its dead for living, and wait for them.
                kill_members(id);
                let mut command = process::program(binary);
                command.arg("--root").arg(root);
                command.args(["delete", "--force", id]);
                command
            }
            Self::Container { runc, bundle, .. } => runc.delete(bundle, id),
            Self::Command { .. } | Self::Bwrap { .. } | Self::Native { .. } => return,
        };
        // There may be nothing to remove, and then it fails.
        drop(process::run(&mut command));
    }
}

/// Kills what is in the cgroups that plain runsc has made, and buries it.
fn kill_members(id: &str) {
    let mounted = cgroup::mounted().unwrap_or_default();
    let lists = mounted
        .iter()
        .map(|one| one.path.join(id).join("cgroup.procs"));
    let lists: String = lists.flat_map(fs::read_to_string).collect();
    let members: BTreeSet<i32> = lists.lines().filter_map(|pid| pid.parse().ok()).collect();
    for &member in &members {
        // What is dead already needs no killing.
        drop(PidFd::open(member).and_then(|handle| handle.kill()));
    }
    for _ in 0..MOMENTS {
        for &member in &members {
            process::reap(member);
        }
        let ours = process::children().unwrap_or_default();
        if ours.is_disjoint(&members) {
            return;
        }
        thread::sleep(MOMENT);
    }
}

/// How often, and how long apart, it is looked whether what was killed is dead: a second in all.
const MOMENTS: u32 = 100;
const MOMENT: Duration = Duration::from_millis(10);

/// Buries what other runtimes leave to whoever started them. Only while no run is under way, whose
/// own end would be taken away.
pub(super) fn bury_orphans() {
    for pid in process::children().unwrap_or_default() {
        process::reap(pid);
    }
}

/// Where the ways are prepared.
struct Workshop<'a> {
    place: &'a Place<'a>,
    code: &'a str,
    scratch: &'a Path,
}

impl<'a> Workshop<'a> {
    fn new(place: &'a Place<'a>, code: &'a str, scratch: &'a Path) -> Self {
        Self {
            place,
            code,
            scratch,
        }
    }

    fn tool(&self, way: Way) -> Result<Tool, WayError> {
        match way {
            Way::Library | Way::Command => self.command(),
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

    fn command(&self) -> Result<Tool, WayError> {
        let own = |source| WayError::Own { source };
        let mut options: Vec<OsString> = vec!["--state-dir".into(), self.place.state_dir.into()];
        if let Some(file) = self.place.config {
            options.push("--config".into());
            options.push(std::path::absolute(file).map_err(own)?.into());
        }
        options.extend(["run".into(), "--image".into(), self.place.image.into()]);
        Ok(Tool::Command {
            binary: std::env::current_exe().map_err(own)?,
            options,
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

/// The image that is used unless another is named.
pub(super) const IMAGE: &str = config::DEFAULT_IMAGE;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_is_kept_and_all_are_counted() {
        let mut failures = Failures::default();
        let failed = |why: &str| WayError::Unsuccessful {
            why: why.to_owned(),
        };
        failures.take(&failed("first\u{1b}[2J"));
        failures.take(&failed("second"));
        let mut sum = Failures::default();
        sum.add(&failures);
        sum.add(&failures);
        assert_eq!(sum.count, 4);
        let first = sum.first.unwrap();
        assert_eq!(first, "the program did not succeed: first\\u{1b}[2J");
    }

    #[test]
    fn a_program_that_is_not_installed_is_named_with_its_package() {
        let error = installed("no-such-program-here", "its-package").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("install the package `its-package`"), "{text}");
    }
}
