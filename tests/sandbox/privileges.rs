//! `tako-vm run` as root's own: what it takes, chooses and gives up.

use crate::command::{assert_refused, exclusive, files, text};
use crate::host::{assert_gone, names_in, state_dir};
use crate::invocation::{command, tako_vm};
use serde_json::{Value, json};
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use tako_vm::sys::process;

/// Root's configuration, and nothing that a caller of `tako-vm run` can say.
#[test]
#[ignore = "needs root and runsc"]
fn a_container_is_chosen_by_the_configuration_alone_and_said_so() {
    let state = exclusive();
    let directory = files(&[("config.yaml", b"")]);
    let config = directory.path().join("config.yaml");
    let run = |keys: &str| {
        fs::write(&config, keys).unwrap();
        command(&[
            "--json",
            "-c",
            "print(1)",
            "--config",
            config.to_str().unwrap(),
        ])
        .envs([
            ("TAKO_VM_SECURITY_MODE", "permissive"),
            ("TAKO_VM_CONTAINER_RUNTIME", "runc"),
        ])
        .output()
        .unwrap()
    };
    for (keys, runtime) in [
        ("", "runsc"),
        (
            "security_mode: permissive\ncontainer_runtime: runc\n",
            "runc",
        ),
        (
            "security_mode: permissive\ncontainer_runtime: crun\n",
            "crun",
        ),
    ] {
        let output = run(keys);
        let record: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(record["runtime"], runtime, "{record}");
        assert_eq!(record["status"], "succeeded", "{record}");
        assert_gone(record["execution_id"].as_str().unwrap());
        let warning = match runtime {
            "runsc" => String::new(),
            _ => format!(
                "warning: permissive mode: the program runs in a `{runtime}` container and shares the \
                 kernel of this host, which isolates it less than gVisor does\n"
            ),
        };
        assert_eq!(text(&output.stderr), warning);
    }
    for keys in ["container_runtime: runc", "security_mode: permissive"] {
        let output = run(keys);
        assert_eq!(output.status.code(), Some(125));
        assert!(output.stdout.is_empty());
        assert_eq!(text(&output.stderr).lines().count(), 1);
    }
    for flag in [
        "--runtime",
        "--security-mode",
        "--container-runtime",
        "--permissive",
    ] {
        let output = command(&[flag, "runc", "-c", "print(1)"]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{flag}");
    }
    state.assert_nothing_is_left();
}

#[test]
#[ignore = "needs root and runsc"]
fn without_root_nothing_is_run() {
    let state = exclusive();
    // Where nobody may reach it; by `cp`, since a fork of ours could hold it open for writing.
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let binary = directory.path().join("tako-vm");
    let mut copy = process::program("cp");
    process::run(copy.arg(env!("CARGO_BIN_EXE_tako-vm")).arg(&binary)).unwrap();
    let output = tako_vm(&binary, &["-c", "print(1)"])
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    assert_refused(&output, 125, "root");
    assert!(text(&output.stderr).contains("sudo"), "{output:?}");
    state.assert_nothing_is_left();
}

#[test]
#[ignore = "needs root and runsc"]
fn a_state_directory_may_be_named_from_where_one_is() {
    let state = exclusive();
    let directory = state_dir();
    let mut command = process::program(env!("CARGO_BIN_EXE_tako-vm"));
    command.args(["run", "-c", "print(1)", "--state-dir"]);
    command.arg(directory.file_name().unwrap());
    command.current_dir(directory.parent().unwrap());
    assert_eq!(process::run(&mut command).unwrap().stdout, "1\n");
    state.assert_nothing_is_left();
}

/// The result is parsed between giving up root and writing the record: a command that cannot write
/// its record has parsed, and must have nothing left to lose. That root is given up *before* the
/// parsing no look from outside can tell.
#[test]
#[ignore = "needs root and runsc"]
fn whoever_has_parsed_a_result_has_no_privileges() {
    let state = exclusive();
    // More than a pipe holds, so that the command waits for us with its record half written.
    let code = "import sys
print('x' * 60000); print('y' * 60000, file=sys.stderr)
open('/output/result.json', 'w').write('[1]')";
    let mut child = command(&["--json", "-c", code])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 1];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut first).unwrap();
    let tasks = format!("/proc/{}/task", child.id());
    for task in names_in(Path::new(&tasks)) {
        let status = fs::read_to_string(format!("{tasks}/{task}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace()
                .skip(1)
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert!(!field("Uid:").split(' ').any(|id| id == "0"), "{status}");
        assert!(!field("Gid:").split(' ').any(|id| id == "0"), "{status}");
        assert_eq!(field("Groups:"), "");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(field(set), "0000000000000000", "{set}");
        }
    }
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).unwrap();
    let record: Value = serde_json::from_slice(&[&first, rest.as_slice()].concat()).unwrap();
    assert_eq!(record["output"], json!([1]));
    assert!(child.wait().unwrap().success());
    state.assert_nothing_is_left();
}
