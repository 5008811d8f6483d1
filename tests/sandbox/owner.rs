//! Owners of sandboxes that are killed, and what must be left of them after the next start: nothing.
//!
//! An owner is a process of its own: this very program, started again with `VICTIM` set.

use crate::host::{
    IMAGE, assert_gone, container, job, names_in, on_this_host, processes_that_mention, runtime,
    runtime_binary, state_dir,
};
use nix::sys::signal::{Signal, raise};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tako_vm::image::Images;
use tako_vm::job::Termination;
use tako_vm::sandbox::{Order, Sandboxes, Step, sweep};
use tako_vm::sys::process;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// From the beginning of a start until nothing of a killed owner is left.
const PROMISE: Duration = Duration::from_secs(2);

/// `SIGNAL STEP COUNT DIRECTORY`: what the owner is to do.
const VICTIM: &str = "TAKO_VM_TEST_VICTIM";

pub(crate) const BRIEF: &str = "open('/output/file', 'w').write('x'); print('done')";
pub(crate) const SPIN: &str = "
import os
for _ in range(3): os.fork()
while True: pass
";
const SLOW: &str = "import time; time.sleep(3); print('done')";

/// The test of this crate that is an owner where it finds [`orders`].
fn test() -> &'static str {
    match container() {
        None => "sweep::every_step_is_told_in_its_order",
        Some(_) => "container::an_owners_container_goes_with_its_mount_after_it_was_killed",
    }
}

/// What this process is to do as an owner.
pub(crate) fn orders() -> Option<String> {
    std::env::var_os(VICTIM)?.into_string().ok()
}

/// Where an owner finds its image: in its own directory, if that has any.
fn provided(directory: &Path) -> PathBuf {
    if directory.join("images").exists() {
        directory.to_owned()
    } else {
        state_dir()
    }
}

/// A process that owns sandboxes, killed or not before the test ends.
pub(crate) struct Owner(pub(crate) Child);

impl Drop for Owner {
    fn drop(&mut self) {
        // One that has ended is no error.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Owner {
    /// Runs `count` jobs at once in `directory`, and kills itself when all of them have reached `step`.
    pub(crate) fn start(directory: &Path, step: &str, count: usize) -> Self {
        Self::start_with(Signal::SIGKILL, directory, step, count)
    }

    fn start_with(signal: Signal, directory: &Path, step: &str, count: usize) -> Self {
        let orders = format!("{signal} {step} {count} {}", directory.display());
        let mut command = process::program(std::env::current_exe().unwrap());
        command
            .args(["--exact", test()])
            .args(["--include-ignored", "--nocapture"])
            .env(VICTIM, orders)
            .env("TAKO_VM_STATE_DIR", provided(directory))
            .stdout(Stdio::null());
        Self(command.spawn().unwrap())
    }

    /// Like [`Owner::start`], but it only stops itself: what it owns lives and is not let go of.
    pub(crate) fn stop(directory: &Path, step: &str, count: usize) -> Self {
        let owner = Self::start_with(Signal::SIGSTOP, directory, step, count);
        let status = format!("/proc/{}/status", owner.0.id());
        let deadline = Instant::now() + Duration::from_secs(30);
        while !fs::read_to_string(&status).unwrap().contains("State:\tT") {
            assert!(Instant::now() < deadline, "it does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
        owner
    }

    pub(crate) fn kill(&mut self) {
        self.0.kill().unwrap();
        self.was_killed();
    }

    pub(crate) fn was_killed(&mut self) {
        let status = self.0.wait().unwrap();
        assert_eq!(status.signal(), Some(libc::SIGKILL), "{status}");
    }

    pub(crate) fn ended_well(&mut self) {
        assert!(self.0.wait().unwrap().success());
    }
}

pub(crate) fn sandboxes(state_dir: &Path) -> Sandboxes {
    Sandboxes::prepare(state_dir, runtime(&runtime_binary())).unwrap()
}

/// Names in a directory of the state directory, which may not be there yet.
pub(crate) fn names(state_dir: &Path, kind: &str) -> Vec<String> {
    let directory = state_dir.join(kind);
    if directory.exists() {
        names_in(&directory)
    } else {
        Vec::new()
    }
}

/// Checks that of these sandboxes, and of everything in the state directory, nothing is left.
pub(crate) fn assert_clean(state_dir: &Path, ids: &[String]) {
    for id in ids {
        assert_gone(id);
    }
    for kind in ["sandboxes", "spools"] {
        assert_eq!(names(state_dir, kind), Vec::<String>::new(), "{kind}");
    }
    let processes = processes_that_mention(&state_dir.display().to_string());
    assert_eq!(processes, Vec::<String>::new());
}

/// The life of an owner, up to the step at which it kills itself.
pub(crate) async fn own(orders: &str) {
    let [signal, step, count, directory] = orders.splitn(4, ' ').collect::<Vec<_>>()[..] else {
        panic!("{orders}");
    };
    let last = Step::ALL.into_iter().find(|one| format!("{one:?}") == step);
    let count: usize = count.parse().unwrap();
    let signal: Signal = signal.parse().unwrap();
    let reached = AtomicUsize::new(0);
    let sandboxes = sandboxes(Path::new(directory)).observed(move |_, step| {
        if Some(step) == last && reached.fetch_add(1, Ordering::SeqCst) + 1 == count {
            raise(signal).unwrap();
        }
    });
    let code = match last {
        None => SLOW,
        Some(Step::Running) => SPIN,
        Some(_) => BRIEF,
    };
    let runs = (0..count).map(|_| {
        let sandboxes = sandboxes.clone();
        tokio::spawn(async move { run(&sandboxes, code).await })
    });
    for one in runs.collect::<Vec<_>>() {
        one.await.unwrap();
    }
    assert_eq!(last, None, "it was to be killed");
}

/// Runs a job that prints `done`, and returns the id of its sandbox.
pub(crate) async fn run(sandboxes: &Sandboxes, code: &str) -> String {
    let image = Images::at(&state_dir()).find(IMAGE).unwrap();
    let spool = sandboxes.spool();
    // As with the first file that a job leaves.
    spool.path().unwrap();
    let order = Order {
        image: &image.path,
        job: &job(code),
        spool: &spool,
        events: None,
        begin: None,
        cancel: CancellationToken::new(),
    };
    let outcome = sandboxes.run(order).await.unwrap();
    assert_eq!(outcome.termination, Termination::Exited(0));
    assert_eq!(outcome.stdout.bytes, b"done\n");
    outcome.id
}

/// A state directory of a test's own, swept once more at its end: a test that fails must not leave
/// what it looked for.
pub(crate) struct State(TempDir);

impl State {
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for State {
    fn drop(&mut self) {
        sweep(self.path()).ok();
    }
}

pub(crate) fn directory() -> State {
    let mut builder = tempfile::Builder::new();
    State(builder.prefix("tako-vm-test-").tempdir().unwrap())
}

/// Starts once, and checks what that took and what it took away.
pub(crate) fn start_and_assert_clean(state_dir: &Path, ids: &[String]) -> Duration {
    let begun = Instant::now();
    let started = sandboxes(state_dir);
    let took = begun.elapsed();
    let left = &started.swept().left;
    assert!(left.is_empty(), "{left:?} after {took:?}");
    assert_clean(state_dir, ids);
    assert!(took < on_this_host(PROMISE), "{took:?}");
    let swept = &started.swept().removed;
    assert!(ids.iter().all(|id| swept.contains(id)), "{swept:?}");
    took
}
