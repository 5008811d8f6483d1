//! The command line: one file per subcommand.

pub mod bench;
mod dev;
mod doctor;
mod image;
mod output;
mod run;
mod server;
mod setup;
mod supervisor;
mod supervisor_status;
mod unprivileged;

use crate::client;
use crate::config::{self, Config};
use crate::job::one_line;
use crate::sys::privilege;
use clap::{Parser, Subcommand};
use std::error::Error;
use std::io::{self, Write};
use std::path::{self, PathBuf};
use tokio::runtime::{self, Runtime};

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
    /// Where images, runsc and sandboxes lie [default: /var/lib/tako-vm]
    #[arg(long, global = true, value_name = "DIR", env = config::STATE_DIR_VARIABLE)]
    state_dir: Option<PathBuf>,
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
    Supervisor(supervisor::Arguments),
    Server(server::Arguments),
    Dev(dev::Arguments),
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

    /// What the library could not do.
    fn library(error: &client::Error) -> Self {
        Self {
            hint: error.hint().map(str::to_owned),
            status: match error {
                client::Error::Job(_) => USAGE,
                _ => FAILED,
            },
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

fn require_root(command: &str) -> Result<(), Failure> {
    privilege::require_root().map_err(|error| Failure {
        line: format!("cannot run `tako-vm {command}`: {}", one_line(&error)),
        hint: Some(format!("run it as root: `sudo tako-vm {command}`")),
        status: FAILED,
    })
}

/// Runs a command; returns the exit status.
pub fn main(command: Command) -> u8 {
    match dispatch(command) {
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

fn dispatch(command: Command) -> Result<u8, Failure> {
    let Command {
        state_dir,
        config: file,
        subcommand,
    } = command;
    let file = file.as_deref();
    // Whatever is wrong with it is for the doctor to tell, and stops every other command.
    let config = || Config::load(file).map_err(|error| Failure::ours(&error));
    match subcommand {
        Subcommands::Run(arguments) => run::run(&arguments, state_dir, file),
        Subcommands::Supervisor(arguments) => match &arguments.command {
            Some(supervisor::Command::Status(status)) => {
                small_runtime()?.block_on(supervisor_status::run(status, &arguments.socket))
            }
            None => {
                let (state_dir, config) = (absolute(state_dir)?, config()?);
                let staged = supervisor::stage(&state_dir, &config);
                full_runtime()?
                    .block_on(supervisor::serve(&arguments, &state_dir, &config, staged))?;
                Ok(0)
            }
        },
        Subcommands::Dev(arguments) => dev::run(&arguments, file),
        Subcommands::Server(arguments) => server::run(&arguments, state_dir, file),
        Subcommands::Doctor(arguments) => {
            let (state_dir, config) = (absolute(state_dir)?, Config::load(file));
            full_runtime()?.block_on(doctor::run(&arguments, &state_dir, file, &config))
        }
        Subcommands::Bench(arguments) => {
            full_runtime()?.block_on(bench::run(&arguments, state_dir, file))
        }
        Subcommands::Setup(arguments) => {
            let (state_dir, config) = (absolute(state_dir)?, config()?);
            require_root("setup")?;
            block(|| setup::run(&arguments, &state_dir, &config))?.map_err(|error| Failure {
                hint: error.hint(),
                ..Failure::ours(&error)
            })?;
            Ok(0)
        }
        Subcommands::Image(arguments) => {
            let state_dir = absolute(state_dir)?;
            config()?;
            require_root("image")?;
            block(|| image::run(&arguments, &state_dir))?.map_err(|error| Failure {
                hint: error.hint(),
                ..Failure::ours(&error)
            })?;
            Ok(0)
        }
    }
}

/// Runs code that downloads, builds and waits for other programs.
fn block<T>(command: impl FnOnce() -> T) -> Result<T, Failure> {
    Ok(full_runtime()?.block_on(async { tokio::task::block_in_place(command) }))
}

/// The state directory, also for the programs that we start, which run elsewhere.
fn absolute(state_dir: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let state_dir = state_dir.unwrap_or_else(|| config::DEFAULT_STATE_DIR.into());
    path::absolute(&state_dir)
        .map_err(|error| Failure::io("cannot find out where the state directory is", &error))
}

/// For a command that only talks to a supervisor: threads would take longer than what it does.
fn small_runtime() -> Result<Runtime, Failure> {
    started(&mut runtime::Builder::new_current_thread())
}

/// For a command that does the work itself.
fn full_runtime() -> Result<Runtime, Failure> {
    started(runtime::Builder::new_multi_thread().worker_threads(2))
}

fn started(builder: &mut runtime::Builder) -> Result<Runtime, Failure> {
    let built = builder.enable_all().build();
    built.map_err(|error| Failure::io("cannot start the runtime", &error))
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
