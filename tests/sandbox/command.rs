//! `tako-vm run` as its users see it, whoever runs the program for it.

use crate::host::{IMAGE, names_in, processes_that_mention, state_dir};
use crate::invocation::{Guard, alone, assert_gone, command, settles};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub(crate) struct Exclusive {
    _guard: Guard,
    before: Vec<String>,
}

/// What lies in the state directory, as far as commands that run jobs could leave something.
fn state() -> Vec<String> {
    let kinds = ["sandboxes", "spools"];
    let mut names = names_in(&state_dir());
    for directory in kinds.map(|kind| state_dir().join(kind)) {
        if directory.exists() {
            names.extend(names_in(&directory));
        }
    }
    names.retain(|name| !kinds.contains(&name.as_str()));
    names
}

/// Until it is dropped, nobody else in this program uses the state directory.
pub(crate) fn exclusive() -> Exclusive {
    Exclusive {
        _guard: alone(),
        before: state(),
    }
}

impl Exclusive {
    pub(crate) fn assert_nothing_is_left(&self) {
        assert!(settles(|| state() == self.before), "{:?}", state());
        let sandboxes = state_dir().join("sandboxes").display().to_string();
        let processes = || processes_that_mention(&sandboxes);
        assert!(settles(|| processes().is_empty()), "{:?}", processes());
    }
}

fn run(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

fn record(arguments: &[&str]) -> Value {
    let output = run(&[&["--json"], arguments].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    let record: Value = serde_json::from_str(&text).unwrap();
    assert_gone(record["execution_id"].as_str().unwrap());
    record
}

pub(crate) fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).unwrap()
}

/// Sends a signal to a command that was started and not waited for.
#[expect(
    clippy::disallowed_methods,
    reason = "the child is ours and not waited for: its number is not given anew"
)]
pub(crate) fn signal(child: &Child, signal: Signal) {
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    nix::sys::signal::kill(pid, signal).unwrap();
}

/// Files of a test.
pub(crate) fn files(contents: &[(&str, &[u8])]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, bytes) in contents {
        fs::write(directory.path().join(name), bytes).unwrap();
    }
    directory
}

#[test]
#[ignore = "needs root and runsc"]
fn the_exit_status_is_the_programs_own_or_says_who_ended_it() {
    let state = exclusive();
    let cases: [(&[&str], i32); 8] = [
        (&["-c", "print(1)"], 0),
        (&["-c", "raise SystemExit(7)"], 7),
        (&["-c", "int('x')"], 1),
        (&["-c", "raise SystemExit(124)"], 124),
        (&["-c", "import os; os.kill(os.getpid(), 9)"], 137),
        (&["-c", "import os; os.abort()"], 134),
        (&["--timeout", "0.5", "-c", "while True: pass"], 124),
        (
            &[
                "--memory",
                "128m",
                "-c",
                "import mmap\nm = mmap.mmap(-1, 1 << 30)\nfor at in range(0, 1 << 30, 4096): m[at] = 1",
            ],
            137,
        ),
    ];
    for (arguments, status) in cases {
        let output = run(arguments);
        assert_eq!(
            output.status.code(),
            Some(status),
            "{arguments:?} {output:?}"
        );
    }
    state.assert_nothing_is_left();
}

#[test]
#[ignore = "needs root and runsc"]
fn what_the_command_says_itself_goes_to_standard_error_only() {
    let state = exclusive();
    let output = run(&[
        "--timeout",
        "0.5",
        "-c",
        "print('partial')\nwhile True: pass",
    ]);
    assert_eq!(text(&output.stdout), "partial\n");
    let stderr = text(&output.stderr);
    assert!(
        stderr.starts_with("error: the program ran longer"),
        "{stderr}"
    );
    assert!(stderr.contains("\nhint: "), "{stderr}");

    let output = run(&[
        "-c",
        "import sys; print('own', file=sys.stderr); sys.exit(3)",
    ]);
    assert_eq!(text(&output.stderr), "own\n");
    assert_eq!(output.stdout, b"");
    state.assert_nothing_is_left();
}

#[test]
#[ignore = "needs root and runsc"]
fn an_interrupted_command_cleans_up_and_says_130() {
    let state = exclusive();
    for number in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let code = "print('up', flush=True)\nwhile True: pass";
        let mut child = command(&["-c", code])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "up\n");
        let names = names_in(&state_dir().join("sandboxes"));
        assert_eq!(names.len(), 1);
        signal(&child, number);
        let begun = Instant::now();
        assert_eq!(child.wait().unwrap().code(), Some(130), "{number}");
        assert!(
            begun.elapsed() < Duration::from_secs(2),
            "{:?}",
            begun.elapsed()
        );
        assert_gone(&names[0]);
        state.assert_nothing_is_left();
    }
}

