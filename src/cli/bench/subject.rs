//! What is measured: a program in sandboxes of ours, run as every user of the library runs one.

use super::PROGRAM;
use super::ways::WayError;
use crate::client::{self, Execution, Job, Sandbox};
use crate::job::Termination;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// What [`PROGRAM`] prints.
pub(super) const OUTPUT: &str = "2\n";

/// How long a supervisor that is busy is asked again, and how often at most and at least.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// One run of one way.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub(super) called: Instant,
    pub(super) ended: Instant,
    /// What is known of a sandbox that this process has run.
    pub(super) inside: Option<Inside>,
}

impl Run {
    pub(super) fn outside(called: Instant, ended: Instant) -> Self {
        Self {
            called,
            ended,
            inside: None,
        }
    }

    /// The same of a sandbox that came to be in this manner.
    #[cfg(test)]
    pub(super) fn started(self, start: &'static str) -> Self {
        let inside = Inside {
            start,
            sandbox: Duration::ZERO,
            startup: Duration::ZERO,
            execution: Duration::ZERO,
            cpu: Duration::ZERO,
            memory_mib: 0.0,
        };
        Self {
            inside: Some(inside),
            ..self
        }
    }

    /// How the sandbox came to be.
    pub(super) fn start(&self) -> Option<&'static str> {
        self.inside.as_ref().map(|inside| inside.start)
    }
}

/// What a sandbox says of itself.
#[derive(Debug, Clone)]
pub(super) struct Inside {
    start: &'static str,
    pub(super) sandbox: Duration,
    pub(super) startup: Duration,
    pub(super) execution: Duration,
    pub(super) cpu: Duration,
    pub(super) memory_mib: f64,
}

impl Inside {
    fn of(execution: &Execution) -> Self {
        let (timing, usage) = (execution.timing(), execution.usage());
        let milliseconds = |time: Option<u64>| Duration::from_millis(time.unwrap_or_default());
        Self {
            start: timing.start.name(),
            sandbox: milliseconds(Some(timing.sandbox_ms)),
            startup: milliseconds(timing.startup_ms),
            execution: milliseconds(timing.execution_ms),
            cpu: milliseconds(Some(usage.cpu_time_ms)),
            memory_mib: usage.max_rss_mb,
        }
    }
}

/// A program, and where it runs.
#[derive(Debug, Clone)]
pub(super) struct Subject {
    pub(super) sandbox: Sandbox,
    pub(super) code: String,
}

impl Subject {
    /// Runs the program once, from the call until its end is known; nothing when it is cancelled.
    ///
    /// A supervisor that is busy is asked again, as `tako-vm run` does, and the time until then counts.
    pub(super) async fn run(&self, cancel: &CancellationToken) -> Result<Option<Run>, WayError> {
        let called = Instant::now();
        let running = self.ask(called);
        let Some(execution) = cancel.run_until_cancelled(running).await else {
            return Ok(None);
        };
        let ended = Instant::now();
        let execution = execution.map_err(WayError::Client)?;
        if !execution.success() {
            return Err(unsuccessful(&execution));
        }
        self.check(&execution.stdout())?;
        Ok(Some(Run {
            called,
            ended,
            inside: Some(Inside::of(&execution)),
        }))
    }

    async fn ask(&self, called: Instant) -> Result<Execution, client::Error> {
        loop {
            match self.sandbox.run(Job::new(self.code.as_str())).await {
                Err(client::Error::Busy { retry_after }) if called.elapsed() < PATIENCE => {
                    tokio::time::sleep(retry_after.clamp(PAUSE.0, PAUSE.1)).await;
                }
                answer => return answer,
            }
        }
    }

    /// Only of our own program it is known what it prints.
    pub(super) fn check(&self, printed: &str) -> Result<(), WayError> {
        if self.code == PROGRAM && printed != OUTPUT {
            return Err(WayError::Output {
                found: printed.to_owned(),
            });
        }
        Ok(())
    }
}

fn unsuccessful(execution: &Execution) -> WayError {
    let why = match (execution.error(), execution.termination()) {
        (Some(error), Termination::Exited(code)) => {
            format!("{} (exit status {code})", error.message)
        }
        (Some(error), _) => error.message,
        (None, termination) => format!("{termination:?}"),
    };
    WayError::Unsuccessful { why }
}
