//! Jobs from the queue to their results: a real supervisor, a real PostgreSQL, and faults between them.
//! Needs root and `runsc`.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test reports by panicking, and so do the functions it is written with"
)]

#[path = "../supervisor/client.rs"]
#[expect(dead_code, reason = "the supervisor's own tests use all of it")]
mod client;
#[path = "../queue/cluster.rs"]
#[expect(dead_code, reason = "the tests of the queue use all of it")]
mod cluster;
#[path = "../supervisor/daemon.rs"]
#[expect(dead_code, reason = "the supervisor's own tests use all of it")]
mod daemon;
mod faults;
#[path = "../sandbox/host.rs"]
#[expect(dead_code, reason = "the sandbox tests use all of it")]
mod host;
#[path = "../queue/jobs.rs"]
#[expect(dead_code, reason = "the tests of the queue use all of it")]
mod jobs;
mod proxy;
mod runs;
mod server;
