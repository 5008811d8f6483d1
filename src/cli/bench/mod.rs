//! `tako-vm bench`: how long programs take on this host, and against other ways to run them.
//!
//! It uses the library as its users do, and measures what they wait for: from the call until the end of
//! the program is known and nothing is left of its sandbox.

mod bars;
mod comparison;
mod density;
mod fingerprint;
mod latencies;
mod paced;
mod saturated;
mod service;
mod starts;
mod subject;
mod tools;
mod ways;

pub use fingerprint::Fingerprint;
pub use latencies::{Figures, HEADS, Latencies};

use super::{Failure, INTERRUPTED, run};
use crate::client;
use crate::config::{self, Config, SecurityMode};
use crate::supervisor::connection;
use bars::Bar;
use comparison::Comparison;
use density::{Crowd, Density};
use paced::{Pace, Paced};
use saturated::Saturated;
use serde::Serialize;
use serde_yaml_ng::{Mapping, Value};
use service::Service;
use starts::{AfterPause, Pair, SideBySide};
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
/// same rate, for as many rounds as there are jobs, 60 at most; cold, restored and warm starts side
/// by side, and starts after a pause in which all have been frozen; and the saturated load against
/// plain runsc.
///
/// The jobs go to the supervisor that is named, or else to the one at the default socket unless a state
/// directory or a configuration is named, or else to one that is started for it and ended after it.
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
    /// Also keep so many sandboxes ready at once, and measure what they use
    #[arg(long, value_name = "N", value_parser = sandboxes)]
    density: Option<NonZero<u32>>,
    /// The socket of the supervisor that is measured [env: `TAKO_VM_SUPERVISOR_SOCKET`]
    #[arg(long, value_name = "SOCKET")]
    supervisor: Option<PathBuf>,
    /// Without a supervisor: every sandbox starts cold
    #[arg(long, conflicts_with_all = ["supervisor", "density"])]
    in_process: bool,
    /// Also write everything that was measured as JSON; `-` for standard output, and nothing else there
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The program that is run unless another is given.
const PROGRAM: &str = "print(1 + 1)";

/// Rounds of the comparison: more tell little more, and every round takes seconds.
const MAX_ROUNDS: u32 = 60;

/// Rounds of starts side by side, of either image, and jobs after a pause: each takes seconds.
const MAX_STARTS: u32 = 20;
const MAX_IMPORTS: u32 = 10;

/// Sandboxes at once when their density is measured and no number is given.
const CROWD: NonZero<u32> = NonZero::new(100).unwrap();

/// What so many ready sandboxes may use together is promised for [`CROWD`].
const CROWD_BYTES: u64 = 4 << 30;

/// The image with packages that take long to import, and a program that does so.
const IMPORTS: (&str, &str) = ("data", "import numpy, pandas");

/// The exit status when a job failed.
const SOME_FAILED: u8 = 1;

/// Which load is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Mode {
    /// A constant rate, and with `--compare` all ways one at a time
    Paced,
    /// Cold, restored and warm starts side by side, and after a pause
    Starts,
    /// As many jobs as the host can do
    Saturated,
    /// Many ready sandboxes at once
    Density,
    /// Paced and saturated, the others with `--compare` and `--density`
    All,
}

fn sandboxes(text: &str) -> Result<NonZero<u32>, String> {
    count(text, 1000)
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
    side_by_side: Vec<SideBySide>,
    after_pause: Option<AfterPause>,
    density: Option<Density>,
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
    /// Whose: `own`, started for this, `running` before, or `none`.
    supervisor: &'static str,
}

/// Who has the sandboxes that are measured.
#[derive(Debug)]
enum Host {
    InProcess,
    Running(PathBuf),
    Own(Service),
}

impl Host {
    fn name(&self) -> &'static str {
        match self {
            Self::InProcess => "none",
            Self::Running(_) => "running",
            Self::Own(_) => "own",
        }
    }

    fn socket(&self) -> Option<PathBuf> {
        match self {
            Self::InProcess => None,
            Self::Running(socket) => Some(socket.clone()),
            Self::Own(service) => Some(service.socket()),
        }
    }

    fn find(arguments: &Arguments, place: &Place<'_>, elsewhere: bool) -> Result<Self, Failure> {
        if arguments.in_process {
            return Ok(Self::InProcess);
        }
        let named = arguments.supervisor.clone().or_else(config::named_socket);
        if let Some(socket) = named {
            return Ok(Self::Running(socket));
        }
        let default = Path::new(config::DEFAULT_SOCKET);
        if !elsewhere && connection::connect(default).is_ok() {
            return Ok(Self::Running(default.to_owned()));
        }
        let config = Config::load(place.config).map_err(|error| Failure::ours(&error))?;
        // Containers are not kept ready.
        if config.security_mode != SecurityMode::Strict {
            return Ok(Self::InProcess);
        }
        // A sandbox holds its place until it is cleared away, which is after its answer.
        let places = arguments.clients.get().saturating_mul(2);
        let keys = [
            (
                "supervisor",
                "max_jobs",
                config.supervisor.max_jobs.max(places),
            ),
            (
                "supervisor",
                "max_jobs_per_user",
                config.supervisor.max_jobs_per_user.max(places),
            ),
        ];
        let keys = keys.map(|(section, key, value)| (section, key, value.into()));
        start(place, &keys).map(Self::Own)
    }
}

