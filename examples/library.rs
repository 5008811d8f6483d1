//! An agent's tool: runs a program that a model wrote and tells the model how it went.
//!
//! Needs a host that `tako-vm setup` has prepared, and root:
//! `cargo build --example library && sudo target/debug/examples/library`.
#![expect(clippy::print_stdout, reason = "a program for people at a terminal")]

use serde_json::json;
use std::time::Duration;
use tako_vm::{Error, Event, Job, Sandbox, Termination};

/// What the model is told of a program.
async fn tool(sandbox: &Sandbox, code: &str) -> Result<String, Error> {
    let done = sandbox
        .run(Job::new(code).input(json!({ "rows": [3, 1, 2] })))
        .await?;
    Ok(match done.termination() {
        Termination::Exited(0) => done.stdout(),
        Termination::TimedOut(_) => "It took too long. Find a faster way.".to_owned(),
        Termination::OutOfMemory => "It needs too much memory. Read less at once.".to_owned(),
        _ => format!("It failed:\n{}", done.stderr()),
    })
}

/// Shows output as it comes, and ends the program after so many lines.
async fn watch(sandbox: &Sandbox, code: &str, lines: usize) -> Result<Termination, Error> {
    let mut running = sandbox.start(code).await?;
    let mut seen = 0;
    while seen < lines
        && let Some(Event::Stdout(bytes) | Event::Stderr(bytes)) = running.next().await
    {
        // A program's bytes: a terminal would have to be protected from them.
        let shown = String::from_utf8_lossy(&bytes);
        seen += shown.matches('\n').count();
        print!("{shown}");
    }
    running.cancel();
    Ok(running.wait().await?.termination().clone())
}

/// Runs three programs: one that works, one that fails, one without end.
///
/// # Errors
/// When Tako VM itself fails.
#[tokio::main]
pub(crate) async fn main() -> Result<(), Error> {
    let sandbox = Sandbox::builder()
        .timeout(Duration::from_secs(10))
        .memory_bytes(256 << 20)
        .build()?;
    let sorts = "import json; print(sorted(json.load(open('/input/data.json'))['rows']))";
    println!("{}", tool(&sandbox, sorts).await?);
    println!("{}", tool(&sandbox, "print(undefined)").await?);
    let counts = "import itertools, time\nfor n in itertools.count(): print(n); time.sleep(0.1)";
    println!("{:?}", watch(&sandbox, counts, 3).await?);
    Ok(())
}
