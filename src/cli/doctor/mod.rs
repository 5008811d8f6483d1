//! `tako-vm doctor`: whether this host can run sandboxes, and what there is to mend.
//!
//! Facts come first; then sandboxes are made and attacked. Nothing that is missing stops it: what
//! cannot be checked is said to be so.

mod host;
mod installed;
mod leftovers;
mod report;

use super::{Failure, INTERRUPTED, one_line, run};
use crate::client;
use crate::config::{Config, ConfigError};
use crate::image::Image;
use crate::runc::{Runc, RuncError};
use crate::runsc::Runsc;
use crate::sandbox::{self, Runtime, SandboxError, Sandboxes, SelfTestError, SelfTests};
use crate::sys::privilege::{self, PrivilegeError};
use report::{Check, Report, Verdict};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Check this host: the kernel, cgroups, runsc, the image, and sandboxes that are tried out
///
/// Every line says OK, WARN or FAIL, and how to mend it. docs/doctor.md describes every check.
///
/// Exit status: 0 no FAIL (there may be WARNs); 1 a FAIL; 130 interrupted; 125 Tako VM itself
/// failed; 2 wrong usage.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// Print one JSON object and nothing else
    #[arg(long)]
    json: bool,
    /// Clear away what killed processes have left: nothing else is changed
    #[arg(long)]
    fix: bool,
}

/// The exit status when a check fails.
const UNFIT: u8 = 1;

/// How long the live tests may take together. Ten seconds are promised; the rest is for clearing away.
const LIVE: Duration = Duration::from_secs(8);

/// How long runsc may take to write a checkpoint, within [`LIVE`] in all but the worst case.
const CHECKPOINT: Duration = Duration::from_secs(2);

/// The live tests, in the order in which they are told.
const LIVE_CHECKS: [&str; 5] = [
    "denied_call",
    "limits",
    "out_of_memory",
    "runsc_features",
    "backstop",
];

/// Checks everything, tells it, and returns the exit status.
pub(super) async fn run(
    arguments: &Arguments,
    state_dir: &Path,
    file: Option<&Path>,
    config: &Result<Config, ConfigError>,
) -> Result<u8, Failure> {
    let failed = |error: io::Error| Failure::io("cannot write the report", &error);
    let mut report = Report::new(arguments.json);
    let cancel =
        run::cancel_on_signals().map_err(|error| Failure::io("cannot watch signals", &error))?;
    let host = Host {
        state_dir,
        file,
        config,
        fix: arguments.fix,
    };
    let ready = host.examine(&mut report).map_err(failed)?;
    try_out(&mut report, ready, state_dir, &cancel)
        .await
        .map_err(failed)?;
    report.finish().map_err(failed)?;
    Ok(match report.verdict() {
        _ if cancel.is_cancelled() => INTERRUPTED,
        Verdict::Ok | Verdict::Warn => 0,
        Verdict::Fail => UNFIT,
    })
}

/// What sandboxes are made of, or what to say of the tests that need some.
type Ready = Result<(Image, Runtime), fn(&'static str) -> Check>;

/// The checks that need root, in the order in which they are told, without the live ones.
const ROOTS_CHECKS: [&str; 5] = [
    "state_directory",
    "image",
    "runsc",
    "runsc_release",
    "leftovers",
];

/// What is found of runsc in permissive mode.
const NOT_USED: &str = "not used: permissive mode";

/// What is examined.
struct Host<'a> {
    state_dir: &'a Path,
    file: Option<&'a Path>,
    config: &'a Result<Config, ConfigError>,
    fix: bool,
}

impl Host<'_> {
    fn examine(&self, report: &mut Report) -> io::Result<Ready> {
        let privileges = privilege::require_root();
        report.take(installed::privileges(&privileges))?;
        for check in host::checks(self.state_dir) {
            report.take(check)?;
        }
        let container = self.config.as_ref().ok().and_then(client::container);
        let check = installed::configuration(self.config, self.file, container.as_ref());
        report.take(check)?;
        report.take(installed::user())?;
        if matches!(privileges, Err(PrivilegeError::NotRoot)) {
            for id in ROOTS_CHECKS {
                report.take(Check::needs_root(id))?;
            }
            return Ok(Err(Check::needs_root));
        }
        self.examine_state(report, container)
    }

    /// What lies in the state directory.
    fn examine_state(
        &self,
        report: &mut Report,
        container: Option<Result<Runc, RuncError>>,
    ) -> io::Result<Ready> {
        report.take(installed::state_directory(self.state_dir))?;
        let (check, image) = installed::image(self.state_dir);
        report.take(check)?;
        let runtime = match container {
            None => self.examine_runsc(report)?.map(Runtime::from),
            Some(runc) => {
                for id in ["runsc", "runsc_release"] {
                    report.take(Check::ok(id, NOT_USED))?;
                }
                runc.ok().map(Runtime::from)
            }
        };
        report.take(leftovers::check(self.state_dir, self.fix))?;
        Ok(image
            .zip(runtime)
            .ok_or(|id| Check::unknown(id, "it takes an image and a runtime")))
    }

    fn examine_runsc(&self, report: &mut Report) -> io::Result<Option<Runsc>> {
        let (check, runsc) = installed::runsc(self.state_dir);
        report.take(check)?;
        let config = self.config.as_ref().ok();
        let minimum = config.and_then(|config| config.runsc_minimum_release);
        report.take(match &runsc {
            Some(runsc) => installed::runsc_release(runsc, minimum),
            None => Check::unknown("runsc_release", "there is no runsc to use"),
        })?;
        Ok(runsc.map(|runsc| Runsc::new(runsc.binary)))
    }
}

