//! What a client may ask for, and what it gets.

use crate::client::{Client, announcement};
use crate::daemon::{Daemon, wait_for};
use crate::host::on_this_host;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::fs;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tako_vm::sys::process;

/// From the moment when nobody wants a job any more until nothing is left of it.
const PROMISE: Duration = Duration::from_secs(2);

const ENDLESS: &str = "import time\nprint('up', flush=True)\ntime.sleep(1000)";

#[test]
#[ignore = "needs root and runsc"]
fn jobs_come_one_after_the_other_on_a_connection_and_each_says_how_it_ended() {
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    let first = client.run("print(1 + 1)");
    assert_eq!((first.stdout(), first.stderr()), ("2\n", ""));
    assert_eq!(
        first.end["termination"],
        json!({"how": "exited", "code": 0})
    );
    assert_eq!(
        (&first.end["image"], &first.end["runtime"]),
        (&json!("python"), &json!("runsc"))
    );
    assert_eq!(first.end["stdout_bytes"], 2);
    assert_eq!(first.end["exception"], json!(null));
    let second = client.run("import sys; print('no', file=sys.stderr); int('x')");
    assert_eq!(
        second.end["termination"],
        json!({"how": "exited", "code": 1})
    );
    assert_eq!(second.end["exception"]["classes"][0], "ValueError");
    assert!(second.stderr().starts_with("no\n"), "{}", second.stderr());
    assert_ne!(first.end["id"], second.end["id"]);
    let killed = client.run("import os; os.kill(os.getpid(), 9)");
    assert_eq!(
        killed.end["termination"],
        json!({"how": "signalled", "signal": 9})
    );
    // An end is told before the sandbox is cleared away, and counted after that.
    daemon.assert_empty_within(PROMISE);
    wait_for(PROMISE, || client.stats()["running"] == 0, String::new);
    let stats = client.stats();
    assert_eq!(
        (&stats["ended"], &stats["connections"]),
        (&json!(3), &json!(1))
    );
    assert_eq!(stats["kill"]["count"], 3);
    daemon.assert_empty_within(PROMISE);
}

