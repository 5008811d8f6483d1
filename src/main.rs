//! The `tako-vm` command.

use clap::{Parser, Subcommand};
use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;
use tako_vm::cli::{image, one_line, setup};

/// Runs untrusted Python in single-use gVisor sandboxes
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Setup(setup::Arguments),
    Image(image::Arguments),
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Setup(arguments) => {
            setup::run(&arguments).map_or_else(|e| fail(&e, e.hint()), |()| ExitCode::SUCCESS)
        }
        Command::Image(arguments) => {
            image::run(&arguments).map_or_else(|e| fail(&e, e.hint()), |()| ExitCode::SUCCESS)
        }
    }
}

fn fail(error: &dyn Error, hint: Option<String>) -> ExitCode {
    let hint = hint
        .map(|hint| format!("hint: {hint}\n"))
        .unwrap_or_default();
    let message = format!("error: {}\n{hint}", one_line(error));
    // Where even stderr is closed, the exit code has to do.
    io::stderr().write_all(message.as_bytes()).ok();
    ExitCode::from(125)
}
