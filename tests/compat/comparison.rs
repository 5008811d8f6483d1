//! Both sides of one module, test by test.

use crate::record::{Run, Test};
use std::collections::BTreeSet;
use std::fmt;

/// What is known of a module after both runs.
pub(crate) struct Comparison<'a> {
    pub(crate) native: &'a Run,
    pub(crate) sandbox: &'a Run,
    /// Tests that ended alike.
    pub(crate) equal: usize,
    pub(crate) differences: Vec<Difference>,
    /// Tests that one side did not come to within its time.
    pub(crate) cut_off: usize,
}

/// A test that did not end alike.
pub(crate) struct Difference {
    pub(crate) test: String,
    pub(crate) native: String,
    pub(crate) sandbox: String,
    /// What the failing side said.
    pub(crate) detail: String,
}

impl<'a> Comparison<'a> {
    pub(crate) fn new(native: &'a Run, sandbox: &'a Run) -> Self {
        let mut comparison = Self {
            native,
            sandbox,
            equal: 0,
            differences: Vec::new(),
            cut_off: 0,
        };
        let sides = [native, sandbox];
        let names = sides.map(|run| run.tests.keys().chain(&run.unfinished));
        for test in names.into_iter().flatten().collect::<BTreeSet<_>>() {
            comparison.add(test);
        }
        comparison.add_end();
        comparison
    }

    fn add(&mut self, test: &str) {
        let sides = (self.native.outcome(test), self.sandbox.outcome(test));
        let (Some(native), Some(sandbox)) = sides else {
            self.cut_off += 1;
            return;
        };
        // What cannot even be loaded natively says nothing of a sandbox.
        let loads = native != "error" || test != self.native.module;
        if native == sandbox && loads {
            self.equal += 1;
            return;
        }
        let said = |run: &Run| run.tests.get(test).map(|test: &Test| test.detail.clone());
        let details = [said(self.sandbox), said(self.native)];
        self.differences.push(Difference {
            test: test.to_owned(),
            native: native.to_owned(),
            sandbox: sandbox.to_owned(),
            detail: details
                .into_iter()
                .flatten()
                .find(|text| !text.is_empty())
                .unwrap_or_default(),
        });
    }

    /// A crash is a difference too, though no test says so.
    fn add_end(&mut self) {
        let either_was_cut_off = self.native.was_cut_off() || self.sandbox.was_cut_off();
        if self.native.end != self.sandbox.end && !either_was_cut_off {
            self.differences.push(Difference {
                test: "(process)".to_owned(),
                native: self.native.end.clone(),
                sandbox: self.sandbox.end.clone(),
                detail: format!("{}\n{}", self.native.output, self.sandbox.output),
            });
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            test,
            native,
            sandbox,
            detail,
        } = self;
        write!(
            formatter,
            "{test}: {native} natively, {sandbox} in the sandbox\n{detail}"
        )
    }
}
