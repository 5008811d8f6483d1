//! What a run gives: how the program ended, and what it left.

use crate::host::{IMAGE, names_in, state_dir};
use crate::{alone, assert_gone, beside_others, builder, run, sandbox, settles, state};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;
use tako_vm::job::Status;
use tako_vm::{Error, Job, Phase, Sandbox, Termination};

#[tokio::test]
#[ignore = "needs root and runsc"]
async fn a_result_in_ten_lines() -> Result<(), Error> {
    let _guard = beside_others().await;
    let sandbox = builder()
        .timeout(Duration::from_secs(10))
        .memory_bytes(256 << 20)
        .build()?;
    let done = sandbox.run("print(1 + 1)").await?;
    assert_eq!(done.stdout(), "2\n");
    assert!(done.success());
    assert_eq!(done.error(), None);
    assert_gone(done.id());
    Ok(())
}

#[tokio::test]
#[ignore = "needs root and runsc"]
async fn a_program_that_fails_is_no_error_of_ours() {
    let _guard = beside_others().await;
    let done = run("int('x')").await;
    assert!(!done.success());
    assert_eq!(done.exit_code(), Some(1));
    assert_eq!(done.runtime(), "runsc");
    let error = done.error().unwrap();
    assert_eq!(error.kind, "value_error");
    assert!(done.stderr().contains("invalid literal for int()"));

    let done = run("raise SystemExit(124)").await;
    assert_eq!(done.termination(), &Termination::Exited(124));
    let done = run("import os; os.kill(os.getpid(), 11)").await;
    assert_eq!(done.termination(), &Termination::Signalled(11));
}

#[tokio::test]
#[ignore = "needs root and runsc"]
async fn limits_end_a_program_and_say_which() {
    let _guard = beside_others().await;
    let slow = Job::new("print('begun')\nwhile True: pass").timeout(Duration::from_secs(1));
    let done = run(slow).await;
    let timed_out = Termination::TimedOut(Phase::Execution);
    assert_eq!(done.termination(), &timed_out);
    assert_eq!(done.exit_code(), Some(124));
    assert_eq!(done.stdout(), "begun\n");
    assert!(done.timing().execution_ms >= Some(1000));

    let hog =
        "import mmap\nm = mmap.mmap(-1, 1 << 30)\nfor at in range(0, 1 << 30, 4096): m[at] = 1";
    let done = run(Job::new(hog).memory_bytes(128 << 20)).await;
    assert_eq!(done.termination(), &Termination::OutOfMemory);
    assert!(done.usage().oom_kills > 0);
    assert!(done.usage().max_rss_mb > 64.0);
}

#[tokio::test]
#[ignore = "needs root and runsc"]
async fn a_job_has_the_limits_of_its_sandbox_unless_it_says_its_own() {
    let _guard = beside_others().await;
    let memory = "import os; print(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') >> 20)";
    let sandbox = builder().memory_bytes(128 << 20).build().unwrap();
    assert_eq!(sandbox.run(memory).await.unwrap().stdout(), "128\n");
    let own = Job::new(memory).memory_bytes(200 << 20);
    assert_eq!(sandbox.run(own).await.unwrap().stdout(), "200\n");
}

#[tokio::test]
#[ignore = "needs root and runsc"]
async fn a_program_gets_its_input_files_and_environment() {
    let _guard = beside_others().await;
    let program = r#"
import json, os
n = json.load(open("/input/data.json"))["n"]
names = open("/input/names.txt").read().split()
print(os.environ["GREETING"], names[n])
"#;
    let job = Job::new(program)
        .input(json!({ "n": 1 }))
        .file("names.txt", "Ada Grace")
        .env("GREETING", "Hello")
        .timeout(Duration::from_secs(5));
    assert_eq!(run(job).await.stdout(), "Hello Grace\n");

    let echo = "print(open('/input/data.json').read(), end='')";
    let done = run(Job::new(echo).input_json("[1.10,  2]")).await;
    assert_eq!(done.stdout(), "[1.10,  2]");
    assert_eq!(run(echo).await.stdout(), "{}");
}

#[derive(Debug, serde::Deserialize)]
struct Answer {
    mean: f64,
}

#[tokio::test]
#[ignore = "needs root and runsc"]
async fn a_result_is_parsed_as_the_type_that_is_asked_for() {
    let _guard = beside_others().await;
    let program = r#"
import json, statistics
json.dump({"mean": statistics.mean([1, 2, 6])}, open("/output/result.json", "w"))
"#;
    let done = run(program).await;
    let answer: Answer = done.result().unwrap();
    assert!((answer.mean - 3.0).abs() < f64::EPSILON);
    let wrong = done.result::<Vec<u8>>();
    assert!(matches!(wrong, Err(Error::Result(_))), "{wrong:?}");

    let none = run("print(1)").await.result::<Value>();
    assert!(matches!(none, Err(Error::NoResult)), "{none:?}");

    // Nested until a parser without a bound has no stack left.
    let deep = "open('/output/result.json', 'w').write('[' * 1_000_000)";
    let error = run(deep).await.result::<Value>().unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("recursion limit"), "{cause}");
}

