//! Proof of death: whatever a job and its runsc do, soon after it is to end all of it is dead.

use crate::alone;
use crate::host::{Company, Host, Part, job, on_this_host, runsc_binary, script, signal};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};
use tako_vm::job::{JobSpec, Limits, Phase, Termination};
use tako_vm::sys::cgroup::{Hierarchies, LeafLimits, Urgency};
use tako_vm::sys::process;
use tako_vm::sys::processor::Processors;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::sync::mpsc;

/// From the moment when a job is to be dead until nothing of it is left.
const PROMISE: Duration = Duration::from_secs(1);

/// From a time limit to the moment when the host no longer waits for init.
const BACKSTOP: Duration = Duration::from_secs(3);

/// They begin to spin together, once all are there.
const SPINNERS: &str = "
import os
reading, writing = os.pipe()
for _ in range(39):
    if os.fork() == 0:
        os.close(writing)
        os.read(reading, 1)
        while True: pass
print('up', flush=True)
os.close(writing)
while True: pass
";

const STUBBORN: &str = "
import os, signal
every = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
for number in every:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, every)
os.setsid() if os.fork() == 0 else None
print('up', flush=True)
while True: pass
";

const CALM: &str = "import time; print('up', flush=True); time.sleep(1000)";

/// The real runsc works, but the command that we wait for ends at no signal and at no end.
const HANGING: &str = r#"
trap '' TERM INT HUP
exec 3<&0
"$RUNSC" "$@" <&3 3<&- &
exec 3<&-
while :; do sleep 1000; done
"#;

struct Case {
    name: &'static str,
    job: JobSpec,
    stop: Option<Part>,
    hanging: bool,
}

fn cases() -> [Case; 4] {
    let case = |name, code| Case {
        name,
        job: job(code),
        stop: None,
        hanging: false,
    };
    [
        case("40 spinners", SPINNERS),
        case("every signal ignored and blocked", STUBBORN),
        stopped(),
        Case {
            hanging: true,
            ..case("a runsc that hangs", CALM)
        },
    ]
}

fn stopped() -> Case {
    Case {
        name: "a stopped sentry",
        job: job(CALM),
        stop: Some(Part::Sentry),
        hanging: false,
    }
}

impl Case {
    fn host(&self, directory: &std::path::Path) -> Host {
        if self.hanging {
            Host::with_runsc(&script(directory, HANGING))
        } else {
            Host::with_runsc(&runsc_binary())
        }
    }

    /// Cancels the job once it is up; returns how long its death took from there.
    async fn cancel(&self) -> Duration {
        let directory = tempfile::tempdir().unwrap();
        let host = self.host(directory.path());
        let (sender, mut events) = mpsc::channel(16);
        let company = Company {
            events: Some(sender),
            ..Company::default()
        };
        let cancel = company.cancel.clone();
        let (ran, asked) = tokio::join!(
            async {
                let ran = host.run_with(&self.job, company).await;
                (ran, Instant::now())
            },
            async {
                let sandbox = host.running(&mut events).await;
                if let Some(part) = self.stop {
                    signal(&sandbox.parts(part), Signal::SIGSTOP);
                }
                let asked = Instant::now();
                cancel.cancel();
                asked
            }
        );
        let (ran, gone) = ran;
        let name = self.name;
        assert_eq!(ran.outcome.termination, Termination::Cancelled, "{name}");
        gone - asked
    }

