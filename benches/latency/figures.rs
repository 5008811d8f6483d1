//! Samples, and the few figures that stand for them.

use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// Samples of one kind, in milliseconds or MiB.
#[derive(Debug, Default, Clone, Serialize)]
#[serde(transparent)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn push(&mut self, sample: f64) {
        self.0.push(sample);
    }

    pub(crate) fn push_time(&mut self, sample: Duration) {
        self.push(sample.as_secs_f64() * 1000.0);
    }

    pub(crate) fn extend(&mut self, other: &Self) {
        self.0.extend_from_slice(&other.0);
    }

    pub(crate) fn figures(&self) -> Figures {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let percentile = |percent| nearest_rank(&sorted, percent);
        Figures {
            count: sorted.len(),
            min: percentile(0),
            median: percentile(50),
            p95: percentile(95),
            p99: percentile(99),
            max: percentile(100),
        }
    }

    pub(crate) fn median(&self) -> f64 {
        self.figures().median
    }
}

/// The smallest sample that at least `percent` of all do not exceed; not a number where there is none.
fn nearest_rank(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Figures {
    pub(crate) count: usize,
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) p95: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

/// The heads of the columns that [`Figures`] prints.
pub(crate) const HEADS: &str = "    n     min  median     p95     p99     max";

impl fmt::Display for Figures {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:>5}", self.count)?;
        for figure in [self.min, self.median, self.p95, self.p99, self.max] {
            write!(formatter, " {figure:>7.1}")?;
        }
        Ok(())
    }
}
