//! A PostgreSQL of our own, for those who have none: Debian's binaries, a cluster in a directory, a
//! socket that nobody else can reach. It lives as long as whoever started it.
//!
//! ```text
//! DIRECTORY/lock    held by the one process that has the cluster
//!           made    the cluster was made once; without it nothing is ever made again
//!           data/   the cluster
//!           log     what PostgreSQL says
//! SOCKETS/.s.PGSQL.5432
//! ```
//!
//! PostgreSQL refuses to run as root, so this is for a process that is not. Its database users are those
//! of the system (`peer`), and nobody comes in over a network.

mod leftover;

use crate::sys::place::{self, PlaceError};
use crate::sys::process::{self, PidFd, ProcessError};
use nix::unistd::{Uid, User};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Where Debian's packages put PostgreSQL, a directory for each major version.
const INSTALLED: &str = "/usr/lib/postgresql";

/// Name of the database.
const DATABASE: &str = "tako_vm";

/// How long a cluster may take until it takes connections: after a crash it reads its log again, which
/// is at most `max_wal_size` of it.
const READY: Duration = Duration::from_mins(5);

/// How long it may take to end: it writes what it holds in memory.
const END: Duration = Duration::from_secs(30);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// How long a program of PostgreSQL's may take that asks a cluster that is ready, or makes a new one.
const TOOL: Duration = Duration::from_mins(1);

/// Bytes of the log above which a new one is begun.
const MAX_LOG_BYTES: u64 = 10 << 20;

/// Longest path of a socket, in bytes: `sun_path` of unix(7), without the final NUL.
const MAX_SOCKET: usize = 107;

/// What is said on the command line, and so is true whatever the cluster's own files say.
const SETTINGS: [&str; 6] = [
    "listen_addresses=",
    "unix_socket_permissions=0700",
    "fsync=on",
    "full_page_writes=on",
    "max_connections=50",
    "log_line_prefix=%m [%p] ",
];

/// Why there is no database.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
pub enum PostgresError {
    #[error("PostgreSQL does not run as root: run this as another user, or name a database")]
    Root,
    #[error("the user {uid} has no name, by which PostgreSQL would know it")]
    Nameless { uid: u32 },
    #[error(
        "PostgreSQL is not installed: `apt-get install postgresql`, or name a database of your own"
    )]
    NotInstalled,
    #[error(
        "the database in `{}` was made by PostgreSQL {made}, and what is installed is {}: \
         `apt-get install postgresql-{made}`, or move it to the newer version with `pg_upgrade`",
        directory.display(),
        installed.join(", ")
    )]
    Version {
        directory: PathBuf,
        made: String,
        installed: Vec<String>,
    },
    #[error(
        "the database in `{}` is gone: bring it back, or remove `{}` to begin with an empty one",
        directory.display(),
        marker.display()
    )]
    Vanished { directory: PathBuf, marker: PathBuf },
    #[error(
        "another process has the database in `{}`: end it, or name another directory",
        directory.display()
    )]
    Taken { directory: PathBuf },
    #[error("the path `{}` is too long for a socket: name a shorter directory", path.display())]
    SocketPath { path: PathBuf },
    #[error("cannot use the directory of the database")]
    Place(#[from] PlaceError),
    #[error("cannot {doing}")]
    Tool {
        doing: &'static str,
        source: ProcessError,
    },
    #[error("cannot start PostgreSQL")]
    Start { source: io::Error },
    #[error("PostgreSQL has ended while it started ({status}){}", tail(log))]
    Ended { status: String, log: String },
    #[error("PostgreSQL does not take connections after {READY:?}{}", tail(log))]
    NotReady { log: String },
    #[error("cannot end the PostgreSQL that a process that was killed has left")]
    Leftover { source: io::Error },
    #[error("PostgreSQL does not end within {END:?}")]
    DoesNotEnd,
}

/// The last lines of a log.
fn tail(log: &str) -> String {
    let lines: Vec<_> = log.trim_end().lines().rev().take(5).collect();
    lines
        .iter()
        .rev()
        .fold(String::new(), |text, line| text + "\n  " + line)
}

/// Where a cluster lies.
#[derive(Debug, Clone)]
pub struct Place {
    /// For us alone; made if it is missing.
    pub directory: PathBuf,
    /// For its socket: a short path, and like the directory for us alone.
    pub sockets: PathBuf,
}

impl Place {
    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    fn marker(&self) -> PathBuf {
        self.directory.join("made")
    }

