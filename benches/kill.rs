//! Kills: from the decision that a sandbox must die until nothing of it is left: `make bench`, or
//! `cargo bench --bench kill -- --help`.
//!
//! The program is alive and does what it likes until that moment: the running job is let go of, and
//! then it is killed from outside, without a word to the guest. (A cancel or a time limit would ask
//! init first, which kills the program from inside and leaves next to nothing to the host.) What is
//! measured is a little more than the promise, which ends with the empty `cgroup.procs`: the removal
//! of the cgroup and of the sandbox's directory come on top.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for people at a terminal"
)]

use anyhow::{Context, bail, ensure};
use clap::Parser;
use serde::Serialize;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tako_vm::cli::bench::{Fingerprint, HEADS, Latencies};
use tako_vm::config;
use tako_vm::image::Images;
use tako_vm::job::{JobRequest, JobSpec, Maxima};
use tako_vm::runsc::{Runsc, provision};
use tako_vm::sandbox::{Event, Order, Sandboxes};
use tako_vm::sys::cgroup;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Measure how long sandboxes take to die
#[derive(Debug, Parser)]
struct Arguments {
    /// Sandboxes to kill
    #[arg(long, default_value_t = 1000)]
    kills: usize,
    /// Also write everything that was measured as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where images, runsc and sandboxes lie
    #[arg(long, value_name = "DIR", env = config::STATE_DIR_VARIABLE, default_value = config::DEFAULT_STATE_DIR)]
    state_dir: PathBuf,
    /// What `cargo bench` says to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is killed.
struct Subject {
    runsc: PathBuf,
    /// The EROFS file of the executor image.
    image: PathBuf,
}

#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    tokio::select! {
        measured = report(&arguments) => measured,
        // Sandboxes die with the jobs that are let go of here.
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
    }
}

async fn report(arguments: &Arguments) -> anyhow::Result<()> {
    let state_dir = arguments
        .state_dir
        .canonicalize()
        .with_context(|| format!("no state directory `{}`", arguments.state_dir.display()))?;
    let subject = Subject {
        runsc: provision::installed(&state_dir)?.binary,
        image: Images::at(&state_dir).find(config::DEFAULT_IMAGE)?.path,
    };
    let host = Fingerprint::read(&state_dir, config::DEFAULT_IMAGE)?;
    println!("{host}");
    let kill = measure(&subject, arguments.kills).await?;
    println!("\n{kill}");
    if let Some(file) = &arguments.json {
        let report = serde_json::json!({ "host": host, "kill": kill });
        fs::write(file, serde_json::to_vec_pretty(&report)?)
            .with_context(|| format!("cannot write `{}`", file.display()))?;
    }
    Ok(())
}

/// What a program prints once it does what it is there for.
const UP: &str = "up\n";

/// Sandboxes at a time.
const LANES: usize = 2;

/// Time to die in, at the 99th percentile.
const BAR_MS: f64 = 250.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Idle,
    Spinners,
    Ignoring,
}

const KINDS: [Kind; 3] = [Kind::Idle, Kind::Spinners, Kind::Ignoring];

impl Kind {
    /// One of twenty spins, one of twenty ignores: idle ones are cheap, and a thousand is many.
    fn of(index: usize) -> Self {
        match index % 20 {
            9 => Self::Spinners,
            19 => Self::Ignoring,
            _ => Self::Idle,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle sleeper",
            Self::Spinners => "40 spinners",
            Self::Ignoring => "all signals ignored",
        }
    }

    fn program(self) -> &'static str {
        match self {
            Self::Idle => "import time\nprint('up')\ntime.sleep(600)\n",
            Self::Spinners => {
                "import os\nfor _ in range(40):\n    if os.fork() == 0:\n        while True: pass\n\
                 print('up')\nos.wait()\n"
            }
            Self::Ignoring => {
                "import signal\nfor number in signal.valid_signals():\n    \
                 if number not in (signal.SIGKILL, signal.SIGSTOP):\n        \
                 signal.signal(number, signal.SIG_IGN)\nprint('up')\nwhile True: pass\n"
            }
        }
    }
}

#[derive(Debug, Default, Serialize)]
struct Kill {
    idle: Killed,
    spinners: Killed,
    ignoring: Killed,
}

/// Sandboxes of one kind.
#[derive(Debug, Default, Serialize)]
struct Killed {
    took_ms: Latencies,
    /// On the host, the sandbox's own included, just before.
    processes: Vec<usize>,
}

/// Kills `count` sandboxes, two at a time.
async fn measure(subject: &Subject, count: usize) -> anyhow::Result<Kill> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut lanes = Vec::new();
    for _ in 0..LANES {
        let lane = Lane::prepare(subject)?;
        lanes.push(tokio::spawn(lane.run(Arc::clone(&next), count)));
    }
    let mut all = Kill::default();
    for lane in lanes {
        let kill = lane.await??;
        for kind in KINDS {
            let (sum, part) = (all.of_mut(kind), kill.of(kind));
            sum.took_ms.add(&part.took_ms);
            sum.processes.extend(&part.processes);
        }
    }
    Ok(all)
}

/// One sandbox after the other, in a state directory of its own: so its only sandbox is known.
struct Lane {
    state_dir: TempDir,
    sandboxes: Sandboxes,
    image: PathBuf,
    mounts: Vec<PathBuf>,
}

