//! What gVisor alone has: its sentry, its flags, its address spaces.

use crate::host::{Company, Host, Part, job, names_in, script, signal};
use nix::sys::signal::Signal;
use std::fs;
use std::path::Path;
use std::time::Duration;
use tako_vm::job::{Phase, Termination};
use tokio::sync::mpsc;

/// Says that it is up, and stays.
const UP: &str = "import time; print('up', flush=True); time.sleep(1000)";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn the_sentry_is_an_unprivileged_user_under_a_filter_in_every_thread() {
    let host = Host::new();
    let (sender, mut events) = mpsc::channel(16);
    let company = Company {
        events: Some(sender),
        ..Company::default()
    };
    let job = job("import time; print('up', flush=True); time.sleep(1)");
    let (_, ()) = tokio::join!(host.run_with(&job, company), async {
        let sandbox = host.running(&mut events).await;
        let guest = [sandbox.parts(Part::Sentry), sandbox.parts(Part::Stub)].concat();
        for pid in guest {
            for thread in names_in(&Path::new("/proc").join(pid.to_string()).join("task")) {
                let status = fs::read_to_string(format!("/proc/{pid}/task/{thread}/status"));
                let Ok(status) = status else { continue };
                for expected in [
                    "\nUid:\t65534\t65534\t65534\t65534\n",
                    "\nCapInh:\t0000000000000000\n",
                    "\nCapPrm:\t0000000000000000\n",
                    "\nCapEff:\t0000000000000000\n",
                    "\nSeccomp:\t2\n",
                ] {
                    assert!(status.contains(expected), "no {expected:?} in {status}");
                }
            }
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn runsc_is_started_with_every_flag_of_the_table() {
    let directory = tempfile::tempdir().unwrap();
    let seen = directory.path().join("seen");
    let body = format!("echo \"$@\" > '{}'; exit 0", seen.display());
    let host = Host::with_runsc(&script(directory.path(), &body));
    let ran = host.run(&job(UP)).await;
    assert!(matches!(
        ran.outcome.termination,
        Termination::SandboxLost(_)
    ));
    let arguments = fs::read_to_string(seen).unwrap();
    for flag in [
        "--platform=systrap",
        "--oci-seccomp=true",
        "--network=none",
        "--directfs=false",
        "--overlay2=none",
        "--host-uds=none",
        "--host-fifo=none",
        "--allow-flag-override=false",
    ] {
        assert!(arguments.contains(flag), "{flag}: {arguments}");
    }
    assert!(arguments.trim().ends_with(&ran.outcome.id), "{arguments}");
}

/// Without its address spaces the sentry ends, or waits for them for ever: then the time limit holds.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_program_whose_address_space_is_killed_never_seems_to_have_ended_by_itself() {
    let mut job = job(UP);
    job.limits.execution = Duration::from_secs(1);
    let expected = Termination::TimedOut(Phase::Execution);
    for _ in 0..3 {
        let host = Host::new();
        let (sender, mut events) = mpsc::channel(16);
        let company = Company {
            events: Some(sender),
            ..Company::default()
        };
        let kill = async {
            let sandbox = host.running(&mut events).await;
            signal(&sandbox.parts(Part::Stub), Signal::SIGKILL);
        };
        let (ran, ()) = tokio::join!(host.run_with(&job, company), kill);
        let found = ran.outcome.termination;
        let lost = matches!(found, Termination::SandboxLost(_));
        assert!(lost || found == expected, "{found:?}");
        assert!(ran.took < Duration::from_secs(6), "{:?}", ran.took);
    }
}
