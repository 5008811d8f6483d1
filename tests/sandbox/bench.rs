//! `tako-vm bench` as its users see it. No time is judged: that is what the command is for.

use crate::command::{exclusive, signal};
use crate::host::{cgroup_parents, names_in, on_this_host, processes_that_mention, state_dir};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::time::Duration;
use tako_vm::sys::process;

fn bench(arguments: &[&str]) -> Command {
    let mut command = process::program(env!("CARGO_BIN_EXE_tako-vm"));
    command.arg("bench").args(arguments);
    command.arg("--state-dir").arg(state_dir());
    command
}

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).unwrap()
}

/// Figures, and as many times in the buckets as there are runs.
fn assert_latencies(latencies: &Value, count: u64) {
    assert_eq!(latencies["count"], count, "{latencies}");
    for figure in ["min", "median", "p95", "p99", "max"] {
        assert!(latencies[figure].as_f64().unwrap() > 0.0, "{latencies}");
    }
    let buckets = latencies["buckets"].as_array().unwrap();
    let sum: u64 = buckets.iter().map(|one| one[1].as_u64().unwrap()).sum();
    assert_eq!(sum, count, "{latencies}");
}

fn assert_comparison(comparison: &Value, left_out: &Value, rounds: usize) {
    let runs = comparison["runs"].as_array().unwrap();
    let ways: BTreeSet<_> = runs
        .iter()
        .map(|run| run["way"].as_str().unwrap())
        .collect();
    let left_out = left_out.as_array().unwrap().iter();
    let left_out: BTreeSet<_> = left_out.map(|one| one["way"].as_str().unwrap()).collect();
    let all = [
        "library",
        "command",
        "cold",
        "cold_command",
        "runsc",
        "runc",
        "crun",
        "bwrap",
        "native",
    ];
    let told: BTreeSet<_> = ways.union(&left_out).copied().collect();
    assert_eq!(told, BTreeSet::from(all), "nothing is left out in silence");
    for way in ["library", "command", "cold", "cold_command", "runsc"] {
        assert!(ways.contains(way), "{way}: {left_out:?}");
    }
    // In turn: every way once in each round, another one first.
    assert_eq!(runs.len(), rounds * ways.len());
    let rounds: Vec<_> = runs.chunks(ways.len()).collect();
    for (index, round) in rounds.iter().enumerate() {
        let names: BTreeSet<_> = round
            .iter()
            .map(|run| run["way"].as_str().unwrap())
            .collect();
        assert_eq!(names, ways);
        assert!(
            round.iter().all(|run| run["round"] == index + 1),
            "{round:?}"
        );
        assert!(round.iter().all(|run| run["ms"].as_f64().unwrap() > 0.0));
    }
    assert_ne!(rounds[0][0]["way"], rounds[1][0]["way"]);
    for run in runs {
        match run["way"].as_str().unwrap() {
            "library" => assert!(run["start"].is_string(), "{run}"),
            "cold" => assert_eq!(run["start"], "cold", "{run}"),
            _ => assert!(run["start"].is_null(), "{run}"),
        }
    }
    assert_latencies(&comparison["parts"]["cpu_ms"], rounds.len() as u64);
}

fn assert_host(host: &Value) {
    for field in [
        "kernel",
        "cpu",
        "cores",
        "memory_mib",
        "cgroups",
        "load",
        "tako_vm",
    ] {
        assert!(!host[field].is_null(), "{field}");
    }
    for field in ["runsc", "image"] {
        assert_eq!(host[field]["digest"].as_str().unwrap().len(), 64, "{field}");
    }
}

/// Ours first, then plain runsc, with their jobs; gives how many jobs ours has done.
fn assert_saturated(saturated: &Value) -> u64 {
    let loops = saturated["loops"].as_array().unwrap();
    let ways: Vec<_> = loops
        .iter()
        .map(|one| one["way"].as_str().unwrap())
        .collect();
    assert_eq!(ways[..2], ["library", "runsc"]);
    for one in loops {
        assert_latencies(&one["latency_ms"]["all"], one["jobs"].as_u64().unwrap());
        assert!(one["jobs_per_second"].as_f64().unwrap() > 0.0, "{one}");
    }
    loops[0]["jobs"].as_u64().unwrap()
}

/// Of each image every start is there, and gives how many there were.
fn assert_starts(report: &Value, rounds: u64) -> u64 {
    let both = report["side_by_side"].as_array().unwrap();
    let images: Vec<_> = both
        .iter()
        .map(|one| one["image"].as_str().unwrap())
        .collect();
    assert_eq!(images, ["python", "data"]);
    for one in both {
        for start in ["warm", "restored", "cold"] {
            assert_latencies(&one["latency_ms"][start], rounds);
        }
    }
    let paused = &report["after_pause"]["latency_ms"];
    assert_latencies(&paused["warm"], rounds);
    let bars = report["bars"].as_array().unwrap();
    for name in ["imports", "after a pause", "command", "warm", "cold"] {
        assert!(bars.iter().any(|bar| bar["name"] == name), "{name}");
    }
    rounds * 3 * 2 + rounds
}

