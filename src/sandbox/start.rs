//! Making a sandbox, and unmaking it.

use super::confinement::ConfinementError;
use super::guest::Guest;
use super::record::Record;
use super::step::{Observer, Step};
use super::{Runtime, SandboxError, Sandboxes, TeardownError, confinement, specification};
use crate::bundle;
use crate::job::Limits;
use crate::runsc::{self, Places};
use crate::sys::cgroup::{Expedited, LeafLimits, Outside, Urgency};
use crate::sys::processor::Assigned;
use crate::sys::{mount, process};
use std::any::Any;
use std::io;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr, ChildStdin};
use tokio::task::JoinHandle;

/// How long a sandbox may take to die. The promise is 250 ms at the 99th percentile; the rest is for
/// a host that is itself out of breath.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// How much of the runtime's own standard error is kept for a message.
const MAX_STDERR: u64 = 4096;

/// What every process of a container runs on.
///
/// Were these pages charged to the container, its memory limit would take them away first and they
/// would be read again at once: a program that uses up its memory then spends seconds, seen up to 30,
/// in being slow before the kernel gives up on it.
const PRELOADED: [&str; 7] = [
    tako_guest::INIT_PATH,
    "/usr/bin/python3",
    "/lib64/ld-linux-x86-64.so.2",
    "/usr/lib/x86_64-linux-gnu/libc.so.6",
    "/usr/lib/x86_64-linux-gnu/libm.so.6",
    "/usr/lib/x86_64-linux-gnu/libexpat.so.1",
    "/usr/lib/x86_64-linux-gnu/libz.so.1",
];

