//! Cold starts: `print(1 + 1)` by every way that there is to run it, one after the other.

use crate::Subject;
use crate::figures::{HEADS, Samples};
use anyhow::{Context, bail, ensure};
use serde::Serialize;
use serde_json::Value;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tako_vm::job::{JobRequest, JobSpec, Maxima, Outcome};
use tako_vm::runsc::Runsc;
use tako_vm::sandbox::{Order, Sandboxes};
use tako_vm::sys::process;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

const PROGRAM: &str = "print(1 + 1)";
const OUTPUT: &str = "2\n";

/// Rounds at the beginning that only fill the caches.
const UNCOUNTED: usize = 2;

/// What our median may take more than that of plain runsc.
const BAR_MS: f64 = 30.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// `tako-vm run`, from the start of the process to its end.
    Command,
    /// [`Sandboxes::run`] in this process.
    Library,
    /// `runsc run` with its default flags on a directory root.
    Plain,
    /// The interpreter of this host.
    Native,
}

const WAYS: [Way; 4] = [Way::Command, Way::Library, Way::Plain, Way::Native];

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Command => "tako-vm run",
            Self::Library => "tako-vm, library",
            Self::Plain => "plain runsc run",
            Self::Native => "native python3",
        }
    }
}

/// Where the time of the library's runs goes, in milliseconds; the parts add up to the whole.
#[derive(Debug, Default, Serialize)]
struct Parts {
    sandbox: Samples,
    startup: Samples,
    execution: Samples,
    kill: Samples,
    rest: Samples,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Cold {
    command_ms: Samples,
    library_ms: Samples,
    plain_runsc_ms: Samples,
    native_ms: Samples,
    parts: Parts,
    memory_mib: Samples,
}

/// Runs every way once in each of `rounds` rounds, another one first each time.
pub(crate) async fn measure(
    subject: &Subject,
    tree: Option<&Path>,
    rounds: usize,
) -> anyhow::Result<Cold> {
    let bench = Bench::prepare(subject, tree)?;
    let mut cold = Cold::default();
    for round in 0..UNCOUNTED + rounds {
        if round == UNCOUNTED {
            cold = Cold::default();
        }
        for offset in 0..WAYS.len() {
            let way = WAYS[(round + offset) % WAYS.len()];
            bench
                .run(way, round, &mut cold)
                .await
                .with_context(|| way.name())?;
        }
        if round % 20 == 19 {
            eprintln!("cold starts: round {} of {}", round + 1, UNCOUNTED + rounds);
        }
    }
    Ok(cold)
}

struct Bench<'a> {
    subject: &'a Subject,
    sandboxes: Sandboxes,
    job: JobSpec,
    scratch: TempDir,
}

impl<'a> Bench<'a> {
    fn prepare(subject: &'a Subject, tree: Option<&Path>) -> anyhow::Result<Self> {
        let scratch = tempfile::tempdir()?;
        let tree = match tree {
            Some(tree) => tree.canonicalize()?,
            None => find_tree(subject, scratch.path())?,
        };
        write_plain_bundle(subject, &tree, &scratch.path().join("bundle"))?;
        let request = JobRequest {
            code: PROGRAM.to_owned(),
            ..JobRequest::default()
        };
        Ok(Self {
            subject,
            sandboxes: Sandboxes::prepare(&subject.state_dir, Runsc::new(&subject.runsc))?,
            job: JobSpec::check(request, &Maxima::default())?,
            scratch,
        })
    }

    async fn run(&self, way: Way, round: usize, cold: &mut Cold) -> anyhow::Result<()> {
        match way {
            Way::Command => cold.command_ms.push_time(self.command()?),
            Way::Library => self.library(cold).await?,
            Way::Plain => cold.plain_runsc_ms.push_time(self.plain(round)?),
            Way::Native => cold.native_ms.push_time(native()?),
        }
        Ok(())
    }

    fn command(&self) -> anyhow::Result<Duration> {
        let mut command = process::program(&self.subject.tako_vm);
        command.arg("--state-dir").arg(&self.subject.state_dir);
        timed(command.args(["run", "-c", PROGRAM]))
    }

    fn plain(&self, round: usize) -> anyhow::Result<Duration> {
        let mut command = process::program(&self.subject.runsc);
        command
            .arg("--root")
            .arg(self.scratch.path().join("runsc"))
            .args(["--network=none", "run", "--bundle"])
            .arg(self.scratch.path().join("bundle"));
        timed(command.arg(format!("plain-{round}")))
    }

