//! Making a sandbox, and unmaking it.

use super::guest::Guest;
use super::{Runtime, SandboxError, Sandboxes, TeardownError, make_private, specification};
use crate::bundle;
use crate::job::Limits;
use crate::runsc::{self, Places};
use crate::sys::cgroup::{Expedited, Leaf, LeafLimits};
use crate::sys::{mount, privilege, process};
use rand::Rng;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr, ChildStdin};
use tokio::task::JoinHandle;

/// How long a sandbox may take to die. The promise is 250 ms at the 99th percentile; the rest is for
/// a host that is itself out of breath.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// How much of the runtime's own standard error is kept for a message.
const MAX_STDERR: u64 = 4096;

/// The host's uids and gids for containers: what systemd leaves unused (<https://systemd.io/UIDS-GIDS/>).
const CONTAINER_IDS: Range<u32> = 0x7000_0000..0x7ffe_0000;

/// Ids that one container has at most.
const IDS_PER_CONTAINER: u32 = 1024;

/// What the kernel has to say of init in a container, in `/proc/PID/status`, beside its ids.
const CONFINED: [&str; 4] = [
    // KILL, SETGID and SETUID: what the specification gives.
    "CapBnd:\t00000000000000e0",
    "CapEff:\t00000000000000e0",
    "NoNewPrivs:\t1",
    // SECCOMP_MODE_FILTER.
    "Seccomp:\t2",
];

/// A started sandbox.
///
/// Dropped without a teardown, it goes in the order of its fields: the runtime, then all that is in the
/// cgroup, then the directory that both have used.
pub(super) struct Sandbox {
    pub(super) runtime: Child,
    leaf: Leaf,
    directory: Directory,
    id: String,
    started: Instant,
    runtime_pid: Option<i32>,
    /// The host's uid and gid of init, if this is a container.
    container_id: Option<u32>,
    kill_time: Duration,
    stderr: JoinHandle<String>,
    pub(super) guest: Guest,
    pub(super) stdin: Option<ChildStdin>,
    /// Until it is ready, the runtime moves processes between cgroups.
    pub(super) expedited: Option<Expedited>,
}

/// The directory of one sandbox; removed when dropped, if teardown did not do so.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        // A backstop: teardown has removed it and reported, unless it never ran.
        let removed = fs::remove_dir_all(&self.0);
        drop(removed);
    }
}

