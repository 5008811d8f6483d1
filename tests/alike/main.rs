//! A program finds out nothing from how its sandbox was started: cold, ready beforehand, frozen in
//! between, or restored from a checkpoint. And no two of them share anything of chance. Needs root,
//! `runsc` and both images; [docs/starts.md](../../docs/starts.md) says what is not alike, and why.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test reports by panicking, and so do the functions it is written with"
)]

mod chance;
mod data;
mod endings;
mod guest;
mod handover;
#[path = "../sandbox/host.rs"]
#[expect(dead_code, reason = "the sandbox tests use all of it")]
mod host;
mod seen;
mod starts;
