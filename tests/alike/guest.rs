//! The part of the guest protocol that makes a sandbox ready: a guest that does not keep to it, and a
//! host that does not.

use crate::host::{job, script};
use crate::starts::{Starts, gone};
use std::fs;
use std::time::{Duration, Instant};
use tako_guest::{
    Area, Exit, ExitStatus, Limits as GuestLimits, PROTOCOL, ToGuest, ToHost, encode,
};
use tako_vm::job::{Limits, Termination};
use tako_vm::sandbox::SandboxError;
use tako_vm::sys::cgroup::Urgency;
use tempfile::TempDir;

/// Bytes as `printf` of the shell takes them.
fn printed(wire: &[u8]) -> String {
    wire.iter()
        .fold(String::new(), |text, byte| format!("{text}\\{byte:03o}"))
}

fn to_host(frames: &[ToHost]) -> Vec<u8> {
    let mut wire = Vec::new();
    for frame in frames {
        encode(frame, &mut wire).unwrap();
    }
    wire
}

fn to_guest(frames: &[ToGuest]) -> Vec<u8> {
    let mut wire = Vec::new();
    for frame in frames {
        encode(frame, &mut wire).unwrap();
    }
    wire
}

/// A runtime whose guest says this, whatever it is told, and then stays.
fn stub(directory: &TempDir, says: &[u8]) -> Starts {
    let body = format!("printf '{}'; exec cat > /dev/null", printed(says));
    Starts::with_runtime(&script(directory.path(), &body))
}

/// One that holds an interpreter and rehearses, as far as it says, and says the rest when it is given a job.
fn stub_with_a_job(directory: &TempDir, says: &[u8]) -> Starts {
    let program = directory.path().join("guest.py");
    fs::write(&program, GUEST).unwrap();
    let said = [&to_host(&[READY]), &to_host(&[ToHost::Held]), says];
    let said = said.map(|bytes| format!("'{}'", hex::encode(bytes)));
    let body = format!("exec python3 {} {}", program.display(), said.join(" "));
    Starts::with_runtime(&script(directory.path(), &body))
}

/// What it says is given in hexadecimal digits: first, when asked to hold or to rehearse, at the job.
const GUEST: &str = r"
import os, sys, time
first, held, rest = map(bytes.fromhex, sys.argv[1:4])
os.write(1, first)
HOLD, START, PING = 5, 3, 6
while header := sys.stdin.buffer.read(4):
    body = sys.stdin.buffer.read(int.from_bytes(header, 'little'))
    if body[0] in (HOLD, PING):
        os.write(1, held)
    elif body[0] == START:
        os.write(1, rest)
        time.sleep(60)
";

const READY: ToHost = ToHost::Ready { protocol: PROTOCOL };

