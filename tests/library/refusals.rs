//! What is refused, and what is said then.

use crate::host::state_dir;
use nix::unistd::Uid;
use std::error::Error as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::time::Duration;
use tako_vm::sys::process;
use tako_vm::{Error, Job, Sandbox, SandboxBuilder};

fn refused(builder: SandboxBuilder) -> Error {
    builder.build().expect_err("it must be refused")
}

/// The message and its causes, as programs print them.
fn chain(error: &Error) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[test]
#[ignore = "needs root and runsc"]
fn an_image_that_is_not_there_is_named_with_the_command_that_makes_it() {
    let error = refused(Sandbox::builder().image("perl"));
    assert!(matches!(error, Error::Image(_)), "{error:?}");
    let text = chain(&error);
    assert!(
        text.starts_with("no executor image named `perl` (there is: `"),
        "{text}"
    );
    assert!(
        text.contains("`python`") && text.ends_with("): run `tako-vm setup`"),
        "{text}"
    );

    let error = refused(Sandbox::builder().image("../python"));
    assert!(matches!(error, Error::Image(_)), "{error:?}");
    assert!(
        chain(&error).starts_with("no image can be called so: "),
        "{}",
        chain(&error)
    );
}

#[test]
#[ignore = "needs root and runsc"]
fn a_host_that_is_not_set_up_says_what_to_do() {
    let empty = tempfile::tempdir().unwrap();
    let error = refused(Sandbox::builder().state_dir(empty.path()));
    assert!(matches!(error, Error::Image(_)), "{error:?}");
    assert!(
        chain(&error).contains("run `tako-vm setup`"),
        "{}",
        chain(&error)
    );
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0);
}

#[test]
#[ignore = "needs root and runsc"]
fn limits_out_of_range_are_all_named_before_anything_runs() {
    let wrong = Sandbox::builder()
        .memory_bytes(1 << 20)
        .cpus(f64::NAN)
        .timeout(Duration::ZERO)
        .startup_timeout(Duration::MAX);
    let error = refused(wrong);
    let Error::Job(problems) = &error else {
        panic!("{error:?}");
    };
    assert_eq!(problems.problems.len(), 4, "{problems:?}");
    assert!(chain(&error).contains("1 MiB of memory are too little"));
}

#[tokio::test]
#[ignore = "needs root and runsc"]
async fn every_bad_field_of_a_job_is_named_at_once() {
    let sandbox = Sandbox::builder().build().unwrap();
    let job = Job::new(" ")
        .input_json("{")
        .file("../x", "")
        .env("A=B", "1")
        .cpus(-1.0)
        .memory_bytes(u64::MAX)
        .timeout(Duration::from_hours(1));
    let error = sandbox.run(job).await.unwrap_err();
    let Error::Job(problems) = &error else {
        panic!("{error:?}");
    };
    assert_eq!(problems.problems.len(), 7, "{problems:?}");
    assert!(matches!(sandbox.start("").await, Err(Error::Job(_))));
}

#[test]
#[ignore = "needs root and runsc"]
fn the_configuration_of_roots_is_in_force() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.yaml");
    let builder = |text: &str| {
        fs::write(&file, text).unwrap();
        Sandbox::builder().config_file(&file)
    };
    let hour = Duration::from_hours(1);
    let error = refused(builder("max_timeout: 60").timeout(hour));
    assert!(chain(&error).contains("at most 60s"), "{}", chain(&error));
    builder("max_timeout: 3600").timeout(hour).build().unwrap();
    let error = refused(builder("enable_seccomp: false"));
    assert!(matches!(error, Error::Config(_)), "{error:?}");
    assert!(chain(&error).contains("`enable_seccomp` is false"));
}

/// As root it runs itself again as somebody else.
#[test]
#[ignore = "needs root and runsc"]
fn only_root_can_run_sandboxes() {
    if !Uid::effective().is_root() {
        let error = refused(Sandbox::builder().state_dir(state_dir()));
        assert!(matches!(error, Error::Privilege(_)), "{error:?}");
        let expected = "sandboxes need root with all its capabilities: run this program with \
                        `sudo`, or start `tako-vm supervisor` as root and be a member of the group \
                        `tako-vm`: this needs root";
        assert_eq!(chain(&error), expected);
        return;
    }
    // Where nobody may reach it; by `cp`, since a fork of ours could hold it open for writing.
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = directory.path().join("library");
    let mut copy = process::program("cp");
    copy.arg(std::env::current_exe().unwrap()).arg(&program);
    assert!(copy.status().unwrap().success());
    let mut again = process::program(&program);
    again
        .args([
            "--include-ignored",
            "--exact",
            "refusals::only_root_can_run_sandboxes",
        ])
        .env("TAKO_VM_STATE_DIR", state_dir())
        .uid(65534)
        .gid(65534);
    let output = again.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 passed"), "{said}");
}