#[test]
#[ignore = "needs root and runsc"]
fn what_a_job_brings_along_is_there_and_what_it_leaves_comes_back() {
    let daemon = Daemon::start();
    let code = "
import json, os
kept = open('/input/kept', 'rb').read()
assert json.load(open('/input/data.json')) == {'n': 1}
assert open('/input/none', 'rb').read() == b''
os.mkdir('/output/plots')
open('/output/result.json', 'w').write('[1]')
open('/output/none', 'w')
open('/output/big', 'wb').write(kept * 2)
print(os.environ['GREETING'])
";
    let (input, kept) = (r#"{"n": 1}"#, vec![7_u8; 150_000]);
    let job = json!({
        "image": "python", "code_bytes": code.len(), "input_bytes": input.len(),
        "files": [{"name": "none", "size": 0}, {"name": "kept", "size": kept.len()}],
        "environment": [["GREETING", "hello"]], "memory_bytes": 256 << 20, "millicpus": 1000,
        "timeout_ms": 20_000, "startup_timeout_ms": 60_000,
    });
    let bytes = [code.as_bytes(), input.as_bytes(), &kept].concat();
    let mut client = daemon.connect();
    client.submit(&job, &bytes);
    let ran = client.finish();
    assert_eq!((ran.stdout(), ran.stderr()), ("hello\n", ""));
    assert_eq!(ran.files["result.json"], b"[1]");
    assert_eq!(ran.files["none"], b"");
    assert_eq!(ran.files["big"], vec![7; 300_000]);
    for artifact in ran.end["artifacts"].as_array().unwrap() {
        let bytes = &ran.files[artifact["name"].as_str().unwrap()];
        assert_eq!(artifact["sha256"], hex::encode(Sha256::digest(bytes)));
    }
    assert_eq!(ran.end["artifacts_truncated"], false);
    daemon.assert_empty_within(PROMISE);
}

#[test]
#[ignore = "needs root and runsc"]
fn output_comes_as_it_is_written_or_in_the_end_as_far_as_it_is_kept() {
    let daemon = Daemon::with("max_stdout_bytes: 1024\n");
    let mut client = daemon.connect();
    let first = client.begin("print('one', end='', flush=True); input(); print('two')");
    assert_eq!((first.kind, first.body.as_slice()), ('o', &b"one"[..]));
    let rest = client.finish();
    assert_eq!(rest.end["exception"]["classes"][0], "EOFError");
    let long = "import sys; sys.stdout.write('x' * 5000)";
    let kept = client.run(long);
    assert_eq!(
        (kept.stdout.len(), &kept.end["stdout_bytes"]),
        (1024, &json!(5000))
    );
    let mut job = announcement(long);
    job["stream"] = true.into();
    client.submit(&job, long.as_bytes());
    let accepted = client.expect('a').json();
    assert_eq!(
        accepted,
        json!({"stdout_limit": 1024, "stderr_limit": 65536})
    );
    assert_eq!(client.finish().stdout.len(), 5000);
}

#[test]
#[ignore = "needs root and runsc"]
fn a_job_that_is_cancelled_ends_at_once_and_its_connection_stays() {
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    client.begin(ENDLESS);
    let begun = Instant::now();
    client.send('c', b"");
    assert_eq!(client.finish().how(), "cancelled");
    assert!(begun.elapsed() < on_this_host(PROMISE));
    // One that crosses with the end of its job, and a word to begin that crosses with a refusal.
    client.send('c', b"");
    client.send('b', b"");
    assert_eq!(client.run("print(1)").stdout(), "1\n");
    daemon.assert_empty_within(PROMISE);
}

#[test]
#[ignore = "needs root and runsc"]
fn a_job_that_is_held_begins_with_the_word_and_has_its_time_from_then_on() {
    let (warm, cold) = (Daemon::with_pool("minimum: 1"), Daemon::start());
    for (daemon, start) in [(&warm, "warm"), (&cold, "cold")] {
        let mut client = daemon.connect();
        if start == "warm" {
            let patience = on_this_host(Duration::from_secs(20));
            let ready = || client.stats()["pools"][0]["ready"] == 1;
            wait_for(patience, ready, String::new);
        }
        let code = "import time; print(time.time())";
        let mut job = announcement(code);
        job["hold"] = true.into();
        job["timeout_ms"] = 1500.into();
        client.submit(&job, code.as_bytes());
        // It is there, and nothing of the program was begun.
        daemon.sandbox();
        std::thread::sleep(Duration::from_secs(3));
        let word = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        client.send('b', b"");
        client.expect('a');
        let ran = client.finish();
        assert_eq!(ran.end["timing"]["start"], start);
        let began: f64 = ran.stdout().trim().parse().unwrap();
        assert!(
            // The clock of a sandbox is a little off.
            began > word.as_secs_f64() - 0.1,
            "began {began}, the word came {word:?}"
        );
        let total = ran.end["timing"]["total_ms"].as_u64().unwrap();
        assert!(total < 2500, "{}", ran.end);
        let started: jiff::Timestamp = ran.end["started_at"].as_str().unwrap().parse().unwrap();
        assert!(started.as_duration().as_secs_f64() > word.as_secs_f64() - 0.1);
    }
}

#[test]
#[ignore = "needs root and runsc"]
fn a_job_dies_with_its_connection() {
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    client.begin(ENDLESS);
    let sandbox = daemon.sandbox();
    drop(client);
    daemon.assert_empty_within(PROMISE);
    crate::host::assert_gone(&sandbox);
    // Also one that has not begun.
    let mut client = daemon.connect();
    client.submit(&announcement(ENDLESS), ENDLESS.as_bytes());
    client.expect('a');
    drop(client);
    daemon.assert_empty_within(PROMISE);
    assert_eq!(daemon.connect().stats()["running"], 0);
}

#[test]
#[ignore = "needs root and runsc"]
fn a_time_limit_holds_although_the_client_takes_nothing() {
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    client.begin_with(
        "while True: print('x' * 1000)",
        &json!({"timeout_ms": 1000}),
    );
    // The limit, the backstop of 3 s behind it, and the promise.
    daemon.assert_without_sandboxes_within(Duration::from_secs(1 + 3) + PROMISE);
    let ran = client.finish();
    assert_eq!(
        ran.end["termination"],
        json!({"how": "timed_out", "phase": "execution"})
    );
    assert!(ran.end["stdout_bytes"].as_u64().unwrap() >= ran.stdout.len() as u64);
    daemon.assert_empty_within(PROMISE);
}

#[test]
#[ignore = "needs root and runsc"]
fn nobody_gets_more_than_root_allows() {
    let daemon = Daemon::with("max_timeout: 5\ndefault_timeout: 1\nmax_startup_timeout: 130\n");
    let mut client = daemon.connect();
    for (key, value, problem) in [
        ("timeout_ms", json!(5001), "at most 5s"),
        ("timeout_ms", json!(0), "more than 0"),
        ("timeout_ms", json!(u64::MAX), "at most 5s"),
        ("startup_timeout_ms", json!(131_000), "at most 130s"),
        ("memory_bytes", json!(u64::MAX), "exceed the maximum"),
        ("memory_bytes", json!(1), "too little"),
        ("millicpus", json!(u32::MAX), "out of range"),
        (
            "environment",
            json!([["A=B", ""]]),
            "cannot be an environment variable",
        ),
        (
            "files",
            json!([{"name": "../x", "size": 0}]),
            "cannot be a file name",
        ),
    ] {
        let mut job = announcement("print(1)");
        job[key] = value;
        let refusal = client.refused(&job, b"print(1)");
        assert_eq!(refusal["code"], "invalid", "{refusal}");
        assert!(
            refusal["problems"][0].as_str().unwrap().contains(problem),
            "{refusal}"
        );
    }
    let several = json!({"image": "python", "code_bytes": 1, "timeout_ms": 0, "millicpus": 0});
    let refusal = client.refused(&several, b" ");
    assert_eq!(
        refusal["problems"].as_array().unwrap().len(),
        3,
        "{refusal}"
    );
    let refusal = client.refused(&announcement("a"), &[0xff]);
    assert!(
        refusal["message"].as_str().unwrap().contains("UTF-8"),
        "{refusal}"
    );
    // What is not asked for is root's default.
    let timed_out = client.run("while True: pass");
    assert_eq!(timed_out.how(), "timed_out");
}

#[test]
#[ignore = "needs root and runsc"]
fn a_job_too_many_is_turned_away_and_may_come_back_on_its_connection() {
    let daemon = Daemon::with("supervisor: {max_jobs: 1}\n");
    let mut first = daemon.connect();
    first.begin(ENDLESS);
    let mut second = daemon.connect();
    let refusal = second.refused(&announcement(&" ".repeat(1 << 20)), &vec![b' '; 1 << 20]);
    assert_eq!(refusal["code"], "busy");
    let hint = refusal["retry_after_ms"].as_u64().unwrap();
    assert!((50..=5000).contains(&hint), "{hint}");
    let stats = second.stats();
    assert_eq!(
        (&stats["busy"], &stats["running"], &stats["max_jobs"]),
        (&json!(1), &json!(1), &json!(1))
    );
    first.send('c', b"");
    first.finish();
    daemon.assert_empty_within(PROMISE);
    assert_eq!(second.run("print(1)").stdout(), "1\n");
}

#[test]
#[ignore = "needs root and runsc"]
fn an_image_that_is_not_there_or_not_any_more_is_refused() {
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    let mut job = announcement("print(1)");
    for image in ["nothing", "../python", "python@sha256:00"] {
        job["image"] = image.into();
        let refusal = client.refused(&job, b"print(1)");
        assert_eq!(refusal["code"], "image", "{refusal}");
        // Nothing of what else there is.
        let state = daemon.state().display().to_string();
        for untold in [state.as_str(), "there is: `"] {
            assert!(!refusal.to_string().contains(untold), "{refusal}");
        }
    }
    assert_eq!(client.run("print(1)").stdout(), "1\n");
    let manifest = daemon.state().join("images/python.json");
    let text = fs::read_to_string(&manifest).unwrap();
    let digest = serde_json::from_str::<serde_json::Value>(&text).unwrap()["digest"].clone();
    job["image"] = format!("python@sha256:{}", digest.as_str().unwrap()).into();
    client.submit(&job, b"print(1)");
    assert_eq!(client.finish().stdout(), "1\n");
    // It was checked a moment ago.
    fs::write(&manifest, text.replace("\"protocol\":", "\"protocol\":9")).unwrap();
    for image in ["python".into(), job["image"].clone()] {
        job["image"] = image;
        let refusal = client.refused(&job, b"print(1)");
        assert!(
            refusal["message"]
                .as_str()
                .unwrap()
                .contains("tako-vm setup"),
            "{refusal}"
        );
    }
    fs::remove_file(&manifest).unwrap();
    assert_eq!(
        client.refused(&announcement("print(1)"), b"print(1)")["code"],
        "image"
    );
}

#[test]
#[ignore = "needs root and runsc"]
fn the_example_of_the_documentation_works_as_it_stands() {
    let daemon = Daemon::start();
    let page = include_str!("../../docs/supervisor-protocol.md");
    let (_, behind) = page.split_once("```python\n").unwrap();
    let (example, _) = behind.split_once("```").unwrap();
    let default = "/run/tako-vm/supervisor.sock";
    assert!(example.contains(default));
    let example = example.replace(default, daemon.socket().to_str().unwrap());
    let printed = process::run(process::program("python3").args(["-c", &example]));
    let printed = printed.unwrap().stdout;
    assert!(printed.contains("b'o' b'2\\n'"), "{printed}");
    assert!(
        printed.contains("'termination': {'how': 'exited', 'code': 0}"),
        "{printed}"
    );
}

#[test]
#[ignore = "needs root and runsc"]
fn four_clients_at_once_each_get_their_own() {
    let daemon = Daemon::with("supervisor: {max_jobs: 4}\n");
    let socket = daemon.socket();
    std::thread::scope(|scope| {
        for number in 0..4 {
            let socket = &socket;
            scope.spawn(move || {
                let mut client = Client::connect(socket);
                for round in 0..3 {
                    let ran = client.run(&format!("print({number}, {round})"));
                    assert_eq!(ran.stdout(), format!("{number} {round}\n"));
                }
            });
        }
    });
    let mut client = daemon.connect();
    wait_for(PROMISE, || client.stats()["running"] == 0, String::new);
    assert_eq!(client.stats()["ended"], 12);
    daemon.assert_empty_within(PROMISE);
}
