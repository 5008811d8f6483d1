//! What is kept of a job: its outcome as the sandbox saw it, and the record that users read.

use super::exception::error_type;
use super::spec::{EMPTY_INPUT, InputFile, JobRequest, JobSpec};
use super::termination::{Exception, Phase, Termination};
use jiff::Timestamp;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Longest error message of a record, in characters.
const MAX_MESSAGE: usize = 4096;

/// The file that a program writes its result to, below `/output`.
pub const RESULT_FILE: &str = "result.json";

/// Everything that one run of a job left, with the program's bytes still raw.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Name of the sandbox, and of the execution.
    pub id: String,
    /// What ran it: `runsc`, `runc` or `crun`.
    pub runtime: Cow<'static, str>,
    /// How it ended.
    pub termination: Termination,
    /// What the interpreter said ended the program.
    pub exception: Option<Exception>,
    /// The beginning of standard output.
    pub stdout: Captured,
    /// The beginning of standard error.
    pub stderr: Captured,
    /// The files of `/output`.
    pub artifacts: Vec<Artifact>,
    /// Some file of `/output` is missing from `artifacts`.
    pub artifacts_truncated: bool,
    /// Names of files that were left out, and why.
    pub artifacts_skipped: Vec<Skipped>,
    /// When the run began and ended.
    pub started_at: Timestamp,
    /// See `started_at`.
    pub ended_at: Timestamp,
    /// Time that each part took.
    pub timing: Timing,
    /// What it used.
    pub usage: ResourceUsage,
    /// From the beginning of the kill until the cgroup was proven empty. Not part of the record.
    pub kill_time: Duration,
}

/// The beginning of a stream, and how long the whole was.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Captured {
    /// The first bytes, exactly.
    pub bytes: Vec<u8>,
    /// Bytes that the program wrote.
    pub total: u64,
}

impl Captured {
    /// Whether the record holds less than the program wrote.
    pub fn truncated(&self) -> bool {
        self.total > self.bytes.len() as u64
    }

    /// Counts `bytes` and keeps what fits into `limit`.
    pub fn push(&mut self, bytes: &[u8], limit: u64) {
        self.total += bytes.len() as u64;
        let room = usize::try_from(limit)
            .unwrap_or(usize::MAX)
            .saturating_sub(self.bytes.len());
        self.bytes
            .extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// As text: invalid UTF-8 replaced, a character cut at the limit left out.
    pub fn text(&self) -> String {
        let mut bytes = self.bytes.as_slice();
        if self.truncated()
            && let Err(error) = std::str::from_utf8(bytes)
            && error.error_len().is_none()
        {
            bytes = &bytes[..error.valid_up_to()];
        }
        String::from_utf8_lossy(bytes).into_owned()
    }
}

/// A collected file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Artifact {
    /// Path below `/output`.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
    /// Unknown: nothing here looks into a program's files.
    pub content_type: Option<String>,
    /// Where its bytes lie on this host.
    #[serde(skip)]
    pub path: PathBuf,
}

/// A file of `/output` that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Its path below `/output`.
    pub name: String,
    /// Why.
    pub reason: Cow<'static, str>,
}

/// How a sandbox came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// Started for the job.
    Cold,
    /// It waited for a job already, with its interpreter.
    Warm,
    /// Restored for the job from the checkpoint of one that waited.
    Restored,
}

impl Start {
    /// Its name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Warm => "warm",
            Self::Restored => "restored",
        }
    }
}

/// How long each part took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Timing {
    /// How the sandbox came to be.
    pub start: Start,
    /// From the request until the sandbox waited for its job.
    pub sandbox_ms: u64,
    /// Until the interpreter was up.
    pub startup_ms: Option<u64>,
    /// Nothing is installed at run time.
    pub dep_install_ms: Option<u64>,
    /// The program itself.
    pub execution_ms: Option<u64>,
    /// From the request until the sandbox was gone.
    pub total_ms: u64,
    /// The phase in which it ended, or `completed`.
    pub phase_at_exit: &'static str,
}

/// What the cgroup counted, the sandbox itself included.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ResourceUsage {
    /// Peak memory, in MiB.
    pub max_rss_mb: f64,
    /// CPU time.
    pub cpu_time_ms: u64,
    /// Wall time of the whole run.
    pub wall_time_ms: u64,
    /// Processes that the kernel killed because the memory limit was reached.
    pub oom_kills: u64,
}

/// How a job stands, in the words of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The program exited with 0.
    Succeeded,
    /// It failed, or we did.
    Failed,
    /// A time limit was over.
    Timeout,
    /// The memory limit was reached.
    Oom,
    /// Somebody cancelled it.
    Cancelled,
}

