//! What is particular to a container of permissive mode.

use crate::host::{Company, Host, Part, Sandbox, job, names_in, script, signal, state_dir};
use crate::owner::{self, Owner, directory, start_and_assert_clean};
use nix::sys::signal::Signal;
use serde_json::json;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};
use tako_vm::job::Termination;
use tako_vm::sys::process;
use tokio::sync::mpsc;

/// Looked at from outside: root of the container is nobody here, and every process that it has is
/// under the filter.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn nobody_inside_is_a_user_of_the_host_and_everybody_is_under_a_filter() {
    let host = Host::new();
    let (sender, mut events) = mpsc::channel(16);
    let company = Company {
        events: Some(sender),
        ..Company::default()
    };
    let job = job("
import subprocess, threading, time
threading.Thread(target=time.sleep, args=(1,)).start()
subprocess.Popen(['sleep', '1'])
print('up', flush=True)
time.sleep(1)
");
    let (_, ()) = tokio::join!(host.run_with(&job, company), async {
        let sandbox = host.running(&mut events).await;
        let init = sandbox.parts(Part::Sentry);
        let programs = sandbox.parts(Part::Stub);
        assert_eq!((init.len(), programs.len()), (1, 2));
        for (pids, offset, capabilities) in [(init, 0, "e0"), (programs, 1000, "00")] {
            for pid in pids {
                let tasks = Path::new("/proc").join(pid.to_string()).join("task");
                for thread in names_in(&tasks) {
                    let status = fs::read_to_string(tasks.join(thread).join("status")).unwrap();
                    assert_confined(&status, offset, capabilities);
                }
            }
        }
    });
}