fn start(place: &Place<'_>, keys: &service::Keys<'_>) -> Result<Service, Failure> {
    Service::start(place, keys).map_err(|error| Failure::ours(&error))
}

/// Measures, tells it as it comes, and returns the exit status.
pub(super) async fn run(
    arguments: &Arguments,
    state_dir: Option<PathBuf>,
    file: Option<&Path>,
) -> Result<u8, Failure> {
    super::require_root("bench")?;
    // Before minutes are spent: it may not be possible.
    let target = arguments.json.as_deref().map(Target::open).transpose()?;
    let elsewhere = state_dir.is_some() || file.is_some();
    let state_dir = super::absolute(state_dir)?;
    let host = Fingerprint::read(&state_dir, &arguments.image)
        .map_err(|error| Failure::io("cannot read what this host is", &error))?;
    let cancel =
        run::cancel_on_signals().map_err(|error| Failure::io("cannot watch signals", &error))?;
    let place = Place {
        state_dir: &state_dir,
        config: file,
        image: &arguments.image,
        socket: None,
    };
    let served = Host::find(arguments, &place, elsewhere)?;
    let socket = served.socket();
    let place = Place {
        socket: socket.as_deref(),
        ..place
    };
    let mut bench = Bench {
        report: Report::new(arguments, host, served.name()),
        arguments,
        place,
        cancel,
        quiet: matches!(target, Some(Target::Stdout)),
    };
    bench.measure().await?;
    // It is not to be there any more when all is told.
    drop(served);
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
    place: Place<'a>,
    report: Report,
    cancel: CancellationToken,
    quiet: bool,
}

