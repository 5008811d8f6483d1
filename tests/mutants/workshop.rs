//! Where mutants are made: a copy of the source tree below the target directory.
//!
//! What cargo has compiled for us is used again for all but our own packages. The copies carry another
//! version, because cargo would else take them for ours and overwrite the very tests that run.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tako_vm::sys::place;
use tako_vm::sys::process::{self, ProcessError};
use tempfile::TempDir;

/// Seconds that cargo may take to build a mutant, or a mutant to set itself up or to run its test.
const PATIENCE: &str = "600";

/// Of the environment, what cargo needs to find its toolchain and its registry. The rest is about the
/// build that runs us.
const ENVIRONMENT: [&str; 5] = [
    "PATH",
    "HOME",
    "CARGO_HOME",
    "RUSTUP_HOME",
    "RUSTUP_TOOLCHAIN",
];

/// Programs of tests that need the image `data` as well.
const NEED_DATA: [&str; 2] = ["alike", "data"];

pub(crate) struct Workshop {
    source: PathBuf,
    target: PathBuf,
    state: PathBuf,
}

/// The program and the name in it of a test that is named as `docs/specification.md` names it.
pub(crate) fn program_of(test: &str) -> (Option<&str>, &str) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    match test.split_once("::") {
        Some((program, name))
            if source.join(program).join("main.rs").exists()
                || source.join(format!("{program}.rs")).exists() =>
        {
            (Some(program), name)
        }
        _ => (None, test),
    }
}

impl Workshop {
    pub(crate) fn new() -> Self {
        let state = std::env::var_os("TAKO_VM_STATE_DIR")
            .expect("TAKO_VM_STATE_DIR names no state directory: run these tests with `make test`");
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
        Self {
            source: env!("CARGO_MANIFEST_DIR").into(),
            target: target.to_owned(),
            state: state.into(),
        }
    }

    /// What the test said in the mutant, or why that cannot be told.
    pub(crate) fn run(&self, patch: &Path, new_image: bool, test: &str) -> Result<String, String> {
        self.copy();
        self.apply(patch)
            .map_err(|error| format!("the patch does not apply any more: mend it: {error}"))?;
        let (program, name) = program_of(test);
        let selected = match program {
            Some(program) => vec!["--test", program],
            None => vec!["--lib"],
        };
        run(self
            .cargo(&["test", "--workspace", "--offline", "--no-run"])
            .args(&selected))
        .map_err(|error| format!("it does not compile, so that nothing is shown: {error}"))?;
        let own = new_image.then(|| self.set_up(program)).transpose()?;
        let state = own.as_ref().map_or(self.state.as_path(), TempDir::path);
        let mut cargo = self.cargo(&["test", "--workspace", "--offline"]);
        cargo
            .args(&selected)
            .args(["--", "--include-ignored", "--exact", name]);
        match run(cargo.env("TAKO_VM_STATE_DIR", state)) {
            Ok(printed) => Ok(printed.stdout),
            Err(ProcessError::Failed { stdout, stderr, .. }) => Ok(stdout + &stderr),
            Err(error) => Err(error.to_string()),
        }
    }

    fn copies(&self) -> PathBuf {
        self.target.join("mutants/tree")
    }

    fn copy(&self) {
        let left_out = [
            self.target.clone(),
            self.state.clone(),
            self.source.join(".git"),
        ];
        let left_out = left_out.map(|path| path.canonicalize().unwrap_or(path));
        copy_changes(
            &self.source.canonicalize().unwrap(),
            &self.copies(),
            &left_out,
        );
        // Else cargo would overwrite what runs here.
        let manifest = fs::read_to_string(self.copies().join("Cargo.toml")).unwrap();
        assert!(manifest.contains("-mutant\"\n"), "no version of its own");
    }

    fn apply(&self, patch: &Path) -> Result<(), String> {
        let mut tool = process::program("patch");
        tool.args([
            "--strip=1",
            "--batch",
            "--forward",
            "--no-backup-if-mismatch",
            "--reject-file=-",
        ]);
        tool.arg("--directory")
            .arg(self.copies())
            .arg("--input")
            .arg(patch);
        match run(&mut tool) {
            Ok(_) => Ok(()),
            // It complains on standard output.
            Err(ProcessError::Failed { stdout, stderr, .. }) => Err(stdout + &stderr),
            Err(error) => Err(error.to_string()),
        }
    }

