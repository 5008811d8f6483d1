//! `tako-vm doctor` on this host, and on hosts on which something is wrong: needs root and `runsc`.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test reports by panicking, and so do the functions it is written with"
)]

#[path = "sandbox/host.rs"]
#[expect(dead_code, reason = "other crates use all of it")]
mod host;

use host::{script, state_dir};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tako_vm::image::Images;
use tako_vm::runsc::provision::{self, Candidate};
use tako_vm::sys::process;
use tempfile::TempDir;

/// Every check, in the order in which it is told.
const IDS: [&str; 24] = [
    "privileges",
    "kernel",
    "cgroups",
    "libseccomp",
    "disk",
    "swap",
    "clock",
    "protected_links",
    "core_pattern",
    "ksm",
    "cpu_vulnerabilities",
    "start_speed",
    "configuration",
    "user",
    "state_directory",
    "image",
    "runsc",
    "runsc_release",
    "leftovers",
    "denied_call",
    "limits",
    "out_of_memory",
    "runsc_features",
    "backstop",
];

/// Those that are found out by trying.
const LIVE: [&str; 5] = [
    "denied_call",
    "limits",
    "out_of_memory",
    "runsc_features",
    "backstop",
];

/// What is promised of the live tests.
const WITHIN: Duration = Duration::from_secs(10);

/// Held by the test whose sandboxes run: they are measured.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn doctor(state: &Path, arguments: &[&str]) -> Command {
    let mut command = process::program(env!("CARGO_BIN_EXE_tako-vm"));
    command
        .arg("doctor")
        .args(arguments)
        .arg("--state-dir")
        .arg(state);
    command
}

/// What it says as an object, and its exit status.
struct Report {
    status: i32,
    document: Value,
}

impl Report {
    fn of(output: &Output) -> Self {
        assert!(output.stderr.is_empty(), "{output:?}");
        let document = serde_json::from_slice(&output.stdout);
        Self {
            status: output.status.code().unwrap(),
            document: document.unwrap_or_else(|error| panic!("{error}: {output:?}")),
        }
    }

    fn run(state: &Path, arguments: &[&str]) -> Self {
        Self::of(
            &doctor(state, &[&["--json"], arguments].concat())
                .output()
                .unwrap(),
        )
    }

    fn check(&self, id: &str) -> &Value {
        let checks = self.document["checks"].as_array().unwrap();
        checks.iter().find(|check| check["id"] == id).unwrap()
    }

    fn with(&self, verdict: &str) -> Vec<&str> {
        let checks = self.document["checks"].as_array().unwrap();
        let same = checks.iter().filter(|check| check["verdict"] == verdict);
        same.map(|check| check["id"].as_str().unwrap()).collect()
    }

    /// Checks that this is what fails, each with these words in what was found and in the fix.
    fn assert_fails(&self, expected: &[(&str, &str, &str)]) {
        let ids: Vec<_> = expected.iter().map(|(id, _, _)| *id).collect();
        assert_eq!(self.with("fail"), ids, "{:#}", self.document);
        for (id, found, fix) in expected {
            let check = self.check(id);
            assert!(
                check["found"].as_str().unwrap().contains(found),
                "{check:#}"
            );
            assert!(check["fix"].as_str().unwrap().contains(fix), "{check:#}");
        }
        assert_eq!(self.status, i32::from(!expected.is_empty()));
        assert_eq!(self.document["verdict"] == "fail", !expected.is_empty());
    }
}

/// A copy of the state directory, to change, with the image and runsc alone.
struct Copy {
    base: TempDir,
}

impl Copy {
    fn new() -> Self {
        let base = tempfile::Builder::new()
            .prefix("tako-vm-test-")
            .tempdir()
            .unwrap();
        let copy = Self { base };
        fs::create_dir(copy.state()).unwrap();
        fs::set_permissions(copy.state(), fs::Permissions::from_mode(0o700)).unwrap();
        for part in ["images", "runsc"] {
            let mut cp = process::program("cp");
            cp.args(["--archive", "--reflink=auto"]);
            process::run(cp.arg(state_dir().join(part)).arg(copy.state())).unwrap();
        }
        copy
    }

    fn state(&self) -> PathBuf {
        self.base.path().join("state")
    }

