//! Hostile programs, each against the real sandbox, with what must hold after every one of them: needs
//! root and `runsc`. `README.md` lists them by their rows.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test reports by panicking, and so do the functions it is written with"
)]

mod attack;
mod exhaustion;
mod facts;
mod files;
mod golden;
#[path = "../sandbox/host.rs"]
#[expect(dead_code, reason = "the other crates use all of it")]
mod host;
mod image;
mod kernel;
mod neighbours;
mod network;
mod posture;
mod protocol;
mod sentinels;