    async fn library(&self, cold: &mut Cold) -> anyhow::Result<()> {
        let spool = tempfile::tempdir_in(self.scratch.path())?;
        let order = Order {
            image: &self.subject.image,
            job: &self.job,
            spool: spool.path(),
            events: None,
            cancel: CancellationToken::new(),
        };
        let begun = Instant::now();
        let outcome = self.sandboxes.run(order).await?;
        let took = begun.elapsed();
        ensure!(
            outcome.stdout.bytes == OUTPUT.as_bytes(),
            "it ended otherwise: {:?}",
            outcome.termination
        );
        cold.library_ms.push_time(took);
        cold.memory_mib.push(outcome.usage.max_rss_mb);
        cold.parts.add(&outcome, took)
    }
}

impl Parts {
    fn add(&mut self, outcome: &Outcome, took: Duration) -> anyhow::Result<()> {
        let timing = outcome.timing;
        let (Some(startup_ms), Some(execution_ms)) = (timing.startup_ms, timing.execution_ms)
        else {
            bail!("it did not say how long it ran");
        };
        let known = timing.sandbox_ms + startup_ms + execution_ms;
        let rest = took.saturating_sub(Duration::from_millis(known) + outcome.kill_time);
        self.sandbox
            .push_time(Duration::from_millis(timing.sandbox_ms));
        self.startup.push_time(Duration::from_millis(startup_ms));
        self.execution
            .push_time(Duration::from_millis(execution_ms));
        self.kill.push_time(outcome.kill_time);
        self.rest.push_time(rest);
        Ok(())
    }
}

fn native() -> anyhow::Result<Duration> {
    timed(process::program("/usr/bin/python3").args(["-c", PROGRAM]))
}

/// Runs a command to its end, and takes no other answer than the right one.
fn timed(command: &mut std::process::Command) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let printed = process::run(command)?;
    let took = begun.elapsed();
    ensure!(
        printed.stdout == OUTPUT,
        "it printed {:?} {:?}",
        printed.stdout,
        printed.stderr
    );
    Ok(took)
}

/// The image's files as a directory: the one that `tako-vm setup` keeps, else extracted.
fn find_tree(subject: &Subject, scratch: &Path) -> anyhow::Result<PathBuf> {
    let kept = fs::read_dir(subject.state_dir.join("trees")).into_iter();
    let kept = kept
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|tree| tree.join("usr/bin/python3").exists());
    if let Some(tree) = kept {
        return Ok(tree);
    }
    eprintln!("cold starts: extracting the image for plain runsc");
    let tree = scratch.join("tree");
    let extract = format!("--extract={}", tree.display());
    process::run(
        process::program("fsck.erofs")
            .arg(extract)
            .arg(&subject.image),
    )
    .context("no tree for plain runsc: give `--tree`, or install `erofs-utils`")?;
    Ok(tree)
}

/// The bundle that `runsc spec` writes, for an unprivileged user and our tree.
fn write_plain_bundle(subject: &Subject, tree: &Path, bundle: &Path) -> anyhow::Result<()> {
    fs::create_dir(bundle)?;
    let mut command = process::program(&subject.runsc);
    command.args(["spec", "--bundle"]).arg(bundle);
    process::run(command.args(["--", "python3", "-c", PROGRAM]))?;
    let file = bundle.join("config.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&file)?)?;
    spec["process"]["user"] = serde_json::json!({ "uid": 1000, "gid": 1000 });
    spec["root"]["path"] = tree.to_str().context("a path that is not UTF-8")?.into();
    fs::write(&file, serde_json::to_vec(&spec)?)?;
    Ok(())
}

impl fmt::Display for Cold {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{:<20} {HEADS}  (ms)", "cold start")?;
        for way in WAYS {
            let figures = self.samples(way).figures();
            writeln!(formatter, "{:<20} {figures}", way.name())?;
        }
        let parts = &self.parts;
        writeln!(
            formatter,
            "of which, in medians: sandbox {:.0}, interpreter {:.0}, program {:.0}, kill {:.1}, \
             collection and removal {:.1} ms; memory of a sandbox {:.1} MiB",
            parts.sandbox.median(),
            parts.startup.median(),
            parts.execution.median(),
            parts.kill.median(),
            parts.rest.median(),
            self.memory_mib.median()
        )?;
        let median = |way| self.samples(way).median();
        let plain = median(Way::Plain);
        for way in [Way::Command, Way::Library] {
            writeln!(
                formatter,
                "{} / {}: {:.2}",
                way.name(),
                Way::Plain.name(),
                median(way) / plain
            )?;
        }
        let ours = median(Way::Command);
        let difference = ours - plain;
        write!(
            formatter,
            "cold: median ours {ours:.1} ms, plain runsc {plain:.1} ms, difference \
             {difference:+.1} ms (bar: +{BAR_MS:.0} ms: {})",
            if difference <= BAR_MS {
                "met"
            } else {
                "MISSED"
            }
        )
    }
}

impl Cold {
    fn samples(&self, way: Way) -> &Samples {
        match way {
            Way::Command => &self.command_ms,
            Way::Library => &self.library_ms,
            Way::Plain => &self.plain_runsc_ms,
            Way::Native => &self.native_ms,
        }
    }
}
