//! Sandboxes that wait for a job: what they leave, what they refuse, and what holds once they have it.

use crate::host::{Part, Sandbox, assert_gone, job, signal};
use crate::starts::{ROOM, Starts, Way, gone};
use nix::sys::signal::Signal;
use std::time::Duration;
use tako_vm::job::{Limits, Outcome, Termination};
use tako_vm::sandbox::{Order, Ready, SandboxError};
use tako_vm::sys::cgroup::Urgency;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const SAID: &str = "import os; os.write(1, b'run'); open('/output/run', 'w')";

fn sandbox(ready: &Ready) -> Sandbox {
    Sandbox {
        id: ready.id().to_owned(),
    }
}

fn assert_nothing_was_run(outcome: &Outcome) {
    let lost = matches!(outcome.termination, Termination::SandboxLost(_));
    assert!(lost, "{outcome:?}");
    assert_eq!((outcome.stdout.total, outcome.stderr.total), (0, 0));
    assert!(outcome.artifacts.is_empty() && outcome.timing.startup_ms.is_none());
    assert_gone(&outcome.id);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, runsc and an executor image"]
async fn a_sandbox_that_died_while_it_waited_takes_no_job_and_says_so() {
    let _permit = ROOM.acquire().await.unwrap();
    let starts = Starts::python();
    for (way, part) in [
        (Way::Warm, Part::Sentry),
        (Way::Restored, Part::Sentry),
        (Way::Warm, Part::Runsc),
    ] {
        let mut ready = starts.prepared(way).await;
        assert!(ready.is_alive());
        let parts = match (way, part) {
            // The command line of a restored sandbox's runsc has another word.
            (Way::Restored, Part::Runsc) => unreachable!(),
            _ => sandbox(&ready).parts(part),
        };
        signal(&parts, Signal::SIGKILL);
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while ready.is_alive() {
            assert!(std::time::Instant::now() < deadline, "{way} {part:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let finished = starts.hand_over(ready, &job(SAID)).await;
        assert!(finished.untouched, "{way} {part:?}: {:?}", finished.outcome);
        assert_nothing_was_run(&gone(finished).await);
    }
    assert!(starts.names().is_empty());
}

/// Nobody has noticed yet: the job finds out.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, runsc and an executor image"]
async fn a_sandbox_that_dies_at_the_hand_over_has_not_touched_the_job() {
    let _permit = ROOM.acquire().await.unwrap();
    let starts = Starts::python();
    let ready = starts.restored().await;
    signal(&sandbox(&ready).parts(Part::Sentry), Signal::SIGKILL);
    let finished = starts.hand_over(ready, &job(SAID)).await;
    assert!(finished.untouched, "{:?}", finished.outcome);
    assert_nothing_was_run(&gone(finished).await);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, runsc and an executor image"]
async fn a_sandbox_that_is_not_wanted_any_more_leaves_nothing() {
    let _permit = ROOM.acquire().await.unwrap();
    let starts = Starts::python();
    for way in [Way::Warm, Way::Restored] {
        for frozen in [false, true] {
            let ready = starts.prepared(way).await;
            let id = ready.id().to_owned();
            if frozen {
                ready.freeze().unwrap();
            }
            assert_eq!(starts.names(), [id.as_str()]);
            if way == Way::Warm {
                drop(ready);
            } else {
                ready.discard().await.unwrap();
            }
            assert!(starts.names().is_empty());
            assert_gone(&id);
        }
    }
}

/// CPU quota in thousandths of a CPU, if there is one, and the weight, as the kernel has them: of
/// version 1 of cgroups, or of version 2.
fn cpu(sandbox: &Sandbox) -> (Option<u64>, u64) {
    let read = |name: &str| sandbox.cgroup_files(name).pop();
    let of = |quota: &str, period: &str| {
        let quota = quota.parse::<u64>().ok()?;
        Some(quota * 1000 / period.parse::<u64>().unwrap())
    };
    if let Some(shares) = read("cpu.shares") {
        let quota = read("cpu.cfs_quota_us").unwrap();
        let weight = shares.parse::<u64>().unwrap() * 100 / 1024;
        return (of(&quota, &read("cpu.cfs_period_us").unwrap()), weight);
    }
    let text = read("cpu.max").unwrap();
    let (quota, period) = text.split_once(' ').unwrap();
    (
        of(quota, period),
        read("cpu.weight").unwrap().parse().unwrap(),
    )
}

/// While it waits, a sandbox has the quota of its profile, and yields to those with a job.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, runsc and an executor image"]
async fn the_limits_of_the_job_are_in_force_once_it_is_handed_over() {
    let _permit = ROOM.acquire().await.unwrap();
    let starts = Starts::python();
    let mut job = job("import time; print('up'); time.sleep(1)");
    job.limits.millicpus = 700;
    for way in [Way::Warm, Way::Restored] {
        let ready = starts.prepared(way).await;
        let seen = sandbox(&ready);
        let (quota, weight) = cpu(&seen);
        assert_eq!(quota, Some(1000), "{way}: that of a whole CPU");
        assert!(weight < 10, "{way}: {weight}");
        let spool = starts.sandboxes.spool();
        let (sender, mut events) = mpsc::channel(16);
        let order = Order {
            image: &starts.image,
            job: &job,
            spool: &spool,
            events: Some(sender),
            begin: None,
            cancel: CancellationToken::new(),
        };
        let start = tako_vm::job::Start::Warm;
        let (finished, in_force) =
            tokio::join!(starts.sandboxes.run_in(ready, &order, start), async {
                events.recv().await.unwrap();
                cpu(&seen)
            });
        let outcome = gone(finished.unwrap()).await;
        assert_eq!(outcome.termination, Termination::Exited(0));
        assert_eq!(in_force, (Some(700), 100), "{way}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, runsc and an executor image"]
async fn what_is_no_checkpoint_is_not_restored_and_leaves_nothing() {
    let _permit = ROOM.acquire().await.unwrap();
    let starts = Starts::python();
    let empty = tempfile::tempdir().unwrap();
    let torn = tempfile::tempdir().unwrap();
    std::fs::write(torn.path().join("checkpoint.img"), b"torn").unwrap();
    for directory in [empty.path(), torn.path()] {
        let limits = Limits::default();
        let restored = starts
            .sandboxes
            .restore(&starts.image, &limits, Urgency::Job, directory);
        let why = match restored.await {
            Err(SandboxError::NotReady { why }) => why,
            other => panic!("{other:?}"),
        };
        assert!(!why.is_empty());
        assert!(starts.names().is_empty());
    }
}
