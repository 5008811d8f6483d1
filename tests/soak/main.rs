//! Many jobs of every kind against the real command, and many deaths of it: each job ends as it should,
//! and nothing is left of any. Needs root and `runsc`.
//!
//! How many is said by `TAKO_VM_SOAK_JOBS` and `TAKO_VM_SOAK_KILLS`; `make soak` says more than
//! `make test`.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test reports by panicking, and tells what it has seen"
)]

#[path = "../supervisor/client.rs"]
#[expect(dead_code, reason = "the supervisor's own tests use all of it")]
mod client;
#[path = "../supervisor/daemon.rs"]
#[expect(dead_code, reason = "the supervisor's own tests use all of it")]
mod daemon;
mod deaths;
#[path = "../sandbox/host.rs"]
#[expect(dead_code, reason = "the sandbox tests use all of it")]
mod host;
mod jobs;
mod kinds;
mod watch;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Held by a test while it runs: each looks at times or at memory that the other would change.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A number of the environment.
fn size(variable: &str, default: usize) -> usize {
    std::env::var_os(variable).map_or(default, |text| {
        let text = text.into_string().unwrap();
        text.parse()
            .unwrap_or_else(|error| panic!("{variable}={text}: {error}"))
    })
}
