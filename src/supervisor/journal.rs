//! What the service says: one line for each event, on standard error.

use std::error::Error;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often a line that a client can cause is written at most.
const PAUSE: Duration = Duration::from_secs(1);

/// Something happened that happens.
pub(super) fn info(line: &str) {
    write("info", line);
}

/// Something is wrong, and we cope.
pub(super) fn warn(line: &str) {
    write("warning", line);
}

/// A human must look.
pub(super) fn error(line: &str) {
    write("error", line);
}

/// Lines that clients can cause, as many as they like.
#[derive(Debug, Default)]
pub(super) struct Journal {
    caused: Mutex<Caused>,
}

#[derive(Debug, Default)]
struct Caused {
    last: Option<Instant>,
    swallowed: u64,
}

impl Journal {
    /// Something that a client caused: at most one line a second, with the number of those left out.
    pub(super) fn caused(&self, line: impl FnOnce() -> String) {
        let swallowed = {
            let mut caused = self.caused.lock().unwrap_or_else(PoisonError::into_inner);
            if caused.last.is_some_and(|last| last.elapsed() < PAUSE) {
                caused.swallowed += 1;
                return;
            }
            caused.last = Some(Instant::now());
            std::mem::take(&mut caused.swallowed)
        };
        let line = line();
        if swallowed == 0 {
            write("warning", &line);
        } else {
            write("warning", &format!("{line} (and {swallowed} more)"));
        }
    }
}

fn write(kind: &str, line: &str) {
    // A client's text may be in it, which must not look like a line of ours.
    let line = line.replace(char::is_control, " ");
    // Without a standard error there is nobody to tell.
    let written = writeln!(io::stderr(), "{kind}: {line}");
    drop(written);
}

/// An error and its causes as one line, outermost first.
pub(super) fn one_line(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        line = format!("{line}: {inner}");
        cause = inner.source();
    }
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}
