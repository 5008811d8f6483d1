//! Group G: what a program can learn of the host.

use crate::attack::{Attack, SUCCEEDED, signalled};
use crate::golden::assert_golden;
use crate::host::{names_in, state_dir};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use tako_vm::sys::process;

/// Takes a fact out, which is not the same in every sandbox.
fn take(facts: &mut Value, name: &str) -> Value {
    facts.as_object_mut().unwrap().remove(name).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn g1_to_g12_a_program_sees_these_facts_and_no_others() {
    let program = include_str!("programs/facts.py");
    let [one, other] = [
        Attack::new("G", program).ends(&SUCCEEDED).await,
        Attack::new("G again", program).ends(&SUCCEEDED).await,
    ];
    let mut boots = vec![fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap()];
    for ended in [one, other] {
        let mut facts = ended.json();
        boots.push(take(&mut facts, "boot id").to_string());
        // The wall clock is the host's, and is no secret.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let late = now.as_secs_f64() - take(&mut facts, "clock").as_f64().unwrap();
        assert!((-1.0..20.0).contains(&late), "{late}");
        assert_golden(
            "golden/facts.json",
            include_str!("golden/facts.json"),
            &facts,
        );
    }
    boots.dedup();
    assert_eq!(boots.len(), 3, "every sandbox has a boot of its own");
}

/// The command, with a secret in its environment, its directory and a descriptor that it inherits.
#[test]
#[ignore = "needs root and runsc"]
fn g1_what_the_command_was_started_with_does_not_reach_the_program() {
    let secret = hex::encode(rand::random::<[u8; 16]>());
    let directory = tempfile::Builder::new()
        .prefix(&format!("cwd-{secret}-"))
        .tempdir()
        .unwrap();
    let program = "
import glob, os
for path in glob.glob('/proc/[0-9]*/*') + glob.glob('/proc/*') + glob.glob('/proc/[0-9]*/fd/*'):
    try:
        print(path, os.readlink(path) if os.path.islink(path) else open(path, 'rb').read(1 << 16))
    except (OSError, UnicodeError): pass
";
    let mut command = process::program(env!("CARGO_BIN_EXE_tako-vm"));
    command
        .args(["run", "--json", "-c", program, "--state-dir"])
        .arg(state_dir())
        .env("TAKO_VM_DECOY", &secret)
        .env("LD_LIBRARY_PATH", format!("/{secret}"))
        .current_dir(directory.path());
    let record = process::run(&mut command).unwrap().stdout;
    assert!(record.contains(r#""status":"succeeded""#), "{record}");
    assert!(
        record.contains("/proc/1/environ"),
        "it has looked: {record}"
    );
    assert!(!record.contains(&secret), "{record}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn g12_a_crash_leaves_no_core_anywhere() {
    let places = ["/", "/var/lib/systemd/coredump", "/var/crash", "."];
    let cores = || {
        let places = places.iter().filter(|place| Path::new(place).is_dir());
        let names = places.flat_map(|place| names_in(Path::new(place)));
        names
            .filter(|name| name.contains("core"))
            .collect::<Vec<_>>()
    };
    let before = cores();
    let program = "
import ctypes, os, resource
for limit in ((1 << 30, 1 << 30), (0, 0)):
    try: resource.setrlimit(resource.RLIMIT_CORE, limit)
    except ValueError: pass
os.chdir('/output')
ctypes.string_at(0)
";
    let ended = Attack::new("G12", program)
        .ends(&signalled(11, "segfault"))
        .await;
    assert!(ended.files.is_empty(), "{:?}", ended.names());
    assert_eq!(cores(), before);
}
