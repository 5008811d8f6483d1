//! `tako-vm dev`.

use crate::host::state_dir;
use crate::process::{Options, Server, assert_nothing_of, ground, kill};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::fs;
use std::path::Path;

/// Runs a subcommand; gives its exit status and what it printed.
fn dev(data: &Path, word: &str) -> (Option<i32>, String) {
    let output = tako_vm::sys::process::program(env!("CARGO_BIN_EXE_tako-vm"))
        .env("TAKO_VM_STATE_DIR", state_dir())
        .args(["dev", word, "--data-dir"])
        .arg(data)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

fn url(said: &str) -> String {
    let (_, rest) = said.split_once("export TAKO_VM_DATABASE_URL='").unwrap();
    rest.split('\'').next().unwrap().to_owned()
}

#[test]
#[ignore = "needs root and runsc"]
fn a_database_to_develop_with_goes_on_until_it_is_ended() {
    let ground = ground();
    let data = ground.path().join("data");
    let (code, said) = dev(&data, "status");
    assert_eq!(code, Some(1), "{said}");
    let (code, said) = dev(&data, "up");
    assert_eq!(code, Some(0), "{said}");
    let reached_at = url(&said);
    let (code, said) = dev(&data, "up");
    assert_eq!((code, url(&said)), (Some(0), reached_at.clone()), "{said}");

    let options = Options {
        name: "server",
        database_url: Some(reached_at.clone()),
        ..Options::default()
    };
    let server = Server::start(ground.path(), &options);
    let (status, ran) = server.post("/execute", &serde_json::json!({"code": "print(1)"}));
    assert_eq!(
        (status, &ran["stdout"]),
        (200, &serde_json::json!("1\n")),
        "{ran}"
    );
    server.stop();

    // Of one that was killed, the next takes over.
    let pid = fs::read_to_string(data.join("dev/data/postmaster.pid")).unwrap();
    let pid: i32 = pid.lines().next().unwrap().parse().unwrap();
    let keeper = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = keeper.rsplit_once(") ").unwrap();
    let keeper = rest.split(' ').nth(1).unwrap().parse().unwrap();
    kill(Pid::from_raw(keeper), Signal::SIGKILL);
    let (code, said) = dev(&data, "up");
    assert_eq!((code, url(&said)), (Some(0), reached_at), "{said}");

    let (code, said) = dev(&data, "down");
    assert_eq!(code, Some(0), "{said}");
    assert_nothing_of(&data);
    let (code, said) = dev(&data, "down");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("does not run"), "{said}");
}
