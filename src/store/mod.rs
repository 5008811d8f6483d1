//! Jobs and their history in PostgreSQL: a schema `tako` of our own, whatever else the database holds.
//!
//! [`queue`] has what changes a job, [`history`] what looks at it, [`audit`] who did what. All times are those of the database,
//! since servers on several hosts share it. What must be true at the same time is written by one
//! statement; what is to be written at the same moment often is as well ([`together`]).

mod arrivals;
pub mod audit;
mod endings;
pub mod files;
pub mod history;
pub mod listen;
pub mod queue;
mod together;

use arrivals::Arrival;
use endings::Ending;
use sqlx::error::DatabaseError;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgConnection, PgPool};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use together::Together;
use tokio::time::timeout;

/// The schema that everything of ours lies in.
const SCHEMA: &str = "tako";

/// How long a statement may take: those of a job take milliseconds.
const STATEMENT: Duration = Duration::from_secs(10);

/// How long a statement waits for a row that somebody else has locked: nobody of ours keeps one for
/// longer than a statement takes.
const LOCK: Duration = Duration::from_secs(5);

/// How long a change of the schema waits for a lock: meanwhile whoever comes later waits for it.
const SCHEMA_LOCK: Duration = Duration::from_secs(10);

/// How long a transaction may be idle: a server that hangs shall not keep rows locked.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(15);

/// How long to wait for a connection: to make one, or for one of the pool to be free.
const CONNECT: Duration = Duration::from_secs(5);

/// A connection that has answered within this time is taken to be alive.
const FRESH: Duration = Duration::from_secs(1);

/// How long a connection may take to show that it is alive: it leaves time to make another one.
const ALIVE: Duration = Duration::from_secs(2);

/// PostgreSQL's error code for a lock that was waited for in vain.
const LOCK_NOT_AVAILABLE: &str = "55P03";

static MIGRATIONS: Migrator = sqlx::migrate!("src/store/migrations");

/// Why the database did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
pub enum StoreError {
    #[error("the database URL is not of the form `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`")]
    Url { source: sqlx::Error },
    #[error("cannot connect to the database")]
    Connect { source: sqlx::Error },
    #[error("cannot bring the schema `{SCHEMA}` up to date")]
    Migrate { source: MigrateError },
    #[error("the schema `{SCHEMA}` is locked: {by}")]
    Locked { by: String },
    #[error("cannot {doing}")]
    Query {
        doing: &'static str,
        source: Arc<sqlx::Error>,
    },
    #[error("the database holds a job that this version does not understand: {what}")]
    Unknown { what: String },
}

impl StoreError {
    fn query(doing: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self::Query {
            doing,
            source: Arc::new(source),
        }
    }

    /// Nothing was heard for too long.
    pub(crate) fn late(doing: &'static str) -> Self {
        Self::query(doing)(sqlx::Error::PoolTimedOut)
    }

    fn source(&self) -> Option<&sqlx::Error> {
        match self {
            Self::Connect { source } => Some(source),
            Self::Query { source, .. } => Some(source),
            _ => None,
        }
    }

    /// The class of PostgreSQL's error code (its manual, appendix A).
    fn class(&self) -> Option<String> {
        let code = self.source()?.as_database_error()?.code()?;
        code.get(..2).map(str::to_owned)
    }

    /// Whether what was to be written is itself what the database does not take, so that it never will:
    /// data exceptions, violated constraints, limits of the program. Anything else may be mended.
    pub fn is_about_the_data(&self) -> bool {
        let class = self.class();
        class.is_some_and(|class| ["22", "23", "54"].contains(&class.as_str()))
    }

    /// Whether nothing was written for the sake of some of the rows that were to be: of what they hold, or
    /// of a deadlock.
    fn is_of_some_row(&self) -> bool {
        self.is_about_the_data() || self.class().is_some_and(|class| class == "40")
    }

    /// Whether the database was not reached, or ends, or begins.
    pub fn is_about_the_connection(&self) -> bool {
        match self.class() {
            Some(class) => ["08", "57"].contains(&class.as_str()),
            None => self.source().is_some(),
        }
    }
}

/// Where jobs are kept. Clones share its connections.
#[derive(Debug, Clone)]
pub struct Store {
    pool: PgPool,
    arrivals: Together<Arrival>,
    endings: Together<Ending>,
}

/// How to reach a database.
#[derive(Debug, Clone)]
pub struct Database(PgConnectOptions);

impl Database {
    /// A URL as PostgreSQL has it. SQLAlchemy's way to name a driver (`postgresql+psycopg://`), which
    /// Tako VM takes, is understood.
    ///
    /// # Errors
    /// [`StoreError::Url`].
    pub fn from_url(url: &str) -> Result<Self, StoreError> {
        let plain = match url.split_once("://") {
            Some((scheme, rest)) if scheme.starts_with("postgresql+") => {
                format!("postgresql://{rest}")
            }
            _ => url.to_owned(),
        };
        PgConnectOptions::from_str(&plain)
            .map(Self)
            .map_err(|source| StoreError::Url { source })
    }

