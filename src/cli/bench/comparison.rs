//! The same program by every way that there is to run it, one after the other.

use super::latencies::{ByStart, Latencies, Milliseconds, table};
use super::subject::Run;
use super::tools;
use super::ways::{Contest, Failures, Way};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::time::Duration;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// Rounds in which every way has its turn once, another one first each time.
#[derive(Debug, Default, Serialize)]
pub(super) struct Comparison {
    /// In the order in which they were made.
    runs: Vec<Entry>,
    ways: BTreeMap<Way, ByStart>,
    parts: Parts,
}

#[derive(Debug, Serialize)]
struct Entry {
    round: u32,
    way: Way,
    start: Option<&'static str>,
    ms: f64,
}

/// Where the time of the library's runs goes: the parts add up to the whole.
#[derive(Debug, Default, Serialize)]
struct Parts {
    sandbox_ms: Latencies,
    startup_ms: Latencies,
    execution_ms: Latencies,
    rest_ms: Latencies,
    cpu_ms: Latencies,
    memory_mib: Vec<f64>,
}

/// Compares for so many rounds, a run at every interval; ends early when it is cancelled.
///
/// The interval lets what a run leaves behind, such as a pool that refills, be done before the next.
pub(super) async fn measure(
    contest: &Contest,
    rounds: u32,
    interval: Duration,
    cancel: &CancellationToken,
    failures: &mut Failures,
) -> Comparison {
    let contestants = contest.ways();
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut comparison = Comparison::default();
    // The first one only fills the caches.
    for round in 0..=rounds {
        for way in turns(&contestants, round) {
            if cancel.run_until_cancelled(ticks.tick()).await.is_none() {
                return comparison;
            }
            match contest.run(way, cancel).await {
                Ok(Some(_)) if round == 0 => {}
                Ok(Some(run)) => comparison.take(round, way, &run),
                Ok(None) => return comparison,
                Err(error) => failures.take(&error),
            }
            tools::bury_orphans();
        }
    }
    comparison
}

/// The ways in the order of this round.
fn turns(ways: &[Way], round: u32) -> impl Iterator<Item = Way> {
    let first = round as usize % ways.len().max(1);
    let order = ways.iter().cycle().skip(first).take(ways.len());
    order.copied()
}

impl Comparison {
    pub(super) fn take(&mut self, round: u32, way: Way, run: &Run) {
        let took = run.ended - run.called;
        self.runs.push(Entry {
            round,
            way,
            start: run.start(),
            ms: took.as_secs_f64() * 1000.0,
        });
        self.ways.entry(way).or_default().record(run.start(), took);
        if way == Way::Library {
            self.parts.take(run, took);
        }
    }

    /// The median of a way; of ours only of sandboxes that came to be in this manner.
    pub(super) fn median(&self, way: Way, start: Option<&str>) -> Option<f64> {
        let times = self.ways.get(&way)?;
        let latencies = match start {
            Some(start) => times.starts.get(start)?,
            None => &times.all,
        };
        (latencies.count() > 0).then(|| latencies.quantile(0.5))
    }

    /// How the library's sandboxes came to be.
    pub(super) fn starts(&self) -> Option<&ByStart> {
        self.ways.get(&Way::Library)
    }
}

impl Parts {
    fn take(&mut self, run: &Run, took: Duration) {
        if let Some(inside) = &run.inside {
            let known = inside.sandbox + inside.startup + inside.execution;
            self.sandbox_ms.record(inside.sandbox);
            self.startup_ms.record(inside.startup);
            self.execution_ms.record(inside.execution);
            self.rest_ms.record(took.saturating_sub(known));
            self.cpu_ms.record(inside.cpu);
            self.memory_mib.push(inside.memory_mib);
        }
    }

    fn memory_median(&self) -> f64 {
        let mut sorted = self.memory_mib.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ways = self.ways.iter();
        let rows: Vec<_> = ways
            .flat_map(|(way, times)| times.rows(way.name()))
            .collect();
        let mut text = table("one at a time", &rows);
        let part = |latencies: &Latencies| Milliseconds(latencies.quantile(0.5));
        let parts = &self.parts;
        if parts.sandbox_ms.count() > 0 {
            writeln!(
                text,
                "of the library's, in medians: sandbox {}, interpreter {}, program {}, kill, collection \
                 and removal {} ms; CPU {} ms, memory {:.1} MiB",
                part(&parts.sandbox_ms),
                part(&parts.startup_ms),
                part(&parts.execution_ms),
                part(&parts.rest_ms),
                part(&parts.cpu_ms),
                parts.memory_median()
            )?;
        }
        for ours in [Way::Library, Way::Command] {
            let others = self.ways.keys().filter(|way| **way > Way::Command);
            let ratio = |other: &Way| {
                let (ours, others) = (self.median(ours, None)?, self.median(*other, None)?);
                Some(format!("{:.2} × {}", ours / others, other.name()))
            };
            let ratios: Vec<_> = others.filter_map(ratio).collect();
            if !ratios.is_empty() {
                writeln!(
                    text,
                    "{} takes, in medians: {}",
                    ours.name(),
                    ratios.join(", ")
                )?;
            }
        }
        formatter.write_str(text.trim_end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn every_round_has_every_way_once_and_another_one_first() {
        let ways = [Way::Library, Way::Runsc, Way::Native];
        let order = |round| turns(&ways, round).collect::<Vec<_>>();
        assert_eq!(order(0), ways);
        assert_eq!(order(1), [Way::Runsc, Way::Native, Way::Library]);
        assert_eq!(order(5), [Way::Native, Way::Library, Way::Runsc]);
        assert_eq!(turns(&[], 3).count(), 0);
    }

    #[test]
    fn what_was_compared_is_told_with_its_ratios() {
        let mut comparison = Comparison::default();
        let called = Instant::now();
        for (way, milliseconds) in [(Way::Library, 200), (Way::Native, 10)] {
            let run = Run::outside(called, called + Duration::from_millis(milliseconds));
            comparison.take(0, way, &run);
        }
        let text = comparison.to_string();
        assert!(
            text.contains("tako-vm, library takes, in medians: 19.99 × native python3"),
            "{text}"
        );
        let value = serde_json::to_value(&comparison).unwrap();
        assert_eq!(value["runs"][1]["way"], "native");
        assert_eq!(value["ways"]["library"]["all"]["count"], 1);
        assert_eq!(comparison.median(Way::Library, Some("warm")), None);
    }
}
