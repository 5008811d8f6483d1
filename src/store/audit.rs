//! Who did what. What changes jobs in SQL writes its line by the same statement, so that neither is there
//! without the other; what every job does on its way is told by `jobs` and `attempts`, and not here.

use super::history::timestamp;
use super::{Store, StoreError};
use jiff::Timestamp;
use std::time::Duration;

/// Whoever asks for something.
#[derive(Debug, Clone, Copy, Default)]
pub struct Actor<'a> {
    /// Whose key it was; the empty text stands for all that have none.
    pub owner: &'a str,
    /// Where the request came from.
    pub client_address: Option<&'a str>,
}

/// What a server does with itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OfServer {
    /// It takes jobs in, and runs them.
    Start {
        /// Its own.
        version: &'static str,
    },
    /// It was told to end, and lets what runs go on for so long.
    Drain {
        /// From now.
        patience: Duration,
    },
    /// It has ended.
    Stop {
        /// Somebody did not want to wait: what still ran was given back.
        at_once: bool,
    },
}

impl OfServer {
    fn action(self) -> &'static str {
        match self {
            Self::Start { .. } => "server_start",
            Self::Drain { .. } => "server_drain",
            Self::Stop { .. } => "server_stop",
        }
    }

    fn detail(self, server: &str) -> serde_json::Value {
        match self {
            Self::Start { version } => serde_json::json!({"server": server, "version": version}),
            Self::Drain { patience } => {
                serde_json::json!({"server": server, "patience_seconds": patience.as_secs()})
            }
            Self::Stop { at_once } => serde_json::json!({"server": server, "at_once": at_once}),
        }
    }
}

/// Something that was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Act {
    /// Later ones have higher numbers.
    pub number: i64,
    /// By the clock of the database.
    pub at: Timestamp,
    /// Who did it; the empty text also stands for servers.
    pub owner: String,
    /// `cancel`, `forget_jobs`, `forget_dead_letters`, `forget_acts`, `server_start`, `server_drain` or
    /// `server_stop`.
    pub action: String,
    /// To which job, if to one.
    pub job_id: Option<String>,
    /// Where the request came from.
    pub client_address: Option<String>,
    /// An object: how it came out, how many they were, which server it was.
    pub detail: serde_json::Value,
}

impl Store {
    /// Notes what a server does with itself.
    ///
    /// # Errors
    /// [`StoreError::Query`].
    pub async fn note(&self, server: &str, act: OfServer) -> Result<(), StoreError> {
        sqlx::query!(
            "INSERT INTO audit (owner, action, detail) VALUES ('', $1, $2)",
            act.action(),
            act.detail(server),
        )
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(StoreError::query("note what a server does"))
    }

    /// What was done, to one job or at all, the latest first: at most `most`, of those with lower numbers
    /// than `before`.
    ///
    /// # Errors
    /// [`StoreError::Query`].
    pub async fn acts(
        &self,
        job: Option<&str>,
        before: Option<i64>,
        most: u32,
    ) -> Result<Vec<Act>, StoreError> {
        let rows = sqlx::query!(
            r#"
            SELECT id, (extract(epoch FROM at) * 1000000)::bigint AS "at!", owner, action, job_id,
                client_address, detail
            FROM audit
            WHERE ($1::text IS NULL OR job_id = $1) AND ($2::bigint IS NULL OR id < $2)
            ORDER BY id DESC
            LIMIT $3
            "#,
            job,
            before,
            i64::from(most),
        )
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::query("read what was done"))?;
        let acts = rows.into_iter().map(|row| {
            Ok(Act {
                number: row.id,
                at: timestamp(row.at)?,
                owner: row.owner,
                action: row.action,
                job_id: row.job_id,
                client_address: row.client_address,
                detail: row.detail,
            })
        });
        acts.collect()
    }

    /// Forgets acts that are older than this, at most so many; gives how many they were.
    ///
    /// # Errors
    /// [`StoreError::Query`].
    pub async fn forget_acts(
        &self,
        after: Duration,
        most: u32,
        server: &str,
    ) -> Result<u64, StoreError> {
        let forgotten = sqlx::query_scalar!(
            r#"
            WITH forgotten AS (
                DELETE FROM audit WHERE id = ANY (ARRAY(
                    SELECT id FROM audit
                    WHERE at < clock_timestamp() - $1::double precision * interval '1 s'
                    ORDER BY at
                    LIMIT $2
                ))
                RETURNING id
            ), note AS (
                INSERT INTO audit (owner, action, detail)
                SELECT '', 'forget_acts', jsonb_build_object('count', count(*), 'server', $3::text)
                FROM forgotten HAVING count(*) > 0
            )
            SELECT count(*) AS "count!" FROM forgotten
            "#,
            after.as_secs_f64(),
            i64::from(most),
            server,
        )
        .fetch_one(&self.pool)
        .await
        .map_err(StoreError::query("forget what was done long ago"))?;
        Ok(forgotten.cast_unsigned())
    }
}
