//! What a sandbox does, shown with real programs in real sandboxes: needs root and `runsc`.
//!
//! The state directory with the executor image and runsc comes from `TAKO_VM_STATE_DIR`.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test reports by panicking, and so do the functions it is written with"
)]

mod bench;
mod command;
mod contract;
mod gvisor;
mod host;
mod invocation;
mod output;
mod privileges;
mod seccomp;
mod termination;
