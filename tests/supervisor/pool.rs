//! Sandboxes that wait for their jobs.

use crate::client::{Client, Ran, announcement};
use crate::daemon::{self, Daemon, NOTHING_READY, wait_for};
use crate::host::{Sandbox, assert_gone, cgroups_of, names_in, on_this_host, signal};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Until a pool is as it should be: sandboxes are made one or two at a time, behind everything else.
const PATIENCE: Duration = Duration::from_mins(1);

/// From the end of a job until nothing is left of it.
const PROMISE: Duration = Duration::from_secs(2);

const ENDLESS: &str = "import time\nprint('up', flush=True)\ntime.sleep(1000)";

/// The first profile, or the one with this memory.
fn profile(stats: &Value, memory: Option<u64>) -> &Value {
    let mut profiles = stats["pools"].as_array().unwrap().iter();
    let wanted = |pool: &&Value| memory.is_none_or(|memory| pool["memory_bytes"] == memory);
    profiles.find(wanted).unwrap_or(&Value::Null)
}

fn is_full(pool: &Value) -> bool {
    pool["ready"].as_u64().is_some_and(|ready| ready > 0)
        && pool["ready"] == pool["target"]
        && pool["starting"] == 0
}

/// Waits until the first profile is so.
fn until(client: &mut Client, so: impl Fn(&Value) -> bool) -> Value {
    until_of(client, None, so)
}