    fn log(&self) -> PathBuf {
        self.directory.join("log")
    }

    fn read_log(&self) -> String {
        let log = fs::read(self.log()).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(4096)..]).into_owned()
    }
}

/// A cluster that runs.
#[derive(Debug)]
pub struct Postgres {
    place: Place,
    user: String,
    pid: i32,
    handle: PidFd,
    ended: watch::Receiver<Option<String>>,
    _lock: File,
}

impl Postgres {
    /// Starts the cluster, and makes it if it was never made. Blocks until it takes connections.
    ///
    /// # Errors
    /// [`PostgresError`]; whatever was begun is undone or taken up by the next start.
    pub fn start(place: Place) -> Result<Self, PostgresError> {
        let uid = Uid::effective();
        if uid.is_root() {
            return Err(PostgresError::Root);
        }
        let user = User::from_uid(uid).ok().flatten();
        let user = user
            .ok_or(PostgresError::Nameless { uid: uid.as_raw() })?
            .name;
        let socket = place.sockets.join(".s.PGSQL.5432");
        if socket.as_os_str().len() > MAX_SOCKET {
            return Err(PostgresError::SocketPath { path: socket });
        }
        place::directory(&place.directory)?;
        place::directory(&place.sockets)?;
        let lock = place::try_lock(&place.directory.join("lock"))?;
        let lock = lock.ok_or_else(|| PostgresError::Taken {
            directory: place.directory.clone(),
        })?;
        leftover::end(&place)?;
        let binaries = provide(&place, &user)?;
        let (pid, handle, ended) = spawn(&place, &binaries)?;
        let postgres = Self {
            place,
            user,
            pid,
            handle,
            ended,
            _lock: lock,
        };
        postgres.wait_until_ready(&binaries)?;
        postgres.make_database(&binaries)?;
        Ok(postgres)
    }

    /// The URL of its database, for processes of the same user.
    pub fn url(&self) -> String {
        let sockets = self.place.sockets.display();
        format!(
            "postgresql://{}@localhost/{DATABASE}?host={sockets}",
            self.user
        )
    }