/// A started sandbox.
///
/// Dropped without a teardown, it goes in the order of its fields: the runtime, then all that is in the
/// cgroup, then the directory that both have used, which is the record of them.
pub(super) struct Sandbox {
    pub(super) runtime: Child,
    record: Record,
    observer: Observer,
    runtime_pid: Option<i32>,
    /// The host's uid and gid of init, if this is a container.
    container_id: Option<u32>,
    kill_time: Duration,
    stderr: JoinHandle<String>,
    pub(super) guest: Guest,
    pub(super) stdin: Option<ChildStdin>,
    /// Until it is ready, the runtime moves processes between cgroups.
    expedited: Option<Expedited>,
    /// Dropped when it is ready, for whoever wants to know.
    pub(super) starting: Option<Box<dyn Any + Send>>,
    /// The one on which all of it runs.
    processor: Option<Assigned>,
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
        urgency: Urgency,
    ) -> Result<Self, SandboxError> {
        match &shared.runtime {
            Runtime::Gvisor(runsc) => {
                Self::start_with(shared, image, limits, urgency, |places, bundle, id| {
                    runsc.run(places, bundle, id)
                })
            }
            Runtime::Container(runc) => {
                let root = mount::detached(image).map_err(SandboxError::Mount)?;
                mount::preload(&root, &PRELOADED);
                Self::start_with(shared, image, limits, urgency, |_, bundle, id| {
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
        urgency: Urgency,
        command: impl FnOnce(&Places, &Path, &str) -> Command,
    ) -> Result<Self, SandboxError> {
        let expedited = Some(shared.hierarchies.expedite());
        let held = shared.records.create().map_err(SandboxError::Directory)?;
        // A name that is never given twice, so an old sandbox is never taken for a new one.
        let id = held.name().to_owned();
        let reached = |step| shared.observer.reached(&id, step);
        reached(Step::Recorded);
        let leaf_limits = LeafLimits {
            memory_bytes: limits.memory_bytes,
            pids: limits.host_processes(),
            urgency,
        };
        let record = Record::with_leaf(held, &shared.hierarchies, leaf_limits)?;
        reached(Step::CgroupMade);
        let first_id = confinement::random_ids();
        let spec = specification(shared, image, limits, &record.leaf.cgroups_path(), first_id)
            .map_err(SandboxError::Bundle)?;
        bundle::write(record.path(), &spec).map_err(SandboxError::Bundle)?;
        reached(Step::BundleWritten);
        let command = command(&Places::below(record.path()), record.path(), &id);
        let start_error = |source| SandboxError::Start {
            runtime: shared.runtime.name(),
            source,
        };
        let processor = shared.processor_for(limits);
        let number = processor.as_ref().map(Assigned::number);
        let mut runtime = process::spawn_in(command, &record.leaf, number).map_err(start_error)?;
        reached(Step::Started);
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
            record,
            observer: shared.observer.clone(),
            runtime_pid: runtime.id().and_then(|pid| pid.try_into().ok()),
            container_id: matches!(shared.runtime, Runtime::Container(_)).then_some(first_id),
            kill_time: Duration::ZERO,
            stdin: runtime.stdin.take(),
            runtime,
            stderr: tokio::spawn(read_some(stderr)),
            guest: Guest::new(stdout),
            expedited,
            starting: None,
            processor,
        })
    }

    pub(super) fn id(&self) -> &str {
        self.record.id()
    }

    pub(super) fn reached(&self, step: Step) {
        self.observer.reached(self.id(), step);
    }

    pub(super) fn places(&self) -> Places {
        Places::below(self.record.path())
    }

    /// It is ready: what was done for its start ends.
    pub(super) fn has_started(&mut self) {
        self.expedited = None;
        self.starting = None;
    }

    /// Looks whether a container is confined, before it is given a program.
    pub(super) fn check_confinement(&self) -> Result<(), ConfinementError> {
        match self.container_id {
            Some(id) => confinement::check(&self.record.leaf, self.runtime_pid, id),
            // gVisor shows nothing of its guest outside.
            None => Ok(()),
        }
    }

    /// It has a job from now on: moves it to the processor with the fewest jobs, and limits its CPU time.
    pub(super) fn begin_job(
        &mut self,
        millicpus: u32,
    ) -> Result<(), crate::sys::cgroup::CgroupError> {
        if let Some(processor) = &mut self.processor
            && processor.begin()
        {
            self.record.leaf.move_to(processor.number())?;
        }
        self.limit_cpu(millicpus)?;
        self.hurry()
    }

    /// Applies the CPU quota, which does not hold during start-up.
    pub(super) fn limit_cpu(&self, millicpus: u32) -> Result<(), crate::sys::cgroup::CgroupError> {
        self.record.leaf.limit_cpu(millicpus)
    }

    /// Gives it the weight of a job, which a sandbox does not have that was made ahead.
    pub(super) fn hurry(&self) -> Result<(), crate::sys::cgroup::CgroupError> {
        self.record.leaf.set_urgency(Urgency::Job)
    }

    /// Stops everything in the cgroup where it is.
    pub(super) fn freeze(&self) -> Result<(), crate::sys::cgroup::CgroupError> {
        self.record.leaf.freeze()
    }

    /// Lets everything in the cgroup go on.
    pub(super) fn thaw(&self) -> Result<(), crate::sys::cgroup::CgroupError> {
        self.record.leaf.thaw()
    }

    /// The processor on which all of it runs, if it is one.
    pub(super) fn processor(&self) -> Option<usize> {
        self.processor.as_ref().map(Assigned::number)
    }

    /// Bytes of memory that are charged to it.
    pub(super) fn memory_used(&self) -> Result<u64, crate::sys::cgroup::CgroupError> {
        self.record.leaf.memory_used()
    }

    /// Its cgroup, for whoever watches from outside.
    pub(super) fn outside(&self) -> Outside {
        self.record.leaf.outside()
    }

    /// How many processes the kernel has killed because the memory limit was reached.
    pub(super) fn oom_kills(&self) -> Result<u64, crate::sys::cgroup::CgroupError> {
        self.record.leaf.oom_kills()
    }

    /// Kills everything in the cgroup.
    pub(super) fn kill(&mut self) -> Result<(), crate::sys::cgroup::CgroupError> {
        // Added up: the teardown kills again what was killed before, and finds nobody.
        self.kill_time += self.record.leaf.kill(KILL_PATIENCE, self.runtime_pid)?;
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
        // Off the async threads: this waits for the kernel. The first error wins.
        let task = tokio::task::spawn_blocking(move || {
            let killed = self.kill().map_err(TeardownError::Kill);
            let counters = self.read_counters().map_err(TeardownError::Counters);
            let removed = killed.and_then(|()| self.remove());
            self.stderr.abort();
            if removed.is_err() {
                // The record stays as well: by it the next sweep finds what is left.
                self.record.abandon();
            }
            (self.runtime, removed.and(counters))
        });
        let (mut runtime, cleared) = task.await.map_err(TeardownError::Task)?;
        if cleared.is_ok() {
            // It is dead, the cgroup was empty; this only takes its status off the kernel.
            let buried = runtime.wait().await;
            drop(buried);
        }
        cleared
    }

    /// What is left of the dead: the cgroup before its record. Killed in between, we leave nothing that no record names.
    fn remove(&mut self) -> Result<(), TeardownError> {
        self.reached(Step::Killed);
        self.record.remove_cgroup()?;
        self.reached(Step::CgroupRemoved);
        self.record.remove_directory()?;
        self.reached(Step::Removed);
        Ok(())
    }

    /// What the cgroup has counted so far.
    pub(super) fn read_counters(&self) -> Result<Counters, crate::sys::cgroup::CgroupError> {
        Ok(Counters {
            oom_kills: self.record.leaf.oom_kills()?,
            memory_peak: self.record.leaf.memory_peak()?,
            cpu_time: self.record.leaf.cpu_time()?,
            kill_time: self.kill_time,
        })
    }
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