fn until_of(client: &mut Client, memory: Option<u64>, so: impl Fn(&Value) -> bool) -> Value {
    let limit = on_this_host(PATIENCE);
    let begun = Instant::now();
    loop {
        let stats = client.stats();
        let pool = profile(&stats, memory);
        if so(pool) {
            return pool.clone();
        }
        assert!(begun.elapsed() < limit, "{stats}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn filled(keys: &str) -> (Daemon, Client) {
    let daemon = Daemon::with_pool(keys);
    let mut client = daemon.connect();
    until(&mut client, is_full);
    (daemon, client)
}

/// Runs a program with more in its announcement.
fn run_with(client: &mut Client, code: &str, more: &Value) -> Ran {
    let mut job = announcement(code);
    let more = more.as_object().unwrap().clone();
    job.as_object_mut().unwrap().extend(more);
    client.submit(&job, code.as_bytes());
    client.finish()
}

fn start(ran: &Ran) -> &str {
    ran.end["timing"]["start"].as_str().unwrap()
}

fn assert_answers(ran: &Ran, answer: &str) {
    assert_eq!((ran.stdout(), ran.stderr()), (answer, ""), "{:?}", ran.end);
}

fn checkpoints(daemon: &Daemon) -> Vec<PathBuf> {
    let directory = daemon.state().join("checkpoints");
    let names = names_in(&directory).into_iter();
    let names = names.filter(|name| name != "lock");
    names.map(|name| directory.join(name)).collect()
}

/// Whether the freezer says that a sandbox stands still.
fn is_frozen(id: &str) -> bool {
    let sandbox = Sandbox { id: id.to_owned() };
    let v1 = sandbox.cgroup_files("freezer.state");
    let v2 = sandbox.cgroup_files("cgroup.events");
    v1.iter().any(|state| state == "FROZEN") || v2.iter().any(|text| text.contains("frozen 1"))
}

/// CPU time that a sandbox has used, in whatever unit its cgroup has.
fn cpu_time(id: &str) -> String {
    let sandbox = Sandbox { id: id.to_owned() };
    let v1 = sandbox.cgroup_files("cpuacct.usage");
    let v2 = sandbox.cgroup_files("cpu.stat");
    let usage = |text: &String| text.lines().next().unwrap_or_default().to_owned();
    v1.first().cloned().unwrap_or_else(|| usage(&v2[0]))
}

#[test]
#[ignore = "needs root and runsc"]
fn a_sandbox_that_waits_serves_one_job_and_another_takes_its_place() {
    let (daemon, mut client) = filled("minimum: 2, maximum: 3");
    // What one job leaves, another would find.
    let code = "
import builtins, os
print(hasattr(builtins, 'mark'), os.path.exists('/tmp/mark'), os.listdir('/output'))
builtins.mark = open('/tmp/mark', 'w'), open('/output/mark', 'w')
";
    let (mut ids, mut warm) = (BTreeSet::new(), 0);
    for _ in 0..50 {
        until(&mut client, |pool| pool["ready"].as_u64() > Some(0));
        let waiting = daemon.sandboxes();
        let ran = client.run(code);
        assert_answers(&ran, "False False []\n");
        let id = ran.end["id"].as_str().unwrap().to_owned();
        if start(&ran) == "warm" {
            assert!(waiting.contains(&id), "{id} was not waiting: {waiting:?}");
            warm += 1;
        }
        wait_for(
            PROMISE,
            || cgroups_of(&id).is_empty() && !daemon.sandboxes().contains(&id),
            || format!("`{id}` is left"),
        );
        assert!(ids.insert(id), "a sandbox was handed out twice: {ids:?}");
    }
    assert!(warm >= 40, "{warm} of 50 were warm");
    let pool = until(&mut client, is_full);
    assert_eq!(pool["hits"], warm, "{pool}");
    assert_eq!(pool["misses"], 50 - warm, "{pool}");
    assert!(pool["refills"].as_u64() >= Some(50), "{pool}");
    let stats = client.stats();
    assert_eq!(stats["alive"], pool["ready"], "{stats}");
    assert_eq!(
        daemon.sandboxes().len() as u64,
        pool["ready"].as_u64().unwrap()
    );
}

#[test]
#[ignore = "needs root and runsc"]
fn where_none_is_ready_a_job_starts_cold_or_from_the_checkpoint() {
    let (daemon, mut client) = filled("minimum: 1, maximum: 1");
    let pool = profile(&client.stats(), None).clone();
    assert_eq!(pool["checkpoint"], true, "{pool}");
    let mut clients: Vec<_> = (0..3).map(|_| daemon.connect()).collect();
    for client in &mut clients {
        client.begin(ENDLESS);
    }
    let mut starts = Vec::new();
    for client in &mut clients {
        client.send('c', b"");
        let ran = client.finish();
        assert_eq!(ran.how(), "cancelled");
        starts.push(start(&ran).to_owned());
    }
    assert_eq!(starts[0], "warm");
    assert!(starts.iter().any(|start| start == "restored"), "{starts:?}");
    // Nothing is known of these limits yet: no checkpoint either.
    let other = json!({"memory_bytes": 256 << 20});
    assert_eq!(start(&run_with(&mut client, "print(1)", &other)), "cold");
    let pool = until_of(&mut client, Some(256 << 20), is_full);
    assert_eq!(pool["checkpoint"], true, "{pool}");
    // No checkpoint of other limits is taken for it: inside, it would say another size.
    let size = "print(open('/proc/meminfo').readline().split()[1])";
    for _ in 0..3 {
        let ran = run_with(&mut client, size, &other);
        assert_answers(&ran, "262144\n");
        assert_eq!(start(&ran), "warm");
        until_of(&mut client, Some(256 << 20), is_full);
    }
    assert_eq!(checkpoints(&daemon).len(), 2);
}

#[test]
#[ignore = "needs root and runsc"]
fn what_an_interpreter_reads_at_its_start_makes_a_job_start_cold() {
    let (_daemon, mut client) = filled("minimum: 2");
    for (name, value) in [
        ("PYTHONHASHSEED", "7"),
        ("TZ", "Asia/Tokyo"),
        ("LC_ALL", "C"),
    ] {
        let more = json!({ "environment": [[name, value]] });
        let ran = run_with(&mut client, "import os; print(len(os.environ) > 0)", &more);
        assert_answers(&ran, "True\n");
        assert_eq!(start(&ran), "cold", "{name}");
    }
    until(&mut client, is_full);
    let more = json!({"environment": [["GREETING", "hello"]]});
    let ran = run_with(
        &mut client,
        "import os; print(os.environ['GREETING'])",
        &more,
    );
    assert_answers(&ran, "hello\n");
    assert_eq!(start(&ran), "warm");
}

#[test]
#[ignore = "needs root and runsc"]
fn one_that_becomes_too_old_is_replaced() {
    let (daemon, mut client) = filled("minimum: 2, max_age_seconds: 10");
    let first = daemon.sandboxes();
    let pool = until(&mut client, |pool| pool["retired"].as_u64() >= Some(2));
    assert!(pool["hits"] == 0, "{pool}");
    wait_for(
        PATIENCE,
        || !daemon.sandboxes().iter().any(|id| first.contains(id)),
        || format!("{first:?}"),
    );
    until(&mut client, is_full);
    assert_answers(&client.run("print(1)"), "1\n");
}

#[test]
#[ignore = "needs root and runsc"]
fn one_that_died_while_it_waited_costs_no_job() {
    let (daemon, mut client) = filled("minimum: 3, maximum: 3");
    // Thawed ones that died are seen to be dead; a frozen one dies when it is thawed.
    client.run("print(1)");
    until(&mut client, |pool| is_full(pool) && pool["frozen"] == 1);
    for id in daemon.sandboxes() {
        let processes = Sandbox { id }.processes();
        let pids: Vec<_> = processes.into_iter().map(|(pid, _)| pid).collect();
        signal(&pids, Signal::SIGKILL);
    }
    for _ in 0..4 {
        assert_answers(&client.run("print(1)"), "1\n");
    }
    until(&mut client, is_full);
    assert_eq!(start(&client.run("print(1)")), "warm");
}

#[test]
#[ignore = "needs root and runsc"]
fn those_of_an_image_that_is_another_or_gone_are_destroyed() {
    let (daemon, mut client) = filled("minimum: 2");
    let manifest = daemon.state().join("images/python.json");
    let text = fs::read_to_string(&manifest).unwrap();
    let mut other: Value = serde_json::from_str(&text).unwrap();
    other["digest"] = "0".repeat(64).into();
    for change in [None, Some(other.to_string())] {
        let before = daemon.sandboxes();
        match change {
            None => fs::remove_file(&manifest).unwrap(),
            Some(text) => fs::write(&manifest, text).unwrap(),
        }
        daemon.assert_without_sandboxes_within(Duration::from_secs(5));
        for id in &before {
            assert_gone(id);
        }
        let refusal = client.refused(&announcement("print(1)"), b"print(1)");
        assert_eq!(refusal["code"], "image");
        fs::write(&manifest, &text).unwrap();
        // Where it is there and of no use, it is looked at again after a minute; a job does so at once.
        assert_answers(&client.run("print(1)"), "1\n");
        until(&mut client, is_full);
        assert_eq!(start(&client.run("print(1)")), "warm");
    }
    let told = daemon.log().matches("is another").count();
    assert!((2..=4).contains(&told), "{}", daemon.log());
}

#[test]
#[ignore = "needs root and runsc"]
fn a_configured_image_that_is_missing_is_told_once_and_kept_ready_once_it_is_there() {
    let config = "pool: {minimum: 1, profiles: [{image: python}, {image: nothing}]}\n";
    let directory = daemon::place(config);
    let manifest = directory.path().join("state/images/python.json");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::remove_file(&manifest).unwrap();
    let daemon = Daemon::in_directory(directory, |_| {});
    let mut client = daemon.connect();
    std::thread::sleep(Duration::from_millis(3500));
    assert_eq!(
        daemon.log().matches("keeps none ready").count(),
        2,
        "{}",
        daemon.log()
    );
    fs::write(&manifest, text).unwrap();
    until(&mut client, is_full);
    assert_eq!(
        daemon.log().matches("keeps none ready").count(),
        2,
        "{}",
        daemon.log()
    );
}

#[test]
#[ignore = "needs root and runsc"]
fn no_more_wait_than_there_is_memory_for() {
    let budget = 64 << 20;
    let daemon = Daemon::with_pool("memory: 64m, minimum: 8");
    let mut client = daemon.connect();
    until(&mut client, |pool| pool["ready"].as_u64() > Some(0));
    let begun = Instant::now();
    let mut most = 0;
    while begun.elapsed() < on_this_host(Duration::from_secs(8)) {
        let stats = client.stats();
        let pool = profile(&stats, None);
        if pool["starting"] == 0 {
            let bytes = stats["pool_bytes"].as_u64().unwrap();
            assert!(bytes <= budget, "{stats}");
        }
        most = most.max(pool["ready"].as_u64().unwrap());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!((1..8).contains(&most), "{most}");
    assert_eq!(start(&client.run("print(1)")), "warm");
}

#[test]
#[ignore = "needs root and runsc"]
fn without_jobs_all_are_frozen_and_use_no_cpu_time_and_the_next_job_is_answered() {
    let (daemon, mut client) = filled("minimum: 3, frozen_after_seconds: 1");
    for _ in 0..2 {
        until(&mut client, |pool| {
            is_full(pool) && pool["frozen"] == pool["ready"]
        });
        let ids = daemon.sandboxes();
        assert!(ids.len() >= 3, "{ids:?}");
        assert!(ids.iter().all(|id| is_frozen(id)), "{ids:?}");
        let before: Vec<_> = ids.iter().map(|id| cpu_time(id)).collect();
        std::thread::sleep(Duration::from_secs(2));
        let after: Vec<_> = ids.iter().map(|id| cpu_time(id)).collect();
        assert_eq!(before, after);
        let ran = client.run("print(1)");
        assert_answers(&ran, "1\n");
        assert_eq!(start(&ran), "warm", "a frozen one is thawed for its job");
    }
}

#[test]
#[ignore = "needs root and runsc"]
fn two_at_the_front_are_thawed_while_jobs_come() {
    let (daemon, mut client) = filled("minimum: 5");
    client.run("print(1)");
    let settled = |pool: &Value| {
        is_full(pool) && pool["ready"].as_u64() == pool["frozen"].as_u64().map(|n| n + 2)
    };
    let pool = until(&mut client, settled);
    assert!(pool["ready"].as_u64() >= Some(4), "{pool}");
    let thawed = || {
        daemon
            .sandboxes()
            .iter()
            .filter(|id| !is_frozen(id))
            .count()
    };
    assert_eq!(thawed(), 2);
    // One that has just been started is frozen when it is put behind the others.
    client.run("print(1)");
    until(&mut client, settled);
    assert_eq!(thawed(), 2);
}

#[test]
#[ignore = "needs root and runsc"]
fn a_checkpoint_that_is_broken_costs_no_job_and_is_used_no_more() {
    let (daemon, mut client) = filled("minimum: 1, maximum: 1");
    let checkpoint = checkpoints(&daemon).remove(0);
    for name in names_in(&checkpoint) {
        let path = checkpoint.join(name);
        let length = fs::metadata(&path).unwrap().len();
        let file = File::options().write(true).open(path).unwrap();
        file.set_len(length / 2).unwrap();
    }
    for _ in 0..8 {
        assert_answers(&client.run("print(1)"), "1\n");
        until(&mut client, |pool| pool["ready"] == 1);
    }
    let pool = until(&mut client, |pool| pool["checkpoint"] == false);
    assert_eq!(pool["restore_failures"], 3, "{pool}");
    assert_eq!(
        daemon.log().matches("cannot restore").count(),
        1,
        "{}",
        daemon.log()
    );
    assert!(!checkpoint.exists());
}

#[test]
#[ignore = "needs root and runsc"]
fn checkpoints_are_for_root_alone_and_kept_as_long_as_they_fit() {
    let (daemon, _) = filled("minimum: 2");
    let kept = checkpoints(&daemon);
    assert_eq!(kept.len(), 1, "{kept:?}");
    for directory in [kept[0].parent().unwrap(), &kept[0]] {
        let metadata = fs::metadata(directory).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.uid()), (0o700, 0));
    }
    let files = names_in(&kept[0]);
    assert!(files.len() >= 2, "{files:?}");
    for name in files {
        let metadata = fs::metadata(kept[0].join(&name)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o600, "{name}");
        assert_eq!(metadata.uid(), 0);
    }
    let written = fs::metadata(&kept[0]).unwrap().ino();
    let directory = daemon.killed();
    let below = directory.path().join("state/checkpoints");
    // One of another runsc, version, processor or image has another name; one that was not finished.
    for name in ["0".repeat(64), ".partial-x".to_owned()] {
        fs::create_dir(below.join(&name)).unwrap();
        fs::write(below.join(&name).join("pages.img"), "x").unwrap();
    }
    let daemon = Daemon::in_directory(directory, |_| {});
    let mut client = daemon.connect();
    let pool = until(&mut client, is_full);
    assert!(pool["restored"].as_u64() >= Some(1), "{pool}");
    assert_eq!(checkpoints(&daemon), kept);
    assert_eq!(fs::metadata(&kept[0]).unwrap().ino(), written);
}

#[test]
#[ignore = "needs root and runsc"]
fn the_limits_of_a_job_hold_in_a_sandbox_that_waited_for_it() {
    let (daemon, mut client) = filled("minimum: 2");
    let waiting = daemon.sandboxes();
    let weights = |id: &String| {
        let sandbox = Sandbox { id: id.clone() };
        let v1 = (sandbox.cgroup_files("cpu.shares"), "1024");
        let v2 = (sandbox.cgroup_files("cpu.weight"), "100");
        if v1.0.is_empty() { v2 } else { v1 }
    };
    for id in &waiting {
        let (weight, ordinary) = weights(id);
        assert!(!weight.is_empty() && weight[0] != ordinary, "{weight:?}");
    }
    client.begin_with(ENDLESS, &json!({"millicpus": 500}));
    let has_job = |id: &&String| {
        weights(id)
            .0
            .first()
            .is_some_and(|weight| weight == weights(id).1)
    };
    let busy: Vec<_> = waiting.iter().filter(has_job).collect();
    assert_eq!(
        busy.len(),
        1,
        "the job has an ordinary weight, and nobody else: {waiting:?}"
    );
    let sandbox = Sandbox {
        id: busy[0].clone(),
    };
    let v1 = sandbox.cgroup_files("cpu.cfs_quota_us");
    let v2 = sandbox.cgroup_files("cpu.max");
    assert!(v1 == ["50000"] || v2 == ["50000 100000"], "{v1:?} {v2:?}");
    client.send('c', b"");
    let ran = client.finish();
    assert_eq!((start(&ran), &ran.end["id"]), ("warm", &json!(busy[0])));
}

#[test]
#[ignore = "needs root and runsc"]
fn a_job_in_a_sandbox_that_waited_dies_with_its_connection() {
    let (daemon, mut client) = filled("minimum: 2");
    let waiting = daemon.sandboxes();
    client.begin(ENDLESS);
    let mut other = daemon.connect();
    assert_eq!(other.stats()["running"], 1);
    drop(client);
    wait_for(
        PROMISE,
        || other.stats()["running"] == 0,
        || "the job still runs".to_owned(),
    );
    // Its end is told before its sandbox is gone.
    let gone = || -> Vec<_> {
        let all = waiting.iter();
        all.filter(|id| cgroups_of(id).is_empty()).collect()
    };
    wait_for(
        PROMISE,
        || gone().len() == 1,
        || format!("its sandbox is there, or both are gone: {waiting:?}"),
    );
    assert_gone(gone()[0]);
    let pool = until(&mut other, is_full);
    assert_eq!(pool["hits"], 1, "{pool}");
}

#[test]
#[ignore = "needs root and runsc"]
fn the_end_leaves_none_of_those_that_wait_or_are_being_made() {
    // While it makes a checkpoint, while it makes sandboxes, while all wait.
    for wait in [Some(100), Some(600), Some(1500), None] {
        let mut daemon = Daemon::with_pool("minimum: 6, frozen_after_seconds: 1");
        let mut client = daemon.connect();
        match wait {
            Some(time) => std::thread::sleep(Duration::from_millis(time)),
            None => drop(until(&mut client, |pool| {
                is_full(pool) && pool["frozen"] == 6
            })),
        }
        let ids = daemon.sandboxes();
        daemon.signal(Signal::SIGTERM);
        assert!(daemon.end().success(), "{}", daemon.log());
        daemon.assert_empty_within(Duration::ZERO);
        for id in &ids {
            assert_gone(id);
        }
    }
}

#[test]
#[ignore = "needs root and runsc"]
fn two_supervisors_of_one_state_directory_leave_each_other_what_they_need() {
    let (daemon, mut client) = filled("minimum: 1, maximum: 1");
    let kept = checkpoints(&daemon);
    let second = daemon::place("pool: {minimum: 1, profiles: [{image: python, memory: 256m}]}\n");
    let state = second.path().join("state");
    fs::remove_dir_all(&state).unwrap();
    std::os::unix::fs::symlink(daemon.state(), &state).unwrap();
    let second = Daemon::in_directory(second, |_| {});
    until(&mut second.connect(), is_full);
    assert!(kept[0].is_dir());
    assert_eq!(checkpoints(&daemon).len(), 2);
    assert_eq!(start(&client.run("print(1)")), "warm");
    assert_answers(&second.connect().run("print(1)"), "1\n");
    drop(second);
    until(&mut client, is_full);
    assert_eq!(start(&client.run("print(1)")), "warm");
}

#[test]
#[ignore = "needs root and runsc"]
fn with_a_maximum_of_nothing_every_job_starts_cold() {
    assert!(NOTHING_READY.contains("maximum: 0"));
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    for _ in 0..2 {
        assert_eq!(start(&client.run("print(1)")), "cold");
    }
    let stats = client.stats();
    assert_eq!(
        (&stats["pools"], &stats["pool_budget_bytes"]),
        (&json!([]), &json!(0))
    );
    assert!(!daemon.state().join("checkpoints").exists());
    daemon.assert_empty_within(PROMISE);
}
