//! What to run.

use crate::job::{InputFile, JobRequest};
use std::time::Duration;

/// A program, what it is given, and what it may use. A string is a job too.
///
/// Nothing is checked until the job is started; then every bad field is named at once.
///
/// # Examples
///
/// ```no_run
/// use serde_json::json;
/// use std::time::Duration;
/// use tako_vm::Job;
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), tako_vm::Error> {
/// # let sandbox = tako_vm::Sandbox::builder().build()?;
/// let program = r#"
/// import json, os
/// n = json.load(open("/input/data.json"))["n"]
/// names = open("/input/names.txt").read().split()
/// print(os.environ["GREETING"], names[n])
/// "#;
/// let job = Job::new(program)
///     .input(json!({ "n": 1 }))
///     .file("names.txt", "Ada Grace")
///     .env("GREETING", "Hello")
///     .timeout(Duration::from_secs(5));
/// assert_eq!(sandbox.run(job).await?.stdout(), "Hello Grace\n");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
#[must_use = "it does nothing until a sandbox runs it"]
pub struct Job {
    request: JobRequest,
}

impl Job {
    /// The program, in Python.
    pub fn new(code: impl Into<String>) -> Self {
        let code = code.into();
        Self {
            request: JobRequest {
                code,
                ..JobRequest::default()
            },
        }
    }

    /// What the program finds in `/input/data.json`. Default `{}`.
    pub fn input(self, value: impl Into<serde_json::Value>) -> Self {
        self.input_json(value.into().to_string())
    }

    /// The same as text, which reaches the program to the byte. At most 1 MiB.
    pub fn input_json(mut self, json: impl Into<String>) -> Self {
        self.request.input = Some(json.into());
        self
    }

    /// A further file in `/input`. At most 100 files, 64 MiB in all.
    pub fn file(mut self, name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        self.request.files.push(InputFile {
            name: name.into(),
            bytes: bytes.into(),
        });
        self
    }

    /// A variable of the program's environment. The program can read it: give it no secret.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.request.environment.push((name.into(), value.into()));
        self
    }

    /// How long the program may run. Default 30 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.request.timeout = Some(timeout);
        self
    }

    /// How long the interpreter may take to start. Default 120 s.
    pub fn startup_timeout(mut self, timeout: Duration) -> Self {
        self.request.startup_timeout = Some(timeout);
        self
    }

    /// Memory, the sandbox itself included, rounded down to whole pages. Default 512 MiB, at least
    /// 64 MiB.
    pub fn memory_bytes(mut self, bytes: u64) -> Self {
        self.request.memory_bytes = Some(bytes);
        self
    }

    /// CPUs, such as `0.5`. Default 1.
    pub fn cpus(mut self, cpus: f64) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the cast saturates, and what is no number becomes 0: out of range, both"
        )]
        let millicpus = (cpus * 1000.0).round() as u32;
        self.request.millicpus = Some(millicpus);
        self
    }

    /// This job, with the limits of another where it has none of its own.
    pub(super) fn or(mut self, other: &Self) -> Self {
        let (own, other) = (&mut self.request, &other.request);
        own.timeout = own.timeout.or(other.timeout);
        own.startup_timeout = own.startup_timeout.or(other.startup_timeout);
        own.memory_bytes = own.memory_bytes.or(other.memory_bytes);
        own.millicpus = own.millicpus.or(other.millicpus);
        self
    }

    pub(super) fn into_request(self) -> JobRequest {
        self.request
    }
}

impl From<&str> for Job {
    fn from(code: &str) -> Self {
        Self::new(code)
    }
}

impl From<String> for Job {
    fn from(code: String) -> Self {
        Self::new(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_has_its_own_limits_before_those_of_its_sandbox() {
        let defaults = Job::default()
            .timeout(Duration::from_secs(1))
            .memory_bytes(1);
        let request = Job::new("pass")
            .memory_bytes(2)
            .or(&defaults)
            .into_request();
        assert_eq!(request.timeout, Some(Duration::from_secs(1)));
        assert_eq!(request.memory_bytes, Some(2));
        assert_eq!((request.startup_timeout, request.millicpus), (None, None));
    }

    #[test]
    fn cpus_that_are_no_number_are_none_that_a_job_may_have() {
        let millicpus = |cpus| Job::new("pass").cpus(cpus).into_request().millicpus;
        assert_eq!(millicpus(0.5), Some(500));
        assert_eq!(millicpus(f64::NAN), Some(0));
        assert_eq!(millicpus(-1.0), Some(0));
        assert_eq!(millicpus(f64::INFINITY), Some(u32::MAX));
    }
}
