//! What `main.py` writes down about one module.

use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// How the tests of one module ended, on one side.
pub(crate) struct Run {
    /// Its full name, which also stands for a module that could not be loaded.
    pub(crate) module: String,
    pub(crate) tests: BTreeMap<String, Test>,
    /// Begun, and neither finished nor heard of again.
    pub(crate) unfinished: BTreeSet<String>,
    /// How the process that ran them ended.
    pub(crate) end: String,
    pub(crate) seconds: f64,
    /// The end of what it printed.
    pub(crate) output: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Test {
    pub(crate) outcome: String,
    pub(crate) detail: String,
}

#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Record {
    Begun {
        begun: String,
    },
    Ended {
        test: String,
        outcome: String,
        detail: String,
    },
    End {
        end: String,
        seconds: f64,
    },
}

impl Run {
    /// `otherwise` is how it ended if it does not say so itself.
    pub(crate) fn parse(module: &str, records: &[u8], otherwise: String, output: String) -> Self {
        let mut run = Self {
            module: format!("test.{module}"),
            tests: BTreeMap::new(),
            unfinished: BTreeSet::new(),
            end: otherwise,
            seconds: 0.0,
            output,
        };
        for line in String::from_utf8_lossy(records).lines() {
            run.add(serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")));
        }
        run
    }

    fn add(&mut self, record: Record) {
        match record {
            Record::Begun { begun } => {
                self.unfinished.insert(begun);
            }
            Record::Ended {
                test,
                outcome,
                detail,
            } => {
                self.unfinished.remove(&test);
                self.tests.insert(test, Test { outcome, detail });
            }
            Record::End { end, seconds } => (self.end, self.seconds) = (end, seconds),
        }
    }

    pub(crate) fn was_cut_off(&self) -> bool {
        self.end == "cut off"
    }

    /// How a test ended; `None` if the module was cut off before that.
    pub(crate) fn outcome(&self, test: &str) -> Option<&str> {
        match self.tests.get(test) {
            Some(test) => Some(&test.outcome),
            None if self.was_cut_off() => None,
            None if self.unfinished.contains(test) => Some("crashed"),
            None => Some("not run"),
        }
    }

    /// How many tests were neither skipped nor left out.
    pub(crate) fn ran(&self) -> usize {
        let tests = self.tests.values();
        tests.filter(|test| test.outcome != "skipped").count()
    }
}
