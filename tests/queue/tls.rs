//! A database of an operator's, over the network: with TLS, and without where the operator wants none.

use super::cluster;
use nix::unistd::User;
use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::{Child, Command, Stdio};
use tako_vm::job::one_line;
use tako_vm::store::{Database, Store, StoreError};
use tempfile::TempDir;

/// Makes an authority and a certificate of it for `localhost`, another authority that has signed nothing, and
/// a server that takes connections to the database `plain` without TLS and to all others with it alone. `$1`
/// is its directory, `$2` the directory of the binaries, `$3` its port. It ends with its standard input.
const ATTEND: &str = r#"
set -e
cd "$1"
key="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
{
  for authority in ours other; do
    openssl req -x509 $key -days 2 -subj "/CN=$authority" -keyout $authority.key -out $authority.crt
  done
  openssl req $key -subj /CN=localhost -keyout server.key -out server.csr
  echo subjectAltName=DNS:localhost > names
  openssl x509 -req -in server.csr -CA ours.crt -CAkey ours.key -CAcreateserial -days 2 -extfile names \
    -out server.crt
  chmod 0600 server.key
  "$2/initdb" --pgdata=data --username=test --auth=trust --encoding=UTF8 --no-locale --no-sync
} > log 2>&1
{
  echo local all all trust
  for addresses in 127.0.0.1/32 ::1/128; do
    echo hostnossl plain all $addresses trust
    echo hostssl all all $addresses trust
  done
} > data/pg_hba.conf
"$2/postgres" -D data -c listen_addresses=localhost -c port="$3" -c unix_socket_directories="$1" -c ssl=on \
  -c ssl_cert_file="$1/server.crt" -c ssl_key_file="$1/server.key" >> log 2>&1 &
while ! "$2/pg_isready" --quiet --host="$1" --port="$3" --username=test; do
  kill -0 $!
  sleep 0.05
done
"$2/createdb" --host="$1" --port="$3" --username=test plain
echo ready
cat > /dev/null
kill -QUIT $!
wait $! || true
"#;

struct Server {
    directory: TempDir,
    port: u16,
    attendant: Child,
}

impl Server {
    #[expect(
        clippy::disallowed_methods,
        reason = "a test's own server, and not a sandbox's"
    )]
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let mut command = if nix::unistd::geteuid().is_root() {
            // PostgreSQL refuses to run as root.
            let user = User::from_name("postgres").unwrap().unwrap();
            let owner = (Some(user.uid.as_raw()), Some(user.gid.as_raw()));
            chown(directory.path(), owner.0, owner.1).unwrap();
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
            command.arg("sh");
            command
        } else {
            Command::new("sh")
        };
        let mut attendant = command
            .args(["-c", ATTEND, "attend"])
            .args([directory.path(), &cluster::binaries()])
            .arg(port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0; 6];
        let ready = attendant.stdout.take().unwrap().read_exact(&mut said);
        let log = fs::read_to_string(directory.path().join("log"));
        assert!(ready.is_ok() && &said == b"ready\n", "{log:?}");
        Self {
            directory,
            port,
            attendant,
        }
    }

    async fn open(&self, host: &str, database: &str, tls: &str) -> Result<Store, StoreError> {
        let tls = tls.replace("DIRECTORY", &self.directory.path().display().to_string());
        let url = format!("postgresql://test@{host}:{}/{database}?{tls}", self.port);
        Store::open(&Database::from_url(&url).unwrap(), 2).await
    }

    /// Which of our connections to a database are encrypted.
    async fn encrypted(&self, database: &str) -> Vec<bool> {
        let directory = self.directory.path().display();
        let url = format!(
            "postgresql://test@localhost:{}/{database}?host={directory}",
            self.port
        );
        let mut connection = cluster::connect(&url).await;
        let all = "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
                   WHERE application_name = 'tako-vm' AND datname = current_database()";
        sqlx::query_scalar(all)
            .fetch_all(&mut connection)
            .await
            .unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.attendant.stdin.take());
        self.attendant.wait().unwrap();
    }
}

#[tokio::test]
async fn a_database_is_reached_with_tls_and_only_one_that_is_who_it_should_be() {
    let server = Server::start();
    let ours = "sslmode=verify-full&sslrootcert=DIRECTORY/ours.crt";
    let store = server.open("localhost", "postgres", ours).await.unwrap();
    store.ping().await.unwrap();
    assert_eq!(server.encrypted("postgres").await, [true]);
    store.close().await;

    for (host, tls, expected) in [
        // Signed by somebody else.
        (
            "localhost",
            "sslmode=verify-full&sslrootcert=DIRECTORY/other.crt",
            "UnknownIssuer",
        ),
        // By nobody whom this host knows.
        ("localhost", "sslmode=verify-full", "UnknownIssuer"),
        // For another name.
        ("127.0.0.1", ours, "not valid for name"),
        // The server wants TLS.
        ("localhost", "sslmode=disable", "no encryption"),
    ] {
        let error = server.open(host, "postgres", tls).await.unwrap_err();
        assert!(
            matches!(error, StoreError::Connect { .. }),
            "{tls}: {error:?}"
        );
        let said = one_line(&error);
        assert!(said.contains(expected), "{tls}: {said}");
    }
}

#[tokio::test]
async fn a_database_is_reached_without_tls_where_both_ends_want_none() {
    let server = Server::start();
    let store = server.open("localhost", "plain", "sslmode=disable").await;
    let store = store.unwrap();
    store.ping().await.unwrap();
    assert_eq!(server.encrypted("plain").await, [false]);
    // Where it is there, it is used.
    let other = server.open("localhost", "plain", "sslmode=require").await;
    let other = other.unwrap();
    other.ping().await.unwrap();
    let mut encrypted = server.encrypted("plain").await;
    encrypted.sort_unstable();
    assert_eq!(encrypted, [false, true]);
    store.close().await;
    other.close().await;
}
