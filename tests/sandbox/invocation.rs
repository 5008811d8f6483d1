//! The command under test: run by root, with no supervisor.

pub(crate) use crate::host::assert_gone;
use crate::host::state_dir;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tako_vm::sys::process;

/// Held by the one test that uses the state directory, so that it can tell what a command left there.
static STATE: Mutex<()> = Mutex::new(());

pub(crate) type Guard = MutexGuard<'static, ()>;

pub(crate) fn alone() -> Guard {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn command(arguments: &[&str]) -> Command {
    tako_vm(Path::new(env!("CARGO_BIN_EXE_tako-vm")), arguments)
}

pub(crate) fn tako_vm(binary: &Path, arguments: &[&str]) -> Command {
    let mut command = process::program(binary);
    command
        .arg("run")
        .args(arguments)
        .arg("--state-dir")
        .arg(state_dir());
    command
}

/// Whether something is so when the command has ended: at once.
pub(crate) fn settles(so: impl Fn() -> bool) -> bool {
    so()
}
