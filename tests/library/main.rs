//! `tako_vm::Sandbox` as Rust programs use it: needs root and `runsc`.
//!
//! The examples of the documentation are among these tests, since as doc tests they only compile.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test reports by panicking, and so do the functions it is written with"
)]

#[path = "../../examples/library.rs"]
mod example;
#[path = "../sandbox/host.rs"]
#[expect(dead_code, reason = "the sandbox tests use all of it")]
mod host;
mod refusals;
mod results;
mod streams;

use host::{assert_gone, names_in, state_dir};
use tako_vm::{Execution, Job, Sandbox, SandboxBuilder};
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Held by all tests that run something, for as long as they keep what it left; alone by those that
/// look at the whole state directory.
static STATE: RwLock<()> = RwLock::const_new(());

async fn beside_others() -> RwLockReadGuard<'static, ()> {
    STATE.read().await
}

async fn alone() -> RwLockWriteGuard<'static, ()> {
    STATE.write().await
}

fn builder() -> SandboxBuilder {
    Sandbox::builder()
}

fn sandbox() -> Sandbox {
    builder().build().unwrap()
}

/// Whether something is so when all is over: here at once.
fn settles(so: impl Fn() -> bool) -> bool {
    so()
}

/// Runs a job, and checks that nothing is left of its sandbox.
async fn run(job: impl Into<Job>) -> Execution {
    let done = sandbox().run(job).await.unwrap();
    assert_gone(done.id());
    done
}

/// What lies in the state directory, as far as running something could leave it there.
fn state() -> Vec<String> {
    let mut names = names_in(&state_dir());
    // Made with the first of their kind, and then kept.
    names.retain(|name| name != "sandboxes" && name != "spools");
    names.extend(sandboxes());
    names.extend(below_state("spools"));
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

#[test]
#[ignore = "needs root and runsc"]
fn the_example_runs() {
    let _guard = STATE.blocking_read();
    example::main().unwrap();
}
