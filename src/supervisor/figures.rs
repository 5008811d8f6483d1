//! What happened since the start, in numbers.

use super::wire::Kills;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Kills whose times are kept.
const WINDOW: usize = 1000;

/// Bounds of the hint when to come back: soon enough not to waste a free place, and not so soon that
/// asking is work.
const SOONEST: Duration = Duration::from_millis(50);
const LATEST: Duration = Duration::from_secs(5);

/// How much one job counts against all before it in the mean of their times.
const WEIGHT: f64 = 0.2;

/// Counters.
#[derive(Debug)]
pub(super) struct Figures {
    started: Instant,
    ended: AtomicU64,
    busy: AtomicU64,
    recent: Mutex<Recent>,
}

#[derive(Debug, Default)]
struct Recent {
    kills: VecDeque<Duration>,
    /// Mean time of a job in seconds, the last ones counting most.
    mean: Option<f64>,
}

impl Figures {
    pub(super) fn new() -> Self {
        Self {
            started: Instant::now(),
            ended: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            recent: Mutex::default(),
        }
    }

    pub(super) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// A job has ended after this time.
    pub(super) fn job_ended(&self, took: Duration) {
        self.ended.fetch_add(1, Ordering::Relaxed);
        let mut recent = self.recent();
        let took = took.as_secs_f64();
        let mean = recent
            .mean
            .map_or(took, |mean| mean + WEIGHT * (took - mean));
        recent.mean = Some(mean);
    }

    /// Killing a sandbox took this long.
    pub(super) fn killed(&self, took: Duration) {
        let mut recent = self.recent();
        if recent.kills.len() == WINDOW {
            recent.kills.pop_front();
        }
        recent.kills.push_back(took);
    }

    pub(super) fn ended(&self) -> u64 {
        self.ended.load(Ordering::Relaxed)
    }

    /// A job was turned away; when it may come back, in milliseconds.
    pub(super) fn turned_away(&self) -> u64 {
        self.busy.fetch_add(1, Ordering::Relaxed);
        self.hint()
    }

    /// In how many milliseconds a place may be free: the mean time of a job, within bounds.
    pub(super) fn hint(&self) -> u64 {
        let mean = self.recent().mean.unwrap_or(0.0);
        let hint = Duration::try_from_secs_f64(mean).unwrap_or(LATEST);
        crate::job::milliseconds(hint.clamp(SOONEST, LATEST))
    }

    pub(super) fn busy(&self) -> u64 {
        self.busy.load(Ordering::Relaxed)
    }

    /// Of the last 1,000 kills.
    pub(super) fn kills(&self) -> Kills {
        let mut times: Vec<_> = self.recent().kills.iter().copied().collect();
        times.sort_unstable();
        let at = |hundredths: usize| {
            let rank = (times.len() * hundredths).div_ceil(100).max(1) - 1;
            times.get(rank).map_or(0.0, |time| time.as_secs_f64() * 1e3)
        };
        Kills {
            count: times.len() as u64,
            p50_ms: at(50),
            p99_ms: at(99),
            max_ms: at(100),
        }
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_percentiles_are_those_of_the_last_thousand() {
        let figures = Figures::new();
        assert_eq!(figures.kills(), Kills::default());
        for ms in 0..1100 {
            figures.killed(Duration::from_millis(ms));
        }
        let kills = figures.kills();
        assert_eq!(kills.count, 1000);
        assert_eq!(
            (kills.p50_ms, kills.p99_ms, kills.max_ms),
            (599.0, 1089.0, 1099.0)
        );
    }

    #[test]
    fn the_hint_follows_the_jobs_within_its_bounds() {
        let figures = Figures::new();
        assert_eq!(figures.turned_away(), 50);
        for _ in 0..100 {
            figures.job_ended(Duration::from_secs(2));
        }
        assert_eq!(figures.turned_away(), 2000);
        for _ in 0..100 {
            figures.job_ended(Duration::from_mins(2));
        }
        assert_eq!(figures.turned_away(), 5000);
        figures.job_ended(Duration::ZERO);
        assert_eq!((figures.ended(), figures.busy()), (201, 3));
    }
}
