//! PostgreSQL away, for moments and for long, while servers run jobs.

use super::daemon::Daemon;
use super::hands::{self, keyed};
use super::history::Watch;
use super::host::on_this_host;
use super::postgres::{self, Postgres, Stop};
use super::processes::takes;
use super::server::{LEASE, Server};
use super::way::Way;
use std::time::{Duration, Instant};
use tako_vm::store::audit::Actor;
use tako_vm::store::queue::{State, Submission};
use tokio::time::sleep;

/// From the return of the database to the first job that is taken in and begun.
const READY: Duration = Duration::from_secs(5);

/// Sends a job through a server until it is accepted.
async fn send(server: &Server, watch: &Watch, job: &Submission) {
    loop {
        let enqueued = server.dispatcher.submit(job, None).await;
        if hands::accepted(&watch.log, job, enqueued.ok()).is_some() {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Until a job that is sent now has begun.
async fn ready(server: &Server, watch: &Watch, id: &str) -> Duration {
    let begun = Instant::now();
    send(server, watch, &keyed(id)).await;
    while watch.history().await.claims(id).is_empty() {
        let waited = begun.elapsed();
        assert!(
            waited < Duration::from_mins(1),
            "not ready after {waited:?}"
        );
        sleep(Duration::from_millis(10)).await;
    }
    begun.elapsed()
}

/// Cuts every connection but its own.
async fn cut_all(url: &str) -> i64 {
    let cut = sqlx::query_scalar(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'",
    );
    cut.fetch_one(&mut super::cluster::connect(url).await)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_database_that_is_cut_off_and_restarted_under_load_loses_nothing() {
    let (daemon, mut postgres) = (Daemon::start(), Postgres::start());
    let url = postgres.url();
    let server = Server::start("one", &url, &daemon.socket()).await;
    let other = Server::start("other", &url, &daemon.socket()).await;
    let watch = Watch::begin(&url, LEASE).await;
    let limit = Duration::from_secs(crate::size("TAKO_VM_SOAK_LOAD_SECONDS", 12) as u64);
    let (begun, mut jobs, mut faults) = (Instant::now(), 0, 0);
    let (mut cut, mut times) = (0, Vec::new());
    while begun.elapsed() < limit {
        let seconds = rand::random_range(0.0..1.5);
        let job = takes(&format!("job-{jobs}"), seconds);
        send(if jobs % 2 == 0 { &server } else { &other }, &watch, &job).await;
        jobs += 1;
        if begun.elapsed() > Duration::from_secs(2) * (faults + 1) {
            faults += 1;
            match faults % 5 {
                2 | 4 => {
                    let how = if faults % 5 == 2 {
                        Stop::Fast
                    } else {
                        Stop::Immediate
                    };
                    postgres.stop(how);
                    postgres.again();
                    let id = format!("ready-{faults}");
                    times.push(ready(&server, &watch, &id).await);
                    jobs += 1;
                }
                _ => cut += cut_all(&url).await,
            }
        }
        sleep(Duration::from_millis(250)).await;
    }
    watch
        .all_ended_within(on_this_host(Duration::from_mins(1)))
        .await;
    let history = watch.assert_holds().await;
    assert_eq!(history.ended("succeeded"), jobs);
    eprintln!("{jobs} jobs, {cut} connections cut, ready after restarts: {times:?}");
    assert!(cut > 0 && times.len() >= 2);
    assert!(times.iter().all(|time| *time < on_this_host(READY)));
    drop((server, other));
    daemon.assert_empty_within(Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn an_outage_loses_no_result_and_is_not_met_with_a_storm() {
    let outage = Duration::from_secs(crate::size("TAKO_VM_SOAK_OUTAGE_SECONDS", 20) as u64);
    let daemon = Daemon::with("max_timeout: 3600\n");
    let mut postgres = Postgres::start();
    let way = Way::to(postgres.directory());
    let server = Server::start("w", &postgres::url(way.directory()), &daemon.socket()).await;
    let watch = Watch::begin(&postgres.url(), LEASE).await;
    let mut long = takes("long", outage.as_secs_f64() + 1.0);
    long.request.timeout = Some(outage * 2);
    for job in [takes("short", 3.0), long] {
        send(&server, &watch, &job).await;
        server.until(&job.id, State::Running).await;
    }
    send(&server, &watch, &keyed("waits")).await;
    postgres.stop(Stop::Fast);
    // All find out.
    sleep(Duration::from_secs(1)).await;
    let (before, begun) = (way.connections(), Instant::now());
    sleep(outage.saturating_sub(begun.elapsed())).await;
    let (tries, time) = (way.connections() - before, begun.elapsed());
    // Who comes now is not kept waiting for long.
    let refused = Instant::now();
    assert!(server.dispatcher.submit(&keyed("no"), None).await.is_err());
    let refused = refused.elapsed();
    postgres.again();
    let ready = ready(&server, &watch, "ready").await;
    assert!(ready < on_this_host(READY), "{ready:?}");
    watch
        .all_ended_within(on_this_host(Duration::from_secs(30)))
        .await;
    let history = watch.assert_holds().await;
    assert_eq!(history.ended("succeeded"), 4);
    for id in ["short", "long", "waits"] {
        assert_eq!(history.claims(id).len(), 1, "{id}");
    }
    eprintln!(
        "{tries} tries to connect in {time:?}, refused after {refused:?}, ready after {ready:?}"
    );
    assert!(tries <= time.as_secs() + 1, "{tries}");
    assert!(refused < Duration::from_secs(7), "{refused:?}");
    let journal = std::fs::read_dir(server.directory.path().join("journal")).unwrap();
    assert_eq!(journal.count(), 0);
    drop(server);
    daemon.assert_empty_within(Duration::from_secs(5));
}

/// Since when somebody listens, in a database: the latest of them.
async fn listens_since(url: &str) -> Option<f64> {
    let since = sqlx::query_scalar(
        "SELECT max(extract(epoch FROM backend_start))::double precision FROM pg_stat_activity
        WHERE datname = current_database() AND query LIKE 'LISTEN%'",
    );
    since
        .fetch_one(&mut super::cluster::connect(url).await)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_way_to_the_database_that_is_dead_is_noticed_and_another_one_found() {
    let (daemon, postgres) = (Daemon::start(), Postgres::start());
    let way = Way::to(postgres.directory());
    let server = Server::start("w", &postgres::url(way.directory()), &daemon.socket()).await;
    let watch = Watch::begin(&postgres.url(), LEASE).await;
    send(&server, &watch, &takes("a", 2.0)).await;
    server.until("a", State::Running).await;
    let listened = listens_since(&postgres.url()).await.unwrap();
    way.stall();
    let (dispatcher, begun) = (&server.dispatcher, Instant::now());
    let patience = Duration::from_secs(100);
    let (job, one) = (keyed("b"), keyed("c"));
    let (submitted, at_once, waited, cancelled) = tokio::join!(
        dispatcher.submit(&job, None),
        dispatcher.submit_at_once(&one, None),
        dispatcher.waiter().wait("a", false, patience),
        dispatcher.cancel("a", Actor::default(), patience),
    );
    let noticed = begun.elapsed();
    assert!(submitted.is_err() && at_once.is_err() && waited.is_err() && cancelled.is_err());
    // A statement may take ten, and who waits is given up after twenty.
    assert!(noticed < Duration::from_secs(30), "{noticed:?}");
    way.mend();
    let ready = ready(&server, &watch, "ready").await;
    // Connections of before are tried, and given up.
    assert!(ready < on_this_host(READY * 2), "{ready:?}");
    let listens = Instant::now();
    while listens_since(&postgres.url()).await <= Some(listened) {
        let waited = begun.elapsed();
        assert!(
            waited < Duration::from_secs(40),
            "nobody listens after {waited:?}"
        );
        sleep(Duration::from_millis(50)).await;
    }
    let listens = listens.elapsed();
    watch
        .all_ended_within(on_this_host(Duration::from_secs(20)))
        .await;
    watch.assert_holds().await;
    eprintln!("noticed after {noticed:?}, ready after {ready:?}, listens {listens:?} later");
    // A drain ends as well, although nothing that is still to be said can be.
    way.stall();
    let drain = Instant::now();
    server.dispatcher.drain(Duration::from_secs(5)).await;
    assert!(
        drain.elapsed() < Duration::from_secs(40),
        "{:?}",
        drain.elapsed()
    );
    daemon.assert_empty_within(Duration::from_secs(5));
}

/// Waits until so many results are in the journal of a server.
async fn until_there_wait(count: usize, server: &Server) {
    let begun = Instant::now();
    loop {
        let journal = std::fs::read_dir(server.directory.path().join("journal"));
        let files = journal.unwrap().map(|file| file.unwrap().path());
        let whole = files.filter(|path| path.extension().is_some_and(|kind| kind == "json"));
        let waiting = whole.count();
        if waiting == count {
            return;
        }
        let waited = begun.elapsed();
        assert!(
            waited < on_this_host(Duration::from_mins(1)),
            "{waiting} wait after {waited:?}"
        );
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_server_that_alone_is_cut_off_records_nothing_of_what_another_has_run() {
    let daemon = Daemon::start();
    let (way, through, direct) = super::queue::way().await;
    let lonely = Server::start("lonely", &through, &daemon.socket()).await;
    let watch = Watch::begin(&direct, LEASE).await;
    send(&lonely, &watch, &takes("a", 4.0)).await;
    lonely.until("a", State::Running).await;
    way.stall();
    let other = Server::start("other", &direct, &daemon.socket()).await;
    until_there_wait(1, &lonely).await;
    watch
        .all_ended_within(on_this_host(Duration::from_mins(1)))
        .await;
    way.mend();
    until_there_wait(0, &lonely).await;
    let history = watch.assert_holds().await;
    assert_eq!(history.ended("succeeded"), 1);
    let claims = history.claims("a");
    let workers: Vec<_> = claims.iter().map(|(worker, _)| worker.as_str()).collect();
    assert_eq!(workers, ["lonely", "other"]);
    drop((lonely, other));
    daemon.assert_empty_within(Duration::from_secs(5));
}
