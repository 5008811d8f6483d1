//! Clients that may connect and mean no good: none of them keeps another from being served.

use crate::client::{Client, announcement, frame, hello};
use crate::daemon::{Daemon, place, wait_for};
use crate::host::on_this_host;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tako_vm::sys::process;

/// In which a normal job is to be answered, whatever others do: three times a cold start.
const NORMAL: Duration = Duration::from_secs(1);

/// Bytes of memory that a supervisor may have at worst here: what 64 connections may send as the
/// beginning of a frame (2 MiB each), and as much again.
const MEMORY: u64 = 300 << 20;

/// A job runs as fast as ever; the best of three, since this machine has other things to do as well.
fn assert_serves(client: &mut Client) {
    let times = [(); 3].map(|()| {
        let begun = Instant::now();
        assert_eq!(client.run("print(1)").stdout(), "1\n");
        begun.elapsed()
    });
    let best = times.iter().min().unwrap();
    assert!(*best < on_this_host(NORMAL), "{times:?}");
    let begun = Instant::now();
    client.stats();
    assert!(begun.elapsed() < on_this_host(NORMAL));
}

/// Nobody else is connected any more; a place is free a moment after its connection is closed.
fn assert_alone(client: &mut Client) {
    let mut connections = || client.stats()["connections"] == 1;
    wait_for(Duration::from_secs(5), &mut connections, String::new);
}

fn greeted(bytes: Vec<u8>) -> Vec<u8> {
    [hello(), bytes].concat()
}

fn run(job: &Value) -> Vec<u8> {
    frame('r', job.to_string().as_bytes())
}

/// What is sent, and what of it is in the refusal.
type Case = (&'static str, Vec<u8>, &'static str);

/// What no decoder takes.
fn no_frames() -> Vec<Case> {
    let mut unknown = announcement("print(1)");
    unknown["privileged"] = true.into();
    let mut untyped = announcement("print(1)");
    untyped["code_bytes"] = (-1).into();
    let body = "not what its kind says";
    vec![
        ("4 GiB", b"r\xff\xff\xff\xff".to_vec(), "4294967295 bytes"),
        (
            "4 GiB of data",
            greeted(b"d\xff\xff\xff\xff".to_vec()),
            "4294967295 bytes",
        ),
        (
            "a byte too long",
            greeted(b"d\x01\x00\x01\x00".to_vec()),
            "65537 bytes",
        ),
        (
            "garbage",
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            "unknown kind 0x47",
        ),
        (
            "a kind of the other side",
            greeted(frame('o', b"")),
            "unknown kind 0x6f",
        ),
        (
            "a body where none is",
            greeted(frame('c', b"x")),
            "at most 0",
        ),
        ("no JSON", greeted(frame('r', b"{")), body),
        ("an unknown field", greeted(run(&unknown)), body),
        ("a negative number", greeted(run(&untyped)), body),
        (
            "arrays without end",
            greeted(frame('r', &[b'['; 10_000])),
            body,
        ),
    ]
}

