//! The image `data`: what its libraries do in an interpreter that had imported them before, and what
//! that saves.

use crate::host::{job, request};
use crate::starts::{ROOM, Starts, Way};
use std::time::Duration;
use tako_vm::job::{JobRequest, Termination};
use tokio_util::sync::CancellationToken;

/// What is promised is five; half of it is left to a machine that does other things too.
const TIMES_FASTER: f64 = 2.5;

const IMPORTS: &str = "import numpy, pandas; print(int(pandas.Series(numpy.arange(5)).sum()))";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, runsc and an executor image"]
async fn what_was_imported_before_works_after_a_restore() {
    let starts = Starts::data();
    for way in [Way::Restored, Way::Thawed] {
        let ran = starts
            .run(way, &job(include_str!("programs/plot.py")))
            .await;
        assert_eq!(
            ran.outcome.termination,
            Termination::Exited(0),
            "{}",
            ran.stderr()
        );
        assert_eq!(
            (ran.stdout().as_str(), ran.stderr().as_str()),
            ("2.0 sklearn\n", "")
        );
        assert!(ran.files["plot.png"].starts_with(b"\x89PNG\r\n\x1a\n"));
    }
}

/// Read where they are used and not while something is imported, or of no meaning in a sandbox.
const READ_LATER: [&str; 9] = [
    "ANDROID_DATA",
    "ANDROID_ROOT",
    "DISPLAY",
    "LC_ALL",
    "PREFIX",
    "PROCESSOR_ARCHITECTURE",
    "PROCESSOR_ARCHITEW6432",
    "SHELL",
    "WINDIR",
];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, runsc and an executor image"]
async fn a_variable_that_an_imported_library_names_has_an_interpreter_of_its_own() {
    let listed = Starts::data()
        .run(Way::Restored, &job(include_str!("programs/variables.py")))
        .await;
    let names: Vec<String> = serde_json::from_value(listed.json()).unwrap();
    assert!(names.len() > 30, "{names:?}");
    for name in names {
        let own = request(JobRequest {
            code: "pass".to_owned(),
            environment: vec![(name.clone(), "1".to_owned())],
            ..JobRequest::default()
        });
        let later = READ_LATER.contains(&name.as_str());
        assert!(own.needs_own_interpreter() || later, "{name}");
    }
}

/// The best: whatever else the machine does only adds to it.
fn best(times: Vec<Duration>) -> Duration {
    times.into_iter().min().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, runsc and an executor image"]
async fn a_job_that_imports_numpy_and_pandas_is_many_times_faster_than_cold() {
    let starts = Starts::data();
    let job = job(IMPORTS);
    // Alone, as far as this program goes.
    let _permits = ROOM.acquire_many(3).await.unwrap();
    let (mut cold, mut handed, mut restoring) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..3 {
        let ran = starts.run_in(None, &job, CancellationToken::new()).await;
        cold.push(ran.took);
        // Made before a job is there, or for it: a pool that is empty waits for this.
        let begun = std::time::Instant::now();
        let ready = starts.restored().await;
        let made = begun.elapsed();
        let ran = starts
            .run_in(Some(ready), &job, CancellationToken::new())
            .await;
        assert_eq!(ran.stdout(), "10\n", "{}", ran.stderr());
        handed.push(ran.took);
        restoring.push(made + ran.took);
    }
    let [cold, handed, restoring] = [cold, handed, restoring].map(best);
    let ratio = cold.as_secs_f64() / handed.as_secs_f64();
    println!(
        "cold {cold:?}, restored before {handed:?}: {ratio:.1}; with the restore {restoring:?}"
    );
    assert!(ratio >= TIMES_FASTER, "{ratio}");
}
