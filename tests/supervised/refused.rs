//! What a supervisor does not do, and what is said then.

use crate::command::{assert_refused, text};
use crate::host::state_dir;
use crate::invocation::as_user;
use crate::supervisor::{group, supervisor};
use crate::{STATE, beside_others, builder, sandbox};
use std::os::unix::net::UnixListener;
use std::time::Duration;
use tako_vm::{Error, Job, Sandbox};

#[tokio::test]
#[ignore = "needs root and runsc"]
async fn every_bad_field_of_a_job_is_named_at_once_by_whoever_checks_it() {
    let _guard = beside_others().await;
    let job = Job::new(" ")
        .input_json("{")
        .file("../x", "")
        .env("A=B", "1")
        .cpus(-1.0)
        .memory_bytes(u64::MAX)
        .timeout(Duration::from_hours(1));
    let error = sandbox().run(job).await.unwrap_err();
    let Error::Job(problems) = &error else {
        panic!("{error:?}");
    };
    assert_eq!(problems.problems.len(), 7, "{problems:?}");
    assert!(matches!(sandbox().start("").await, Err(Error::Job(_))));
    // More than a supervisor reads.
    let job = (0..257).fold(Job::new("1"), |job, n| job.env(format!("N{n}"), ""));
    let error = sandbox().run(job).await.unwrap_err();
    assert!(matches!(error, Error::Job(_)), "{error:?}");
    assert!(error.to_string().contains("at most 256"), "{error}");
}

#[tokio::test]
#[ignore = "needs root and runsc"]
async fn an_image_that_is_not_there_is_named_with_the_command_that_makes_it() {
    let _guard = beside_others().await;
    let sandbox = builder().image("perl").build().unwrap();
    let error = sandbox.run("print(1)").await.unwrap_err();
    assert!(matches!(error, Error::Image(_)), "{error:?}");
    let message = error.to_string();
    assert!(
        message.starts_with("no executor image named `perl`"),
        "{message}"
    );
    assert!(message.ends_with("run `tako-vm setup`"), "{message}");
}

#[test]
#[ignore = "needs root and runsc"]
fn a_socket_that_is_named_must_be_listened_on() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    // Nothing there, and something that nobody listens on any more.
    for _ in 0..2 {
        let refused = Sandbox::builder().supervisor(&socket).build();
        let error = refused.expect_err("nobody listens");
        assert!(matches!(error, Error::Connection(_)), "{error:?}");
        assert!(error.hint().unwrap().contains("tako-vm supervisor"));
        for named in [
            as_user(&[])
                .args(["run", "-c", "1", "--supervisor"])
                .arg(&socket),
            as_user(&[])
                .args(["run", "-c", "1"])
                .env("TAKO_VM_SUPERVISOR_SOCKET", &socket),
        ] {
            let output = named.output().unwrap();
            // Not even its directory is for everybody.
            assert_refused(&output, 125, "no supervisor answers at `");
        }
        drop(UnixListener::bind(&socket));
    }
}

#[test]
#[ignore = "needs root and runsc"]
fn a_state_directory_that_is_named_is_used_without_a_supervisor() {
    let output = as_user(&[&group().to_string()])
        .args(["run", "-c", "print(1)", "--state-dir"])
        .arg(state_dir())
        .output()
        .unwrap();
    assert_refused(&output, 125, "needs root");
    assert!(
        text(&output.stderr).contains("`sudo tako-vm run`"),
        "{output:?}"
    );
    assert!(
        text(&output.stderr).contains("`tako-vm supervisor`"),
        "{output:?}"
    );
}

#[test]
#[ignore = "needs root and runsc"]
fn the_environment_names_a_socket_and_its_group_is_the_gate() {
    let _guard = STATE.blocking_read();
    let run = |groups: &[&str]| {
        as_user(groups)
            .args(["run", "-c", "print('in')"])
            .env("TAKO_VM_SUPERVISOR_SOCKET", supervisor().socket())
            .output()
            .unwrap()
    };
    let member = run(&[&group().to_string(), "60124"]);
    assert_eq!(text(&member.stdout), "in\n", "{member:?}");
    let stranger = run(&["60124"]);
    assert_refused(&stranger, 125, "Permission denied");
    assert!(
        text(&stranger.stderr).contains("usermod -aG tako-vm"),
        "{stranger:?}"
    );
}
