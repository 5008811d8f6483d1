//! A PostgreSQL of a test's own, which can be stopped and started.

use super::{clocks, cluster};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};
use tako_vm::sys::process;
use tempfile::TempDir;

/// What starts and stops a server as a user that is not root, as it is told to by lines of standard input,
/// and ends it with them. `$1` is its directory, `$2` the directory of the binaries, `$3` a library that it
/// is started with, if any.
const ATTEND: &str = r#"
set -e
cd "$1"
"$2/initdb" --pgdata=data --username=test --auth=trust --encoding=UTF8 --no-locale --no-sync > log 2>&1
while read -r word; do
  case $word in
    start)
      env ${3:+"LD_PRELOAD=$3" "TAKO_VM_TEST_CLOCK=$1/clock"} "$2/postgres" -D data -c listen_addresses= \
        -c unix_socket_directories="$1" -c max_connections=200 -c shared_buffers=64MB >> log 2>&1 &
      server=$!
      while ! "$2/pg_isready" --quiet --host="$1" --username=test; do
        kill -0 $server || exit 1
        sleep 0.02
      done
      ;;
    *)
      kill -"$word" $server
      wait $server || true
      server=
      ;;
  esac
  echo done
done
if [ -n "$server" ]; then
  kill -QUIT $server
  wait $server || true
fi
"#;

/// The clock that a server has with the library of [`clocks`].
pub(crate) const CLOCK: &str = "clock";

/// How a server is stopped.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stop {
    /// Connections are cut, what was committed is written.
    Fast,
    /// It leaves all as it is, and recovers when it is started again.
    Immediate,
}

pub(crate) struct Postgres {
    directory: TempDir,
    attendant: Child,
    /// Taken when it is to end.
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Postgres {
    pub(crate) fn start() -> Self {
        Self::with("")
    }

    /// One that is started with a library before all others.
    pub(crate) fn with(library: &str) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("tako-vm-faults-")
            .tempdir()
            .unwrap();
        // Of its package, which is there.
        let user = nix::unistd::User::from_name("postgres").unwrap().unwrap();
        let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
        chown(directory.path(), Some(uid), Some(gid)).unwrap();
        clocks::step(&directory.path().join(CLOCK), 0);
        let mut attendant = process::program("setpriv")
            .args(["--reuid=postgres", "--regid=postgres", "--clear-groups"])
            .args(["sh", "-c", ATTEND, "attend"])
            .args([directory.path(), &cluster::binaries(), Path::new(library)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut postgres = Self {
            orders: attendant.stdin.take(),
            answers: BufReader::new(attendant.stdout.take().unwrap()),
            directory,
            attendant,
        };
        postgres.again();
        postgres
    }

    fn order(&mut self, word: &str) {
        let orders = self.orders.as_mut().unwrap();
        writeln!(orders, "{word}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        assert_eq!(answer, "done\n", "{}", self.log());
    }

    /// Returns when it takes connections.
    pub(crate) fn again(&mut self) {
        self.order("start");
    }

    /// Returns when it is gone.
    pub(crate) fn stop(&mut self, how: Stop) {
        self.order(match how {
            Stop::Fast => "INT",
            Stop::Immediate => "QUIT",
        });
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The one database that is used.
    pub(crate) fn url(&self) -> String {
        url(self.directory())
    }
}

/// A database below the directory of a server's socket, or of a way to it.
pub(crate) fn url(directory: &Path) -> String {
    format!(
        "postgresql://test@localhost/postgres?host={}&sslmode=disable",
        directory.display()
    )
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let last = log.lines().rev().take(20).collect::<Vec<_>>();
            eprintln!("{}", last.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        // It ends the server, and then itself; the directory goes after that.
        drop(self.orders.take());
        let begun = Instant::now();
        while matches!(self.attendant.try_wait(), Ok(None)) {
            if begun.elapsed() > Duration::from_secs(20) {
                drop(self.attendant.kill());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
