//! A host to run jobs on: sandboxes with the image and the runsc of the state directory, and a look
//! at what they are made of from outside.
//!
//! The crates `runc` and `crun` run the same tests in containers of the runtime they are named after.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tako_vm::image::Images;
use tako_vm::job::{JobRequest, JobSpec, Maxima, Outcome};
use tako_vm::runc::{Kind, Runc};
use tako_vm::runsc::{Runsc, provision};
use tako_vm::sandbox::{Event, Order, Runtime, SandboxError, Sandboxes};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// The executor image that all tests run in.
pub(crate) const IMAGE: &str = "python";

/// The state directory that `make test` provides.
pub(crate) fn state_dir() -> PathBuf {
    std::env::var_os("TAKO_VM_STATE_DIR")
        .expect("TAKO_VM_STATE_DIR names no state directory: run these tests with `make test`")
        .into()
}

/// The runsc of the state directory.
pub(crate) fn runsc_binary() -> PathBuf {
    let installed = provision::installed(&state_dir());
    installed
        .expect("the state directory has a runsc: run `make test`")
        .binary
}

/// What a time on ordinary hardware becomes here: a machine that only emulates its processor says in
/// `TAKO_VM_TEST_SLOWNESS` how many times slower it is (`tests/vm`).
pub(crate) fn on_this_host(time: Duration) -> Duration {
    let slowness = std::env::var_os("TAKO_VM_TEST_SLOWNESS");
    let slowness = slowness.map_or(1, |text| text.to_str().unwrap().parse().unwrap());
    time * slowness
}

/// The container runtime of this crate; gVisor where there is none.
pub(crate) fn container() -> Option<Kind> {
    Kind::named(env!("CARGO_CRATE_NAME"))
}

/// What this crate runs programs with, or something in its place.
pub(crate) fn runtime(binary: &Path) -> Runtime {
    match container() {
        None => Runsc::new(binary).into(),
        Some(kind) => Runc::new(kind, binary).into(),
    }
}

/// The runtime of this crate.
pub(crate) fn runtime_binary() -> PathBuf {
    match container() {
        None => runsc_binary(),
        Some(kind) => tako_vm::sys::process::find(kind.name().as_ref())
            .expect("the container runtimes are installed: run `make test`")
            .into(),
    }
}

/// Sandboxes in a directory of the test's own, so that all it holds belongs to the test.
pub(crate) struct Host {
    directory: TempDir,
    sandboxes: Sandboxes,
    image: PathBuf,
}

/// A job that was run.
pub(crate) struct Ran {
    pub(crate) outcome: Outcome,
    /// Contents of the collected files, by name.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) took: Duration,
}

/// What a job is run with, beside itself.
#[derive(Default)]
pub(crate) struct Company {
    pub(crate) events: Option<mpsc::Sender<Event>>,
    pub(crate) cancel: CancellationToken,
}

/// A job with all the defaults.
pub(crate) fn job(code: &str) -> JobSpec {
    request(JobRequest {
        code: code.to_owned(),
        ..JobRequest::default()
    })
}

/// A job that its maxima allow.
pub(crate) fn request(request: JobRequest) -> JobSpec {
    JobSpec::check(request, &Maxima::default()).unwrap()
}

impl Host {
    pub(crate) fn new() -> Self {
        Self::with_runsc(&runtime_binary())
    }

    /// With another binary in the place of the runtime.
    pub(crate) fn with_runsc(binary: &Path) -> Self {
        let image = Images::at(&state_dir())
            .find(IMAGE)
            .expect("the state directory has an executor image: run `make test`");
        Self::of(binary, &image.path)
    }

