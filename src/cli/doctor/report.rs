//! Checks and how they are told: a line each for people, one object for programs.

use crate::cli::output;
use serde::Serialize;
use std::io::{self, IsTerminal, Write};

/// What a check comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// As it should be.
    Ok,
    /// Jobs run; something could be better, or was not checked.
    Warn,
    /// No job runs, or a control does not hold.
    Fail,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warn => "WARN",
            Self::Fail => "FAIL",
        }
    }

    /// The colour of the word on a terminal: green, yellow, red (ECMA-48).
    fn colour(self) -> u8 {
        match self {
            Self::Ok => 32,
            Self::Warn => 33,
            Self::Fail => 31,
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    pub(super) id: &'static str,
    pub(super) verdict: Verdict,
    /// What was found.
    pub(super) found: String,
    /// What there is to know beyond that, an item each.
    pub(super) details: Vec<String>,
    /// What to do about it.
    pub(super) fix: Option<String>,
}

impl Check {
    pub(super) fn ok(id: &'static str, found: impl Into<String>) -> Self {
        Self {
            id,
            verdict: Verdict::Ok,
            found: found.into(),
            details: Vec::new(),
            fix: None,
        }
    }

    pub(super) fn warn(id: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Warn,
            fix: Some(fix.into()),
            ..Self::ok(id, found)
        }
    }

    pub(super) fn fail(id: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Fail,
            ..Self::warn(id, found, fix)
        }
    }

    /// Only root can look.
    pub(super) fn needs_root(id: &'static str) -> Self {
        Self::warn(id, "not checked: run as root", "`sudo tako-vm doctor`")
    }

    /// It cannot be found out.
    pub(super) fn unknown(id: &'static str, why: &str) -> Self {
        Self::warn(
            id,
            format!("not checked: {why}"),
            "mend that, and run `tako-vm doctor` again",
        )
    }

    pub(super) fn with_details(mut self, details: Vec<String>) -> Self {
        self.details = details;
        self
    }
}

/// How many checks came to each verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct Counts {
    ok: usize,
    warn: usize,
    fail: usize,
}

/// The object that `--json` prints. Its keys are documented and stay.
#[derive(Serialize)]
struct Document<'a> {
    tako_vm: &'static str,
    verdict: Verdict,
    counts: Counts,
    live_ms: Option<u64>,
    checks: &'a [Check],
}

/// Takes checks as they are made, and tells them.
pub(super) struct Report {
    json: bool,
    terminal: bool,
    checks: Vec<Check>,
    /// How long the live tests took together, if there were any.
    pub(super) live_ms: Option<u64>,
}

/// Width of the column of names.
const NAMES: usize = 20;

impl Report {
    pub(super) fn new(json: bool) -> Self {
        Self {
            json,
            terminal: !json && io::stdout().is_terminal(),
            checks: Vec::new(),
            live_ms: None,
        }
    }

    /// Takes a check; people see it at once.
    pub(super) fn take(&mut self, check: Check) -> io::Result<()> {
        if !self.json {
            self.wipe()?;
            io::stdout().write_all(lines(&check, self.terminal).as_bytes())?;
        }
        self.checks.push(check);
        Ok(())
    }

    /// Says on a terminal what is being waited for, until the next check comes.
    pub(super) fn wait_for(&self, id: &str) -> io::Result<()> {
        if self.terminal {
            let mut stdout = io::stdout();
            write!(stdout, "\r\x1b[K…     {:<NAMES$}  trying it out", name(id))?;
            stdout.flush()?;
        }
        Ok(())
    }

    fn wipe(&self) -> io::Result<()> {
        if self.terminal {
            io::stdout().write_all(b"\r\x1b[K")?;
        }
        Ok(())
    }

    pub(super) fn verdict(&self) -> Verdict {
        let verdicts = self.checks.iter().map(|check| check.verdict);
        verdicts.max().unwrap_or(Verdict::Ok)
    }

    /// Tells the end: the numbers for people, everything for programs.
    pub(super) fn finish(&self) -> io::Result<()> {
        let counts = self.counts();
        let mut stdout = io::stdout().lock();
        if self.json {
            let document = Document {
                tako_vm: env!("CARGO_PKG_VERSION"),
                verdict: self.verdict(),
                counts,
                live_ms: self.live_ms,
                checks: &self.checks,
            };
            serde_json::to_writer(&mut stdout, &document)?;
            writeln!(stdout)?;
        } else {
            let Counts { ok, warn, fail } = counts;
            writeln!(stdout, "\n{ok} OK, {warn} WARN, {fail} FAIL")?;
            for verdict in [Verdict::Fail, Verdict::Warn] {
                let names = self.names(verdict);
                if !names.is_empty() {
                    writeln!(stdout, "{}: {}", verdict.word(), names.join(", "))?;
                }
            }
        }
        stdout.flush()
    }

    /// The checks that came to this verdict, for people.
    fn names(&self, verdict: Verdict) -> Vec<String> {
        let same = self.checks.iter().filter(|check| check.verdict == verdict);
        same.map(|check| name(check.id)).collect()
    }

    fn counts(&self) -> Counts {
        let count = |verdict| self.names(verdict).len();
        Counts {
            ok: count(Verdict::Ok),
            warn: count(Verdict::Warn),
            fail: count(Verdict::Fail),
        }
    }
}

/// The name of a check for people.
fn name(id: &str) -> String {
    id.replace('_', " ")
}

/// A check for people: a line, and what belongs to it below.
fn lines(check: &Check, coloured: bool) -> String {
    let word = check.verdict.word();
    // Padded before it is coloured: the codes have a length, too.
    let padded = format!("{word:<4}");
    let shown = if coloured {
        format!("\x1b[{}m{padded}\x1b[0m", check.verdict.colour())
    } else {
        padded
    };
    let line = format!(
        "{shown}  {:<NAMES$}  {}\n",
        name(check.id),
        output::visible(&check.found)
    );
    let details = check.details.iter().map(|detail| ("-", detail));
    let fix = check.fix.iter().map(|fix| ("fix:", fix));
    let below = details
        .chain(fix)
        .map(|(mark, text)| format!("      {mark} {}\n", output::visible(text)));
    std::iter::once(line)
        .chain(below)
        .collect::<Vec<_>>()
        .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_is_a_line_with_its_details_and_its_fix_below() {
        let check = Check::warn("swap", "1 GiB\x1b[2J", "`swapoff -a`")
            .with_details(vec!["the first".to_owned()]);
        assert_eq!(
            lines(&check, false),
            "WARN  swap                  1 GiB\\u{1b}[2J\n      - the first\n      fix: `swapoff -a`\n"
        );
        let coloured = lines(&Check::fail("core_pattern", "x", "y"), true);
        assert!(
            coloured.starts_with("\x1b[31mFAIL\x1b[0m  core pattern "),
            "{coloured:?}"
        );
    }

    #[test]
    fn the_worst_check_decides() {
        let mut report = Report::new(true);
        assert_eq!(report.verdict(), Verdict::Ok);
        for (check, expected) in [
            (Check::ok("a", "x"), Verdict::Ok),
            (Check::fail("b", "x", "y"), Verdict::Fail),
            (Check::warn("c", "x", "y"), Verdict::Fail),
        ] {
            report.take(check).unwrap();
            assert_eq!(report.verdict(), expected);
        }
        assert_eq!(
            report.counts(),
            Counts {
                ok: 1,
                warn: 1,
                fail: 1
            }
        );
    }
}
