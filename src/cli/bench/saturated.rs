//! As many jobs as this host can do: clients that start the next job when one ends.
//!
//! Where there is something to compare with, the loops take turns in slices, since a machine is never
//! twice the same.

use super::latencies::{ByStart, table};
use super::tools;
use super::ways::{Contest, Failures, Way};
use crate::sys::host;
use serde::Serialize;
use std::fmt::{self, Write};
use std::num::NonZero;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A loop's turn, as long as there are several loops.
const SLICE: Duration = Duration::from_secs(10);

/// At the beginning of every turn, and not counted: sandboxes that waited are used up, and those that
/// replace them are not made on another's time.
const LEAD_IN: Duration = Duration::from_secs(1);

/// After a failure: a way that fails at once must not fill the report with it.
const PAUSE: Duration = Duration::from_millis(100);

/// All loops.
#[derive(Debug, Serialize)]
pub(super) struct Saturated {
    pub(super) loops: Vec<Loop>,
}

/// One way, with a number of clients.
#[derive(Debug, Serialize)]
pub(super) struct Loop {
    pub(super) way: Way,
    pub(super) clients: u32,
    pub(super) jobs: u64,
    seconds: f64,
    pub(super) jobs_per_second: f64,
    /// Of the whole host, the kernel and whatever else it did included.
    pub(super) cpu_ms_per_job: f64,
    pub(super) latency_ms: ByStart,
    #[serde(skip)]
    cpu: Duration,
}

impl Loop {
    fn new(way: Way, clients: u32) -> Self {
        Self {
            way,
            clients,
            jobs: 0,
            seconds: 0.0,
            jobs_per_second: f64::NAN,
            cpu_ms_per_job: f64::NAN,
            latency_ms: ByStart::default(),
            cpu: Duration::ZERO,
        }
    }

    fn take(&mut self, times: &ByStart, took: Duration, cpu: Duration) {
        self.latency_ms.add(times);
        self.jobs += times.all.count();
        self.seconds += took.as_secs_f64();
        self.cpu += cpu;
        #[expect(clippy::cast_precision_loss, reason = "fewer jobs than 2 to the 53rd")]
        let jobs = self.jobs as f64;
        self.jobs_per_second = jobs / self.seconds;
        self.cpu_ms_per_job = self.cpu.as_secs_f64() * 1000.0 / jobs;
    }

    fn name(&self) -> String {
        let plural = if self.clients == 1 { "" } else { "s" };
        format!("{}, {} client{plural}", self.way.name(), self.clients)
    }
}

/// The loops that there are: ours, and plain runsc with as many clients and with as many as there are
/// cores, since its best is to be beaten.
pub(super) fn loops(contest: &Contest, clients: NonZero<u32>) -> Vec<Loop> {
    let clients = clients.get();
    let mut loops = vec![Loop::new(Way::Library, clients)];
    if contest.ways().contains(&Way::Runsc) {
        loops.push(Loop::new(Way::Runsc, clients));
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let cores = u32::try_from(cores).unwrap_or(clients);
        if cores != clients {
            loops.push(Loop::new(Way::Runsc, cores));
        }
    }
    loops
}

/// How many turns each of several loops has, and how long one is.
fn slices(duration: Duration, loops: usize) -> (u32, Duration) {
    if loops < 2 {
        return (1, duration);
    }
    // Twice at least, so that nobody has the first half of the time alone.
    let turns = (duration.as_millis().div_ceil(SLICE.as_millis())).max(2);
    let turns = u32::try_from(turns).unwrap_or(u32::MAX);
    (turns, duration / turns)
}

/// Runs every loop for this long; ends early when it is cancelled.
pub(super) async fn measure(
    contest: &Contest,
    mut loops: Vec<Loop>,
    duration: Duration,
    cancel: &CancellationToken,
    failures: &mut Failures,
) -> Saturated {
    let (turns, slice) = slices(duration, loops.len());
    let count = loops.len();
    for turn in 0..turns as usize {
        for offset in 0..count {
            let one = &mut loops[(turn + offset) % count];
            if !cancel.is_cancelled() {
                failures.add(&run(contest, one, slice, cancel).await);
            }
            // What is cancelled is still being cleared away.
            if !cancel.is_cancelled() {
                tools::bury_orphans();
                contest.settle(cancel).await;
            }
        }
    }
    Saturated { loops }
}

