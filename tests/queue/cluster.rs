//! A PostgreSQL that lives as long as this process, and a database in it for each test.

use sqlx::Connection;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use tako_vm::store::{Database, Store};

/// What starts a server as a user that is not root (it refuses that one), and ends it with this process:
/// then standard input ends. `$1` is its directory, `$2` the directory of the binaries.
const ATTEND: &str = r#"
set -e
cd "$1"
"$2/initdb" --pgdata=data --username=test --auth=trust --encoding=UTF8 --no-locale --no-sync > log 2>&1
"$2/postgres" -D data -c listen_addresses= -c unix_socket_directories="$1" -c max_connections=200 \
  -c shared_buffers=64MB >> log 2>&1 &
while ! "$2/pg_isready" --quiet --host="$1" --username=test; do
  kill -0 $! || exit 1
  sleep 0.05
done
echo ready
cat > /dev/null
kill -QUIT $!
wait $! || true
rm -rf "$1"
"#;

struct Cluster {
    directory: PathBuf,
    /// It ends when its standard input does, which is with this process.
    _attendant: Child,
}

/// The newest PostgreSQL of Debian's that is installed.
pub(crate) fn binaries() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").unwrap();
    let newest = versions
        .map(|entry| entry.unwrap().path())
        .max_by_key(|path| {
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .parse::<u32>()
                .unwrap_or(0)
        });
    newest.unwrap().join("bin")
}

impl Cluster {
    #[expect(
        clippy::disallowed_methods,
        reason = "a test's own server, and not a sandbox's"
    )]
    fn start() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("tako-vm-queue-")
            .tempdir()
            .unwrap()
            .keep();
        let mut command;
        if fs::metadata("/proc/self").unwrap().uid() == 0 {
            // Of its package, which is there.
            let user = nix::unistd::User::from_name("postgres").unwrap().unwrap();
            chown(&directory, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
            // Its socket is for servers of other users as well.
            fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
            command = Command::new("setpriv");
            command.args([
                "--reuid=postgres",
                "--regid=postgres",
                "--clear-groups",
                "sh",
            ]);
        } else {
            command = Command::new("sh");
        }
        let mut child = command
            .args(["-c", ATTEND, "attend"])
            .args([&directory, &binaries()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0; 6];
        let ready = child.stdout.take().unwrap().read_exact(&mut said);
        let log = fs::read_to_string(directory.join("log"));
        assert!(ready.is_ok() && &said == b"ready\n", "{log:?}");
        Self {
            directory,
            _attendant: child,
        }
    }
}

pub(crate) fn directory() -> &'static Path {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    &CLUSTER.get_or_init(Cluster::start).directory
}

/// A database of a test's own, in which nothing is yet.
pub(crate) async fn database() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let mut server = connect(&url("postgres")).await;
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}")))
        .execute(&mut server)
        .await
        .unwrap();
    url(&name)
}

fn url(name: &str) -> String {
    format!(
        "postgresql://test@localhost/{name}?host={}",
        directory().display()
    )
}

/// A connection for what the store does not do, with its schema in sight.
pub(crate) async fn connect(url: &str) -> sqlx::PgConnection {
    let options: sqlx::postgres::PgConnectOptions = url.parse().unwrap();
    let options = options.options([("search_path", "tako")]);
    sqlx::PgConnection::connect_with(&options).await.unwrap()
}

/// A store in a database of its own, and the URL of that.
pub(crate) async fn store() -> (Store, String) {
    let url = database().await;
    let store = Store::open(&Database::from_url(&url).unwrap(), 10)
        .await
        .unwrap();
    (store, url)
}
