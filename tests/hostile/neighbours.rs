//! Group E: two sandboxes, beside or after one another.

use crate::attack::{Attack, SUCCEEDED};
use crate::host::{Company, Host, Part, job, names_in};
use serde_json::json;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use tako_vm::job::Termination;
use tokio::sync::mpsc;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn e1_e6_e9_nothing_of_a_job_is_there_for_the_next_and_nothing_of_its_users_on_the_host() {
    let host = Host::new();
    let leave = "
import os, socket
for place in ('/tmp', '/dev/shm', '/output', os.environ['HOME'], '/run/tako-vm', '/app', '/code'):
    try:
        with open(place + '/left', 'w') as file: file.write('left by the first')
    except OSError: pass
socket.socket(socket.AF_UNIX).bind('\\0left')
";
    let first = host.run(&job(leave)).await;
    assert_eq!(first.names(), ["left"]);
    let look = "
import json, os, socket
found = [os.path.join(root, name) for place in ('/tmp', '/dev/shm', '/output', '/run', '/app', '/code')
         for root, _, names in os.walk(place) for name in names]
try: socket.socket(socket.AF_UNIX).connect('\\0left')
except ConnectionRefusedError: found.append('refused')
print(json.dumps([found, float(open('/proc/uptime').read().split()[0]) < 60]))
";
    let second = host.run(&job(look)).await;
    let nothing = json!([["/run/tako-vm/report", "/code/main.py", "refused"], true]);
    assert_eq!(second.json(), nothing);
    for ran in [&first, &second] {
        assert_eq!(ran.outcome.timing.start.name(), "cold");
    }
    // Collected files are root's, and none belongs to a user of the sandbox.
    let mut places = vec![host.directory().to_owned()];
    while let Some(place) = places.pop() {
        let state = place.symlink_metadata().unwrap();
        assert_eq!((state.uid(), state.gid()), (0, 0), "{}", place.display());
        if state.is_dir() {
            places.extend(names_in(&place).iter().map(|name| place.join(name)));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn e3_a_job_sees_and_signals_its_own_processes_alone() {
    let program = "
import errno, os, signal
print('up', flush=True)
seen = sorted(name for name in os.listdir('/proc') if name.isdigit())
answers = []
for pid in range(1, 40_000):
    if pid == os.getpid(): continue
    try:
        os.kill(pid, signal.SIGKILL)
        answers.append([pid, 'killed'])
    except OSError as error:
        if error.errno != errno.ESRCH: answers.append([pid, errno.errorcode[error.errno]])
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.kill(0, signal.SIGTERM)
try: os.kill(-1, signal.SIGTERM)
except ProcessLookupError: pass
import json
with open('/output/result.json', 'w') as file: json.dump([seen, answers], file)
";
    // The job beside it, which every attack has, lives.
    let (ended, processes) = Attack::new("E3", program)
        .observed(&SUCCEEDED, async |sandbox, _| sandbox.processes().len())
        .await;
    assert!(processes > 3);
    let own = json!([["1", "2"], [[1, "EPERM"]]]);
    assert_eq!(ended.record["output"], own);
}

/// Holds every kind of lock and watch that there is on files of the image.
const HOLD: &str = "
import ctypes, fcntl, json, os, select, time
libc = ctypes.CDLL(None)
held = [open(path, 'rb') for path in ('/usr/bin/python3', '/etc/passwd', '/etc/hosts')]
fcntl.flock(held[0], fcntl.LOCK_EX)
try: fcntl.lockf(held[1], fcntl.LOCK_SH)
except OSError: pass
try: fcntl.fcntl(held[2], fcntl.F_SETLEASE, fcntl.F_RDLCK)
except OSError: pass
notes = libc.inotify_init1(os.O_NONBLOCK)
libc.inotify_add_watch(notes, b'/etc', 0xfff)
libc.inotify_add_watch(notes, b'/usr/bin/python3', 0xfff)
print('held', flush=True)
time.sleep(3)
try: seen = len(os.read(notes, 4096))
except OSError: seen = 0
print(json.dumps(seen))
";

/// Tries the same locks, and touches what is watched.
const TRY: &str = "
import fcntl, json, os
answers = []
for path, lock, how in (('/usr/bin/python3', fcntl.flock, fcntl.LOCK_EX), ('/etc/passwd', fcntl.lockf, fcntl.LOCK_SH)):
    try: answers.append(lock(open(path, 'rb'), how | fcntl.LOCK_NB))
    except OSError as error: answers.append(error.errno)
for name in os.listdir('/etc'):
    if os.path.isfile('/etc/' + name): open('/etc/' + name, 'rb').read()
print(json.dumps(answers))
";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn e4_locks_and_watches_on_the_shared_image_tell_a_neighbour_nothing() {
    let (ended, answers) = Attack::new("E4", HOLD)
        .observed(&SUCCEEDED, async |_, _| {
            Host::new().run(&job(TRY)).await.json()
        })
        .await;
    assert_eq!(answers, json!([null, null]));
    assert_eq!(ended.stdout, b"held\n0\n");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn e7_two_sandboxes_side_by_side_share_no_name_and_no_namespace() {
    let host = Host::new();
    let wait = job("import time; print('up', flush=True); time.sleep(2)");
    let (one, mut first) = mpsc::channel(4);
    let (other, mut second) = mpsc::channel(4);
    let company = |events| Company {
        events: Some(events),
        ..Company::default()
    };
    let (one, other, ()) = tokio::join!(
        host.run_with(&wait, company(one)),
        host.run_with(&wait, company(other)),
        async {
            first.recv().await.unwrap();
            second.recv().await.unwrap();
            let sandboxes = host
                .sandboxes()
                .into_iter()
                .map(|id| crate::host::Sandbox { id });
            let namespaces = sandboxes.map(|sandbox| {
                let sentry = sandbox.parts(Part::Sentry)[0];
                ["ipc", "mnt", "net", "user", "uts"].map(|name| {
                    fs::read_link(
                        Path::new("/proc")
                            .join(sentry.to_string())
                            .join("ns")
                            .join(name),
                    )
                    .unwrap()
                })
            });
            let namespaces: Vec<_> = namespaces.collect();
            assert_eq!(namespaces.len(), 2);
            for (one, other) in namespaces[0].iter().zip(&namespaces[1]) {
                assert_ne!(one, other);
            }
        }
    );
    for ran in [&one, &other] {
        assert_eq!(ran.outcome.termination, Termination::Exited(0));
        let random = ran.outcome.id.strip_prefix("tako-").unwrap();
        assert_eq!(hex::decode(random).unwrap().len(), 16);
    }
    assert_ne!(one.outcome.id, other.outcome.id);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn e10_a_job_beside_a_hog_of_everything_succeeds() {
    let hog = "
import os
print('up', flush=True)
for _ in range(20):
    if os.fork() == 0: break
held = []
while True:
    try: open('/tmp/x', 'ab').write(bytes(1 << 20))
    except OSError: pass
    sum(range(1_000_000))
    os.write(1, bytes(1 << 16))
";
    let quiet = Host::new().run(&job("print(sum(range(10**6)))")).await;
    let (_, beside) = Attack::new("E10", hog)
        .seconds(4)
        .limits(|limits| limits.output_bytes = 1 << 40)
        .observed(&crate::attack::TIMED_OUT, async |_, _| {
            let mut times = Vec::new();
            for _ in 0..3 {
                let ran = Host::new().run(&job("print(sum(range(10**6)))")).await;
                assert_eq!(ran.json(), json!(499_999_500_000_u64));
                times.push(ran.took);
            }
            times
        })
        .await;
    println!("{beside:?} beside it, {:?} with nobody", quiet.took);
}