    /// A state directory with the mutant's own image. Beside ours, since root alone must decide about
    /// all above it.
    fn set_up(&self, program: Option<&str>) -> Result<TempDir, String> {
        // One that was killed half-way left its own.
        place::remove(&self.state.join("mutant")).unwrap();
        let own = tempfile::Builder::new()
            .prefix("mutant")
            .rand_bytes(0)
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(&self.state)
            .unwrap();
        for part in ["trees", "runsc", "digests"] {
            let mut copy = process::program("cp");
            copy.arg("--archive")
                .arg(self.state.join(part))
                .arg(own.path());
            process::run(&mut copy).map_err(|error| error.to_string())?;
        }
        let mut setup = process::program(self.target.join("mutants/build/debug/tako-vm"));
        setup.arg("setup").arg("--state-dir").arg(own.path());
        if NEED_DATA.contains(&program.unwrap_or_default()) {
            setup.args(["--image", "data"]);
        }
        run(&mut setup).map_err(|error| format!("it cannot be set up: {error}"))?;
        Ok(own)
    }

    fn cargo(&self, arguments: &[&str]) -> Command {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
        let mut command = process::program(cargo);
        for name in ENVIRONMENT {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
            .args(arguments)
            .current_dir(self.copies())
            .env("CARGO_TARGET_DIR", self.target.join("mutants/build"))
            .env("CARGO_BUILD_BUILD_DIR", &self.target);
        command
    }
}

/// Runs a command to its end, which comes in time.
fn run(command: &mut Command) -> Result<process::Printed, ProcessError> {
    let mut timed = process::program("timeout");
    timed
        .args(["--kill-after=10", PATIENCE])
        .arg(command.get_program());
    timed.args(command.get_args());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            timed.env(name, value);
        }
    }
    if let Some(directory) = command.get_current_dir() {
        timed.current_dir(directory);
    }
    process::run(&mut timed)
}

/// Makes `to` like `from`. What is the same stays as it is, so that cargo need not look at it.
fn copy_changes(from: &Path, to: &Path, left_out: &[PathBuf]) {
    fs::create_dir_all(to).unwrap();
    for (name, path) in entries(from) {
        let copy = to.join(&name);
        if left_out.contains(&path) {
            continue;
        }
        if path.is_dir() {
            copy_changes(&path, &copy, left_out);
            continue;
        }
        let wanted = with_the_version_of_mutants(&name, fs::read(&path).unwrap());
        if fs::read(&copy).ok().as_ref() != Some(&wanted) {
            fs::write(&copy, wanted).unwrap();
        }
    }
    for (name, path) in entries(to) {
        if !from.join(name).exists() {
            place::remove(&path).unwrap();
        }
    }
}

fn entries(directory: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(directory).unwrap().map(Result::unwrap);
    entries
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.path()))
        .collect()
}

/// The lock file gives a `source` to all packages but ours.
fn with_the_version_of_mutants(name: &str, bytes: Vec<u8>) -> Vec<u8> {
    const OURS: &str = concat!("\nversion = \"", env!("CARGO_PKG_VERSION"), "\"\n");
    const MUTANT: &str = concat!("\nversion = \"", env!("CARGO_PKG_VERSION"), "-mutant\"\n");
    if name != "Cargo.toml" && name != "Cargo.lock" {
        return bytes;
    }
    let text = String::from_utf8(bytes).unwrap();
    let renamed = text.split("\n\n").map(|part| {
        if part.contains("\nsource = ") {
            part.to_owned()
        } else {
            format!("{part}\n")
                .replace(OURS, MUTANT)
                .trim_end()
                .to_owned()
        }
    });
    let mut renamed = renamed.collect::<Vec<_>>().join("\n\n");
    renamed.push('\n');
    renamed.into_bytes()
}