/// One turn. Jobs that run when it is over are waited for, and the time until then counts.
async fn run(
    contest: &Contest,
    one: &mut Loop,
    slice: Duration,
    cancel: &CancellationToken,
) -> Failures {
    let from = Instant::now() + LEAD_IN;
    let mut clients = JoinSet::new();
    for _ in 0..one.clients {
        let client = Client {
            contest: contest.clone(),
            way: one.way,
            from,
            until: from + slice,
        };
        clients.spawn(client.run(cancel.clone()));
    }
    let lead_in = tokio::time::sleep_until(from.into());
    if cancel.run_until_cancelled(lead_in).await.is_none() {
        drop(clients.join_all().await);
        return Failures::default();
    }
    let before = host::busy().unwrap_or_default();
    let (mut times, mut failures) = (ByStart::default(), Failures::default());
    for (part, failed) in clients.join_all().await {
        times.add(&part);
        failures.add(&failed);
    }
    let busy = host::busy().unwrap_or_default().saturating_sub(before);
    one.take(&times, from.elapsed(), busy);
    failures
}

/// One that runs a job after the other, from before it counts until a turn is over.
struct Client {
    contest: Contest,
    way: Way,
    from: Instant,
    until: Instant,
}

impl Client {
    async fn run(self, cancel: CancellationToken) -> (ByStart, Failures) {
        let (mut times, mut failures) = (ByStart::default(), Failures::default());
        // At least one that counts, however long it takes.
        while Instant::now() < self.until || times.all.count() + failures.count == 0 {
            match self.contest.run(self.way, &cancel).await {
                Ok(Some(run)) if run.called < self.from => {}
                Ok(Some(run)) => times.record(run.start(), run.ended - run.called),
                Ok(None) => break,
                Err(error) => {
                    failures.take(&error);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        (times, failures)
    }
}

impl Saturated {
    /// Ours, if it did anything.
    pub(super) fn ours(&self) -> Option<&Loop> {
        let ours = self.loops.iter().find(|one| one.way == Way::Library);
        ours.filter(|one| one.jobs > 0)
    }

    /// The loop of plain runsc that did most.
    pub(super) fn best_plain(&self) -> Option<&Loop> {
        let plain = self.loops.iter().filter(|one| one.way == Way::Runsc);
        plain
            .filter(|one| one.jobs > 0)
            .max_by(|a, b| a.jobs_per_second.total_cmp(&b.jobs_per_second))
    }
}

impl fmt::Display for Saturated {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ran = || self.loops.iter().filter(|one| one.jobs > 0);
        let rows = ran();
        let rows: Vec<_> = rows
            .flat_map(|one| one.latency_ms.rows(&one.name()))
            .collect();
        let mut text = table("saturated", &rows);
        for one in ran() {
            writeln!(
                text,
                "{}: {:.2} jobs/s, {:.0} ms of CPU of the whole host per job",
                one.name(),
                one.jobs_per_second,
                one.cpu_ms_per_job
            )?;
        }
        if let (Some(ours), Some(plain)) = (self.ours(), self.best_plain()) {
            let ratio = ours.jobs_per_second / plain.jobs_per_second;
            writeln!(
                text,
                "{} / the best of {}: {ratio:.2} times the jobs",
                ours.way.name(),
                plain.way.name()
            )?;
        }
        formatter.write_str(text.trim_end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_loops_take_turns_and_one_does_not() {
        let seconds = Duration::from_secs;
        assert_eq!(slices(seconds(60), 1), (1, seconds(60)));
        assert_eq!(slices(seconds(60), 3), (6, seconds(10)));
        assert_eq!(slices(seconds(4), 2), (2, seconds(2)));
        assert_eq!(slices(seconds(21), 2).0, 3);
    }

    #[test]
    fn slices_add_up_to_jobs_per_second() {
        let mut one = Loop::new(Way::Library, 4);
        for _ in 0..2 {
            let mut times = ByStart::default();
            for _ in 0..10 {
                times.record(Some("warm"), Duration::from_millis(2));
            }
            one.take(&times, Duration::from_secs(5), Duration::from_secs(4));
        }
        assert_eq!(one.jobs, 20);
        assert!((one.jobs_per_second - 2.0).abs() < 1e-9);
        assert!((one.cpu_ms_per_job - 400.0).abs() < 1e-9);
    }
}
