//! `tako-vm dev`: a PostgreSQL to develop with, which goes on when the command has ended.

use super::unprivileged::{self, Unprivileged};
use super::{Failure, full_runtime};
use crate::config::{self, Overrides, Server};
use crate::postgres::{Place, Postgres};
use crate::sys::{place, privilege, process};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

/// What the keeper says on standard output when it takes connections.
const READY: &str = "ready";

/// How long whoever connects to the keeper may take to say what he wants.
const WORD: Duration = Duration::from_secs(2);

/// How long the keeper may take to end its database.
const ANSWER: Duration = Duration::from_mins(1);

/// Start, look at and end a PostgreSQL for development
///
/// It needs no configuration and goes on until `down`. `tako-vm server` has a database of its own without
/// it; this one is for several servers on this host, or for programs that look at the tables.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Where it lies, below `dev`
    #[arg(long, global = true, value_name = "DIR", env = config::DATA_DIR_VARIABLE)]
    data_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Subcommand)]
enum Command {
    /// Start it, and say how it is reached
    Up,
    /// Say whether it runs, and how it is reached; the exit status is 1 if it does not
    Status,
    /// End it; what is in it stays
    Down,
    /// Keep it until told otherwise
    #[command(hide = true)]
    Keep,
}

impl Command {
    fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Status => "status",
            Self::Down => "down",
            Self::Keep => "keep",
        }
    }
}

/// Runs a command; as root in a process of the user that the server has.
pub(super) fn run(arguments: &Arguments, file: Option<&Path>) -> Result<u8, Failure> {
    let overrides = Overrides {
        data_dir: arguments.data_dir.clone(),
        ..Overrides::default()
    };
    if privilege::require_none().is_err() {
        super::require_root("dev")?;
        let user = Unprivileged::prepare(overrides, file)?;
        let command = user.command(&["dev", arguments.command.name()], file);
        return full_runtime()?.block_on(async { user.start(command)?.attend().await });
    }
    let config = Server::load(file, overrides);
    let config = config.map_err(|error| Failure::usage(&error))?;
    let data = unprivileged::data_dir(&config)?;
    let place = Place {
        directory: data.join("dev"),
        sockets: data.join("dev/run"),
    };
    match arguments.command {
        Command::Up => up(&place, &data),
        Command::Status => Ok(status(&place)),
        Command::Down => down(&place),
        Command::Keep => {
            full_runtime()?.block_on(keep(place))?;
            Ok(0)
        }
    }
}

fn control(place: &Place) -> PathBuf {
    place.sockets.join("control")
}

/// Asks the keeper; `None` where there is none.
fn ask(place: &Place, word: &str) -> io::Result<Option<String>> {
    let mut stream = match UnixStream::connect(control(place)) {
        Ok(stream) => stream,
        Err(error)
            if [ErrorKind::NotFound, ErrorKind::ConnectionRefused].contains(&error.kind()) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    stream.set_read_timeout(Some(ANSWER))?;
    stream.write_all(word.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(Some(answer))
}

fn say(line: &str) {
    // Nobody need read it.
    drop(writeln!(io::stdout(), "{line}"));
}

fn say_how(url: &str) {
    say(&format!("PostgreSQL runs: {url}"));
    say(&format!(
        "  for a server: export {}='{url}'",
        config::DATABASE_URL_VARIABLE
    ));
}

fn up(place: &Place, data: &Path) -> Result<u8, Failure> {
    let cannot = |error: &io::Error| Failure::io("cannot start PostgreSQL", error);
    if let Some(url) = ask(place, "status").map_err(|error| cannot(&error))? {
        say_how(&url);
        return Ok(0);
    }
    say("starting PostgreSQL, which is made the first time");
    let mut command = process::program("/proc/self/exe");
    command.args(["dev", "keep", "--data-dir"]).arg(data);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = process::spawn_detached(&mut command).map_err(|error| cannot(&error))?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        let mut stdout = BufReader::new(stdout);
        stdout
            .read_line(&mut line)
            .map_err(|error| cannot(&error))?;
    }
    if line.trim() != READY {
        // It has said why, and has ended.
        if let Some(mut stderr) = child.stderr.take() {
            let copied = io::copy(&mut stderr, &mut io::stderr());
            copied.map_err(|error| cannot(&error))?;
        }
        return Ok(super::FAILED);
    }
    Ok(status(place))
}

fn status(place: &Place) -> u8 {
    if let Ok(Some(url)) = ask(place, "status") {
        say_how(&url);
        return 0;
    }
    say("PostgreSQL does not run: start it with `tako-vm dev up`");
    1
}

fn down(place: &Place) -> Result<u8, Failure> {
    let asked = ask(place, "down");
    let answer = asked.map_err(|error| Failure::io("cannot end PostgreSQL", &error))?;
    say(match answer {
        None => "PostgreSQL does not run",
        Some(_) => "PostgreSQL has ended; what is in it stays",
    });
    Ok(0)
}

/// Has the database run until somebody says `down`, it ends by itself, or a signal comes.
async fn keep(place: Place) -> Result<(), Failure> {
    let failed = |error: &io::Error| Failure::io("cannot listen for `tako-vm dev`", error);
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate()).map_err(|error| failed(&error))?,
        signal(SignalKind::interrupt()).map_err(|error| failed(&error))?,
    );
    place::directory(&place.sockets).map_err(|error| Failure::ours(&error))?;
    let path = control(&place);
    let started = tokio::task::block_in_place(|| Postgres::start(place));
    let postgres = started.map_err(|error| Failure::ours(&error))?;
    // Of a keeper that was killed: the lock of the database is ours.
    place::remove(&path).map_err(|error| Failure::ours(&error))?;
    let listener = UnixListener::bind(&path).map_err(|error| failed(&error))?;
    say(READY);
    let url = postgres.url();
    let who = tokio::select! {
        who = until_down(&listener, &url) => Some(who),
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        _ = postgres.ended() => None,
    };
    let stopped = tokio::task::block_in_place(|| postgres.stop());
    place::remove(&path).map_err(|error| Failure::ours(&error))?;
    if let Some(mut who) = who {
        // Whoever asked may have gone.
        drop(who.write_all(b"ended").await);
    }
    stopped.map_err(|error| Failure::ours(&error))
}

/// Answers until somebody wants it to end.
async fn until_down(listener: &UnixListener, url: &str) -> tokio::net::UnixStream {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            tokio::time::sleep(WORD).await;
            continue;
        };
        let mut word = String::new();
        let heard = timeout(WORD, (&mut stream).take(16).read_to_string(&mut word)).await;
        match (heard, word.as_str()) {
            (Ok(Ok(_)), "down") => return stream,
            (Ok(Ok(_)), "status") => drop(stream.write_all(url.as_bytes()).await),
            _ => {}
        }
    }
}
