//! Wall clocks that are stepped: that of the database, which has the last word on leases, and that of a
//! server, which has none.

use super::children::{Needs, Server};
use super::cluster;
use super::daemon::Daemon;
use super::hands::{self, Hand, keyed};
use super::history::Watch;
use super::host::on_this_host;
use super::postgres::{CLOCK, Postgres};
use super::processes::takes;
use super::server::LEASE;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tako_vm::store::{Database, Store};
use tako_vm::sys::process;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

const HOUR: i64 = 3600;

/// Builds the library that has the clock.
fn library() -> (TempDir, PathBuf) {
    let directory = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir()
        .unwrap();
    let library = directory.path().join("clock.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/clock.c");
    let mut compiler = process::program("cc");
    compiler
        .args(["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o"])
        .args([&library, &source]);
    process::run(&mut compiler).unwrap();
    (directory, library)
}

/// Steps a clock to so many seconds from the right time.
pub(crate) fn step(clock: &Path, offset: i64) {
    // Without making it empty meanwhile: it is mapped.
    let file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(clock);
    std::os::unix::fs::FileExt::write_all_at(&file.unwrap(), &offset.to_ne_bytes(), 0).unwrap();
}

/// How far a clock is from the right time, by what the database says.
async fn offset(url: &str) -> i64 {
    let away = sqlx::query_scalar(
        "SELECT (extract(epoch FROM clock_timestamp()) - $1::bigint)::bigint AS away",
    );
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    away.bind(now.as_secs().cast_signed())
        .fetch_one(&mut cluster::connect(url).await)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn a_database_whose_clock_is_stepped_loses_no_job_and_doubles_none() {
    let (_directory, library) = library();
    let postgres = Postgres::with(library.to_str().unwrap());
    let (url, clock) = (postgres.url(), postgres.directory().join(CLOCK));
    let database = Database::from_url(&url).unwrap();
    let store = Store::open(&database, 10).await.unwrap();
    let lease = Duration::from_secs(1);
    let watch = Watch::begin(&url, lease).await;
    let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
    for name in ["one", "other", "third"] {
        let hand = Hand::new(store.clone(), watch.log.clone(), name, lease);
        let stop = stop.clone();
        tasks.spawn(async move { hand.work(&stop).await });
    }
    let (looks, until) = (store.clone(), stop.clone());
    tasks.spawn(async move { hands::rescue(&looks, &until).await });
    let mut jobs = 0;
    // Ahead in the end: what is taken in or given back by a clock that is ahead waits for that time.
    for offset_now in [0, -HOUR, 0, -2 * HOUR, -HOUR, 0, HOUR] {
        step(&clock, offset_now);
        let away = offset(&url).await;
        assert!(
            (away - offset_now).abs() < 60,
            "{away} and not {offset_now}"
        );
        for _ in 0..40 {
            hands::send(&store, &watch.log, &keyed(&format!("job-{jobs}"))).await;
            jobs += 1;
            sleep(Duration::from_millis(10)).await;
        }
    }
    watch.all_ended_within(Duration::from_secs(20)).await;
    stop.cancel();
    tasks.join_all().await;
    let history = watch.assert_holds().await;
    assert_eq!(history.ended("succeeded"), jobs);
    eprintln!("{jobs} jobs");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_server_and_a_supervisor_whose_clocks_are_stepped_keep_what_they_run() {
    let (directory, library) = library();
    let clock = directory.path().join("clock");
    step(&clock, 0);
    let faked: [(&str, &Path); 2] = [("LD_PRELOAD", &library), ("TAKO_VM_TEST_CLOCK", &clock)];
    let place = super::daemon::place(super::daemon::NOTHING_READY);
    let daemon = Daemon::in_directory(place, |command| {
        command.envs(faked);
    });
    let url = cluster::database().await;
    let database = Database::from_url(&url).unwrap();
    let store = Store::open(&database, 2).await.unwrap();
    let watch = Watch::begin(&url, LEASE).await;
    let needs = Needs {
        url,
        socket: daemon.socket(),
    };
    let own = tempfile::tempdir().unwrap();
    let server = Server::with("stepped", &needs, own.path(), &faked);
    let (mut jobs, mut offsets) = (0, [HOUR, -HOUR, 0, 2 * HOUR, -2 * HOUR, 0].iter().cycle());
    hands::send(&store, &watch.log, &takes("long", 6.0)).await;
    for _ in 0..12 {
        hands::send(&store, &watch.log, &takes(&format!("job-{jobs}"), 0.1)).await;
        jobs += 1;
        sleep(Duration::from_millis(500)).await;
        step(&clock, *offsets.next().unwrap());
    }
    watch
        .all_ended_within(on_this_host(Duration::from_secs(20)))
        .await;
    let history = watch.assert_holds().await;
    assert_eq!(history.ended("succeeded"), jobs + 1);
    assert_eq!(history.claims("long").len(), 1);
    for number in 0..jobs {
        assert_eq!(history.claims(&format!("job-{number}")).len(), 1);
    }
    for pid in [server.pid(), daemon.pid()] {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        assert!(maps.contains("clock.so"), "{maps}");
    }
    assert!(server.leave().success());
    daemon.assert_empty_within(Duration::from_secs(5));
}