    /// Lets the job run into its time limit; returns how long its death took from the moment when
    /// the host steps in.
    async fn time_out(&mut self) -> Duration {
        let directory = tempfile::tempdir().unwrap();
        let host = self.host(directory.path());
        self.job.limits.execution = on_this_host(Duration::from_secs(3));
        let (sender, mut events) = mpsc::channel(16);
        let company = Company {
            events: Some(sender),
            ..Company::default()
        };
        let (ran, up) = tokio::join!(
            async {
                let ran = host.run_with(&self.job, company).await;
                (ran, Instant::now())
            },
            async {
                let sandbox = host.running(&mut events).await;
                let up = Instant::now();
                if let Some(part) = self.stop {
                    signal(&sandbox.parts(part), Signal::SIGSTOP);
                }
                up
            }
        );
        let (ran, gone) = ran;
        let expected = Termination::TimedOut(Phase::Execution);
        assert_eq!(ran.outcome.termination, expected, "{}", self.name);
        (gone - up).saturating_sub(self.job.limits.execution + BACKSTOP)
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn forty_jobs_that_resist_are_dead_within_a_second_of_a_cancel() {
    let _alone = alone().await;
    let mut worst = Vec::new();
    for case in cases() {
        let mut times = Vec::new();
        for _ in 0..10 {
            times.push(case.cancel().await);
        }
        times.sort();
        println!("{}: {times:?}", case.name);
        worst.push((case.name, times[9]));
    }
    let late: Vec<_> = worst
        .iter()
        .filter(|(_, time)| *time > on_this_host(PROMISE))
        .collect();
    assert!(late.is_empty(), "{late:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_time_limit_holds_against_jobs_that_resist_and_a_guest_that_is_stopped() {
    let _alone = alone().await;
    let all = cases().map(|mut case| {
        tokio::spawn(async move {
            let time = case.time_out().await;
            println!("{}: {time:?} after the backstop", case.name);
            assert!(time < on_this_host(PROMISE), "{}: {time:?}", case.name);
        })
    });
    for one in all {
        one.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_guest_that_is_stopped_is_killed_through_its_cgroup() {
    let _alone = alone().await;
    let time = stopped().time_out().await;
    println!("{time:?} after the backstop");
    assert!(time < on_this_host(PROMISE), "{time:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_runsc_that_never_starts_anything_is_gone_at_once_when_cancelled() {
    let _alone = alone().await;
    let directory = tempfile::tempdir().unwrap();
    let host = Host::with_runsc(&script(
        directory.path(),
        "trap '' TERM; while :; do sleep 9; done",
    ));
    let company = Company::default();
    let cancel = company.cancel.clone();
    let job = job(CALM);
    let (ran, asked) = tokio::join!(
        async { (host.run_with(&job, company).await, Instant::now()) },
        async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            cancel.cancel();
            Instant::now()
        }
    );
    let (ran, gone) = ran;
    assert_eq!(ran.outcome.termination, Termination::Cancelled);
    assert!(gone - asked < on_this_host(PROMISE), "{:?}", gone - asked);
}

/// The first process holds a pipe that the last one waits for. Between them are many, so that whoever
/// kills one after the other leaves the last one time to see the first one die, and to move.
const WATCHFUL: &str = "
nice -n -20 sleep 1000 | {
    exec 3<&0
    for number in $(seq 400); do sleep 1000 & done
    nice -n -20 sh -c 'echo up; read line; : > moved' <&3 &
    wait
}
";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn nobody_inside_moves_between_the_first_signal_and_the_last() {
    let _alone = alone().await;
    let hierarchies = Hierarchies::prepare().unwrap();
    let limits = LeafLimits {
        memory_bytes: Limits::default().memory_bytes,
        pids: 500,
        urgency: Urgency::Job,
    };
    // Two times of three it would move, were it not frozen.
    for round in 0..5 {
        let directory = tempfile::tempdir().unwrap();
        let name = format!("test-{}-{round}", std::process::id());
        let mut leaf = hierarchies.create(&name, limits).unwrap();
        let mut shell = process::program("sh");
        shell.args(["-c", WATCHFUL]).current_dir(directory.path());
        let mut shell = process::spawn_in(shell, &leaf, None).unwrap();
        let mut stdout = shell.stdout.take().unwrap();
        stdout.read_exact(&mut [0; 2]).await.unwrap();
        let killed = leaf.kill(PROMISE, None).unwrap();
        leaf.remove().unwrap();
        println!("400 processes killed in {killed:?}");
        let moved = directory.path().join("moved").exists();
        assert!(!moved, "somebody moved in round {round}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn who_is_started_on_one_processor_stays_there_and_interrupts_nobody() {
    let _alone = alone().await;
    let hierarchies = Hierarchies::prepare().unwrap();
    let limits = LeafLimits {
        memory_bytes: Limits::default().memory_bytes,
        pids: 50,
        urgency: Urgency::Job,
    };
    let name = format!("test-{}-processor", std::process::id());
    let mut leaf = hierarchies.create(&name, limits).unwrap();
    let assigned = Processors::of_this_thread().unwrap().assign().unwrap();
    let mut shell = process::program("sh");
    // In a child: what is started there inherits both.
    shell.args([
        "-c",
        "(grep Cpus_allowed_list: /proc/self/status; chrt -p $$; sleep 1000)",
    ]);
    let mut shell = process::spawn_in(shell, &leaf, Some(assigned.number())).unwrap();
    let mut lines = BufReader::new(shell.stdout.take().unwrap()).lines();
    let allowed = lines.next_line().await.unwrap().unwrap();
    let policy = lines.next_line().await.unwrap().unwrap();
    let expected = format!("Cpus_allowed_list:\t{}", assigned.number());
    leaf.kill(PROMISE, shell.id().map(u32::cast_signed))
        .unwrap();
    leaf.remove().unwrap();
    shell.wait().await.unwrap();
    assert_eq!(allowed, expected);
    assert!(policy.ends_with("SCHED_BATCH"), "{policy}");
}
