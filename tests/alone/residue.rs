//! Nothing is left of a sandbox: no process, mount, cgroup, file or descriptor.

use crate::alone;
use crate::host::{
    Company, Host, assert_gone, cgroup_parents, job, names_in, processes_that_mention, runsc_binary,
};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};
use tako_vm::job::{Limits, Termination};
use tako_vm::sandbox::SandboxError;
use tako_vm::sys::cgroup::{Hierarchies, LeafLimits, Urgency};

/// All that a sandbox could leave, counted.
#[derive(Debug, PartialEq, Eq)]
struct Census {
    descriptors: usize,
    mounts: usize,
    children: Vec<String>,
    processes: Vec<String>,
    files: Vec<String>,
}

impl Census {
    fn of(host: &Host) -> Self {
        let directory = host.directory();
        Self {
            descriptors: names_in(Path::new("/proc/self/fd")).len(),
            mounts: fs::read_to_string("/proc/self/mountinfo")
                .unwrap()
                .lines()
                .count(),
            children: children(),
            processes: processes_that_mention(&directory.display().to_string()),
            files: [directory.to_owned(), directory.join("sandboxes")]
                .iter()
                .flat_map(|path| names_in(path))
                .collect(),
        }
    }
}

/// Our children, zombies included.
fn children() -> Vec<String> {
    let parent = format!("\nPPid:\t{}\n", std::process::id());
    names_in(Path::new("/proc"))
        .iter()
        .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/status")).ok())
        .filter(|status| status.contains(&parent))
        .map(|status| status.lines().take(5).collect::<Vec<_>>().join(" "))
        .collect()
}

/// Names of all leaves, those of other processes included.
fn leaves() -> BTreeSet<String> {
    let parents = cgroup_parents()
        .into_iter()
        .filter(|parent| parent.exists());
    let names = parents.flat_map(|parent| names_in(&parent));
    names.filter(|name| name.starts_with("tako-")).collect()
}

/// Checks that all leaves that came since go again: one that another process runs a job in does.
async fn assert_no_new_leaf(before: &BTreeSet<String>) {
    let mut left: BTreeSet<_> = leaves().difference(before).cloned().collect();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !left.is_empty() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(100)).await;
        left = left.intersection(&leaves()).cloned().collect();
    }
    assert!(left.is_empty(), "{left:?}");
}

