//! What a program can see: everything that it may ask of its interpreter and its sandbox, asked on
//! every kind of start.

use crate::host::{on_this_host, request};
use crate::starts::{Starts, Way};
use serde_json::{Map, Value};
use std::fmt::Write;
use std::time::{Duration, SystemTime};
use tako_vm::job::{InputFile, JobRequest, JobSpec};

const OBSERVE: &str = include_str!("programs/observe.py");

/// A job that begins like this, with these variables of its own, if any.
fn job(begin: &str, own: &[(&str, &str)]) -> JobSpec {
    let own = own
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    request(JobRequest {
        code: format!("{begin}{OBSERVE}"),
        input: Some("{\"a\": 1}".to_owned()),
        files: vec![InputFile {
            name: "more.txt".to_owned(),
            bytes: b"more".to_vec(),
        }],
        environment: own.collect(),
        ..JobRequest::default()
    })
}

/// What a program sees that is started in this way; the clock is looked at here.
async fn observe(starts: &Starts, way: Way, job: &JobSpec) -> Map<String, Value> {
    let before = SystemTime::now();
    let ran = starts.run(way, job).await;
    let after = SystemTime::now();
    assert_eq!(ran.stderr(), "", "{way}");
    let seen = ran.files.get("seen.json").unwrap();
    let mut seen: Map<String, Value> = serde_json::from_slice(seen).unwrap();
    let clock = seen.remove("clock").unwrap();
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs_f64(clock["now"].as_f64().unwrap());
    let slack = on_this_host(Duration::from_secs(1));
    assert!(
        before - slack < now && now < after + slack,
        "{way}: {clock}"
    );
    let slept = clock["slept"].as_array().unwrap();
    for slept in slept.iter().map(|slept| slept.as_f64().unwrap()) {
        // A sleep of 50 ms, by every clock.
        assert!((0.045..1.0).contains(&slept), "{way}: {clock}");
    }
    seen
}

/// What is not the same, one line each.
fn differences(cold: &Map<String, Value>, other: &Map<String, Value>) -> String {
    let mut text = String::new();
    let names = cold
        .keys()
        .chain(other.keys().filter(|key| !cold.contains_key(*key)));
    for name in names {
        let (expected, found) = (cold.get(name), other.get(name));
        if expected != found {
            writeln!(text, "  {name}: {expected:?}\n    is {found:?}").unwrap();
        }
    }
    text
}

async fn assert_alike(starts: &Starts, job: &JobSpec, ways: &[Way], apart: &[&str]) {
    let mut cold = observe(starts, Way::Cold, job).await;
    assert!(cold.len() > 150, "{} things are seen", cold.len());
    for name in apart {
        cold.remove(*name).unwrap();
    }
    let mut text = String::new();
    for &way in ways {
        let mut seen = observe(starts, way, job).await;
        for name in apart {
            seen.remove(*name).unwrap();
        }
        let found = differences(&cold, &seen);
        if !found.is_empty() {
            writeln!(text, "{way}:\n{found}").unwrap();
        }
    }
    assert!(text.is_empty(), "not as in a cold start:\n{text}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, runsc and an executor image"]
async fn a_program_sees_the_same_in_every_kind_of_start() {
    assert_alike(&Starts::python(), &job("", &[]), &Way::ALL, &["gc.frozen"]).await;
}

/// The environment that the interpreter was executed with is the one thing that cannot be changed
/// afterwards.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, runsc and an executor image"]
async fn variables_of_a_jobs_own_are_there_as_if_it_had_been_started_with_them() {
    let own = [
        ("GREETING", "hello, wörld\n\u{1f419}"),
        ("EMPTY", ""),
        ("HOME", "/tmp"),
        ("EQUALS", "a=b=c"),
        ("lower", "case"),
    ];
    let job = job("", &own);
    assert!(!job.needs_own_interpreter());
    let ways = [Way::Thawed, Way::Restored];
    assert_alike(
        &Starts::python(),
        &job,
        &ways,
        &["/proc/self/environ", "gc.frozen"],
    )
    .await;
}

/// `docs/starts.md` names what differs on an image that has modules imported already.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, runsc and an executor image"]
async fn with_modules_imported_already_a_program_sees_the_same_but_for_what_they_leave() {
    let apart = [
        "sys.modules",
        "main module",
        "modules that are other than their names",
        "sys.path_importer_cache",
        "sys.meta_path",
        "names of builtins",
        "warnings.filters",
        "atexit functions",
        "gc.frozen",
        "copyreg",
        "mapped files",
    ];
    let ways = [Way::Restored];
    assert_alike(&Starts::data(), &job("", &[]), &ways, &apart).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, runsc and an executor image"]
async fn a_program_that_begins_with_these_imports_sees_the_same_in_every_kind_of_start() {
    let imports =
        "[__import__(name) for name in open('/usr/share/tako-vm/preload').read().split()]\n";
    let ways = [Way::Thawed, Way::Restored];
    assert_alike(&Starts::data(), &job(imports, &[]), &ways, &["gc.frozen"]).await;
}
