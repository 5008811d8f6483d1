//! Running one module's tests: in a sandbox, and natively on the same files with the same limits.

use crate::host::{Host, runsc_binary};
use crate::image::{self, Tested};
use crate::record::Run;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;
use tako_vm::job::{JobRequest, JobSpec, Limits, Maxima};
use tako_vm::sys::process;

const PROGRAM: &str = include_str!("main.py");

/// A module that takes longer is cut off, and what it did until then is compared.
const SECONDS: u64 = 100;

/// What a module's supervisor may take beyond that.
const SLACK: Duration = Duration::from_secs(15);

/// What regrtest calls resources: the network, displays, sound and huge files are not asked for.
const RESOURCES: [&str; 4] = ["curses", "decimal", "subprocess", "tzdata"];

/// What is asked of a module.
pub(crate) struct Order {
    module: String,
    job: JobSpec,
}

/// Both places to run it in.
pub(crate) struct Sides {
    tested: Tested,
    host: Host,
}

impl Order {
    pub(crate) fn new(module: &str) -> Self {
        let input = serde_json::json!({
            "module": module, "seconds": SECONDS, "resources": RESOURCES,
        });
        Self {
            module: module.to_owned(),
            job: job(PROGRAM, input.to_string()),
        }
    }
}

/// A job with more of everything than usual: the tests are to meet the sandbox, not its limits.
fn job(code: &str, input: String) -> JobSpec {
    let maxima = Maxima {
        defaults: Limits {
            memory_bytes: 2 << 30,
            millicpus: 2000,
            processes: 512,
            open_files: 1024,
            file_bytes: 1 << 30,
            tmp_bytes: 1 << 30,
            artifact_bytes: 64 << 20,
            artifacts_total_bytes: 64 << 20,
            execution: Duration::from_secs(SECONDS) + SLACK,
            ..Limits::default()
        },
        ..Maxima::default()
    };
    let request = JobRequest {
        code: code.to_owned(),
        input: Some(input),
        ..JobRequest::default()
    };
    JobSpec::check(request, &maxima).unwrap()
}

impl Sides {
    pub(crate) fn prepare() -> Self {
        let tested = image::provide();
        let host = Host::of(&runsc_binary(), &tested.image);
        Self { tested, host }
    }

    /// All modules of the suite but those that need a display.
    pub(crate) async fn modules(&self) -> Vec<String> {
        let code = "import json\nfrom test.libregrtest.runtest import findtests\n\
                    print(json.dumps(findtests()))";
        let ran = self.host.run(&job(code, "{}".to_owned())).await;
        let mut names: Vec<String> = serde_json::from_value(ran.json()).unwrap();
        names.retain(|name| !["test_idle", "test_tk", "test_turtle"].contains(&name.as_str()));
        names.retain(|name| !name.starts_with("test_ttk"));
        names
    }

    pub(crate) async fn run_in_a_sandbox(&self, order: &Order) -> Run {
        let ran = self.host.run(&order.job).await;
        let records = ran.files.get("tests.jsonl").map_or(&[][..], Vec::as_slice);
        let output = ran.stdout() + &ran.stderr();
        let otherwise = format!("{:?}", ran.outcome.termination);
        Run::parse(&order.module, records, otherwise, output)
    }

    /// On the image's tree, in namespaces of its own, without seccomp, without gVisor.
    pub(crate) fn run_natively(&self, order: &Order) -> Run {
        let directory = tempfile::tempdir().unwrap();
        lay_out(directory.path(), &order.job);
        let limits = &order.job.limits;
        // Nobody else would end it when the test is killed.
        let mut command = process::program("setpriv");
        command
            .args([
                "--pdeathsig",
                "KILL",
                "unshare",
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "--net",
            ])
            .args(["--ipc", "--uts", "setpriv", "--no-new-privs", "prlimit"])
            .arg(format!("--nofile={}", limits.open_files))
            .arg(format!("--nproc={}", limits.processes))
            .arg(format!("--fsize={}", limits.file_bytes))
            .args(["--core=0", "sh"])
            .arg(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/tests/compat/native.sh"
            ))
            .args([&self.tested.tree, directory.path()])
            .arg(limits.tmp_bytes.to_string());
        for (name, value) in &order.job.environment {
            command.arg(format!("{name}={value}"));
        }
        let (otherwise, output) = match process::run_within(&mut command, limits.execution) {
            Ok(printed) => ("lost".to_owned(), printed.stdout + &printed.stderr),
            Err(error) => (error.to_string(), String::new()),
        };
        let records = directory.path().join("output/tests.jsonl");
        let records = fs::read(records).unwrap_or_default();
        Run::parse(&order.module, &records, otherwise, output)
    }
}

/// The three directories of a job, as a sandbox has them.
fn lay_out(directory: &Path, job: &JobSpec) {
    for (name, mode) in [("code", 0o755), ("input", 0o755), ("output", 0o1777)] {
        let path = directory.join(name);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::write(directory.join("code/main.py"), &job.code).unwrap();
    fs::write(directory.join("input/data.json"), &job.input).unwrap();
}