    /// A host on which parts may be missing.
    pub(crate) fn of(runsc: &Path, image: &Path) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("tako-vm-test-")
            .tempdir()
            .unwrap();
        let sandboxes = Sandboxes::prepare(directory.path(), runtime(runsc)).unwrap();
        Self {
            directory,
            sandboxes,
            image: image.to_owned(),
        }
    }

    /// Runs a job, and checks that nothing is left of its sandbox.
    pub(crate) async fn run(&self, job: &JobSpec) -> Ran {
        self.run_with(job, Company::default()).await
    }

    /// Like [`Host::run`], with a receiver of events and a way to cancel.
    pub(crate) async fn run_with(&self, job: &JobSpec, company: Company) -> Ran {
        let ran = self.try_run(job, company).await.unwrap();
        assert_gone(&ran.outcome.id);
        let left = self.directory().join("sandboxes").join(&ran.outcome.id);
        assert!(!left.exists(), "`{}` is left", left.display());
        ran
    }

    /// Like [`Host::run_with`], where it may be us who fail.
    pub(crate) async fn try_run(
        &self,
        job: &JobSpec,
        company: Company,
    ) -> Result<Ran, SandboxError> {
        let spool = self.sandboxes.spool();
        let begun = Instant::now();
        let order = Order {
            image: &self.image,
            job,
            spool: &spool,
            events: company.events,
            begin: None,
            cancel: company.cancel,
        };
        let outcome = self.sandboxes.run(order).await?;
        let took = begun.elapsed();
        let read = |artifact: &tako_vm::job::Artifact| {
            (artifact.name.clone(), fs::read(&artifact.path).unwrap())
        };
        Ok(Ran {
            files: outcome.artifacts.iter().map(read).collect(),
            outcome,
            took,
        })
    }

    /// The directory that all of this lies in.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Names of the sandboxes that exist on this host now.
    pub(crate) fn sandboxes(&self) -> Vec<String> {
        names_in(&self.directory().join("sandboxes"))
    }

    /// Runs a job, and looks at its sandbox once the program has printed something.
    pub(crate) async fn watch<T>(
        &self,
        job: &JobSpec,
        look: impl FnOnce(Sandbox) -> T,
    ) -> (Ran, T) {
        let (sender, mut events) = mpsc::channel(16);
        let company = Company {
            events: Some(sender),
            ..Company::default()
        };
        tokio::join!(self.run_with(job, company), async {
            look(self.running(&mut events).await)
        })
    }

    /// Waits until the one job of this host has printed something, and returns its sandbox.
    pub(crate) async fn running(&self, events: &mut mpsc::Receiver<Event>) -> Sandbox {
        events.recv().await.expect("the program prints something");
        let mut names = self.sandboxes();
        assert_eq!(names.len(), 1, "{names:?}");
        Sandbox {
            id: names.remove(0),
        }
    }
}

impl Ran {
    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.outcome.stdout.bytes).into_owned()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.outcome.stderr.bytes).into_owned()
    }

    /// What the program printed, which succeeded and printed JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        assert_eq!(
            self.outcome.termination,
            tako_vm::job::Termination::Exited(0),
            "{}",
            self.stderr()
        );
        serde_json::from_str(&self.stdout()).unwrap_or_else(|error| {
            panic!("{error}: {}{}", self.stdout(), self.stderr());
        })
    }

    /// Names of the collected files.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.files.keys().map(String::as_str).collect()
    }

    /// Type of the error report, if there is one.
    pub(crate) fn error_type(&self) -> Option<&'static str> {
        let exception = self.outcome.exception.as_ref();
        let phase = self.outcome.timing.phase_at_exit;
        Some(self.outcome.termination.error(exception, phase)?.kind)
    }
}

/// A sandbox that is there, seen from outside.
pub(crate) struct Sandbox {
    pub(crate) id: String,
}

/// A runtime of the test's own: a script that finds the real one in `$RUNSC`.
pub(crate) fn script(directory: &Path, body: &str) -> PathBuf {
    let path = directory.join("runsc");
    let real = runtime_binary();
    let text = format!("#!/bin/sh\nRUNSC='{}'\n{body}\n", real.display());
    // Written under another name and closed before it is started: a concurrent fork that still
    // holds it open for writing would make that fail (ETXTBSY).
    let draft = directory.join("draft");
    fs::write(&draft, text).unwrap();
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&draft, &path).unwrap();
    path
}

/// What a process of a sandbox is, as its command line has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// The command that we started and wait for.
    Runsc,
    /// The guest's kernel; of a container its init, without which it cannot be either.
    Sentry,
    /// An address space of a guest process, which has no command line; in a container the process.
    Stub,
}

