//! Tako VM runs untrusted Python in single-use gVisor sandboxes.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! #[tokio::main]
//! async fn main() -> Result<(), tako_vm::Error> {
//!     let sandbox = tako_vm::Sandbox::builder()
//!         .timeout(Duration::from_secs(10))
//!         .memory_bytes(256 << 20)
//!         .build()?;
//!     let done = sandbox.run("print(1 + 1)").await?;
//!     assert_eq!(done.stdout(), "2\n");
//!     Ok(())
//! }
//! ```
//!
//! The host has to be prepared once, with `tako-vm setup`. The program that uses the library belongs to a
//! member of the group `tako-vm` where `tako-vm supervisor` runs as a service, and otherwise to root.
//! Start at [`Sandbox`]: [`Sandbox::run`] runs a program to its end and gives its [`Execution`],
//! [`Sandbox::start`] gives its output as it comes and a way to cancel it ([`Running`]), [`Job`] says
//! what else a program gets, and [`Error`] what can fail. How a program ends is never an error but a
//! [`Termination`].
//!
//! # Modules
//!
//! Whoever runs programs needs none of these. Lower modules know nothing of higher ones;
//! `tests/layering.rs` holds the table.
//!
//! - [`cli`]: one file per subcommand
//! - [`client`]: what a Rust program calls
//! - [`config`]: what root configures, checked
//! - [`job`]: the vocabulary: what is asked for, its limits, how it ended
//! - [`sys`]: the kernel: cgroups, processes, privileges
//! - [`image`]: executor images: build, import, verify, list, remove
//! - [`bundle`]: the OCI bundle of one sandbox: a pure specification, the seccomp profile
//! - [`sandbox`]: one sandbox, from its bundle until nothing of it is left
//! - [`supervisor`]: the privileged service: socket and wire protocol, the pool
//! - [`store`]: jobs and their history in PostgreSQL
//! - [`dispatch`]: takes jobs from the queue and has the supervisor run them
//! - [`api`]: the HTTP API
//! - [`postgres`]: a PostgreSQL of our own, for those who have none
//! - [`runsc`]: typed client of the `runsc` binary, and where it comes from
//! - [`runc`]: typed client of `runc` and `crun`, for permissive mode

pub mod api;
pub mod bundle;
pub mod cli;
pub mod client;
pub mod config;
pub mod dispatch;
pub mod image;
pub mod job;
pub mod postgres;
pub mod runc;
pub mod runsc;
pub mod sandbox;
pub mod store;
pub mod supervisor;
pub mod sys;

pub use client::{
    Artifact, Canceller, Error, Execution, Job, Running, Sandbox, SandboxBuilder, Unparsed,
};
pub use job::{Phase, Record, Termination};
pub use sandbox::Event;

/// So that its example is compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