/// Why a sandbox of this runtime is not ready; nothing is left of it.
async fn refused(starts: &Starts) -> String {
    let limits = Limits::default();
    let ready = starts.sandboxes.ready(&starts.image, &limits, Urgency::Job);
    let why = match ready.await {
        Err(SandboxError::NotReady { why }) => why,
        other => panic!("{other:?}"),
    };
    assert!(starts.names().is_empty(), "{:?}", starts.names());
    why
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, runsc and an executor image"]
async fn a_guest_that_does_not_answer_as_it_should_is_never_ready() {
    let ended = Exit {
        status: ExitStatus::Exited(0),
        ended_by: None,
        startup_ms: Some(1),
        execution_ms: 1,
        exception: None,
    };
    let old = ToHost::Ready {
        protocol: PROTOCOL - 1,
    };
    let cases: [(Vec<u8>, &str); 10] = [
        (to_host(&[ToHost::Held]), "it sent `held` out of order"),
        (
            to_host(&[old]),
            "it speaks version 3 of the guest protocol and not 4",
        ),
        (to_host(&[READY, READY]), "it sent `ready` out of order"),
        (
            to_host(&[READY, ToHost::Started]),
            "it sent `started` out of order",
        ),
        (
            to_host(&[READY, ToHost::Running { startup_ms: 1 }]),
            "it sent `running` out of order",
        ),
        (
            to_host(&[READY, ToHost::Stdout(b"held")]),
            "it sent `stdout` out of order",
        ),
        (
            to_host(&[READY, ToHost::Exit(ended)]),
            "it sent `exit` out of order",
        ),
        (
            to_host(&[READY, ToHost::Fault("no interpreter")]),
            "init reports: no interpreter",
        ),
        (
            [to_host(&[READY]), vec![0xff; 64]].concat(),
            "it does not speak the guest protocol",
        ),
        (
            [to_host(&[READY]), vec![1, 0, 0, 0, 99]].concat(),
            "it does not speak the guest protocol",
        ),
    ];
    for (says, expected) in cases {
        let directory = tempfile::tempdir().unwrap();
        let why = refused(&stub(&directory, &says)).await;
        assert!(why.starts_with(expected), "{why} instead of {expected}");
    }
    let directory = tempfile::tempdir().unwrap();
    let body = format!("printf '{}'", printed(&to_host(&[READY])));
    let why = refused(&Starts::with_runtime(&script(directory.path(), &body))).await;
    assert!(why.starts_with("it ended before"), "{why}");
}

/// Once it is ready, a guest answers for a job or is lost; before it has taken the job up, another
/// sandbox may be tried.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, runsc and an executor image"]
async fn a_guest_that_answers_a_job_with_anything_else_has_lost_it() {
    for (further, untouched) in [
        (to_host(&[ToHost::Held]), true),
        (to_host(&[READY]), true),
        (to_host(&[ToHost::Fault("no")]), true),
        (to_host(&[ToHost::Done { skipped: 0 }]), true),
        (vec![0xff; 64], true),
        (to_host(&[ToHost::Started, ToHost::Held]), false),
        (
            to_host(&[
                ToHost::Started,
                ToHost::Started,
                ToHost::Done { skipped: 0 },
            ]),
            false,
        ),
        (
            to_host(&[ToHost::Running { startup_ms: 1 }, ToHost::Held]),
            false,
        ),
        // It may be a program that has printed this.
        (to_host(&[ToHost::Stdout(b"x"), ToHost::Held]), false),
        (to_host(&[ToHost::Stderr(b"x"), ToHost::Held]), false),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let starts = stub_with_a_job(&directory, &further);
        let mut ready = starts.ready().await;
        assert!(ready.is_alive());
        let finished = starts.hand_over(ready, &job("pass")).await;
        assert_eq!(finished.untouched, untouched, "{further:?}");
        let termination = gone(finished).await.termination;
        assert!(
            matches!(termination, Termination::SandboxLost(_)),
            "{termination:?}"
        );
        assert!(starts.names().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, runsc and an executor image"]
async fn a_guest_that_does_not_answer_a_job_is_given_up_and_has_not_begun_it() {
    let directory = tempfile::tempdir().unwrap();
    let starts = stub_with_a_job(&directory, b"");
    let ready = starts.ready().await;
    let begun = Instant::now();
    let finished = starts.hand_over(ready, &job("pass")).await;
    assert!(finished.untouched, "{:?}", finished.outcome);
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "not before 120 s"
    );
    let termination = gone(finished).await.termination;
    let Termination::SandboxLost(why) = termination else {
        panic!("{termination:?}");
    };
    assert!(why.starts_with("it did not take its job within"), "{why}");
}

/// The real guest, and a host that says this before anything else.
fn interrupted(directory: &TempDir, says: &[u8]) -> Starts {
    let body = format!(
        "{{ printf '{}'; exec cat; }} | $RUNSC \"$@\"",
        printed(says)
    );
    Starts::with_runtime(&script(directory.path(), &body))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, runsc and an executor image"]
async fn init_gives_up_when_the_host_asks_for_what_cannot_be() {
    let limits = GuestLimits {
        startup_ms: 1,
        execution_ms: 1,
        output_bytes: 1,
        artifact_bytes: 1,
        artifacts_total_bytes: 1,
    };
    let out_of_order = "init reports: the host sent a frame out of order";
    for says in [
        to_guest(&[ToGuest::Ping]),
        to_guest(&[ToGuest::Cancel]),
        to_guest(&[ToGuest::Data(b"of no file")]),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let why = refused(&interrupted(&directory, &says)).await;
        assert!(why.starts_with(out_of_order), "{why}");
    }
    let directory = tempfile::tempdir().unwrap();
    let why = refused(&interrupted(&directory, &[0xff; 8])).await;
    assert!(
        why.starts_with("init reports: the host does not speak the protocol"),
        "{why}"
    );
    // Held already, it is asked to hold once more; and to rehearse with a file that not every job has.
    let further = ToGuest::File {
        area: Area::Input,
        name: "further",
        size: 0,
    };
    for says in [
        to_guest(&[ToGuest::Hold]),
        to_guest(&[ToGuest::Hold, further, ToGuest::Ping]),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let why = refused(&interrupted(&directory, &says)).await;
        assert!(why.starts_with(out_of_order), "{why}");
    }
    // A job instead of the wish to be held: that is what a cold start does.
    let directory = tempfile::tempdir().unwrap();
    let why = refused(&interrupted(
        &directory,
        &to_guest(&[ToGuest::Start(limits)]),
    ))
    .await;
    assert!(why.starts_with("it sent `started` out of order"), "{why}");
}
