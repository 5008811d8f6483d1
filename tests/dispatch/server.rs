//! What dispatches jobs, and what it needs.

use super::jobs;
use std::path::Path;
use std::time::{Duration, Instant};
use tako_vm::dispatch::{Dispatcher, Settings, Waited};
use tako_vm::job::Status;
use tako_vm::store::files::Files;
use tako_vm::store::history::Entry;
use tako_vm::store::queue::{Enqueued, State, Submission};
use tako_vm::store::{Database, Store};
use tako_vm::supervisor::connection::Connections;
use tempfile::TempDir;

/// How long a job is somebody's without a word of him: short, so that tests are.
pub(crate) const LEASE: Duration = Duration::from_secs(3);

/// A dispatcher, with its own connections and its own directory.
pub(crate) struct Server {
    pub(crate) dispatcher: Dispatcher,
    pub(crate) store: Store,
    pub(crate) files: Files,
    pub(crate) directory: TempDir,
}

impl Server {
    pub(crate) async fn start(name: &str, url: &str, socket: &Path) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), name, url, socket).await
    }

    /// One that finds what an earlier one has left.
    pub(crate) async fn start_in(directory: TempDir, name: &str, url: &str, socket: &Path) -> Self {
        let objects = directory.path().join("files");
        std::fs::create_dir_all(&objects).unwrap();
        let files = Files::in_directory(&objects).unwrap();
        Self::start_with(directory, files, (name, 1 << 30), url, socket).await
    }

    /// One that keeps files there, so many bytes of each owner.
    pub(crate) async fn start_with(
        directory: TempDir,
        files: Files,
        (name, artifact_storage_bytes): (&str, u64),
        url: &str,
        socket: &Path,
    ) -> Self {
        let store = Store::open(&Database::from_url(url).unwrap(), 10)
            .await
            .unwrap();
        let settings = Settings {
            worker: name.to_owned(),
            lease: LEASE,
            slots: 2,
            retry_base_delay: Duration::from_millis(100),
            directory: directory.path().to_owned(),
            artifact_storage_bytes,
        };
        let connections = Connections::new(socket.to_owned());
        let dispatcher =
            Dispatcher::start(store.clone(), files.clone(), connections, settings).await;
        Self {
            dispatcher: dispatcher.unwrap(),
            store,
            files,
            directory,
        }
    }

    /// Takes a program in, under this name.
    pub(crate) async fn submit(&self, id: &str, code: &str) {
        self.submit_job(&program(id, code)).await;
    }

    pub(crate) async fn submit_job(&self, job: &Submission) {
        let enqueued = self.dispatcher.submit(job, None).await.unwrap();
        assert!(matches!(enqueued, Enqueued::Queued), "{enqueued:?}");
    }

    /// Waits for the end of a job, and gives what is known of it then.
    pub(crate) async fn ended(&self, id: &str) -> Entry {
        let waiter = self.dispatcher.waiter();
        let ended = waiter.wait(id, false, Duration::from_secs(40)).await;
        let entry = self.store.entry(id).await.unwrap().unwrap();
        assert!(matches!(ended.unwrap(), Waited::Ended(_)), "{entry:?}");
        entry
    }

    /// Waits until a job stands so.
    pub(crate) async fn until(&self, id: &str, state: State) {
        let begun = Instant::now();
        loop {
            let standing = self.store.standing(id).await.unwrap().unwrap();
            if standing.state == state {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "{standing:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

pub(crate) fn program(id: &str, code: &str) -> Submission {
    let mut job = jobs::job(id);
    code.clone_into(&mut job.request.code);
    job
}

pub(crate) fn status(entry: &Entry) -> Status {
    match entry.state {
        State::Ended(status) => status,
        state => panic!("{state:?}"),
    }
}
