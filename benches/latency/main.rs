//! How long a sandbox takes to run a program and to die, against other ways to run the same program:
//! `make bench`, or `cargo bench --bench latency -- --help`.
//!
//! Everything is measured in one run and interleaved, since a machine is never twice the same.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for people at a terminal"
)]

mod cold;
mod figures;
mod host;
mod kill;

use anyhow::{Context, bail};
use clap::Parser;
use std::fs;
use std::path::PathBuf;
use tako_vm::config;
use tako_vm::image::Images;
use tako_vm::runsc::provision;

/// Measure cold starts and kills
#[derive(Debug, Parser)]
struct Arguments {
    /// Rounds of cold starts, every way once in each; 0 leaves them out
    #[arg(long, default_value_t = 60)]
    rounds: usize,
    /// Sandboxes to kill; 0 leaves them out
    #[arg(long, default_value_t = 1000)]
    kills: usize,
    /// Also write everything that was measured as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where images, runsc and sandboxes lie
    #[arg(long, value_name = "DIR", env = config::STATE_DIR_VARIABLE, default_value = config::DEFAULT_STATE_DIR)]
    state_dir: PathBuf,
    /// The image's tree as a directory, for plain runsc [default: that of `setup`, else extracted]
    #[arg(long, value_name = "DIR")]
    tree: Option<PathBuf>,
    /// What `cargo bench` says to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is measured.
struct Subject {
    /// The command, built with this benchmark.
    tako_vm: PathBuf,
    state_dir: PathBuf,
    runsc: PathBuf,
    /// The EROFS file of the executor image.
    image: PathBuf,
}

#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    tokio::select! {
        measured = measure(&arguments) => measured,
        // Sandboxes die with the jobs that are let go of here.
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
    }
}

async fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    let subject = subject(arguments)?;
    let host = host::Host::read(&subject.runsc)?;
    println!("{host}");
    let mut report = serde_json::json!({ "host": host });
    if arguments.rounds > 0 {
        let cold = cold::measure(&subject, arguments.tree.as_deref(), arguments.rounds).await?;
        println!("\n{cold}");
        report["cold"] = serde_json::to_value(&cold)?;
    }
    if arguments.kills > 0 {
        let kill = kill::measure(&subject, arguments.kills).await?;
        println!("\n{kill}");
        report["kill"] = serde_json::to_value(&kill)?;
    }
    if let Some(file) = &arguments.json {
        fs::write(file, serde_json::to_vec_pretty(&report)?)
            .with_context(|| format!("cannot write `{}`", file.display()))?;
    }
    Ok(())
}

fn subject(arguments: &Arguments) -> anyhow::Result<Subject> {
    let state_dir = arguments
        .state_dir
        .canonicalize()
        .with_context(|| format!("no state directory `{}`", arguments.state_dir.display()))?;
    let image = Images::at(&state_dir).find("python")?.path;
    let runsc = provision::installed(&state_dir)?.binary;
    Ok(Subject {
        tako_vm: env!("CARGO_BIN_EXE_tako-vm").into(),
        state_dir,
        runsc,
        image,
    })
}
