//! `tako-vm bench`: how long programs take on this host, and against other ways to run them.
//!
//! It uses the library as its users do, and measures what they wait for: from the call until the end of
//! the program is known and nothing is left of its sandbox.

mod bars;
mod comparison;
mod fingerprint;
mod latencies;
mod paced;
mod saturated;
mod subject;
mod tools;
mod ways;

pub use fingerprint::Fingerprint;
pub use latencies::{Figures, HEADS, Latencies};

use super::{Failure, INTERRUPTED, run};
use crate::client::{self, Sandbox};
use crate::config;
use bars::Bar;
use comparison::Comparison;
use paced::{Pace, Paced};
use saturated::Saturated;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Duration;
use subject::Subject;
use tokio_util::sync::CancellationToken;
use tools::Place;
use ways::{Contest, Failures, LeftOut, WayError};

/// Measure how long programs take on this host
///
/// Two loads: `paced`, jobs at a constant rate, whose latency also counts from when each was due; and
/// `saturated`, clients that start the next job when one ends. What was measured is told by how the
/// sandboxes came to be: cold, restored or warm.
///
/// `--compare` adds the same program by `tako-vm run`, plain runsc, runc, crun, bubblewrap and the
/// python3 of this host, as far as they are installed: all ways in turn, one run at a time at the
/// same rate, for as many rounds as there are jobs, 60 at most; and the saturated load against
/// plain runsc.
///
/// Exit status: 0 measured; 1 some jobs failed; 130 interrupted, after what was measured until then was
/// told; 125 Tako VM itself failed; 2 wrong usage.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// Jobs of the paced load
    #[arg(long, value_name = "N", default_value = "30", value_parser = jobs)]
    jobs: NonZero<u32>,
    /// Jobs per second of the paced load
    #[arg(long, value_name = "NUMBER", default_value = "3", value_parser = rate)]
    rate: f64,
    /// Jobs at once: all the time when saturated, at most when paced
    #[arg(long, value_name = "N", default_value = "4", value_parser = clients)]
    clients: NonZero<u32>,
    /// Seconds of the saturated load, for each way of running jobs
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    duration: Duration,
    /// Which load
    #[arg(long, value_enum, default_value_t = Mode::All)]
    mode: Mode,
    /// The executor image
    #[arg(long, value_name = "NAME", default_value = config::DEFAULT_IMAGE)]
    image: String,
    /// The program; every way of running it must succeed
    #[arg(short, long, value_name = "CODE", default_value = PROGRAM)]
    code: String,
    /// Compare with other ways to run the same program
    #[arg(long)]
    compare: bool,
    /// Also write everything that was measured as JSON; `-` for standard output, and nothing else there
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The program that is run unless another is given.
const PROGRAM: &str = "print(1 + 1)";

/// Rounds of the comparison: more tell little more, and every round takes seconds.
const MAX_ROUNDS: u32 = 60;

/// The exit status when a job failed.
const SOME_FAILED: u8 = 1;

/// Which load is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Mode {
    /// A constant rate, and with `--compare` all ways one at a time
    Paced,
    /// As many jobs as the host can do
    Saturated,
    /// Both, one after the other
    All,
}

fn jobs(text: &str) -> Result<NonZero<u32>, String> {
    count(text, 1_000_000)
}

fn clients(text: &str) -> Result<NonZero<u32>, String> {
    count(text, 1000)
}

fn count(text: &str, most: u32) -> Result<NonZero<u32>, String> {
    let number = text.parse::<NonZero<u32>>().ok();
    number
        .filter(|number| number.get() <= most)
        .ok_or_else(|| format!("`{text}` is not a number from 1 to {most}"))
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok();
    rate.filter(|rate| (0.01..=10_000.0).contains(rate))
        .ok_or_else(|| format!("`{text}` is not a number of jobs per second from 0.01 to 10000"))
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok();
    seconds
        .filter(|seconds| (0.1..=86_400.0).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| format!("`{text}` is not a number of seconds from 0.1 to 86400"))
}

