//! A way to PostgreSQL that can be cut.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

/// What PostgreSQL's socket is called in its directory.
const NAME: &str = ".s.PGSQL.5432";

pub(crate) struct Proxy {
    directory: TempDir,
    is_open: Arc<watch::Sender<bool>>,
}

impl Proxy {
    /// To the server whose socket lies in this directory.
    pub(crate) fn to(sockets: &Path) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join(NAME)).unwrap();
        let is_open = Arc::new(watch::Sender::new(true));
        let (target, gate) = (sockets.join(NAME), Arc::clone(&is_open));
        tokio::spawn(serve(listener, target, gate));
        Self { directory, is_open }
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Cuts all connections, and makes no more.
    pub(crate) fn cut(&self) {
        self.is_open.send_replace(false);
    }

    pub(crate) fn mend(&self) {
        self.is_open.send_replace(true);
    }
}

async fn serve(listener: UnixListener, target: PathBuf, gate: Arc<watch::Sender<bool>>) {
    loop {
        let (mut from, _) = listener.accept().await.unwrap();
        let mut is_open = gate.subscribe();
        if !*is_open.borrow_and_update() {
            continue;
        }
        let target = target.clone();
        tokio::spawn(async move {
            let mut to = UnixStream::connect(target).await.unwrap();
            tokio::select! {
                _ = copy_bidirectional(&mut from, &mut to) => {}
                _ = is_open.wait_for(|open| !open) => {}
            }
        });
    }
}
