//! What every process and thread of a sandbox may and has, seen from the host, against a table.

use crate::attack::{Attack, SUCCEEDED};
use crate::host::{Part, Sandbox};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Fields of a thread's status, with the values that they must have.
type Status = [(&'static str, &'static str); 10];

const NOTHING: &str = "0000000000000000";

/// Sentry and address spaces: nobody, with nothing, under a filter.
const CONFINED: Status = [
    ("Uid", "65534 65534 65534 65534"),
    ("Gid", "65534 65534 65534 65534"),
    ("Groups", ""),
    ("CapInh", NOTHING),
    ("CapPrm", NOTHING),
    ("CapEff", NOTHING),
    ("CapBnd", NOTHING),
    ("CapAmb", NOTHING),
    ("NoNewPrivs", "1"),
    ("Seccomp", "2"),
];

/// Of the sandbox's own; all others are ours, and stay so.
const OWN_NAMESPACES: [&str; 5] = ["ipc", "mnt", "net", "user", "uts"];
const SHARED_NAMESPACES: [&str; 3] = ["cgroup", "pid", "time"];

/// All that sentry and address spaces have open. `log`, `image`: those of this sandbox.
const CONFINED_DESCRIPTORS: [&str; 10] = [
    "/dev/null",
    "/memfd:memory-usage",
    "/memfd:runsc-memory",
    "/memfd:systrap-memory",
    "anon_inode:[eventfd]",
    "anon_inode:[eventpoll]",
    "image",
    "log",
    "pipe",
    "socket",
];

/// All that `runsc run` has open, which waits for the sentry.
const RUNSC_DESCRIPTORS: [&str; 6] = [
    "anon_inode:[eventfd]",
    "anon_inode:[eventpoll]",
    "anon_inode:[pidfd]",
    "log",
    "pipe",
    "socket",
];

/// Checks every process of a running sandbox; one that ends meanwhile is passed over.
pub(crate) fn assert_expected(directory: &Path, image: &Path, sandbox: &Sandbox) {
    let log = directory
        .join("sandboxes")
        .join(&sandbox.id)
        .join("runsc.log");
    // No program makes runsc write on the host's disk.
    let logged = log.metadata().map_or(0, |state| state.len());
    assert!(logged < 4096, "{logged} bytes in the log");
    let processes = sandbox.processes();
    let count = |wanted| processes.iter().filter(|(_, part)| *part == wanted).count();
    assert_eq!(count(Part::Runsc), 1, "{processes:?}");
    assert_eq!(count(Part::Sentry), 1, "{processes:?}");
    assert!(count(Part::Stub) > 0, "{processes:?}");
    for (pid, part) in processes {
        let process = Process { pid, part };
        process.check_threads();
        process.check_command_line();
        process.check_namespaces();
        process.check_descriptors(&log, image);
        process.check_limits();
        if part != Part::Runsc {
            process.check_root();
        }
    }
}

struct Process {
    pid: i32,
    part: Part,
}

impl Process {
    fn path(&self, name: &str) -> std::path::PathBuf {
        Path::new("/proc").join(self.pid.to_string()).join(name)
    }