/// Everything that was measured: what `--json` writes. Its keys are documented.
#[derive(Debug, Serialize)]
struct Report {
    host: Fingerprint,
    settings: Settings,
    /// How many sandboxes came to be in each manner.
    starts: BTreeMap<&'static str, u64>,
    paced: Option<Paced>,
    comparison: Option<Comparison>,
    saturated: Option<Saturated>,
    left_out: Vec<LeftOut>,
    failures: Failures,
    bars: Vec<Bar>,
    interrupted: bool,
}

#[derive(Debug, Serialize)]
struct Settings {
    #[serde(flatten)]
    pace: Pace,
    duration_s: f64,
    mode: Mode,
    image: String,
    code: String,
    compare: bool,
}

/// Measures, tells it as it comes, and returns the exit status.
pub(super) async fn run(
    arguments: &Arguments,
    state_dir: &Path,
    file: Option<&Path>,
) -> Result<u8, Failure> {
    super::require_root("bench")?;
    // Before minutes are spent: it may not be possible.
    let target = arguments.json.as_deref().map(Target::open).transpose()?;
    let host = Fingerprint::read(state_dir, &arguments.image)
        .map_err(|error| Failure::io("cannot read what this host is", &error))?;
    let mut builder = Sandbox::builder()
        .image(&arguments.image)
        .state_dir(state_dir);
    if let Some(file) = file {
        builder = builder.config_file(file);
    }
    let sandbox = builder.build().map_err(|error| Failure::library(&error))?;
    let cancel =
        run::cancel_on_signals().map_err(|error| Failure::io("cannot watch signals", &error))?;
    let mut bench = Bench {
        report: Report::new(arguments, host),
        arguments,
        cancel,
        quiet: matches!(target, Some(Target::Stdout)),
    };
    let subject = Subject {
        sandbox,
        code: arguments.code.clone(),
    };
    let place = Place {
        state_dir,
        config: file,
        image: &arguments.image,
    };
    bench.measure(subject, &place).await?;
    bench.finish(target)
}

/// What `--json` writes to.
enum Target {
    Stdout,
    File(PathBuf, File),
}

impl Target {
    fn open(path: &Path) -> Result<Self, Failure> {
        if path == Path::new("-") {
            return Ok(Self::Stdout);
        }
        let file = File::create(path).map_err(|error| {
            Failure::wrong(format!("cannot write `{}`: {error}", path.display()))
        })?;
        Ok(Self::File(path.to_owned(), file))
    }

    fn write(self, report: &Report) -> Result<(), Failure> {
        let mut text = serde_json::to_vec_pretty(report).map_err(|error| Failure::ours(&error))?;
        text.push(b'\n');
        match self {
            Self::Stdout => print(&text),
            Self::File(path, mut file) => file.write_all(&text).map_err(|error| {
                Failure::io(&format!("cannot write `{}`", path.display()), &error)
            }),
        }
    }
}

fn print(text: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let printed = stdout.write_all(text).and_then(|()| stdout.flush());
    printed.map_err(|error| Failure::io("cannot print", &error))
}

struct Bench<'a> {
    arguments: &'a Arguments,
    report: Report,
    cancel: CancellationToken,
    quiet: bool,
}

