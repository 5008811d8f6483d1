//! Faults while jobs are taken in, run and recorded, and a checker that is held against all that has
//! happened: no accepted job is lost, none has two results, nothing is written by whom a job was taken
//! from, nothing is left. Some need root and `runsc`.
//!
//! How much of it is said by `TAKO_VM_SOAK_OUTAGE_SECONDS`, `TAKO_VM_SOAK_LOAD_SECONDS`,
//! `TAKO_VM_SOAK_REPLIES` and `TAKO_VM_SOAK_CANCELS`; `make soak` says more than `make test`.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test reports by panicking, and tells what it has seen"
)]

mod checker;
mod children;
#[path = "../supervisor/client.rs"]
#[expect(dead_code, reason = "the supervisor's own tests use all of it")]
mod client;
mod clocks;
#[path = "../queue/cluster.rs"]
#[expect(dead_code, reason = "the tests of the queue use all of it")]
mod cluster;
#[path = "../supervisor/daemon.rs"]
#[expect(dead_code, reason = "the supervisor's own tests use all of it")]
mod daemon;
mod disk;
mod hands;
mod history;
#[path = "../sandbox/host.rs"]
#[expect(dead_code, reason = "the sandbox tests use all of it")]
mod host;
#[path = "../queue/jobs.rs"]
#[expect(dead_code, reason = "the tests of the queue use all of it")]
mod jobs;
mod outages;
mod planted;
mod postgres;
mod processes;
mod queue;
#[path = "../dispatch/server.rs"]
#[expect(dead_code, reason = "the tests of the dispatcher use all of it")]
mod server;
mod unheard;
mod way;

/// A number of the environment.
fn size(variable: &str, default: usize) -> usize {
    std::env::var_os(variable).map_or(default, |text| {
        let text = text.into_string().unwrap();
        text.parse()
            .unwrap_or_else(|error| panic!("{variable}={text}: {error}"))
    })
}
