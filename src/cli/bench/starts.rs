//! The ways in which a sandbox comes to be, side by side, and what thawing costs after a pause.

use super::latencies::{ByStart, table};
use super::service;
use super::subject::{Run, Subject};
use super::ways::Failures;
use serde::Serialize;
use std::fmt;
use std::path::Path;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Between two jobs after which the pool is frozen: longer than [`FROZEN_AFTER_S`] and the second until
/// the supervisor notices.
const PAUSE: Duration = Duration::from_secs(3);

/// After how many seconds the supervisor freezes what waits: the least that can be configured.
pub(super) const FROZEN_AFTER_S: u64 = 1;

/// How long a pool may take to be as it is needed.
const PATIENCE: Duration = Duration::from_mins(1);

/// One program in sandboxes of each kind.
#[derive(Debug, Default, Serialize)]
pub(super) struct SideBySide {
    pub(super) image: String,
    pub(super) code: String,
    pub(super) latency_ms: ByStart,
}

/// Who runs the program.
#[derive(Debug)]
pub(super) struct Pair<'a> {
    /// In a supervisor that keeps one ready, at most.
    pub(super) pooled: Subject,
    /// In this process.
    pub(super) cold: Subject,
    pub(super) image: &'a str,
    pub(super) socket: &'a Path,
}

/// Rounds of one warm, one restored and one cold start; ends early when it is cancelled.
///
/// The supervisor keeps one ready: the first job of a round gets it, and the next finds none. That one
/// is restored beside the start of the one that is to wait next, which has a fiftieth of its weight.
pub(super) async fn side_by_side(
    pair: &Pair<'_>,
    rounds: u32,
    cancel: &CancellationToken,
    failures: &mut Failures,
) -> SideBySide {
    let mut all = SideBySide {
        image: pair.image.to_owned(),
        code: pair.pooled.code.clone(),
        latency_ms: ByStart::default(),
    };
    let waits = |stats: &crate::supervisor::wire::Stats| {
        let mut pools = stats.pools.iter().filter(|pool| pool.image == pair.image);
        let makes = stats.pools.iter().any(|pool| pool.starting > 0);
        !makes && stats.running == 0 && pools.any(|pool| pool.ready > 0)
    };
    for _ in 0..rounds {
        for (subject, at_rest) in [
            (&pair.pooled, true),
            (&pair.pooled, false),
            (&pair.cold, true),
        ] {
            if at_rest && !service::until(pair.socket, PATIENCE, cancel, waits).await {
                return all;
            }
            match subject.run(cancel).await {
                Ok(Some(run)) => all.take(&run),
                Ok(None) => return all,
                Err(error) => failures.take(&error),
            }
        }
    }
    all
}

impl SideBySide {
    fn take(&mut self, run: &Run) {
        let took = run.ended - run.called;
        self.latency_ms.record(run.start(), took);
    }

    /// The median of one kind.
    pub(super) fn median(&self, start: &str) -> Option<f64> {
        Some(self.latency_ms.starts.get(start)?.quantile(0.5))
    }
}

impl fmt::Display for SideBySide {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let starts = self.latency_ms.starts.iter();
        let rows: Vec<_> = starts
            .map(|(start, times)| ((*start).to_owned(), times.figures()))
            .collect();
        let head = format!("side by side, image {}", self.image);
        formatter.write_str(table(&head, &rows).trim_end())
    }
}

/// Jobs that each found all sandboxes frozen.
#[derive(Debug, Default, Serialize)]
pub(super) struct AfterPause {
    pub(super) latency_ms: ByStart,
}

/// Runs a job each time that all are frozen; ends early when it is cancelled.
pub(super) async fn after_pause(
    subject: &Subject,
    socket: &Path,
    jobs: u32,
    cancel: &CancellationToken,
    failures: &mut Failures,
) -> AfterPause {
    let mut all = AfterPause::default();
    for _ in 0..jobs {
        let pause = tokio::time::sleep(PAUSE);
        if cancel.run_until_cancelled(pause).await.is_none() {
            return all;
        }
        let frozen = |stats: &crate::supervisor::wire::Stats| {
            let mut pools = stats.pools.iter();
            let ready: u64 = stats.pools.iter().map(|pool| pool.ready).sum();
            ready > 0 && pools.all(|pool| pool.starting == 0 && pool.frozen == pool.ready)
        };
        if !service::until(socket, PATIENCE, cancel, frozen).await {
            return all;
        }
        match subject.run(cancel).await {
            Ok(Some(run)) => {
                let took = run.ended - run.called;
                all.latency_ms.record(run.start(), took);
            }
            Ok(None) => return all,
            Err(error) => failures.take(&error),
        }
    }
    all
}

impl fmt::Display for AfterPause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.latency_ms.rows("all frozen");
        formatter.write_str(table("after a pause", &rows).trim_end())
    }
}
