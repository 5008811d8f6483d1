//! Hostile programs, each against the real sandbox, with what must hold after every one of them: needs
//! root and `runsc`. `README.md` lists them by their rows.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test reports by panicking, and so do the functions it is written with"
)]

mod attack;
mod exhaustion;
#[path = "../sandbox/host.rs"]
#[expect(dead_code, reason = "the other crates use all of it")]
mod host;
mod sentinels;
