//! Claims whose reply is lost: their jobs have not begun, and lose nothing by it.

use super::cluster;
use super::daemon::Daemon;
use super::history::Watch;
use super::host::on_this_host;
use super::jobs;
use super::processes::takes;
use super::queue::{store, way};
use super::server::{LEASE, Server};
use std::time::{Duration, Instant};
use tako_vm::store::audit::Actor;
use tako_vm::store::queue::{Cancelled, Enqueued, State, Submission, tokens};
use tokio::time::sleep;
use uuid::Uuid;

/// A job that must not be repeated when it may have begun.
fn once(id: &str) -> Submission {
    Submission {
        network: true,
        repeatable: false,
        max_attempts: 1,
        ..takes(id, 0.0)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_begun_unheard_is_given_back_by_its_token_and_nothing_else_is() {
    let (way, through, direct) = way().await;
    let (store, careful) = (store(&through, 3).await, store(&direct, 3).await);
    let worker = jobs::worker("w");
    careful.enqueue(&once("a"), None, None).await.unwrap();
    let lost = tokens(3);
    way.lose_one_with("print('up')");
    assert!(store.claim(&worker, &lost).await.is_err());
    let state = async |id| careful.standing(id).await.unwrap().unwrap();
    assert_eq!(state("a").await.state, State::Running);
    let given_back = careful.give_back(&lost).await.unwrap();
    assert_eq!(given_back.len(), 1);
    assert!(lost.contains(&given_back[0].token));
    assert_eq!(state("a").await.attempts, 0);
    assert_eq!(careful.give_back(&lost).await.unwrap(), []);

    // Another attempt has another token.
    let claim = careful.claim(&worker, &tokens(3)).await.unwrap().remove(0);
    assert_eq!((claim.held.id.as_str(), claim.attempt), ("a", 1));
    assert_eq!(careful.give_back(&lost).await.unwrap(), []);
    assert_eq!(state("a").await.state, State::Running);

    // With the statement that takes a job in.
    let token = Uuid::new_v4();
    way.lose_one_with("the-id-of-b");
    let job = once("the-id-of-b");
    let enqueued = store.enqueue(&job, None, Some((&worker, token))).await;
    assert!(enqueued.is_err(), "{enqueued:?}");
    assert_eq!(state("the-id-of-b").await.state, State::Running);
    let cancelled = careful.cancel("the-id-of-b", Actor::default()).await;
    assert_eq!(cancelled.unwrap(), Cancelled::Asked);
    assert_eq!(careful.give_back(&[token]).await.unwrap().len(), 1);
    let state = state("the-id-of-b").await.state;
    assert_eq!(state, State::Ended(tako_vm::job::Status::Cancelled));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_job_that_must_not_be_repeated_runs_once_though_the_reply_to_its_claim_is_lost() {
    let (daemon, (way, through, direct)) = (Daemon::start(), way().await);
    let server = Server::start("w", &through, &daemon.socket()).await;
    let watch = Watch::begin(&direct, LEASE).await;
    way.lose_one_with("print('up')");
    server.submit_job(&once("a")).await;
    let begun = Instant::now();
    assert_succeeded_at_once(&server, "a").await;
    eprintln!("claimed, lost, given back and run in {:?}", begun.elapsed());

    // One that is claimed as it is taken in: nobody knows whether it was, and it runs.
    way.lose_one_with("the-id-of-b");
    let job = once("the-id-of-b");
    let at_once = server.dispatcher.submit_at_once(&job, None).await;
    assert!(at_once.is_err(), "{at_once:?}");
    assert_succeeded_at_once(&server, "the-id-of-b").await;
    let again = server.dispatcher.submit_at_once(&job, None).await.unwrap();
    assert!(matches!(again, Enqueued::Known { .. }), "{again:?}");
    let history = watch.assert_holds().await;
    assert_eq!(history.ended("succeeded"), 2);
    for id in ["a", "the-id-of-b"] {
        assert_eq!(history.claims(id).len(), 2, "{id}");
    }
    drop(server);
    daemon.assert_empty_within(Duration::from_secs(5));
}

async fn assert_succeeded_at_once(server: &Server, id: &str) {
    let entry = server.ended(id).await;
    let succeeded = State::Ended(tako_vm::job::Status::Succeeded);
    assert_eq!(
        (entry.state, entry.attempts),
        (succeeded, 1),
        "what was not heard of counts: {:?}",
        entry.left
    );
}

/// Has the claim of a job wait while it has the job's row, so that no other claim finds it.
const SLOW_CLAIMS: &str = "
CREATE FUNCTION public.wait() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NEW; END $$;
CREATE TRIGGER wait BEFORE UPDATE ON tako.jobs FOR EACH ROW
    WHEN (OLD.state = 'queued' AND NEW.state = 'running') EXECUTE FUNCTION public.wait();
SELECT pg_advisory_lock(1)";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_claim_that_is_carried_out_after_it_was_given_up_is_given_back_as_well() {
    let (daemon, (way, through, direct)) = (Daemon::start(), way().await);
    store(&direct, 2)
        .await
        .enqueue(&once("a"), None, None)
        .await
        .unwrap();
    let mut keeps = cluster::connect(&direct).await;
    sqlx::raw_sql(SLOW_CLAIMS)
        .execute(&mut keeps)
        .await
        .unwrap();
    let server = Server::start("w", &through, &daemon.socket()).await;
    let mut looks = cluster::connect(&direct).await;
    let begun = Instant::now();
    loop {
        let waits: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock'
                AND query LIKE '-- Begins an attempt%'",
        )
        .fetch_one(&mut looks)
        .await
        .unwrap();
        if waits > 0 {
            break;
        }
        assert!(begun.elapsed() < on_this_host(Duration::from_secs(5)));
        sleep(Duration::from_millis(10)).await;
    }
    way.cut_clients_off();
    // It is looked for, more than once, and is not there yet.
    sleep(Duration::from_millis(1500)).await;
    let before = server.store.depth().await.unwrap();
    assert_eq!((before.queued, before.running), (1, 0));
    sqlx::raw_sql("SELECT pg_advisory_unlock(1)")
        .execute(&mut keeps)
        .await
        .unwrap();
    assert_succeeded_at_once(&server, "a").await;
    drop(server);
    daemon.assert_empty_within(Duration::from_secs(5));
}