    /// With a script in place of runsc, which finds the real one in `$RUNSC`.
    fn with_runsc(body: &str) -> Self {
        let copy = Self::new();
        let script = script(copy.base.path(), body);
        let candidate = Candidate::given(&copy.state(), &script).unwrap();
        candidate.install(&copy.state()).unwrap();
        copy
    }

    fn with_configuration(text: &str) -> (Self, String) {
        let copy = Self::new();
        let path = copy.base.path().join("config.yaml");
        fs::write(&path, text).unwrap();
        (copy, path.to_str().unwrap().to_owned())
    }

    /// For permissive mode: with a configuration that asks for runc, and without runsc.
    fn permissive() -> (Self, String) {
        let text = "security_mode: permissive\ncontainer_runtime: runc\n";
        let (copy, config) = Self::with_configuration(text);
        fs::remove_dir_all(copy.state().join("runsc")).unwrap();
        (copy, config)
    }

    fn assert_nothing_is_left(&self) {
        let sandboxes = self.state().join("sandboxes");
        assert!(!sandboxes.exists() || host::names_in(&sandboxes).is_empty());
        let path = self.state().display().to_string();
        let left = host::processes_that_mention(&path);
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
#[ignore = "needs root and runsc"]
fn this_host_is_fit_and_found_to_be_so_within_ten_seconds() {
    let _alone = alone();
    let copy = Copy::new();
    let report = Report::run(&copy.state(), &[]);
    report.assert_fails(&[]);
    for id in LIVE {
        assert_eq!(report.check(id)["verdict"], "ok", "{:#}", report.check(id));
    }
    let took = Duration::from_millis(report.document["live_ms"].as_u64().unwrap());
    println!("live tests: {took:?}");
    assert!(took < WITHIN, "{took:?}");
    let release = report.check("runsc_release");
    let lacks = release["details"].as_array().unwrap();
    let installed = provision::installed(&copy.state()).unwrap();
    let old = installed.version.contains("20240729");
    assert_eq!(old, lacks.len() == 8, "{release:#}");
    assert_eq!(old, release["verdict"] == "warn", "{release:#}");
    copy.assert_nothing_is_left();
}

#[test]
#[ignore = "needs root and runsc"]
fn the_object_has_the_documented_keys_and_checks() {
    let document = include_str!("../docs/doctor.md");
    let missing = tempfile::tempdir().unwrap();
    let report = Report::run(&missing.path().join("none"), &[]);
    let keys =
        |value: &Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
    assert_eq!(
        keys(&report.document),
        ["checks", "counts", "live_ms", "tako_vm", "verdict"]
    );
    assert_eq!(keys(&report.document["counts"]), ["fail", "ok", "warn"]);
    let checks = report.document["checks"].as_array().unwrap();
    let ids: Vec<_> = checks
        .iter()
        .map(|check| check["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, IDS);
    for check in checks {
        assert_eq!(keys(check), ["details", "fix", "found", "id", "verdict"]);
        assert_eq!(check["fix"].is_null(), check["verdict"] == "ok", "{check}");
    }
    for name in keys(&report.document).iter().map(String::as_str).chain(IDS) {
        assert!(
            document.contains(&format!("| `{name}` |")),
            "`{name}` is not documented"
        );
    }
    assert_eq!(report.document["live_ms"], Value::Null);
}

#[test]
#[ignore = "needs root and runsc"]
fn for_people_it_is_a_line_for_each_check_with_its_fix_below() {
    let _alone = alone();
    let copy = Copy::new();
    let output = doctor(&copy.state(), &[]).output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.contains('\x1b'), "{text}");
    let told: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("OK ") || line.starts_with("WARN "))
        .map(|line| line[6..26].trim().replace(' ', "_"))
        .collect();
    assert_eq!(told, IDS);
    assert!(
        text.contains("tako-vm setup --runsc gvisor.tar.bz2"),
        "{text}"
    );
    assert!(text.contains(" 0 FAIL\n"), "{text}");
    let warned = text.lines().filter(|line| line.starts_with("WARN "));
    let last = text.lines().last().unwrap();
    assert!(warned.count() == 0 || last.starts_with("WARN: "), "{text}");
}

#[test]
#[ignore = "needs root and runsc"]
fn a_missing_state_directory_is_reported_and_not_made() {
    let base = tempfile::tempdir().unwrap();
    let state = base.path().join("none");
    let report = Report::run(&state, &[]);
    report.assert_fails(&[
        ("state_directory", "there is no", "tako-vm setup"),
        ("image", "no executor image named `python`", "tako-vm setup"),
        ("runsc", "no runsc is installed", "tako-vm setup"),
    ]);
    for id in LIVE {
        let found = report.check(id)["found"].as_str().unwrap();
        assert_eq!(found, "not checked: it takes an image and a runtime");
    }
    assert!(!state.exists());
}

#[test]
#[ignore = "needs root and runsc"]
fn a_missing_image_a_missing_runsc_and_an_open_directory_are_told_apart() {
    let copy = Copy::new();
    fs::remove_file(provision::record_path(&copy.state())).unwrap();
    Report::run(&copy.state(), &[]).assert_fails(&[("runsc", "no runsc", "tako-vm setup")]);

    let copy = Copy::new();
    fs::remove_file(copy.state().join("images/python.json")).unwrap();
    let opened = fs::Permissions::from_mode(0o755);
    fs::set_permissions(copy.state(), opened).unwrap();
    Report::run(&copy.state(), &[]).assert_fails(&[
        ("state_directory", "is open to others", "chmod 0700"),
        ("image", "no executor image", "tako-vm setup"),
    ]);
}

#[test]
#[ignore = "needs root and runsc"]
fn a_damaged_byte_of_the_image_or_of_runsc_is_found() {
    let copy = Copy::new();
    let images = Images::at(&copy.state());
    let image = images.blob(images.manifest(&"python".parse().unwrap()).unwrap().digest);
    let runsc = provision::installed(&copy.state()).unwrap().binary;
    for path in [&image, &runsc] {
        let file = fs::File::options()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 100_000).unwrap();
        file.write_all_at(&[byte[0] ^ 1], 100_000).unwrap();
    }
    Report::run(&copy.state(), &[]).assert_fails(&[
        ("image", "is damaged", "tako-vm setup"),
        ("runsc", "is damaged", "tako-vm setup"),
    ]);
}

#[test]
#[ignore = "needs root and runsc"]
fn a_runsc_that_does_not_apply_the_seccomp_profile_is_found() {
    let _alone = alone();
    let copy = Copy::with_runsc(
        "for argument; do shift\n\
         [ \"$argument\" = --oci-seccomp=true ] || set -- \"$@\" \"$argument\"\n\
         done\nexec \"$RUNSC\" \"$@\"",
    );
    let refused = "init reports: the seccomp profile is not in force";
    let expected = LIVE.map(|id| (id, refused, "do not run programs"));
    Report::run(&copy.state(), &[]).assert_fails(&expected);
    copy.assert_nothing_is_left();
}

/// Init alone does not find this: it tries one call.
#[test]
#[ignore = "needs root and runsc"]
fn a_denied_call_that_is_granted_is_named() {
    let _alone = alone();
    let allowed = r#"{"names":["personality","process_vm_readv"],"action":"SCMP_ACT_ALLOW"}"#;
    let copy = Copy::with_runsc(&format!(
        "for word; do [ \"$before\" = --bundle ] && bundle=$word; before=$word; done\n\
         [ -z \"$bundle\" ] || sed -i 's/\"syscalls\":\\[/&{allowed},/' \"$bundle/config.json\"\n\
         exec \"$RUNSC\" \"$@\""
    ));
    Report::run(&copy.state(), &[]).assert_fails(&[(
        "denied_call",
        "personality, process_vm_readv",
        "do not run programs",
    )]);
    copy.assert_nothing_is_left();
}

#[test]
#[ignore = "needs root and runsc"]
fn a_sandbox_that_does_not_know_its_limit_is_found() {
    let _alone = alone();
    let copy = Copy::with_runsc(
        "[ \"$1\" = --version ] && exec \"$RUNSC\" --version\nexec \"$RUNSC\" --ignore-cgroups \"$@\"",
    );
    Report::run(&copy.state(), &[]).assert_fails(&[(
        "limits",
        "the memory seen inside is",
        "do not run programs",
    )]);
    copy.assert_nothing_is_left();
}

#[test]
#[ignore = "needs root and runsc"]
fn a_runsc_that_hangs_does_not_hold_it_up() {
    let _alone = alone();
    let copy = Copy::with_runsc(
        "for argument; do [ \"$argument\" != run ] || exec sleep 100; done\nexec \"$RUNSC\" \"$@\"",
    );
    let begun = Instant::now();
    let report = Report::run(&copy.state(), &[]);
    let took = begun.elapsed();
    assert_eq!(report.with("fail"), LIVE, "{:#}", report.document);
    assert!(took < WITHIN, "{took:?}");
    copy.assert_nothing_is_left();
}

#[test]
#[ignore = "needs root and runsc"]
fn an_older_runsc_than_the_minimum_is_refused_by_doctor_run_and_setup() {
    let _alone = alone();
    let (copy, config) = Copy::with_configuration("runsc_minimum_release: 20991231\n");
    let state = copy.state();
    Report::run(&state, &["--config", &config]).assert_fails(&[(
        "runsc_release",
        "asks for 20991231 or newer",
        "tako-vm setup --runsc",
    )]);
    let runsc = provision::installed(&state).unwrap().binary;
    for arguments in [
        vec!["run", "-c", "print(1)"],
        vec!["setup", "--runsc", runsc.to_str().unwrap()],
    ] {
        let mut command = process::program(env!("CARGO_BIN_EXE_tako-vm"));
        command
            .args(&arguments)
            .args(["--config", &config, "--state-dir"])
            .arg(&state);
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        assert!(stderr.contains("asks for 20991231 or newer"), "{stderr}");
        assert!(stderr.contains("hint: download and check"), "{stderr}");
    }
    let (copy, config) = Copy::with_configuration("runsc_minimum_release: '20240101'\n");
    let report = Report::run(&copy.state(), &["--config", &config]);
    report.assert_fails(&[]);
}

#[test]
#[ignore = "needs root and runsc"]
fn permissive_mode_needs_no_runsc_is_tried_out_and_warned_of() {
    let _alone = alone();
    let (copy, config) = Copy::permissive();
    let report = Report::run(&copy.state(), &["--config", &config]);
    report.assert_fails(&[]);
    let checks = report.document["checks"].as_array().unwrap().iter();
    assert!(checks.map(|check| check["id"].as_str().unwrap()).eq(IDS));
    let warned = report.check("configuration");
    assert_eq!(warned["verdict"], "warn", "{warned:#}");
    let found = warned["found"].as_str().unwrap();
    assert!(
        found.contains("`runc` containers") && found.contains("weaker isolation"),
        "{found}"
    );
    for id in ["runsc", "runsc_release", "runsc_features"] {
        let found = &report.check(id)["found"];
        assert_eq!(found, "not used: permissive mode", "{id}");
    }
    for id in LIVE {
        assert_eq!(report.check(id)["verdict"], "ok", "{:#}", report.check(id));
    }
    let took = Duration::from_millis(report.document["live_ms"].as_u64().unwrap());
    assert!(took < WITHIN, "{took:?}");
    copy.assert_nothing_is_left();
}

#[test]
#[ignore = "needs root and runsc"]
fn permissive_mode_without_its_runtime_fails_and_asks_for_no_runsc() {
    let (copy, config) = Copy::permissive();
    // In a mount namespace of its own what is at its place is no program.
    let mut command = process::program("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c"]);
    command.arg("mount --bind /dev/null \"$(command -v runc)\" && exec \"$0\" \"$@\"");
    command.arg(env!("CARGO_BIN_EXE_tako-vm"));
    command.args(["doctor", "--json", "--config", &config, "--state-dir"]);
    let report = Report::of(&command.arg(copy.state()).output().unwrap());
    let missing = "install the package `runc`";
    report.assert_fails(&[("configuration", missing, "no job runs")]);
    for id in LIVE {
        let found = &report.check(id)["found"];
        assert_eq!(found, "not checked: it takes an image and a runtime");
    }
    copy.assert_nothing_is_left();
}

