//! Kills: from the decision that a sandbox must die until nothing of it is left.
//!
//! The program is alive and does what it likes until that moment: the running job is let go of, and
//! then it is killed from outside, without a word to the guest. (A cancel or a time limit would ask
//! init first, which kills the program from inside and leaves next to nothing to the host.) What is
//! measured is a little more than the promise, which ends with the empty `cgroup.procs`: the removal
//! of the cgroup and of the sandbox's directory come on top.

use crate::figures::{HEADS, Samples};
use crate::{Subject, host};
use anyhow::{Context, bail, ensure};
use serde::Serialize;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tako_vm::job::{JobRequest, JobSpec, Maxima};
use tako_vm::runsc::Runsc;
use tako_vm::sandbox::{Event, Order, Sandboxes};
use tako_vm::sys::cgroup;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

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
pub(crate) struct Kill {
    idle: Killed,
    spinners: Killed,
    ignoring: Killed,
}

/// Sandboxes of one kind.
#[derive(Debug, Default, Serialize)]
struct Killed {
    took_ms: Samples,
    /// On the host, the sandbox's own included, just before.
    processes: Samples,
}

/// Kills `count` sandboxes, two at a time.
pub(crate) async fn measure(subject: &Subject, count: usize) -> anyhow::Result<Kill> {
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
            sum.took_ms.extend(&part.took_ms);
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
            mounts: host::cgroup_mounts()?,
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
        let spool = tempfile::tempdir()?;
        let (events, mut output) = mpsc::channel(16);
        let order = Order {
            image: &self.image,
            job: &job,
            spool: spool.path(),
            events: Some(events),
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
        killed.took_ms.push_time(begun.elapsed());
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

#[expect(clippy::cast_precision_loss, reason = "a hundred processes")]
fn processes(leaves: &[PathBuf]) -> f64 {
    let count = |leaf: &Path| {
        let procs = fs::read_to_string(leaf.join("cgroup.procs"));
        procs.map_or(0, |text| text.lines().count())
    };
    leaves.iter().map(|leaf| count(leaf)).max().unwrap_or(0) as f64
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
        let mut all = Samples::default();
        for kind in KINDS {
            let killed = self.of(kind);
            all.extend(&killed.took_ms);
            writeln!(
                formatter,
                "{:<20} {}       {:>8.0}",
                kind.name(),
                killed.took_ms.figures(),
                killed.processes.median()
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
