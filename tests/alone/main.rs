//! Tests that count or measure, and so run with no other test beside them: needs root and `runsc`.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test reports by panicking, and so do the functions it is written with"
)]

mod death;
mod flood;
mod freeze;
#[path = "../sandbox/host.rs"]
#[expect(dead_code, reason = "the other crate uses all of it")]
mod host;
#[path = "../sandbox/owner.rs"]
mod owner;
mod residue;
mod sweep;

use tokio::sync::{Mutex, MutexGuard};

/// Held by the one test that runs.
static ALONE: Mutex<()> = Mutex::const_new(());

async fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().await
}