#[tokio::test]
#[ignore = "needs root and runsc"]
async fn files_are_kept_as_long_as_the_execution_and_saved_where_it_says() {
    let _guard = alone().await;
    let before = state();
    let sandbox = sandbox();
    let program = r"
import os
os.mkdir('/output/plots')
open('/output/plots/a.bin', 'wb').write(bytes(range(256)))
open('/output/squares.csv', 'w').write('1,1\n2,4\n')
os.symlink('/etc/passwd', '/output/link')
";
    let done = sandbox.run(program).await.unwrap();
    assert!(done.success(), "{}", done.stderr());
    let names: BTreeSet<_> = done.artifacts().map(|file| file.name()).collect();
    assert_eq!(names, BTreeSet::from(["plots/a.bin", "squares.csv"]));
    assert!(done.artifacts_truncated());
    assert_eq!(done.artifacts_skipped()[0].name, "link");
    let squares = done.artifact("squares.csv").unwrap();
    assert_eq!(squares.size_bytes(), 8);
    assert_eq!(squares.read().unwrap(), b"1,1\n2,4\n");
    assert_eq!(squares.sha256().len(), 64);

    let directory = tempfile::tempdir().unwrap();
    let results = directory.path().join("new/results");
    done.save_artifacts(&results).unwrap();
    let bytes = fs::read(results.join("plots/a.bin")).unwrap();
    assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
    assert_eq!(names_in(&results), ["plots", "squares.csv"]);
    let file = results.join("squares.csv");
    let refused = done.save_artifacts(&file);
    assert!(refused.is_err(), "a file is no directory");

    assert_ne!(state(), before, "the files lie somewhere");
    drop(done);
    assert!(settles(|| state() == before), "{:?}", state());
}

#[tokio::test]
#[ignore = "needs root and runsc"]
async fn a_record_is_what_the_command_prints() {
    let _guard = beside_others().await;
    let program = "print('out')\nopen('/output/result.json', 'w').write('[1.10]')";
    let done = run(Job::new(program).input(json!([1]))).await;
    let record = done.record().unwrap();
    assert_eq!(record.execution_id, done.id());
    assert_eq!(record.status, Status::Succeeded);
    assert_eq!(record.output.as_ref().unwrap().get(), "[1.10]");
    assert_eq!(record.job_ref, IMAGE);
    assert_eq!(serde_json::to_value(&record).unwrap()["stdout"], "out\n");

    // All that it takes is in memory: the files may be gone, and so may be the privileges.
    let unparsed = done.unparsed().unwrap();
    drop(done);
    assert_eq!(unparsed.parse().output.unwrap().get(), "[1.10]");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn eight_at_once_share_one_sandbox_and_nothing_else() {
    let _guard = beside_others().await;
    let sandbox = sandbox();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..8 {
        let sandbox = sandbox.clone();
        tasks.spawn(async move {
            let program = "import json, os\nn = json.load(open('/input/data.json'))\n\
                           open('/output/n', 'w').write(str(n))\nprint(n, os.listdir('/tmp'))";
            let done = sandbox.run(Job::new(program).input(number)).await.unwrap();
            assert_eq!(done.stdout(), format!("{number} []\n"), "{}", done.stderr());
            let file = done.artifact("n").unwrap();
            assert_eq!(file.read().unwrap(), number.to_string().as_bytes());
            done.id().to_owned()
        });
    }
    let ids: BTreeSet<_> = tasks.join_all().await.into_iter().collect();
    assert_eq!(ids.len(), 8);
    for id in &ids {
        assert_gone(id);
    }

    // And again, after all of them.
    assert_eq!(sandbox.run("print(8)").await.unwrap().stdout(), "8\n");
}

#[tokio::test]
#[ignore = "needs root and runsc"]
async fn a_relative_state_directory_stays_where_it_was() {
    let _guard = beside_others().await;
    // As many steps up as it takes to reach the root, and down again.
    let here = std::env::current_dir().unwrap();
    let up = "../".repeat(here.components().count());
    let relative = format!("{up}{}", state_dir().display());
    let sandbox = Sandbox::builder().state_dir(relative).build().unwrap();
    assert_eq!(sandbox.run("print(1)").await.unwrap().stdout(), "1\n");
}