/// Why a program is not let into a container.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfinementError {
    #[error("its processes cannot be listed")]
    Processes(#[source] crate::sys::cgroup::CgroupError),
    #[error("nobody is inside")]
    Nobody,
    #[error("what holds its init back is not as asked")]
    Status(#[source] privilege::PrivilegeError),
}

/// What the cgroup counted.
pub(super) struct Counters {
    pub(super) oom_kills: u64,
    pub(super) memory_peak: u64,
    pub(super) cpu_time: Duration,
    pub(super) kill_time: Duration,
}

impl Sandbox {
    /// Makes directory, bundle and cgroup, and starts the runtime inside the cgroup.
    pub(super) fn start(
        shared: &Sandboxes,
        image: &Path,
        limits: &Limits,
    ) -> Result<Self, SandboxError> {
        match &shared.runtime {
            Runtime::Gvisor(runsc) => {
                Self::start_with(shared, image, limits, |places, bundle, id| {
                    runsc.run(places, bundle, id)
                })
            }
            Runtime::Container(runc) => {
                let root = mount::detached(image).map_err(SandboxError::Mount)?;
                Self::start_with(shared, image, limits, |_, bundle, id| {
                    runc.run(bundle, id, root)
                })
            }
        }
    }

    /// Like [`Sandbox::start`], with this command.
    pub(super) fn start_with(
        shared: &Sandboxes,
        image: &Path,
        limits: &Limits,
        command: impl FnOnce(&Places, &Path, &str) -> Command,
    ) -> Result<Self, SandboxError> {
        let started = Instant::now();
        let expedited = Some(shared.hierarchies.expedite());
        // 128 random bits: a name is never given twice, so an old sandbox is never taken for a new one.
        let id = format!("tako-{}", hex::encode(rand::random::<[u8; 16]>()));
        let directory = Directory(shared.directory.join(&id));
        make_private(&directory.0)?;
        let leaf_limits = LeafLimits {
            memory_bytes: limits.memory_bytes,
            pids: limits.host_processes(),
        };
        let leaf = shared
            .hierarchies
            .create(&id, leaf_limits)
            .map_err(SandboxError::Cgroup)?;
        let first_id = random_ids();
        let spec =
            specification(shared, image, limits, &leaf, first_id).map_err(SandboxError::Bundle)?;
        bundle::write(&directory.0, &spec).map_err(SandboxError::Bundle)?;
        let command = command(&Places::below(&directory.0), &directory.0, &id);
        let start_error = |source| SandboxError::Start {
            runtime: shared.runtime.name(),
            source,
        };
        let mut runtime = process::spawn_in(command, &leaf).map_err(start_error)?;
        let piped = || io::Error::other("its standard streams are not piped");
        let stdout = runtime
            .stdout
            .take()
            .ok_or_else(piped)
            .map_err(start_error)?;
        let stderr = runtime
            .stderr
            .take()
            .ok_or_else(piped)
            .map_err(start_error)?;
        Ok(Self {
            id,
            started,
            directory,
            leaf,
            runtime_pid: runtime.id().and_then(|pid| pid.try_into().ok()),
            container_id: matches!(shared.runtime, Runtime::Container(_)).then_some(first_id),
            kill_time: Duration::ZERO,
            stdin: runtime.stdin.take(),
            runtime,
            stderr: tokio::spawn(read_some(stderr)),
            guest: Guest::new(stdout),
            expedited,
        })
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn places(&self) -> Places {
        Places::below(&self.directory.0)
    }

    /// Since its start was begun.
    pub(super) fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Looks from outside whether init is confined as it was asked for, before it is given a program:
    /// in a container nothing else stands between that and the host's kernel. gVisor shows none of
    /// this outside.
    pub(super) fn check_confinement(&self) -> Result<(), ConfinementError> {
        let Some(id) = self.container_id else {
            return Ok(());
        };
        let ids = ["Uid", "Gid"].map(|kind| format!("{kind}:\t{id}\t{id}\t{id}\t{id}"));
        let expected: Vec<&str> = ids.iter().map(String::as_str).chain(CONFINED).collect();
        let inside = self.leaf.processes().map_err(ConfinementError::Processes)?;
        let mut guests = inside
            .into_iter()
            .filter(|pid| Some(*pid) != self.runtime_pid);
        let init = guests.next().ok_or(ConfinementError::Nobody)?;
        [init].into_iter().chain(guests).try_for_each(|pid| {
            privilege::require_status(pid, &expected).map_err(ConfinementError::Status)
        })
    }

    /// Applies the CPU quota, which does not hold during start-up.
    pub(super) fn limit_cpu(&self, millicpus: u32) -> Result<(), crate::sys::cgroup::CgroupError> {
        self.leaf.limit_cpu(millicpus)
    }

    /// How many processes the kernel has killed because the memory limit was reached.
    pub(super) fn oom_kills(&self) -> Result<u64, crate::sys::cgroup::CgroupError> {
        self.leaf.oom_kills()
    }

    /// Kills everything in the cgroup.
    pub(super) fn kill(&mut self) -> Result<(), crate::sys::cgroup::CgroupError> {
        // Added up: the teardown kills again what was killed before, and finds nobody.
        self.kill_time += self.leaf.kill(KILL_PATIENCE, self.runtime_pid)?;
        Ok(())
    }

    /// What the runtime said of its own failure, for people.
    pub(super) async fn complaint(&mut self) -> String {
        let logged = runsc::logged_errors(&self.places());
        if !logged.is_empty() {
            return logged;
        }
        // Ends with the runtime, which the caller has killed or seen end.
        let said = tokio::time::timeout(Duration::from_secs(1), &mut self.stderr).await;
        said.ok().and_then(Result::ok).unwrap_or_default()
    }

    /// Kills the sandbox, reads its counters, and removes all that it was made of.
    pub(super) async fn teardown(mut self) -> Result<Counters, TeardownError> {
        // Off the async threads: this waits for the kernel. Everything is tried; the first error wins.
        let task = tokio::task::spawn_blocking(move || {
            let killed = self.kill().map_err(TeardownError::Kill);
            let counters = self.read_counters().map_err(TeardownError::Counters);
            let removed = self.leaf.remove().map_err(TeardownError::Cgroup);
            let path = &self.directory.0;
            let cleared = fs::remove_dir_all(path).map_err(|source| TeardownError::Directory {
                path: path.clone(),
                source,
            });
            self.stderr.abort();
            (self.runtime, killed.and(removed).and(cleared).and(counters))
        });
        let (mut runtime, cleared) = task.await.map_err(TeardownError::Task)?;
        if cleared.is_ok() {
            // It is dead, the cgroup was empty; this only takes its status off the kernel.
            let buried = runtime.wait().await;
            drop(buried);
        }
        cleared
    }

    fn read_counters(&self) -> Result<Counters, crate::sys::cgroup::CgroupError> {
        Ok(Counters {
            oom_kills: self.leaf.oom_kills()?,
            memory_peak: self.leaf.memory_peak()?,
            cpu_time: self.leaf.cpu_time()?,
            kill_time: self.kill_time,
        })
    }
}

/// Ids of the host that, most likely, no other container has at the time.
fn random_ids() -> u32 {
    let block =
        rand::rng().random_range(0..(CONTAINER_IDS.end - CONTAINER_IDS.start) / IDS_PER_CONTAINER);
    CONTAINER_IDS.start + block * IDS_PER_CONTAINER
}

/// The beginning of what the runtime wrote to stderr; the rest is read and dropped, so that it never blocks.
async fn read_some(mut stderr: ChildStderr) -> String {
    let mut bytes = Vec::new();
    // An unreadable stream has nothing to tell.
    let read = (&mut stderr).take(MAX_STDERR).read_to_end(&mut bytes).await;
    let rest = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
    drop((read, rest));
    String::from_utf8_lossy(&bytes).trim().replace('\n', "; ")
}
