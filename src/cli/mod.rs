//! The subcommands, one file each.

pub mod image;
pub mod setup;

use std::error::Error;

/// An error and its causes as one line, joined by `: `.
pub fn one_line(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    // The output of a failed program, for one, has several lines.
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
