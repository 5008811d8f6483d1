//! Who may name whom: the table of `docs/architecture.md`, held against the `crate::` paths of `src`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each module and those of ours that it may name.
const MAY_NAME: &[(&str, &[&str])] = &[
    ("job", &[]),
    ("sys", &[]),
    ("config", &["job", "runc"]),
    ("store", &["job"]),
    ("postgres", &["sys"]),
    ("image", &["sys"]),
    ("runsc", &["sys"]),
    ("runc", &["sys"]),
    ("bundle", &["job"]),
    (
        "sandbox",
        &["job", "sys", "bundle", "runsc", "runc", "image"],
    ),
    ("supervisor", &["job", "sys", "image", "sandbox"]),
    ("dispatch", &["job", "store", "supervisor"]),
    ("api", &["job", "config", "store", "dispatch"]),
    (
        "client",
        &[
            "job",
            "sys",
            "config",
            "image",
            "runsc",
            "runc",
            "sandbox",
            "supervisor",
        ],
    ),
    (
        "cli",
        &[
            "job",
            "sys",
            "config",
            "image",
            "runsc",
            "runc",
            "bundle",
            "sandbox",
            "supervisor",
            "client",
            "store",
            "postgres",
            "dispatch",
            "api",
        ],
    ),
];

/// Names that say nothing of what a module is for.
const EMPTY_NAMES: [&str; 7] = [
    "utils", "util", "common", "helpers", "manager", "misc", "error",
];

fn source_files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| {
            if path.is_dir() {
                source_files(&path)
            } else {
                vec![path]
            }
        })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

/// The first names behind every `crate::` in the text: also those in `crate::{a, b::c}`.
fn named_modules(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for behind in text.split("crate::").skip(1) {
        let is_name = |letter: char| letter.is_alphanumeric() || letter == '_';
        let group = behind.strip_prefix('{').map(first_of_each);
        let single = || {
            vec![
                behind
                    .chars()
                    .take_while(|&letter| is_name(letter))
                    .collect(),
            ]
        };
        names.extend(group.unwrap_or_else(single));
    }
    names
}

/// `a, b::{c, d}}…` has the first names `a` and `b`.
fn first_of_each(group: &str) -> Vec<String> {
    let (mut depth, mut items) = (0, vec![String::new()]);
    for letter in group.chars() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => items.push(String::new()),
            _ if depth == 0 => items.last_mut().unwrap().push(letter),
            _ => {}
        }
    }
    items
        .iter()
        .map(|item| item.trim().split("::").next().unwrap().trim().to_owned())
        .collect()
}

fn edges() -> BTreeMap<String, BTreeSet<String>> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let known: BTreeSet<_> = MAY_NAME
        .iter()
        .map(|(module, _)| (*module).to_owned())
        .collect();
    let mut edges = BTreeMap::<String, BTreeSet<String>>::new();
    for (module, _) in MAY_NAME {
        for file in source_files(&source.join(module)) {
            let named = named_modules(&fs::read_to_string(&file).unwrap());
            let others = named
                .into_iter()
                .filter(|name| name != module && known.contains(name));
            edges
                .entry((*module).to_owned())
                .or_default()
                .extend(others);
        }
    }
    edges
}

#[test]
fn no_module_names_one_that_the_table_does_not_allow() {
    for (module, named) in edges() {
        let (_, allowed) = MAY_NAME.iter().find(|(name, _)| *name == module).unwrap();
        for name in named {
            assert!(
                allowed.contains(&name.as_str()),
                "`{module}` names `{name}`"
            );
        }
    }
}

#[test]
fn the_table_has_every_module() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for entry in fs::read_dir(source).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let known = MAY_NAME.iter().any(|(module, _)| *module == name);
        assert!(
            known || name == "lib.rs" || name == "main.rs",
            "`{name}` is not in the table"
        );
    }
}

#[test]
fn no_module_has_a_name_that_says_nothing() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for file in source_files(&source) {
        let stem = file.file_stem().unwrap().to_str().unwrap();
        assert!(!EMPTY_NAMES.contains(&stem), "{}", file.display());
    }
}

/// A program that only talks to a supervisor must not need what the supervisor itself does.
#[test]
fn the_supervisors_client_half_names_nothing_but_the_vocabulary() {
    let supervisor = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/supervisor");
    for file in ["connection/mod.rs", "wire.rs"] {
        let named = named_modules(&fs::read_to_string(supervisor.join(file)).unwrap());
        assert_eq!(named, BTreeSet::from(["job".to_owned()]), "{file}");
    }
}

#[test]
fn the_guest_library_knows_nothing_of_the_host() {
    let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("rootfs/guest");
    for file in source_files(&guest.join("src")) {
        assert!(
            !fs::read_to_string(&file).unwrap().contains("tako_vm::"),
            "{}",
            file.display()
        );
    }
}

#[test]
fn the_reader_of_paths_sees_every_form() {
    let text = "use crate::job::{A, B}; crate::sys::x(); use crate::{bundle, runsc::{C, D}, Foo};";
    let expected = ["Foo", "bundle", "job", "runsc", "sys"].map(str::to_owned);
    assert_eq!(named_modules(text), BTreeSet::from(expected));
}
