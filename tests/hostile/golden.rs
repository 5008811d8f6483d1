//! Answers that are compared with a file: what this build of gVisor says, read as policy.

use serde_json::{Map, Value};
use std::fmt::Write;

/// Checks that `found`, an object, is what the golden file says; names what differs.
pub(crate) fn assert_golden(file: &str, golden: &str, found: &Value) {
    let golden: Map<String, Value> = serde_json::from_str(golden).unwrap();
    let found = found.as_object().expect("an object");
    let mut differences = String::new();
    for key in golden
        .keys()
        .chain(found.keys().filter(|key| !golden.contains_key(*key)))
    {
        let (expected, answer) = (golden.get(key), found.get(key));
        if expected != answer {
            writeln!(differences, "{key}: {expected:?} became {answer:?}").unwrap();
        }
    }
    assert!(
        differences.is_empty(),
        "not as `{file}` has it:\n{differences}\nthe whole, if that is right:\n{}",
        serde_json::to_string_pretty(&found).unwrap()
    );
}
