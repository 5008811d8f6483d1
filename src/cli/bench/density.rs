//! Many ready sandboxes at once: what they use, and that each of them answers.

use super::latencies::{ByStart, Latencies, table};
use super::service::{self, Service};
use super::subject::Subject;
use super::ways::Failures;
use crate::sys::census;
use crate::sys::cgroup::{self, CgroupError, Hierarchies, Usage};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How many frozen ones are watched, at most: what is promised is for so many.
const WATCHED: usize = 40;

/// How long they are watched, at most.
const WATCH: Duration = Duration::from_secs(20);

/// How long the pool may take for each to be made.
const EACH: Duration = Duration::from_secs(3);

/// How long the machine is left alone before memory is read: the last ones settle.
const REST: Duration = Duration::from_secs(2);

/// What was measured. Bytes are as they were before the first job.
#[derive(Debug, Default, Serialize)]
pub(super) struct Density {
    pub(super) asked: u32,
    pub(super) ready: u32,
    pub(super) filled_s: f64,
    /// As their cgroups count it.
    pub(super) cgroup_mib: f64,
    /// As their processes share it.
    pub(super) proportional_mib: f64,
    /// Of the supervisor.
    pub(super) supervisor_mib: f64,
    /// How many were frozen, all of them watched together.
    pub(super) frozen: u32,
    pub(super) watched_s: f64,
    pub(super) frozen_cpu_ms: f64,
    pub(super) supervisor_cpu_ms: f64,
    /// Jobs that a waiting sandbox has answered.
    pub(super) answered: u64,
    pub(super) latency_ms: ByStart,
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Crowd {
    pub(super) sandboxes: NonZero<u32>,
    /// Jobs at once.
    pub(super) clients: NonZero<u32>,
    /// How long the frozen ones are watched, at most.
    pub(super) watch: Duration,
}

/// Waits until all are ready, looks at them, and gives each a job; ends early when it is cancelled.
pub(super) async fn measure(
    service: &Service,
    subject: &Subject,
    crowd: Crowd,
    cancel: &CancellationToken,
    failures: &mut Failures,
) -> Result<Density, CgroupError> {
    let asked = crowd.sandboxes.get();
    let mut density = Density {
        asked,
        ..Density::default()
    };
    let begun = Instant::now();
    let full = |stats: &crate::supervisor::wire::Stats| {
        let ready: u64 = stats.pools.iter().map(|pool| pool.ready).sum();
        ready >= u64::from(asked)
    };
    // Where they do not become as many, those that there are answer for it.
    let _full = service::until(&service.socket(), EACH * asked, cancel, full).await;
    density.filled_s = begun.elapsed().as_secs_f64();
    if cancel
        .run_until_cancelled(tokio::time::sleep(REST))
        .await
        .is_none()
    {
        return Ok(density);
    }
    density.weigh(service)?;
    if density.watch(service, crowd.watch, cancel).await?.is_none() {
        return Ok(density);
    }
    let (times, failed) = answers(subject, crowd, cancel).await;
    density.answered = times.starts.get("warm").map_or(0, Latencies::count);
    density.latency_ms = times;
    failures.add(&failed);
    Ok(density)
}

/// What the sandboxes of a supervisor use, by their names.
fn sandboxes(service: &Service) -> Result<BTreeMap<String, Usage>, CgroupError> {
    let hierarchies = Hierarchies::prepare()?;
    let mut all = BTreeMap::new();
    for name in cgroup::leaves()? {
        // Others come and go meanwhile.
        let Ok(usage) = hierarchies.usage(&name) else {
            continue;
        };
        let mut processes = usage.processes.iter();
        if processes.any(|&pid| census::descends(pid, service.pid())) {
            all.insert(name, usage);
        }
    }
    Ok(all)
}

#[expect(clippy::cast_precision_loss, reason = "fewer bytes than 2 to the 53rd")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

impl Density {
    /// Reads how much memory they have.
    fn weigh(&mut self, service: &Service) -> Result<(), CgroupError> {
        let all = sandboxes(service)?;
        self.ready = u32::try_from(all.len()).unwrap_or(u32::MAX);
        self.cgroup_mib = mebibytes(all.values().map(|usage| usage.memory_bytes).sum());
        let processes = all.values().flat_map(|usage| &usage.processes);
        // One that has just ended has none.
        let proportional = processes.filter_map(|&pid| census::proportional_bytes(pid).ok());
        self.proportional_mib = mebibytes(proportional.sum());
        let own = census::proportional_bytes(service.pid());
        self.supervisor_mib = mebibytes(own.unwrap_or(0));
        Ok(())
    }