/// Frames that are none of these, at the wrong time.
fn out_of_order() -> Vec<Case> {
    let job = run(&announcement("print(1)"));
    let mut held = announcement("print(1)");
    held["hold"] = true.into();
    let held = [run(&held), frame('d', b"print(1)")].concat();
    let other = frame('h', br#"{"protocol":2,"version":"x"}"#);
    vec![
        ("no greeting", job.clone(), "greeting"),
        ("another version", other, "speaks version 1"),
        ("two greetings", greeted(hello()), "second greeting"),
        (
            "bytes of nothing",
            greeted(frame('d', b"x")),
            "no job has announced",
        ),
        (
            "too many bytes",
            greeted([job.clone(), frame('d', b"print(1) ")].concat()),
            "more bytes",
        ),
        (
            "no bytes",
            greeted([job, frame('s', b"")].concat()),
            "expected",
        ),
        (
            "no word to begin",
            greeted([held, frame('c', b"")].concat()),
            "while a job is held",
        ),
    ]
}

#[test]
#[ignore = "needs root and runsc"]
fn what_is_not_the_protocol_is_refused_and_the_connection_closed() {
    let daemon = Daemon::start();
    let mut normal = daemon.connect();
    for (name, bytes, expected) in [no_frames(), out_of_order()].concat() {
        let mut client = Client::silent(&daemon.socket());
        client.try_write(&bytes);
        let refusal = client.last_refusal();
        assert_eq!(refusal["code"], "protocol", "{name}: {refusal}");
        let message = refusal["message"].as_str().unwrap();
        assert!(message.contains(expected), "{name}: {message}");
    }
    assert_serves(&mut normal);
    // Until its sandbox is cleared away, its place is taken.
    wait_for(
        Duration::from_secs(2),
        || normal.stats()["running"] == 0,
        String::new,
    );
}

#[test]
#[ignore = "needs root and runsc"]
fn more_bytes_than_any_job_has_are_not_even_read() {
    let daemon = Daemon::start();
    let huge = json!({"name": "x", "size": u64::MAX});
    for (code_bytes, files) in [(1_u64 << 40, json!([])), (1, json!([huge, huge, huge]))] {
        let job = json!({"image": "python", "code_bytes": code_bytes, "files": files});
        let mut client = daemon.connect();
        client.write(&run(&job));
        assert_eq!(client.last_refusal()["code"], "invalid");
    }
    assert_serves(&mut daemon.connect());
}

#[test]
#[ignore = "needs root and runsc"]
fn whatever_comes_while_a_job_runs_but_a_cancel_kills_it() {
    let daemon = Daemon::start();
    for bytes in [
        frame('s', b""),
        run(&announcement("print(1)")),
        hello(),
        vec![0; 5],
    ] {
        let mut client = daemon.connect();
        client.begin("import time; print('up', flush=True); time.sleep(1000)");
        client.write(&bytes);
        assert_eq!(client.last_refusal()["code"], "protocol");
        daemon.assert_empty_within(Duration::from_secs(2));
    }
}

#[test]
#[ignore = "needs root and runsc"]
fn a_refusal_of_very_many_problems_stays_small() {
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    let names: Vec<_> = (0..256).map(|n| json!([format!("\u{1}{n}"), ""])).collect();
    let job = json!({"image": "python", "code_bytes": 1, "environment": names});
    let refusal = client.refused(&job, b"1");
    assert_eq!(refusal["problems"].as_array().unwrap().len(), 50);
    let name = "\u{1}".repeat(200_000);
    let job = json!({"image": "python", "code_bytes": 1, "environment": [[name, ""]]});
    let refusal = client.refused(&job, b"1").to_string();
    assert!(refusal.len() < 20_000, "{}", refusal.len());
    assert_serves(&mut client);
}

#[test]
#[ignore = "needs root and runsc"]
fn what_is_short_on_the_wire_and_long_in_memory_is_given_up_at_once() {
    let daemon = Daemon::with("supervisor: {max_jobs: 1}\n");
    let mut normal = daemon.connect();
    let head = br#"{"image":"python","code_bytes":1000,"environment":["#;
    let pairs = br#"["a","a"],"#.repeat((2 << 20) / 10 - 10);
    let body = [&head[..], &pairs, br#"["a","a"]]}"#].concat();
    let many: Vec<_> = (0..40)
        .map(|_| {
            let mut client = Client::silent(&daemon.socket());
            client.try_write(&greeted(frame('r', &body)));
            client
        })
        .collect();
    for mut client in many {
        let refusal = client.last_refusal();
        assert_eq!(refusal["code"], "protocol", "{refusal}");
        let problem = refusal["problems"][0].as_str().unwrap();
        assert!(problem.contains("at most 256"), "{refusal}");
    }
    let peak = daemon.memory_peak();
    assert!(peak < MEMORY, "{peak}");
    assert_serves(&mut normal);
}

#[test]
#[ignore = "needs root and runsc"]
fn half_frames_cost_little_and_are_given_up_after_ten_seconds() {
    let daemon = Daemon::start();
    let mut normal = daemon.connect();
    let begun = Instant::now();
    let halves: Vec<_> = (0..60)
        .map(|number| {
            let mut client = Client::silent(&daemon.socket());
            client.write(&match number % 3 {
                0 => b"h\x10".to_vec(),
                1 => hello()[..12].to_vec(),
                // All of the longest frame but a byte.
                _ => greeted([b"r\x00\x00\x20\x00".to_vec(), vec![b' '; (2 << 20) - 1]].concat()),
            });
            client
        })
        .collect();
    assert_serves(&mut normal);
    assert!(daemon.memory() < MEMORY, "{}", daemon.memory());
    for mut client in halves {
        let refusal = client.last_refusal();
        assert_eq!(refusal["code"], "protocol");
        assert!(
            refusal["message"].as_str().unwrap().contains("10s"),
            "{refusal}"
        );
    }
    let waited = begun.elapsed();
    assert!(waited >= Duration::from_secs(10), "{waited:?}");
    assert!(waited < on_this_host(Duration::from_secs(25)), "{waited:?}");
    assert_alone(&mut normal);
}

#[test]
#[ignore = "needs root and runsc"]
fn of_a_thousand_connections_as_many_are_open_as_one_user_may_have() {
    let daemon = Daemon::start();
    let mut normal = daemon.connect();
    let mut open = Vec::new();
    let mut refused = 0;
    for _ in 0..1000 {
        let mut client = Client::silent(&daemon.socket());
        let first = client.receive().unwrap();
        if first.kind == 'h' {
            open.push(client);
        } else {
            assert_eq!(first.refusal()["code"], "busy");
            assert!(first.refusal()["retry_after_ms"].is_u64());
            assert_eq!(client.receive(), None);
            refused += 1;
        }
    }
    // Root has 16 more, to look and to drain.
    assert_eq!((open.len(), refused), (63 + 16, 937 - 16));
    let last = open.last_mut().unwrap();
    last.write(&hello());
    assert_eq!(last.stats()["connections"], 80);
    let refusal = last.refused(&announcement("print(1)"), b"print(1)");
    assert_eq!(refusal["code"], "busy", "{refusal}");
    assert_serves(&mut normal);
    assert!(daemon.memory() < MEMORY, "{}", daemon.memory());
    let lines = daemon
        .log()
        .lines()
        .filter(|line| line.contains("one more connection"))
        .count();
    assert!(lines < 100, "{lines} lines");
    drop(open);
    assert_alone(&mut normal);
    daemon.connect();
}

#[test]
#[ignore = "needs root and runsc"]
fn a_client_that_takes_nothing_holds_up_nobody_but_its_own_program() {
    let daemon = Daemon::start();
    let mut normal = daemon.connect();
    let mut slow = daemon.connect();
    slow.begin_with(
        "
import sys
for n in range(100):
    sys.stdout.write('x' * 1_000_000)
",
        &json!({"timeout_ms": 60_000}),
    );
    std::thread::sleep(Duration::from_secs(1));
    assert_serves(&mut normal);
    assert!(daemon.memory() < MEMORY, "{}", daemon.memory());
    let ran = slow.finish();
    assert_eq!(ran.how(), "exited");
    assert_eq!(ran.end["stdout_bytes"], 100_000_000);
    daemon.assert_empty_within(Duration::from_secs(2));
}

#[test]
#[ignore = "needs root and runsc"]
fn a_refusal_in_the_midst_of_output_is_a_frame_of_its_own() {
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    client.begin("while True: print('x' * 1_000_000)");
    // Until the buffers are full, and some write has come half-way.
    std::thread::sleep(Duration::from_secs(1));
    client.write(&hello());
    let mut frames = std::iter::from_fn(|| client.receive());
    let refusal = frames.find(|frame| frame.kind != 'o').unwrap().refusal();
    assert_eq!(refusal["code"], "protocol");
    assert_eq!(frames.next(), None);
    daemon.assert_empty_within(Duration::from_secs(2));
}

#[test]
#[ignore = "needs root and runsc"]
fn a_supervisor_without_descriptors_serves_again_once_it_has_some() {
    let daemon = Daemon::in_directory(place(""), |command| {
        let mut limited = process::program("prlimit");
        limited
            .arg("--nofile=48:48")
            .arg(command.get_program())
            .args(command.get_args());
        *command = limited;
    });
    let mut normal = daemon.connect();
    let many: Vec<_> = (0..60).map(|_| Client::silent(&daemon.socket())).collect();
    daemon.assert_logs("cannot accept a connection");
    normal.stats();
    drop(many);
    assert_alone(&mut normal);
    // A sandbox takes more of them than there are here.
    daemon.connect().stats();
}

#[test]
#[ignore = "needs root and runsc"]
fn who_takes_nothing_of_what_a_job_left_is_cut_off_after_half_a_minute() {
    let daemon = Daemon::start();
    let mut slow = daemon.connect();
    let code = "
for n in range(4):
    open(f'/output/{n}', 'w').write('x' * 5_000_000)
";
    slow.submit(&announcement(code), code.as_bytes());
    slow.expect('a');
    slow.expect('z');
    let begun = Instant::now();
    daemon.assert_empty_within(Duration::from_secs(45));
    assert!(
        begun.elapsed() > Duration::from_secs(25),
        "{:?}",
        begun.elapsed()
    );
    assert_alone(&mut daemon.connect());
}

#[test]
#[ignore = "needs root and runsc"]
fn who_announces_a_small_job_and_sends_none_has_a_slot_for_five_seconds() {
    let daemon = Daemon::with("supervisor: {max_jobs: 1}\n");
    let mut idle = daemon.connect();
    let begun = Instant::now();
    idle.send('r', announcement("print(1)").to_string().as_bytes());
    let mut other = daemon.connect();
    wait_for(
        Duration::from_secs(5),
        || other.stats()["running"] == 1,
        String::new,
    );
    assert_eq!(
        other.refused(&announcement("print(1)"), b"print(1)")["code"],
        "busy"
    );
    let refusal = idle.last_refusal();
    assert!(
        refusal["message"].as_str().unwrap().contains("within 5s"),
        "{refusal}"
    );
    assert!(begun.elapsed() < on_this_host(Duration::from_secs(15)));
    assert_serves(&mut other);
}

#[test]
#[ignore = "needs root and runsc"]
fn who_has_a_job_held_and_does_not_begin_it_has_a_slot_for_five_seconds() {
    let daemon = Daemon::with("supervisor: {max_jobs: 1}\n");
    let mut idle = daemon.connect();
    let (begun, code) = (Instant::now(), "print(1)");
    let mut job = announcement(code);
    job["hold"] = true.into();
    idle.submit(&job, code.as_bytes());
    daemon.sandbox();
    let mut other = daemon.connect();
    assert_eq!(
        other.refused(&announcement(code), code.as_bytes())["code"],
        "busy"
    );
    let refusal = idle.last_refusal();
    assert!(
        refusal["message"]
            .as_str()
            .unwrap()
            .contains("not begun within 5s"),
        "{refusal}"
    );
    assert!(begun.elapsed() < on_this_host(Duration::from_secs(15)));
    daemon.assert_empty_within(Duration::from_secs(2));
    assert_serves(&mut other);
}
