//! What a program finds, may do, and leaves: the program contract.

use crate::host::{Host, Part, Sandbox, container, job, on_this_host, request};
use serde_json::json;
use std::time::Duration;
use tako_vm::job::{InputFile, JobRequest, Phase, Termination};
use tako_vm::runc::Kind;

/// Prints at once, and lives for as long as it is looked at.
const WAITS: &str = "import time; print('up', flush=True); time.sleep(1)";

/// A function that tells why something failed, or that it did not.
const ATTEMPT: &str = "
import errno, json, os
def attempt(action, *arguments):
    try:
        action(*arguments)
        return 'done'
    except OSError as error:
        return errno.errorcode[error.errno]
def write(path):
    with open(path, 'wb') as file:
        file.write(b'x')
";

fn attempting(code: &str) -> tako_vm::job::JobSpec {
    job(&format!("{ATTEMPT}{code}"))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_program_is_started_as_an_ordinary_user_without_any_privilege() {
    let ran = Host::new()
        .run(&job("
import ctypes, json, os, sys
status = dict(line.rstrip('\\n').partition(':\\t')[::2] for line in open('/proc/self/status'))
print(json.dumps({
    'argv': sys.argv, 'command': sys.orig_argv, 'cwd': os.getcwd(), 'parent': os.getppid(),
    'uids': os.getresuid(), 'gids': os.getresgid(), 'groups': os.getgroups(),
    'capabilities': [status['Cap' + kind] for kind in ('Eff', 'Prm', 'Inh')],
    'seccomp': status['Seccomp'],
    'no_new_privs': ctypes.CDLL(None).prctl(39, 0, 0, 0, 0),
    'stdin': sys.stdin.read(),
}))
"))
        .await;
    let nothing = "0000000000000000";
    let expected = json!({
        "argv": ["/code/main.py"],
        "command": ["python3", "-u", "/code/main.py"],
        "cwd": "/app",
        "parent": 1,
        "uids": [1000, 1000, 1000],
        "gids": [1000, 1000, 1000],
        "groups": [],
        "capabilities": [nothing, nothing, nothing],
        "seccomp": "2",
        "no_new_privs": 1,
        "stdin": "",
    });
    assert_eq!(ran.json(), expected);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_program_inherits_three_descriptors_and_no_signal_that_is_blocked_or_ignored() {
    let ran = Host::new()
        .run(&job("
import json, os, signal
def is_open(descriptor):
    try:
        os.fstat(descriptor)
        return True
    except OSError:
        return False
ignored = [s for s in signal.valid_signals() if signal.getsignal(s) != signal.SIG_DFL]
print(json.dumps({
    'open': [descriptor for descriptor in range(256) if is_open(descriptor)],
    'blocked': list(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))),
    'changed': sorted(map(int, ignored)),
}))
"))
        .await;
    // SIGINT, SIGPIPE and SIGXFSZ are changed by the interpreter itself.
    let expected = json!({ "open": [0, 1, 2], "blocked": [], "changed": [2, 13, 25] });
    assert_eq!(ran.json(), expected);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn the_environment_is_the_allow_list_with_the_jobs_own_variables_over_it() {
    let print = "import json, os; print(json.dumps(dict(os.environ)))";
    let host = Host::new();
    let mut expected = json!({
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": "/tmp",
        "LANG": "C.UTF-8",
        "XDG_CACHE_HOME": "/tmp/.cache",
        "MPLCONFIGDIR": "/tmp/.cache/matplotlib",
    });
    assert_eq!(host.run(&job(print)).await.json(), expected);
    let own = request(JobRequest {
        code: print.to_owned(),
        environment: vec![
            ("HOME".to_owned(), "/output".to_owned()),
            ("GREETING".to_owned(), "grüß dich = 🐙\n".to_owned()),
        ],
        ..JobRequest::default()
    });
    expected["HOME"] = json!("/output");
    expected["GREETING"] = json!("grüß dich = 🐙\n");
    assert_eq!(host.run(&own).await.json(), expected);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_program_cannot_change_its_root_its_code_its_input_or_init() {
    let ran = Host::new()
        .run(&attempting(
            "
places = ['/x', '/app/x', '/usr/bin/python3', '/etc/passwd', '/root/x', '/code/x', '/code/main.py',
          '/input/x', '/input/data.json', '/run/x', '/run/tako-vm/x', '/dev/x', '/sys/x', '/proc/x']
failed = {place: attempt(write, place) for place in places}
failed['unlink'] = attempt(os.unlink, '/code/main.py')
failed['rename'] = attempt(os.rename, '/input/data.json', '/tmp/data.json')
failed['chmod'] = attempt(os.chmod, '/input/data.json', 0o666)
failed['kill init'] = attempt(os.kill, 1, 9)
failed['memory of init'] = attempt(write, '/proc/1/mem')
print(json.dumps(failed))
",
        ))
        .await;
    let mut expected = json!({
        // gVisor looks at the mount only when a file is made, and at the permissions otherwise.
        "/x": "EROFS", "/app/x": "EROFS", "/usr/bin/python3": "EACCES", "/etc/passwd": "EACCES",
        "/root/x": "EACCES",
        "/code/x": "EACCES", "/code/main.py": "EACCES",
        "/input/x": "EACCES", "/input/data.json": "EACCES",
        "/run/x": "EACCES", "/run/tako-vm/x": "EACCES",
        "/dev/x": "EACCES", "/sys/x": "EACCES", "/proc/x": "EACCES",
        "unlink": "EACCES", "rename": "EXDEV", "chmod": "EPERM",
        "kill init": "EPERM", "memory of init": "EACCES",
    });
    if container().is_some() {
        // Linux looks at the mount first, lets nobody make anything in `/proc`, and has nothing at
        // `/sys` here but the image's directory.
        expected["/proc/x"] = json!("ENOENT");
        for place in ["/usr/bin/python3", "/etc/passwd", "/sys/x"] {
            expected[place] = json!("EROFS");
        }
    }
    assert_eq!(ran.json(), expected);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn writable_directories_take_what_they_are_sized_for_and_no_more() {
    let mut job = attempting(
        "
def fill(path):
    written = 0
    try:
        with open(path + '/fill', 'wb', buffering=0) as file:
            while True:
                written += file.write(bytes(1 << 20))
    except OSError as error:
        failure = errno.errorcode[error.errno]
    os.unlink(path + '/fill')
    return [failure, written >> 20]
print(json.dumps({path: fill(path) for path in ('/tmp', '/dev/shm', '/output')}))
",
    );
    job.limits.tmp_bytes = 8 << 20;
    job.limits.artifacts_total_bytes = 10 << 20;
    let expected = json!({
        "/tmp": ["ENOSPC", 8], "/dev/shm": ["ENOSPC", 64], "/output": ["ENOSPC", 11],
    });
    assert_eq!(Host::new().run(&job).await.json(), expected);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn input_arrives_byte_for_byte() {
    let all_bytes: Vec<u8> = (0..=255).collect();
    let file = |name: &str, bytes: &[u8]| InputFile {
        name: name.to_owned(),
        bytes: bytes.to_vec(),
    };
    let job = request(JobRequest {
        code: "
import hashlib, json, os
print(json.dumps({
    'data': json.load(open('/input/data.json')),
    'files': {name: hashlib.sha256(open('/input/' + name, 'rb').read()).hexdigest()
              for name in sorted(os.listdir('/input'))},
    'mode': oct(os.stat('/input/data.json').st_mode),
}))
"
        .to_owned(),
        input: Some(r#"{"größe": "日本語 🐙", "tief": [[[1e3]]]}"#.to_owned()),
        files: vec![
            file("bytes.bin", &all_bytes),
            file("ein größerer Name.txt", &all_bytes.repeat(1 << 14)),
            file("empty", b""),
        ],
        ..JobRequest::default()
    });
    let sum = |bytes: &[u8]| {
        use sha2::Digest;
        hex::encode(sha2::Sha256::digest(bytes))
    };
    let expected = json!({
        "data": { "größe": "日本語 🐙", "tief": [[[1000.0]]] },
        "files": {
            "bytes.bin": sum(&all_bytes),
            "data.json": sum(job.input.as_bytes()),
            "ein größerer Name.txt": sum(&all_bytes.repeat(1 << 14)),
            "empty": sum(b""),
        },
        "mode": "0o100444",
    });
    assert_eq!(Host::new().run(&job).await.json(), expected);
}

/// Files of every kind that are the program's own and are to be collected.
const FILES: &str = "
import os, tempfile
def put(path, text):
    with open('/output/' + path, 'w') as file:
        file.write(text)
put('plain.txt', 'plain')
os.makedirs('/output/a/b')
put('a/b/deep.txt', 'deep')
descriptor, path = tempfile.mkstemp(dir='/output')
os.write(descriptor, b'temporary')
os.rename(path, '/output/temporary')
put('unreadable', 'unreadable')
os.chmod('/output/unreadable', 0)
os.mkdir('/output/closed')
put('closed/inside', 'inside')
os.chmod('/output/closed', 0)
put('größe 🐙.txt', 'named')
put('empty', '')
";

fn assert_files_are_there(ran: &crate::host::Ran) {
    let expected = [
        ("a/b/deep.txt", "deep"),
        ("closed/inside", "inside"),
        ("empty", ""),
        ("größe 🐙.txt", "named"),
        ("plain.txt", "plain"),
        ("temporary", "temporary"),
        ("unreadable", "unreadable"),
    ];
    let found: Vec<_> = ran
        .files
        .iter()
        .map(|(name, bytes)| (name.as_str(), str::from_utf8(bytes).unwrap()))
        .collect();
    assert_eq!(found, expected);
    assert!(!ran.outcome.artifacts_truncated);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn output_is_collected_however_the_program_ends() {
    let host = Host::new();
    let succeeded = host.run(&job(FILES)).await;
    assert_eq!(succeeded.outcome.termination, Termination::Exited(0));
    assert_files_are_there(&succeeded);

    let failed = host.run(&job(&format!("{FILES}raise SystemExit(3)"))).await;
    assert_eq!(failed.outcome.termination, Termination::Exited(3));
    assert_files_are_there(&failed);

    let mut endless = job(&format!("{FILES}print('before')\nwhile True: pass"));
    endless.limits.execution = Duration::from_secs(1);
    let timed_out = host.run(&endless).await;
    let execution = Termination::TimedOut(Phase::Execution);
    assert_eq!(timed_out.outcome.termination, execution);
    assert_eq!(timed_out.stdout(), "before\n");
    assert_files_are_there(&timed_out);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn what_is_no_file_of_the_programs_is_left_out_and_said_so() {
    let ran = Host::new()
        .run(&job("
import os, socket
os.symlink('/etc/passwd', '/output/link')
os.symlink('/etc', '/output/linked')
os.mkfifo('/output/fifo')
socket.socket(socket.AF_UNIX).bind('/output/socket')
open('/output/.hidden', 'w').close()
os.mkdir('/output/.git')
open('/output/.git/config', 'w').close()
open(b'/output/\\xff', 'w').close()
open('/output/line\\nbreak', 'w').close()
open('/output/kept', 'w').close()
"))
        .await;
    assert_eq!(ran.names(), ["kept"]);
    assert!(ran.outcome.artifacts_truncated);
    let mut skipped: Vec<_> = ran
        .outcome
        .artifacts_skipped
        .iter()
        .map(|skipped| format!("{}: {}", skipped.name, skipped.reason))
        .collect();
    skipped.sort();
    let bad = "its name is not UTF-8, has control characters or is too long";
    let expected = [
        "fifo: not a regular file".to_owned(),
        format!("line\\nbreak: {bad}"),
        "link: not a regular file".to_owned(),
        "linked: not a regular file".to_owned(),
        "socket: not a regular file".to_owned(),
        format!("\u{fffd}: {bad}"),
    ];
    assert_eq!(skipped, expected);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn hidden_files_alone_are_nothing_to_report() {
    let ran = Host::new()
        .run(&job("open('/output/.hidden', 'w').write('x')"))
        .await;
    assert!(ran.files.is_empty());
    assert!(!ran.outcome.artifacts_truncated);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn files_above_the_limits_are_left_out_and_the_others_are_not() {
    let mut job = job("
def put(name, size):
    with open('/output/' + name, 'wb') as file:
        file.write(bytes(size))
put('a-too-large', 101)
put('b-largest', 100)
put('c', 100)
put('d-too-much', 60)
put('e', 50)
put('result.json', 10)
");
    job.limits.artifact_bytes = 100;
    job.limits.artifacts_total_bytes = 1 << 20;
    let ran = Host::new().run(&job).await;
    assert_eq!(
        ran.names(),
        ["b-largest", "c", "d-too-much", "e", "result.json"]
    );
    assert!(ran.outcome.artifacts_truncated);
    assert_eq!(ran.outcome.artifacts_skipped.len(), 1);
    assert_eq!(ran.outcome.artifacts_skipped[0].name, "a-too-large");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn the_result_is_collected_first_whatever_else_there_is() {
    let mut job = job("
for number in range(1100):
    open(f'/output/{number:04}', 'w').close()
with open('/output/result.json', 'w') as file:
    file.write('[1]')
");
    job.limits.open_files = 64;
    let ran = Host::new().run(&job).await;
    assert_eq!(ran.outcome.termination, Termination::Exited(0));
    assert_eq!(ran.files.len(), 1000);
    assert_eq!(ran.files["result.json"], b"[1]");
    assert!(ran.files.contains_key("0998"), "the first 999 by name");
    assert!(ran.outcome.artifacts_truncated);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn directories_without_end_do_not_hold_up_the_collection() {
    let ran = Host::new()
        .run(&job("
import os
os.chdir('/output')
open('top', 'w').close()
for depth in range(200):
    os.mkdir('d')
    os.chdir('d')
    open('file', 'w').close()
"))
        .await;
    assert_eq!(ran.outcome.termination, Termination::Exited(0));
    assert!(ran.files.contains_key("top"));
    assert!(ran.files.contains_key("d/file"));
    assert!(ran.files.len() < 12, "{:?}", ran.names());
    assert!(ran.outcome.artifacts_truncated);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn devices_that_no_program_needs_are_not_there() {
    let ran = Host::new()
        .run(&attempting(
            "
gone = {path: attempt(os.stat, path) for path in ('/dev/fuse', '/dev/net/tun')}
print(json.dumps([gone, sorted(os.listdir('/dev'))]))
",
        ))
        .await;
    let gone = json!({ "/dev/fuse": "ENOENT", "/dev/net/tun": "ENOENT" });
    let mut expected = vec![
        "fd", "full", "null", "ptmx", "random", "shm", "stderr", "stdin", "stdout", "tty",
        "urandom", "zero",
    ];
    match container() {
        None => expected.extend(["net", "pts"]),
        // Names of what is not there: `/proc/kcore`, masked, and a terminal.
        Some(Kind::Crun) => expected.push("core"),
        Some(Kind::Runc) => {}
    }
    expected.sort_unstable();
    assert_eq!(ran.json(), json!([gone, expected]));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn what_a_program_has_is_finalised_when_it_ends() {
    let host = Host::new();
    for what in [
        // In a cycle with the module's own dictionary, which only the collector ends.
        "noisy = Noisy()\ndef function(): return noisy",
        // What the collector does not know of.
        "small = Small()",
        // What has no finaliser of its own class.
        "def generate():\n try: yield\n finally: print('gone')\nwaits = generate(); next(waits)",
        // What a cache of the standard library remembers.
        "from typing import Optional\nnoisy = Noisy()\nclass Node:\n def f(self): return noisy\n\
         Optional[Node]",
        "import atexit\natexit.register(lambda: print('gone'))",
    ] {
        let classes = "
class Noisy:
    def __del__(self): print('gone')
class Small:
    __slots__ = ()
    def __del__(self): print('gone')
";
        let ran = host.run(&job(&format!("{classes}{what}\n"))).await;
        assert_eq!(ran.stdout(), "gone\n", "{what}");
        assert_eq!(ran.outcome.termination, Termination::Exited(0), "{what}");
    }
    let unflushed = "import gc\nfile = open('/output/text', 'w')\nfile.write('kept')\n";
    for further in ["", "gc.freeze()", "def function(): return file"] {
        let ran = host.run(&job(&format!("{unflushed}{further}\n"))).await;
        assert_eq!(ran.files["text"], b"kept", "{further}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn orphans_that_end_are_buried_by_init() {
    // More orphans than processes are allowed at once: each must have been buried.
    let ran = Host::new()
        .run(&job("
import os, time
for number in range(200):
    child = os.fork()
    if child == 0:
        if os.fork() == 0:
            os._exit(0)
        os._exit(0)
    os.waitpid(child, 0)
time.sleep(0.2)
names = [open(f'/proc/{pid}/status').readline() for pid in os.listdir('/proc') if pid.isdigit()]
print(len(names))
"))
        .await;
    assert_eq!(ran.json(), json!(2), "init and the program");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_daemon_dies_with_the_job_and_does_not_hold_it_up() {
    let ran = Host::new()
        .run(&job("
import os, signal, time
reading, writing = os.pipe()
if os.fork() == 0:
    os.setsid()
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    if os.fork() == 0:
        os.write(writing, b'up')
        while True:
            print('still here', file=open('/output/daemon', 'w'))
            time.sleep(1)
    os._exit(0)
os.read(reading, 2)
print('main is done')
"))
        .await;
    assert_eq!(ran.outcome.termination, Termination::Exited(0));
    assert_eq!(ran.stdout(), "main is done\n");
    let promptly = on_this_host(Duration::from_secs(5));
    assert!(ran.took < promptly, "{:?}", ran.took);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn the_limits_that_the_program_sees_are_the_cgroups() {
    let mut job = request(JobRequest {
        code: "
import json, resource, time
total = int(open('/proc/meminfo').readline().split()[1]) << 10
print(json.dumps({
    'memory': total,
    'processes': resource.getrlimit(resource.RLIMIT_NPROC),
    'files': resource.getrlimit(resource.RLIMIT_NOFILE),
    'file': resource.getrlimit(resource.RLIMIT_FSIZE),
    'core': resource.getrlimit(resource.RLIMIT_CORE),
}), flush=True)
time.sleep(1)
"
        .to_owned(),
        memory_bytes: Some(200 << 20),
        millicpus: Some(500),
        ..JobRequest::default()
    });
    job.limits.processes = 7;
    let host = Host::new();
    let look = |sandbox: Sandbox| {
        let read = |names: [&str; 2]| names.map(|name| sandbox.cgroup_files(name)).concat();
        let memory = read(["memory.limit_in_bytes", "memory.max"]);
        let cpu = read(["cpu.cfs_quota_us", "cpu.max"]);
        assert!(sandbox.parts(Part::Sentry).len() == 1);
        (memory, cpu, sandbox.cgroup_files("pids.max"))
    };
    let (ran, (memory, cpu, pids)) = host.watch(&job, look).await;
    let limit: u64 = 200 << 20;
    let mut found = ran.json();
    if container().is_some() {
        // A container is shown the memory of the host; its limit is the cgroup's all the same.
        found["memory"] = json!(limit);
    }
    let expected = json!({
        "memory": limit, "processes": [7, 7], "files": [256, 256],
        "file": [100 << 20, 100 << 20], "core": [0, 0],
    });
    assert_eq!(found, expected);
    assert_eq!(memory, [limit.to_string()]);
    assert!(cpu == ["50000"] || cpu == ["50000 100000"], "{cpu:?}");
    assert_eq!(pids, [job.limits.host_processes().to_string()]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_program_is_in_one_leaf_of_every_hierarchy_and_nothing_of_it_is_elsewhere() {
    let host = Host::new();
    let look = |sandbox: Sandbox| {
        let everywhere = sandbox.cgroup_files("cgroup.procs");
        assert_eq!(everywhere.len(), crate::host::cgroup_parents().len());
        for pids in &everywhere {
            assert_eq!(pids.lines().count(), everywhere[0].lines().count());
        }
        for part in [Part::Runsc, Part::Sentry, Part::Stub] {
            sandbox.parts(part);
        }
    };
    host.watch(&job(WAITS), look).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn processes_end_at_their_limit_with_an_error_of_the_programs_own() {
    let mut job = job("
import os, time
made = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        made += 1
except BlockingIOError:
    print(made)
");
    job.limits.processes = 12;
    let ran = Host::new().run(&job).await;
    // gVisor counts the program itself with init's user, who started it; Linux would count it here.
    let made = ran.stdout();
    assert!(
        ["11\n", "12\n"].contains(&made.as_str()),
        "{made:?} {}",
        ran.stderr()
    );
}

/// What programs do with the standard library, each a function that must not raise.
const STANDARD_LIBRARY: &str = r"
import asyncio, concurrent.futures, ctypes, multiprocessing, os, pathlib, shutil, signal, socket
import sqlite3, ssl, subprocess, tempfile, threading, time, zoneinfo

def square(number):
    return number * number

def pool():
    with multiprocessing.Pool(3) as pool:
        assert pool.map(square, range(50)) == [n * n for n in range(50)]

def queues_and_shared_memory():
    queue = multiprocessing.Queue()
    process = multiprocessing.Process(target=queue.put, args=('hello',))
    process.start()
    assert queue.get(timeout=10) == 'hello'
    process.join()
    from multiprocessing import shared_memory
    memory = shared_memory.SharedMemory(create=True, size=1 << 16)
    memory.buf[:3] = b'abc'
    memory.close()
    memory.unlink()

def spawn():
    context = multiprocessing.get_context('spawn')
    with context.Pool(1) as pool:
        assert pool.map(square, [3]) == [9]

def executors():
    with concurrent.futures.ProcessPoolExecutor(2) as executor:
        assert list(executor.map(square, [1, 2])) == [1, 4]
    with concurrent.futures.ThreadPoolExecutor(4) as executor:
        assert list(executor.map(square, [1, 2])) == [1, 4]

def threads():
    lock, done = threading.Lock(), []
    def work():
        with lock:
            done.append(1)
    workers = [threading.Thread(target=work) for _ in range(10)]
    [worker.start() for worker in workers]
    [worker.join() for worker in workers]
    assert len(done) == 10

def shells():
    assert subprocess.run('echo a | cat; exit 3', shell=True, capture_output=True).returncode == 3
    assert subprocess.check_output(['python3', '-c', 'print(1)']) == b'1\n'
    assert os.system('true') == 0 and os.popen('echo b').read() == 'b\n'
    with subprocess.Popen(['sleep', '100']) as process:
        process.terminate()
        assert process.wait() == -signal.SIGTERM

def loops():
    async def main():
        process = await asyncio.create_subprocess_exec('echo', 'c', stdout=subprocess.PIPE)
        assert (await process.communicate())[0] == b'c\n'
        await asyncio.gather(*(asyncio.sleep(0.01) for _ in range(10)))
        assert await asyncio.to_thread(square, 2) == 4
    asyncio.run(main())

def databases():
    with sqlite3.connect('/tmp/data.sqlite') as connection:
        connection.execute('pragma journal_mode=wal')
        connection.execute('create table t (a)')
        connection.execute('insert into t values (1)')
        assert connection.execute('select a from t').fetchall() == [(1,)]

def files():
    with tempfile.TemporaryDirectory() as directory, tempfile.NamedTemporaryFile() as file:
        path = pathlib.Path(directory, 'a', 'b')
        path.mkdir(parents=True)
        path.joinpath('c').write_text('ü')
        shutil.copytree(directory, '/output/copy')
        shutil.make_archive('/tmp/archive', 'zip', directory)
        os.replace(path / 'c', path / 'd')
        file.write(b'x')
        assert shutil.disk_usage('/tmp').total > 0

def sockets():
    server = socket.create_server(('127.0.0.1', 0))
    client = socket.create_connection(server.getsockname())
    accepted, _ = server.accept()
    client.sendall(b'd')
    assert accepted.recv(1) == b'd'
    one, other = socket.socketpair()
    one.send(b'e')
    assert other.recv(1) == b'e'
    assert len(ssl.create_default_context().get_ca_certs()) > 100

def clocks_and_signals():
    seen = []
    signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    time.sleep(0.1)
    assert seen == [1]
    assert str(zoneinfo.ZoneInfo('Europe/Berlin')) == 'Europe/Berlin'
    assert ctypes.CDLL(None).getpid() == os.getpid()

if __name__ == '__main__':
    for part in (pool, queues_and_shared_memory, spawn, executors, threads, shells, loops,
                 databases, files, sockets, clocks_and_signals):
        try:
            part()
        except BaseException as error:
            print(part.__name__, type(error).__name__, error)
";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn the_standard_library_works_under_the_profile() {
    let ran = Host::new().run(&job(STANDARD_LIBRARY)).await;
    assert_eq!(ran.outcome.termination, Termination::Exited(0));
    assert_eq!((ran.stdout(), ran.stderr()), (String::new(), String::new()));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn there_is_no_network_and_an_attempt_fails_at_once() {
    let ran = Host::new()
        .run(&attempting(
            "
import socket, time
begun = time.monotonic()
def connect(family, address):
    socket.socket(family, socket.SOCK_STREAM).connect(address)
print(json.dumps([
    attempt(connect, socket.AF_INET, ('1.1.1.1', 80)),
    attempt(connect, socket.AF_INET, ('169.254.169.254', 80)),
    attempt(connect, socket.AF_INET6, ('2606:4700::1111', 80)),
    attempt(socket.socket, socket.AF_INET, socket.SOCK_RAW, 1),
    time.monotonic() - begun < 1,
]))
",
        ))
        .await;
    let unreachable = match container() {
        None => "EHOSTUNREACH",
        Some(_) => "ENETUNREACH",
    };
    let expected = json!([unreachable, unreachable, unreachable, "EPERM", true]);
    assert_eq!(ran.json(), expected);
}
