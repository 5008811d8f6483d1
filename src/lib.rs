//! Tako VM runs untrusted Python in single-use gVisor sandboxes.
//!
//! Lower modules know nothing of higher ones; `tests/layering.rs` holds the table.
//!
//! - [`cli`]: one file per subcommand
//! - [`config`]: what root configures, checked
//! - [`job`]: the vocabulary: what is asked for, its limits, how it ended
//! - [`sys`]: the kernel: cgroups, processes, privileges
//! - [`image`]: executor images: build, import, verify, list, remove
//! - [`bundle`]: the OCI bundle of one sandbox: a pure specification, the seccomp profile
//! - [`sandbox`]: one sandbox, from its bundle until nothing of it is left
//! - [`runsc`]: typed client of the `runsc` binary, and where it comes from
//! - [`runc`]: typed client of `runc` and `crun`, for permissive mode

pub mod bundle;
pub mod cli;
pub mod config;
pub mod image;
pub mod job;
pub mod runc;
pub mod runsc;
pub mod sandbox;
pub mod sys;
