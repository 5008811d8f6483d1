//! The command line: one file per subcommand.

pub mod bench;
mod doctor;
mod image;
mod output;
mod run;
mod setup;

use crate::config::{self, Config, ConfigError};
use crate::sys::privilege;
use clap::{Parser, Subcommand};
use std::error::Error;
use std::io::{self, Write};
use std::path::{self, PathBuf};

/// The exit status for our own failures.
const FAILED: u8 = 125;

/// The exit status after SIGINT, SIGTERM or SIGHUP.
const INTERRUPTED: u8 = 130;

/// The exit status for wrong usage.
const USAGE: u8 = 2;

/// The system user that unprivileged parts run as.
const USER: &str = "tako-vm";

/// Run untrusted Python in single-use gVisor sandboxes
#[derive(Debug, Parser)]
#[command(name = "tako-vm", version, max_term_width = 100)]
pub struct Command {
    /// Where images, runsc and sandboxes lie
    #[arg(long, global = true, value_name = "DIR", env = config::STATE_DIR_VARIABLE,
          default_value = config::DEFAULT_STATE_DIR)]
    state_dir: PathBuf,
    /// The configuration of root's; `/etc/tako_vm/config.yaml` if there is one
    #[arg(short = 'C', long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    subcommand: Subcommands,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    Run(run::Arguments),
    Setup(setup::Arguments),
    Doctor(doctor::Arguments),
    Bench(bench::Arguments),
    Image(image::Arguments),
}

/// Why a command failed: one line, and the exit status.
#[derive(Debug)]
pub struct Failure {
    line: String,
    hint: Option<String>,
    status: u8,
}

impl Failure {
    /// Our own failure: the error and its causes.
    fn ours(error: &dyn Error) -> Self {
        Self {
            line: one_line(error),
            hint: None,
            status: FAILED,
        }
    }

    /// What the user gave is wrong: the error and its causes.
    fn usage(error: &dyn Error) -> Self {
        Self {
            status: USAGE,
            ..Self::ours(error)
        }
    }

    /// What the user gave is wrong.
    fn wrong(line: String) -> Self {
        Self {
            line,
            hint: None,
            status: USAGE,
        }
    }

    fn io(doing: &str, error: &io::Error) -> Self {
        Self {
            line: format!("{doing}: {error}"),
            hint: None,
            status: FAILED,
        }
    }
}

/// An error and its causes as one line, outermost first.
fn one_line(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        line = format!("{line}: {inner}");
        cause = inner.source();
    }
    // The output of a failed program, for one, has several lines.
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn require_root(command: &str) -> Result<(), Failure> {
    privilege::require_root().map_err(|error| Failure {
        line: format!("cannot run `tako-vm {command}`: {}", one_line(&error)),
        hint: Some(format!("run it as root: `sudo tako-vm {command}`")),
        status: FAILED,
    })
}

/// Runs a command; returns the exit status.
pub async fn main(command: Command) -> u8 {
    match dispatch(command).await {
        Ok(status) => status,
        Err(failure) => {
            complain(&failure.line);
            if let Some(text) = &failure.hint {
                hint(text);
            }
            failure.status
        }
    }
}

async fn dispatch(command: Command) -> Result<u8, Failure> {
    let Command {
        state_dir,
        config: file,
        subcommand,
    } = command;
    // The programs that we start run elsewhere.
    let state_dir = path::absolute(&state_dir)
        .map_err(|error| Failure::io("cannot find out where the state directory is", &error))?;
    let config = Config::load(file.as_deref());
    // Whatever is wrong with it is for the doctor to tell, and stops every other command.
    let checked = |config: Result<Config, ConfigError>| config.map_err(|e| Failure::ours(&e));
    match subcommand {
        Subcommands::Doctor(arguments) => {
            doctor::run(&arguments, &state_dir, file.as_deref(), &config).await
        }
        Subcommands::Run(arguments) => run::run(arguments, &state_dir, &checked(config)?).await,
        Subcommands::Bench(arguments) => {
            bench::run(&arguments, &state_dir, file.as_deref(), &checked(config)?).await
        }
        Subcommands::Setup(arguments) => {
            let config = checked(config)?;
            require_root("setup")?;
            // Blocking code from here on: it downloads, builds and waits for other programs.
            tokio::task::block_in_place(|| setup::run(&arguments, &state_dir, &config)).map_err(
                |error| Failure {
                    hint: error.hint(),
                    ..Failure::ours(&error)
                },
            )?;
            Ok(0)
        }
        Subcommands::Image(arguments) => {
            checked(config)?;
            require_root("image")?;
            tokio::task::block_in_place(|| image::run(&arguments, &state_dir)).map_err(
                |error| Failure {
                    hint: error.hint(),
                    ..Failure::ours(&error)
                },
            )?;
            Ok(0)
        }
    }
}

fn complain(line: &str) {
    say("error", line);
}

fn warn(line: &str) {
    say("warning", line);
}

fn hint(line: &str) {
    say("hint", line);
}

fn say(kind: &str, line: &str) {
    // Without a standard error there is nobody to tell, and the exit status says it all the same.
    let said = writeln!(io::stderr(), "{kind}: {line}");
    drop(said);
}