    /// The number of its first process.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits until it has ended, whyever; gives how.
    pub async fn ended(&self) -> String {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(status) => status.clone().unwrap_or_default(),
            Err(_) => "nobody waits for it".to_owned(),
        }
    }

    /// Ends it; all that it was told is on disk then.
    ///
    /// # Errors
    /// [`PostgresError::DoesNotEnd`].
    pub fn stop(self) -> Result<(), PostgresError> {
        // "Fast Shutdown" of PostgreSQL: connections are cut, and everything is written.
        self.handle
            .interrupt()
            .map_err(|source| PostgresError::Leftover { source })?;
        let late = Instant::now() + END;
        while self.ended.borrow().is_none() {
            if Instant::now() > late {
                return Err(PostgresError::DoesNotEnd);
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    fn wait_until_ready(&self, binaries: &Path) -> Result<(), PostgresError> {
        let late = Instant::now() + READY;
        loop {
            if let Some(status) = self.ended.borrow().clone() {
                let log = self.place.read_log();
                return Err(PostgresError::Ended { status, log });
            }
            let mut ask = tool(binaries, "pg_isready");
            ask.arg("--quiet").arg("--host").arg(&self.place.sockets);
            if process::run_within(&mut ask, TOOL).is_ok() {
                return Ok(());
            }
            if Instant::now() > late {
                let log = self.place.read_log();
                return Err(PostgresError::NotReady { log });
            }
            std::thread::sleep(LOOK);
        }
    }

    fn make_database(&self, binaries: &Path) -> Result<(), PostgresError> {
        let mut make = tool(binaries, "createdb");
        make.env("LC_ALL", "C")
            .arg("--host")
            .arg(&self.place.sockets)
            .arg(DATABASE);
        match process::run_within(&mut make, TOOL) {
            Err(ProcessError::Failed { stderr, .. }) if stderr.contains("already exists") => Ok(()),
            Err(source) => Err(PostgresError::Tool {
                doing: "make the database",
                source,
            }),
            Ok(_) => Ok(()),
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Whoever did not stop it wants it to end all the same. There is nobody to tell an error.
        drop(self.handle.interrupt());
    }
}

fn tool(binaries: &Path, name: &str) -> Command {
    process::program(binaries.join(name))
}

/// The major versions that are installed, the newest last.
///
/// # Errors
/// [`PostgresError::Place`].
pub fn installed() -> Result<Vec<u32>, PostgresError> {
    let has_server = |path: &Path| path.join("bin/postgres").is_file();
    let directories = place::entries(Path::new(INSTALLED))?;
    let mut versions: Vec<u32> = directories
        .iter()
        .filter(|path| has_server(path))
        .filter_map(|path| path.file_name().and_then(OsStr::to_str)?.parse().ok())
        .collect();
    versions.sort_unstable();
    Ok(versions)
}

fn binaries_of(version: u32) -> PathBuf {
    Path::new(INSTALLED).join(version.to_string()).join("bin")
}

/// The cluster, made if it never was, and the programs of its version.
fn provide(place: &Place, user: &str) -> Result<PathBuf, PostgresError> {
    let installed = installed()?;
    let newest = *installed.last().ok_or(PostgresError::NotInstalled)?;
    let data = place.data();
    if !data.join("PG_VERSION").is_file() {
        if place.marker().exists() {
            return Err(PostgresError::Vanished {
                directory: data,
                marker: place.marker(),
            });
        }
        place::sweep(&place.directory)?;
        make(place, &binaries_of(newest), user)?;
    }
    // Also where somebody died just before this.
    place::write(&place.marker(), b"", 0o600)?;
    let made = String::from_utf8_lossy(&place::read(&data.join("PG_VERSION"))?)
        .trim()
        .to_owned();
    let version = made.parse().ok().filter(|made| installed.contains(made));
    version
        .map(binaries_of)
        .ok_or_else(|| PostgresError::Version {
            directory: data,
            made,
            installed: installed.iter().map(ToString::to_string).collect(),
        })
}

/// Makes the cluster beside its place, so that it is there whole or not at all.
fn make(place: &Place, binaries: &Path, user: &str) -> Result<(), PostgresError> {
    let unfinished = place::partial_directory(&place.directory)?;
    let mut init = tool(binaries, "initdb");
    init.env("LC_ALL", "C")
        .args(["--auth-local=peer", "--auth-host=reject"])
        .args(["--encoding=UTF8", "--no-locale", "--data-checksums"])
        .arg(format!("--username={user}"))
        .arg("--pgdata")
        .arg(unfinished.path());
    process::run_within(&mut init, TOOL).map_err(|source| PostgresError::Tool {
        doing: "make the cluster",
        source,
    })?;
    place::publish_directory(unfinished.path(), &place.data())?;
    Ok(())
}

type Spawned = (i32, PidFd, watch::Receiver<Option<String>>);

/// Starts the server from a thread that lives as long as it does: the kernel watches that one, and ends
/// the server with it.
fn spawn(place: &Place, binaries: &Path) -> Result<Spawned, PostgresError> {
    let start = |source| PostgresError::Start { source };
    let log = open_log(&place.log()).map_err(start)?;
    let mut command = tool(binaries, "postgres");
    command
        .env("LC_ALL", "C")
        .arg("-D")
        .arg(place.data())
        .arg("-c")
        .arg(format!(
            "unix_socket_directories={}",
            place.sockets.display()
        ))
        .args(SETTINGS.iter().flat_map(|setting| ["-c", setting]))
        .stdout(log.try_clone().map_err(start)?)
        .stderr(log);
    let (started, child) = mpsc::channel();
    let (end, ended) = watch::channel(None);
    let attend = move || match process::spawn_service(&mut command) {
        Err(error) => drop(started.send(Err(error))),
        Ok(mut child) => {
            let pid = child.id().cast_signed();
            // Not waited for yet, so that the number is still its own.
            drop(started.send(PidFd::open(pid).map(|handle| (pid, handle))));
            let status = child.wait().map(|status: ExitStatus| status.to_string());
            end.send_replace(Some(status.unwrap_or_else(|error| error.to_string())));
        }
    };
    std::thread::Builder::new()
        .name("postgres".to_owned())
        .spawn(attend)
        .map_err(start)?;
    let (pid, handle) = child
        .recv()
        .map_err(io::Error::other)
        .flatten()
        .map_err(start)?;
    Ok((pid, handle, ended))
}

/// The log, to be written at its end; what has become long is put aside once.
fn open_log(path: &Path) -> io::Result<File> {
    if fs::metadata(path).is_ok_and(|log| log.len() > MAX_LOG_BYTES) {
        fs::rename(path, path.with_extension("old"))?;
    }
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}
