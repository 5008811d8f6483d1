//! Leaves that are frozen, thawed and weighed, without a sandbox: what the kernel makes of them.

use crate::alone;
use std::time::{Duration, Instant};
use tako_vm::sys::cgroup::{Hierarchies, InForce, Leaf, LeafLimits, Urgency};
use tako_vm::sys::process;
use tokio::io::AsyncReadExt;

/// Uses all CPU time that it gets, with children that do so too.
const SPINNERS: &str =
    "for number in 1 2 3; do (while :; do :; done) & done; echo up; while :; do :; done";

/// How long is looked at what uses CPU time and what does not.
const LOOK: Duration = Duration::from_millis(300);

fn leaf(hierarchies: &Hierarchies, name: &str, urgency: Urgency) -> Leaf {
    let limits = LeafLimits {
        memory_bytes: 64 << 20,
        pids: 100,
        urgency,
    };
    let name = format!("test-{}-{name}", std::process::id());
    hierarchies.create(&name, limits).unwrap()
}

/// A shell in the leaf, once it has said that it is up.
async fn shell(leaf: &Leaf, script: &str) -> tokio::process::Child {
    let mut command = process::program("sh");
    command.args(["-c", script]);
    let mut shell = process::spawn_in(command, leaf, None).unwrap();
    let stdout = shell.stdout.as_mut().unwrap();
    stdout.read_exact(&mut [0; 2]).await.unwrap();
    shell
}

/// CPU time that the leaf uses in this much time.
fn used_in(leaf: &Leaf, time: Duration) -> Duration {
    let before = leaf.cpu_time().unwrap();
    std::thread::sleep(time);
    leaf.cpu_time().unwrap().saturating_sub(before)
}

fn in_force(leaf: &Leaf) -> InForce {
    leaf.outside().limits().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn what_is_frozen_uses_no_cpu_time_and_goes_on_when_it_is_thawed() {
    let _alone = alone().await;
    let hierarchies = Hierarchies::prepare().unwrap();
    let mut leaf = leaf(&hierarchies, "frozen", Urgency::Job);
    assert!(!leaf.is_frozen().unwrap());
    let _shell = shell(&leaf, SPINNERS).await;
    for _ in 0..3 {
        leaf.freeze().unwrap();
        assert!(leaf.is_frozen().unwrap());
        leaf.freeze().unwrap();
        assert_eq!(used_in(&leaf, LOOK), Duration::ZERO);
        assert_eq!(leaf.processes().unwrap().len(), 4);
        assert!(leaf.memory_used().unwrap() > 0);
        leaf.thaw().unwrap();
        assert!(!leaf.is_frozen().unwrap());
        leaf.thaw().unwrap();
        let used = used_in(&leaf, LOOK);
        assert!(!used.is_zero(), "it goes on");
    }
    leaf.kill(Duration::from_secs(5), None).unwrap();
    leaf.remove().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn what_waits_answers_soon_after_it_is_thawed() {
    use tokio::io::AsyncWriteExt;
    let _alone = alone().await;
    let hierarchies = Hierarchies::prepare().unwrap();
    let mut leaf = leaf(&hierarchies, "answers", Urgency::Refill);
    let mut shell = shell(&leaf, "echo up; while read line; do echo $line; done").await;
    let mut stdin = shell.stdin.take().unwrap();
    let mut stdout = shell.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 1]).await.unwrap();
    let mut answer = [0; 3];
    let (mut freezes, mut thaws) = (Vec::new(), Vec::new());
    for _ in 0..50 {
        let begun = Instant::now();
        leaf.freeze().unwrap();
        freezes.push(begun.elapsed());
        stdin.write_all(b"hi\n").await.unwrap();
        let early = tokio::time::timeout(Duration::from_millis(20), stdout.read_exact(&mut answer));
        assert!(early.await.is_err(), "a frozen process answers");
        let begun = Instant::now();
        leaf.thaw().unwrap();
        thaws.push(begun.elapsed());
        stdout.read_exact(&mut answer).await.unwrap();
    }
    freezes.sort();
    thaws.sort();
    println!(
        "frozen in {:?}, thawed in {:?} (medians)",
        freezes[25], thaws[25]
    );
    leaf.kill(Duration::from_secs(5), None).unwrap();
    leaf.remove().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn a_frozen_leaf_can_be_killed_and_adopted_and_dropped() {
    let _alone = alone().await;
    let hierarchies = Hierarchies::prepare().unwrap();
    let mut killed = leaf(&hierarchies, "killed", Urgency::Refill);
    let mut first = shell(&killed, SPINNERS).await;
    killed.freeze().unwrap();
    let took = killed
        .kill(Duration::from_secs(5), first.id().map(u32::cast_signed))
        .unwrap();
    println!("killed in {took:?}");
    assert!(!first.wait().await.unwrap().success());
    assert_eq!(in_force(&killed).cpu_weight, 100, "dying is urgent");
    killed.remove().unwrap();

    // As by the supervisor that comes after one that was killed.
    let mut orphaned = leaf(&hierarchies, "orphaned", Urgency::Job);
    let mut second = shell(&orphaned, SPINNERS).await;
    orphaned.freeze().unwrap();
    orphaned.abandon();
    let name = format!("test-{}-orphaned", std::process::id());
    let adopted = hierarchies.adopt(&name);
    assert!(adopted.is_frozen().unwrap());
    drop(adopted);
    assert!(!hierarchies.exists(&name));
    // Buried by whoever came first.
    drop(second.wait().await);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn a_refill_makes_way_for_a_job_until_it_is_one() {
    let _alone = alone().await;
    let hierarchies = Hierarchies::prepare().unwrap();
    let mut job = leaf(&hierarchies, "job", Urgency::Job);
    let mut refill = leaf(&hierarchies, "refill", Urgency::Refill);
    assert_eq!(in_force(&job).cpu_weight, 100);
    assert_eq!(in_force(&refill).cpu_weight, 2);
    let limits = in_force(&refill);
    assert_eq!(
        (limits.memory_bytes, limits.pids),
        (Some(64 << 20), Some(100))
    );
    // On every CPU of the host there are some of both.
    let all: String = "(while :; do :; done) & ".repeat(4 * cpus());
    let script = format!("{all} echo up; wait");
    let _shells = [shell(&job, &script).await, shell(&refill, &script).await];
    let share = || {
        let before = (job.cpu_time().unwrap(), refill.cpu_time().unwrap());
        std::thread::sleep(2 * LOOK);
        let job = job.cpu_time().unwrap().saturating_sub(before.0);
        let refill = refill.cpu_time().unwrap().saturating_sub(before.1);
        let share = refill.as_secs_f64() / (job + refill).as_secs_f64();
        println!(
            "the refill had {:.1} % of {:?}",
            share * 100.0,
            job + refill
        );
        share
    };
    // The host spreads its load over the CPUs as it goes, and others take part: not every look shows
    // the weights, but none would show them by chance.
    let comes_to_have = |wanted: fn(f64) -> bool| (0..10).any(|_| wanted(share()));
    assert!(comes_to_have(|share| share < 0.1));
    refill.set_urgency(Urgency::Job).unwrap();
    assert_eq!(in_force(&refill).cpu_weight, 100);
    assert!(comes_to_have(|share| share > 0.3));
    for leaf in [&mut job, &mut refill] {
        leaf.kill(Duration::from_secs(5), None).unwrap();
        leaf.remove().unwrap();
    }
}

fn cpus() -> usize {
    std::thread::available_parallelism().unwrap().get()
}
