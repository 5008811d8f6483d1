//! The kernel: processes, cgroups, privileges. All `unsafe` and all privilege of the host side live
//! here, and nothing here knows of jobs, images or runsc.
#![expect(unsafe_code, reason = "the one module that makes raw system calls")]

pub mod account;
pub mod apt;
pub mod census;
pub mod cgroup;
pub mod digest;
pub mod endpoint;
pub mod held;
pub mod host;
pub mod mount;
pub mod notify;
pub mod peer;
pub mod place;
pub mod privilege;
pub mod process;
pub mod processor;
