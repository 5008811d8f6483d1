//! The differences that are known, each with its cause: `expected.toml`.

use crate::comparison::Difference;
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
    /// Whether the tests end differently only now and then.
    #[serde(default)]
    varies: bool,
    /// By module. A name that ends with `*` stands for all that begin like it.
    tests: BTreeMap<String, Vec<String>>,
}

impl Expected {
    pub(crate) fn load() -> Self {
        toml::from_str(include_str!("expected.toml")).unwrap()
    }

    pub(crate) fn cause(&self, module: &str, difference: &Difference) -> Option<&Cause> {
        self.causes.iter().find(|cause| {
            let mut names = cause.names(module);
            names.any(|name| stands_for(name, &difference.test))
        })
    }

    /// Names of a module that no difference answers to any more.
    pub(crate) fn stale(&self, module: &str, differences: &[Difference]) -> Vec<&str> {
        let steady = self.causes.iter().filter(|cause| !cause.varies);
        let names = steady.flat_map(|cause| cause.names(module));
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