impl Bench<'_> {
    async fn measure(&mut self, subject: Subject, place: &Place<'_>) -> Result<(), Failure> {
        self.tell(&self.report.host)?;
        // What cannot run at all is told at once, and not as a failure of every job.
        subject.run(&self.cancel).await.map_err(|e| unable(&e))?;
        let contest = self.contest(subject.clone(), place).await?;
        let Arguments { mode, compare, .. } = *self.arguments;
        if mode != Mode::Saturated && self.goes_on() {
            self.measure_paced(&subject).await?;
        }
        if mode != Mode::Saturated && compare && self.goes_on() {
            self.compare(&contest).await?;
        }
        if mode != Mode::Paced && self.goes_on() {
            self.saturate(&contest).await?;
        }
        Ok(())
    }

    fn goes_on(&self) -> bool {
        !self.cancel.is_cancelled()
    }

    async fn contest(&mut self, subject: Subject, place: &Place<'_>) -> Result<Contest, Failure> {
        if !self.arguments.compare {
            return Ok(Contest::alone(subject));
        }
        progress("trying out what there is to compare with");
        let (contest, left_out) = Contest::prepare(subject, place, &self.cancel)
            .await
            .map_err(|error| Failure::io("cannot make a directory to work in", &error))?;
        for one in &left_out {
            super::warn(&format!("{} is left out: {}", one.way.name(), one.why));
        }
        self.report.left_out = left_out;
        Ok(contest)
    }

    async fn measure_paced(&mut self, subject: &Subject) -> Result<(), Failure> {
        let pace = self.report.settings.pace;
        progress(&format!(
            "paced: {} jobs, {} a second, {:.0} s",
            pace.jobs,
            pace.rate,
            pace.interval().as_secs_f64() * f64::from(pace.jobs.get())
        ));
        let failures = &mut self.report.failures;
        let paced = paced::measure(subject, pace, &self.cancel, failures).await;
        self.tell(&format!("\n{paced}"))?;
        self.report.paced = Some(paced);
        Ok(())
    }

    async fn compare(&mut self, contest: &Contest) -> Result<(), Failure> {
        let pace = self.report.settings.pace;
        let rounds = pace.jobs.get().min(MAX_ROUNDS);
        let ways = contest.ways().len();
        progress(&format!("one at a time: {ways} ways, {rounds} rounds"));
        let failures = &mut self.report.failures;
        let interval = pace.interval();
        let compared = comparison::measure(contest, rounds, interval, &self.cancel, failures).await;
        self.tell(&format!("\n{compared}"))?;
        self.report.comparison = Some(compared);
        Ok(())
    }

    async fn saturate(&mut self, contest: &Contest) -> Result<(), Failure> {
        let loops = saturated::loops(contest, self.arguments.clients);
        let duration = self.arguments.duration;
        progress(&format!(
            "saturated: {} of {} s, in turns",
            loops.len(),
            duration.as_secs_f64()
        ));
        let failures = &mut self.report.failures;
        let saturated = saturated::measure(contest, loops, duration, &self.cancel, failures).await;
        self.tell(&format!("\n{saturated}"))?;
        self.report.saturated = Some(saturated);
        Ok(())
    }

    fn tell(&self, text: &impl fmt::Display) -> Result<(), Failure> {
        if self.quiet {
            return Ok(());
        }
        print(format!("{text}\n").as_bytes())
    }

    fn finish(mut self, target: Option<Target>) -> Result<u8, Failure> {
        let report = &mut self.report;
        report.interrupted = self.cancel.is_cancelled();
        report.starts = report.count_starts();
        report.bars = bars::of(report);
        let starts = report.starts.iter();
        let starts: Vec<_> = starts.map(|(start, n)| format!("{n} {start}")).collect();
        let mut lines = vec![format!("\nstarts: {}", starts.join(", "))];
        lines.extend(report.bars.iter().map(|bar| bar.line().to_owned()));
        self.tell(&lines.join("\n"))?;
        let Failures { count, first } = &self.report.failures;
        if let Some(first) = first {
            super::complain(&format!("{count} runs failed, the first of them: {first}"));
        }
        if let Some(target) = target {
            target.write(&self.report)?;
        }
        Ok(match *count {
            _ if self.report.interrupted => INTERRUPTED,
            0 => 0,
            _ => SOME_FAILED,
        })
    }
}

