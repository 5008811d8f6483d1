//! What the service says: one line for each event, on standard error.
//!
//! A thread of its own writes them, for whoever reads standard error may be slow: nothing that serves
//! clients waits for it. Lines that it has no place for are counted instead.

use super::wire::shortened;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How often a line that a client can cause is written at most.
const PAUSE: Duration = Duration::from_secs(1);

/// Lines that wait to be written at most: 4 MiB of the longest.
const WAITING: usize = 1024;

/// How long the last lines are waited for.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Something happened that happens.
pub(super) fn info(line: &str) {
    write("info", line, 0);
}

/// Something is wrong, and we cope.
pub(super) fn warn(line: &str) {
    write("warning", line, 0);
}

/// A human must look.
pub(super) fn error(line: &str) {
    write("error", line, 0);
}

/// Waits a moment for what was said before.
pub(super) fn flush() {
    if let Some(writer) = Writer::of_standard_error() {
        writer.flush(LAST_LINES);
    }
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
        write("warning", &line(), swallowed);
    }
}

fn write(kind: &str, line: &str, swallowed: u64) {
    let line = formatted(kind, line, swallowed);
    match Writer::of_standard_error() {
        Some(writer) => writer.say(line),
        None => put(&mut io::stderr(), &line),
    }
}

fn formatted(kind: &str, line: &str, swallowed: u64) -> String {
    // A client's text may be in it, which must not look like a line of ours.
    let line = shortened(line.replace(char::is_control, " "));
    if swallowed == 0 {
        format!("{kind}: {line}\n")
    } else {
        format!("{kind}: {line} (and {swallowed} more)\n")
    }
}

fn put(to: &mut impl Write, line: &str) {
    // Without a standard error there is nobody to tell.
    drop(to.write_all(line.as_bytes()));
}

/// The thread that writes.
#[derive(Debug)]
struct Writer {
    said: SyncSender<Said>,
    lost: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Said {
    Line(String),
    /// Everything before it has been written once this is dropped.
    Until(SyncSender<()>),
}

impl Writer {
    /// `None` where there can be no more threads.
    fn of_standard_error() -> Option<&'static Self> {
        static WRITER: OnceLock<Option<Writer>> = OnceLock::new();
        WRITER.get_or_init(|| Self::start(io::stderr())).as_ref()
    }

    fn start(to: impl Write + Send + 'static) -> Option<Self> {
        let (said, heard) = sync_channel(WAITING);
        let lost = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&lost);
        let thread = thread::Builder::new().name("journal".to_owned());
        thread.spawn(move || write_all(to, &heard, &counted)).ok()?;
        Some(Self { said, lost })
    }

    fn say(&self, line: String) {
        if self.said.try_send(Said::Line(line)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flush(&self, patience: Duration) {
        let begun = Instant::now();
        let (until, written) = sync_channel(0);
        let mut last = Said::Until(until);
        while let Err(TrySendError::Full(again)) = self.said.try_send(last) {
            if begun.elapsed() >= patience {
                return;
            }
            last = again;
            thread::sleep(Duration::from_millis(5));
        }
        // Nothing is ever sent: it ends with the sender, or too late.
        let patience = patience.saturating_sub(begun.elapsed());
        written.recv_timeout(patience).ok();
    }
}

fn write_all(mut to: impl Write, heard: &Receiver<Said>, lost: &AtomicU64) {
    for said in heard {
        match said {
            Said::Line(line) => {
                put(&mut to, &line);
                let lost = lost.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    put(&mut to, &format!("warning: {lost} lines are left out\n"));
                }
            }
            Said::Until(written) => drop(written),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};

    #[test]
    fn a_line_is_one_line_and_not_long() {
        let long = format!("a\nb{}", "\u{e9}".repeat(5000));
        let line = formatted("warning", &long, 3);
        assert!(line.starts_with("warning: a b\u{e9}"), "{line}");
        assert!(line.ends_with("\u{e9}\u{2026} (and 3 more)\n"), "{line}");
        assert_eq!(line.matches('\n').count(), 1);
        assert!(line.chars().count() < 1050);
        assert_eq!(formatted("info", "x", 0), "info: x\n");
    }

    #[test]
    fn whoever_says_something_does_not_wait_for_a_reader_and_what_is_lost_is_counted() {
        let (reader, to) = io::pipe().unwrap();
        let writer = Writer::start(to).unwrap();
        let said = WAITING + 500;
        // More than a pipe takes by far.
        let line = format!("{}\n", "x".repeat(4000));
        for _ in 0..said {
            writer.say(line.clone());
        }
        writer.flush(Duration::from_millis(20));
        let reading = thread::spawn(move || {
            let lines = BufReader::new(reader).lines().map(Result::unwrap);
            lines.collect::<Vec<_>>()
        });
        writer.flush(Duration::from_mins(1));
        drop(writer);
        let lines = reading.join().unwrap();
        let told = lines.iter().filter_map(|line| {
            let number = line.strip_prefix("warning: ")?;
            number
                .strip_suffix(" lines are left out")?
                .parse::<usize>()
                .ok()
        });
        let told: Vec<_> = told.collect();
        let lost: usize = told.iter().sum();
        assert!(lost > 0);
        assert_eq!(lines.len() - told.len() + lost, said);
    }
}
