//! A PostgreSQL of our own, started, stopped, killed and lost. PostgreSQL refuses to run as root: a test
//! that root runs is run once more by the user of its package.
#![expect(
    clippy::unwrap_used,
    reason = "a test reports by panicking, and so do the functions it is written with"
)]

use nix::unistd::Uid;
use sqlx::{Connection, PgConnection};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tako_vm::postgres::{Place, Postgres, PostgresError};
use tako_vm::sys::process::{self, PidFd};
use tempfile::TempDir;

/// Set where a test has been started to be killed: its directory.
const VICTIM: &str = "TAKO_VM_TEST_VICTIM";

/// This very program.
fn program() -> Command {
    process::program(std::env::current_exe().unwrap())
}

/// Runs a test as a user that PostgreSQL takes.
fn as_other(name: &str, test: fn()) {
    if !Uid::effective().is_root() {
        return test();
    }
    // Where that user may not look, its file would not be found.
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    let copy = directory.path().join("postgres-test");
    fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    let mut command = process::program("setpriv");
    command
        .args(["--reuid=postgres", "--regid=postgres", "--clear-groups"])
        .arg(&copy)
        .args(["--exact", name, "--nocapture"]);
    let printed = process::run(&mut command).unwrap();
    assert!(printed.stdout.contains("1 passed"), "{printed:?}");
}

fn place(directory: &TempDir) -> Place {
    Place {
        directory: directory.path().join("postgres"),
        sockets: directory.path().join("run"),
    }
}

/// What a query gives, on a connection that is closed at once.
fn ask(url: &str, query: &'static str) -> Vec<String> {
    on_connection(url, async |connection| {
        sqlx::query_scalar(query)
            .fetch_all(connection)
            .await
            .unwrap()
    })
}

fn on_connection<T>(url: &str, work: impl AsyncFnOnce(&mut PgConnection) -> T) -> T {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut connection = PgConnection::connect(url).await.unwrap();
        let result = work(&mut connection).await;
        // Where it is cut, there is nothing to close.
        drop(connection.close().await);
        result
    })
}