    /// Looks what frozen ones do in some seconds; nothing when it is cancelled.
    async fn watch(
        &mut self,
        service: &Service,
        limit: Duration,
        cancel: &CancellationToken,
    ) -> Result<Option<()>, CgroupError> {
        let stats = service::stats(&service.socket()).await;
        let frozen = stats.map_or(0, |stats| stats.pools.iter().map(|pool| pool.frozen).sum());
        let before: Vec<_> = sandboxes(service)?.into_iter().collect();
        let own = census::cpu_time(service.pid()).unwrap_or_default();
        let begun = Instant::now();
        let wait = tokio::time::sleep(limit.min(WATCH));
        if cancel.run_until_cancelled(wait).await.is_none() {
            return Ok(None);
        }
        self.watched_s = begun.elapsed().as_secs_f64();
        let own_after = census::cpu_time(service.pid()).unwrap_or_default();
        let after = sandboxes(service)?;
        let mut cpu = Duration::ZERO;
        for (name, usage) in before.iter().take(WATCHED) {
            let later = after.get(name).map_or(usage.cpu, |usage| usage.cpu);
            cpu += later.saturating_sub(usage.cpu);
            self.frozen += 1;
        }
        self.frozen = self.frozen.min(u32::try_from(frozen).unwrap_or(u32::MAX));
        self.frozen_cpu_ms = milliseconds(cpu);
        self.supervisor_cpu_ms = milliseconds(own_after.saturating_sub(own));
        Ok(Some(()))
    }

    /// The share of one core that the watched ones and the supervisor have used.
    pub(super) fn idle_share(&self) -> f64 {
        (self.frozen_cpu_ms + self.supervisor_cpu_ms) / (self.watched_s * 1000.0)
    }

    /// Megabytes of one, proportional.
    pub(super) fn each_mb(&self) -> f64 {
        self.proportional_mib * f64::from(1 << 20) / 1e6 / f64::from(self.ready)
    }
}

/// As many jobs as there are sandboxes.
async fn answers(
    subject: &Subject,
    crowd: Crowd,
    cancel: &CancellationToken,
) -> (ByStart, Failures) {
    let begun = Arc::new(AtomicU32::new(0));
    let mut clients = JoinSet::new();
    for _ in 0..crowd.clients.get() {
        let (subject, begun, cancel) = (subject.clone(), Arc::clone(&begun), cancel.clone());
        clients.spawn(async move {
            let (mut times, mut failures) = (ByStart::default(), Failures::default());
            while begun.fetch_add(1, Ordering::Relaxed) < crowd.sandboxes.get() {
                match subject.run(&cancel).await {
                    Ok(Some(run)) => times.record(run.start(), run.ended - run.called),
                    Ok(None) => break,
                    Err(error) => failures.take(&error),
                }
            }
            (times, failures)
        });
    }
    let (mut times, mut failures) = (ByStart::default(), Failures::default());
    for (part, failed) in clients.join_all().await {
        times.add(&part);
        failures.add(&failed);
    }
    (times, failures)
}

impl fmt::Display for Density {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.latency_ms.rows("a job for each");
        let text = table("many at once", &rows);
        write!(
            formatter,
            "{text}{} of {} ready after {:.1} s: {:.0} MiB by their cgroups, {:.0} MiB proportional, {:.1} MB each; \
             the supervisor {:.1} MiB\n{} frozen, watched for {:.1} s: {:.2} ms of CPU, and the supervisor \
             of all {:.2} ms",
            self.ready,
            self.asked,
            self.filled_s,
            self.cgroup_mib,
            self.proportional_mib,
            self.each_mb(),
            self.supervisor_mib,
            self.frozen,
            self.watched_s,
            self.frozen_cpu_ms,
            self.supervisor_cpu_ms
        )
    }
}
