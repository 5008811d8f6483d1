//! The tests of the library and of `tako-vm run` once more, with a supervisor in between, which is used
//! by members of its group: needs root and `runsc`.
//!
//! What is particular to doing without one stays where it is: `refusals` of `tests/library`, `privileges`
//! of `tests/sandbox`.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test reports by panicking, and so do the functions it is written with"
)]

mod busy;
#[path = "../sandbox/command.rs"]
mod command;
#[path = "../sandbox/host.rs"]
#[expect(dead_code, reason = "the sandbox tests use all of it")]
mod host;
mod invocation;
mod refused;
#[path = "../library/results.rs"]
mod results;
mod status;
#[path = "../library/streams.rs"]
mod streams;
mod supervisor;

use host::{names_in, state_dir};
use invocation::{assert_gone, settles};
use supervisor::supervisor;
use tako_vm::{Execution, Job, Sandbox, SandboxBuilder};
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Held by all tests that run something, for as long as they keep what it left; alone by those that
/// look at the whole state directory.
static STATE: RwLock<()> = RwLock::const_new(());

async fn beside_others() -> RwLockReadGuard<'static, ()> {
    STATE.read().await
}

async fn alone() -> RwLockWriteGuard<'static, ()> {
    let guard = STATE.write().await;
    until_empty();
    guard
}

/// Waits until nothing is left of the tests before.
fn until_empty() {
    let left = || [sandboxes(), below_state("spools")].concat();
    assert!(settles(|| left().is_empty()), "{:?}", left());
}

fn builder() -> SandboxBuilder {
    Sandbox::builder().supervisor(supervisor().socket())
}

fn sandbox() -> Sandbox {
    builder().build().unwrap()
}

/// Runs a job, and checks that nothing is left of its sandbox.
async fn run(job: impl Into<Job>) -> Execution {
    let done = sandbox().run(job).await.unwrap();
    assert_gone(done.id());
    done
}

/// What lies where running something could leave it: with the supervisor, and here.
fn state() -> Vec<String> {
    let mut names = sandboxes();
    names.extend(below_state("spools"));
    let ours = names_in(&std::env::temp_dir());
    // Those of tests have names that go on.
    let is_spool = |name: &String| {
        let rest = name.strip_prefix("tako-vm-");
        rest.is_some_and(|rest| !rest.contains('-'))
    };
    names.extend(ours.into_iter().filter(is_spool));
    names
}

/// Names of the sandboxes that exist now.
fn sandboxes() -> Vec<String> {
    below_state("sandboxes")
}

fn below_state(name: &str) -> Vec<String> {
    let directory = state_dir().join(name);
    if directory.exists() {
        names_in(&directory)
    } else {
        Vec::new()
    }
}
