//! What servers tell each other. It is a hint: who misses it finds out by looking, only later.

use super::{ALIVE, CONNECT, Store, StoreError};
use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::time::timeout;

const QUEUED: &str = "tako_queued";
const CANCEL: &str = "tako_cancel";

/// What was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// Something has come that can be claimed.
    Queued,
    /// Whoever runs jobs shall look whether one of them is to end.
    Cancel,
}

/// Hears what is told from now on, on a connection of its own.
#[derive(Debug)]
pub struct Listener(PgListener);

impl Listener {
    /// The next notice.
    ///
    /// # Errors
    /// [`StoreError::Query`] when the connection is lost: what was told meanwhile is missed.
    pub async fn next(&mut self) -> Result<Notice, StoreError> {
        loop {
            let told = self.0.try_recv().await;
            let told = told.map_err(StoreError::query("listen to other servers"))?;
            // It has lost its connection, and would make another one by itself.
            let lost = StoreError::query("listen to other servers");
            let told = told.ok_or_else(|| lost(sqlx::Error::WorkerCrashed))?;
            match told.channel() {
                QUEUED => return Ok(Notice::Queued),
                CANCEL => return Ok(Notice::Cancel),
                _ => {}
            }
        }
    }

    /// Whether the database still answers here, soon.
    ///
    /// # Errors
    /// [`StoreError::Query`].
    pub async fn ping(&mut self) -> Result<(), StoreError> {
        let answer = timeout(ALIVE, sqlx::query("SELECT 1").execute(&mut self.0)).await;
        answer
            .unwrap_or(Err(sqlx::Error::PoolTimedOut))
            .map(drop)
            .map_err(StoreError::query("listen to other servers"))
    }
}

impl Store {
    /// Begins to listen.
    ///
    /// # Errors
    /// [`StoreError::Connect`].
    pub async fn listen(&self) -> Result<Listener, StoreError> {
        let connect = |source| StoreError::Connect { source };
        // In a pool of its own: the place of one that was dropped is free when the server has answered to
        // that, and a server that is gone never does.
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(CONNECT)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_lazy_with(self.pool.connect_options().as_ref().clone());
        let mut listener = PgListener::connect_with(&pool).await.map_err(connect)?;
        // Whoever listens begins anew, and looks at what was missed.
        listener.eager_reconnect(false);
        listener
            .listen_all([QUEUED, CANCEL])
            .await
            .map_err(connect)?;
        Ok(Listener(listener))
    }

    /// Tells all that listen that something can be claimed. Not with the statement that takes a job in:
    /// a commit that tells something is alone in the whole server.
    ///
    /// # Errors
    /// [`StoreError::Query`].
    pub async fn announce(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT pg_notify($1, '')")
            .bind(QUEUED)
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(StoreError::query("tell other servers of a job"))
    }
}
