//! Showing a program's output to people, whose terminal it must not drive.

use crate::sandbox::Event;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// How long after a cancel a terminal that takes nothing is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// Prints events as they come. When nobody reads what is printed any more, the job is cancelled.
///
/// Resolves when everything is printed.
pub(super) fn print(
    mut events: mpsc::Receiver<Event>,
    cancel: CancellationToken,
) -> oneshot::Receiver<()> {
    let (done, finished) = oneshot::channel();
    // A terminal may block for as long as its user likes. On a thread of its own, and none of the
    // runtime's, which would be waited for at the end.
    std::thread::spawn(move || {
        if print_all(&mut events).is_err() {
            cancel.cancel();
        }
        // Where nobody waits any more, nobody has to be told.
        done.send(()).ok();
    });
    finished
}

/// Waits until everything is printed, or for a moment after a cancel.
pub(super) async fn finish(printer: oneshot::Receiver<()>, cancel: &CancellationToken) {
    let impatient = async {
        cancel.cancelled().await;
        tokio::time::sleep(PATIENCE).await;
    };
    tokio::select! {
        _ = printer => {}
        () = impatient => {}
    }
}

fn print_all(events: &mut mpsc::Receiver<Event>) -> io::Result<()> {
    let mut stdout = Stream::new(io::stdout());
    let mut stderr = Stream::new(io::stderr());
    while let Some(event) = events.blocking_recv() {
        match event {
            Event::Stdout(bytes) => stdout.write(&bytes)?,
            Event::Stderr(bytes) => stderr.write(&bytes)?,
        }
    }
    Ok(())
}

/// One of our own streams: raw into a file or a pipe, made visible on a terminal.
struct Stream<W> {
    target: W,
    terminal: bool,
    /// The beginning of a character whose rest has not come yet.
    rest: Vec<u8>,
}

impl<W: Write + IsTerminal> Stream<W> {
    fn new(target: W) -> Self {
        let terminal = target.is_terminal();
        Self {
            target,
            terminal,
            rest: Vec::new(),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.terminal {
            self.rest.extend_from_slice(bytes);
            let text = take_text(&mut self.rest);
            self.target.write_all(visible(&text).as_bytes())?;
        } else {
            self.target.write_all(bytes)?;
        }
        self.target.flush()
    }
}

/// The whole characters at the beginning of `bytes`, which keeps what may be half a character.
fn take_text(bytes: &mut Vec<u8>) -> String {
    // A character has at most four bytes: only the last three can be the start of one.
    let tail = bytes.len().saturating_sub(3);
    let half = |at: &usize| {
        std::str::from_utf8(&bytes[*at..])
            .is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
    };
    let incomplete = (tail..bytes.len()).find(half).unwrap_or(bytes.len());
    let rest = bytes.split_off(incomplete);
    let text = String::from_utf8_lossy(bytes).into_owned();
    *bytes = rest;
    text
}

/// The text with everything escaped that could move a cursor, change a colour or reorder a line.
pub(super) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\n' | '\t' => shown.push(letter),
            // A carriage return at a line's end is how some programs end lines; alone it overwrites.
            _ if letter.is_control() || is_reordering(letter) => {
                shown.extend(letter.escape_unicode());
            }
            _ => shown.push(letter),
        }
    }
    shown
}

/// JSON with the same characters escaped as JSON escapes them, which changes nothing of its meaning.
pub(super) fn visible_json(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            // Between tokens a carriage return is a space; inside a string JSON has none.
            '\r' => shown.push(' '),
            '\n' | '\t' => shown.push(letter),
            _ if letter.is_control() || is_reordering(letter) => {
                shown.extend(format!("\\u{:04x}", u32::from(letter)).chars());
            }
            _ => shown.push(letter),
        }
    }
    shown
}

/// Bidirectional controls (Unicode Standard Annex 9), which show text in another order than it has.
fn is_reordering(letter: char) -> bool {
    matches!(letter, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_drive_a_terminal_is_shown_and_not_done() {
        assert_eq!(visible("a\x1b[31mb\n\tc"), "a\\u{1b}[31mb\n\tc");
        assert_eq!(
            visible("\u{9b}2J\r\u{202e}x\u{7}"),
            "\\u{9b}2J\\u{d}\\u{202e}x\\u{7}"
        );
        assert_eq!(visible("grün 🐙"), "grün 🐙");
    }

    #[test]
    fn json_on_a_terminal_means_the_same_as_in_a_file() {
        let text = "{\"a\":\r\n\"x\u{9b}2J\u{202e}\u{7f}é\"}";
        let shown = visible_json(text);
        assert_eq!(shown, "{\"a\": \n\"x\\u009b2J\\u202e\\u007fé\"}");
        let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(parse(&shown), parse(text));
    }

    #[test]
    fn characters_cut_between_two_writes_stay_whole() {
        let mut bytes = Vec::new();
        let mut text = String::new();
        for byte in "aé🐙z".bytes() {
            bytes.push(byte);
            text.push_str(&take_text(&mut bytes));
        }
        assert_eq!(text, "aé🐙z");
        let mut broken = b"a\xff\xf0\x9f".to_vec();
        assert_eq!(take_text(&mut broken), "a\u{fffd}");
        assert_eq!(broken, b"\xf0\x9f");
    }
}