    /// A file of the process's directory; `None` when the process has ended.
    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.path(name)).ok()
    }

    fn link(&self, name: &str) -> Option<String> {
        let target = fs::read_link(self.path(name)).ok()?;
        Some(target.to_string_lossy().into_owned())
    }

    fn check_threads(&self) {
        if self.part == Part::Runsc {
            return;
        }
        let Ok(threads) = fs::read_dir(self.path("task")) else {
            return;
        };
        for thread in threads.flatten() {
            let Ok(status) = fs::read_to_string(thread.path().join("status")) else {
                continue;
            };
            for (field, expected) in CONFINED {
                let found = field_of(&status, field);
                assert_eq!(found, expected, "{field} of {self} in {status}");
            }
        }
    }

    /// There is no gofer, and nothing else that has a command line.
    fn check_command_line(&self) {
        let Some(line) = self.read("cmdline") else {
            return;
        };
        let is_gofer = line
            .split('\0')
            .any(|word| ["gofer", "runsc-gofer"].contains(&word));
        assert!(!is_gofer, "{self}: {line}");
        assert_eq!(line.is_empty(), self.part == Part::Stub, "{self}: {line}");
    }

    fn check_namespaces(&self) {
        let ours = |name: &str| fs::read_link(Path::new("/proc/self/ns").join(name)).unwrap();
        for name in OWN_NAMESPACES.into_iter().chain(SHARED_NAMESPACES) {
            let Ok(theirs) = fs::read_link(self.path("ns").join(name)) else {
                return;
            };
            let shared = self.part == Part::Runsc || SHARED_NAMESPACES.contains(&name);
            assert_eq!(theirs == ours(name), shared, "{self}: {name}");
        }
        // One user of it, nobody, is nobody outside; it has no other.
        if self.part != Part::Runsc
            && let Some(map) = self.read("uid_map").filter(|map| !map.is_empty())
        {
            let numbers: Vec<&str> = map.split_whitespace().collect();
            assert_eq!(numbers, ["65534", "65534", "1"], "{self}");
        }
    }

    /// An empty file system of its own that nobody can write to.
    fn check_root(&self) {
        let Some(mounts) = self.read("mountinfo").filter(|mounts| !mounts.is_empty()) else {
            return;
        };
        let fields: Vec<&str> = mounts.split_whitespace().collect();
        assert_eq!(mounts.lines().count(), 1, "{self}: {mounts}");
        assert_eq!(fields[4], "/", "{self}: {mounts}");
        assert!(fields[5].starts_with("ro,"), "{self}: {mounts}");
        assert!(mounts.contains(" - tmpfs runsc-root "), "{self}: {mounts}");
        // The sentry keeps the host's time zone there, where the host has one; its proc is unmounted.
        let expected: [(&str, &[&str]); 3] = [
            ("root", &["etc", "proc"]),
            ("root/etc", &["localtime"]),
            ("root/proc", &[]),
        ];
        for (place, expected) in expected {
            let Ok(entries) = fs::read_dir(self.path(place)) else {
                continue;
            };
            for entry in entries.flatten() {
                let name = entry.file_name().into_string().unwrap();
                assert!(expected.contains(&name.as_str()), "{self}: {place}/{name}");
            }
        }
    }

    fn check_descriptors(&self, log: &Path, image: &Path) {
        let Ok(descriptors) = fs::read_dir(self.path("fd")) else {
            return;
        };
        let kind = |target: &str| match target {
            _ if Path::new(target) == log => "log".to_owned(),
            _ if Path::new(target) == image => "image".to_owned(),
            // `pipe:[1234]`, but `anon_inode:[eventfd]`.
            _ if target.starts_with("anon_inode:") => target.to_owned(),
            // Memory files have no name in any file system.
            _ if target.starts_with("/memfd:") => target.replace(" (deleted)", ""),
            _ => target.split(":[").next().unwrap_or_default().to_owned(),
        };
        let allowed: &[&str] = match self.part {
            Part::Runsc => &RUNSC_DESCRIPTORS,
            Part::Sentry | Part::Stub => &CONFINED_DESCRIPTORS,
        };
        for descriptor in descriptors.flatten() {
            let number = descriptor.file_name().to_string_lossy().into_owned();
            let Some(target) = self.link(&format!("fd/{number}")) else {
                continue;
            };
            let kind = kind(&target);
            assert!(allowed.contains(&kind.as_str()), "{self} has {target} open");
            let flags = self.read(&format!("fdinfo/{number}"));
            if let Some(flags) = flags.filter(|_| kind == "image") {
                let mode = field_of(&flags, "flags");
                assert!(
                    mode.ends_with('0'),
                    "{self} could write to {target}: {mode}"
                );
            }
        }
    }

    /// Ours, but no core dump; of open files Go takes as many as it may.
    fn check_limits(&self) {
        let Some(limits) = self.read("limits").filter(|limits| !limits.is_empty()) else {
            return;
        };
        let ours = fs::read_to_string("/proc/self/limits").unwrap();
        for (theirs, ours) in limits.lines().zip(ours.lines()) {
            let (found, mut expected) = (values(theirs), values(ours));
            if ours.starts_with("Max core file size") {
                expected = vec!["1", "1", "bytes"];
            } else if ours.starts_with("Max open files") {
                expected[0] = found[0];
            }
            assert_eq!(found, expected, "{self}: {theirs}");
        }
    }
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {}", self.part, self.pid)
    }
}

/// The words of a line of limits behind its name, which takes 26 columns (`proc_pid_limits(5)`).
fn values(line: &str) -> Vec<&str> {
    line[26.min(line.len())..].split_whitespace().collect()
}

fn field_of(status: &str, field: &str) -> String {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let words: Vec<&str> = line.unwrap_or("missing").split_whitespace().collect();
    words.join(" ")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn every_process_and_thread_of_a_busy_sandbox_has_what_the_table_says() {
    let program = "
import subprocess, threading, time
def spin():
    while time.monotonic() < until: pass
until = time.monotonic() + 2
for _ in range(4): threading.Thread(target=spin).start()
children = [subprocess.Popen(['sleep', '2']) for _ in range(4)]
print('up', flush=True)
for child in children: child.wait()
";
    // Every sandbox that is observed is held against the table, before and after.
    Attack::new("posture", program)
        .observed(&SUCCEEDED, async |sandbox, _| {
            tokio::time::sleep(Duration::from_millis(500)).await;
            assert!(sandbox.parts(Part::Stub).len() > 5);
        })
        .await;
}