#[test]
#[ignore = "needs root and runsc"]
fn a_configuration_of_somebody_elses_or_with_a_bad_key_is_reported() {
    let _alone = alone();
    let (copy, config) = Copy::with_configuration("max_timeot: 3\n");
    let report = Report::run(&copy.state(), &["--config", &config]);
    report.assert_fails(&[("configuration", "unknown field `max_timeot`", "mend")]);

    fs::write(&config, "").unwrap();
    fs::set_permissions(&config, fs::Permissions::from_mode(0o666)).unwrap();
    fs::remove_file(provision::record_path(&copy.state())).unwrap();
    Report::run(&copy.state(), &["--config", &config]).assert_fails(&[
        ("configuration", "can be changed by others", "mend"),
        ("runsc", "no runsc", "tako-vm setup"),
    ]);
}

#[test]
#[ignore = "needs root and runsc"]
fn missing_controllers_are_named_and_no_sandbox_is_made() {
    let copy = Copy::new();
    // In a mount namespace of its own: this host keeps its hierarchies.
    let mut command = process::program("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c"]);
    command.arg("for mount in $(awk '$3 ~ /^cgroup/ {print $2}' /proc/mounts); do umount -l $mount; done; exec \"$0\" \"$@\"");
    command.arg(env!("CARGO_BIN_EXE_tako-vm"));
    command
        .args(["doctor", "--json", "--state-dir"])
        .arg(copy.state());
    let report = Report::of(&command.output().unwrap());
    let none = "the host offers no cgroup controller";
    let expected: Vec<_> = LIVE.map(|id| (id, none, "mend what fails above")).into();
    let cgroups = (
        "cgroups",
        "no controller memory, pids, cpu, cpuacct, freezer",
        "boot",
    );
    report.assert_fails(&[&[cgroups], expected.as_slice()].concat());
    copy.assert_nothing_is_left();
}