#[test]
#[ignore = "needs root and runsc"]
fn every_way_has_its_turn_and_the_report_has_all_of_it() {
    let state = exclusive();
    let small = "--jobs 3 --rate 4 --clients 2 --duration 1 --compare --json -";
    let options: Vec<_> = small.split(' ').collect();
    let output = bench(&options).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_host(&report["host"]);
    assert_eq!(report["settings"]["rate"], 4.0);
    assert_eq!(report["interrupted"], false);
    assert_eq!(report["failures"]["count"], 0, "{}", report["failures"]);

    assert_eq!(report["paced"]["jobs"], 3);
    assert_latencies(&report["paced"]["measured_ms"]["all"], 3);
    assert_latencies(&report["paced"]["corrected_ms"]["all"], 3);
    assert_comparison(&report["comparison"], &report["left_out"], 3);
    let saturated = assert_saturated(&report["saturated"]);
    let starts = report["starts"].as_object().unwrap().values();
    let started: u64 = starts.map(|count| count.as_u64().unwrap()).sum();
    assert_eq!(started, 3 + 3 + saturated + assert_starts(&report, 3));
    assert_eq!(report["settings"]["supervisor"], "own");
    let bars = report["bars"].as_array().unwrap();
    assert!(bars.iter().any(|bar| bar["name"] == "saturated latency"));
    // Every way that is left out is told, with what to do.
    let told = text(&output.stderr);
    for one in report["left_out"].as_array().unwrap() {
        assert!(told.contains(one["why"].as_str().unwrap()), "{told}");
    }
    state.assert_nothing_is_left();
}

/// Bytes in MiB and times in ms, with room for a busy host: what is frozen does nothing at all.
#[test]
#[ignore = "needs root and runsc"]
fn eight_that_wait_are_small_and_do_nothing_and_each_of_them_answers() {
    let state = exclusive();
    let small = "--mode density --density 8 --duration 2 --json -";
    let options: Vec<_> = small.split(' ').collect();
    let output = bench(&options).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let density = &report["density"];
    for field in ["ready", "frozen", "answered"] {
        assert_eq!(density[field], 8, "{field}: {density}");
    }
    let number = |field: &str| density[field].as_f64().unwrap();
    assert!(number("proportional_mib") < 8.0 * 70.0, "{density}");
    assert!(number("cgroup_mib") > 8.0, "{density}");
    assert!(number("frozen_cpu_ms") < 1.0, "{density}");
    assert!(number("watched_s") >= 2.0, "{density}");
    state.assert_nothing_is_left();
}

#[test]
#[ignore = "needs root and runsc"]
fn an_interrupted_run_tells_what_it_has_measured_and_leaves_nothing() {
    let state = exclusive();
    for (options, told) in [
        (&["--in-process"][..], "\nfrom the call, cold"),
        (&[], "\nfrom the call, warm"),
    ] {
        let mut child = bench(&[&["--jobs", "1000", "--rate", "5"], options].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
        let said = stderr.find(|line| line.as_ref().unwrap().starts_with("measuring: paced"));
        assert!(said.is_some());
        std::thread::sleep(Duration::from_secs(2));
        signal(&child, Signal::SIGINT);
        let mut printed = String::new();
        child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut printed)
            .unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130), "{printed}");
        assert!(printed.contains(told), "{printed}");
        assert!(printed.contains("\nstarts: "), "{printed}");
        let left = processes_that_mention("tako-vm-bench-");
        assert!(left.is_empty(), "{left:?}");
    }
    state.assert_nothing_is_left();
}

/// A program that ends at once in all ways but one, which are told apart by the names of their hosts.
#[test]
#[ignore = "needs root and runsc"]
fn an_interrupt_ends_what_other_runtimes_have_started() {
    let state = exclusive();
    for name in ["runsc", "runc", "crun"] {
        let code =
            format!("import os, time\nif os.uname().nodename == '{name}': time.sleep(1717)\n");
        let child = bench(&["--in-process", "--compare", "--jobs", "1", "-c", &code])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(on_this_host(Duration::from_secs(4)));
        signal(&child, Signal::SIGINT);
        let own = format!("bench-{}-", child.id());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{output:?}");
        let left = processes_that_mention("sleep(1717)");
        assert!(left.is_empty(), "{left:?}");
        let leaves = cgroup_leaves();
        assert!(
            !leaves.iter().any(|leaf| leaf.starts_with(&own)),
            "{leaves:?}"
        );
    }
    state.assert_nothing_is_left();
}

/// The cgroups that other runtimes make by themselves.
fn cgroup_leaves() -> Vec<String> {
    let roots = cgroup_parents();
    let roots = roots.iter().filter_map(|parent| parent.parent());
    roots.flat_map(names_in).collect()
}

#[test]
#[ignore = "needs root and runsc"]
fn what_cannot_be_measured_is_refused_with_what_to_do() {
    let state = exclusive();
    let failed = |arguments: &[&str]| {
        let output = bench(arguments).output().unwrap();
        (output.status.code(), text(&output.stderr).to_owned())
    };
    let (status, said) = failed(&["-c", "raise SystemExit(3)"]);
    assert_eq!(status, Some(2), "{said}");
    assert!(
        said.contains("hint: try the program with `tako-vm run"),
        "{said}"
    );
    let (status, said) = failed(&["--image", "nosuch"]);
    assert_eq!(status, Some(125), "{said}");
    assert!(said.contains("no executor image named `nosuch`"), "{said}");
    let (status, said) = failed(&["--json", "/nosuch/directory/file"]);
    assert_eq!(status, Some(2), "{said}");
    assert!(
        said.contains("cannot write `/nosuch/directory/file`"),
        "{said}"
    );
    state.assert_nothing_is_left();
}