fn assert_confined(status: &str, offset: u32, capabilities: &str) {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().split_whitespace().collect::<Vec<_>>()
    };
    for ids in [field("Uid:"), field("Gid:")] {
        let id: u32 = ids[0].parse().unwrap();
        assert!((0x7000_0000..0x7ffe_0000).contains(&id), "{status}");
        assert_eq!(id % 1024, offset % 1024, "{status}");
        assert!(ids.iter().all(|other| *other == ids[0]), "{status}");
    }
    for set in ["CapPrm:", "CapEff:"] {
        assert_eq!(
            field(set),
            [format!("00000000000000{capabilities}")],
            "{status}"
        );
    }
    for empty in ["CapInh:", "CapAmb:"] {
        assert_eq!(field(empty), ["0000000000000000"], "{status}");
    }
    assert_eq!(field("CapBnd:"), ["00000000000000e0"], "{status}");
    assert_eq!(field("NoNewPrivs:"), ["1"], "{status}");
    assert_eq!(field("Seccomp:"), ["2"], "{status}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn every_namespace_is_its_own() {
    let kinds = ["pid", "net", "ipc", "uts", "mnt", "cgroup", "user"];
    let ran = Host::new()
        .run(&job("
import json, os
print(json.dumps({kind: os.readlink('/proc/self/ns/' + kind) for kind in os.listdir('/proc/self/ns')}))
"))
        .await;
    let inside = ran.json();
    for kind in kinds {
        let host = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        let inside = inside[kind].as_str().unwrap();
        assert!(inside.starts_with(kind), "{inside}");
        assert_ne!(inside, host.to_str().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn the_mounts_are_these_and_the_host_has_none_of_them() {
    let before = fs::read_to_string("/proc/self/mounts").unwrap();
    let ran = Host::new()
        .run(&job("
import json
lines = [line.split() for line in open('/proc/self/mounts')]
print(json.dumps([[at, kind, sorted(set(options.split(',')) & {'ro', 'nosuid', 'nodev', 'noexec'})]
                  for _, at, kind, options, *_ in lines if not at.startswith(('/dev/', '/proc/'))]))
"))
        .await;
    let tmpfs = |at: &str| json!([at, "tmpfs", ["nodev", "noexec", "nosuid"]]);
    let expected = json!([
        ["/", "erofs", ["nodev", "nosuid", "ro"]],
        ["/proc", "proc", ["nodev", "noexec", "nosuid"]],
        ["/dev", "tmpfs", ["noexec", "nosuid"]],
        tmpfs("/run"),
        tmpfs("/code"),
        tmpfs("/input"),
        tmpfs("/output"),
        tmpfs("/tmp"),
    ]);
    assert_eq!(ran.json(), expected);
    assert_eq!(fs::read_to_string("/proc/self/mounts").unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn what_tells_of_the_host_or_changes_it_is_masked_or_read_only() {
    let ran = Host::new()
        .run(&job("
import errno, json, os
def attempt(action, *arguments):
    try:
        return action(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
def read(path):
    with open(path, 'rb') as file:
        return len(file.read(100))
def write(path):
    with open(path, 'wb') as file:
        return file.write(b'1')
print(json.dumps([
    [attempt(read, '/proc/' + name) for name in ('kcore', 'keys', 'timer_list')],
    [attempt(write, '/proc/' + name) for name in ('sys/kernel/core_pattern', 'sysrq-trigger')],
    attempt(os.listdir, '/sys'),
]))
"))
        .await;
    let answers = ran.json();
    for hidden in answers[0].as_array().unwrap() {
        let hidden = hidden.to_string();
        assert!(
            ["0", "\"ENOENT\"", "\"EACCES\""].contains(&hidden.as_str()),
            "{answers}"
        );
    }
    for fixed in answers[1].as_array().unwrap() {
        let fixed = fixed.as_str().unwrap_or("written");
        assert!(["EROFS", "EACCES", "ENOENT"].contains(&fixed), "{answers}");
    }
    assert_eq!(answers[2], json!([]));
}

/// Each has ids of its own, so that one cannot count against the process limit of another.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn two_containers_have_different_users() {
    let host = Host::new();
    let code = "print(open('/proc/self/uid_map').read().split()[1])";
    let (one, other) = (host.run(&job(code)).await, host.run(&job(code)).await);
    assert_ne!(one.stdout(), other.stdout());
    assert!(one.stderr().is_empty() && other.stderr().is_empty());
}

/// Files of the whole host are not written out, and no module is asked for: the refusals are the
/// profile's EPERM, where Linux alone would grant or answer otherwise.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn calls_that_reach_the_whole_host_are_refused() {
    let ran = Host::new()
        .run(&job("
import ctypes, errno, json, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(number, *map(ctypes.c_long, arguments))
    return errno.errorcode[ctypes.get_errno()] if result == -1 else 'granted'
def make(*arguments):
    try:
        socket.socket(*arguments).close()
        return 'granted'
    except OSError as error:
        return errno.errorcode[error.errno]
TCP, UDP, OTHER = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET
families = (socket.AF_INET, socket.AF_INET6)
wanted = [(TCP, 0), (TCP, 6), (UDP, 0), (UDP, 17), (TCP | socket.SOCK_NONBLOCK, 6)]
refused = [(OTHER, 0), (OTHER, 132), (TCP, 132), (TCP, 262), (UDP, 136), (6, 0), (6, 33), (TCP, 17)]
print(json.dumps([
    [call(162), call(306, 1)],
    sorted({make(family, *pair) for family in families for pair in wanted}),
    sorted({make(family, *pair) for family in families for pair in refused}),
    make(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0),
]))
"))
        .await;
    let expected = json!([["EPERM", "EPERM"], ["granted"], ["EPERM"], "granted"]);
    assert_eq!(ran.json(), expected);
}

/// Limits of its own, whatever the caller has.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn what_the_caller_may_does_not_reach_a_container() {
    let host = Host::new();
    let ran = host
        .run(&job("
import errno, json, os, resource
def attempt(action, *arguments):
    try:
        action(*arguments)
        return 'granted'
    except OSError as error:
        return errno.errorcode[error.errno]
print(json.dumps([
    int(open('/proc/self/oom_score_adj').read()),
    resource.getrlimit(14), resource.getrlimit(13), resource.getrlimit(resource.RLIMIT_MEMLOCK),
    attempt(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1)),
    attempt(os.setpriority, os.PRIO_PROCESS, 0, -1),
]))
"))
        .await;
    let expected = json!([0, [0, 0], [0, 0], [65536, 65536], "EPERM", "EACCES"]);
    assert_eq!(ran.json(), expected);
}

/// Runs a job with a runtime that was given another specification, and returns why it was not run.
async fn refused(change: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let body = format!(
        "for word; do [ \"$before\" = --bundle ] && bundle=$word; before=$word; done\n\
         sed -i '{change}' \"$bundle/config.json\"\nexec $RUNSC \"$@\""
    );
    let host = Host::with_runsc(&script(directory.path(), &body));
    let ran = host.run(&job("print('never')")).await;
    assert_eq!(ran.outcome.stdout.bytes, b"");
    match ran.outcome.termination {
        Termination::SandboxLost(why) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_container_that_is_not_confined_is_given_no_program() {
    let filter = refused(r#"s/"seccomp":/"no-seccomp":/"#).await;
    let expected = "init reports: the seccomp profile is not in force";
    assert!(filter.starts_with(expected), "{filter}");
    let privileges = refused(r#"s/"noNewPrivileges":true/"noNewPrivileges":false/"#).await;
    assert!(!privileges.is_empty());
    let changes = [
        (r#"s/"CAP_KILL"/"CAP_KILL","CAP_CHOWN"/g"#, "CapBnd"),
        (r#"s/{"type":"network"},*//"#, "net"),
        (
            r#"s/"hostID":[0-9]*,"containerID":0,/"hostID":4096,"containerID":0,/"#,
            "Uid",
        ),
    ];
    for (change, line) in changes {
        let why = refused(change).await;
        let expected =
            "its program would not be confined: what holds its init back is not as asked";
        assert!(why.starts_with(expected), "{change}: {why}");
        let named = [
            format!("has no line `{line}"),
            format!("/ns/{line}` is that of the host"),
        ];
        assert!(
            named.iter().any(|name| why.contains(name)),
            "{change}: {why}"
        );
    }
}

/// Mounts of any process, and loop devices, in which a file below `directory` is.
fn uses_of(directory: &Path) -> BTreeSet<String> {
    let directory = format!("{}/", directory.display());
    let lines = |path: String| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let mounts = names_in(Path::new("/proc"))
        .into_iter()
        .flat_map(|pid| lines(format!("/proc/{pid}/mountinfo")));
    let devices = names_in(Path::new("/sys/block"))
        .into_iter()
        .flat_map(|name| lines(format!("/sys/block/{name}/loop/backing_file")));
    let all = mounts.chain(devices);
    all.filter(|line| line.contains(&directory)).collect()
}

/// Its processes are stopped, so that none of them can end by itself: the sweep has to do it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn an_owners_container_goes_with_its_mount_after_it_was_killed() {
    if let Some(orders) = owner::orders() {
        return owner::own(&orders).await;
    }
    let directory = directory();
    // An image of its own, which no other test mounts.
    let mut cp = process::program("cp");
    cp.arg("--archive").arg(state_dir().join("images"));
    process::run(cp.arg(directory.path())).unwrap();
    // As their next parent: a process group that falls to init is woken by the kernel.
    process::become_subreaper().unwrap();
    let mut owner = Owner::stop(directory.path(), "Running", 1);
    let ids = owner::names(directory.path(), "sandboxes");
    assert_eq!(ids.len(), 1, "{ids:?}");
    let sandbox = Sandbox { id: ids[0].clone() };
    // The runtime, init, and eight of the program, once it has forked.
    let begun = Instant::now();
    while sandbox.processes().len() < 10 {
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "{:?}",
            sandbox.processes()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    let pids: Vec<_> = sandbox.processes().iter().map(|(pid, _)| *pid).collect();
    signal(&pids, Signal::SIGSTOP);
    let image = directory.path().join("images");
    assert!(!uses_of(&image).is_empty(), "it is mounted");
    owner.kill();
    sandbox.parts(Part::Sentry);
    let begun = Instant::now();
    let took = start_and_assert_clean(directory.path(), &ids);
    println!("swept in {took:?}");
    // The kernel takes a mount apart a moment after its last process.
    while !uses_of(&image).is_empty() {
        assert!(
            begun.elapsed() < Duration::from_secs(2),
            "{:?}",
            uses_of(&image)
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    for pid in pids {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        assert!(
            status.is_empty() || status.contains("State:\tZ"),
            "{status}"
        );
    }
}
