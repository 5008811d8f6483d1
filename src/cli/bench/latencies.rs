//! Latencies in a histogram of high dynamic range, and the few figures that stand for them.

use hdrhistogram::Histogram;
use serde::ser::{Serialize, SerializeStruct, Serializer};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// The longest time that is told from longer ones, in microseconds: an hour.
const LONGEST_US: u64 = 3_600_000_000;

/// Significant digits that are kept: a figure is off by a thousandth at most.
const DIGITS: u8 = 3;

/// Times of one kind, in steps of a microsecond.
#[derive(Debug, Clone)]
pub struct Latencies(Histogram<u64>);

impl Latencies {
    /// None yet.
    pub fn new() -> Self {
        match Histogram::new_with_max(LONGEST_US, DIGITS) {
            Ok(histogram) => Self(histogram),
            Err(error) => unreachable!("bounds that are constants: {error}"),
        }
    }

    /// Takes one more.
    pub fn record(&mut self, time: Duration) {
        let microseconds = time.as_micros().try_into().unwrap_or(u64::MAX);
        self.0.saturating_record(microseconds);
    }

    /// Takes all of another's.
    pub fn add(&mut self, other: &Self) {
        for value in other.0.iter_recorded() {
            let count = value.count_since_last_iteration();
            self.0.saturating_record_n(value.value_iterated_to(), count);
        }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The time in milliseconds that this share of all does not exceed (nearest rank); not a number
    /// where there is none.
    pub fn quantile(&self, share: f64) -> f64 {
        if self.0.is_empty() {
            return f64::NAN;
        }
        // Of the shortest, too, the end of its step.
        let value = self.0.value_at_quantile(share);
        milliseconds(self.0.highest_equivalent(value))
    }

    /// The figures that stand for all.
    pub fn figures(&self) -> Figures {
        Figures {
            count: self.count(),
            min: self.quantile(0.0),
            median: self.quantile(0.5),
            p95: self.quantile(0.95),
            p99: self.quantile(0.99),
            max: self.quantile(1.0),
        }
    }

    /// Every time that was recorded, in milliseconds, and how often: two of these can be added.
    fn buckets(&self) -> Vec<(f64, u64)> {
        let recorded = self.0.iter_recorded();
        recorded
            .map(|value| {
                (
                    milliseconds(value.value_iterated_to()),
                    value.count_since_last_iteration(),
                )
            })
            .collect()
    }
}

impl Default for Latencies {
    fn default() -> Self {
        Self::new()
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "an hour of microseconds has 32 bits"
)]
fn milliseconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1000.0
}

impl Serialize for Latencies {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let figures = self.figures();
        let mut object = serializer.serialize_struct("Latencies", 7)?;
        object.serialize_field("count", &figures.count)?;
        object.serialize_field("min", &figures.min)?;
        object.serialize_field("median", &figures.median)?;
        object.serialize_field("p95", &figures.p95)?;
        object.serialize_field("p99", &figures.p99)?;
        object.serialize_field("max", &figures.max)?;
        object.serialize_field("buckets", &self.buckets())?;
        object.end()
    }
}

/// A few figures, in milliseconds. Quantiles are nearest ranks: of 60 times, p99 is the longest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    /// How many times there are.
    pub count: u64,
    /// The shortest.
    pub min: f64,
    /// Half are no longer.
    pub median: f64,
    /// 95 of 100 are no longer.
    pub p95: f64,
    /// 99 of 100 are no longer.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

/// The heads of the columns that [`Figures`] prints.
pub const HEADS: &str = "     n      min   median      p95      p99      max";

impl fmt::Display for Figures {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:>6}", self.count)?;
        for figure in [self.min, self.median, self.p95, self.p99, self.max] {
            write!(formatter, " {:>8}", Milliseconds(figure).to_string())?;
        }
        Ok(())
    }
}

/// A time with the digits that mean something.
pub(super) struct Milliseconds(pub(super) f64);

impl fmt::Display for Milliseconds {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = if self.0.abs() < 10.0 { 2 } else { 1 };
        write!(formatter, "{:.digits$}", self.0)
    }
}

/// Latencies by how the sandbox came to be, and all of them together.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub(super) struct ByStart {
    pub(super) all: Latencies,
    #[serde(flatten)]
    pub(super) starts: BTreeMap<&'static str, Latencies>,
}

