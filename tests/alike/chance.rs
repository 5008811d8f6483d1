//! Whatever comes from chance is a program's own, also where it runs in one of many copies of the same
//! interpreter.

use crate::host::job;
use crate::starts::{Starts, Way};
use serde_json::Value;
use std::collections::HashMap;
use std::fmt::Write;

const DRAW: &str = include_str!("programs/draw.py");

/// What programs drew that were started in these ways, at the same time.
async fn draw(starts: &Starts, ways: &[Way]) -> Vec<(Way, Value)> {
    let job = job(DRAW);
    // The checkpoint is made alone.
    let runs = ways.iter().map(|&way| {
        let job = &job;
        async move { (way, starts.run(way, job).await.json()) }
    });
    let mut drawn = Vec::new();
    for run in runs {
        drawn.push(run.await);
    }
    drawn
}

fn assert_apart(all: &[(Way, Value)], least: usize) {
    let mut seen: HashMap<&str, (Way, &str)> = HashMap::new();
    let mut text = String::new();
    for (way, found) in all {
        let drawn = found["drawn"].as_object().unwrap();
        assert!(drawn.len() >= least, "{drawn:?}");
        for (name, value) in drawn {
            if let Some((other, first)) = seen.insert(value.as_str().unwrap(), (*way, name)) {
                writeln!(text, "{name} ({way}) is {first} ({other}): {value}").unwrap();
            }
        }
    }
    assert!(text.is_empty(), "shared:\n{text}");
}

/// What `docs/starts.md` says that copies of one interpreter have in common.
fn assert_shared(all: &[(Way, Value)], name: &str) {
    let of = |wanted: Way| {
        let those = all.iter().filter(move |(way, _)| *way == wanted);
        those
            .map(|(_, found)| &found["shared"][name])
            .collect::<Vec<_>>()
    };
    let restored = of(Way::Restored);
    assert!(
        restored.windows(2).all(|pair| pair[0] == pair[1]),
        "{name}: {restored:?}"
    );
    for other in of(Way::Warm) {
        assert_ne!(other, restored[0], "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, runsc and an executor image"]
async fn programs_in_copies_of_one_interpreter_share_nothing_of_chance() {
    let mut ways = vec![Way::Restored; 8];
    ways.extend([Way::Warm, Way::Warm]);
    let all = draw(&Starts::python(), &ways).await;
    assert_apart(&all, 18);
    assert_shared(&all, "hash");
    assert_shared(&all, "address");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, runsc and an executor image"]
async fn nor_where_libraries_had_been_imported_before() {
    let mut ways = vec![Way::Restored; 4];
    ways.extend([Way::Warm, Way::Warm]);
    let all = draw(&Starts::data(), &ways).await;
    assert_apart(&all, 26);
    assert_shared(&all, "hash");
    assert_shared(&all, "address");
}
