//! Group C: the kernel's surface. Every answer stands in a golden file.

use crate::attack::{Attack, SUCCEEDED};
use crate::golden::assert_golden;
use crate::host::{Part, Sandbox};
use crate::image;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What a program could have changed of the processes that it is made of: their priority, policy,
/// nice value, processors, and how readily they are killed for memory.
fn standing(sandbox: &Sandbox) -> BTreeMap<i32, String> {
    let mut processes = sandbox.parts(Part::Sentry);
    processes.extend(sandbox.parts(Part::Runsc));
    let state = |pid: i32| {
        let process = Path::new("/proc").join(pid.to_string());
        let read = |name: &str| fs::read_to_string(process.join(name)).unwrap();
        let status = read("status");
        let processors = status
            .lines()
            .find(|line| line.starts_with("Cpus_allowed:"));
        // Fields 18, 19, 40 and 41 of its state, counted from behind the name.
        let stat = read("stat");
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        let scheduling = [15, 16, 37, 38].map(|field| fields[field]).join(" ");
        format!(
            "{scheduling} {processors:?} {}",
            read("oom_score_adj").trim()
        )
    };
    processes.into_iter().map(|pid| (pid, state(pid))).collect()
}

/// When the host was started, by its wall clock, in seconds: what moves when the clock is set.
fn wall_clock() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let uptime = fs::read_to_string("/proc/uptime").unwrap();
    let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
    now.as_secs_f64() - uptime
}

/// A program whose first output tells that it asks now, and the rest what it was answered.
pub(crate) async fn ask_and_look(name: &'static str, program: &str) -> serde_json::Value {
    let clock = wall_clock();
    // The first line appears when all was tried.
    let (ended, (first, second)) = Attack::new(name, program)
        .observed(&SUCCEEDED, async |sandbox, _| {
            let first = standing(sandbox);
            tokio::time::sleep(Duration::from_millis(200)).await;
            (first, standing(sandbox))
        })
        .await;
    assert_eq!(first, second, "{name}");
    for (pid, standing) in &first {
        let own = fs::read_to_string("/proc/self/oom_score_adj").unwrap();
        assert!(
            // Ordinary and batch, as it was started.
            standing.starts_with("20 0 0 3 "),
            "{name}: {pid}: {standing}"
        );
        assert!(standing.ends_with(own.trim()), "{name}: {pid}: {standing}");
    }
    let moved = wall_clock() - clock;
    assert!(moved.abs() < 1.0, "{name}: the clock moved by {moved} s");
    ended.json()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn c1_to_c23_every_answer_of_the_kernel_is_the_golden_one() {
    let answers = ask_and_look("C", include_str!("programs/kernel.py")).await;
    assert_golden(
        "golden/kernel.json",
        include_str!("golden/kernel.json"),
        &answers,
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn c16_a_set_id_program_in_an_image_gives_no_rights() {
    let directory = tempfile::tempdir().unwrap();
    let image = image::with_set_id_programs(directory.path());
    let program = r"
import json, os, subprocess
show = '''
import json, os
status = dict(line.split(chr(9), 1) for line in open('/proc/self/status').read().splitlines())
def attempt(action, *arguments):
    try:
        action(*arguments)
        return 'granted'
    except OSError as error:
        return error.errno
print(json.dumps([os.getresuid(), os.getresgid(), status['CapPrm:'], status['CapEff:'],
                  attempt(os.setuid, 0), attempt(os.open, '/code/x', os.O_CREAT)]))
'''
def answer(name):
    path = '/usr/bin/' + name
    try:
        return [oct(os.stat(path).st_mode), *json.loads(subprocess.check_output([path, '-c', show]))]
    except OSError as error:
        return error.errno
print(json.dumps([answer(name) for name in ('python-setuid', 'python-setgid', 'python-capable')]))
";
    let ended = Attack::new("C16", program)
        .in_image(image)
        .ends(&SUCCEEDED)
        .await;
    let ids = [1000, 1000, 1000];
    let nothing = "0000000000000000";
    let ordinary = |mode: &str| json!([mode, ids, ids, nothing, nothing, 1, 13]);
    let answers = ended.json();
    assert_eq!(answers[0], ordinary("0o104755"));
    assert_eq!(answers[1], ordinary("0o102755"));
    // gVisor 20240729 reads no extended attribute of an EROFS image, nor a file that has some.
    let unreadable = json!(95);
    assert!(
        [ordinary("0o100755"), unreadable].contains(&answers[2]),
        "{answers}"
    );
}