impl Lane {
    fn prepare(subject: &Subject) -> anyhow::Result<Self> {
        let state_dir = tempfile::tempdir()?;
        let sandboxes = Sandboxes::prepare(state_dir.path(), Runsc::new(&subject.runsc))?;
        Ok(Self {
            state_dir,
            sandboxes,
            image: subject.image.clone(),
            mounts: cgroup::mounted()?.into_iter().map(|one| one.path).collect(),
        })
    }

    async fn run(self, next: Arc<AtomicUsize>, count: usize) -> anyhow::Result<Kill> {
        let mut kill = Kill::default();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return Ok(kill);
            }
            let kind = Kind::of(index);
            self.kill_one(kind, kill.of_mut(kind))
                .await
                .with_context(|| format!("kill {index} ({})", kind.name()))?;
            if index % 100 == 99 {
                eprintln!("kills: {} of {count}", index + 1);
            }
        }
    }

    async fn kill_one(&self, kind: Kind, killed: &mut Killed) -> anyhow::Result<()> {
        let request = JobRequest {
            code: kind.program().to_owned(),
            timeout: Some(Duration::from_mins(1)),
            ..JobRequest::default()
        };
        let job = JobSpec::check(request, &Maxima::default())?;
        let spool = self.sandboxes.spool();
        let (events, mut output) = mpsc::channel(16);
        let order = Order {
            image: &self.image,
            job: &job,
            spool: &spool,
            events: Some(events),
            begin: None,
            cancel: CancellationToken::new(),
        };
        let mut running = Box::pin(self.sandboxes.run(order));
        tokio::select! {
            ended = &mut running => bail!("it ended by itself: {:?}", ended?.termination),
            up = until_up(&mut output) => up?,
        }
        let leaves = self.leaves()?;
        killed.processes.push(processes(&leaves));
        let begun = Instant::now();
        drop(running);
        killed.took_ms.record(begun.elapsed());
        // A cgroup that could be removed was empty.
        let left = leaves.iter().find(|leaf| leaf.exists());
        ensure!(left.is_none(), "it is left: {left:?}");
        ensure!(self.ids()?.is_empty(), "its directory is left");
        Ok(())
    }

    /// The cgroup of the running sandbox in every hierarchy.
    fn leaves(&self) -> anyhow::Result<Vec<PathBuf>> {
        let ids = self.ids()?;
        let [id] = ids.as_slice() else {
            bail!("there is not one sandbox: {ids:?}");
        };
        let leaf = |mount: &PathBuf| mount.join(cgroup::PARENT).join(id);
        let leaves: Vec<_> = self.mounts.iter().map(leaf).collect();
        ensure!(leaves.iter().all(|leaf| leaf.exists()), "it has no cgroup");
        Ok(leaves)
    }

    fn ids(&self) -> anyhow::Result<Vec<String>> {
        let entries = fs::read_dir(self.state_dir.path().join("sandboxes"))?;
        entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }
}

/// An unbuffered `print` writes its line in two pieces.
async fn until_up(output: &mut mpsc::Receiver<Event>) -> anyhow::Result<()> {
    let mut said = Vec::new();
    while said != UP.as_bytes() {
        match output.recv().await {
            Some(Event::Stdout(bytes)) if said.len() < UP.len() => said.extend(bytes),
            other => bail!("it said something else: {other:?}"),
        }
    }
    Ok(())
}

fn processes(leaves: &[PathBuf]) -> usize {
    let count = |leaf: &Path| {
        let procs = fs::read_to_string(leaf.join("cgroup.procs"));
        procs.map_or(0, |text| text.lines().count())
    };
    leaves.iter().map(|leaf| count(leaf)).max().unwrap_or(0)
}

impl Killed {
    fn median_processes(&self) -> usize {
        let mut sorted = self.processes.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied().unwrap_or(0)
    }
}

impl Kill {
    fn of(&self, kind: Kind) -> &Killed {
        match kind {
            Kind::Idle => &self.idle,
            Kind::Spinners => &self.spinners,
            Kind::Ignoring => &self.ignoring,
        }
    }

    fn of_mut(&mut self, kind: Kind) -> &mut Killed {
        match kind {
            Kind::Idle => &mut self.idle,
            Kind::Spinners => &mut self.spinners,
            Kind::Ignoring => &mut self.ignoring,
        }
    }
}

impl fmt::Display for Kill {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{:<20} {HEADS}  (ms)  processes", "kill")?;
        let mut all = Latencies::new();
        for kind in KINDS {
            let killed = self.of(kind);
            all.add(&killed.took_ms);
            writeln!(
                formatter,
                "{:<20} {}       {:>8}",
                kind.name(),
                killed.took_ms.figures(),
                killed.median_processes()
            )?;
        }
        let figures = all.figures();
        writeln!(formatter, "{:<20} {figures}", "all")?;
        write!(
            formatter,
            "kill: p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms (bar: p99 at most {BAR_MS:.0} ms: {})",
            figures.median,
            figures.p99,
            figures.max,
            if figures.p99 <= BAR_MS {
                "met"
            } else {
                "MISSED"
            }
        )
    }
}