impl Report {
    fn new(arguments: &Arguments, host: Fingerprint) -> Self {
        Self {
            host,
            settings: Settings {
                pace: Pace {
                    jobs: arguments.jobs,
                    rate: arguments.rate,
                    clients: arguments.clients,
                },
                duration_s: arguments.duration.as_secs_f64(),
                mode: arguments.mode,
                image: arguments.image.clone(),
                code: arguments.code.clone(),
                compare: arguments.compare,
            },
            starts: BTreeMap::new(),
            paced: None,
            comparison: None,
            saturated: None,
            left_out: Vec::new(),
            failures: Failures::default(),
            bars: Vec::new(),
            interrupted: false,
        }
    }

    fn count_starts(&self) -> BTreeMap<&'static str, u64> {
        let paced = self.paced.as_ref().map(|paced| &paced.measured_ms);
        let compared = self.comparison.as_ref().and_then(Comparison::starts);
        let saturated = self.saturated.as_ref().and_then(Saturated::ours);
        let saturated = saturated.map(|ours| &ours.latency_ms);
        let mut counts = BTreeMap::new();
        for times in [paced, compared, saturated].into_iter().flatten() {
            for (start, latencies) in &times.starts {
                *counts.entry(*start).or_default() += latencies.count();
            }
        }
        counts
    }
}

/// Why not even the first job went as it should.
fn unable(error: &WayError) -> Failure {
    let hint = match error {
        WayError::Client(error) => error.hint().map(str::to_owned),
        WayError::Unsuccessful { .. } => {
            Some("try the program with `tako-vm run --code CODE` first".to_owned())
        }
        _ => None,
    };
    let failure = match error {
        WayError::Client(client::Error::Job(_)) | WayError::Unsuccessful { .. } => {
            Failure::usage(error)
        }
        _ => Failure::ours(error),
    };
    Failure {
        line: super::output::visible(&failure.line),
        hint,
        ..failure
    }
}

fn progress(what: &str) {
    super::say("measuring", what);
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn parse(arguments: &[&str]) -> Result<Arguments, String> {
        let all = [&["bench"], arguments].concat();
        let parsed = Command::try_parse_from(all);
        parsed
            .map(|command| command.arguments)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_run_without_options_is_small() {
        let arguments = parse(&[]).unwrap();
        assert_eq!((arguments.jobs.get(), arguments.clients.get()), (30, 4));
        assert_eq!(arguments.mode, Mode::All);
        let paced = f64::from(arguments.jobs.get()) / arguments.rate;
        assert!(paced + arguments.duration.as_secs_f64() <= 30.0);
        assert!(!arguments.compare && arguments.json.is_none());
    }

    #[test]
    fn what_is_out_of_range_is_refused_with_the_range() {
        for (option, value, range) in [
            ("--jobs", "0", "from 1 to 1000000"),
            ("--jobs", "1000001", "from 1 to 1000000"),
            ("--jobs", "x", "from 1 to 1000000"),
            ("--clients", "1001", "from 1 to 1000"),
            ("--rate", "0", "from 0.01 to 10000"),
            ("--rate", "inf", "from 0.01 to 10000"),
            ("--rate", "NaN", "from 0.01 to 10000"),
            ("--duration", "0", "from 0.1 to 86400"),
            ("--duration=-1", "", "from 0.1 to 86400"),
            ("--mode", "slow", "paced, saturated, all"),
        ] {
            let arguments: Vec<&str> = [option, value]
                .into_iter()
                .filter(|argument| !argument.is_empty())
                .collect();
            let error = parse(&arguments).unwrap_err();
            assert!(error.contains(range), "{error}");
        }
        let given = [
            "--jobs", "3", "--rate", "0.5", "--mode", "paced", "-c", "pass",
        ];
        let arguments = parse(&given).unwrap();
        assert_eq!(arguments.mode, Mode::Paced);
        assert_eq!(arguments.code, "pass");
    }
}
