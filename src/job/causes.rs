//! Errors for people who read a line at a time.

use std::error::Error;

/// An error and its causes as one line, outermost first.
pub fn one_line(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        line = format!("{line}: {inner}");
        cause = inner.source();
    }
    // The output of a failed program, for one, has several lines.
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}
