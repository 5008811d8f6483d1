//! What the machine boots from, kept as long as its recipe stays the same, and the disk with the tests,
//! made anew for each run. Both are made from a directory: nothing is mounted on the host.

use crate::lists::LISTS;
use crate::say;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tako_vm::sys::apt::{self, Sources, WORKSHOP};
use tako_vm::sys::digest::Digest;
use tako_vm::sys::{place, process};

/// The release of Debian: Linux 6.1, systemd 252.
const SUITE: &str = "bookworm";

/// The system, its kernel, and the library that `tako-vm` is linked with.
const PACKAGES: &str = "--include=libseccomp2,linux-image-cloud-amd64,systemd-sysv";

/// The other arguments of `mmdebstrap`: a small system, but one whose maintainer scripts have run.
const BOOTSTRAP: [&str; 8] = [
    "--variant=minbase",
    "--mode=root",
    "--format=directory",
    "--aptopt=APT::Install-Recommends \"false\"",
    "--aptopt=Acquire::Languages \"none\"",
    "--aptopt=Acquire::Retries \"2\"",
    "--dpkgopt=path-exclude=/usr/share/*/man/*",
    "--dpkgopt=force-unsafe-io",
];

const SERVICE: &str = include_str!("guest/tests.service");
const CUSTOMIZE: &str = include_str!("guest/customize.sh");
const SCRIPT: &str = include_str!("guest/tests.sh");

/// The system disk, with the kernel beside it.
pub(crate) struct Base(PathBuf);

impl Base {
    pub(crate) fn root(&self) -> PathBuf {
        self.0.join("root.ext4")
    }

    pub(crate) fn kernel(&self) -> PathBuf {
        self.0.join("vmlinuz")
    }

    pub(crate) fn initrd(&self) -> PathBuf {
        self.0.join("initrd")
    }

    /// That of the recipe, made if it is not there; others are removed.
    pub(crate) fn provide(place: &Path) -> Self {
        let parts = [SUITE, PACKAGES, SERVICE, CUSTOMIZE];
        let recipe = [&parts[..], &BOOTSTRAP].concat().join("\0");
        let base = Self(place.join(Digest::of(recipe.as_bytes()).to_string()));
        if base.0.exists() {
            return base;
        }
        for old in place::entries(place).unwrap() {
            place::remove(&old).unwrap();
        }
        let shop = place::partial_directory(place).unwrap();
        base.make(shop.path());
        base
    }

    /// Makes it in a directory that the programs see as their workshop.
    fn make(&self, shop: &Path) {
        // The user `_apt` has to pass through.
        fs::set_permissions(shop, Permissions::from_mode(0o755)).unwrap();
        fs::write(shop.join("customize.sh"), CUSTOMIZE).unwrap();
        fs::write(shop.join("tests.service"), SERVICE).unwrap();
        let made = shop.join("made");
        fs::create_dir(&made).unwrap();
        bootstrap(shop);
        make_file_system(&shop.join("tree"), &made.join("root.ext4"), "2G");
        say(&format!("its system is kept in `{}`", self.0.display()));
        place::publish_directory(&made, &self.0).unwrap();
    }
}

/// Makes the tree of the system, from the first of the host's mirrors that has it.
fn bootstrap(shop: &Path) {
    let proxy = std::env::var_os("http_proxy").and_then(|proxy| proxy.into_string().ok());
    let sources = Sources::of_system(proxy).unwrap();
    let security = sources.security.first().expect("a security archive");
    let mut failures = Vec::new();
    for mirror in &sources.mirrors {
        say(&format!(
            "making a Debian 12 in about a minute, from {mirror}"
        ));
        let mut command = apt::in_workshop(shop, "mmdebstrap", &sources);
        command.args(BOOTSTRAP).arg(PACKAGES);
        command.arg(format!(
            "--customize-hook=sh {WORKSHOP}/customize.sh \"$1\" {WORKSHOP}"
        ));
        command.args([SUITE, &format!("{WORKSHOP}/tree")]);
        command.args(sources.lines(SUITE, mirror, security));
        match process::run_while_we_live(&mut command) {
            Ok(_) => return,
            Err(error) => failures.push(error.to_string()),
        }
        place::remove(&shop.join("tree")).unwrap();
    }
    panic!("no mirror has it: {failures:?}");
}

/// Makes an ext4 file system that holds what a directory holds. There is no journal: nothing that is
/// written to it is kept.
fn make_file_system(directory: &Path, image: &Path, size: &str) {
    let mut command = process::program("mkfs.ext4");
    command.args(["-q", "-F", "-O", "^has_journal", "-d"]);
    command.arg(directory).arg(image).arg(size);
    process::run(&mut command).unwrap();
}

/// Makes the disk with the tests and all that they need: `run/tests.ext4`.
pub(crate) fn make_tests(run: &Path, state: &Path) {
    let disk = run.join("tests");
    let built = built();
    let executable = |name: &str| {
        let path = built.get(name);
        path.unwrap_or_else(|| panic!("cargo built no `{name}`"))
    };
    for directory in ["", "programs", "lists"] {
        place::directory(&disk.join(directory)).unwrap();
    }
    fs::write(disk.join("tests.sh"), SCRIPT).unwrap();
    let command = executable("tako-vm");
    fs::copy(command, disk.join("tako-vm")).unwrap();
    fs::write(disk.join("command"), command.as_os_str().as_encoded_bytes()).unwrap();
    for list in &LISTS {
        let program = disk.join("programs").join(list.program);
        fs::copy(executable(list.program), program).unwrap();
        fs::write(disk.join("lists").join(list.program), list.tests.join("\n")).unwrap();
    }
    copy_state(state, &disk.join("state"));
    make_file_system(&disk, &run.join("tests.ext4"), "1G");
}

/// Copies what sandboxes are made of: the image and runsc.
fn copy_state(from: &Path, to: &Path) {
    place::directory(to).unwrap();
    let mut command = process::program("cp");
    command
        .arg("--archive")
        .args([from.join("images"), from.join("runsc")]);
    process::run(command.arg(to)).unwrap();
}

/// The test programs and `tako-vm`, by name. They have been built by whoever built this test, with the
/// same arguments, so that cargo has nothing to do but to tell where they are.
fn built() -> BTreeMap<String, PathBuf> {
    let mut command = process::program(env!("CARGO"));
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    let of_ours = [
        "PATH",
        "HOME",
        "CARGO_HOME",
        "RUSTUP_HOME",
        "RUSTUP_TOOLCHAIN",
        "CARGO_TARGET_DIR",
    ];
    for name in of_ours {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    command.args(["test", "--locked", "--offline", "--workspace", "--no-run"]);
    command.arg("--message-format=json");
    for list in &LISTS {
        command.args(["--test", list.program]);
    }
    let printed = process::run(&mut command).unwrap();
    let messages = printed
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let executable = |message: Value| {
        let path = message["executable"].as_str()?;
        Some((message["target"]["name"].as_str()?.to_owned(), path.into()))
    };
    messages.filter_map(executable).collect()
}
