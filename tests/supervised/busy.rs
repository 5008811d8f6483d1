//! A supervisor that has no room.

use crate::host::state_dir;
use crate::invocation::as_user;
use crate::supervisor::{Supervisor, group};
use crate::{beside_others, settles};
use std::os::unix::fs::symlink;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tako_vm::{Error, Event, Sandbox};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_job_too_many_is_told_to_come_back_and_the_command_does() {
    let _guard = beside_others().await;
    let state = tempfile::Builder::new()
        .prefix("tako-vm-test-")
        .tempdir()
        .unwrap();
    for name in ["images", "digests", "runsc"] {
        symlink(state_dir().join(name), state.path().join(name)).unwrap();
    }
    let small = Supervisor::start(
        "supervisor:\n  max_jobs: 1\npool:\n  maximum: 0\n",
        state.path(),
    );
    let sandbox = Sandbox::builder()
        .supervisor(small.socket())
        .build()
        .unwrap();
    let waits = "import os, time; os.write(1, b'up\\n'); time.sleep(100)";
    let mut first = sandbox.start(waits).await.unwrap();
    assert_eq!(first.next().await, Some(Event::Stdout(b"up\n".to_vec())));
    let second = sandbox.run("print(2)").await;
    let Err(Error::Busy { retry_after }) = second else {
        panic!("{second:?}");
    };
    assert!(retry_after > Duration::ZERO);

    let mut command = as_user(&[&group().to_string()]);
    command.args(["run", "-c", "print('at last')", "--supervisor"]);
    let child = command
        .arg(small.socket())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let begun = Instant::now();
    drop(first);
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "at last\n",
        "{output:?}"
    );
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        said,
        "warning: the supervisor runs as many jobs as it may: waiting for up to 30 s\n"
    );
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    // The directory itself is made with the first file of the first job.
    let spools = || std::fs::read_dir(state.path().join("spools")).map_or(0, Iterator::count);
    assert!(settles(|| spools() == 0));
}