/// Why a job did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ErrorReport {
    /// Machine-readable class.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// For people.
    pub message: String,
    /// Where it happened.
    pub phase: Option<&'static str>,
}

/// The full record of one execution.
#[derive(Debug, Serialize)]
#[expect(
    missing_docs,
    reason = "the fields are those of the API, described in its reference"
)]
pub struct Record {
    pub execution_id: String,
    pub status: Status,
    pub job_type: String,
    pub job_version: String,
    #[serde(serialize_with = "timestamp")]
    pub created_at: Timestamp,
    #[serde(serialize_with = "timestamp")]
    pub started_at: Timestamp,
    #[serde(serialize_with = "timestamp")]
    pub ended_at: Timestamp,
    pub duration_ms: u64,
    pub exit_code: Option<u8>,
    pub stdout: String,
    pub stderr: String,
    pub output: Option<Box<RawValue>>,
    pub result_error: Option<String>,
    pub error: Option<ErrorReport>,
    pub timing: Timing,
    pub runtime: Cow<'static, str>,
    pub job_ref: String,
    pub artifacts: Vec<Artifact>,
    pub artifacts_truncated: bool,
    pub artifacts_skipped: Vec<Skipped>,
    pub input_artifacts: Vec<Artifact>,
    pub resource_usage: ResourceUsage,
    pub code_hash: String,
    pub input_hash: String,
    pub parent_execution_id: Option<String>,
    pub relationship: Option<String>,
    pub stdout_bytes: u64,
    pub stderr_bytes: u64,
    pub stdout_truncated: bool,
    pub stderr_truncated: bool,
    pub idempotency_key: Option<String>,
}

/// What a job brought along, as far as its record tells of it: of one that was checked here, or that
/// somebody else has checked and run.
#[derive(Debug, Clone, Copy)]
pub struct Payload<'a> {
    code: &'a str,
    input: &'a str,
    files: &'a [InputFile],
}

impl<'a> From<&'a JobSpec> for Payload<'a> {
    fn from(job: &'a JobSpec) -> Self {
        Self {
            code: &job.code,
            input: &job.input,
            files: &job.files,
        }
    }
}

impl<'a> From<&'a JobRequest> for Payload<'a> {
    fn from(job: &'a JobRequest) -> Self {
        Self {
            code: &job.code,
            input: job.input.as_deref().unwrap_or(EMPTY_INPUT),
            files: &job.files,
        }
    }
}

impl Record {
    /// Puts the record of a run together. `result` is what `/output/result.json` held, unparsed.
    ///
    /// Parses bytes of the program: the caller has given up its privileges before.
    pub fn new<'a>(
        job: impl Into<Payload<'a>>,
        image: &str,
        outcome: Outcome,
        result: Option<&[u8]>,
    ) -> Self {
        let job = job.into();
        let (output, result_error) = match result.map(parse_result) {
            None => (None, None),
            Some(Ok(output)) => (Some(output), None),
            Some(Err(error)) => (None, Some(error)),
        };
        let exit_code = outcome.termination.exit_code();
        Self {
            status: outcome.termination.status(),
            error: outcome
                .termination
                .error(outcome.exception.as_ref(), outcome.timing.phase_at_exit),
            job_type: "default".to_owned(),
            job_version: image.to_owned(),
            job_ref: image.to_owned(),
            created_at: outcome.started_at,
            started_at: outcome.started_at,
            ended_at: outcome.ended_at,
            duration_ms: outcome.timing.total_ms,
            exit_code,
            stdout: outcome.stdout.text(),
            stderr: outcome.stderr.text(),
            output,
            result_error,
            timing: outcome.timing,
            runtime: outcome.runtime,
            artifacts: outcome.artifacts,
            artifacts_truncated: outcome.artifacts_truncated,
            artifacts_skipped: outcome.artifacts_skipped,
            input_artifacts: job.files.iter().map(input_artifact).collect(),
            resource_usage: outcome.usage,
            code_hash: sha256(job.code.as_bytes()),
            input_hash: sha256(&canonical(job.input)),
            parent_execution_id: None,
            relationship: None,
            stdout_bytes: outcome.stdout.total,
            stderr_bytes: outcome.stderr.total,
            stdout_truncated: outcome.stdout.truncated(),
            stderr_truncated: outcome.stderr.truncated(),
            idempotency_key: None,
            execution_id: outcome.id,
        }
    }
}

impl Termination {
    /// The code that stands for it: the program's own where it has one.
    pub fn exit_code(&self) -> Option<u8> {
        match self {
            Self::Exited(code) => Some(*code),
            Self::Signalled(signal) => Some(signal.saturating_add(128)),
            Self::TimedOut(_) => Some(124),
            Self::OutOfMemory | Self::OutputLimit => Some(137),
            Self::Cancelled => Some(130),
            Self::SandboxLost(_) => None,
        }
    }

