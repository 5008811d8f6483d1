//! Servers in processes of their own, which can be stopped and killed: this very program once more.

use super::server::LEASE;
use nix::sys::signal::Signal;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tako_vm::dispatch::{Dispatcher, Settings};
use tako_vm::store::files::Files;
use tako_vm::store::{Database, Store};
use tako_vm::supervisor::connection::Connections;
use tako_vm::sys::process;
use tokio::io::AsyncReadExt;

/// Set where this program was started to be a server: what that is called in the queue.
const NAME: &str = "TAKO_VM_TEST_SERVER";
const URL: &str = "TAKO_VM_TEST_SERVER_URL";
const SOCKET: &str = "TAKO_VM_TEST_SERVER_SOCKET";
const DIRECTORY: &str = "TAKO_VM_TEST_SERVER_DIRECTORY";

/// What a server needs: the same for several of them.
#[derive(Debug, Clone)]
pub(crate) struct Needs {
    pub(crate) url: String,
    pub(crate) socket: PathBuf,
}

/// A server. It ends with this process, since its standard input does.
pub(crate) struct Server {
    child: Child,
}

impl Server {
    /// Begins in a directory, which an earlier one may have left.
    pub(crate) fn start(name: &str, needs: &Needs, directory: &Path) -> Self {
        Self::with(name, needs, directory, &[])
    }

    /// One with more in its environment.
    pub(crate) fn with(
        name: &str,
        needs: &Needs,
        directory: &Path,
        environment: &[(&str, &Path)],
    ) -> Self {
        let mut command = process::program(std::env::current_exe().unwrap());
        command
            .args(["--exact", "--include-ignored", "--nocapture"])
            .arg("children::a_server_in_a_process_of_its_own_ends_when_it_is_left_alone")
            .envs(environment.iter().copied())
            .env(NAME, name)
            .env(URL, &needs.url)
            .env(SOCKET, &needs.socket)
            .env(DIRECTORY, directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        Self {
            child: command.spawn().unwrap(),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the child is ours and not waited for: its number is not given anew"
    )]
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Its end, with which it has no part in what comes.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Its end, after that of what it runs.
    pub(crate) fn leave(mut self) -> ExitStatus {
        drop(self.child.stdin.take());
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "it has not ended"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended cannot be killed.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn told(variable: &str) -> Option<String> {
    std::env::var_os(variable).map(|text| text.into_string().unwrap())
}

async fn serve(name: String) {
    let directory = PathBuf::from(told(DIRECTORY).unwrap());
    let database = Database::from_url(&told(URL).unwrap()).unwrap();
    let store = Store::open(&database, 10).await.unwrap();
    let objects = directory.join("files");
    std::fs::create_dir_all(&objects).unwrap();
    let settings = Settings {
        worker: name,
        lease: LEASE,
        slots: 2,
        retry_base_delay: Duration::from_millis(100),
        directory,
        artifact_storage_bytes: 1 << 30,
    };
    let files = Files::in_directory(&objects).unwrap();
    let connections = Connections::new(told(SOCKET).unwrap().into());
    let dispatcher = Dispatcher::start(store, files, connections, settings).await;
    // Whoever has started us is gone, or wants us to be.
    let mut nothing = Vec::new();
    drop(tokio::io::stdin().read_to_end(&mut nothing).await);
    dispatcher.unwrap().drain(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_server_in_a_process_of_its_own_ends_when_it_is_left_alone() {
    if let Some(name) = told(NAME) {
        return serve(name).await;
    }
    let (daemon, url) = (
        super::daemon::Daemon::start(),
        super::cluster::database().await,
    );
    let needs = Needs {
        url: url.clone(),
        socket: daemon.socket(),
    };
    let store = Store::open(&Database::from_url(&url).unwrap(), 2)
        .await
        .unwrap();
    let watch = super::history::Watch::begin(&url, LEASE).await;
    let directory = tempfile::tempdir().unwrap();
    let child = Server::start("child", &needs, directory.path());
    super::hands::send(&store, &watch.log, &super::hands::keyed("a")).await;
    watch.all_ended_within(Duration::from_secs(20)).await;
    assert!(child.leave().success());
    let history = watch.assert_holds().await;
    assert_eq!(history.ended("succeeded"), 1);
    assert_eq!(history.claims("a").len(), 1);
}
