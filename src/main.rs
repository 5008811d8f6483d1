//! The `tako-vm` command.

use clap::Parser;
use std::process::ExitCode;
use tako_vm::cli;

fn main() -> ExitCode {
    cli::main(cli::Command::parse()).into()
}