impl ByStart {
    /// `start` is nothing for what is no sandbox of ours.
    pub(super) fn record(&mut self, start: Option<&'static str>, time: Duration) {
        self.all.record(time);
        if let Some(start) = start {
            self.starts.entry(start).or_default().record(time);
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.all.add(&other.all);
        for (start, latencies) in &other.starts {
            self.starts.entry(start).or_default().add(latencies);
        }
    }

    /// What a table shows: all together, and each start by itself where there are several.
    pub(super) fn rows(&self, name: &str) -> Vec<(String, Figures)> {
        let mut rows = Vec::new();
        match self.starts.iter().collect::<Vec<_>>().as_slice() {
            [] => rows.push((name.to_owned(), self.all.figures())),
            [(start, latencies)] => rows.push((format!("{name}, {start}"), latencies.figures())),
            several => {
                for (start, latencies) in several {
                    rows.push((format!("{name}, {start}"), latencies.figures()));
                }
                rows.push((format!("{name}, all"), self.all.figures()));
            }
        }
        rows
    }
}

/// Width of the column of names.
const NAMES: usize = 40;

/// A table, its head first.
pub(super) fn table(head: &str, rows: &[(String, Figures)]) -> String {
    let head = format!("{head:<NAMES$} {HEADS}  (ms)\n");
    let rows = rows.iter();
    let rows = rows.map(|(name, figures)| format!("{name:<NAMES$} {figures}\n"));
    std::iter::once(head).chain(rows).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(milliseconds: impl IntoIterator<Item = u64>) -> Latencies {
        let mut latencies = Latencies::new();
        for time in milliseconds {
            latencies.record(Duration::from_millis(time));
        }
        latencies
    }

    fn is_near(found: f64, wanted: f64) -> bool {
        (found - wanted).abs() <= wanted / 1000.0
    }

    #[test]
    fn figures_are_nearest_ranks_within_a_thousandth() {
        let figures = of(1..=200).figures();
        assert_eq!(figures.count, 200);
        let found = [
            figures.min,
            figures.median,
            figures.p95,
            figures.p99,
            figures.max,
        ];
        for (found, wanted) in found.into_iter().zip([1.0, 100.0, 190.0, 198.0, 200.0]) {
            assert!(is_near(found, wanted), "{found} for {wanted}");
        }
        assert!(Latencies::new().figures().median.is_nan());
        let long = of([10 * 3_600_000]).quantile(1.0);
        assert!(is_near(long, 3_600_000.0), "an hour at most: {long}");
    }

    #[test]
    fn two_histograms_make_the_one_of_both() {
        let mut sum = of(1..=100);
        sum.add(&of(101..=200));
        assert_eq!(sum.figures(), of(1..=200).figures());
    }

    #[test]
    fn what_is_serialised_holds_every_time() {
        let value = serde_json::to_value(of([5, 5, 7])).unwrap();
        assert_eq!(value["count"], 3);
        assert_eq!(value["buckets"].as_array().unwrap().len(), 2);
        assert_eq!(value["buckets"][0][1], 2);
        let none = serde_json::to_value(Latencies::new()).unwrap();
        assert_eq!(none["median"], serde_json::Value::Null);
    }

    #[test]
    fn starts_stand_apart_once_there_are_two() {
        let mut times = ByStart::default();
        times.record(Some("cold"), Duration::from_millis(200));
        let names = |times: &ByStart| {
            let rows = times.rows("tako-vm").into_iter();
            rows.map(|(name, _)| name).collect::<Vec<_>>()
        };
        assert_eq!(names(&times), ["tako-vm, cold"]);
        times.record(Some("warm"), Duration::from_millis(2));
        let expected = ["tako-vm, cold", "tako-vm, warm", "tako-vm, all"];
        assert_eq!(names(&times), expected);
        assert_eq!(serde_json::to_value(&times).unwrap()["warm"]["count"], 1);
    }

    #[test]
    fn short_times_have_more_digits() {
        assert_eq!(Milliseconds(2.345).to_string(), "2.35");
        assert_eq!(Milliseconds(231.44).to_string(), "231.4");
    }
}
