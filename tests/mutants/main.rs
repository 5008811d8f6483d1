//! Mutants: the product with one control taken out, each a patch in this directory. Each must make
//! the test fail that its header names; `README.md` tells how to write one.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test reports by panicking, and tells what it is at"
)]

mod workshop;

use std::fs;
use std::path::{Path, PathBuf};
use tako_vm::sys::process;
use workshop::Workshop;

/// A patch and its header.
struct Mutant {
    patch: PathBuf,
    text: String,
}

impl Mutant {
    fn name(&self) -> String {
        self.patch
            .file_stem()
            .unwrap()
            .to_string_lossy()
            .into_owned()
    }

    /// A line `key: value` of the header.
    fn field(&self, key: &str) -> &str {
        let header = self.text.split("\n--- ").next().unwrap();
        header
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
            .unwrap_or_else(|| panic!("`{}` has no line `{key}: …`", self.patch.display()))
    }

    /// Whether every test run makes it, or the soak alone.
    fn is_cheap(&self) -> bool {
        match self.field("Run") {
            "make test" => true,
            "make soak" => false,
            other => panic!("`{}` says `Run: {other}`", self.patch.display()),
        }
    }

    /// Whether it changes what is inside an image.
    fn changes_the_guest(&self) -> bool {
        self.text.contains("\n+++ b/rootfs/")
    }
}

fn mutants() -> Vec<Mutant> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mutants");
    let mut mutants: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "patch")
        })
        .map(|patch| Mutant {
            text: fs::read_to_string(&patch).unwrap(),
            patch,
        })
        .collect();
    mutants.sort_by_key(Mutant::name);
    mutants
}

#[test]
fn every_header_is_complete_and_two_mutants_are_made_in_every_test_run() {
    let mutants = mutants();
    for mutant in &mutants {
        for key in ["Mutant", "Test", "Fails with"] {
            assert!(!mutant.field(key).is_empty());
        }
    }
    assert_eq!(mutants.iter().filter(|mutant| mutant.is_cheap()).count(), 2);
}

#[test]
#[ignore = "needs patch, which `make test` installs"]
fn every_patch_applies() {
    for mutant in mutants() {
        let mut patch = process::program("patch");
        patch.args(["--dry-run", "-p1", "-d", env!("CARGO_MANIFEST_DIR"), "-i"]);
        let applied = process::run(patch.arg(&mutant.patch));
        applied.unwrap_or_else(|error| panic!("{}: {error}", mutant.name()));
    }
}

/// Two of them; all of them with `TAKO_VM_MUTANTS=all`, or those whose name contains its value.
#[test]
#[ignore = "needs root and runsc"]
fn a_test_fails_for_every_control_that_is_taken_out() {
    let wanted = std::env::var_os("TAKO_VM_MUTANTS").map(|value| value.into_string().unwrap());
    let is_wanted = |mutant: &Mutant| match wanted.as_deref() {
        None => mutant.is_cheap(),
        Some("all") => true,
        Some(part) => mutant.name().contains(part),
    };
    let mutants: Vec<_> = mutants().into_iter().filter(is_wanted).collect();
    assert!(!mutants.is_empty(), "no mutant is called so");
    let workshop = Workshop::new();
    let survivors: Vec<_> = mutants
        .iter()
        .filter_map(|mutant| attempt(&workshop, mutant))
        .collect();
    assert!(survivors.is_empty(), "\n{}", survivors.join("\n"));
}

/// Makes one mutant and runs its test; what is wrong if that does not fail as it should.
fn attempt(workshop: &Workshop, mutant: &Mutant) -> Option<String> {
    let (name, test) = (mutant.name(), mutant.field("Test"));
    println!("mutant {name}: {}", mutant.field("Mutant"));
    let begun = std::time::Instant::now();
    let said = match workshop.run(&mutant.patch, mutant.changes_the_guest(), test) {
        Ok(said) => said,
        Err(problem) => return Some(format!("mutant {name}: {problem}")),
    };
    let (_, short) = workshop::program_of(test);
    let verdict = if !said.contains(&format!("test {short} ... FAILED")) {
        format!("mutant {name} survives: `{test}` did not fail:\n{said}")
    } else if !said.contains(mutant.field("Fails with")) {
        let reason = mutant.field("Fails with");
        format!("mutant {name}: `{test}` failed, but without a word of `{reason}`:\n{said}")
    } else {
        println!("mutant {name} is caught by `{test}`, {:?}", begun.elapsed());
        return None;
    };
    Some(verdict)
}
