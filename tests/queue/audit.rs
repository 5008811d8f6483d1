//! Who did what.

use super::cluster;
use super::jobs::{ended, job, outcome, worker};
use serde_json::json;
use std::time::Duration;
use tako_vm::job::{Status, Termination};
use tako_vm::store::Store;
use tako_vm::store::audit::{Act, Actor, OfServer};
use tako_vm::store::queue::{Cancelled, Release, State, tokens};

const SOMEBODY: Actor<'_> = Actor {
    owner: "somebody",
    client_address: Some("192.0.2.1"),
};

async fn acts(store: &Store, job: Option<&str>) -> Vec<Act> {
    store.acts(job, None, 100).await.unwrap()
}

#[tokio::test]
async fn every_cancel_is_told_once_with_who_wanted_it_and_how_it_came_out() {
    let (store, _url) = cluster::store().await;
    store.enqueue(&job("a"), None, None).await.unwrap();
    assert_eq!(store.cancel("a", SOMEBODY).await.unwrap(), Cancelled::Now);
    store.cancel("a", Actor::default()).await.unwrap();
    store.enqueue(&job("b"), None, None).await.unwrap();
    let claim = store
        .claim(&worker("w"), &tokens(1))
        .await
        .unwrap()
        .remove(0);
    assert_eq!(store.cancel("b", SOMEBODY).await.unwrap(), Cancelled::Asked);
    let done = outcome(Termination::Exited(0));
    store.finish(&claim.held, ended(&done)).await.unwrap();
    // Nothing was done to it.
    store.cancel("c", SOMEBODY).await.unwrap();

    let told: Vec<_> = acts(&store, None)
        .await
        .into_iter()
        .map(|act| {
            (
                act.owner,
                act.client_address,
                act.job_id.unwrap(),
                act.detail,
            )
        })
        .collect();
    let address = || Some("192.0.2.1".to_owned());
    let line = |owner: &str, address, id: &str, outcome: &str, state: &str| {
        let detail = json!({"outcome": outcome, "state": state});
        (owner.to_owned(), address, id.to_owned(), detail)
    };
    let expected = [
        line("somebody", address(), "b", "asked", "running"),
        line("", None, "a", "too_late", "cancelled"),
        line("somebody", address(), "a", "cancelled", "cancelled"),
    ];
    assert_eq!(told, expected, "what was told of cancels");
    assert_eq!(acts(&store, Some("b")).await.len(), 1);
    let first = &acts(&store, Some("a")).await[0];
    assert_eq!(first.action, "cancel");
    let before = store.acts(None, Some(first.number), 1).await.unwrap();
    assert_eq!(before.len(), 1);
    assert!(before[0].number < first.number && before[0].at <= first.at);
}

#[tokio::test]
async fn what_jobs_do_on_their_way_writes_nothing_into_the_audit() {
    let (store, _url) = cluster::store().await;
    for id in ["a", "b"] {
        store.enqueue(&job(id), None, None).await.unwrap();
    }
    let claims = store.claim(&worker("w"), &tokens(2)).await.unwrap();
    let mut pulse = store.pulse().await.unwrap();
    let held: Vec<_> = claims.iter().map(|claim| claim.held.clone()).collect();
    pulse.beat(&worker("w"), &held).await.unwrap();
    store.release(&held[0], Release::Unused).await.unwrap();
    let done = outcome(Termination::Exited(0));
    store.finish(&held[1], ended(&done)).await.unwrap();
    store.rescue().await.unwrap();
    assert_eq!(acts(&store, None).await, []);
}