const PROGRAM: &str = "
import subprocess
subprocess.run(['true'])
open('/output/file', 'w').write('x')
print(1 + 1)
";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_hundred_jobs_in_a_row_leave_nothing() {
    let _alone = alone().await;
    let host = Host::new();
    // The first run makes what the process keeps: threads, the signal handler of the runtime.
    host.run(&job(PROGRAM)).await;
    let before = Census::of(&host);
    let begun = Instant::now();
    for _ in 0..100 {
        let ran = host.run(&job(PROGRAM)).await;
        assert_eq!(ran.outcome.termination, Termination::Exited(0));
        assert_eq!(ran.stdout(), "2\n");
    }
    println!("100 runs in {:?}", begun.elapsed());
    assert_eq!(Census::of(&host), before);
    assert_eq!(before.children, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn twenty_jobs_at_once_leave_nothing() {
    let _alone = alone().await;
    let host = std::sync::Arc::new(Host::new());
    host.run(&job(PROGRAM)).await;
    let before = Census::of(&host);
    let begun = Instant::now();
    let all: Vec<_> = (0..20)
        .map(|number| {
            let host = std::sync::Arc::clone(&host);
            tokio::spawn(async move {
                let code = format!("{PROGRAM}\nprint({number})");
                let ran = host.run(&job(&code)).await;
                assert_eq!(ran.outcome.termination, Termination::Exited(0));
                assert_eq!(ran.stdout(), format!("2\n{number}\n"));
            })
        })
        .collect();
    for one in all {
        one.await.unwrap();
    }
    println!("20 at once in {:?}", begun.elapsed());
    assert_eq!(Census::of(&host), before);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn jobs_that_end_badly_leave_nothing() {
    let _alone = alone().await;
    let host = Host::new();
    host.run(&job(PROGRAM)).await;
    let before = Census::of(&host);
    let mut endless = job("while True: pass");
    endless.limits.execution = Duration::from_millis(300);
    let mut hog = job("held = []\nwhile True: held.append(bytearray(1 << 20))");
    hog.limits.memory_bytes = 128 << 20;
    let crash = job("import os; os.abort()");
    for job in [&endless, &hog, &crash] {
        host.run(job).await;
    }
    let company = Company::default();
    company.cancel.cancel();
    host.run_with(&endless, company).await;
    // The task that has read the last one's standard error is told to end, and closes it when it does.
    let deadline = Instant::now() + Duration::from_secs(5);
    while Census::of(&host) != before && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(Census::of(&host), before);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_job_that_is_dropped_half_way_leaves_no_process_and_no_cgroup() {
    let _alone = alone().await;
    let host = Host::new();
    host.run(&job(PROGRAM)).await;
    let (before, leaves) = (Census::of(&host), leaves());
    let endless = job("while True: pass");
    let run = host.run(&endless);
    let dropped = tokio::time::timeout(Duration::from_millis(800), run).await;
    assert!(dropped.is_err(), "it cannot have ended");
    // The runtime buries the child that it was told to kill.
    let deadline = Instant::now() + Duration::from_secs(5);
    while Census::of(&host) != before && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(Census::of(&host), before);
    assert_no_new_leaf(&leaves).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_sandbox_that_cannot_start_leaves_nothing() {
    let _alone = alone().await;
    let scripts = tempfile::tempdir().unwrap();
    let directory = scripts.path();
    let leaves = leaves();

    let no_image = Host::of(&runsc_binary(), &directory.join("no-such-image"));
    let ran = no_image.run(&job(PROGRAM)).await;
    let Termination::SandboxLost(why) = &ran.outcome.termination else {
        panic!("{:?}", ran.outcome.termination);
    };
    println!("{why}");
    assert_gone(&ran.outcome.id);

    fs::write(directory.join("no-image"), "not EROFS").unwrap();
    let bad_image = Host::of(&runsc_binary(), &directory.join("no-image"));
    let ran = bad_image.run(&job(PROGRAM)).await;
    assert!(matches!(
        ran.outcome.termination,
        Termination::SandboxLost(_)
    ));

    let no_runsc = Host::with_runsc(&directory.join("no-such-runsc"));
    let failed = no_runsc.try_run(&job(PROGRAM), Company::default()).await;
    assert!(matches!(failed, Err(SandboxError::Start { .. })));

    // There, but not to be executed.
    let no_program = Host::with_runsc(&directory.join("no-image"));
    let failed = no_program.try_run(&job(PROGRAM), Company::default()).await;
    assert!(matches!(failed, Err(SandboxError::Start { .. })));

    for host in [no_image, bad_image, no_runsc, no_program] {
        let census = Census::of(&host);
        assert_eq!(census.files, ["sandboxes"]);
        assert_eq!(census.processes, Vec::<String>::new());
        assert_eq!(census.children, Vec::<String>::new());
    }
    assert_no_new_leaf(&leaves).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_cgroup_that_exists_is_not_taken_over_and_nothing_is_made_beside_it() {
    let _alone = alone().await;
    let hierarchies = Hierarchies::prepare().unwrap();
    let limits = LeafLimits {
        memory_bytes: Limits::default().memory_bytes,
        pids: 100,
        urgency: Urgency::Job,
    };
    // In the last hierarchy only, when all the others have been made.
    let parents = cgroup_parents();
    let name = format!("test-{}", std::process::id());
    let taken = parents.last().unwrap().join(&name);
    fs::create_dir(&taken).unwrap();
    let refused = hierarchies.create(&name, limits);
    let exist: Vec<_> = parents
        .iter()
        .map(|parent| parent.join(&name).exists())
        .collect();
    fs::remove_dir(&taken).unwrap();
    let error = refused.unwrap_err().to_string();
    assert!(error.contains(&name), "{error}");
    assert_eq!(exist.iter().filter(|exists| **exists).count(), 1);
    assert!(exist.last().unwrap());

    let leaf = hierarchies.create(&name, limits).unwrap();
    assert!(hierarchies.create(&name, limits).is_err());
    assert!(
        parents.iter().all(|parent| parent.join(&name).exists()),
        "the first one stays"
    );
    drop(leaf);
    assert!(!parents.iter().any(|parent| parent.join(&name).exists()));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_leaf_is_made_although_others_took_away_its_parents_and_their_controllers() {
    let _alone = alone().await;
    let hierarchies = Hierarchies::prepare().unwrap();
    let limits = LeafLimits {
        memory_bytes: Limits::default().memory_bytes,
        pids: 100,
        urgency: Urgency::Job,
    };
    for parent in cgroup_parents() {
        // As the last process of ours does, and systemd, which finds no unit that needs it. The kernel
        // refuses both while somebody uses them.
        fs::remove_dir(&parent).ok();
        fs::write(parent.with_file_name("cgroup.subtree_control"), "-cpu").ok();
    }
    let name = format!("test-{}", std::process::id());
    let leaf = hierarchies.create(&name, limits).unwrap();
    leaf.limit_cpu(500).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_limit_that_the_kernel_changes_is_refused_and_nothing_is_left() {
    let _alone = alone().await;
    let hierarchies = Hierarchies::prepare().unwrap();
    let name = format!("test-{}", std::process::id());
    // Not a whole number of pages: the kernel takes it and holds another limit.
    let limits = LeafLimits {
        memory_bytes: Limits::default().memory_bytes + 1,
        pids: 100,
        urgency: Urgency::Job,
    };
    let error = hierarchies.create(&name, limits).unwrap_err().to_string();
    assert!(
        error.contains("holds `536870912` after `536870913` was written"),
        "{error}"
    );
    let parents = cgroup_parents();
    assert!(!parents.iter().any(|parent| parent.join(&name).exists()));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn the_last_process_of_ours_removes_the_directory_of_all_leaves() {
    let _alone = alone().await;
    for json in [None, Some("--json")] {
        let mut command = tako_vm::sys::process::program(env!("CARGO_BIN_EXE_tako-vm"));
        command.args(["run", "-c", "print(1)"]).args(json);
        command.arg("--state-dir").arg(crate::host::state_dir());
        tako_vm::sys::process::run(&mut command).unwrap();
        for parent in cgroup_parents() {
            assert!(!parent.exists(), "{} is left, {json:?}", parent.display());
        }
    }
}
