//! What the kernel says of processes, ours or not: nothing here touches one.

use std::fs;
use std::io;
use std::time::Duration;

/// The process that a process was started by, or that has inherited it; nothing for one that is gone.
pub fn parent(pid: i32) -> Option<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_parent(&text)
}

/// The fourth field of `proc_pid_stat(5)`; the second is a name in which anything may stand.
fn parse_parent(text: &str) -> Option<i32> {
    let (_, rest) = text.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

/// Whether a process descends from another, as far as their parents are alive.
pub fn descends(pid: i32, ancestor: i32) -> bool {
    let mut at = Some(pid);
    while let Some(pid) = at.filter(|pid| *pid > 1) {
        if pid == ancestor {
            return true;
        }
        at = parent(pid);
    }
    false
}

/// Bytes of memory of a process: what it shares counts by how many share it (`Pss`, Linux 4.14).
///
/// # Errors
/// Those of reading `/proc/PID/smaps_rollup`.
pub fn proportional_bytes(pid: i32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    parse_proportional(&text).ok_or_else(|| io::Error::other("it has no `Pss`"))
}

fn parse_proportional(text: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kibibytes: u64 = value.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes << 10)
}

/// CPU time that the threads of a process have used which are alive.
///
/// # Errors
/// Those of reading `/proc/PID/task` (`schedstat`, in nanoseconds).
pub fn cpu_time(pid: i32) -> io::Result<Duration> {
    let mut nanoseconds = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        match fs::read_to_string(thread?.path().join("schedstat")) {
            Ok(text) => {
                let first = text.split_whitespace().next();
                nanoseconds += first.and_then(|word| word.parse().ok()).unwrap_or(0);
            }
            // A thread may end meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Duration::from_nanos(nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_stands_behind_a_name_of_any_kind() {
        assert_eq!(parse_parent("17 (a b) S) R 42 17 17 0 -1"), Some(42));
        assert_eq!(parse_parent("17"), None);
        let us = std::process::id().cast_signed();
        let ours = std::os::unix::process::parent_id().cast_signed();
        assert_eq!(parent(us), Some(ours));
        assert!(descends(us, us) && descends(us, ours) && !descends(ours, us));
    }

    #[test]
    fn memory_and_time_of_this_process_are_known() {
        let text = "5581-7ffd ---p 00000000 00:00 0 [rollup]\nRss: 9 kB\nPss:        8 kB\n";
        assert_eq!(parse_proportional(text), Some(8192));
        assert_eq!(parse_proportional("Rss: 9 kB\n"), None);
        let us = std::process::id().cast_signed();
        assert!(proportional_bytes(us).unwrap() > 100 << 10);
        assert!(cpu_time(us).unwrap() > Duration::ZERO);
    }
}