    /// In the words of the API.
    pub fn status(&self) -> Status {
        match self {
            Self::Exited(0) => Status::Succeeded,
            Self::TimedOut(_) => Status::Timeout,
            Self::OutOfMemory => Status::Oom,
            Self::Cancelled => Status::Cancelled,
            _ => Status::Failed,
        }
    }

    /// The phase in which the job ended, or `completed` when it succeeded. `reached` is how far it
    /// came.
    pub fn phase_at_exit(&self, reached: Phase) -> &'static str {
        match self {
            Self::Exited(0) => "completed",
            Self::TimedOut(phase) => phase.name(),
            _ => reached.name(),
        }
    }

    /// The error report of a job that ended in `phase`; `None` when the program succeeded.
    pub fn error(&self, exception: Option<&Exception>, phase: &'static str) -> Option<ErrorReport> {
        let (kind, message) = match self {
            Self::Exited(0) => return None,
            Self::Exited(code) => exited(*code, exception),
            Self::Signalled(signal) => (
                signal_type(*signal),
                format!("the program was killed by signal {signal}"),
            ),
            Self::TimedOut(Phase::Startup) => (
                "startup_timeout",
                "the interpreter was not up within the startup timeout".to_owned(),
            ),
            Self::TimedOut(Phase::Execution) => (
                "execution_timeout",
                "the program ran longer than its timeout".to_owned(),
            ),
            Self::OutOfMemory => ("oom", "the memory limit was reached".to_owned()),
            Self::OutputLimit => (
                "output_limit",
                "the program wrote more output than a job may".to_owned(),
            ),
            Self::Cancelled => ("cancelled", "the job was cancelled".to_owned()),
            Self::SandboxLost(why) => ("internal_error", format!("the sandbox was lost: {why}")),
        };
        let message = message.chars().take(MAX_MESSAGE).collect();
        Some(ErrorReport {
            kind,
            message,
            phase: Some(phase),
        })
    }
}

fn exited(code: u8, exception: Option<&Exception>) -> (&'static str, String) {
    match exception {
        Some(exception) => {
            let classes = exception.classes.iter().map(String::as_str);
            let name = exception
                .classes
                .first()
                .map_or("exception", String::as_str);
            (
                error_type(classes),
                format!("{name}: {}", exception.message),
            )
        }
        None => (
            "runtime_error",
            format!("the program exited with code {code}"),
        ),
    }
}

/// Signals by their Linux numbers (signal(7)).
fn signal_type(signal: u8) -> &'static str {
    match signal {
        6 => "abort",
        7 => "bus_error",
        8 => "arithmetic_error",
        9 | 15 => "killed",
        11 => "segfault",
        13 => "pipe_error",
        _ => "runtime_error",
    }
}

/// JSON that is gone through value by value and not kept: `serde_json` bounds the depth of what is gone
/// through (128), and not of raw text. A tree would take a hundred times the memory of the text.
struct Bounded;

impl<'de> Deserialize<'de> for Bounded {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Bounded {
    type Value = Self;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Self, A::Error> {
        while values.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut values: A) -> Result<Self, A::Error> {
        while values.next_entry::<Self, Self>()?.is_some() {}
        Ok(self)
    }
}

/// Checks that the bytes are JSON of bounded depth, and keeps them as they are.
fn parse_result(bytes: &[u8]) -> Result<Box<RawValue>, String> {
    serde_json::from_slice::<Bounded>(bytes)
        .and_then(|_| serde_json::from_slice(bytes))
        .map_err(|error| format!("/output/result.json is not JSON: {error}"))
}

/// What a program has written as its result, as text, if it is JSON of bounded depth; else why it is none.
///
/// # Errors
/// In words, for people.
pub fn check_result(bytes: &[u8]) -> Result<&str, String> {
    parse_result(bytes)?;
    std::str::from_utf8(bytes).map_err(|error| format!("/output/result.json is not UTF-8: {error}"))
}

/// JSON with sorted keys and no spaces, so that equal inputs have equal hashes.
pub fn canonical(input: &str) -> Vec<u8> {
    serde_json::from_str::<serde_json::Value>(input)
        .and_then(|value| serde_json::to_vec(&value))
        .unwrap_or_else(|_| input.as_bytes().to_vec())
}

fn input_artifact(file: &InputFile) -> Artifact {
    Artifact {
        name: file.name.clone(),
        size_bytes: file.bytes.len() as u64,
        sha256: sha256(&file.bytes),
        content_type: None,
        path: PathBuf::new(),
    }
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Milliseconds, rounded down.
pub fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// ISO 8601 with microseconds and a numeric offset, as Tako VM writes it.
///
/// # Errors
/// Those of the serializer.
pub fn timestamp<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&at.strftime("%Y-%m-%dT%H:%M:%S%.6f+00:00"))
}

