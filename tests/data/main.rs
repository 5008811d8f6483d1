//! The executor image `data`: what its libraries do in a sandbox, and what they leave alone there.
//! Needs root, `runsc` and the image, which `make setup-data` builds.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test reports by panicking, and so do the functions it is written with"
)]

#[path = "../sandbox/host.rs"]
#[expect(dead_code, reason = "the sandbox tests use all of it")]
mod host;

use host::{Host, Ran, request, runtime_binary, state_dir};
use std::time::Duration;
use tako_vm::image::recipe::{PRELOAD, Recipe};
use tako_vm::image::{Image, Images};
use tako_vm::job::{JobRequest, Limits, Termination};
use tako_vm::sys::process;

fn image() -> Image {
    Images::at(&state_dir())
        .find("data")
        .expect("the state directory has the image `data`: run `make test`")
}

/// Runs a program with the memory that the imports alone do not fill.
async fn run(code: &str) -> Ran {
    let job = request(JobRequest {
        code: code.to_owned(),
        memory_bytes: Some(1 << 30),
        timeout: Some(Duration::from_mins(2)),
        ..JobRequest::default()
    });
    let ran = Host::of(&runtime_binary(), &image().path).run(&job).await;
    let ended = &ran.outcome.termination;
    assert_eq!(*ended, Termination::Exited(0), "{}", ran.stderr());
    ran
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, runsc and an executor image"]
async fn a_table_is_computed_plotted_and_learned_from() {
    let ran = run(include_str!("programs/work.py")).await;
    let found = ran.json();
    assert_eq!(found["means"], serde_json::json!([3.0, 2.0]));
    assert_eq!(found["solved"], true);
    assert!(found["accuracy"].as_f64().unwrap() > 0.9, "{found}");
    assert_eq!(found["backend"], "agg");
    // The signatures of PNG (RFC 2083) and PDF, and the start of an XML document.
    let starts: [(&str, &[u8]); 3] = [
        ("plot.png", b"\x89PNG\r\n\x1a\n"),
        ("plot.svg", b"<?xml"),
        ("plot.pdf", b"%PDF-"),
    ];
    for (name, start) in starts {
        let file = &ran.files[name];
        assert!(file.starts_with(start), "{name}: {} bytes", file.len());
    }
    assert_eq!(ran.stderr(), "");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, runsc and an executor image"]
async fn work_is_spread_over_threads_and_processes_when_a_program_asks_for_it() {
    let found = run(include_str!("programs/parallel.py")).await.json();
    assert_eq!(found, serde_json::json!({"threads": 45, "processes": 45}));
}

/// An interpreter that is held ready may be copied only while it has one thread and nothing open, and
/// its program must not find out that the modules were there before it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, runsc and an executor image"]
async fn imports_start_no_thread_and_leave_nothing_open_or_behind() {
    let found = run(include_str!("programs/traces.py")).await.json();
    assert_eq!(found["before"], found["after"]);
    assert_eq!(found["threads"], 1);
    assert_eq!(found["names_drawn"], false);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, runsc and an executor image"]
async fn no_module_is_compiled_in_a_sandbox() {
    let found = run(include_str!("programs/compiled.py")).await.json();
    assert_eq!(found["compiled"], serde_json::json!([]));
    assert_eq!(found["without"], serde_json::json!([]));
    assert!(found["modules"].as_u64().unwrap() > 500, "{found}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, runsc and an executor image"]
async fn the_image_and_its_manifest_say_which_modules_are_held_ready() {
    let preload = Recipe::data().unwrap().preload;
    let manifest = image().manifest;
    assert_eq!(manifest.preload, preload);
    let ran = run(&format!("print(open('/{PRELOAD}').read(), end='')")).await;
    assert_eq!(ran.stdout().lines().collect::<Vec<_>>(), preload);
    println!(
        "image {} MB, files {} MB, {} packages",
        manifest.size_bytes / 1_000_000,
        manifest.tree_bytes / 1_000_000,
        manifest.packages.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, runsc and an executor image"]
async fn what_is_imported_first_leaves_room_for_the_program_in_the_default_memory() {
    // Two fifths of it at most.
    assert_eq!(Limits::default().memory_bytes, 512 << 20);
    let mut modules = Vec::new();
    for module in Recipe::data().unwrap().preload {
        modules.push(module);
        let imports = modules.join(", ");
        let ran = run(&format!("import {imports}")).await;
        let (usage, timing) = (&ran.outcome.usage, &ran.outcome.timing);
        println!("import {imports}\n  {usage:?}\n  {timing:?}");
        // Measured are 126 MB.
        assert!(usage.max_rss_mb < 200.0, "{usage:?}");
    }
}

#[test]
#[ignore = "needs root, runsc and an executor image"]
fn the_command_runs_a_program_in_the_image() {
    let mut command = process::program(env!("CARGO_BIN_EXE_tako-vm"));
    command
        .arg("--state-dir")
        .arg(state_dir())
        .args(["run", "--image", "data"])
        .args(["-c", "import pandas; print(pandas.Series([1, 2]).sum())"]);
    let printed = process::run(&mut command).unwrap();
    assert_eq!(printed.stdout, "3\n");
    assert_eq!(printed.stderr, "");
}
