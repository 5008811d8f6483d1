//! Connections that are kept between jobs, since to connect and to be greeted takes a tenth of what a
//! short job does.

use super::{Connection, ConnectionError, peek};
use rustix::io::Errno;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Connections that are kept at most: a supervisor has 64 for each user.
const KEPT: usize = 4;

/// How long one is kept for the next job.
const IDLE: Duration = Duration::from_secs(10);

/// A connection on which nothing is going on, and which belongs to no runtime.
#[derive(Debug)]
pub struct Idle {
    pub(super) stream: UnixStream,
    pub(super) greeted: bool,
}

impl Idle {
    /// Whether the supervisor is still there: it says nothing unasked but its greeting.
    fn is_alive(&self) -> bool {
        match peek(&self.stream) {
            Ok(read) => read > 0 && !self.greeted,
            Err(error) => error == Errno::AGAIN,
        }
    }
}

/// Connections to one supervisor; some are kept for a while, for the jobs that follow. Clones share
/// them.
#[derive(Debug, Clone)]
pub struct Connections {
    socket: PathBuf,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Debug, Default)]
struct Kept {
    idle: Vec<(Idle, Instant)>,
    /// A task is there that closes what has been idle for too long.
    swept: bool,
}

impl Connections {
    /// Connections to the supervisor at this socket, none so far.
    pub fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            kept: Arc::default(),
        }
    }

    /// Where the supervisor listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Keeps one for a job; it is closed instead if there are enough.
    pub fn keep(&self, idle: Idle) {
        let mut kept = lock(&self.kept);
        if kept.idle.len() < KEPT {
            kept.idle.push((idle, Instant::now()));
        }
    }

    /// Closes those that are kept.
    pub fn close(&self) {
        lock(&self.kept).idle.clear();
    }

    /// The connection that was used last, or else a new one.
    ///
    /// # Errors
    /// [`ConnectionError::Connect`].
    pub async fn take(&self) -> Result<Connection, ConnectionError> {
        match self.take_kept() {
            Some(connection) => Ok(connection),
            None => Connection::open(&self.socket).await,
        }
    }

    /// The connection that was used last, if one is kept.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn take_kept(&self) -> Option<Connection> {
        while let Some(idle) = self.pop() {
            if idle.is_alive()
                && let Ok(connection) = Connection::resume(idle)
            {
                return Some(connection);
            }
        }
        None
    }

    fn pop(&self) -> Option<Idle> {
        lock(&self.kept).idle.pop().map(|(idle, _)| idle)
    }

    /// Keeps a connection that has been used, if nothing is left to be said on it.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn put_back(&self, connection: Connection) {
        let Some(idle) = connection.set_aside() else {
            return;
        };
        self.keep(idle);
        if !std::mem::replace(&mut lock(&self.kept).swept, true) {
            let sweeper = Sweeper(Arc::clone(&self.kept));
            tokio::spawn(async move { sweeper.run().await });
        }
    }
}

/// Closes what has been idle for too long, and everything when its runtime ends.
struct Sweeper(Arc<Mutex<Kept>>);

impl Sweeper {
    async fn run(&self) {
        loop {
            tokio::time::sleep(IDLE).await;
            let mut kept = lock(&self.0);
            kept.idle.retain(|(_, since)| since.elapsed() < IDLE);
            if kept.idle.is_empty() {
                return;
            }
        }
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        let mut kept = lock(&self.0);
        kept.idle.clear();
        kept.swept = false;
    }
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::wire::{Hello, Message, ToClient, ToSupervisor};
    use std::io::{ErrorKind, Read, Write};
    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{UnixListener, UnixStream as Stream};

    fn listener() -> (UnixListener, Connections, TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        (listener, Connections::new(socket), directory)
    }

    /// An idle connection that was greeted, and its other end.
    fn idle() -> (Idle, UnixStream) {
        let (stream, theirs) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let greeted = true;
        (Idle { stream, greeted }, theirs)
    }

    fn is_open(mut theirs: &UnixStream) -> bool {
        let read = theirs.read(&mut [0]);
        read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    /// Answers what is asked for with `answer`, and gives what was read.
    async fn answer(stream: &mut Stream, answer: &[ToClient]) -> Vec<u8> {
        let mut read = vec![0; 4096];
        let count = stream.read(&mut read).await.unwrap();
        read.truncate(count);
        let frames: Vec<u8> = answer.iter().flat_map(Message::to_frame).collect();
        stream.write_all(&frames).await.unwrap();
        read
    }

    #[tokio::test]
    async fn a_connection_is_greeted_once_and_serves_the_next_as_long_as_the_other_side_is_there() {
        let (listener, connections, _directory) = listener();
        let hello = ToSupervisor::Hello(Hello::ours()).to_frame();
        let stats = ToClient::Stats(Box::default());
        let use_one = async || {
            let mut connection = connections.take().await.unwrap();
            connection.stats().await.unwrap();
            connections.put_back(connection);
        };
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let greeting = ToClient::Hello(Hello::ours());
            let first = answer(&mut stream, &[greeting.clone(), stats.clone()]).await;
            let second = answer(&mut stream, std::slice::from_ref(&stats)).await;
            assert_eq!(first, [hello.clone(), second].concat());
            drop(stream);
            // It is gone, and so a new one is made.
            let (mut stream, _) = listener.accept().await.unwrap();
            let third = answer(&mut stream, &[greeting, stats.clone()]).await;
            assert_eq!(third, first);
        };
        tokio::join!(serve, async {
            use_one().await;
            use_one().await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            use_one().await;
        });
    }

    #[tokio::test]
    async fn what_is_in_the_middle_of_something_is_not_kept() {
        let (listener, connections, _directory) = listener();
        let mut connection = connections.take().await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let more = [
            ToClient::Hello(Hello::ours()),
            ToClient::Stats(Box::default()),
            ToClient::Draining,
        ];
        tokio::join!(answer(&mut stream, &more), async {
            connection.stats().await.unwrap();
        });
        connections.put_back(connection);
        assert!(connections.pop().is_none());
    }

    #[tokio::test]
    async fn one_that_says_something_unasked_is_not_used() {
        let (listener, connections, _directory) = listener();
        let (odd, theirs) = idle();
        (&theirs).write_all(b"x").unwrap();
        connections.keep(odd);
        let _new = connections.take().await.unwrap();
        listener.accept().await.unwrap();
        assert!(!is_open(&theirs));
    }

    #[tokio::test(start_paused = true)]
    async fn few_are_kept_and_not_for_long() {
        let (_listener, connections, _directory) = listener();
        let mut theirs = Vec::new();
        for _ in 0..=KEPT {
            let (idle, other) = idle();
            connections.put_back(Connection::resume(idle).unwrap());
            theirs.push(other);
        }
        let open = || theirs.iter().filter(|theirs| is_open(theirs)).count();
        assert_eq!(open(), KEPT);
        tokio::time::sleep(IDLE * 3 / 2).await;
        assert_eq!(open(), 0);
        let (again, other) = idle();
        connections.put_back(Connection::resume(again).unwrap());
        assert!(is_open(&other));
        tokio::time::sleep(IDLE * 3 / 2).await;
        assert!(!is_open(&other));
    }

    #[test]
    fn none_outlives_its_runtime() {
        let connections = Connections::new("/nowhere".into());
        let (idle, theirs) = idle();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            connections.put_back(Connection::resume(idle).unwrap());
        });
        assert!(is_open(&theirs));
        drop(runtime);
        assert!(!is_open(&theirs));
        assert!(!lock(&connections.kept).swept);
    }
}