/// As [`timestamp`], of what need not have been.
///
/// # Errors
/// Those of the serializer.
pub fn timestamp_if_any<S: Serializer>(
    at: &Option<Timestamp>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => timestamp(at, serializer),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_stream_is_kept_up_to_its_limit_and_counted_beyond() {
        let mut captured = Captured::default();
        captured.push("aé".as_bytes(), 2);
        captured.push(b"more", 2);
        assert_eq!((captured.bytes.len(), captured.total), (2, 7));
        assert_eq!(captured.text(), "a");
        assert!(captured.truncated());
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced_and_nul_survives() {
        let mut captured = Captured::default();
        captured.push(b"a\0\xffb", 10);
        assert_eq!(captured.text(), "a\0\u{fffd}b");
    }

    #[test]
    fn a_result_is_kept_to_the_letter_if_it_is_json_of_bounded_depth() {
        assert_eq!(
            parse_result(b"[1.10, {\"a\": null}]").unwrap().get(),
            "[1.10, {\"a\": null}]"
        );
        assert!(parse_result(b"NaN").is_err());
        assert!(parse_result(b"{\"a\": \xff}").is_err());
        assert!(parse_result(b"").is_err());
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        assert!(
            parse_result(deep.as_bytes())
                .unwrap_err()
                .contains("recursion limit")
        );
    }

    #[test]
    fn the_hash_of_an_input_does_not_depend_on_its_spelling() {
        assert_eq!(
            canonical(r#"{ "b": 1, "a": "é" }"#),
            r#"{"a":"é","b":1}"#.as_bytes()
        );
    }

    #[test]
    fn times_are_written_as_tako_vm_writes_them() {
        #[derive(Serialize)]
        struct At(#[serde(serialize_with = "timestamp")] Timestamp);
        let at = At(Timestamp::from_microsecond(1_795_308_875_083_472).unwrap());
        assert_eq!(
            serde_json::to_string(&at).unwrap(),
            r#""2026-11-22T00:54:35.083472+00:00""#
        );
    }

    /// JSON of moderate size and depth, as text.
    fn json() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            any::<bool>().prop_map(|value| value.to_string()),
            "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,9})?([eE][+-]?[0-9]{1,2})?",
            any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
        ];
        leaf.prop_recursive(8, 64, 8, |inner| {
            let pair = (any::<String>(), inner.clone());
            prop_oneof![
                prop::collection::vec(inner, 0..8).prop_map(|all| format!("[{}]", all.join(" ,"))),
                prop::collection::vec(pair, 0..8).prop_map(|all| {
                    let pairs = all.iter().map(|(key, value)| {
                        format!("{} :{value}", serde_json::to_string(key).unwrap())
                    });
                    format!("{{{}}}", pairs.collect::<Vec<_>>().join(","))
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_json_is_kept_to_the_letter(text in json()) {
            let kept = parse_result(text.as_bytes()).unwrap();
            prop_assert_eq!(kept.get(), text);
        }

        #[test]
        fn any_bytes_are_kept_to_the_letter_or_refused_with_a_reason(
            bytes in prop::collection::vec(any::<u8>(), 0..512),
            text in "[\\[{}\\]\",:0-9a-z\\\\ -]{0,64}",
        ) {
            for bytes in [&bytes[..], text.as_bytes()] {
                match parse_result(bytes) {
                    Ok(kept) => prop_assert_eq!(kept.get().as_bytes(), bytes.trim_ascii()),
                    Err(why) => prop_assert!(why.starts_with("/output/result.json is not JSON: ")),
                }
            }
        }

        #[test]
        fn a_stream_is_its_own_beginning_however_it_is_cut(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..10),
            limit in 0..200_u64,
        ) {
            let mut captured = Captured::default();
            for piece in &pieces {
                captured.push(piece, limit);
            }
            let all = pieces.concat();
            let kept = all.len().min(usize::try_from(limit).unwrap());
            prop_assert_eq!(&captured.bytes[..], &all[..kept]);
            prop_assert_eq!(captured.total, all.len() as u64);
            prop_assert_eq!(captured.truncated(), kept < all.len());
            let text = String::from_utf8_lossy(&all).into_owned();
            prop_assert!(captured.truncated() || captured.text() == text);
        }
    }
}
