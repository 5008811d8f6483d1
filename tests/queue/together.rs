//! What is written by a statement for one, and by a statement for many.

use super::cluster;
use super::jobs::{ended, job, outcome, worker};
use futures_util::future::join_all;
use std::collections::BTreeSet;
use tako_vm::job::{Status, Termination};
use tako_vm::store::Store;
use tako_vm::store::queue::{Enqueued, Held, State};
use uuid::Uuid;

/// Jobs that come at the same moment.
const MANY: usize = 16;

/// What of its row in `jobs` is a job's own.
const JOB: &str =
    "id, number, turn, token, created_at, claimed_at, lease_until, started_at, ended_at";

async fn begin(store: &Store, id: String) -> Held {
    let (job, worker) = (job(&id), worker("w"));
    let begun = Some((&worker, Uuid::new_v4()));
    match store.enqueue(&job, None, begun).await.unwrap() {
        Enqueued::Claimed(claim) => claim.held,
        other => panic!("{other:?}"),
    }
}

/// Whether each was recorded.
async fn finish(store: &Store, all: impl IntoIterator<Item = Held>) -> BTreeSet<bool> {
    let outcome = outcome(Termination::Exited(3));
    let finished = all.into_iter().map(async |held| {
        let end = store.finish(&held, ended(&outcome)).await;
        end.unwrap().is_some()
    });
    join_all(finished).await.into_iter().collect()
}

/// How many rows of a table differ in more than what is each job's `own`, and how many were written at once
/// at most.
async fn rows(url: &str, table: &str, own: &str) -> (i64, i64) {
    let query = format!(
        "WITH written AS (
            SELECT xmin::text AS at, to_jsonb({table}) - '{{{own}}}'::text[] AS said FROM {table}
        )
        SELECT (SELECT count(DISTINCT said) FROM written),
            (SELECT max(jobs) FROM (SELECT count(*) AS jobs FROM written GROUP BY at) AS batches)"
    );
    let database = &mut cluster::connect(url).await;
    sqlx::query_as(sqlx::AssertSqlSafe(query))
        .fetch_one(database)
        .await
        .unwrap()
}

#[tokio::test]
async fn what_comes_alone_is_written_as_what_comes_together_and_as_well_guarded() {
    let (store, url) = cluster::store().await;
    let alone = begin(&store, "alone".to_owned()).await;
    let many = join_all((0..MANY).map(|n| begin(&store, format!("job-{n}")))).await;
    for (table, own) in [("jobs", JOB), ("payloads", "job_id")] {
        let (different, together) = rows(&url, table, own).await;
        assert_eq!(different, 1, "{table}");
        assert!(together > 1, "{table}");
    }
    let foreign = many.iter().map(|held| Held {
        token: Uuid::new_v4(),
        ..held.clone()
    });
    assert_eq!(
        finish(&store, foreign).await,
        [false].into(),
        "one of them was another's to end"
    );
    assert_eq!(finish(&store, [alone]).await, [true].into());
    assert_eq!(finish(&store, many.clone()).await, [true].into());
    let attempt = "job_id, token, claimed_at, over_at";
    for (table, own) in [
        ("jobs", JOB),
        ("attempts", attempt),
        ("records", "job_id, token"),
    ] {
        let (different, together) = rows(&url, table, own).await;
        assert_eq!(different, 1, "{table}");
        assert!(together > 1, "{table}");
    }
    assert_eq!(
        finish(&store, many.clone()).await,
        [false].into(),
        "one of them has ended twice"
    );
    let standing = store.standing(&many[0].id).await.unwrap().unwrap();
    assert_eq!(standing.state, State::Ended(Status::Failed));
}
