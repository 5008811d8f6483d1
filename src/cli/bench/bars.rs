//! What the figures are held against: the promises of docs/specification.md, where they apply.

use super::Report;
use super::comparison::Comparison;
use super::latencies::Milliseconds;
use super::paced::Paced;
use super::saturated::Saturated;
use super::ways::Way;
use serde::Serialize;

/// What the median of a cold start may take more than that of plain runsc.
const COLD_MS: f64 = 30.0;

/// A warm start, paced: median, and 99 of 100.
const WARM_MS: (f64, f64) = (3.0, 15.0);

/// How many times faster a warm start is than plain runsc.
const WARM_RATIO: f64 = 40.0;

/// The whole process of `tako-vm run` where sandboxes wait.
const COMMAND_MS: f64 = 15.0;

/// Jobs per second against those of plain runsc, and the longest that 99 of 100 jobs take.
const SATURATED_RATIO: f64 = 1.3;
const SATURATED_MS: f64 = 3000.0;

/// A promise, and whether this run kept it.
#[derive(Debug, Serialize)]
pub(super) struct Bar {
    name: &'static str,
    met: bool,
    /// The figures, as they are printed.
    text: String,
}

impl Bar {
    fn new(name: &'static str, met: bool, figures: &str, bar: &str) -> Self {
        let word = if met { "met" } else { "MISSED" };
        Self {
            name,
            met,
            text: format!("{name}: {figures} (bar: {bar}: {word})"),
        }
    }

    /// The line for people.
    pub(super) fn line(&self) -> &str {
        &self.text
    }
}

/// Every bar for which there are figures.
pub(super) fn of(report: &Report) -> Vec<Bar> {
    let comparison = report.comparison.as_ref();
    let mut bars = Vec::new();
    bars.extend(report.paced.as_ref().and_then(warm));
    bars.extend(comparison.and_then(cold));
    bars.extend(comparison.and_then(warm_ratio));
    bars.extend(comparison.and_then(warm_and_native));
    bars.extend(comparison.and_then(command));
    if let Some(saturated) = &report.saturated {
        bars.extend(throughput(saturated));
        bars.extend(patience(saturated));
    }
    bars
}

/// Where every sandbox was started cold, so that the command's were too.
fn cold(comparison: &Comparison) -> Option<Bar> {
    let starts = &comparison.starts()?.starts;
    if starts.keys().any(|start| *start != "cold") {
        return None;
    }
    let ours = comparison.median(Way::Command, None)?;
    let plain = comparison.median(Way::Runsc, None)?;
    let difference = ours - plain;
    Some(Bar::new(
        "cold",
        difference <= COLD_MS,
        &format!(
            "median ours {ours:.1} ms, plain runsc {plain:.1} ms, difference {difference:+.1} ms"
        ),
        &format!("+{COLD_MS:.0} ms"),
    ))
}

fn warm(paced: &Paced) -> Option<Bar> {
    let warm = paced.measured_ms.starts.get("warm")?;
    let (median, p99) = (warm.quantile(0.5), warm.quantile(0.99));
    Some(Bar::new(
        "warm",
        median <= WARM_MS.0 && p99 <= WARM_MS.1,
        &format!(
            "median {} ms, p99 {} ms",
            Milliseconds(median),
            Milliseconds(p99)
        ),
        &format!("at most {} and {} ms", WARM_MS.0, WARM_MS.1),
    ))
}

fn warm_ratio(comparison: &Comparison) -> Option<Bar> {
    let warm = comparison.median(Way::Library, Some("warm"))?;
    let ratio = comparison.median(Way::Runsc, None)? / warm;
    Some(Bar::new(
        "warm against plain runsc",
        ratio >= WARM_RATIO,
        &format!("{ratio:.1} times faster"),
        &format!("at least {WARM_RATIO:.0}"),
    ))
}

fn warm_and_native(comparison: &Comparison) -> Option<Bar> {
    let warm = comparison.median(Way::Library, Some("warm"))?;
    let native = comparison.median(Way::Native, None)?;
    Some(Bar::new(
        "warm against native python3",
        warm < native,
        &format!(
            "median {} ms, native {} ms",
            Milliseconds(warm),
            Milliseconds(native)
        ),
        "faster",
    ))
}

/// Where the library's sandboxes were all warm, so that the command's were too.
fn command(comparison: &Comparison) -> Option<Bar> {
    let starts = &comparison.starts()?.starts;
    if starts.is_empty() || starts.keys().any(|start| *start != "warm") {
        return None;
    }
    let median = comparison.median(Way::Command, None)?;
    Some(Bar::new(
        "command",
        median <= COMMAND_MS,
        &format!("median {} ms", Milliseconds(median)),
        &format!("at most {COMMAND_MS:.0} ms"),
    ))
}

/// Only with sandboxes that wait, or are restored: what is promised is their gain.
fn throughput(saturated: &Saturated) -> Option<Bar> {
    let ours = saturated.ours()?;
    if ours.latency_ms.starts.keys().all(|start| *start == "cold") {
        return None;
    }
    let ratio = ours.jobs_per_second / saturated.best_plain()?.jobs_per_second;
    Some(Bar::new(
        "saturated",
        ratio >= SATURATED_RATIO,
        &format!("{ratio:.2} times the jobs of plain runsc"),
        &format!("at least {SATURATED_RATIO}"),
    ))
}

fn patience(saturated: &Saturated) -> Option<Bar> {
    let p99 = saturated.ours()?.latency_ms.all.quantile(0.99);
    Some(Bar::new(
        "saturated latency",
        p99 <= SATURATED_MS,
        &format!("p99 {} ms", Milliseconds(p99)),
        &format!("at most {SATURATED_MS:.0} ms"),
    ))
}

#[cfg(test)]
mod tests {
    use super::super::subject::Run;
    use super::*;
    use std::time::{Duration, Instant};

    fn compared(start: &'static str, library: u64, command: u64, plain: u64) -> Comparison {
        let mut comparison = Comparison::default();
        let called = Instant::now();
        let run = |milliseconds| Run::outside(called, called + Duration::from_millis(milliseconds));
        comparison.take(0, Way::Library, &run(library).started(start));
        comparison.take(0, Way::Command, &run(command));
        comparison.take(0, Way::Runsc, &run(plain));
        comparison
    }

    #[test]
    fn a_cold_start_is_held_against_plain_runsc() {
        let met = |command| {
            let bar = cold(&compared("cold", 200, command, 200)).unwrap();
            assert!(
                bar.line()
                    .ends_with(if bar.met { "met)" } else { "MISSED)" })
            );
            bar.met
        };
        assert!(met(229) && !met(231));
        assert!(command(&compared("cold", 200, 200, 200)).is_none());
        assert!(warm_ratio(&compared("cold", 200, 200, 200)).is_none());
    }

    #[test]
    fn warm_starts_have_bars_of_their_own() {
        let comparison = compared("warm", 4, 14, 200);
        assert!(cold(&comparison).is_none());
        assert!(command(&comparison).unwrap().met);
        assert!(warm_ratio(&comparison).unwrap().met, "fifty times");
        assert!(!warm_ratio(&compared("warm", 6, 14, 200)).unwrap().met);
        // Without native Python there is nothing to say of it.
        assert!(warm_and_native(&comparison).is_none());
    }
}
