//! The table of all modules, and what nobody expected.

use crate::comparison::Comparison;
use crate::expected::Expected;
use crate::host::state_dir;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;

const HEAD: &str = "| Module | Run natively | Run in the sandbox | Equal | Different | Not reached \
                    | Native s | Sandbox s |\n| --- | --: | --: | --: | --: | --: | --: | --: |\n";

/// What has been found so far; the state directory has it as `compatibility.md`.
pub(crate) struct Report {
    /// Differences without a cause, and causes without a difference.
    pub(crate) surprises: Vec<String>,
    table: String,
    /// Where modules were cut off.
    cuts: String,
    by_cause: BTreeMap<String, usize>,
    totals: [usize; 6],
}

impl Report {
    pub(crate) fn new() -> Self {
        Self {
            surprises: Vec::new(),
            table: HEAD.to_owned(),
            cuts: String::new(),
            by_cause: BTreeMap::new(),
            totals: [0; 6],
        }
    }

    pub(crate) fn add(&mut self, module: &str, comparison: &Comparison, expected: &Expected) {
        self.add_row(module, comparison);
        for difference in &comparison.differences {
            let cause = expected.cause(module, difference);
            let name = cause.map_or("unexplained", |cause| &cause.name);
            *self.by_cause.entry(name.to_owned()).or_default() += 1;
        }
        self.surprises
            .extend(expected.surprises(module, comparison));
        fs::write(state_dir().join("compatibility.md"), self.to_string()).unwrap();
    }

    fn add_row(&mut self, module: &str, comparison: &Comparison) {
        let figures = [
            comparison.native.ran(),
            comparison.sandbox.ran(),
            comparison.equal,
            comparison.differences.len(),
            comparison.cut_off,
        ];
        self.totals[0] += 1;
        for (total, figure) in self.totals[1..].iter_mut().zip(figures) {
            *total += figure;
        }
        let [native, sandbox, equal, different, cut_off] = figures;
        let mut row =
            format!("| {module} | {native} | {sandbox} | {equal} | {different} | {cut_off}");
        for (run, side) in [
            (comparison.native, "natively"),
            (comparison.sandbox, "in the sandbox"),
        ] {
            if run.was_cut_off() {
                let running = run.unfinished.iter().map(String::as_str);
                let running: Vec<_> = running.collect();
                writeln!(self.cuts, "- {module} {side}, in {}", running.join(", ")).unwrap();
            }
            let mark = if run.was_cut_off() { " (cut off)" } else { "" };
            write!(row, " | {:.1}{mark}", run.seconds).unwrap();
        }
        println!("{row} |");
        self.table += &(row + " |\n");
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [modules, native, sandbox, equal, different, cut_off] = self.totals;
        writeln!(
            formatter,
            "{modules} modules: {native} tests run natively, {sandbox} in the sandbox; {equal} ended \
             alike, {different} differently, {cut_off} were not reached on one side\n"
        )?;
        for (cause, count) in &self.by_cause {
            writeln!(formatter, "- {cause}: {count}")?;
        }
        writeln!(
            formatter,
            "\n{}\n{}\n{}",
            self.table,
            self.cuts,
            self.surprises.join("\n\n")
        )
    }
}
