//! A way to PostgreSQL on which replies are lost, or everything stops.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, copy};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What PostgreSQL's socket is called in its directory.
const NAME: &str = ".s.PGSQL.5432";

/// The message that ends every reply.
const READY_FOR_QUERY: u8 = b'Z';

pub(crate) struct Way {
    directory: TempDir,
    shared: Arc<Shared>,
}

struct Shared {
    target: PathBuf,
    /// Connections that were asked for.
    connections: AtomicU64,
    /// Replies of a thousand that are lost.
    loses: AtomicU64,
    lost: AtomicU64,
    /// The next reply that has these bytes in it is lost.
    loses_with: Mutex<Option<Vec<u8>>>,
    is_stalled: watch::Sender<bool>,
    /// How often all clients were cut off.
    cuts: watch::Sender<u32>,
    over: CancellationToken,
}

impl Way {
    /// To the server whose socket lies in this directory.
    pub(crate) fn to(sockets: &Path) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join(NAME)).unwrap();
        let shared = Arc::new(Shared {
            target: sockets.join(NAME),
            connections: AtomicU64::new(0),
            loses: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            loses_with: Mutex::new(None),
            is_stalled: watch::Sender::new(false),
            cuts: watch::Sender::new(0),
            over: CancellationToken::new(),
        });
        tokio::spawn(serve(listener, Arc::clone(&shared)));
        Self { directory, shared }
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// How often somebody has asked for a connection.
    pub(crate) fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// From now on so many of a thousand replies are lost, and their connections with them: what was asked
    /// for has been done then.
    pub(crate) fn lose(&self, of_a_thousand: u64) {
        self.shared.loses.store(of_a_thousand, Ordering::Relaxed);
    }

    pub(crate) fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// The next reply that has this in it is lost, and its connection with it: what was asked for has been
    /// done then.
    pub(crate) fn lose_one_with(&self, text: &str) {
        *self.shared.loses_with.lock().unwrap() = Some(text.as_bytes().to_vec());
    }

    /// All clients lose their connections. The server does not hear of it, and does what it was asked for.
    pub(crate) fn cut_clients_off(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Nothing goes through any more, and nobody is told.
    pub(crate) fn stall(&self) {
        self.shared.is_stalled.send_replace(true);
    }

    /// New connections go through again. Those of before stay as dead as they are.
    pub(crate) fn mend(&self) {
        self.shared.is_stalled.send_replace(false);
    }
}

impl Shared {
    /// Whether this is what the next reply that is lost has in it.
    fn is_to_be_lost(&self, body: &[u8]) -> bool {
        let mut loses_with = self.loses_with.lock().unwrap();
        let found = loses_with
            .as_ref()
            .is_some_and(|text| body.windows(text.len()).any(|window| window == text));
        if found {
            *loses_with = None;
        }
        found
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.shared.over.cancel();
    }
}

async fn serve(listener: UnixListener, shared: Arc<Shared>) {
    while let Some(accepted) = shared.over.run_until_cancelled(listener.accept()).await {
        let (client, _) = accepted.unwrap();
        shared.connections.fetch_add(1, Ordering::Relaxed);
        // From this moment, not from when the task begins.
        let is_stalled = shared.is_stalled.subscribe();
        let (shared, over) = (Arc::clone(&shared), shared.over.clone());
        tokio::spawn(async move {
            let passed = pass(client, is_stalled, &shared);
            over.run_until_cancelled(passed).await;
        });
    }
}

async fn pass(client: UnixStream, mut is_stalled: watch::Receiver<bool>, shared: &Shared) {
    let mut cuts = shared.cuts.subscribe();
    if *is_stalled.borrow_and_update() {
        // Kept open, for ever.
        return std::future::pending().await;
    }
    // To a server that is not there the connection is cut.
    let Ok(server) = UnixStream::connect(&shared.target).await else {
        return;
    };
    let (mut from_client, mut to_client) = client.into_split();
    let (from_server, mut to_server) = server.into_split();
    let mut from_server = BufReader::new(from_server);
    let stalls = tokio::select! {
        _ = copy(&mut from_client, &mut to_server) => false,
        _ = replies(&mut from_server, &mut to_client, shared) => false,
        _ = is_stalled.wait_for(|is_stalled| *is_stalled) => true,
        _ = cuts.changed() => {
            drop((from_client, to_client));
            true
        }
    };
    if stalls {
        std::future::pending::<()>().await;
    }
}

/// Passes replies on until one is lost.
async fn replies(
    from: &mut BufReader<OwnedReadHalf>,
    to: &mut OwnedWriteHalf,
    shared: &Shared,
) -> std::io::Result<()> {
    let mut is_first = true;
    loop {
        // Not the one to the connection itself.
        let loses = shared.loses.load(Ordering::Relaxed);
        let mut is_lost = !is_first && rand::random_range(0..1000) < loses;
        loop {
            let mut head = [0; 5];
            from.read_exact(&mut head).await?;
            let [kind, length @ ..] = head;
            let mut body = vec![0; u32::from_be_bytes(length) as usize - length.len()];
            from.read_exact(&mut body).await?;
            is_lost |= shared.is_to_be_lost(&body);
            if !is_lost {
                to.write_all(&[&head[..], &body].concat()).await?;
            }
            if kind == READY_FOR_QUERY {
                break;
            }
        }
        is_first = false;
        if is_lost {
            shared.lost.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
    }
}
