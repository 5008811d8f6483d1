//! The `tako-vm` command.

use clap::Parser;
use std::process::ExitCode;
use tako_vm::cli;

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    cli::main(cli::Command::parse()).await.into()
}
