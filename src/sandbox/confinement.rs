//! Whether a container holds its init back as it was asked to, looked at from outside.
//!
//! In a container nothing else stands between a program and the host's kernel.

use crate::sys::cgroup::{CgroupError, Leaf};
use crate::sys::privilege::{self, PrivilegeError};
use rand::Rng;
use std::ops::Range;

/// The host's uids and gids for containers: what systemd leaves unused (<https://systemd.io/UIDS-GIDS/>).
const IDS: Range<u32> = 0x7000_0000..0x7ffe_0000;

/// Ids that one container has at most.
const IDS_PER_CONTAINER: u32 = 1024;

/// What the kernel has to say of init in `/proc/PID/status`, beside its ids.
const CONFINED: [&str; 4] = [
    // KILL, SETGID and SETUID: what the specification gives.
    "CapBnd:\t00000000000000e0",
    "CapEff:\t00000000000000e0",
    "NoNewPrivs:\t1",
    // SECCOMP_MODE_FILTER.
    "Seccomp:\t2",
];

/// The namespaces that a container has of its own.
const NAMESPACES: [&str; 7] = ["net", "pid", "mnt", "ipc", "uts", "cgroup", "user"];

/// Why a program is not let into a container.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfinementError {
    #[error("its processes cannot be listed")]
    Processes(#[source] CgroupError),
    #[error("nobody is inside")]
    Nobody,
    #[error("what holds its init back is not as asked")]
    Status(#[source] PrivilegeError),
}

/// The first of ids of the host that, most likely, no other container has at the time.
pub(super) fn random_ids() -> u32 {
    let containers = (IDS.end - IDS.start) / IDS_PER_CONTAINER;
    IDS.start + rand::rng().random_range(0..containers) * IDS_PER_CONTAINER
}

/// Looks at every process in the leaf but the runtime's own: at the time there is init alone.
pub(super) fn check(leaf: &Leaf, runtime: Option<i32>, id: u32) -> Result<(), ConfinementError> {
    let ids = ["Uid", "Gid"].map(|kind| format!("{kind}:\t{id}\t{id}\t{id}\t{id}"));
    let expected: Vec<&str> = ids.iter().map(String::as_str).chain(CONFINED).collect();
    let mut inside = leaf.processes().map_err(ConfinementError::Processes)?;
    inside.retain(|pid| Some(*pid) != runtime);
    if inside.is_empty() {
        return Err(ConfinementError::Nobody);
    }
    inside.into_iter().try_for_each(|pid| {
        privilege::require_status(pid, &expected)
            .and_then(|()| privilege::require_other_namespaces(pid, &NAMESPACES))
            .map_err(ConfinementError::Status)
    })
}
