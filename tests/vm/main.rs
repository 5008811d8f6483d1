//! The same tests in a virtual machine with Debian 12, whose systemd has cgroup version 2 and nothing
//! else: needs root and qemu. `README.md` tells how it works.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test reports by panicking, and so do the functions it is written with"
)]

mod disk;
mod lists;
mod machine;
mod report;

use report::Report;
use serde_json::Value;
use std::io::{self, Write};
use std::sync::LazyLock;

/// The one run of the machine that all tests read the report of.
static REPORT: LazyLock<Result<Report, String>> = LazyLock::new(machine::report);

fn report() -> &'static Report {
    match &*REPORT {
        Ok(report) => report,
        Err(why) => panic!("{why}"),
    }
}

/// Tells how far the machine is. Not by `println!`, which a test keeps to itself: this takes minutes.
fn say(line: &str) {
    // Nobody may be listening.
    writeln!(io::stderr(), "vm: {line}").ok();
}

#[test]
#[ignore = "needs root and qemu"]
fn the_machine_has_cgroup_version_2_and_nothing_else() {
    let mounts = report().part("mounts");
    let of = |kind: &str| mounts.matches(&format!(" - {kind} ")).count();
    assert_eq!((of("cgroup"), of("cgroup2")), (0, 1), "{mounts}");
    let controllers = report().part("controllers");
    for needed in ["cpu", "memory", "pids"] {
        assert!(controllers.split_whitespace().any(|name| name == needed));
    }
    // Without swap nobody would notice that it is not limited.
    assert!(report().part("swap").contains("/dev/vdc"));
}

#[test]
#[ignore = "needs root and qemu"]
fn a_host_is_set_up_and_prints_the_answer_of_its_first_program() {
    let setup = report().part("setup");
    assert!(setup.ends_with("status 0"), "{setup}");
    assert_eq!(report().part("hello"), "2\nstatus 0");
}

#[test]
#[ignore = "needs root and qemu"]
fn doctor_knows_the_host_and_finds_nothing_wrong_with_its_cgroups() {
    let part = report().part("doctor");
    let told: Value = serde_json::from_str(part.lines().next().unwrap()).unwrap();
    let check = |id: &str| {
        let checks = told["checks"].as_array().unwrap();
        let found = checks.iter().find(|check| check["id"] == id);
        let check = found.unwrap_or_else(|| panic!("no `{id}` in {part}"));
        (
            check["verdict"].as_str().unwrap(),
            check["found"].as_str().unwrap(),
        )
    };
    assert_eq!(check("cgroups"), ("ok", "version 2"));
    for id in ["kernel", "libseccomp", "swap", "user", "image", "runsc"] {
        assert_eq!(check(id).0, "ok", "{id}: {part}");
    }
    // What is tried out has ten seconds, whatever the host: an emulator may need more.
    for id in ["denied_call", "limits", "out_of_memory", "backstop"] {
        let (verdict, found) = check(id);
        assert!(
            verdict == "ok" || found.contains("it took too long"),
            "{id}: {part}"
        );
    }
}

#[test]
#[ignore = "needs root and qemu"]
fn a_hierarchy_that_is_mounted_twice_is_one() {
    assert_eq!(report().part("mounted-twice"), "2\nstatus 0");
}

#[test]
#[ignore = "needs root and qemu"]
fn a_container_without_the_hosts_hierarchy_is_told_what_it_needs() {
    let part = report().part("in-a-container");
    assert!(
        part.contains("while processes are in that very cgroup"),
        "{part}"
    );
    assert!(part.ends_with("status 125"), "{part}");
}

#[test]
#[ignore = "needs root and qemu"]
fn limits_stay_while_systemd_writes_to_the_same_hierarchy() {
    let expected = "\
status 0
cpu.max:50000 100000
memory.max:134217728
memory.swap.max:0
memory.oom.group:0
cgroup.type:domain
status 130";
    assert_eq!(report().part("beside-systemd"), expected);
}

#[test]
#[ignore = "needs root and qemu"]
fn every_test_on_the_lists_passes_there() {
    for list in &lists::LISTS {
        report().assert_passed(list);
    }
}