#[tokio::test]
async fn what_is_forgotten_is_told_batch_by_batch_and_so_are_the_lives_of_servers() {
    let (store, _url) = cluster::store().await;
    let start = OfServer::Start { version: "1" };
    store.note("host-1", start).await.unwrap();
    for number in 0..3 {
        let mut job = job(&number.to_string());
        job.max_attempts = 1;
        store.enqueue(&job, None, None).await.unwrap();
    }
    for claim in store.claim(&worker("w"), &tokens(3)).await.unwrap() {
        let release = Release::Failed {
            reason: "its host is gone",
            retry_in: Duration::ZERO,
        };
        store.release(&claim.held, release).await.unwrap();
    }
    let zero = Duration::ZERO;
    while store.forget(zero, 2, "host-1").await.unwrap() > 0 {}
    while store.forget_dead_letters(zero, 5, "host-1").await.unwrap() > 0 {}
    let patience = Duration::from_secs(30);
    store
        .note("host-1", OfServer::Drain { patience })
        .await
        .unwrap();
    let stop = OfServer::Stop { at_once: true };
    store.note("host-1", stop).await.unwrap();
    let mut told: Vec<_> = acts(&store, None).await;
    told.reverse();
    let told: Vec<_> = told
        .into_iter()
        .map(|act| (act.action, act.detail, act.job_id))
        .collect();
    let line = |action: &str, detail| (action.to_owned(), detail, None);
    let expected = [
        line("server_start", json!({"server": "host-1", "version": "1"})),
        line("forget_jobs", json!({"server": "host-1", "count": 2})),
        line("forget_jobs", json!({"server": "host-1", "count": 1})),
        line(
            "forget_dead_letters",
            json!({"server": "host-1", "count": 3}),
        ),
        line(
            "server_drain",
            json!({"server": "host-1", "patience_seconds": 30}),
        ),
        line("server_stop", json!({"server": "host-1", "at_once": true})),
    ];
    assert_eq!(told, expected);
}

#[tokio::test]
async fn old_acts_are_forgotten_in_batches_and_that_is_told_as_well() {
    let (store, url) = cluster::store().await;
    for server in ["host-1", "host-2", "host-3", "host-4"] {
        let start = OfServer::Start { version: "1" };
        store.note(server, start).await.unwrap();
    }
    sqlx::query("UPDATE audit SET at = at - interval '2 days' WHERE detail->>'server' < 'host-4'")
        .execute(&mut cluster::connect(&url).await)
        .await
        .unwrap();
    let day = Duration::from_hours(24);
    assert_eq!(store.forget_acts(day, 2, "host-1").await.unwrap(), 2);
    assert_eq!(store.forget_acts(day, 2, "host-1").await.unwrap(), 1);
    assert_eq!(store.forget_acts(day, 2, "host-1").await.unwrap(), 0);
    let left: Vec<_> = acts(&store, None)
        .await
        .into_iter()
        .map(|act| (act.action, act.detail))
        .collect();
    let forgot = |count| json!({"server": "host-1", "count": count});
    let expected = [
        ("forget_acts".to_owned(), forgot(1)),
        ("forget_acts".to_owned(), forgot(2)),
        (
            "server_start".to_owned(),
            json!({"server": "host-4", "version": "1"}),
        ),
    ];
    assert_eq!(left, expected);
}

#[tokio::test]
async fn what_cannot_be_told_is_not_done() {
    let (store, url) = cluster::store().await;
    for id in ["a", "b"] {
        store.enqueue(&job(id), None, None).await.unwrap();
    }
    store.cancel("b", SOMEBODY).await.unwrap();
    sqlx::raw_sql(
        "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'no room'; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON tako.audit
            FOR EACH ROW EXECUTE FUNCTION public.refuse()",
    )
    .execute(&mut cluster::connect(&url).await)
    .await
    .unwrap();
    assert!(store.cancel("a", SOMEBODY).await.is_err());
    let standing = store.standing("a").await.unwrap().unwrap();
    assert!(standing.state == State::Queued && !standing.cancel_asked);
    assert!(store.forget(Duration::ZERO, 10, "w").await.is_err());
    let kept = store.standing("b").await.unwrap().unwrap();
    assert_eq!(kept.state, State::Ended(Status::Cancelled));
}