impl Bench<'_> {
    async fn measure(&mut self) -> Result<(), Failure> {
        self.tell(&self.report.host)?;
        self.tell(&format!("supervisor: {}", self.report.settings.supervisor))?;
        let subject = self.subject(&self.place)?;
        // What cannot run at all is told at once, and not as a failure of every job.
        subject.run(&self.cancel).await.map_err(|e| unable(&e))?;
        let contest = self.contest(subject.clone()).await?;
        contest.settle(&self.cancel).await;
        let Arguments { mode, compare, .. } = *self.arguments;
        let all = mode == Mode::All;
        if (all || mode == Mode::Paced) && self.goes_on() {
            self.measure_paced(&subject).await?;
        }
        if (all || mode == Mode::Paced) && compare && self.goes_on() {
            self.compare(&contest).await?;
        }
        let supervised = self.place.socket.is_some();
        if (mode == Mode::Starts || (all && compare && supervised)) && self.goes_on() {
            self.starts().await?;
        }
        if (all || mode == Mode::Saturated) && self.goes_on() {
            self.saturate(&contest).await?;
        }
        let crowd = self.arguments.density;
        if (mode == Mode::Density || (all && crowd.is_some())) && self.goes_on() {
            self.crowd(crowd.unwrap_or(CROWD)).await?;
        }
        Ok(())
    }

    fn subject(&self, place: &Place<'_>) -> Result<Subject, Failure> {
        Ok(Subject {
            sandbox: place.sandbox().map_err(|error| Failure::library(&error))?,
            code: self.arguments.code.clone(),
        })
    }

    fn goes_on(&self) -> bool {
        !self.cancel.is_cancelled()
    }

    async fn contest(&mut self, subject: Subject) -> Result<Contest, Failure> {
        let place = &self.place;
        if !self.arguments.compare {
            return Ok(Contest::alone(subject, place));
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

    /// Supervisors of our own, since they have to be configured for it.
    async fn starts(&mut self) -> Result<(), Failure> {
        let images = [
            (self.place.image, self.arguments.code.as_str(), MAX_STARTS),
            (IMPORTS.0, IMPORTS.1, MAX_IMPORTS),
        ];
        for (image, code, rounds) in images {
            let rounds = rounds.min(self.arguments.jobs.get());
            if !self.goes_on() {
                return Ok(());
            }
            progress(&format!("side by side: image {image}, {rounds} rounds"));
            // Without the other image all else can be measured.
            if let Err(failure) = self.side_by_side(image, code, rounds).await {
                if image == self.place.image {
                    return Err(failure);
                }
                super::warn(&format!(
                    "the image `{image}` is left out: {}",
                    failure.line
                ));
            }
        }
        if self.goes_on() {
            self.after_pause().await?;
        }
        Ok(())
    }

    async fn side_by_side(&mut self, image: &str, code: &str, rounds: u32) -> Result<(), Failure> {
        let place = Place {
            image,
            socket: None,
            ..self.place
        };
        let library = |error: client::Error| Failure::library(&error);
        let cold = place.in_process().map_err(library)?;
        let one = 1_u32;
        let keys = [
            ("pool", "minimum", one.into()),
            ("pool", "maximum", one.into()),
            ("pool", "profiles", profile(image)),
        ];
        let service = start(&place, &keys)?;
        let socket = service.socket();
        let pooled = Place {
            socket: Some(&socket),
            ..place
        };
        let subject = |sandbox| Subject {
            sandbox,
            code: code.to_owned(),
        };
        let pair = Pair {
            pooled: subject(pooled.sandbox().map_err(library)?),
            cold: subject(cold),
            image,
            socket: &socket,
        };
        let failures = &mut self.report.failures;
        let measured = starts::side_by_side(&pair, rounds, &self.cancel, failures).await;
        self.tell(&format!("\n{measured}"))?;
        self.report.side_by_side.push(measured);
        Ok(())
    }

    async fn after_pause(&mut self) -> Result<(), Failure> {
        let jobs = self.arguments.jobs.get().min(MAX_STARTS);
        progress(&format!("after a pause: {jobs} jobs"));
        let keys = [
            (
                "pool",
                "frozen_after_seconds",
                starts::FROZEN_AFTER_S.into(),
            ),
            ("pool", "profiles", profile(self.place.image)),
        ];
        let service = start(&self.place, &keys)?;
        let socket = service.socket();
        let subject = self.subject(&Place {
            socket: Some(&socket),
            ..self.place
        })?;
        let failures = &mut self.report.failures;
        let measured = starts::after_pause(&subject, &socket, jobs, &self.cancel, failures).await;
        self.tell(&format!("\n{measured}"))?;
        self.report.after_pause = Some(measured);
        Ok(())
    }

    async fn crowd(&mut self, sandboxes: NonZero<u32>) -> Result<(), Failure> {
        progress(&format!("many at once: {sandboxes} ready sandboxes"));
        let bytes = (CROWD_BYTES / u64::from(CROWD.get())) * u64::from(sandboxes.get());
        let keys = [
            ("pool", "minimum", sandboxes.get().into()),
            ("pool", "maximum", sandboxes.get().into()),
            ("pool", "memory", bytes.max(CROWD_BYTES).to_string().into()),
            (
                "pool",
                "frozen_after_seconds",
                starts::FROZEN_AFTER_S.into(),
            ),
            ("pool", "profiles", profile(self.place.image)),
        ];
        let service = start(&self.place, &keys)?;
        let socket = service.socket();
        let subject = self.subject(&Place {
            socket: Some(&socket),
            ..self.place
        })?;
        let crowd = Crowd {
            sandboxes,
            clients: self.arguments.clients,
            watch: self.arguments.duration,
        };
        let failures = &mut self.report.failures;
        let measured = density::measure(&service, &subject, crowd, &self.cancel, failures).await;
        let measured = measured.map_err(|error| Failure::ours(&error))?;
        self.tell(&format!("\n{measured}"))?;
        self.report.density = Some(measured);
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
    fn new(arguments: &Arguments, host: Fingerprint, supervisor: &'static str) -> Self {
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
                supervisor,
            },
            starts: BTreeMap::new(),
            paced: None,
            comparison: None,
            side_by_side: Vec::new(),
            after_pause: None,
            density: None,
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
        let paused = self.after_pause.as_ref().map(|all| &all.latency_ms);
        let many = self.density.as_ref().map(|all| &all.latency_ms);
        let several = self.side_by_side.iter().map(|all| &all.latency_ms);
        let single = [paced, compared, saturated, paused, many];
        let mut counts = BTreeMap::new();
        for times in single.into_iter().flatten().chain(several) {
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

/// The value of `pool.profiles` for an image with the default limits.
fn profile(image: &str) -> Value {
    let entry = Mapping::from_iter([("image".into(), image.into())]);
    Value::Sequence(vec![Value::Mapping(entry)])
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
            ("--mode", "slow", "paced, starts, saturated, density, all"),
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
