//! `tako-vm supervisor status`.

use crate::beside_others;
use crate::command::{assert_refused, text};
use crate::invocation::as_user;
use crate::run;
use crate::supervisor::{group, supervisor};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use tako_vm::supervisor::wire::Stats;

fn status(arguments: &[&str]) -> Command {
    let mut command = as_user(&[&group().to_string()]);
    command.args(["supervisor", "status", "--socket"]);
    command.arg(supervisor().socket()).args(arguments);
    command
}

#[tokio::test]
#[ignore = "needs root and runsc"]
async fn the_status_is_for_people_or_one_object() {
    let _guard = beside_others().await;
    run("print(1)").await;
    let output = status(&[]).output().unwrap();
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    let names: Vec<_> = shown
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    let expected = [
        "supervisor",
        "jobs",
        "connections",
        "sandboxes",
        "kills",
        "ready",
    ];
    assert_eq!(names[..6], expected, "{shown}");
    assert!(shown.contains("takes jobs"), "{shown}");

    let output = status(&["--json"]).output().unwrap();
    assert_eq!(text(&output.stdout).lines().count(), 1);
    let stats: Stats = serde_json::from_slice(&output.stdout).unwrap();
    assert!(stats.ended > 0 && stats.kill.count > 0, "{stats:?}");
    assert_eq!(stats.max_jobs, 32);

    let stranger = as_user(&[])
        .args(["supervisor", "status", "--socket"])
        .arg(supervisor().socket())
        .output()
        .unwrap();
    assert_refused(&stranger, 125, "no supervisor answers at");
}

#[test]
#[ignore = "needs root and runsc"]
#[expect(
    clippy::disallowed_methods,
    reason = "the child is ours and not waited for: its number is not given anew"
)]
fn a_live_status_goes_on_until_it_is_interrupted() {
    let mut child = status(&["--watch", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut uptimes = Vec::new();
    for _ in 0..3 {
        let stats: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        uptimes.push(stats["uptime_ms"].as_u64().unwrap());
    }
    assert!(uptimes[2] - uptimes[0] >= 1900, "{uptimes:?}");
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    nix::sys::signal::kill(pid, Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
