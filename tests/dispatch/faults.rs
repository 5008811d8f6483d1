//! What becomes of jobs when what runs them fails.

use super::cluster;
use super::daemon::Daemon;
use super::proxy::Proxy;
use super::server::{LEASE, Server, program, status};
use nix::sys::signal::Signal;
use std::path::Path;
use std::time::{Duration, Instant};
use tako_vm::job::Status;
use tako_vm::store::queue::{Enqueued, Held, State};
use tako_vm::store::{Database, Store};

const FOREVER: &str = "import time\nprint('up')\ntime.sleep(100)";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_job_waits_for_a_supervisor_that_is_not_there() {
    let url = cluster::database().await;
    let directory = super::daemon::place("pool: {maximum: 0}\n");
    let socket = super::daemon::socket(directory.path());
    let server = Server::start("w", &url, &socket).await;
    server.submit("a", "print(1)").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let standing = server.store.standing("a").await.unwrap().unwrap();
    assert!(
        standing.attempts <= 1 && standing.ended_at.is_none(),
        "{standing:?}"
    );
    let _daemon = Daemon::in_directory(directory, |_| {});
    let entry = server.ended("a").await;
    assert_eq!((status(&entry), entry.attempts), (Status::Succeeded, 1));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_job_whose_supervisor_is_killed_runs_once_more() {
    let url = cluster::database().await;
    let daemon = Daemon::start();
    let server = Server::start("w", &url, &daemon.socket()).await;
    server
        .submit("a", "import time\nprint('up')\ntime.sleep(3)")
        .await;
    daemon.sandbox();
    let daemon = Daemon::in_directory(daemon.killed(), |_| {});
    let entry = server.ended("a").await;
    assert_eq!((status(&entry), entry.attempts), (Status::Succeeded, 2));
    assert_eq!(entry.left.unwrap().stdout.text(), "up\n");
    daemon.assert_empty_within(Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn what_a_server_that_is_gone_was_running_runs_elsewhere_when_its_lease_is_over() {
    let (daemon, url) = (Daemon::start(), cluster::database().await);
    let other = Server::start("other", &url, &daemon.socket()).await;
    // In a runtime of its own, so that everything of it is gone at once.
    let (socket, database) = (daemon.socket(), url.clone());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let gone = Server::start("gone", &database, &socket).await;
            let job = program("a", "import time\ntime.sleep(2)");
            let claimed = gone.dispatcher.submit_at_once(&job, None).await.unwrap();
            assert!(matches!(claimed, Enqueued::Claimed(_)), "{claimed:?}");
            tokio::time::sleep(Duration::from_millis(500)).await;
        });
        runtime.shutdown_background();
    })
    .join()
    .unwrap();
    let begun = Instant::now();
    let again = async || other.store.standing("a").await.unwrap().unwrap().attempts == 2;
    while !again().await {
        let waited = begun.elapsed();
        // Twice the promise.
        assert!(waited < (LEASE + Duration::from_secs(2)) * 2, "{waited:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let entry = other.ended("a").await;
    assert_eq!((status(&entry), entry.attempts), (Status::Succeeded, 2));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_result_that_the_database_cannot_take_is_recorded_when_it_can_and_once() {
    let (daemon, url) = (Daemon::start(), cluster::database().await);
    let proxy = Proxy::to(cluster::directory());
    let through = url.replace(
        &cluster::directory().display().to_string(),
        &proxy.directory().display().to_string(),
    );
    let server = Server::start("w", &through, &daemon.socket()).await;
    server
        .submit("a", "import time\nprint('up')\ntime.sleep(1)")
        .await;
    server.until("a", State::Running).await;
    proxy.cut();
    // The program ends, and longer than its lease nobody hears of it.
    tokio::time::sleep(LEASE + Duration::from_secs(3)).await;
    until_there_wait(1, server.directory.path()).await;
    let direct = Store::open(&Database::from_url(&url).unwrap(), 1)
        .await
        .unwrap();
    let standing = direct.standing("a").await.unwrap().unwrap();
    assert_eq!((standing.state, standing.attempts), (State::Running, 1));
    proxy.mend();
    let entry = server.ended("a").await;
    assert_eq!((status(&entry), entry.attempts), (Status::Succeeded, 1));
    assert_eq!(entry.left.unwrap().stdout.text(), "up\n");
    until_there_wait(0, server.directory.path()).await;
}

/// Waits until so many results are in the journal below a directory.
async fn until_there_wait(count: usize, directory: &Path) {
    let whole = |path: &Path| {
        path.extension()
            .is_some_and(|extension| extension == "json")
    };
    let waiting = || {
        let files = std::fs::read_dir(directory.join("journal")).unwrap();
        files
            .filter(|file| whole(&file.as_ref().unwrap().path()))
            .count()
    };
    let begun = Instant::now();
    while waiting() != count {
        let waited = begun.elapsed();
        assert!(waited < Duration::from_secs(20), "{} wait", waiting());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_result_in_the_journal_of_a_server_that_was_killed_is_recorded_by_the_next() {
    let (daemon, url) = (Daemon::start(), cluster::database().await);
    let (sent, received) = std::sync::mpsc::channel();
    let (socket, database) = (daemon.socket(), url.clone());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let proxy = Proxy::to(cluster::directory());
            let through = database.replace(
                &cluster::directory().display().to_string(),
                &proxy.directory().display().to_string(),
            );
            let server = Server::start("killed", &through, &socket).await;
            server
                .submit("a", "import time\nprint('up')\ntime.sleep(1)")
                .await;
            server.until("a", State::Running).await;
            proxy.cut();
            until_there_wait(1, server.directory.path()).await;
            sent.send(server.directory).unwrap();
        });
        runtime.shutdown_background();
    });
    let directory = received.recv().unwrap();
    let next = Server::start_in(directory, "next", &url, &daemon.socket()).await;
    let entry = next.ended("a").await;
    assert_eq!((status(&entry), entry.attempts), (Status::Succeeded, 1));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_job_that_was_taken_away_is_killed_where_it_was_and_recorded_where_it_is() {
    let (daemon, url) = (Daemon::start(), cluster::database().await);
    let server = Server::start("w", &url, &daemon.socket()).await;
    server.submit("a", FOREVER).await;
    let sandbox = daemon.sandbox();
    // Somebody else believes that this worker is gone, and takes the job.
    let token = sqlx::query_scalar(
        "UPDATE jobs SET token = gen_random_uuid(), worker = 'other', attempts = 2,
            claimed_at = clock_timestamp(), lease_until = clock_timestamp() + interval '1 min'
        WHERE id = 'a' RETURNING token",
    );
    let mut connection = cluster::connect(&url).await;
    let held = Held {
        id: "a".to_owned(),
        token: token.fetch_one(&mut connection).await.unwrap(),
    };
    let begun = Instant::now();
    while daemon.sandboxes().contains(&sandbox) {
        assert!(begun.elapsed() < LEASE * 2, "it still runs where it was");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let standing = server.store.standing("a").await.unwrap().unwrap();
    assert_eq!((standing.state, standing.attempts), (State::Running, 2));
    let outcome = super::jobs::outcome(tako_vm::job::Termination::Exited(0));
    server
        .store
        .finish(&held, super::jobs::ended(&outcome))
        .await
        .unwrap();
    assert_eq!(status(&server.ended("a").await), Status::Succeeded);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_job_whose_supervisor_is_ended_is_not_cancelled_but_runs_once_more() {
    let (mut daemon, url) = (Daemon::start(), cluster::database().await);
    let server = Server::start("w", &url, &daemon.socket()).await;
    server
        .submit("a", "import time\nprint('up')\ntime.sleep(3)")
        .await;
    daemon.sandbox();
    daemon.signal(Signal::SIGINT);
    daemon.end();
    let _next = Daemon::in_directory(daemon.killed(), |_| {});
    let entry = server.ended("a").await;
    assert_eq!((status(&entry), entry.attempts), (Status::Succeeded, 2));
}
