//! Jobs to put into the queue, and ends for them.

use jiff::Timestamp;
use std::borrow::Cow;
use std::time::Duration;
use tako_vm::job::{
    Artifact, Captured, InputFile, JobRequest, Outcome, ResourceUsage, Start, Termination, Timing,
};
use tako_vm::store::queue::{Ended, Submission, Worker};

/// A job of nobody in particular.
pub(crate) fn job(id: &str) -> Submission {
    Submission {
        id: id.to_owned(),
        owner: String::new(),
        priority: 0,
        job_type: "default".to_owned(),
        idempotency: None,
        correlation_id: None,
        client_address: None,
        parent: None,
        max_attempts: 2,
        image: "python".to_owned(),
        request: JobRequest {
            code: "print(1 + 1)".to_owned(),
            ..JobRequest::default()
        },
        code_sha256: [1; 32],
        input_sha256: [2; 32],
        requirements: Vec::new(),
        network: false,
        repeatable: false,
    }
}

pub(crate) fn job_of(id: &str, owner: &str) -> Submission {
    Submission {
        owner: owner.to_owned(),
        ..job(id)
    }
}

/// Everything that a job can bring along.
pub(crate) fn full_job(id: &str) -> Submission {
    let mut job = job(id);
    job.request = JobRequest {
        code: "print('é')".to_owned(),
        input: Some(r#"{"big": 1e400, "nul": "\u0000"}"#.to_owned()),
        files: vec![
            InputFile {
                name: "b".to_owned(),
                bytes: vec![0, 255],
            },
            InputFile {
                name: "a".to_owned(),
                bytes: Vec::new(),
            },
        ],
        environment: vec![
            ("B".to_owned(), "2".to_owned()),
            ("A".to_owned(), String::new()),
        ],
        memory_bytes: Some(1 << 33),
        millicpus: Some(1500),
        timeout: Some(Duration::from_millis(1500)),
        startup_timeout: Some(Duration::from_mins(1)),
    };
    job
}

pub(crate) fn worker(name: &str) -> Worker {
    Worker {
        name: name.to_owned(),
        lease: Duration::from_secs(30),
    }
}

pub(crate) fn outcome(termination: Termination) -> Outcome {
    Outcome {
        id: "tako-1".to_owned(),
        runtime: Cow::Borrowed("runsc"),
        termination,
        exception: None,
        stdout: Captured {
            bytes: b"2\0\xff\n".to_vec(),
            total: 5000,
        },
        stderr: Captured {
            bytes: b"!".to_vec(),
            total: 8,
        },
        artifacts: Vec::new(),
        artifacts_truncated: false,
        artifacts_skipped: Vec::new(),
        started_at: Timestamp::from_microsecond(1_795_308_875_083_472).unwrap(),
        ended_at: Timestamp::from_microsecond(1_795_308_875_183_473).unwrap(),
        timing: Timing {
            start: Start::Warm,
            sandbox_ms: 1,
            startup_ms: Some(2),
            dep_install_ms: None,
            execution_ms: Some(3),
            total_ms: 6,
            phase_at_exit: "completed",
        },
        usage: ResourceUsage {
            max_rss_mb: 19.5,
            cpu_time_ms: 4,
            wall_time_ms: 7,
            oom_kills: 0,
        },
        kill_time: Duration::ZERO,
    }
}

/// The same of a job that has left a file.
pub(crate) fn outcome_with_a_file(termination: Termination) -> Outcome {
    Outcome {
        artifacts: vec![Artifact {
            name: "result.json".to_owned(),
            size_bytes: 2,
            sha256: "ab".repeat(32),
            content_type: None,
            path: "/nowhere".into(),
        }],
        ..outcome(termination)
    }
}

pub(crate) fn ended(outcome: &Outcome) -> Ended<'_> {
    Ended {
        outcome,
        image: "python",
        result: Some(Ok("{}")),
    }
}
