//! `tako-vm server` as it is started on a host, over HTTP: needs root and `runsc`.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test reports by panicking, and so do the functions it is written with"
)]

#[path = "../queue/bucket.rs"]
#[expect(dead_code, reason = "the tests of the queue use all of it")]
mod bucket;
#[path = "../queue/cluster.rs"]
#[expect(dead_code, reason = "the tests of the queue use all of it")]
mod cluster;
mod dev;
#[path = "../sandbox/host.rs"]
#[expect(dead_code, reason = "the sandbox tests use all of it")]
mod host;
mod http;
mod life;
mod objects;
mod process;
mod refusals;
mod several;
