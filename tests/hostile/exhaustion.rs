//! Group A: programs that use up processes, memory, space, descriptors, output or time.

use crate::attack::{
    Attack, Class, OUT_OF_MEMORY, OUTPUT_LIMIT, SUCCEEDED, TIMED_OUT, alone, failed, signalled,
};
use crate::host::{Part, Sandbox, names_in};
use serde_json::json;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tako_vm::job::InputFile;
use tokio::time::sleep;

/// The one value of a cgroup file, whichever version of cgroups calls it so.
fn counter(sandbox: &Sandbox, names: &[&str]) -> u64 {
    let texts = names.iter().flat_map(|name| sandbox.cgroup_files(name));
    let numbers = texts.filter_map(|text| text.split_whitespace().last()?.parse::<u64>().ok());
    numbers.max().unwrap_or_else(|| panic!("none of {names:?}"))
}

/// How often the host's process limit was met.
fn refused_forks(sandbox: &Sandbox) -> u64 {
    counter(sandbox, &["pids.events"])
}

/// Processors that a sandbox keeps busy, over a second.
async fn busy(sandbox: &Sandbox) -> f64 {
    let used = || {
        let nanoseconds = sandbox.cgroup_files("cpuacct.usage");
        let microseconds = sandbox.cgroup_files("cpu.stat").into_iter();
        let microseconds = microseconds.filter_map(|text| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("usage_usec "));
            Some(Duration::from_micros(line?.parse().unwrap()))
        });
        let nanoseconds = nanoseconds
            .first()
            .map(|text| Duration::from_nanos(text.parse().unwrap()));
        nanoseconds.into_iter().chain(microseconds).next().unwrap()
    };
    let (begun, before) = (Instant::now(), used());
    sleep(Duration::from_secs(1)).await;
    used().saturating_sub(before).as_secs_f64() / begun.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a1_a_fork_bomb_ends_at_its_own_limit_and_never_at_the_hosts() {
    Attack::new("A1", "import os\nwhile True: os.fork()")
        .ends(&failed(1, "os_error"))
        .await;
    let persistent = "
import os
print('up', flush=True)
while True:
    try: os.fork()
    except OSError: pass
";
    let attack = Attack::new("A1 that goes on", persistent).seconds(3);
    let (ended, (most, refused)) = attack
        .observed(&TIMED_OUT, async |sandbox, _| {
            let mut most = 0;
            for _ in 0..20 {
                sleep(Duration::from_millis(100)).await;
                most = most.max(counter(sandbox, &["pids.current"]));
            }
            (most, refused_forks(sandbox))
        })
        .await;
    println!("{most} host tasks, dead within {:?}", ended.kill_time);
    assert!((50..264).contains(&most), "{most}");
    assert_eq!(refused, 0);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a2_threads_end_with_an_error_that_a_program_can_handle() {
    let program = "
import json, threading
gate, made = threading.Event(), 0
try:
    while True:
        threading.Thread(target=gate.wait).start()
        made += 1
except RuntimeError as error:
    print(json.dumps([made, str(error)]))
gate.set()
";
    let ended = Attack::new("A2", program).ends(&SUCCEEDED).await;
    // gVisor counts the program itself with init's user, who started it; Linux would count it here.
    let fewest = json!([49, "can't start new thread"]);
    let most = json!([50, "can't start new thread"]);
    assert!([fewest, most].contains(&ended.json()), "{}", ended.json());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a3_a_bomb_that_starts_anew_in_every_generation_is_dead_at_once() {
    let program = r#"
import os, sys, time
print('up', flush=True)
bomb = '''
import os, sys
os.setsid()
for _ in range(3):
    try:
        if os.fork() == 0:
            os.execv(sys.executable, [sys.executable, "-Sc", sys.argv[1], sys.argv[1]])
    except OSError: pass
'''
while True:
    try:
        if os.fork() == 0:
            os.execv(sys.executable, [sys.executable, '-Sc', bomb, bomb])
    except OSError: pass
    time.sleep(0.01)
"#;
    let attack = Attack::new("A3", program).seconds(3);
    let (ended, refused) = attack
        .observed(&TIMED_OUT, async |sandbox, _| {
            sleep(Duration::from_secs(2)).await;
            refused_forks(sandbox)
        })
        .await;
    println!("dead within {:?}", ended.kill_time);
    assert!(ended.kill_time < Duration::from_secs(1));
    assert_eq!(refused, 0);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a4_children_that_nobody_buries_count_as_processes() {
    let program = "
import os
made = 0
for _ in range(10_000):
    try:
        if os.fork() == 0: os._exit(0)
        made += 1
    except BlockingIOError: break
print(made)
";
    let ended = Attack::new("A4", program).ends(&SUCCEEDED).await;
    let made: u32 = String::from_utf8(ended.stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert!((48..51).contains(&made), "{made}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a5_a6_memory_of_every_kind_is_charged_and_ends_as_out_of_memory() {
    let programs = [
        (
            "A5",
            "held = []\nwhile True: held.append(bytearray(1 << 20))",
        ),
        (
            "A6 memfd",
            "import os\nfile = os.memfd_create('x')\nwhile True: os.write(file, bytes(1 << 20))",
        ),
        (
            "A6 shared mapping",
            "import mmap\nheld = []\nwhile True:\n  m = mmap.mmap(-1, 1 << 20)\n  m.write(b'x' * (1 << 20))\n  held.append(m)",
        ),
        (
            "A6 pipes",
            "import os\nends = []\nwhile True:\n  try:\n    r, w = os.pipe()\n    os.set_blocking(w, False)\n    ends += r, w\n    os.write(w, bytes(1 << 16))\n  except OSError: held = [bytearray(1 << 20) for _ in range(200)]",
        ),
    ];
    for (name, program) in programs {
        let ended = Attack::new(name, program)
            .memory(128)
            // A memfd of one file would meet the limit of a file first.
            .limits(|limits| limits.file_bytes = 1 << 40)
            .ends(&OUT_OF_MEMORY)
            .await;
        assert!(ended.usage.max_rss_mb > 120.0, "{name}: {:?}", ended.usage);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a6_a8_a10_full_file_systems_are_errors_of_the_programs_and_count_as_its_memory() {
    let program = "
import errno, json, os
def fill(path):
    written = 0
    try:
        with open(path, 'wb', buffering=0) as file:
            while True: written += file.write(bytes(1 << 16))
    except OSError as error:
        return [errno.errorcode[error.errno], written >> 20]
print(json.dumps([fill(path) for path in ('/tmp/a', '/dev/shm/a', '/output/a')]))
";
    let ended = Attack::new("A8", program)
        .limits(|limits| {
            limits.tmp_bytes = 8 << 20;
            limits.artifacts_total_bytes = 10 << 20;
        })
        .ends(&SUCCEEDED)
        .await;
    let expected = json!([["ENOSPC", 8], ["ENOSPC", 64], ["ENOSPC", 11]]);
    assert_eq!(ended.json(), expected);
    assert!(ended.usage.max_rss_mb > 83.0, "{:?}", ended.usage);
    // Larger than a file may be that is collected: nothing of it reached the host.
    assert_eq!(ended.names(), Vec::<&str>::new());
    let all_three = "
for path in ('/tmp/a', '/dev/shm/a', '/output/a'):
    try:
        with open(path, 'wb', buffering=0) as file:
            while True: file.write(bytes(1 << 16))
    except OSError: pass
raise SystemExit(3)
";
    Attack::new("A6 files", all_three)
        .memory(128)
        .ends(&OUT_OF_MEMORY)
        .await;
    // The disk of the host: what is collected has a limit of its own.
    let many = "
for number in range(40):
    open(f'/output/{number:02}', 'wb').write(bytes(1 << 20))
";
    let ended = Attack::new("A10", many)
        .limits(|limits| {
            limits.artifacts_total_bytes = 40 << 20;
            limits.artifact_bytes = 1 << 20;
        })
        .ends(&SUCCEEDED)
        .await;
    let collected: usize = ended.files.values().map(Vec::len).sum();
    // All of it, unless a busy host did not manage in the time for collecting.
    let whole = ended.record["artifacts_truncated"] == false;
    assert!(
        collected <= 40 << 20 && (collected == 40 << 20) == whole,
        "{collected} {whole}"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a9_files_without_contents_are_bounded_by_the_memory() {
    for place in ["/tmp", "/output"] {
        let program = format!(
            "number = 0\nwhile True:\n  open(f'{place}/{{number}}', 'w').close()\n  number += 1"
        );
        Attack::new("A9", &program)
            .memory(64)
            .seconds(60)
            .ends(&OUT_OF_MEMORY)
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a11_a_file_above_its_limit_is_an_error_or_the_signal_for_it() {
    let limited = |attack: Attack| attack.limits(|limits| limits.file_bytes = 1 << 20);
    let write = "open('/tmp/x', 'wb').write(bytes(2 << 20))";
    let ended = limited(Attack::new("A11", write))
        .ends(&failed(1, "os_error"))
        .await;
    assert!(String::from_utf8_lossy(&ended.stderr).contains("Errno 27"));
    let by_signal =
        format!("import signal; signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n{write}");
    limited(Attack::new("A11 by signal", &by_signal))
        .ends(&signalled(25, "runtime_error"))
        .await;
    let sparse = "import os; os.truncate(os.open('/output/x', os.O_CREAT | os.O_RDWR), 1 << 40)";
    limited(Attack::new("A11 sparse", sparse))
        .ends(&failed(1, "os_error"))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a12_descriptors_without_end_are_none_of_the_hosts() {
    let program = "
import errno, os, resource, socket, time
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
held = []
def until_full(make):
    try:
        while True: held.append(make())
    except OSError as error:
        return errno.errorcode[error.errno]
def fill(one):
    one.setblocking(False)
    try:
        while True: one.send(bytes(1 << 16))
    except BlockingIOError: pass
def pair():
    one, other = socket.socketpair()
    fill(one)
    return one, other
seen = [until_full(pair)]
held.clear()
seen.append(until_full(os.pipe))
for end in held: os.close(end[0]); os.close(end[1])
held.clear()
seen.append(until_full(lambda: open('/dev/null')))
print(seen, flush=True)
time.sleep(2)
";
    let (ended, most) = Attack::new("A12", program)
        .observed(&SUCCEEDED, async |sandbox, _| {
            let sentry = sandbox.parts(Part::Sentry)[0];
            names_in(&PathBuf::from(format!("/proc/{sentry}/fd"))).len()
        })
        .await;
    assert_eq!(ended.stdout, b"['EMFILE', 'EMFILE', 'EMFILE']\n");
    println!("{most} descriptors of the sentry");
    assert!(most < 100, "{most}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a13_a29_a_flood_is_kept_at_its_beginning_and_ends_the_program() {
    let program = "
import os
os.write(1, b'begin')
while True: os.write(1, bytes(65536))
";
    let flood = |name, program: &str| {
        Attack::new(name, program).limits(|limits| {
            limits.output_bytes = 32 << 20;
            limits.stdout_bytes = 1000;
        })
    };
    let ended = flood("A13", program).ends(&OUTPUT_LIMIT).await;
    assert_eq!(ended.stdout, [b"begin".as_slice(), &[0; 995]].concat());
    assert_eq!(ended.record["stdout_truncated"], true);
    let total = ended.record["stdout_bytes"].as_u64().unwrap();
    assert!((32 << 20..34 << 20).contains(&total), "{total}");
    let endless =
        "import shutil, sys; shutil.copyfileobj(open('/dev/urandom', 'rb'), sys.stdout.buffer)";
    flood("A29 stdout", endless).ends(&OUTPUT_LIMIT).await;
    let endless = "import shutil; shutil.copyfile('/dev/zero', '/output/zeros')";
    let ended = Attack::new("A29 file", endless)
        .ends(&failed(1, "os_error"))
        .await;
    assert_eq!(ended.names(), Vec::<&str>::new());
}

/// CPU time that this process has used: fields 14 and 15 of its state, in hundredths of a second.
fn own_cpu_time() -> Duration {
    let state = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = state
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a14_output_byte_by_byte_costs_us_less_than_half_a_processor() {
    let alone = alone().await;
    let program = "
import os
while True:
    os.write(1, b'o')
    os.write(2, b'e')
";
    let (begun, before) = (Instant::now(), own_cpu_time());
    let ended = Attack::new("A14", program)
        .seconds(4)
        .ends_alone(&alone, &TIMED_OUT)
        .await;
    let busy = own_cpu_time().saturating_sub(before).as_secs_f64() / begun.elapsed().as_secs_f64();
    let bytes = |stream: &str| ended.record[stream].as_u64().unwrap();
    let (out, err) = (bytes("stdout_bytes"), bytes("stderr_bytes"));
    println!("{out} and {err} bytes, {busy:.2} of a processor");
    assert!(out > 1000 && out.abs_diff(err) <= 1, "{out} {err}");
    assert!(busy < 0.5, "{busy}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a15_what_drips_is_there_when_time_is_up() {
    let program = "
import time
for number in range(1000):
    print(number, flush=True)
    time.sleep(0.5)
";
    let ended = Attack::new("A15", program)
        .seconds(2)
        .ends(&TIMED_OUT)
        .await;
    assert!(ended.stdout.starts_with(b"0\n1\n2\n"), "{:?}", ended.stdout);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a16_spinning_in_many_processes_and_threads_stays_within_the_quota() {
    let processes = "
import os
print('up', flush=True)
for _ in range(40):
    if os.fork() == 0: break
while True: pass
";
    let threads = "
import threading
def spin():
    while True: pass
print('up', flush=True)
for _ in range(40): threading.Thread(target=spin, daemon=True).start()
spin()
";
    for (name, program) in [("A16 processes", processes), ("A16 threads", threads)] {
        let (_, busy) = Attack::new(name, program)
            .limits(|limits| limits.millicpus = 500)
            .seconds(3)
            .observed(&TIMED_OUT, async |sandbox, _| busy(sandbox).await)
            .await;
        println!("{name}: {busy:.2} processors");
        // A tenth for the period that the second cuts.
        assert!(busy < 0.5 * 1.05 + 0.1, "{name}: {busy}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a17_waiting_for_ever_costs_nearly_nothing_and_ends_by_the_clock() {
    for (name, program) in [
        (
            "A17 sleep",
            "print('up', flush=True)\nimport time; time.sleep(10**6)",
        ),
        (
            "A17 select",
            "print('up', flush=True)\nimport os, select; select.select([os.pipe()[0]], [], [])",
        ),
    ] {
        let (_, busy) = Attack::new(name, program)
            .seconds(3)
            .observed(&TIMED_OUT, async |sandbox, _| {
                sleep(Duration::from_millis(300)).await;
                busy(sandbox).await
            })
            .await;
        println!("{name}: {busy:.3} processors");
        assert!(busy < 0.1, "{name}: {busy}");
    }
}

/// Programs that are to end on time, and how.
const RESISTANCE: [(&str, &str, &Class); 8] = [
    (
        "A18",
        "
import os, signal
every = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
for number in every: signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, every)
os.fork()
while True: pass
",
        &TIMED_OUT,
    ),
    (
        "A19",
        "
import os, signal, time
reading, writing = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN)
        os.write(writing, b'x')
        while True: time.sleep(1)
    os._exit(0)
os.read(reading, 1)
",
        &SUCCEEDED,
    ),
    (
        "A21",
        "import os, time\nfor one in (0, 1, 2): os.close(one)\ntime.sleep(1000)",
        &TIMED_OUT,
    ),
    ("A23 power", "9 ** 9 ** 9", &TIMED_OUT),
    (
        "A23 pattern",
        "import re; re.match('(a*)*b', 'a' * 60)",
        &TIMED_OUT,
    ),
    (
        "A25 exec",
        "
import os, sys
number = int(os.environ.get('NUMBER', '0'))
if number < 100_000:
    os.environ['NUMBER'] = str(number + 1)
    os.execv('/usr/bin/python3', ['python3', '-SE', '/code/main.py'])
",
        &TIMED_OUT,
    ),
    (
        "A25 arguments",
        "
import os
try:
    os.execve('/usr/bin/env', ['x'] * 100_000, {f'V{n}': 'y' * 20 for n in range(100_000)})
except OSError as error:
    raise SystemExit(0 if error.errno in (7, 36) else repr(error))
",
        &SUCCEEDED,
    ),
    (
        "A25 a long argument",
        "
import os
try:
    os.execve('/usr/bin/env', ['x' * (1 << 21)], {})
except OSError as error:
    raise SystemExit(0 if error.errno in (7, 36) else repr(error))
",
        &SUCCEEDED,
    ),
];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a18_to_a25_whatever_a_program_does_about_its_end_comes_to_nothing() {
    for (name, program, class) in RESISTANCE {
        Attack::new(name, program).seconds(2).ends(class).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a26_source_that_the_parser_cannot_take_is_the_programs_failure() {
    let memory = failed(1, "oom");
    let syntax = failed(1, "syntax_error");
    let recursion = failed(1, "recursion_error");
    let segfault = signalled(11, "segfault");
    let classes = [&memory, &syntax, &recursion, &segfault];
    for source in [
        "(".repeat(100_000),
        "-".repeat(100_000) + "1",
        format!("x{} = 1", "[0]".repeat(100_000)),
        format!("f{}", "()".repeat(100_000)),
    ] {
        Attack::new("A26", &source).ends_as_one_of(&classes).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a27_an_input_that_unfolds_fills_the_sandbox_and_nothing_else() {
    let file = |name: &str, bytes: Vec<u8>| InputFile {
        name: name.to_owned(),
        bytes,
    };
    let unpack = "
import bz2
held = []
with bz2.open('/input/bomb.bz2') as file:
    while piece := file.read(1 << 20): held.append(piece)
";
    Attack::with_files("A27 unpacked", unpack, vec![file("bomb.bz2", bomb())])
        .memory(128)
        .ends(&OUT_OF_MEMORY)
        .await;
    let to_disk = "
import bz2, shutil
with bz2.open('/input/bomb.bz2') as bomb, open('/output/unfolded', 'wb') as file:
    shutil.copyfileobj(bomb, file)
";
    Attack::with_files("A27 to a file", to_disk, vec![file("bomb.bz2", bomb())])
        .ends(&failed(1, "os_error"))
        .await;
    // `bytearray(16 GiB)`.
    let pickle = b"cbuiltins\nbytearray\n(I17179869184\ntR.".to_vec();
    let load = "import pickle; pickle.load(open('/input/pickle', 'rb'))";
    Attack::with_files("A27 pickle", load, vec![file("pickle", pickle)])
        .memory(128)
        .ends_as_one_of(&[&OUT_OF_MEMORY, &failed(1, "oom")])
        .await;
}

/// A hundred bzip2 streams behind one another, each of which unfolds to 44 MiB of zeros.
fn bomb() -> Vec<u8> {
    let stream = "425a68393141592653590e09e2df015f8e4000c0000008200030804d4642a025a90a8097314159265359c0c129fe0001d2c008c00000010008200030cc09aa699291b54523c5dc914e14243734bb1000";
    hex::decode(stream).unwrap().repeat(100)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a28_memory_that_would_be_locked_or_huge_is_refused_or_charged() {
    let program = "
import ctypes, errno, json
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
def mapped(size, flags):
    ctypes.set_errno(0)
    at = libc.mmap(None, ctypes.c_size_t(size), 3, 0x22 | flags, -1, ctypes.c_long(0))
    if at == ctypes.c_void_p(-1).value: return errno.errorcode[ctypes.get_errno()]
    return 'mapped'
POPULATE, HUGETLB, LOCKED = 0x8000, 0x40000, 0x2000
print(json.dumps([
    libc.mlockall(3),
    mapped(1 << 20, HUGETLB), mapped(1 << 20, LOCKED), mapped(1 << 47, 0),
]), flush=True)
print(mapped(1 << 40, POPULATE))
";
    let ended = Attack::new("A28", program)
        .memory(128)
        .ends_as_one_of(&[&SUCCEEDED, &OUT_OF_MEMORY, &failed(1, "oom")])
        .await;
    println!("{}", String::from_utf8_lossy(&ended.stdout));
}
