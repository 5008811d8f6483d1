//! The server of a process that was killed: it ends by itself, unless it was killed as well or hangs.

use super::{END, LOOK, PostgresError};
use crate::sys::process::PidFd;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Instant;

/// Ends the server that still has this cluster, if there is one; the caller holds the cluster's lock.
pub(super) fn end(data: &Path) -> Result<(), PostgresError> {
    let failed = |source| PostgresError::Leftover { source };
    let Some(pid) = server_of(data) else {
        return Ok(());
    };
    let handle = match PidFd::open(pid) {
        Ok(handle) => handle,
        Err(_gone) => return Ok(()),
    };
    // Looked at again, now that the number cannot become another process's under our hands.
    if server_of(data) != Some(pid) {
        return Ok(());
    }
    handle.interrupt().map_err(failed)?;
    if !wait_for_end(data, pid) {
        handle.kill().map_err(failed)?;
        if !wait_for_end(data, pid) {
            return Err(failed(io::ErrorKind::TimedOut.into()));
        }
    }
    Ok(())
}

/// The first process of the server that has this cluster: it has written its number down, and works in
/// that directory.
fn server_of(data: &Path) -> Option<i32> {
    let written = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let pid: i32 = written.lines().next()?.trim().parse().ok()?;
    let works_in = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    (works_in == fs::canonicalize(data).ok()?).then_some(pid)
}

fn wait_for_end(data: &Path, pid: i32) -> bool {
    let late = Instant::now() + END;
    while server_of(data) == Some(pid) {
        if Instant::now() > late {
            return false;
        }
        std::thread::sleep(LOOK);
    }
    true
}
