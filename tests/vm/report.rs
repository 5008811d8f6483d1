//! What the machine wrote on its second serial line, taken apart.

use crate::lists::List;
use std::collections::BTreeMap;

/// How a line begins that begins a part; its name follows.
const PART: &str = "== ";

/// The last part: whoever writes it has been through all the others.
const LAST: &str = "end";

/// What the machine reported.
pub(crate) struct Report {
    parts: BTreeMap<String, String>,
}

impl Report {
    /// Reads a whole report.
    ///
    /// # Errors
    /// What there is of it, if its end is missing.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = BTreeMap::<String, String>::new();
        for part in text.replace('\r', "").split(&format!("\n{PART}")) {
            let (name, body) = part.split_once('\n').unwrap_or((part, ""));
            let name = name.trim_start_matches(PART).trim();
            parts.insert(name.to_owned(), body.trim().to_owned());
        }
        if parts.contains_key(LAST) {
            Ok(Self { parts })
        } else {
            Err(format!("the report breaks off:\n{text}"))
        }
    }

    /// The text of one part.
    pub(crate) fn part(&self, name: &str) -> &str {
        let part = self.parts.get(name);
        part.unwrap_or_else(|| panic!("the machine reported nothing of `{name}`"))
    }

    /// Checks that every test of a list ran and passed.
    pub(crate) fn assert_passed(&self, list: &List) {
        let part = self.part(list.program);
        let passed = |test: &&&str| {
            part.lines()
                .any(|line| line == format!("test {test} ... ok"))
        };
        let failed: Vec<_> = list.tests.iter().filter(|test| !passed(test)).collect();
        assert!(failed.is_empty(), "{failed:?} of\n{part}");
        assert!(part.ends_with("status 0"), "{part}");
    }
}

#[test]
fn a_report_is_taken_apart_and_one_that_breaks_off_is_refused() {
    let report = Report::parse("== one\r\n1\r\n2\r\n== two\r\n== end\r\n").unwrap();
    assert_eq!((report.part("one"), report.part("two")), ("1\n2", ""));
    assert!(Report::parse("== one\r\n1\r\n").is_err());
}

#[test]
#[should_panic(expected = "b::missing")]
fn a_test_that_did_not_run_has_not_passed() {
    let report = Report::parse("== p\r\ntest a::there ... ok\r\nstatus 0\r\n== end\r\n").unwrap();
    let tests = &["a::there", "b::missing"];
    report.assert_passed(&List {
        program: "p",
        tests,
    });
}
