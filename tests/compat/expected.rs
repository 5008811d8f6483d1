//! The differences that are known, each with its cause: `expected.toml`.

use crate::comparison::{Comparison, Difference};
use serde::Deserialize;
use std::collections::BTreeMap;

/// All causes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Expected {
    #[serde(default, rename = "cause")]
    pub(crate) causes: Vec<Cause>,
}

/// Why some tests end differently.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cause {
    pub(crate) name: String,
    /// By module. A name that ends with `*` stands for all that begin like it.
    tests: BTreeMap<String, Vec<String>>,
}

impl Expected {
    pub(crate) fn load() -> Self {
        Self::parse(include_str!("expected.toml"))
    }

    fn parse(text: &str) -> Self {
        toml::from_str(text).unwrap()
    }

    /// What is not as it is written down: differences without a cause, and causes without a
    /// difference.
    pub(crate) fn surprises(&self, module: &str, comparison: &Comparison) -> Vec<String> {
        let unexplained = comparison.differences.iter();
        let unexplained = unexplained.filter(|difference| self.cause(module, difference).is_none());
        let mut surprises: Vec<_> = unexplained
            .map(|difference| format!("{module}: {difference}"))
            .collect();
        // What was not reached may well still end differently.
        if comparison.cut_off == 0 {
            let stale = self.stale(module, &comparison.differences).into_iter();
            surprises
                .extend(stale.map(|test| {
                    format!("{module}: {test}: ends alike; take it off expected.toml")
                }));
        }
        surprises
    }

    pub(crate) fn cause(&self, module: &str, difference: &Difference) -> Option<&Cause> {
        self.causes.iter().find(|cause| {
            let mut names = cause.names(module);
            names.any(|name| stands_for(name, &difference.test))
        })
    }

    /// Names of a module that no difference answers to any more.
    fn stale(&self, module: &str, differences: &[Difference]) -> Vec<&str> {
        let names = self.causes.iter().flat_map(|cause| cause.names(module));
        let answered = |name: &&str| !differences.iter().any(|d| stands_for(name, &d.test));
        names.filter(answered).collect()
    }
}

impl Cause {
    fn names(&self, module: &str) -> impl Iterator<Item = &str> {
        let names = self.tests.get(module).into_iter().flatten();
        names.map(String::as_str)
    }
}

fn stands_for(name: &str, test: &str) -> bool {
    match name.strip_suffix('*') {
        Some(beginning) => test.starts_with(beginning),
        None => name == test,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Run;

    fn run(outcomes: [&str; 2], end: &str) -> Run {
        let line = |(test, outcome): (&str, &str)| {
            format!(
                "{{\"begun\":\"{test}\"}}\n{{\"test\":\"{test}\",\"outcome\":\"{outcome}\",\"detail\":\"\"}}\n"
            )
        };
        let lines: String = ["a", "b"].into_iter().zip(outcomes).map(line).collect();
        let records =
            lines + &format!("{{\"begun\":\"c\"}}\n{{\"end\":\"{end}\",\"seconds\":1}}\n");
        Run::parse("test_x", records.as_bytes(), String::new(), String::new())
    }

    #[test]
    fn what_is_not_as_it_is_written_down_is_a_surprise_either_way() {
        let expected = Expected::parse("[[cause]]\nname = \"n\"\ntests = { test_x = [\"b\"] }");
        let native = run(["ok", "ok"], "exit 0");
        let surprises = |sandbox| expected.surprises("test_x", &Comparison::new(&native, &sandbox));
        assert!(surprises(run(["ok", "skipped"], "exit 0")).is_empty());
        let unexplained = surprises(run(["failed", "error"], "exit 0"));
        assert!(unexplained[0].starts_with("test_x: a: ok natively, failed"));
        let stale = surprises(run(["ok", "ok"], "exit 0"));
        assert!(stale[0].starts_with("test_x: b: ends alike"));
        let crashed = surprises(run(["ok", "error"], "signal 11"));
        assert!(crashed[0].starts_with("test_x: (process): exit 0 natively, signal 11"));
    }

    #[test]
    fn what_was_not_reached_is_no_difference() {
        let (native, sandbox) = (run(["ok", "ok"], "exit 0"), run(["ok", "ok"], "cut off"));
        let comparison = Comparison::new(&native, &sandbox);
        assert_eq!((comparison.equal, comparison.cut_off), (2, 1));
        assert!(comparison.differences.is_empty());
    }
}
