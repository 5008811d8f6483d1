//! What the figures are held against: the promises of docs/specification.md, where they apply.

use super::Report;
use super::comparison::Comparison;
use super::density::Density;
use super::latencies::Milliseconds;
use super::paced::Paced;
use super::saturated::Saturated;
use super::starts::{AfterPause, SideBySide};
use super::ways::Way;
use super::{CROWD, CROWD_BYTES, IMPORTS};
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

/// A start when all were frozen.
const THAW_MS: f64 = 20.0;

/// How many times faster a program is whose imports are done before it comes.
const IMPORTS_RATIO: f64 = 5.0;

/// Megabytes of a sandbox that waits, as its processes share them.
const IDLE_MB: f64 = 35.0;

/// The share of a core that so many frozen sandboxes use, in hundredths.
const FROZEN: u32 = 40;
const FROZEN_PERCENT: f64 = 0.5;

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
    bars.extend(report.after_pause.as_ref().and_then(after_pause));
    bars.extend(report.side_by_side.iter().find_map(imports));
    if let Some(saturated) = &report.saturated {
        bars.extend(throughput(saturated));
        bars.extend(patience(saturated));
    }
    if let Some(density) = &report.density {
        bars.push(room(density));
        bars.push(idle(density));
        bars.extend(frozen(density));
    }
    bars
}

/// The command without a supervisor, beside one, or where every sandbox was started cold anyway.
fn cold(comparison: &Comparison) -> Option<Bar> {
    let beside = comparison.median(Way::ColdCommand, None);
    let ours = beside.or_else(|| {
        let starts = &comparison.starts()?.starts;
        let all_cold = starts.keys().all(|start| *start == "cold");
        let command = comparison.median(Way::Command, None);
        command.filter(|_| all_cold)
    })?;
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

/// Where a supervisor has had sandboxes wait for the library, and so for the command.
fn command(comparison: &Comparison) -> Option<Bar> {
    comparison.median(Way::Library, Some("warm"))?;
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

fn after_pause(paused: &AfterPause) -> Option<Bar> {
    let times = &paused.latency_ms.all;
    let median = (times.count() > 0).then(|| times.quantile(0.5))?;
    Some(Bar::new(
        "after a pause",
        median <= THAW_MS,
        &format!("median {} ms", Milliseconds(median)),
        &format!("at most {THAW_MS:.0} ms"),
    ))
}

fn imports(measured: &SideBySide) -> Option<Bar> {
    let cold = measured
        .median("cold")
        .filter(|_| measured.image == IMPORTS.0)?;
    let ratios = ["warm", "restored"]
        .into_iter()
        .filter_map(|start| Some((start, cold / measured.median(start)?)));
    let ratios: Vec<_> = ratios.collect();
    let best = ratios.iter().map(|(_, ratio)| *ratio).reduce(f64::max)?;
    let told = ratios
        .iter()
        .map(|(start, ratio)| format!("{start} {ratio:.1} times faster than cold"));
    let told: Vec<_> = told.collect();
    Some(Bar::new(
        "imports",
        best >= IMPORTS_RATIO,
        &told.join(", "),
        &format!("one of them at least {IMPORTS_RATIO:.0}"),
    ))
}

/// All are there, all answer, and there is room for them by either way to count.
fn room(density: &Density) -> Bar {
    let asked = density.asked;
    #[expect(clippy::cast_precision_loss, reason = "4 GiB in MiB")]
    let most = (CROWD_BYTES >> 20) as f64 * f64::from(asked) / f64::from(CROWD.get());
    let used = density.cgroup_mib.max(density.proportional_mib);
    let all = density.ready == asked && density.answered == u64::from(asked);
    Bar::new(
        "many at once",
        all && used <= most,
        &format!(
            "{} ready, {} answered, {used:.0} MiB",
            density.ready, density.answered
        ),
        &format!("all {asked} within {most:.0} MiB"),
    )
}

fn idle(density: &Density) -> Bar {
    let each = density.each_mb();
    Bar::new(
        "idle sandbox",
        each <= IDLE_MB,
        &format!("{each:.1} MB proportional"),
        &format!("at most {IDLE_MB:.0}"),
    )
}

/// Only for as many as it is promised for.
fn frozen(density: &Density) -> Option<Bar> {
    let percent = density.idle_share() * 100.0;
    (density.frozen >= FROZEN).then(|| {
        Bar::new(
            "frozen sandboxes",
            percent < FROZEN_PERCENT,
            &format!("{} use {percent:.2} % of a core", density.frozen),
            &format!("less than {FROZEN_PERCENT} %"),
        )
    })
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

    #[test]
    fn a_hundred_have_to_answer_and_to_fit() {
        let all = Density {
            asked: 50,
            ready: 50,
            answered: 50,
            cgroup_mib: 2000.0,
            proportional_mib: 1500.0,
            ..Density::default()
        };
        assert!(room(&all).met && idle(&all).met);
        assert!(frozen(&all).is_none(), "none was watched");
        let large = Density {
            proportional_mib: 2049.0,
            ..all
        };
        assert!(!room(&large).met && !idle(&large).met);
        let silent = Density {
            answered: 49,
            proportional_mib: 1500.0,
            ..large
        };
        assert!(!room(&silent).met && idle(&silent).met);
    }

    #[test]
    fn imports_count_by_the_better_start() {
        let mut measured = SideBySide {
            image: IMPORTS.0.to_owned(),
            ..SideBySide::default()
        };
        let mut record = |start, milliseconds| {
            let time = Duration::from_millis(milliseconds);
            measured.latency_ms.record(Some(start), time);
        };
        record("cold", 1000);
        record("restored", 500);
        assert!(!imports(&measured).unwrap().met);
        measured
            .latency_ms
            .record(Some("warm"), Duration::from_millis(10));
        assert!(imports(&measured).unwrap().met);
        measured.image = "python".to_owned();
        assert!(imports(&measured).is_none());
    }
}
