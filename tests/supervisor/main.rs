//! The supervisor as its clients see it: the real command on a socket of the test's own, and a client
//! that speaks the bytes by hand. Needs root and `runsc`.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test reports by panicking, and so do the functions it is written with"
)]

mod client;
mod daemon;
mod drain;
#[path = "../sandbox/host.rs"]
#[expect(dead_code, reason = "the other crate uses all of it")]
mod host;
mod hostile;
mod peers;
mod pool;
mod service;
mod vectors;
