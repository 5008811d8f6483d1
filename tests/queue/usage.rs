//! How many bytes of files an owner has.

use super::cluster;
use super::jobs::{ended, job_of, outcome_with_a_file, worker};
use std::time::Duration;
use tako_vm::job::{Artifact, Termination};
use tako_vm::store::history::End;
use tako_vm::store::queue::{Claim, tokens};
use tako_vm::store::{Database, Store};

/// A file of so many bytes.
fn file(name: &str, size_bytes: u64) -> Artifact {
    Artifact {
        name: name.to_owned(),
        size_bytes,
        sha256: "ab".repeat(32),
        content_type: None,
        path: "/nowhere".into(),
    }
}

async fn finish(store: &Store, claim: &Claim, files: &[u64]) -> Option<End> {
    let mut outcome = outcome_with_a_file(Termination::Exited(0));
    outcome.artifacts = files
        .iter()
        .enumerate()
        .map(|(number, &size)| file(&number.to_string(), size))
        .collect();
    store.finish(&claim.held, ended(&outcome)).await.unwrap()
}

/// What is counted of each owner, and what there is.
async fn counted_and_there(url: &str) -> [Vec<(String, i64)>; 2] {
    let mut connection = cluster::connect(url).await;
    let counted = sqlx::query_as(
        "SELECT owner, sum(bytes)::bigint FROM artifact_usage GROUP BY owner
         HAVING sum(bytes) <> 0 ORDER BY owner",
    );
    let counted = counted.fetch_all(&mut connection).await.unwrap();
    let there = sqlx::query_as(
        "SELECT jobs.owner, sum(size_bytes)::bigint FROM artifacts JOIN jobs ON jobs.id = job_id
         GROUP BY jobs.owner ORDER BY jobs.owner",
    );
    [counted, there.fetch_all(&mut connection).await.unwrap()]
}

#[tokio::test]
async fn what_is_recorded_is_counted_for_its_owner_and_no_more_when_it_is_forgotten() {
    let (store, url) = cluster::store().await;
    for (id, owner) in [("a", "one"), ("b", "one"), ("c", "two"), ("d", "two")] {
        store.enqueue(&job_of(id, owner), None, None).await.unwrap();
    }
    let claims = store.claim(&worker("w"), &tokens(10)).await.unwrap();
    let claim = |id: &str| claims.iter().find(|claim| claim.held.id == id).unwrap();
    let bytes = async |id: &str| store.usage(id).await.unwrap().bytes;
    finish(&store, claim("a"), &[1, 20]).await;
    finish(&store, claim("b"), &[]).await;
    finish(&store, claim("c"), &[300]).await;
    assert_eq!(store.usage("a").await.unwrap().owner, "one");
    assert_eq!((bytes("b").await, bytes("d").await), (21, 300));
    // What counts for nothing is not counted.
    assert_eq!(finish(&store, claim("a"), &[4000]).await, None);
    assert_eq!(bytes("a").await, 21);

    assert_eq!(store.forget(Duration::ZERO, 100, "w").await.unwrap(), 3);
    assert_eq!(bytes("d").await, 0);
    finish(&store, claim("d"), &[5]).await;
    assert_eq!(bytes("d").await, 5);
    // Also where somebody else deletes, who has our schema nowhere in sight.
    let mut connection = cluster::connect(&url).await;
    for statement in ["SET search_path = public", "DELETE FROM tako.jobs"] {
        sqlx::query(statement)
            .execute(&mut connection)
            .await
            .unwrap();
    }
    let [counted, there] = counted_and_there(&url).await;
    assert_eq!((counted.len(), there.len()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_counted_is_what_there_is_whatever_comes_and_goes_at_once() {
    let (_, url) = cluster::store().await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0_u64..6 {
        let store = Store::open(&Database::from_url(&url).unwrap(), 5)
            .await
            .unwrap();
        tasks.spawn(async move {
            let worker = worker(&format!("w{number}"));
            for round in 0_u64..30 {
                let owner = format!("owner-{}", (number + round) % 2);
                let job = job_of(&format!("{number}-{round}"), &owner);
                store.enqueue(&job, None, None).await.unwrap();
                for claim in store.claim(&worker, &tokens(3)).await.unwrap() {
                    finish(&store, &claim, &[round, 1000 * number, 7]).await;
                }
                if round % 10 == 9 && number < 2 {
                    store
                        .forget(Duration::from_millis(100), 5, "w")
                        .await
                        .unwrap();
                }
            }
        });
    }
    tasks.join_all().await;
    let [counted, there] = counted_and_there(&url).await;
    assert_eq!(counted, there);
    assert!(
        there.iter().all(|(_, bytes)| *bytes > 0) && there.len() == 2,
        "{there:?}"
    );
}

/// Somebody who is in the middle of it keeps nobody waiting.
#[tokio::test]
async fn two_that_end_at_once_do_not_wait_for_one_another() {
    let (store, url) = cluster::store().await;
    for id in ["a", "b", "c"] {
        store.enqueue(&job_of(id, "one"), None, None).await.unwrap();
    }
    let claims = store.claim(&worker("w"), &tokens(10)).await.unwrap();
    finish(&store, &claims[0], &[1]).await;
    let mut connection = cluster::connect(&url).await;
    let begun = sqlx::query("BEGIN").execute(&mut connection).await;
    begun.unwrap();
    let mine = "INSERT INTO artifacts (job_id, position, name, size_bytes, sha256, owner)
                VALUES ('b', 9, 'x', 100, decode(repeat('00', 32), 'hex'), 'one')";
    sqlx::query(mine).execute(&mut connection).await.unwrap();
    let other = finish(&store, &claims[2], &[10]);
    let other = tokio::time::timeout(Duration::from_secs(2), other).await;
    assert!(other.unwrap().is_some());
    assert_eq!(store.usage("a").await.unwrap().bytes, 11);
    sqlx::query("COMMIT")
        .execute(&mut connection)
        .await
        .unwrap();
    assert_eq!(store.usage("a").await.unwrap().bytes, 111);
}

/// Those of before there was a count are counted when it comes, and so is what an older server records.
#[tokio::test]
async fn files_of_an_older_version_are_counted() {
    let url = cluster::database().await;
    let mut connection = cluster::connect(&url).await;
    let first = include_str!("../../src/store/migrations/0001_jobs.sql");
    let second = include_str!("../../src/store/migrations/0002_artifact_usage.sql");
    let old = "INSERT INTO jobs (id, state, priority, owner, turn, job_type, attempts, max_attempts, ended_at)
               VALUES ('a', 'failed', 0, 'one', 1, 'default', 1, 1, now()),
                   ('b', 'failed', 0, '', 1, 'default', 1, 1, now());
               INSERT INTO artifacts (job_id, position, name, size_bytes, sha256)
               VALUES ('a', 1, 'x', 100, decode(repeat('00', 32), 'hex')),
                   ('b', 1, 'x', 10, decode(repeat('00', 32), 'hex'))";
    let later = "INSERT INTO artifacts (job_id, position, name, size_bytes, sha256)
                 VALUES ('b', 2, 'y', 1, decode(repeat('00', 32), 'hex'))";
    for text in ["CREATE SCHEMA tako", first, old, second, later] {
        sqlx::raw_sql(text).execute(&mut connection).await.unwrap();
    }
    let [counted, there] = counted_and_there(&url).await;
    let expected = [(String::new(), 11), ("one".to_owned(), 100)];
    assert_eq!((&counted[..], &there[..]), (&expected[..], &expected[..]));
}
