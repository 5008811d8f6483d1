//! Real programs that no one here wrote: Python's own tests, in a sandbox against the same natively.
//!
//! Compared are the outcomes of single tests, never a module's verdict. Differences are listed with
//! their causes in `expected.toml`; any other fails, and so does a listed one that no longer occurs.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test reports by panicking, and so do the functions it is written with"
)]
#![expect(
    clippy::print_stdout,
    reason = "the table grows while one looks on, for an hour with `make compat`"
)]

mod comparison;
mod expected;
#[path = "../sandbox/host.rs"]
#[expect(dead_code, reason = "another crate uses all of it")]
mod host;
mod image;
mod order;
mod record;
mod report;

use comparison::Comparison;
use expected::Expected;
use order::{Order, Sides};
use report::Report;

/// Those that are always compared; `TAKO_VM_COMPAT` names others, or `rest` for all but these.
const MODULES: [&str; 10] = [
    "test_json",
    "test_re",
    "test_math",
    "test_struct",
    "test_zlib",
    "test_hashlib",
    "test_sqlite",
    "test_tempfile",
    "test_subprocess",
    "test_threading",
];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn cpythons_own_tests_end_in_a_sandbox_as_they_do_natively() {
    let sides = Sides::prepare();
    let expected = Expected::load();
    let mut report = Report::new();
    for module in modules(&sides).await {
        let order = Order::new(&module);
        let native = sides.run_natively(&order);
        let sandbox = sides.run_in_a_sandbox(&order).await;
        let comparison = Comparison::new(&native, &sandbox);
        report.add(&module, &comparison, &expected);
    }
    assert!(
        report.surprises.is_empty(),
        "{}",
        report.surprises.join("\n\n")
    );
}

async fn modules(sides: &Sides) -> Vec<String> {
    let wanted = std::env::var_os("TAKO_VM_COMPAT").unwrap_or_default();
    match wanted.to_str().unwrap() {
        "" => MODULES.map(str::to_owned).to_vec(),
        "rest" => {
            let mut all = sides.modules().await;
            all.retain(|module| !MODULES.contains(&module.as_str()));
            all
        }
        names => names.split(' ').map(str::to_owned).collect(),
    }
}
