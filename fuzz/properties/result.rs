//! The parser of `/output/result.json`, and the record that is made around it.

use jiff::Timestamp;
use serde_json::Value;
use std::time::Duration;
use tako_vm::job::{
    Captured, Exception, JobRequest, JobSpec, Maxima, Outcome, Record, ResourceUsage, Start,
    Termination, Timing,
};

/// The bound of `serde_json`, less one: the deepest result that is kept.
const MAX_DEPTH: usize = 127;

/// The result is kept to the letter or refused with a reason, and the record is one JSON object,
/// whatever the program wrote.
pub(crate) fn check(bytes: &[u8]) {
    let request = JobRequest {
        code: "print(1)".to_owned(),
        ..JobRequest::default()
    };
    let job = JobSpec::check(request, &Maxima::default()).unwrap();
    let record = Record::new(&job, "python", outcome(bytes), Some(bytes));
    let text = serde_json::to_string(&record).unwrap();
    let Some(output) = &record.output else {
        assert!(record.result_error.is_some_and(|error| !error.is_empty()));
        assert!(serde_json::from_str::<Value>(&text).is_ok());
        return;
    };
    assert!(record.result_error.is_none());
    assert_eq!(output.get().as_bytes(), trim(bytes));
    assert!(text.contains(output.get()));
    let depth = depth(output.get());
    assert!(depth <= MAX_DEPTH, "{depth}");
    // The record is one level more.
    if depth < MAX_DEPTH {
        let read: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            read["output"],
            serde_json::from_slice::<Value>(bytes).unwrap()
        );
    }
}

/// A failed run whose every text is the program's.
fn outcome(bytes: &[u8]) -> Outcome {
    let mut stream = Captured::default();
    stream.push(bytes, 64);
    let text = String::from_utf8_lossy(bytes).into_owned();
    Outcome {
        id: "tako-0".to_owned(),
        runtime: "runsc".into(),
        termination: Termination::Exited(1),
        exception: Some(Exception {
            classes: vec![text.clone()],
            message: text,
        }),
        stdout: stream.clone(),
        stderr: stream,
        artifacts: Vec::new(),
        artifacts_truncated: false,
        artifacts_skipped: Vec::new(),
        started_at: Timestamp::UNIX_EPOCH,
        ended_at: Timestamp::UNIX_EPOCH,
        timing: Timing {
            start: Start::Cold,
            sandbox_ms: 0,
            startup_ms: None,
            dep_install_ms: None,
            execution_ms: None,
            total_ms: 0,
            phase_at_exit: "execution",
        },
        usage: ResourceUsage {
            max_rss_mb: 0.0,
            cpu_time_ms: 0,
            wall_time_ms: 0,
            oom_kills: 0,
        },
        kill_time: Duration::ZERO,
    }
}

/// Without the white space of JSON (RFC 8259, section 2) around it.
fn trim(bytes: &[u8]) -> &[u8] {
    let is_text = |byte: &u8| !b" \t\r\n".contains(byte);
    let start = bytes.iter().position(is_text).unwrap_or(bytes.len());
    let end = bytes
        .iter()
        .rposition(is_text)
        .map_or(start, |last| last + 1);
    &bytes[start..end]
}

/// How many arrays and objects lie inside one another in valid JSON.
fn depth(json: &str) -> usize {
    let (mut depth, mut most, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                most = most.max(depth);
            }
            b']' | b'}' if !in_string => depth -= 1,
            _ => {}
        }
    }
    most
}