#[test]
fn root_is_refused_before_anything_is_made() {
    if Uid::effective().is_root() {
        let directory = tempfile::tempdir().unwrap();
        let refused = Postgres::start(place(&directory));
        assert!(matches!(refused, Err(PostgresError::Root)), "{refused:?}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}

#[test]
fn what_was_written_is_there_after_a_stop_and_a_start() {
    as_other("what_was_written_is_there_after_a_stop_and_a_start", || {
        let directory = tempfile::tempdir().unwrap();
        let postgres = Postgres::start(place(&directory)).unwrap();
        let url = postgres.url();
        ask(&url, "CREATE TABLE kept (text text)");
        ask(&url, "INSERT INTO kept VALUES ('here')");
        let pid = postgres.pid();
        postgres.stop().unwrap();
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        assert_eq!(
            fs::read_dir(directory.path().join("run")).unwrap().count(),
            0
        );
        let postgres = Postgres::start(place(&directory)).unwrap();
        assert_eq!(ask(&postgres.url(), "SELECT text FROM kept"), ["here"]);
        postgres.stop().unwrap();
    });
}

#[test]
fn nobody_else_can_reach_it() {
    as_other("nobody_else_can_reach_it", || {
        let directory = tempfile::tempdir().unwrap();
        let postgres = Postgres::start(place(&directory)).unwrap();
        let url = postgres.url();
        assert_eq!(ask(&url, "SHOW listen_addresses"), [""]);
        let ways = "SELECT type || ' ' || auth_method FROM pg_hba_file_rules GROUP BY 1 ORDER BY 1";
        assert_eq!(ask(&url, ways), ["host reject", "local peer"]);
        for path in ["postgres", "postgres/data", "run", "run/.s.PGSQL.5432"] {
            let mode = fs::metadata(directory.path().join(path))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o077, 0, "{path}: {mode:o}");
        }
        postgres.stop().unwrap();
    });
}

#[test]
fn a_second_process_is_refused_and_disturbs_nothing() {
    as_other("a_second_process_is_refused_and_disturbs_nothing", || {
        let directory = tempfile::tempdir().unwrap();
        let postgres = Postgres::start(place(&directory)).unwrap();
        let second = Postgres::start(place(&directory));
        assert!(
            matches!(second, Err(PostgresError::Taken { .. })),
            "{second:?}"
        );
        assert_eq!(ask(&postgres.url(), "SELECT 'alive'"), ["alive"]);
        postgres.stop().unwrap();
    });
}

#[test]
fn one_that_has_vanished_is_not_made_anew() {
    as_other("one_that_has_vanished_is_not_made_anew", || {
        let directory = tempfile::tempdir().unwrap();
        Postgres::start(place(&directory)).unwrap().stop().unwrap();
        let data = directory.path().join("postgres/data");
        fs::rename(&data, directory.path().join("elsewhere")).unwrap();
        let refused = Postgres::start(place(&directory));
        assert!(
            matches!(refused, Err(PostgresError::Vanished { .. })),
            "{refused:?}"
        );
        assert!(!data.exists());
    });
}

#[test]
fn another_version_is_named_with_what_to_do() {
    as_other("another_version_is_named_with_what_to_do", || {
        let directory = tempfile::tempdir().unwrap();
        Postgres::start(place(&directory)).unwrap().stop().unwrap();
        fs::write(directory.path().join("postgres/data/PG_VERSION"), "9\n").unwrap();
        let refused = Postgres::start(place(&directory)).unwrap_err().to_string();
        assert!(refused.contains("made by PostgreSQL 9"), "{refused}");
        assert!(refused.contains("pg_upgrade"), "{refused}");
    });
}

#[test]
fn a_cluster_that_cannot_start_says_why() {
    as_other("a_cluster_that_cannot_start_says_why", || {
        let directory = tempfile::tempdir().unwrap();
        Postgres::start(place(&directory)).unwrap().stop().unwrap();
        let settings = directory.path().join("postgres/data/postgresql.conf");
        fs::write(settings, "no_such_setting = 1\n").unwrap();
        let refused = Postgres::start(place(&directory)).unwrap_err().to_string();
        assert!(refused.contains("no_such_setting"), "{refused}");
    });
}

#[test]
fn a_path_that_no_socket_can_have_is_refused() {
    as_other("a_path_that_no_socket_can_have_is_refused", || {
        let directory = tempfile::tempdir().unwrap();
        let sockets = directory.path().join("x".repeat(100));
        let refused = Postgres::start(Place {
            sockets,
            ..place(&directory)
        });
        assert!(
            matches!(refused, Err(PostgresError::SocketPath { .. })),
            "{refused:?}"
        );
    });
}

#[test]
fn a_server_that_was_killed_is_noticed_and_comes_back_with_what_was_written() {
    as_other(
        "a_server_that_was_killed_is_noticed_and_comes_back_with_what_was_written",
        || {
            let directory = tempfile::tempdir().unwrap();
            let postgres = Postgres::start(place(&directory)).unwrap();
            ask(&postgres.url(), "CREATE TABLE kept ()");
            PidFd::open(postgres.pid()).unwrap().kill().unwrap();
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let how = runtime.block_on(postgres.ended());
            assert!(how.contains("SIGKILL"), "{how}");
            drop(postgres);
            let postgres = Postgres::start(place(&directory)).unwrap();
            assert_eq!(
                ask(&postgres.url(), "SELECT count(*)::text FROM kept"),
                ["0"]
            );
            postgres.stop().unwrap();
        },
    );
}

/// Starts a cluster in the directory that it is given and waits, to be killed.
fn be_the_victim(directory: &Path) {
    let _postgres = Postgres::start(Place {
        directory: directory.join("postgres"),
        sockets: directory.join("run"),
    });
    fs::write(directory.join("started"), "").unwrap();
    std::thread::sleep(Duration::from_mins(1));
}

#[test]
fn what_a_killed_process_has_left_is_ended_by_the_next() {
    as_other(
        "what_a_killed_process_has_left_is_ended_by_the_next",
        || {
            if let Some(directory) = std::env::var_os(VICTIM) {
                return be_the_victim(Path::new(&directory));
            }
            let directory = tempfile::tempdir().unwrap();
            let mut command = program();
            command
                .args([
                    "--exact",
                    "what_a_killed_process_has_left_is_ended_by_the_next",
                ])
                .env(VICTIM, directory.path());
            let mut victim = command.stdout(Stdio::null()).spawn().unwrap();
            let begun = Instant::now();
            while !directory.path().join("started").exists() {
                assert!(
                    begun.elapsed() < Duration::from_secs(50),
                    "it has not started"
                );
                std::thread::sleep(Duration::from_millis(10));
            }
            let url = format!(
                "postgresql://postgres@localhost/tako_vm?host={}",
                directory.path().join("run").display()
            );
            // Whoever is connected keeps it from ending by itself.
            on_connection(&url, async |connection| {
                sqlx::query("CREATE TABLE kept ()")
                    .execute(&mut *connection)
                    .await
                    .unwrap();
                victim.kill().unwrap();
                victim.wait().unwrap();
                let postgres = Postgres::start(place(&directory)).unwrap();
                let kept = "SELECT count(*)::text FROM kept";
                let mut own = PgConnection::connect(&postgres.url()).await.unwrap();
                let count: String = sqlx::query_scalar(kept).fetch_one(&mut own).await.unwrap();
                assert_eq!(count, "0");
                assert!(
                    sqlx::query("SELECT 1")
                        .execute(&mut *connection)
                        .await
                        .is_err()
                );
                postgres.stop().unwrap();
                *connection = own;
            });
        },
    );
}