#[test]
#[ignore = "needs root and runsc"]
fn a_relative_state_directory_is_meant_from_where_the_user_is() {
    let _alone = alone();
    let copy = Copy::new();
    let relative = Path::new("state");
    let mut command = doctor(relative, &["--json"]);
    let report = Report::of(&command.current_dir(copy.base.path()).output().unwrap());
    report.assert_fails(&[]);
    let mut command = process::program(env!("CARGO_BIN_EXE_tako-vm"));
    command
        .args(["run", "-c", "print(1)", "--state-dir"])
        .arg(relative);
    let output = command.current_dir(copy.base.path()).output().unwrap();
    assert_eq!(output.stdout, b"1\n", "{output:?}");
    copy.assert_nothing_is_left();
}

#[test]
#[ignore = "needs root and runsc"]
fn root_without_a_capability_is_told_which() {
    let base = tempfile::tempdir().unwrap();
    let mut command = process::program("setpriv");
    command.args([
        "--bounding-set",
        "-sys_ptrace",
        env!("CARGO_BIN_EXE_tako-vm"),
    ]);
    command.args(["doctor", "--json", "--state-dir"]);
    let report = Report::of(&command.arg(base.path().join("none")).output().unwrap());
    let check = report.check("privileges");
    assert_eq!(check["verdict"], "fail", "{check:#}");
    assert!(
        check["found"].to_string().contains("CAP_SYS_PTRACE"),
        "{check:#}"
    );
    // Root all the same: the rest is checked.
    let found = &report.check("runsc")["found"];
    assert!(
        found.to_string().contains("no runsc is installed"),
        "{found}"
    );
}

