//! The server of a process that was killed: it ends by itself, unless it was killed as well or hangs.

use super::{END, LOOK, Place, PostgresError};
use crate::sys::process::PidFd;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Instant;

/// Where a server writes the number of its first process.
const PID_FILE: &str = "postmaster.pid";

/// What keeps other servers from a server's socket, in the same form.
const SOCKET_LOCK: &str = ".s.PGSQL.5432.lock";

/// Ends the server that still has this cluster, if there is one; the caller holds the cluster's lock.
pub(super) fn end(place: &Place) -> Result<(), PostgresError> {
    let data = place.data();
    let data = data.as_path();
    let failed = |source| PostgresError::Leftover { source };
    if let Some(pid) = server_of(data)
        && let Ok(handle) = PidFd::open(pid)
        // Looked at again, now that the number cannot become another process's under our hands.
        && server_of(data) == Some(pid)
    {
        handle.interrupt().map_err(failed)?;
        if !wait_until(|| server_of(data) != Some(pid)) {
            handle.kill().map_err(failed)?;
        }
    }
    // Also its other processes, which have its shared memory a moment longer when it was killed.
    if !wait_until(|| !anybody_works_in(data)) {
        return Err(failed(io::ErrorKind::TimedOut.into()));
    }
    // Of nobody, then. PostgreSQL would take a dead process that nobody has waited for yet for a server.
    for file in [data.join(PID_FILE), place.sockets.join(SOCKET_LOCK)] {
        if names(&file, data) {
            fs::remove_file(&file).map_err(failed)?;
        }
    }
    Ok(())
}

/// Whether any process of PostgreSQL's works in the directory of the cluster, as all of a server do.
fn anybody_works_in(data: &Path) -> bool {
    let (Ok(data), Ok(processes)) = (fs::canonicalize(data), fs::read_dir("/proc")) else {
        return false;
    };
    processes.flatten().any(|process| {
        let name = fs::read_to_string(process.path().join("comm"));
        let works_in = fs::read_link(process.path().join("cwd"));
        name.is_ok_and(|name| name.starts_with("postgres"))
            && works_in.is_ok_and(|works_in| works_in == data)
    })
}

/// Whether such a file says, in its second line, that it is of this cluster.
fn names(file: &Path, data: &Path) -> bool {
    let written = fs::read_to_string(file).unwrap_or_default();
    let directory = written.lines().nth(1).map(fs::canonicalize);
    directory.is_some_and(|directory| directory.ok() == fs::canonicalize(data).ok())
}

/// The first process of the server that has this cluster: it has written its number down, and works in
/// that directory.
fn server_of(data: &Path) -> Option<i32> {
    let written = fs::read_to_string(data.join(PID_FILE)).ok()?;
    let pid: i32 = written.lines().next()?.trim().parse().ok()?;
    let works_in = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    (works_in == fs::canonicalize(data).ok()?).then_some(pid)
}

fn wait_until(so: impl Fn() -> bool) -> bool {
    let late = Instant::now() + END;
    while !so() {
        if Instant::now() > late {
            return false;
        }
        std::thread::sleep(LOOK);
    }
    true
}