/// Checks for one line that says what is wrong, and at most one hint.
pub(crate) fn assert_refused(output: &Output, status: i32, says: &str) {
    assert_eq!(output.status.code(), Some(status), "{output:?}");
    assert_eq!(output.stdout, b"", "{output:?}");
    let stderr = text(&output.stderr);
    let lines: Vec<_> = stderr.lines().collect();
    let [error, hints @ ..] = lines.as_slice() else {
        panic!("nothing was said");
    };
    assert!(error.starts_with("error: "), "{stderr}");
    assert!(error.contains(says), "{stderr}");
    assert!(hints.len() <= 1, "{stderr}");
    assert!(
        hints.iter().all(|hint| hint.starts_with("hint: ")),
        "{stderr}"
    );
}

#[test]
#[ignore = "needs root and runsc"]
fn bad_input_is_refused_with_one_line_and_leaves_nothing() {
    let state = exclusive();
    let files = files(&[
        ("latin1.py", b"print('\xe9')"),
        ("empty.py", b""),
        ("x", b""),
    ]);
    let path = |name: &str| files.path().join(name).display().to_string();
    let (latin1, empty, missing) = (path("latin1.py"), path("empty.py"), path("missing.py"));
    let (dots, nul) = (format!("{}:../x", path("x")), "print(1)\0");
    let cases: [(&[&str], &str); 12] = [
        (&[&latin1], "is not UTF-8 at byte 7"),
        (&[&empty], "the program is empty"),
        (&[&missing], "cannot read"),
        (&["/"], "cannot read"),
        (&["--input", "{", "-c", "1"], "the input is not JSON"),
        (&["--input", "@/no/such/file", "-c", "1"], "cannot read"),
        (&["--memory", "63m", "-c", "1"], "at least 64m"),
        (&["--file", &dots, "-c", "1"], "cannot be a file name"),
        (&["--timeout", "0", "-c", "1"], "out of range"),
        (&["--cpus", "0", "-c", "1"], "out of range"),
        (&["--env", "1=2", "-c", "1"], "environment variable"),
        (&["--out", "/dev/null", "-c", "1"], "/dev/null"),
    ];
    for (arguments, says) in cases {
        assert_refused(&run(arguments), 2, says);
    }
    let mut child = command(&["-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(nul.as_bytes())
        .unwrap();
    assert_refused(&child.wait_with_output().unwrap(), 2, "NUL");
    state.assert_nothing_is_left();
}

#[test]
#[ignore = "needs root and runsc"]
fn an_image_that_is_not_there_is_our_own_failure() {
    let state = exclusive();
    let output = run(&["--image", "no-such-image", "-c", "print(1)"]);
    assert_refused(&output, 125, "no-such-image");
    let output = run(&["--image", "../python", "-c", "print(1)"]);
    assert_refused(&output, 125, "../python");
    state.assert_nothing_is_left();
}

/// All keys of a record, in alphabetical order.
const KEYS: [&str; 31] = [
    "artifacts",
    "artifacts_skipped",
    "artifacts_truncated",
    "code_hash",
    "created_at",
    "duration_ms",
    "ended_at",
    "error",
    "execution_id",
    "exit_code",
    "idempotency_key",
    "input_artifacts",
    "input_hash",
    "job_ref",
    "job_type",
    "job_version",
    "output",
    "parent_execution_id",
    "relationship",
    "resource_usage",
    "result_error",
    "runtime",
    "started_at",
    "status",
    "stderr",
    "stderr_bytes",
    "stderr_truncated",
    "stdout",
    "stdout_bytes",
    "stdout_truncated",
    "timing",
];

fn keys(object: &Value) -> Vec<&str> {
    let object = object.as_object().unwrap();
    object.keys().map(String::as_str).collect()
}

#[test]
#[ignore = "needs root and runsc"]
fn a_record_is_one_object_with_every_key() {
    let state = exclusive();
    let files = files(&[("table.csv", b"a,b\n")]);
    let table = format!(
        "{}:data table.csv",
        files.path().join("table.csv").display()
    );
    let code = "
import json, shutil, sys
print('out'); print('err', file=sys.stderr)
shutil.copy('/input/data table.csv', '/output/copy.csv')
with open('/output/result.json', 'w') as file:
    json.dump([json.load(open('/input/data.json')), 1.50], file)
";
    let record = record(&["--input", r#"{"a": "ü"}"#, "--file", &table, "-c", code]);
    assert_eq!(keys(&record), KEYS);
    assert_eq!(record["status"], "succeeded");
    assert_eq!(record["exit_code"], 0);
    assert_eq!(record["stdout"], "out\n");
    assert_eq!(record["stderr"], "err\n");
    assert_eq!(
        (&record["stdout_bytes"], &record["stderr_bytes"]),
        (&json!(4), &json!(4))
    );
    assert_eq!(record["output"], json!([{ "a": "ü" }, 1.5]));
    assert_eq!(record["job_ref"], IMAGE);
    assert_eq!(record["runtime"], "runsc");
    assert_eq!(record["timing"]["phase_at_exit"], "completed");
    assert!(record["resource_usage"]["max_rss_mb"].as_f64().unwrap() > 5.0);
    assert!(record["resource_usage"]["cpu_time_ms"].as_u64().unwrap() > 10);
    assert_eq!(record["artifacts"][1]["name"], "copy.csv");
    assert_eq!(record["input_artifacts"][0]["name"], "data table.csv");
    assert_eq!(
        record["artifacts"][1]["sha256"],
        record["input_artifacts"][0]["sha256"]
    );
    state.assert_nothing_is_left();
}

#[test]
#[ignore = "needs root and runsc"]
fn a_result_is_any_json_and_one_that_does_not_parse_says_why() {
    let state = exclusive();
    let result = |bytes: &str| {
        let code = format!("open('/output/result.json', 'wb').write({bytes})\nraise SystemExit(4)");
        let record = record(&["-c", &code]);
        assert_eq!(record["exit_code"], 4);
        (record["output"].clone(), record["result_error"].clone())
    };
    for value in [
        json!(null),
        json!("text"),
        json!(1e300),
        json!([[], {}, "é\u{0}"]),
    ] {
        let bytes = format!("bytes.fromhex('{}')", hex::encode(value.to_string()));
        assert_eq!(result(&bytes), (value, json!(null)));
    }
    for bytes in [
        "b''",
        "b'{'",
        "b'NaN'",
        r"b'\xff'",
        "b'[' * 100000 + b']' * 100000",
    ] {
        let (output, error) = result(bytes);
        assert_eq!(output, json!(null), "{bytes}");
        assert!(
            error
                .as_str()
                .unwrap()
                .starts_with("/output/result.json is not JSON"),
            "{error}"
        );
    }
    // A link to a file that is there, which is none of the program's.
    let record = record(&[
        "-c",
        "import os; os.symlink('/etc/passwd', '/output/result.json')",
    ]);
    assert_eq!(
        (&record["output"], &record["result_error"]),
        (&json!(null), &json!(null))
    );
    assert_eq!(record["artifacts_truncated"], true);
    state.assert_nothing_is_left();
}

#[test]
#[ignore = "needs root and runsc"]
fn a_record_tells_every_kind_of_failure() {
    let state = exclusive();
    let of = |arguments: &[&str]| {
        let record = record(arguments);
        let error = &record["error"];
        json!([
            record["status"],
            record["exit_code"],
            error["type"],
            error["phase"]
        ])
    };
    let execution = "execution";
    let raised = of(&["-c", "{}['key']"]);
    assert_eq!(raised, json!(["failed", 1, "key_error", execution]));
    let late = of(&["--timeout", "0.5", "-c", "while True: pass"]);
    assert_eq!(
        late,
        json!(["timeout", 124, "execution_timeout", execution])
    );
    let hog = of(&[
        "--memory",
        "128m",
        "-c",
        "a = []\nwhile True: a.append(bytearray(1 << 20))",
    ]);
    assert_eq!(hog, json!(["oom", 137, "oom", execution]));
    let killed = of(&["-c", "import os; os.kill(os.getpid(), 9)"]);
    assert_eq!(killed, json!(["failed", 137, "killed", execution]));
    let message = record(&["-c", "raise ValueError('the message')"]);
    assert_eq!(message["error"]["message"], "ValueError: the message");
    state.assert_nothing_is_left();
}

#[test]
#[ignore = "needs root and runsc"]
fn collected_files_are_written_into_the_directory_that_was_named() {
    let state = exclusive();
    let base = tempfile::tempdir().unwrap();
    // Whoever runs the command may not be who runs the test.
    fs::set_permissions(base.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let out = base.path().join("new").join("out");
    let code = "
import os, tempfile
os.makedirs('/output/plots')
open('/output/plots/a b.txt', 'w').write('plot')
descriptor, _ = tempfile.mkstemp(dir='/output', suffix='.bin')
os.write(descriptor, b'\\0\\xff')
raise SystemExit(5)
";
    let output = run(&["--out", &out.display().to_string(), "-c", code]);
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    assert_eq!(fs::read(out.join("plots/a b.txt")).unwrap(), b"plot");
    let names = names_in(&out);
    assert_eq!(names.len(), 2);
    let temporary = names.iter().find(|name| name.starts_with("tmp")).unwrap();
    assert_eq!(fs::read(out.join(temporary)).unwrap(), b"\0\xff");
    state.assert_nothing_is_left();
}

#[test]
#[ignore = "needs root and runsc"]
fn a_program_comes_from_a_file_or_from_standard_input() {
    let state = exclusive();
    let files = files(&[
        (
            "grüße.py",
            "import json; print('ü', json.load(open('/input/data.json')))".as_bytes(),
        ),
        ("input.json", b"[1]"),
    ]);
    let path = |name: &str| files.path().join(name).display().to_string();
    let input = format!("@{}", path("input.json"));
    let output = run(&["--input", &input, &path("grüße.py")]);
    assert_eq!(text(&output.stdout), "ü [1]\n", "{output:?}");

    let mut child = command(&["-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"print('from stdin')")
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(text(&output.stdout), "from stdin\n");
    state.assert_nothing_is_left();
}

#[test]
#[ignore = "needs root and runsc"]
fn output_arrives_while_the_program_runs() {
    let state = exclusive();
    let code = "import time; print('first', flush=True); time.sleep(2); print('last')";
    let mut child = command(&["-c", code])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    let arrived = Instant::now();
    assert_eq!(line, "first\n");
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "last\n");
    assert!(
        arrived.elapsed() > Duration::from_secs(1),
        "{:?}",
        arrived.elapsed()
    );
    assert!(child.wait().unwrap().success());
    state.assert_nothing_is_left();
}

#[test]
#[ignore = "needs root and runsc"]
fn a_reader_that_goes_away_ends_the_program() {
    let state = exclusive();
    let code = "while True: print('x' * 1000)";
    let mut child = command(&["-c", code])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut some = [0; 100];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut some).unwrap();
    drop(stdout);
    let begun = Instant::now();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    state.assert_nothing_is_left();
}

const ESCAPES: &str = r"import os; os.write(1, b'\x1b[2Jgr\xc3\xbcn\x07\n')";

/// More than a pipe holds and less than what waits inside the command, later than it would be waited
/// for after a cancel.
#[test]
#[ignore = "needs root and runsc"]
fn a_reader_who_comes_late_gets_everything() {
    let state = exclusive();
    let mut child = command(&[
        "-c",
        "import os\nfor _ in range(3): os.write(1, b'x' * 65536)",
    ])
    .stdout(Stdio::piped())
    .spawn()
    .unwrap();
    std::thread::sleep(Duration::from_secs(5));
    let mut bytes = Vec::new();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len(), 3 << 16);
    assert!(child.wait().unwrap().success());
    state.assert_nothing_is_left();
}

#[test]
#[ignore = "needs root and runsc"]
fn a_terminal_is_shown_what_a_pipe_is_given() {
    let state = exclusive();
    let piped = run(&["-c", ESCAPES]);
    assert_eq!(piped.stdout, "\x1b[2Jgrün\x07\n".as_bytes());

    let terminal = nix::pty::openpty(None, None).unwrap();
    let mut child = {
        // Holds our copy of the slave until it is dropped.
        let mut command = command(&["-c", ESCAPES]);
        let command = command.stdout(Stdio::from(terminal.slave));
        command.spawn().unwrap()
    };
    let (mut shown, mut chunk) = (Vec::new(), [0; 4096]);
    let mut master = File::from(terminal.master);
    // Reading fails with EIO once nobody has the other side open any more.
    while let Ok(count @ 1..) = master.read(&mut chunk) {
        shown.extend_from_slice(&chunk[..count]);
    }
    assert!(child.wait().unwrap().success());
    assert_eq!(text(&shown), "\\u{1b}[2Jgrün\\u{7}\r\n");
    state.assert_nothing_is_left();
}
