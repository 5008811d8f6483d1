//! What each operation of the queue does, one by one and many at once.

use super::cluster;
use super::jobs::{ended, full_job, job, job_of, outcome, outcome_with_a_file, worker};
use std::collections::BTreeSet;
use std::time::Duration;
use tako_vm::job::{Status, Termination};
use tako_vm::store::audit::Actor;
use tako_vm::store::history::Filter;
use tako_vm::store::queue::{
    Cancelled, Claim, Enqueued, Idempotency, Release, State, Worker, Written, tokens,
};
use tako_vm::store::{Database, Store, StoreError};
use uuid::Uuid;

async fn claim_one(store: &Store, worker: &Worker) -> Option<Claim> {
    store
        .claim(worker, &tokens(1))
        .await
        .unwrap()
        .into_iter()
        .next()
}

async fn order(store: &Store) -> Vec<String> {
    let mut order = Vec::new();
    while let Some(claim) = claim_one(store, &worker("w")).await {
        order.push(claim.held.id);
    }
    order
}

async fn state(store: &Store, id: &str) -> State {
    store.standing(id).await.unwrap().unwrap().state
}

#[tokio::test]
async fn a_job_comes_out_as_it_went_in_and_its_end_is_kept_to_the_byte() {
    let (store, url) = cluster::store().await;
    let sent = full_job("a");
    assert!(matches!(
        store.enqueue(&sent, None, None).await.unwrap(),
        Enqueued::Queued
    ));
    let claim = claim_one(&store, &worker("w")).await.unwrap();
    assert_eq!(claim.attempt, 1);
    assert_eq!(claim.image, "python");
    assert_eq!(
        format!("{:?}", claim.request),
        format!("{:?}", sent.request)
    );
    let outcome = outcome_with_a_file(Termination::Exited(3));
    let end = store.finish(&claim.held, ended(&outcome)).await.unwrap();
    let (end, entry) = (end.unwrap(), store.entry("a").await.unwrap().unwrap());
    assert_eq!(
        (end.state, Some(end.left)),
        (entry.state, entry.left.map(|left| *left))
    );
    assert_eq!(
        (end.started_at, end.ended_at),
        (entry.started_at, entry.ended_at)
    );
    let row: (String, Vec<u8>, i64, String, i64, String, i64) = sqlx::query_as(
        "SELECT state, stdout, stdout_bytes, result, (SELECT count(*) FROM artifacts WHERE job_id = id),
            error_type, (extract(epoch FROM records.ended_at) * 1000000)::bigint
        FROM jobs JOIN records ON job_id = id",
    )
    .fetch_one(&mut cluster::connect(&url).await)
    .await
    .unwrap();
    let expected = (
        "failed".to_owned(),
        b"2\0\xff\n".to_vec(),
        5000,
        "{}".to_owned(),
        1,
        "runtime_error".to_owned(),
        1_795_308_875_183_473,
    );
    assert_eq!(row, expected);
}

#[tokio::test]
async fn whoever_comes_twice_with_a_key_gets_the_same_job_and_another_owner_his_own() {
    let (store, _url) = cluster::store().await;
    let with = |id: &str, owner: &str, fingerprint| {
        let mut job = job_of(id, owner);
        job.idempotency = Some(Idempotency {
            key: "key-12345".to_owned(),
            fingerprint: [fingerprint; 32],
        });
        job
    };
    let first = store.enqueue(&with("a", "x", 1), None, None).await.unwrap();
    assert!(matches!(first, Enqueued::Queued));
    let claim = claim_one(&store, &worker("w")).await.unwrap();
    let again = store.enqueue(&with("b", "x", 1), None, None).await.unwrap();
    assert!(
        matches!(&again, Enqueued::Known { id, state: State::Running } if id == "a"),
        "{again:?}"
    );
    let other = store.enqueue(&with("c", "x", 2), None, None).await.unwrap();
    assert!(matches!(other, Enqueued::KeyReused), "{other:?}");
    let foreign = store.enqueue(&with("d", "y", 2), None, None).await.unwrap();
    assert!(matches!(foreign, Enqueued::Queued), "{foreign:?}");
    store
        .finish(&claim.held, ended(&outcome(Termination::Exited(0))))
        .await
        .unwrap();
    // Also of a synchronous caller, whose second call does not run it again.
    let again = store
        .enqueue(
            &with("e", "x", 1),
            None,
            Some((&worker("w"), Uuid::new_v4())),
        )
        .await
        .unwrap();
    let ended = State::Ended(Status::Succeeded);
    assert!(
        matches!(&again, Enqueued::Known { id, state } if id == "a" && *state == ended),
        "{again:?}"
    );
}

