//! The tests of the sandbox, in containers of `crun`: permissive mode. Needs root and `crun`.
//!
//! The name of this crate chooses the runtime. Left out is `gvisor`, which is about gVisor alone, and
//! `command`, which starts `tako-vm`: `container` has what is particular to permissive mode.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test reports by panicking, and so do the functions it is written with"
)]

#[path = "../sandbox/container.rs"]
mod container;
#[path = "../sandbox/contract.rs"]
mod contract;
#[path = "../sandbox/host.rs"]
mod host;
#[path = "../sandbox/output.rs"]
mod output;
#[path = "../sandbox/owner.rs"]
#[expect(dead_code, reason = "the crate `alone` uses all of it")]
mod owner;
#[path = "../sandbox/seccomp.rs"]
mod seccomp;
#[path = "../sandbox/termination.rs"]
mod termination;
