//! What servers tell each other. It is a hint: who misses it finds out by looking, only later.

use super::{Store, StoreError};
use sqlx::postgres::PgListener;

const QUEUED: &str = "tako_queued";
const CANCEL: &str = "tako_cancel";

/// What was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// Something has come that can be claimed.
    Queued,
    /// Whoever runs this job shall end it.
    Cancel(String),
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
                CANCEL => return Ok(Notice::Cancel(told.payload().to_owned())),
                _ => {}
            }
        }
    }
}

impl Store {
    /// Begins to listen.
    ///
    /// # Errors
    /// [`StoreError::Connect`].
    pub async fn listen(&self) -> Result<Listener, StoreError> {
        let connect = |source| StoreError::Connect { source };
        let mut listener = PgListener::connect_with(&self.pool)
            .await
            .map_err(connect)?;
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