#[test]
#[ignore = "needs root and runsc"]
fn a_terminal_is_shown_colours_and_nobody_else() {
    let base = tempfile::tempdir().unwrap();
    let state = base.path().join("none");
    let pair = nix::pty::openpty(None, None).unwrap();
    let mut command = doctor(&state, &[]);
    let mut child = command.stdout(pair.slave).spawn().unwrap();
    // It holds the other end of the terminal, too.
    drop(command);
    let mut shown = Vec::new();
    // The end of a terminal is an error (EIO).
    fs::File::from(pair.master)
        .read_to_end(&mut shown)
        .unwrap_err();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let shown = String::from_utf8(shown).unwrap();
    assert!(
        shown.contains("\x1b[31mFAIL\x1b[0m  state directory"),
        "{shown}"
    );
    let plain = doctor(&state, &[]).output().unwrap().stdout;
    assert!(!plain.contains(&0x1b));
}

#[test]
#[ignore = "needs root and runsc"]
fn without_root_it_says_what_was_not_checked() {
    let base = tempfile::tempdir().unwrap();
    fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = base.path().join("tako-vm");
    // By `cp`, since a fork of ours could hold it open for writing.
    let mut copy = process::program("cp");
    process::run(copy.arg(env!("CARGO_BIN_EXE_tako-vm")).arg(&program)).unwrap();
    let mut command = process::program(&program);
    command
        .args(["doctor", "--json", "--state-dir"])
        .arg(state_dir());
    let report = Report::of(&command.uid(65534).gid(65534).output().unwrap());
    report.assert_fails(&[]);
    for id in [
        "privileges",
        "state_directory",
        "image",
        "runsc",
        "leftovers",
    ] {
        let found = &report.check(id)["found"];
        assert_eq!(found, "not checked: run as root", "{id}");
    }
    for id in LIVE {
        assert_eq!(
            report.check(id)["found"],
            "not checked: run as root",
            "{id}"
        );
        assert_eq!(report.check(id)["verdict"], "warn", "{id}");
    }
}

