//! Jobs at a constant rate, as independent users would bring them.
//!
//! Each job has a time at which it is due. When all clients are busy it starts later, and the time that
//! it waited belongs to its latency: a measurement that left it out would ask least when the answers
//! are slowest (coordinated omission). So both are kept: from the call, and from the time it was due.

use super::latencies::{ByStart, table};
use super::subject::{Run, Subject};
use super::ways::Failures;
use serde::Serialize;
use std::fmt;
use std::num::NonZero;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// From the decision until the first job is due: the clients have to be up.
const LEAD: Duration = Duration::from_millis(20);

/// What is asked for.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Pace {
    pub(super) jobs: NonZero<u32>,
    /// Jobs per second.
    pub(super) rate: f64,
    /// Jobs at once at most.
    pub(super) clients: NonZero<u32>,
}

impl Pace {
    /// Between two jobs.
    pub(super) fn interval(&self) -> Duration {
        Duration::from_secs_f64(1.0 / self.rate)
    }
}

/// What was measured.
#[derive(Debug, Default, Serialize)]
pub(super) struct Paced {
    /// Jobs that ended as they should.
    pub(super) jobs: u64,
    /// From the call.
    pub(super) measured_ms: ByStart,
    /// From the time at which the job was due.
    pub(super) corrected_ms: ByStart,
    #[serde(skip)]
    failures: Failures,
}

impl Paced {
    fn take(&mut self, due: Instant, run: &Run) {
        let start = run.start();
        self.jobs += 1;
        self.measured_ms.record(start, run.ended - run.called);
        // The pacer's own lateness is in it too.
        self.corrected_ms.record(start, run.ended - due);
    }

    fn add(&mut self, other: &Self) {
        self.jobs += other.jobs;
        self.measured_ms.add(&other.measured_ms);
        self.corrected_ms.add(&other.corrected_ms);
        self.failures.add(&other.failures);
    }
}

/// Runs the jobs; ends early when it is cancelled.
pub(super) async fn measure(
    subject: &Subject,
    pace: Pace,
    cancel: &CancellationToken,
    failures: &mut Failures,
) -> Paced {
    let due = Arc::new(Mutex::new(schedule(pace)));
    let mut clients = JoinSet::new();
    for _ in 0..pace.clients.get().min(pace.jobs.get()) {
        let client = client(subject.clone(), Arc::clone(&due), cancel.clone());
        clients.spawn(client);
    }
    let mut all = Paced::default();
    for part in clients.join_all().await {
        all.add(&part);
    }
    failures.add(&all.failures);
    all
}

/// The times at which jobs are due, each given when it has come.
///
/// A thread of its own sleeps to the tenth of a millisecond; the runtime's clock only to the whole one,
/// which is a third of what a warm start takes.
fn schedule(pace: Pace) -> mpsc::UnboundedReceiver<Instant> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let begun = Instant::now() + LEAD;
    thread::spawn(move || {
        for index in 0..pace.jobs.get() {
            let due = begun + pace.interval() * index;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if sender.send(due).is_err() {
                return;
            }
        }
    });
    receiver
}

async fn client(
    subject: Subject,
    due: Arc<Mutex<mpsc::UnboundedReceiver<Instant>>>,
    cancel: CancellationToken,
) -> Paced {
    let mut paced = Paced::default();
    loop {
        let next = async { due.lock().await.recv().await };
        let Some(Some(due)) = cancel.run_until_cancelled(next).await else {
            return paced;
        };
        match subject.run(&cancel).await {
            Ok(Some(run)) => paced.take(due, &run),
            Ok(None) => return paced,
            Err(error) => paced.failures.take(&error),
        }
    }
}

impl fmt::Display for Paced {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = self.measured_ms.rows("from the call");
        rows.extend(self.corrected_ms.rows("from when it was due"));
        formatter.write_str(table("paced", &rows).trim_end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One client, a job due every 10 ms; the first takes 100 ms and all others 1 ms.
    #[test]
    fn jobs_that_wait_behind_a_slow_one_count_from_when_they_were_due() {
        let begun = Instant::now();
        let mut paced = Paced::default();
        let mut free = begun;
        for index in 0..10 {
            let due = begun + Duration::from_millis(10) * index;
            let called = due.max(free);
            let took = Duration::from_millis(if index == 0 { 100 } else { 1 });
            free = called + took;
            paced.take(due, &Run::outside(called, free));
        }
        let (measured, corrected) = (paced.measured_ms.all, paced.corrected_ms.all);
        assert_eq!((measured.count(), corrected.count()), (10, 10));
        assert!(measured.quantile(0.5) < 1.1, "{measured:?}");
        // Due at 50, called at 105.
        assert!(corrected.quantile(0.5) > 50.0, "{corrected:?}");
        assert!(corrected.quantile(0.0) > 10.0, "{corrected:?}");
        let longest = (measured.quantile(1.0), corrected.quantile(1.0));
        assert!((longest.0 - longest.1).abs() < 0.2, "{longest:?}");
    }

    #[tokio::test]
    async fn jobs_are_given_when_they_are_due_and_not_before() {
        let pace = Pace {
            jobs: NonZero::new(3).unwrap(),
            rate: 50.0,
            clients: NonZero::new(1).unwrap(),
        };
        let mut receiver = schedule(pace);
        let mut last = None::<Instant>;
        for _ in 0..3 {
            let due = receiver.recv().await.unwrap();
            assert!(Instant::now() >= due);
            if let Some(last) = last {
                assert_eq!(due - last, Duration::from_millis(20));
            }
            last = Some(due);
        }
        assert!(receiver.recv().await.is_none());
    }
}