/// Makes sandboxes and tries to get past their controls, all at once.
async fn try_out(
    report: &mut Report,
    ready: Ready,
    state_dir: &Path,
    cancel: &CancellationToken,
) -> io::Result<()> {
    let (image, runtime) = match ready {
        Ok(ready) => ready,
        Err(check) => return not_tried(report, check),
    };
    // Clearing away is for whoever asks for it.
    let sandboxes = match Sandboxes::prepare_without_sweep(state_dir, runtime) {
        Ok(sandboxes) => sandboxes,
        Err(error) => return not_tried(report, |id| unfit(id, &error)),
    };
    let runtime = sandboxes.runtime().clone();
    let begun = Instant::now();
    let tests = SelfTests {
        sandboxes,
        image: image.path.clone(),
        cancel: cancel.child_token(),
    };
    let clock = tests.cancel.clone();
    tokio::spawn(async move {
        tokio::time::sleep(LIVE).await;
        clock.cancel();
    });
    for (id, test) in LIVE_CHECKS.into_iter().zip(start(tests)) {
        report.wait_for(id)?;
        let found = test.await.unwrap_or_else(|error| Err(one_line(&error)));
        report.take(judge(id, found, &runtime))?;
    }
    let live_ms = begun.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
    report.live_ms = Some(live_ms);
    Ok(())
}

type Found = Result<String, String>;

/// Starts the tests, in the order of [`LIVE_CHECKS`].
fn start(tests: SelfTests) -> [JoinHandle<Found>; 5] {
    let tell = |result: Result<String, SelfTestError>| result.map_err(|error| one_line(&error));
    let [calls, limits, memory, probe] = std::array::from_fn(|_| tests.clone());
    [
        tokio::spawn(async move { tell(calls.denied_call().await) }),
        tokio::spawn(async move { tell(limits.limits().await) }),
        tokio::spawn(async move { tell(memory.out_of_memory().await) }),
        tokio::spawn(async move { features(&probe).await }),
        tokio::spawn(async move { tell(tests.backstop().await) }),
    ]
}

/// The features by which setup chooses a runsc, found by using them once more.
async fn features(tests: &SelfTests) -> Found {
    if let Runtime::Container(_) = tests.sandboxes.runtime() {
        return Ok(NOT_USED.to_owned());
    }
    let probing = sandbox::probe(&tests.sandboxes, &tests.image, CHECKPOINT);
    // Dropped half-way, a sandbox goes with everything in it.
    match tests.cancel.run_until_cancelled(probing).await {
        Some(Ok(())) => Ok("systrap, EROFS root, seccomp profile, checkpoint, restore".to_owned()),
        Some(Err(error)) => Err(one_line(&error)),
        None => Err("it was given up, since it took too long".to_owned()),
    }
}

fn not_tried(report: &mut Report, check: impl Fn(&'static str) -> Check) -> io::Result<()> {
    LIVE_CHECKS
        .into_iter()
        .try_for_each(|id| report.take(check(id)))
}

fn unfit(id: &'static str, error: &SandboxError) -> Check {
    Check::fail(
        id,
        one_line(error),
        "mend what fails above: no sandbox can be made",
    )
}

fn judge(id: &'static str, found: Found, runtime: &Runtime) -> Check {
    let fix = match (id, runtime) {
        ("denied_call" | "runsc_features", Runtime::Gvisor(_)) => {
            "do not run programs on this host; `sudo tako-vm setup --runsc` with a release of gVisor"
        }
        ("denied_call", Runtime::Container(_)) => {
            "do not run programs on this host; try another version of the container runtime"
        }
        ("limits" | "out_of_memory", _) => {
            "do not run programs on this host until the cgroups above are in order"
        }
        _ => {
            "do not run programs on this host: if it is only overloaded, run `tako-vm doctor` again"
        }
    };
    match found {
        Ok(found) => Check::ok(id, found),
        Err(found) => Check::fail(id, found, fix),
    }
}