/// A program that runs for long, and the names of its sandbox and of the store of its files.
fn endless(state: &Path) -> (Child, Vec<String>) {
    let before = names(state);
    let mut command = process::program(env!("CARGO_BIN_EXE_tako-vm"));
    command.args(["run", "--timeout", "100", "-c"]);
    command.arg("import time; print('up', flush=True); time.sleep(90)");
    command.arg("--state-dir").arg(state).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = [0; 3];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut line)
        .unwrap();
    assert_eq!(&line, b"up\n");
    let mut new = names(state);
    new.retain(|name| !before.contains(name));
    (child, new)
}

/// Names of all sandboxes, and of all stores of files.
fn names(state: &Path) -> Vec<String> {
    let places = ["sandboxes", "spools"].map(|name| state.join(name));
    let there = places.iter().filter(|path| path.exists());
    there.flat_map(|path| host::names_in(path)).collect()
}

#[test]
#[ignore = "needs root and runsc"]
fn what_a_killed_run_has_left_is_told_and_cleared_away_and_a_neighbour_lives() {
    let _alone = alone();
    let copy = Copy::new();
    let state = copy.state();
    let (mut neighbour, living) = endless(&state);
    let (mut killed, orphans) = endless(&state);
    assert_eq!((living.len(), orphans.len()), (1, 1));
    killed.kill().unwrap();
    killed.wait().unwrap();
    fs::write(state.join("runsc/.partial-test"), "").unwrap();

    let report = Report::run(&state, &[]);
    report.assert_fails(&[]);
    let check = report.check("leftovers");
    assert_eq!(check["verdict"], "warn", "{check:#}");
    assert!(
        check["fix"].as_str().unwrap().contains("doctor --fix"),
        "{check:#}"
    );
    let told = check["details"].to_string();
    assert!(orphans.iter().all(|name| told.contains(name)), "{told}");
    assert!(told.contains(".partial-test"), "{told}");
    assert!(!living.iter().any(|name| told.contains(name)), "{told}");
    let left = names(&state);
    assert!(
        orphans.iter().all(|name| left.contains(name)),
        "looking changes nothing"
    );

    let report = Report::run(&state, &["--fix"]);
    report.assert_fails(&[]);
    let check = report.check("leftovers");
    assert_eq!(check["found"], "cleared away: 1", "{check:#}");
    assert_eq!(names(&state), living);
    assert!(!state.join("runsc/.partial-test").exists());
    orphans
        .iter()
        .filter(|name| name.starts_with("tako-"))
        .for_each(|id| host::assert_gone(id));
    assert!(
        neighbour.try_wait().unwrap().is_none(),
        "the neighbour lives"
    );
    host::signal(&[neighbour.id().cast_signed()], Signal::SIGTERM);
    assert_eq!(neighbour.wait().unwrap().code(), Some(130));
    assert_eq!(Report::run(&state, &[]).check("leftovers")["found"], "none");
    copy.assert_nothing_is_left();
}

#[test]
#[ignore = "needs root and runsc"]
fn interrupted_it_clears_away_what_it_tried_out() {
    let _alone = alone();
    let copy = Copy::new();
    let mut command = doctor(&copy.state(), &[]);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let sandboxes = copy.state().join("sandboxes");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !sandboxes.exists() || host::names_in(&sandboxes).is_empty() {
        assert!(Instant::now() < deadline, "no sandbox");
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(300));
    let begun = Instant::now();
    host::signal(&[child.id().cast_signed()], Signal::SIGINT);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "{:?}",
        begun.elapsed()
    );
    copy.assert_nothing_is_left();
}