impl Sandbox {
    /// Its processes, in any cgroup hierarchy, with what they are.
    pub(crate) fn processes(&self) -> Vec<(i32, Part)> {
        let directories = cgroups_of(&self.id);
        let listed = directories
            .iter()
            .flat_map(|directory| read_numbers(&directory.join("cgroup.procs")));
        let mut pids: Vec<i32> = listed.collect();
        pids.sort_unstable();
        pids.dedup();
        pids.into_iter()
            .filter_map(|pid| Some((pid, part(pid)?)))
            .collect()
    }

    /// Those of one kind.
    pub(crate) fn parts(&self, wanted: Part) -> Vec<i32> {
        let processes = self.processes();
        let found: Vec<_> = processes
            .iter()
            .filter(|(_, part)| *part == wanted)
            .map(|(pid, _)| *pid)
            .collect();
        assert!(!found.is_empty(), "no {wanted:?} among {processes:?}");
        found
    }

    /// A file of its cgroup, from whichever hierarchy has it.
    pub(crate) fn cgroup_files(&self, name: &str) -> Vec<String> {
        cgroups_of(&self.id)
            .iter()
            .filter_map(|directory| fs::read_to_string(directory.join(name)).ok())
            .map(|text| text.trim().to_owned())
            .collect()
    }
}

/// Sends a signal to processes of a sandbox; one that is gone already is no error.
#[expect(
    clippy::disallowed_methods,
    reason = "the sandbox lives and holds its pids, and SIGSTOP goes nowhere else"
)]
pub(crate) fn signal(pids: &[i32], signal: nix::sys::signal::Signal) {
    for &pid in pids {
        match nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(errno) => panic!("cannot signal {pid}: {errno}"),
        }
    }
}

fn part(pid: i32) -> Option<Part> {
    let command_line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let arguments: Vec<&[u8]> = command_line.split(|byte| *byte == 0).collect();
    let has = |word: &str| arguments.contains(&word.as_bytes());
    Some(if has("boot") || has(tako_guest::INIT_PATH) {
        Part::Sentry
    } else if has("run") {
        Part::Runsc
    } else {
        Part::Stub
    })
}

/// Checks that a sandbox has left no cgroup and no process.
pub(crate) fn assert_gone(id: &str) {
    let cgroups = cgroups_of(id);
    assert!(cgroups.is_empty(), "cgroups are left: {cgroups:?}");
    let processes = processes_that_mention(id);
    assert!(processes.is_empty(), "processes are left: {processes:?}");
}

/// Command lines of processes with `text` in them.
pub(crate) fn processes_that_mention(text: &str) -> Vec<String> {
    let pids = names_in(Path::new("/proc"));
    pids.iter()
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .filter(|pid| **pid != std::process::id().to_string())
        .filter_map(|pid| fs::read(format!("/proc/{pid}/cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(text))
        .collect()
}

/// The directory of every cgroup hierarchy in which sandboxes lie.
pub(crate) fn cgroup_parents() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let of_cgroups = |line: &&str| line.contains(" - cgroup ") || line.contains(" - cgroup2 ");
    let mount_point = |line: &str| line.split(' ').nth(4).map(PathBuf::from);
    mounts
        .lines()
        .filter(of_cgroups)
        .filter_map(mount_point)
        .map(|mount| mount.join(tako_vm::sys::cgroup::PARENT))
        .collect()
}

/// The directories of one sandbox in all cgroup hierarchies.
pub(crate) fn cgroups_of(id: &str) -> Vec<PathBuf> {
    let directories = cgroup_parents().into_iter().map(|parent| parent.join(id));
    directories.filter(|directory| directory.exists()).collect()
}

fn read_numbers(path: &Path) -> Vec<i32> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Names in a directory, sorted.
pub(crate) fn names_in(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).unwrap();
    let name = |entry: std::io::Result<fs::DirEntry>| {
        entry.unwrap().file_name().to_string_lossy().into_owned()
    };
    let mut names: Vec<_> = entries.map(name).collect();
    names.sort();
    names
}
