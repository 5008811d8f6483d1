//! How programs end: each of these in every kind of start, with everything that is told of it.

use crate::host::{Ran, request};
use crate::starts::{Starts, Way};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;
use tako_vm::job::{JobRequest, JobSpec, Start, Termination};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What is told of a job.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    termination: Termination,
    error: Option<(&'static str, String)>,
    classes: Option<Vec<String>>,
    phase: &'static str,
    stdout: Vec<u8>,
    stdout_total: u64,
    stderr: Vec<u8>,
    files: BTreeMap<String, Vec<u8>>,
    skipped: Vec<(String, String)>,
    truncated: bool,
    started: bool,
}

fn told(ran: Ran) -> Told {
    let outcome = ran.outcome;
    let phase = outcome.timing.phase_at_exit;
    let exception = outcome.exception;
    let error = outcome.termination.error(exception.as_ref(), phase);
    let skipped = outcome.artifacts_skipped.into_iter();
    Told {
        error: error.map(|error| (error.kind, error.message)),
        classes: exception.map(|exception| exception.classes),
        termination: outcome.termination,
        phase,
        stdout_total: outcome.stdout.total,
        stdout: outcome.stdout.bytes,
        stderr: outcome.stderr.bytes,
        files: ran.files,
        skipped: skipped
            .map(|file| (file.name, file.reason.into_owned()))
            .collect(),
        truncated: outcome.artifacts_truncated,
        started: outcome.timing.startup_ms.is_some(),
    }
}

/// A job that may run for two seconds.
fn short(code: &str) -> JobSpec {
    request(JobRequest {
        code: code.to_owned(),
        timeout: Some(Duration::from_secs(2)),
        ..JobRequest::default()
    })
}

/// Without what is another in any two runs: addresses.
fn comparable(mut told: Told) -> Told {
    let mut pieces = told.stderr.split(|byte| *byte == b'x');
    let mut text = pieces.next().unwrap_or_default().to_vec();
    for piece in pieces {
        let is_number = text.ends_with(b"0");
        let digits = piece.iter().take_while(|byte| byte.is_ascii_hexdigit());
        let skipped = if is_number { digits.count() } else { 0 };
        text.push(b'x');
        text.extend_from_slice(&piece[skipped..]);
    }
    told.stderr = text;
    told
}

/// Runs each program in these ways, a few at a time, and tells what came out differently.
async fn compare(programs: Vec<(String, Termination)>, ways: &'static [Way]) {
    let starts = Arc::new(Starts::python());
    let mut running = JoinSet::new();
    for (program, expected) in programs {
        let starts = Arc::clone(&starts);
        running.spawn(async move {
            let mut text = String::new();
            let mut job = short(&program);
            if !matches!(expected, Termination::TimedOut(_)) {
                job.limits.execution = Duration::from_secs(20);
            }
            let cold = comparable(told(starts.run(Way::Cold, &job).await));
            if cold.termination != expected {
                writeln!(text, "ended with {:?}: {cold:?}", cold.termination).unwrap();
            }
            for &way in ways {
                let ran = starts.run(way, &job).await;
                assert_ne!(ran.outcome.timing.start, Start::Cold);
                let found = comparable(told(ran));
                if found != cold {
                    writeln!(text, "{way}: {found:?}\n  cold: {cold:?}").unwrap();
                }
            }
            (!text.is_empty()).then(|| format!("{program}\n{text}"))
        });
    }
    let found: Vec<_> = running.join_all().await.into_iter().flatten().collect();
    assert!(found.is_empty(), "not alike:\n{}", found.join("\n"));
    assert!(starts.names().is_empty(), "{:?}", starts.names());
}

/// The programs of a file, each after a line `### how it ends`.
fn programs(text: &str) -> Vec<(String, Termination)> {
    let number = |text: &str| text.parse().unwrap();
    let pieces = text.split("### ").skip(1);
    pieces
        .map(|piece| {
            let (ending, program) = piece.split_once('\n').unwrap();
            let termination = match ending.split_once(' ').unwrap_or((ending, "")) {
                ("exited", code) => Termination::Exited(number(code)),
                ("signalled", signal) => Termination::Signalled(number(signal)),
                ("timed", "out") => Termination::TimedOut(tako_vm::job::Phase::Execution),
                ("out", "of memory") => Termination::OutOfMemory,
                _ => panic!("no ending: {ending}"),
            };
            (program.to_owned(), termination)
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, runsc and an executor image"]
async fn every_ending_is_told_alike_to_the_byte() {
    let programs = programs(include_str!("programs/endings.txt"));
    assert!(programs.len() >= 24, "{}", programs.len());
    compare(programs, &[Way::Thawed, Way::Restored]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, runsc and an executor image"]
async fn limits_of_time_and_memory_end_a_program_alike() {
    let programs = programs(include_str!("programs/limits.txt"));
    compare(programs, &[Way::Restored]).await;
}

/// What was printed until then is there, and whoever waits hears of it within a second.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, runsc and an executor image"]
async fn a_cancel_ends_a_program_alike() {
    let starts = Starts::python();
    let job = short("print('up')\nwhile True: pass");
    for way in [Way::Cold, Way::Thawed, Way::Restored] {
        let cancel = CancellationToken::new();
        let later = cancel.clone();
        tokio::spawn(async move {
            // Within this time every kind of start is up, or it is ended before: then nothing is printed.
            tokio::time::sleep(Duration::from_millis(1500)).await;
            later.cancel();
        });
        let ready = match way {
            Way::Cold => None,
            _ => Some(starts.prepared(way).await),
        };
        let ran = starts.run_in(ready, &job, cancel).await;
        assert_eq!(ran.outcome.termination, Termination::Cancelled, "{way}");
        assert!(ran.took < Duration::from_secs(4), "{way}: {:?}", ran.took);
    }
}
