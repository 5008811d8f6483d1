//! Tako VM runs untrusted Python in single-use gVisor sandboxes.
//!
//! Lower modules know nothing of higher ones; `tests/layering.rs` holds the table.
//!
//! - [`sys`]: the kernel: cgroups, processes, privileges
//! - [`cli`]: the subcommands of `tako-vm`, one file each
//! - [`image`]: executor images: build, import, verify, list, remove
//! - [`runsc`]: typed client of the `runsc` binary, and where it comes from

pub mod cli;
pub mod image;
pub mod runsc;
pub mod sys;