#[tokio::test]
async fn of_64_equal_submissions_at_once_one_becomes_a_job() {
    let (store, _url) = cluster::store().await;
    let tasks = (0..64).map(|number| {
        let store = store.clone();
        let mut job = job(&format!("job-{number}"));
        job.idempotency = Some(Idempotency {
            key: "the-same-key".to_owned(),
            fingerprint: [7; 32],
        });
        tokio::spawn(async move { store.enqueue(&job, Some(100), None).await.unwrap() })
    });
    let (mut queued, mut known) = (0, BTreeSet::new());
    for task in tasks.collect::<Vec<_>>() {
        match task.await.unwrap() {
            Enqueued::Queued => queued += 1,
            Enqueued::Known { id, .. } => drop(known.insert(id)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((queued, known.len()), (1, 1));
    assert_eq!(store.depth().await.unwrap().queued, 1);
}

#[tokio::test]
async fn a_full_queue_refuses_and_leaves_the_key_free() {
    let (store, _url) = cluster::store().await;
    let mut late = job("late");
    late.idempotency = Some(Idempotency {
        key: "key-12345".to_owned(),
        fingerprint: [1; 32],
    });
    for number in 0..2 {
        store
            .enqueue(&job(&number.to_string()), Some(2), None)
            .await
            .unwrap();
    }
    for _ in 0..2 {
        let refused = store.enqueue(&late, Some(2), None).await.unwrap();
        assert!(matches!(refused, Enqueued::Full), "{refused:?}");
    }
    claim_one(&store, &worker("w")).await.unwrap();
    let taken = store.enqueue(&late, Some(2), None).await.unwrap();
    assert!(matches!(taken, Enqueued::Queued), "{taken:?}");
    // Who has a free slot does not wait, and so needs no room.
    let at_once = store
        .enqueue(&job("sync"), Some(2), Some((&worker("w"), Uuid::new_v4())))
        .await
        .unwrap();
    assert!(matches!(at_once, Enqueued::Claimed(_)), "{at_once:?}");
}

#[tokio::test]
async fn of_many_that_come_at_once_as_many_are_taken_as_there_is_room_for() {
    let (store, _url) = cluster::store().await;
    let tasks = (0..100).map(|number| {
        let store = store.clone();
        let job = job_of(&format!("job-{number}"), &format!("owner-{}", number % 3));
        tokio::spawn(async move { store.enqueue(&job, Some(10), None).await.unwrap() })
    });
    let (mut queued, mut full) = (0, 0);
    for task in tasks.collect::<Vec<_>>() {
        match task.await.unwrap() {
            Enqueued::Queued => queued += 1,
            Enqueued::Full => full += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((queued, full), (10, 90));
}

#[tokio::test]
async fn what_the_database_refuses_does_not_stand_in_the_way_of_what_comes_with_it() {
    let (store, _url) = cluster::store().await;
    let enqueue = |number: u32| {
        let store = store.clone();
        let mut job = full_job(&format!("job-{number}"));
        if number == 7 {
            "no name".clone_into(&mut job.id);
        }
        tokio::spawn(async move {
            store
                .enqueue(&job, None, Some((&worker("w"), Uuid::new_v4())))
                .await
        })
    };
    let mut claims = Vec::new();
    for (number, task) in (0..20)
        .map(enqueue)
        .collect::<Vec<_>>()
        .into_iter()
        .enumerate()
    {
        match task.await.unwrap() {
            Ok(Enqueued::Claimed(claim)) => claims.push(claim),
            Err(error) => assert!(number == 7 && error.is_about_the_data(), "{error:?}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(claims.len(), 19);
    let finish = |claim: Box<Claim>| {
        let store = store.clone();
        let mut outcome = outcome_with_a_file(Termination::Exited(0));
        if claim.held.id == "job-3" {
            outcome.artifacts[0].sha256 = "none".to_owned();
        }
        tokio::spawn(async move { store.finish(&claim.held, ended(&outcome)).await })
    };
    let finished = claims.into_iter().map(finish).collect::<Vec<_>>();
    let mut refused = 0;
    for task in finished {
        match task.await.unwrap() {
            Ok(end) => assert!(end.is_some()),
            Err(error) => {
                assert!(error.is_about_the_data(), "{error:?}");
                refused += 1;
            }
        }
    }
    assert_eq!(refused, 1);
    assert_eq!(state(&store, "job-3").await, State::Running);
    assert_eq!(
        state(&store, "job-4").await,
        State::Ended(Status::Succeeded)
    );
    assert_eq!(store.depth().await.unwrap().running, 1);
}

#[tokio::test]
async fn what_several_have_left_and_brought_is_not_mixed_up() {
    let (store, _url) = cluster::store().await;
    let tasks = (0..30).map(|number: u8| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut job = full_job(&format!("job-{number}"));
            job.request.code = format!("print({number})");
            job.request.files.truncate(usize::from(number % 3));
            job.request
                .files
                .iter_mut()
                .for_each(|file| file.bytes.push(number));
            store.enqueue(&job, None, None).await.unwrap();
            job
        })
    });
    let mut sent = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        sent.push(task.await.unwrap());
    }
    let claims = store.claim(&worker("w"), &tokens(30)).await.unwrap();
    assert_eq!(claims.len(), 30);
    let finished = claims.into_iter().map(|claim| {
        let sent = sent.iter().find(|job| job.id == claim.held.id).unwrap();
        assert_eq!(
            format!("{:?}", claim.request),
            format!("{:?}", sent.request)
        );
        let store = store.clone();
        tokio::spawn(async move {
            let mut outcome = outcome_with_a_file(Termination::Exited(0));
            outcome.stdout.bytes = claim.held.id.clone().into_bytes();
            outcome.artifacts[0].name.clone_from(&claim.held.id);
            store.finish(&claim.held, ended(&outcome)).await.unwrap();
        })
    });
    for task in finished.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    for job in sent {
        let left = store.entry(&job.id).await.unwrap().unwrap().left.unwrap();
        assert_eq!(left.stdout.bytes, job.id.as_bytes());
        assert_eq!(left.artifacts.len(), 1);
        assert_eq!(left.artifacts[0].name, job.id);
    }
}

#[tokio::test]
async fn a_job_that_is_claimed_as_it_comes_is_nobody_elses() {
    let (store, _url) = cluster::store().await;
    let claimed = store
        .enqueue(&full_job("a"), None, Some((&worker("w"), Uuid::new_v4())))
        .await
        .unwrap();
    let Enqueued::Claimed(claim) = claimed else {
        panic!("{claimed:?}");
    };
    assert_eq!(claim.attempt, 1);
    assert!(claim_one(&store, &worker("other")).await.is_none());
    let outcome = outcome(Termination::Exited(0));
    assert!(
        store
            .finish(&claim.held, ended(&outcome))
            .await
            .unwrap()
            .is_some()
    );
}

#[tokio::test]
async fn higher_priorities_come_first_and_equal_ones_as_they_came() {
    let (store, _url) = cluster::store().await;
    for (id, priority) in [("a", 0), ("b", 5), ("c", 0), ("d", -5), ("e", 5)] {
        let mut job = job(id);
        job.priority = priority;
        store.enqueue(&job, None, None).await.unwrap();
    }
    assert_eq!(order(&store).await, ["b", "e", "a", "c", "d"]);
}

#[tokio::test]
async fn owners_take_turns_and_who_comes_late_is_neither_last_nor_ahead_for_ever() {
    let (store, _url) = cluster::store().await;
    for number in 0..6 {
        store
            .enqueue(&job_of(&format!("a{number}"), "a"), None, None)
            .await
            .unwrap();
    }
    for _ in 0..2 {
        claim_one(&store, &worker("w")).await.unwrap();
    }
    // He has had nothing, and gets his turn with the next.
    for number in 0..3 {
        store
            .enqueue(&job_of(&format!("b{number}"), "b"), None, None)
            .await
            .unwrap();
    }
    let order = order(&store).await;
    let of_b: Vec<_> = (0..order.len())
        .filter(|&place| order[place].starts_with('b'))
        .collect();
    assert!(of_b[0] <= 1, "{order:?}");
    assert!(of_b[2] >= 3, "{order:?}");
    assert_eq!(order.len(), 7);
}

#[tokio::test]
async fn no_two_workers_get_the_same_job() {
    let (store, _url) = cluster::store().await;
    for number in 0..200 {
        store
            .enqueue(&job(&format!("job-{number}")), None, None)
            .await
            .unwrap();
    }
    let tasks = (0..8).map(|number| {
        let store = store.clone();
        tokio::spawn(async move {
            let (worker, mut claimed) = (worker(&format!("w{number}")), Vec::new());
            loop {
                let claims = store.claim(&worker, &tokens(3)).await.unwrap();
                if claims.is_empty() {
                    return claimed;
                }
                assert!(claims.len() <= 3);
                claimed.extend(claims.into_iter().map(|claim| claim.held.id));
            }
        })
    });
    let mut all = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        all.extend(task.await.unwrap());
    }
    assert_eq!(all.len(), 200);
    assert_eq!(all.into_iter().collect::<BTreeSet<_>>().len(), 200);
}

#[tokio::test]
async fn an_attempt_that_was_taken_away_writes_nothing() {
    let (store, url) = cluster::store().await;
    let brief = worker("stalled");
    store.enqueue(&job("a"), None, None).await.unwrap();
    let stale = claim_one(&store, &brief).await.unwrap();
    assert!(store.rescue().await.unwrap().is_empty(), "its lease holds");
    sqlx::query("UPDATE jobs SET lease_until = clock_timestamp()")
        .execute(&mut cluster::connect(&url).await)
        .await
        .unwrap();
    // Over is over, although nobody has taken it away.
    let mut pulse = store.pulse().await.unwrap();
    let held = std::slice::from_ref(&stale.held);
    let beats = pulse.beat(&brief, held).await.unwrap();
    assert_eq!(beats.len(), 1);
    assert!(!beats[0].holds, "a lease that was over holds again");
    let rescued = store.rescue().await.unwrap();
    assert_eq!(rescued[0].state, State::Queued);
    assert_eq!(pulse.beat(&brief, held).await.unwrap(), []);
    let fresh = claim_one(&store, &worker("w")).await.unwrap();
    assert_eq!((fresh.held.id.as_str(), fresh.attempt), ("a", 2));
    let late = outcome(Termination::Exited(1));
    assert_eq!(store.finish(&stale.held, ended(&late)).await.unwrap(), None);
    let release = Release::Failed {
        reason: "late",
        retry_in: Duration::ZERO,
    };
    assert_eq!(
        store.release(&stale.held, release).await.unwrap(),
        Written::Stale
    );
    assert_eq!(state(&store, "a").await, State::Running);
    let good = outcome(Termination::Exited(0));
    assert!(
        store
            .finish(&fresh.held, ended(&good))
            .await
            .unwrap()
            .is_some()
    );
    // It was not heard that it was recorded, and is said again.
    assert_eq!(store.finish(&fresh.held, ended(&late)).await.unwrap(), None);
    assert_eq!(state(&store, "a").await, State::Ended(Status::Succeeded));
}

#[tokio::test]
async fn a_beat_keeps_an_attempt_and_hears_of_a_cancel() {
    let (store, _url) = cluster::store().await;
    let mut pulse = store.pulse().await.unwrap();
    let brief = Worker {
        lease: Duration::from_secs(5),
        ..worker("w")
    };
    store.enqueue(&job("a"), None, None).await.unwrap();
    let claim = claim_one(&store, &brief).await.unwrap();
    let held = std::slice::from_ref(&claim.held);
    // Longer than the lease in all.
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let beats = pulse.beat(&brief, held).await.unwrap();
        assert!(beats[0].holds && !beats[0].cancel_asked);
        assert!(store.rescue().await.unwrap().is_empty());
    }
    assert_eq!(
        store.cancel("a", Actor::default()).await.unwrap(),
        Cancelled::Asked
    );
    let beats = pulse.beat(&brief, held).await.unwrap();
    assert!(beats[0].cancel_asked);
    assert_eq!(state(&store, "a").await, State::Running);
    let cancelled = outcome(Termination::Cancelled);
    assert!(
        store
            .finish(&claim.held, ended(&cancelled))
            .await
            .unwrap()
            .is_some()
    );
    let late = store.cancel("a", Actor::default()).await.unwrap();
    assert_eq!(late, Cancelled::TooLate(Status::Cancelled));
}

#[tokio::test]
async fn a_job_that_waits_is_cancelled_at_once_and_one_that_does_not_exist_never() {
    let (store, _url) = cluster::store().await;
    store.enqueue(&job("a"), None, None).await.unwrap();
    assert_eq!(
        store.cancel("a", Actor::default()).await.unwrap(),
        Cancelled::Now
    );
    assert_eq!(
        store.cancel("a", Actor::default()).await.unwrap(),
        Cancelled::TooLate(Status::Cancelled)
    );
    assert_eq!(
        store.cancel("b", Actor::default()).await.unwrap(),
        Cancelled::Unknown
    );
    assert!(claim_one(&store, &worker("w")).await.is_none());
}

#[tokio::test]
async fn cancel_and_completion_at_once_leave_one_end() {
    let (store, url) = cluster::store().await;
    for number in 0..100 {
        let id = format!("job-{number}");
        store.enqueue(&job(&id), None, None).await.unwrap();
        let claim = claim_one(&store, &worker("w")).await.unwrap();
        let outcome = outcome(Termination::Exited(0));
        let (finished, cancelled) = tokio::join!(
            store.finish(&claim.held, ended(&outcome)),
            store.cancel(&id, Actor::default())
        );
        assert!(finished.unwrap().is_some());
        let cancelled = cancelled.unwrap();
        let possible = [Cancelled::Asked, Cancelled::TooLate(Status::Succeeded)];
        assert!(possible.contains(&cancelled), "{cancelled:?}");
        assert_eq!(state(&store, &id).await, State::Ended(Status::Succeeded));
    }
    let records: i64 = sqlx::query_scalar("SELECT count(*) FROM records")
        .fetch_one(&mut cluster::connect(&url).await)
        .await
        .unwrap();
    assert_eq!(records, 100);
}

#[tokio::test]
async fn a_lost_attempt_is_repeated_until_there_were_enough_and_then_told() {
    let (store, url) = cluster::store().await;
    store.enqueue(&job("a"), None, None).await.unwrap();
    let failed = |reason| Release::Failed {
        reason,
        retry_in: Duration::from_mins(1),
    };
    let first = claim_one(&store, &worker("w")).await.unwrap();
    store.release(&first.held, Release::Unused).await.unwrap();
    let first = claim_one(&store, &worker("w")).await.unwrap();
    assert_eq!(first.attempt, 1, "what was not begun does not count");
    store.release(&first.held, failed("first")).await.unwrap();
    assert!(
        claim_one(&store, &worker("w")).await.is_none(),
        "it waits a while"
    );
    sqlx::query("UPDATE jobs SET ready_at = clock_timestamp()")
        .execute(&mut cluster::connect(&url).await)
        .await
        .unwrap();
    let second = claim_one(&store, &worker("w")).await.unwrap();
    assert_eq!(second.attempt, 2);
    store
        .release(&second.held, failed("second\0"))
        .await
        .unwrap();
    assert_eq!(state(&store, "a").await, State::Ended(Status::Failed));
    let row: (String, String, String, i16) = sqlx::query_as(
        "SELECT records.error_type, records.error_message, dead_letters.error_message, retry_count
        FROM records JOIN dead_letters USING (job_id)",
    )
    .fetch_one(&mut cluster::connect(&url).await)
    .await
    .unwrap();
    assert_eq!(row.0, "interrupted");
    assert!(
        row.1.contains("2 times") && row.1.contains("second"),
        "{row:?}"
    );
    assert_eq!((row.2.as_str(), row.3), ("second\u{fffd}", 2));
}

#[tokio::test]
async fn an_attempt_with_a_network_is_repeated_only_if_that_was_asked_for() {
    let (store, url) = cluster::store().await;
    let release = Release::Failed {
        reason: "its host is gone",
        retry_in: Duration::ZERO,
    };
    for (id, repeatable) in [("once", false), ("again", true)] {
        let mut job = job(id);
        (job.network, job.repeatable) = (true, repeatable);
        store.enqueue(&job, None, None).await.unwrap();
        let claim = claim_one(&store, &worker("w")).await.unwrap();
        store.release(&claim.held, release).await.unwrap();
    }
    // What was not begun has had no effect, and what we have ended ourselves may have.
    for (id, release, expected) in [
        ("unused", Release::Unused, State::Queued),
        (
            "drained",
            Release::Interrupted("an end"),
            State::Ended(Status::Failed),
        ),
    ] {
        let mut job = job(id);
        job.network = true;
        job.priority = 1;
        store.enqueue(&job, None, None).await.unwrap();
        let claim = claim_one(&store, &worker("w")).await.unwrap();
        store.release(&claim.held, release).await.unwrap();
        assert_eq!(state(&store, id).await, expected, "{id}");
        store.cancel(id, Actor::default()).await.unwrap();
    }
    assert_eq!(state(&store, "once").await, State::Ended(Status::Failed));
    assert_eq!(state(&store, "again").await, State::Queued);
    let why: String = sqlx::query_scalar("SELECT error_message FROM records WHERE job_id = 'once'")
        .fetch_one(&mut cluster::connect(&url).await)
        .await
        .unwrap();
    assert!(why.contains("network"), "{why}");
}

#[tokio::test]
async fn old_jobs_are_forgotten_with_all_that_is_theirs_and_only_they() {
    let (store, url) = cluster::store().await;
    for id in ["old-1", "old-2", "new", "running", "queued"] {
        store.enqueue(&full_job(id), None, None).await.unwrap();
    }
    for claim in store.claim(&worker("w"), &tokens(4)).await.unwrap() {
        if claim.held.id != "running" {
            let outcome = outcome(Termination::Exited(0));
            store.finish(&claim.held, ended(&outcome)).await.unwrap();
        }
    }
    let mut connection = cluster::connect(&url).await;
    sqlx::query("UPDATE jobs SET ended_at = ended_at - interval '1 day' WHERE id LIKE 'old-%'")
        .execute(&mut connection)
        .await
        .unwrap();
    let after = Duration::from_hours(1);
    assert_eq!(store.forget(after, 1, "w").await.unwrap(), 1);
    assert_eq!(store.forget(after, 10, "w").await.unwrap(), 1);
    assert_eq!(store.forget(after, 10, "w").await.unwrap(), 0);
    for table in [
        "jobs",
        "payloads",
        "input_files",
        "attempts",
        "records",
        "artifacts",
    ] {
        let column = if table == "jobs" { "id" } else { "job_id" };
        let query = format!("SELECT count(*) FROM {table} WHERE {column} LIKE 'old-%'");
        let left: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(query))
            .fetch_one(&mut connection)
            .await
            .unwrap();
        assert_eq!(left, 0, "{table}");
    }
    assert_eq!(store.depth().await.unwrap().running, 1);
}

#[tokio::test]
async fn eight_servers_that_start_at_once_make_one_schema_and_leave_what_is_not_ours() {
    let url = cluster::database().await;
    let mut connection = cluster::connect(&url).await;
    sqlx::raw_sql(
        "CREATE TABLE public.execution_records (id int); CREATE TABLE public.jobs (mine int)",
    )
    .execute(&mut connection)
    .await
    .unwrap();
    let tasks = (0..8).map(|_| {
        let url = url.clone();
        tokio::spawn(async move {
            Store::open(&Database::from_url(&url).unwrap(), 1)
                .await
                .unwrap()
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        let store = task.await.unwrap();
        assert_eq!(store.depth().await.unwrap().queued, 0);
    }
    let ours: Vec<String> = sqlx::query_scalar(
        "SELECT table_name::text FROM information_schema.tables WHERE table_schema = 'public' ORDER BY 1",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    assert_eq!(ours, ["execution_records", "jobs"]);
}

#[tokio::test]
async fn who_has_the_schema_locked_is_told_to_who_waits_for_it() {
    let (_store, url) = cluster::store().await;
    let mut keeps = cluster::connect(&url).await;
    sqlx::raw_sql(
        "SET application_name = 'somebody'; BEGIN; LOCK TABLE _sqlx_migrations IN ACCESS EXCLUSIVE MODE",
    )
    .execute(&mut keeps)
    .await
    .unwrap();
    let database = Database::from_url(&url).unwrap();
    let locked = Store::open(&database, 1).await.unwrap_err();
    let StoreError::Locked { by } = &locked else {
        panic!("{locked:?}");
    };
    assert!(by.contains("`somebody`, idle in transaction since"), "{by}");
    sqlx::raw_sql("COMMIT").execute(&mut keeps).await.unwrap();
    Store::open(&database, 1).await.unwrap();
}

#[tokio::test]
async fn what_is_known_of_jobs_is_told_page_by_page_the_newest_first() {
    let (store, _url) = cluster::store().await;
    for number in 0..5 {
        let mut job = job_of(
            &format!("job-{number}"),
            if number == 4 { "b" } else { "a" },
        );
        job.priority = -number;
        store.enqueue(&job, None, None).await.unwrap();
    }
    let claim = claim_one(&store, &worker("w")).await.unwrap();
    let mut good = outcome_with_a_file(Termination::Exited(0));
    good.exception = None;
    store.finish(&claim.held, ended(&good)).await.unwrap();
    store.cancel("job-1", Actor::default()).await.unwrap();

    let entry = store.entry("job-0").await.unwrap().unwrap();
    assert_eq!(entry.state, State::Ended(Status::Succeeded));
    let left = entry.left.unwrap();
    assert_eq!(left.stdout, good.stdout);
    assert_eq!(left.output.as_deref(), Some("{}"));
    assert_eq!(left.failure, None);
    assert_eq!(left.artifacts[0].name, "result.json");
    assert_eq!(left.artifacts[0].sha256, [0xab; 32]);
    let run = left.run.unwrap();
    assert_eq!(
        (run.usage, run.exit_code, run.total_ms),
        (good.usage, Some(0), 6)
    );
    let cancelled = store.entry("job-1").await.unwrap().unwrap().left.unwrap();
    assert_eq!(
        (cancelled.failure.unwrap().kind.as_str(), cancelled.run),
        ("cancelled", None)
    );
    assert_eq!(store.entry("job-2").await.unwrap().unwrap().left, None);
    assert_eq!(store.entry("job-9").await.unwrap(), None);

    let ids = async |filter: Filter, most, skip| {
        let page = store.page(&filter, most, skip).await.unwrap();
        page.into_iter().map(|entry| entry.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(Filter::default(), 2, 0).await, ["job-4", "job-3"]);
    assert_eq!(ids(Filter::default(), 10, 3).await, ["job-1", "job-0"]);
    let queued = Filter {
        state: Some(State::Queued),
        owner: Some("a".to_owned()),
        ..Filter::default()
    };
    assert_eq!(ids(queued, 10, 0).await, ["job-3", "job-2"]);
    let other = Filter {
        job_type: Some("other".to_owned()),
        ..Filter::default()
    };
    assert_eq!(ids(other, 10, 0).await, [""; 0]);
}