    fn options(&self) -> PgConnectOptions {
        let milliseconds = |time: Duration| time.as_millis().to_string();
        let options = self.0.clone().application_name("tako-vm").options([
            ("search_path", SCHEMA.to_owned()),
            ("statement_timeout", milliseconds(STATEMENT)),
            ("lock_timeout", milliseconds(LOCK)),
            (
                "idle_in_transaction_session_timeout",
                milliseconds(IDLE_IN_TRANSACTION),
            ),
            // That something is there already is no news.
            ("client_min_messages", "warning".to_owned()),
            // A result that was told is on disk, whatever the server's default is.
            ("synchronous_commit", "on".to_owned()),
            // Our statements are large, and what they are given changes nothing of how they go best: to plan
            // one takes longer than to run it, and by default each connection does that five times.
            ("plan_cache_mode", "force_generic_plan".to_owned()),
        ]);
        // A connection keeps its plans, and there is an index for whatever a statement looks for: none shall
        // read whole tables for as long as it lives because they were small when it came.
        let others = [
            "enable_seqscan",
            "enable_bitmapscan",
            "enable_hashjoin",
            "enable_mergejoin",
            "enable_sort",
            "jit",
        ];
        options.options(others.map(|way| (way, "off")))
    }
}

impl Store {
    /// Connects, and brings the schema up to date. Of several that do so at once, one does the work.
    ///
    /// # Errors
    /// [`StoreError::Connect`], [`StoreError::Migrate`], or [`StoreError::Locked`] when somebody else has been
    /// in the way for ten seconds.
    pub async fn open(database: &Database, connections: u32) -> Result<Self, StoreError> {
        let options = database.options();
        migrate(&options).await?;
        let pool = PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(CONNECT)
            // In the place of sqlx's own look, which has no bound.
            .test_before_acquire(false)
            .before_acquire(|connection, meta| {
                Box::pin(
                    async move { Ok(meta.idle_for < FRESH || still_answers(connection).await?) },
                )
            })
            .after_release(|connection, _| Box::pin(still_answers(connection)))
            .connect_lazy_with(options);
        Ok(Self {
            arrivals: Together::begin(&pool),
            endings: Together::begin(&pool),
            pool,
        })
    }

    /// Closes all connections, and waits for those that are in use.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// [`StoreError::Query`].
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1")
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(StoreError::query("reach the database"))
    }
}

/// Looks at a connection of the pool: the server may be gone, and whoever had it may have given up on an
/// answer. Without a bound it would keep its place in the pool for as long as nobody says that it is dead.
async fn still_answers(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let answer = timeout(ALIVE, connection.ping()).await;
    answer
        .unwrap_or(Err(sqlx::Error::PoolTimedOut))
        .map(|()| true)
}

/// The schema first, so that the list of what was applied lies in it as well.
async fn migrate(database: &PgConnectOptions) -> Result<(), StoreError> {
    let lock = SCHEMA_LOCK.as_millis().to_string();
    // An index of a large table takes its time.
    let patient = [("statement_timeout", "0"), ("lock_timeout", lock.as_str())];
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(CONNECT)
        .connect_with(database.clone().options(patient))
        .await
        .map_err(|source| StoreError::Connect { source })?;
    let migrated = apply(&pool).await;
    let migrated = match migrated {
        Err(source) if is_about_a_lock(&source) => Err(StoreError::Locked {
            by: who_locks(&pool).await,
        }),
        migrated => migrated.map_err(|source| StoreError::Migrate { source }),
    };
    pool.close().await;
    migrated
}

async fn apply(pool: &PgPool) -> Result<(), MigrateError> {
    // Two at once may both find it missing: then one of them fails, and finds it the next time.
    let make = || sqlx::query("CREATE SCHEMA IF NOT EXISTS tako").execute(pool);
    if make().await.is_err() {
        make().await?;
    }
    MIGRATIONS.run(pool).await
}

fn is_about_a_lock(error: &MigrateError) -> bool {
    let (MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) = error else {
        return false;
    };
    let code = error.as_database_error().and_then(DatabaseError::code);
    code.is_some_and(|code| code == LOCK_NOT_AVAILABLE)
}

/// Whoever has something locked that a change of the schema needs, the one who has had it longest first.
async fn who_locks(pool: &PgPool) -> String {
    let who = sqlx::query_scalar::<_, Option<String>>(
        "SELECT string_agg(who, '; ') FROM (
            SELECT DISTINCT ON (xact_start, pid) format('process %s of PostgreSQL (`%s`, %s since %s)', pid,
                application_name, state, date_trunc('second', state_change)) AS who
            FROM pg_locks JOIN pg_stat_activity USING (pid)
            LEFT JOIN pg_class ON pg_class.oid = relation
            WHERE granted AND pid <> pg_backend_pid() AND datname = current_database()
                AND (locktype = 'advisory' OR relnamespace = to_regnamespace('tako'))
            ORDER BY xact_start, pid
            LIMIT 3
        ) others",
    );
    let who = who.fetch_one(pool).await.ok().flatten();
    who.unwrap_or_else(|| "nobody has it any more".to_owned())
}
