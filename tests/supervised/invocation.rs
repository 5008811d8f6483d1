//! The command under test: run by an ordinary user of the group, who has nothing but the socket.

use crate::host;
use crate::supervisor::{group, supervisor};
use crate::{STATE, until_empty};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tako_vm::sys::process;
use tokio::sync::RwLockWriteGuard;

/// Who it is: not `nobody`, whose uid the sentries have.
const USER: &str = "60123";

pub(crate) type Guard = RwLockWriteGuard<'static, ()>;

/// Held by the one test that looks at the whole state directory.
pub(crate) fn alone() -> Guard {
    let guard = STATE.blocking_write();
    until_empty();
    guard
}

pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = as_user(&[&group().to_string()]);
    command.arg("run").args(arguments);
    command.arg("--supervisor").arg(supervisor().socket());
    command
}

/// `tako-vm` as an ordinary user with these groups, who cannot even read the state directory.
pub(crate) fn as_user(groups: &[&str]) -> Command {
    let mut command = process::program("setpriv");
    command.args(["--reuid", USER, "--regid", USER, "--inh-caps=-all"]);
    match groups {
        [] => command.arg("--clear-groups"),
        groups => command.arg("--groups").arg(groups.join(",")),
    };
    command.arg(supervisor().binary());
    command.env_remove("TAKO_VM_STATE_DIR");
    // Where such a user may be.
    command.current_dir(Path::new("/"));
    command
}

/// Whether something becomes so: the supervisor tells of the end of a job before it has taken away the
/// last of it.
pub(crate) fn settles(so: impl Fn() -> bool) -> bool {
    let begun = Instant::now();
    while !so() {
        if begun.elapsed() > Duration::from_secs(5) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

pub(crate) fn assert_gone(id: &str) {
    settles(|| host::cgroups_of(id).is_empty() && host::processes_that_mention(id).is_empty());
    host::assert_gone(id);
}
