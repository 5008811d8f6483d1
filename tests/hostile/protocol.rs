//! Group F: the channel to the host, and everything that a program can say of itself.

use crate::attack::{Attack, Class, OUT_OF_MEMORY, SUCCEEDED, TIMED_OUT, alone, failed, signalled};
use crate::host::{Host, Ran, job, names_in};
use rand::seq::SliceRandom;
use serde_json::json;
use std::collections::VecDeque;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tako_vm::job::{InputFile, Termination};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn f1_f2_what_looks_like_the_protocol_is_output_and_changes_nothing() {
    let program = r"
import errno, json, os, struct
def frame(body): return struct.pack('<I', len(body)) + body
# Exit with 0, a file, its data, its end, Done; and lengths that no frame has.
forged = [frame(b'\x05\x00\x00\x00\x00\x00\x00'), frame(b'\x06\x06forged\x01'), frame(b'\x07\x01x'),
          frame(b'\x08\x01'), frame(b'\x0a\x00'), b'\xff\xff\xff\xff' * 100, b'\0' * 100]
opened = []
for process in ('1', 'self', 'thread-self'):
    for number in range(16):
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
            path = f'/proc/{process}/fd/{number}'
            try:
                descriptor = os.open(path, flags | os.O_NONBLOCK)
            except OSError:
                continue
            target = os.readlink(path)
            opened.append([process, number, target])
            if flags != os.O_RDONLY and target.startswith(('/run', 'pipe')):
                for bytes in forged: os.write(descriptor, bytes)
            os.close(descriptor)
for bytes in forged:
    os.write(1, bytes)
    os.write(2, bytes)
open('/output/opened', 'w').write(json.dumps(sorted({(p, t) for p, _, t in opened if p == '1'})))
os._exit(7)
";
    let ended = Attack::new("F1", program)
        .ends(&failed(7, "runtime_error"))
        .await;
    // Of init's there is one thing to be opened: the FIFO of reports.
    let opened = String::from_utf8_lossy(&ended.files["opened"]).into_owned();
    assert_eq!(opened, r#"[["1", "/run/tako-vm/report"]]"#);
    assert_eq!(ended.names(), ["opened"]);
    assert_eq!(ended.stdout, ended.stderr);
    assert!(ended.stdout.len() > 500);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn f4_whoever_stops_all_that_it_can_is_ended_by_the_clock() {
    let everybody = "
import os, signal
for pid in (1, -1, 0):
    try: os.kill(pid, signal.SIGSTOP)
    except OSError as error: print(pid, error.errno, flush=True)
";
    let ended = Attack::new("F4", everybody)
        .seconds(2)
        .ends(&TIMED_OUT)
        .await;
    assert!(ended.stdout.starts_with(b"1 1\n"), "{:?}", ended.stdout);
    Attack::new("F4 everybody killed", "import os; os.fork(); os.kill(0, 9)")
        .ends(&signalled(9, "killed"))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn f5_an_interpreter_that_is_turned_inside_out_speaks_for_itself_alone() {
    let patched = "
import atexit, builtins, io, json, os, posix, sys, time
def broken(*_, **__): raise SystemError('broken')
class Liar(BaseException):
    def __str__(self): os._exit(0)
atexit._clear()
sys.excepthook = broken
sys.last_value = Liar()
sys.orig_argv = sys.argv = None
posix.open = os.open = posix.write = os.write = posix.getpid = os.getpid = broken
json.dumps = json.dump = time.time = broken
builtins.open = io.open = builtins.print = broken
sys.stdout = sys.stderr = None
raise KeyError('real')
";
    // Nobody prints the exception, so that the hook has none to report: the status speaks.
    Attack::new("F5", patched)
        .ends(&failed(1, "runtime_error"))
        .await;
    let lying = "
import sys
class Liar(Exception):
    def __str__(self):
        import os
        os._exit(0)
try: raise Liar
except Liar: pass
sys.excepthook = lambda *_: None
raise Liar
";
    Attack::new("F5 a message that exits", lying)
        .ends_as_one_of(&[&SUCCEEDED, &failed(1, "runtime_error")])
        .await;
    let slow = "
class Slow(Exception):
    def __str__(self):
        while True: pass
raise Slow
";
    Attack::new("F5 a message that never comes", slow)
        .seconds(2)
        .ends(&TIMED_OUT)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn f6_f7_f8_bytes_of_every_kind_arrive_as_they_are_and_make_a_record() {
    let program = r"
import os
os.write(1, b'\0\xff\xfe\xed\xa0\x80\xf4\x90\x80\x80\x1b]0;title\x07\x1b[2J\r\n{}\n\xe2\x80\xae')
os.write(2, b'ERROR level=fatal msg=forged\n' + b'\x9b31m' + '\u2028\u2066'.encode())
raise ValueError('\0\x1b[2J\r\nERROR forged \ud800 \u202e')
";
    let ended = Attack::new("F6", program)
        .ends(&failed(1, "value_error"))
        .await;
    assert!(
        ended
            .stdout
            .starts_with(b"\0\xff\xfe\xed\xa0\x80\xf4\x90\x80\x80\x1b]0;title\x07")
    );
    let stdout = ended.record["stdout"].as_str().unwrap();
    assert!(stdout.starts_with("\0\u{fffd}"), "{stdout:?}");
    // One line, however many the program made of it.
    let line = ended.record.to_string();
    assert_eq!(line.lines().count(), 1);
    assert!(!line.contains('\x1b') && !line.contains('\0'), "{line:?}");
    let message = ended.record["error"]["message"].as_str().unwrap();
    assert!(message.contains("ERROR forged \\ud800"), "{message:?}");

    let line = "import sys; sys.stdout.write('x' * (100 << 20))";
    let ended = Attack::new("F8", line).ends(&SUCCEEDED).await;
    assert_eq!(ended.record["stdout_bytes"], 100 << 20);
    assert_eq!(ended.stdout, "x".repeat(64 << 10).as_bytes());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn f9_results_that_are_hard_to_parse_are_refused_or_kept_within_bounds() {
    let write = |code: &str| format!("open('/output/result.json', 'w').write({code})");
    let too_deep = write("'[' * 100_000 + ']' * 100_000");
    let ended = Attack::new("F9 depth", &too_deep).ends(&SUCCEEDED).await;
    let error = ended.record["result_error"].as_str().unwrap();
    assert!(error.contains("recursion limit"), "{error}");
    let keys = write("'{' + ','.join(f'\"{n}\":0' for n in range(800_000)) + '}'");
    let ended = Attack::new("F9 keys", &keys).ends(&SUCCEEDED).await;
    assert_eq!(ended.record["output"].as_object().unwrap().len(), 800_000);
    let long = write("'\"' + 'x' * (9 << 20) + '\"'");
    let ended = Attack::new("F9 length", &long).ends(&SUCCEEDED).await;
    assert_eq!(ended.record["output"].as_str().unwrap().len(), 9 << 20);
    let too_long = write("'\"' + 'x' * (11 << 20) + '\"'");
    let ended = Attack::new("F9 too long", &too_long).ends(&SUCCEEDED).await;
    assert_eq!(ended.record["output"], json!(null));
    assert_eq!(ended.record["artifacts_truncated"], true);
    for number in [
        "'1' * 1_000_000",
        "'1e' + '9' * 1000",
        "'-'",
        "'\"\\\\ud800\"'",
        "'NaN'",
    ] {
        let ended = Attack::new("F9 a number", &write(number))
            .ends(&SUCCEEDED)
            .await;
        let refused = ended.record["result_error"].is_string();
        assert!(refused == ended.record["output"].is_null(), "{number}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn f12_f13_every_way_to_end_is_told_as_linux_tells_it() {
    let exit = |code: &str| format!("import os; os._exit({code})");
    let cases = [
        (exit("256"), SUCCEEDED),
        (exit("300"), failed(44, "runtime_error")),
        (exit("-1"), failed(255, "runtime_error")),
        (exit("137"), failed(137, "runtime_error")),
        ("import sys; sys.exit('text')".to_owned(), failed(1, "runtime_error")),
        ("import sys; sys.exit(object())".to_owned(), failed(1, "runtime_error")),
        ("import sys; sys.exit(1 << 70)".to_owned(), failed(255, "runtime_error")),
        (
            "import sys, threading; t = threading.Thread(target=sys.exit, args=(9,)); t.start(); t.join()"
                .to_owned(),
            SUCCEEDED,
        ),
        ("import os; os.abort()".to_owned(), signalled(6, "abort")),
        ("raise KeyboardInterrupt".to_owned(), signalled(2, "runtime_error")),
        (
            "import atexit, time; atexit.register(time.sleep, 1000)".to_owned(),
            TIMED_OUT,
        ),
        (
            "import threading, time; threading.Thread(target=time.sleep, args=(1000,)).start()"
                .to_owned(),
            TIMED_OUT,
        ),
    ];
    for (program, class) in cases {
        Attack::new("F12", &program).seconds(2).ends(&class).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn f15_exceptions_without_end_are_cut_off() {
    let huge = "raise ValueError('m' * (50 << 20))";
    let ended = Attack::new("F15 length", huge)
        .ends(&failed(1, "value_error"))
        .await;
    assert!(ended.record["error"]["message"].as_str().unwrap().len() <= 4096);
    assert_eq!(ended.stderr.len(), 64 << 10);
    let chained = "
error = ValueError('0')
for number in range(10_000):
    try: raise KeyError(number) from error
    except KeyError as caught: error = caught
raise error
";
    Attack::new("F15 chain", chained)
        .ends_as_one_of(&[&failed(1, "key_error"), &signalled(11, "segfault")])
        .await;
    let classes = "
for number in range(1500):
    kind = type('K' * 1000 + str(number), (ValueError if number == 0 else kind,), {})
raise kind
";
    Attack::new("F15 classes", classes)
        .ends_as_one_of(&[&failed(1, "value_error"), &failed(1, "runtime_error")])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn f16_input_that_nobody_reads_holds_nobody_up() {
    let files = (0..4).map(|number| InputFile {
        name: number.to_string(),
        bytes: vec![number; 15 << 20],
    });
    let program = "
import os, sys
assert sys.stdin.read() == ''
os.close(0)
";
    Attack::with_files("F16", program, files.collect())
        .ends(&SUCCEEDED)
        .await;
}

/// Takes cases until none is left; returns those that were told wrongly.
async fn work(cases: Arc<Mutex<VecDeque<(String, Termination)>>>) -> Vec<String> {
    let host = Host::new();
    let mut wrong = Vec::new();
    loop {
        let next = cases.lock().unwrap().pop_front();
        let Some((program, expected)) = next else {
            return wrong;
        };
        let mut job = job(&program);
        job.limits.memory_bytes = 96 << 20;
        let ran: Ran = host.run(&job).await;
        if ran.outcome.termination != expected {
            wrong.push(format!("{:?} of {program}", ran.outcome));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn f17_out_of_memory_a_kill_and_a_code_of_137_are_never_confused() {
    let hog = "held = []\nwhile True: held.append(bytearray(1 << 20))";
    let kill = "import os; os.kill(os.getpid(), 9)";
    let exit = "import os; os._exit(137)";
    let kinds = [
        (hog, Termination::OutOfMemory),
        (kill, Termination::Signalled(9)),
        (exit, Termination::Exited(137)),
    ];
    let all = kinds.iter().flat_map(|(program, expected)| {
        std::iter::repeat_n(((*program).to_owned(), expected.clone()), 10)
    });
    let mut cases: Vec<_> = all.collect();
    cases.shuffle(&mut rand::rng());
    let cases = Arc::new(Mutex::new(VecDeque::from(cases)));
    let workers = [0, 1].map(|_| tokio::spawn(work(Arc::clone(&cases))));
    let mut wrong = Vec::new();
    for worker in workers {
        wrong.extend(worker.await.unwrap());
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Descriptors and pages of memory of this process.
fn own_size() -> (usize, u64) {
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    let pages = pages.split(' ').nth(1).unwrap().parse().unwrap();
    (names_in(Path::new("/proc/self/fd")).len(), pages)
}

/// The fourth of the conditions, over one attack of every kind: twice the same makes us no larger.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_second_round_of_attacks_leaves_us_as_large_as_the_first() {
    let alone = alone().await;
    let flood = "import os\nwhile True: os.write(1, bytes(65536))";
    let hog = "held = []\nwhile True: held.append(bytearray(1 << 20))";
    let (little, enough) = (128 << 20, 512 << 20);
    let attacks: [(&str, u64, Class); 6] = [
        (
            "import os\nwhile True: os.fork()",
            enough,
            failed(1, "os_error"),
        ),
        (hog, little, OUT_OF_MEMORY),
        (flood, enough, crate::attack::OUTPUT_LIMIT),
        ("while True: pass", enough, TIMED_OUT),
        (include_str!("programs/links.py"), enough, SUCCEEDED),
        (include_str!("programs/crowd.py"), enough, SUCCEEDED),
    ];
    let mut sizes = Vec::new();
    for _ in 0..3 {
        for (program, memory, class) in &attacks {
            Attack::new("a round", program)
                .limits(|limits| {
                    limits.output_bytes = 64 << 20;
                    limits.memory_bytes = *memory;
                    limits.execution = Duration::from_secs(5);
                })
                .ends_alone(&alone, class)
                .await;
        }
        sizes.push(own_size());
    }
    println!("descriptors and pages: {sizes:?}");
    // The first round makes what the process keeps: threads and their heaps.
    let ((descriptors, pages), (later_descriptors, later_pages)) = (sizes[1], sizes[2]);
    assert_eq!(descriptors, later_descriptors);
    assert!(later_pages * 100 <= pages * 105, "{pages} {later_pages}");
}
