//! What several want to write at the same moment is written by one statement, and is on disk with one
//! commit. Nothing waits for company: while a statement is on its way, what comes gathers for the next.
//! The connection is kept for what comes next, which then finds everything at hand there.

use super::{CONNECT, FRESH, STATEMENT, StoreError, still_answers};
use futures_util::FutureExt;
use serde::Serialize;
use sqlx::pool::PoolConnection;
use sqlx::{PgConnection, PgPool, Postgres};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

/// Rows of one statement at most.
const ROWS: usize = 64;

/// Bytes of one statement, about: what is small does not wait for much.
const BYTES: usize = 4 << 20;

/// How long a connection is kept for what comes next.
const KEPT: Duration = Duration::from_mins(1);

/// How long a batch may take until its connection is given up: to get one, and the statement.
const PATIENCE: Duration = CONNECT.saturating_add(STATEMENT);

/// Something that can be written together with others of its kind.
pub(super) trait Row: Send + Sync + Sized + 'static {
    /// What is said of it then.
    type Answer: Send + 'static;

    /// What one of them asks for, for errors: "cannot …".
    const DOING: &'static str;

    /// About how large it is.
    fn bytes(&self) -> usize;

    /// Writes all of them or none, and gives the answers in their order.
    fn write(
        database: &mut PgConnection,
        rows: &[Self],
    ) -> impl Future<Output = Result<Vec<Self::Answer>, sqlx::Error>> + Send;
}

/// Rows, or a part of one, as the statements take them.
pub(super) fn in_json(rows: &(impl Serialize + ?Sized)) -> Result<String, sqlx::Error> {
    serde_json::to_string(rows).map_err(|error| sqlx::Error::Encode(error.into()))
}

type Said<R> = oneshot::Sender<Result<<R as Row>::Answer, StoreError>>;

/// Where rows of a kind are given in. Clones share it; its task ends with the last of them.
#[derive(Debug)]
pub(super) struct Together<R: Row> {
    inbox: mpsc::Sender<(R, Said<R>)>,
}

impl<R: Row> Clone for Together<R> {
    fn clone(&self) -> Self {
        Self {
            inbox: self.inbox.clone(),
        }
    }
}

impl<R: Row> Together<R> {
    pub(super) fn begin(pool: &PgPool) -> Self {
        let (inbox, rows) = mpsc::channel(ROWS);
        tokio::spawn(serve(pool.clone(), rows));
        Self { inbox }
    }

    pub(super) async fn write(&self, row: R) -> Result<R::Answer, StoreError> {
        let (said, hears) = oneshot::channel();
        let ended = || StoreError::query(R::DOING)(sqlx::Error::PoolClosed);
        let given = self.inbox.send((row, said)).await;
        given.map_err(|_ended| ended())?;
        hears.await.map_err(|_ended| ended())?
    }
}

async fn serve<R: Row>(pool: PgPool, mut inbox: mpsc::Receiver<(R, Said<R>)>) {
    let mut way = Way { pool, kept: None };
    let mut came = Vec::new();
    while way.next(&mut inbox, &mut came).await > 0 {
        // Whoever has gone away meanwhile wants nothing any more.
        came.retain(|(_, said)| !said.is_closed());
        while !came.is_empty() {
            let (rows, said): (Vec<R>, Vec<_>) = came.drain(..fitting(&came)).unzip();
            let answers = answers(&mut way, &rows).await;
            for (answer, said) in answers.into_iter().zip(said) {
                // He has gone away.
                said.send(answer).ok();
            }
        }
    }
}

/// How many of them go into one statement.
fn fitting<R: Row, S>(came: &[(R, S)]) -> usize {
    let mut bytes = 0;
    let fits = |(row, _): &&(R, S)| {
        bytes += row.bytes();
        bytes <= BYTES
    };
    came.iter().take_while(fits).count().max(1)
}

async fn answers<R: Row>(way: &mut Way, rows: &[R]) -> Vec<Result<R::Answer, StoreError>> {
    let error = match way.write(rows).await {
        Ok(answers) => return answers.into_iter().map(Ok).collect(),
        Err(source) => move || StoreError::Query {
            doing: R::DOING,
            source: Arc::clone(&source),
        },
    };
    if rows.len() == 1 || !error().is_of_some_row() {
        return rows.iter().map(|_| Err(error())).collect();
    }
    // Nothing was written, and whichever is to blame shall not stand in the way of the others.
    let mut answers = Vec::new();
    for row in rows {
        let alone = way.write(std::slice::from_ref(row)).await;
        let alone = alone.map(|mut answers| answers.pop());
        answers.push(match alone {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(error()),
            Err(source) => Err(StoreError::Query {
                doing: R::DOING,
                source,
            }),
        });
    }
    answers
}

/// The way to the database.
struct Way {
    pool: PgPool,
    /// The last one, which did what it should, and when that was.
    kept: Option<(PoolConnection<Postgres>, Instant)>,
}

impl Way {
    /// Waits for what is to be written next, and says how much that is; nothing comes after nothing.
    async fn next<R>(&mut self, inbox: &mut mpsc::Receiver<R>, came: &mut Vec<R>) -> usize {
        if self.kept.is_some() {
            let soon = timeout(KEPT, inbox.recv_many(came, ROWS));
            // Who closes the pool waits for all connections.
            if let Ok(Ok(count)) = self.pool.close_event().do_until(soon).await {
                return count;
            }
            self.kept = None;
        }
        inbox.recv_many(came, ROWS).await
    }

    async fn connection(&mut self) -> Result<PoolConnection<Postgres>, sqlx::Error> {
        if let Some((mut connection, used)) = self.kept.take()
            && (used.elapsed() < FRESH || still_answers(&mut connection).await.is_ok())
        {
            return Ok(connection);
        }
        self.pool.acquire().await
    }

    async fn write<R: Row>(&mut self, rows: &[R]) -> Result<Vec<R::Answer>, Arc<sqlx::Error>> {
        let write = async {
            let mut connection = self.connection().await?;
            let answers = R::write(&mut connection, rows).await?;
            self.kept = Some((connection, Instant::now()));
            Ok(answers)
        };
        // What fails for one batch shall not end the task, which writes for all.
        let written = timeout(PATIENCE, AssertUnwindSafe(write).catch_unwind()).await;
        let written = written.unwrap_or(Ok(Err(sqlx::Error::PoolTimedOut)));
        let written = written.unwrap_or(Err(sqlx::Error::WorkerCrashed));
        written.map_err(Arc::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sized(usize);

    impl Row for Sized {
        type Answer = ();

        const DOING: &'static str = "write what has a size";

        fn bytes(&self) -> usize {
            self.0
        }

        async fn write(_: &mut PgConnection, rows: &[Self]) -> Result<Vec<()>, sqlx::Error> {
            Ok(rows.iter().map(|_| ()).collect())
        }
    }

    #[test]
    fn a_statement_takes_as_many_as_fit_and_one_at_least() {
        let fitting = |sizes: &[usize]| {
            let came: Vec<_> = sizes.iter().map(|&bytes| (Sized(bytes), ())).collect();
            super::fitting(&came)
        };
        assert_eq!(fitting(&[1, 2, 3]), 3);
        assert_eq!(fitting(&[1, BYTES, 3]), 1);
        assert_eq!(fitting(&[BYTES - 1, 1, 1]), 2);
        assert_eq!(fitting(&[BYTES + 1, 1]), 1);
    }
}
