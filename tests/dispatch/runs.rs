//! What becomes of jobs when nothing goes wrong but the jobs themselves.

use super::cluster;
use super::daemon::{Daemon, wait_for};
use super::server::{Server, program, status};
use sha2::Digest;
use sqlx::Connection;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tako_vm::job::Status;
use tako_vm::store::audit::Actor;
use tako_vm::store::files::Files;
use tako_vm::store::history::Left;
use tako_vm::store::queue::{Cancelled, Enqueued, State, Submission};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn jobs_of_every_kind_are_run_and_recorded_with_their_files() {
    let (daemon, url) = (Daemon::start(), cluster::database().await);
    let server = Server::start("w", &url, &daemon.socket()).await;
    let writes = "print('out')\nopen('/output/result.json', 'w').write('[1]')\nopen('/output/a', 'w').write('x')";
    let mut slow = program("slow", "import time\nprint('up')\ntime.sleep(100)");
    slow.request.timeout = Some(Duration::from_millis(500));
    let mut impossible = program("impossible", "pass");
    impossible.request.memory_bytes = Some(1);
    server.submit("good", writes).await;
    server.submit("bad", "raise ValueError('no')").await;
    server.submit_job(&slow).await;
    server.submit_job(&impossible).await;
    let mut odd = program("odd", "open('/output/result.json', 'w').write('{')");
    odd.image = "python".to_owned();
    server.submit_job(&odd).await;

    let good = server.ended("good").await;
    assert_eq!(status(&good), Status::Succeeded);
    let left = good.left.unwrap();
    assert_eq!(
        (left.stdout.text().as_str(), left.output.as_deref()),
        ("out\n", Some("[1]"))
    );
    let named = |name: &str| {
        left.artifacts
            .iter()
            .find(|file| file.name == name)
            .unwrap()
    };
    let bytes = server
        .files
        .read(&hex::encode(&named("a").sha256))
        .await
        .unwrap();
    assert_eq!(bytes, b"x");
    assert!(left.run.unwrap().usage.cpu_time_ms > 0);

    let bad = server.ended("bad").await;
    assert_eq!(status(&bad), Status::Failed);
    assert_eq!(bad.left.unwrap().failure.unwrap().kind, "value_error");
    let slow = server.ended("slow").await;
    assert_eq!((status(&slow), slow.attempts), (Status::Timeout, 1));
    assert_eq!(slow.left.unwrap().stdout.text(), "up\n");
    let impossible = server
        .ended("impossible")
        .await
        .left
        .unwrap()
        .failure
        .unwrap();
    assert_eq!(impossible.kind, "config_error");
    assert!(impossible.message.contains("memory"), "{impossible:?}");
    let odd = server.ended("odd").await.left.unwrap();
    assert!(odd.output.is_none() && odd.output_error.unwrap().contains("not JSON"));
    server.dispatcher.drain(Duration::from_secs(5)).await;
    daemon.assert_empty_within(Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn who_waits_has_a_job_begin_at_once_where_a_slot_is_free_and_else_in_turn() {
    let (daemon, url) = (Daemon::start(), cluster::database().await);
    let server = Server::start("w", &url, &daemon.socket()).await;
    for id in ["a", "b", "c"] {
        let job = program(id, "import time\ntime.sleep(1)");
        let enqueued = server.dispatcher.submit_at_once(&job, None).await.unwrap();
        match enqueued {
            Enqueued::Claimed(_) => assert_ne!(id, "c"),
            Enqueued::Queued => assert_eq!(id, "c", "two slots"),
            other => panic!("{other:?}"),
        }
    }
    for id in ["a", "b", "c"] {
        assert_eq!(status(&server.ended(id).await), Status::Succeeded);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_cancel_ends_a_job_on_whichever_host_it_runs() {
    let (daemon, url) = (Daemon::start(), cluster::database().await);
    let one = Server::start("one", &url, &daemon.socket()).await;
    let forever = program("a", "import time\nprint('up')\ntime.sleep(100)");
    let claimed = one.dispatcher.submit_at_once(&forever, None).await.unwrap();
    assert!(matches!(claimed, Enqueued::Claimed(_)), "{claimed:?}");
    daemon.sandbox();
    let other = Server::start("other", &url, &daemon.socket()).await;
    let begun = Instant::now();
    let cancelled = other
        .dispatcher
        .cancel("a", Actor::default(), Duration::from_secs(20))
        .await;
    assert_eq!(cancelled.unwrap(), Cancelled::Asked);
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(status(&other.ended("a").await), Status::Cancelled);
    daemon.assert_without_sandboxes_within(Duration::from_secs(5));
    let again = other
        .dispatcher
        .cancel("a", Actor::default(), Duration::from_secs(1))
        .await
        .unwrap();
    assert_eq!(again, Cancelled::TooLate(Status::Cancelled));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn two_servers_share_the_work() {
    let (daemon, url) = (Daemon::start(), cluster::database().await);
    let one = Server::start("one", &url, &daemon.socket()).await;
    let _other = Server::start("other", &url, &daemon.socket()).await;
    for number in 0..12 {
        one.submit(&format!("job-{number}"), "import time\ntime.sleep(0.3)")
            .await;
    }
    for number in 0..12 {
        let entry = one.ended(&format!("job-{number}")).await;
        assert_eq!((status(&entry), entry.attempts), (Status::Succeeded, 1));
    }
    let workers: Vec<(String, i64)> = sqlx::query_as(
        "SELECT worker, count(*) FROM attempts WHERE ending = 'finished' GROUP BY 1 ORDER BY 1",
    )
    .fetch_all(&mut cluster::connect(&url).await)
    .await
    .unwrap();
    let names: Vec<_> = workers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["one", "other"]);
    assert_eq!(workers.iter().map(|(_, count)| count).sum::<i64>(), 12);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_drain_claims_nothing_more_finishes_what_is_short_and_gives_back_what_is_long() {
    let (daemon, url) = (Daemon::start(), cluster::database().await);
    let server = Server::start("w", &url, &daemon.socket()).await;
    server.submit("short", "import time\ntime.sleep(1)").await;
    server.submit("long", "import time\ntime.sleep(100)").await;
    server.until("short", State::Running).await;
    server.until("long", State::Running).await;
    server.submit("late", "pass").await;
    let (store, begun) = (server.store.clone(), Instant::now());
    server.dispatcher.drain(Duration::from_secs(3)).await;
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "{:?}",
        begun.elapsed()
    );
    let attempts = async |id: &str| {
        let standing = store.standing(id).await.unwrap().unwrap();
        (standing.state, standing.attempts)
    };
    assert_eq!(
        attempts("short").await,
        (State::Ended(Status::Succeeded), 1)
    );
    assert_eq!(attempts("long").await, (State::Queued, 0));
    assert_eq!(attempts("late").await, (State::Queued, 0));
    daemon.assert_empty_within(Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn what_is_more_than_an_owner_may_keep_is_left_out_and_said_and_his_result_is_not() {
    let (daemon, url) = (Daemon::start(), cluster::database().await);
    let directory = tempfile::tempdir().unwrap();
    let objects = directory.path().join("files");
    std::fs::create_dir_all(&objects).unwrap();
    let files = Files::in_directory(&objects).unwrap();
    let server = Server::start_with(directory, files, ("w", 1000), &url, &daemon.socket()).await;
    let writes = |name: &str, bytes: usize| {
        format!(
            "open('/output/result.json', 'w').write('[{bytes}]')\n\
             open('/output/{name}', 'w').write('{name}' * {bytes})"
        )
    };
    let left = async |id: &str, owner: &str, code: &str| {
        let mut job = program(id, code);
        job.owner = owner.to_owned();
        server.submit_job(&job).await;
        let entry = server.ended(id).await;
        assert_eq!(status(&entry), Status::Succeeded);
        *entry.left.unwrap()
    };
    let names = |left: &Left| -> Vec<String> {
        left.artifacts
            .iter()
            .map(|file| file.name.clone())
            .collect()
    };
    let fits = left("fits", "one", &writes("a", 900)).await;
    assert_eq!(names(&fits), ["result.json", "a"]);
    assert!(!fits.artifacts_truncated && fits.artifacts_skipped.is_empty());

    // 905 bytes are kept. What still fits is kept, and the result is what it was.
    let large = left("large", "one", &writes("b", 900)).await;
    assert_eq!(
        (names(&large), large.output.as_deref()),
        (vec!["result.json".to_owned()], Some("[900]")),
        "what does not fit is not kept"
    );
    assert!(large.artifacts_truncated);
    assert_eq!(large.artifacts_skipped[0].name, "b");
    let reason = &large.artifacts_skipped[0].reason;
    assert_eq!(
        reason,
        "900 bytes, and its owner has 90 left of 1000 (`max_artifact_storage_bytes`)"
    );
    let digest = hex::encode(sha2::Sha256::digest("b".repeat(900)));
    assert!(
        server.files.read(&digest).await.is_err(),
        "its bytes were not kept"
    );
    // Another owner has room of his own.
    assert_eq!(
        names(&left("other", "two", &writes("b", 900)).await).len(),
        2
    );
    // What is forgotten makes room.
    server.store.forget(Duration::ZERO, 10, "w").await.unwrap();
    assert_eq!(
        names(&left("again", "one", &writes("b", 900)).await).len(),
        2
    );
    server.dispatcher.drain(Duration::from_secs(5)).await;
}

/// Whoever waits for a job of his has it begin at once, while nobody can write to the queue.
async fn while_the_queue_is_locked(
    server: &Arc<Server>,
    url: &str,
    job: Submission,
    meanwhile: impl FnOnce() + Send + 'static,
) {
    let mut locked = sqlx::PgConnection::connect(url).await.unwrap();
    for statement in ["BEGIN", "LOCK TABLE tako.jobs IN EXCLUSIVE MODE"] {
        sqlx::raw_sql(statement).execute(&mut locked).await.unwrap();
    }
    let other = Arc::clone(server);
    let submitted =
        tokio::spawn(async move { other.dispatcher.submit_at_once(&job, None).await.unwrap() });
    tokio::task::spawn_blocking(meanwhile).await.unwrap();
    assert!(!submitted.is_finished());
    sqlx::raw_sql("COMMIT").execute(&mut locked).await.unwrap();
    let enqueued = submitted.await.unwrap();
    assert!(matches!(enqueued, Enqueued::Claimed(_)), "{enqueued:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_program_is_handed_over_before_its_job_is_ours_and_begins_only_then() {
    let (daemon, url) = (Arc::new(Daemon::start()), cluster::database().await);
    let server = Arc::new(Server::start("w", &url, &daemon.socket()).await);
    // Its connection is kept.
    server.submit("first", "print(1)").await;
    server.ended("first").await;
    daemon.assert_empty_within(Duration::from_secs(5));
    let job = program("a", "import time; print(time.time())");
    let there = Arc::clone(&daemon);
    while_the_queue_is_locked(&server, &url, job, move || {
        there.sandbox();
        std::thread::sleep(Duration::from_secs(2));
    })
    .await;
    let (unlocked, entry) = (SystemTime::now(), server.ended("a").await);
    assert_eq!((status(&entry), entry.attempts), (Status::Succeeded, 1));
    let began: f64 = entry.left.unwrap().stdout.text().trim().parse().unwrap();
    let unlocked = unlocked.duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    // It may have begun while we heard of it; the clock of a sandbox is a little off.
    assert!(began > unlocked - 1.0, "{began}, and {unlocked}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_job_that_was_refused_before_it_was_ours_is_handed_over_again() {
    let daemon = Arc::new(Daemon::with("supervisor: {max_jobs: 1}\n"));
    let url = cluster::database().await;
    let server = Arc::new(Server::start("w", &url, &daemon.socket()).await);
    server.submit("first", "print(1)").await;
    server.ended("first").await;
    daemon.assert_empty_within(Duration::from_secs(5));
    let mut other = daemon.connect();
    other.begin("import time; print('up', flush=True); time.sleep(100)");
    let there = Arc::clone(&daemon);
    while_the_queue_is_locked(&server, &url, program("a", "print(1)"), move || {
        let mut watch = there.connect();
        let patience = Duration::from_secs(2);
        wait_for(patience, || watch.stats()["busy"] == 1, String::new);
        other.send('c', b"");
        assert_eq!(other.finish().how(), "cancelled");
        wait_for(patience, || watch.stats()["running"] == 0, String::new);
    })
    .await;
    let entry = server.ended("a").await;
    assert_eq!((status(&entry), entry.attempts), (Status::Succeeded, 1));
}
