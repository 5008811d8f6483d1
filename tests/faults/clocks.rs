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
use std::time::{Duration, Instant};
use tako_vm::store::queue::{Claim, Release, Written, tokens};
use tako_vm::store::{Database, Store};
use tako_vm::sys::process;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

const HOUR: i64 = 3600;

/// The leases of those who run nothing.
const SHORT: Duration = Duration::from_secs(1);

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

/// A database whose clock can be stepped.
struct Stepped {
    store: Store,
    watch: Watch,
    url: String,
    clock: PathBuf,
    _postgres: Postgres,
    _library: TempDir,
}

impl Stepped {
    async fn start() -> Self {
        let (directory, library) = library();
        let postgres = Postgres::with(library.to_str().unwrap());
        let url = postgres.url();
        let database = Database::from_url(&url).unwrap();
        Self {
            store: Store::open(&database, 10).await.unwrap(),
            watch: Watch::begin(&url, SHORT).await,
            url,
            clock: postgres.directory().join(CLOCK),
            _postgres: postgres,
            _library: directory,
        }
    }

    async fn step(&self, to: i64) {
        step(&self.clock, to);
        let away = offset(&self.url).await;
        assert!((away - to).abs() < 60, "{away} and not {to}");
    }

    fn hand(&self, name: &str) -> Hand {
        Hand::new(self.store.clone(), self.watch.log.clone(), name, SHORT)
    }

    async fn send(&self, id: &str) {
        hands::send(&self.store, &self.watch.log, &keyed(id)).await;
    }

    async fn claim(&self, hand: &Hand) -> Option<Claim> {
        let claims = self.store.claim(&hand.worker, &tokens(1)).await.unwrap();
        claims.into_iter().next()
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn a_clock_that_is_set_back_keeps_no_job_waiting() {
    let stepped = Stepped::start().await;
    let (hand, stop) = (stepped.hand("w"), CancellationToken::new());
    stepped.send("new").await;
    // By less than anything may have to wait.
    stepped.step(-30).await;
    let claim = stepped.claim(&hand).await;
    let claim = claim.expect("a new job waits for the time at which it came");
    let failed = |retry_in| Release::Failed {
        reason: "its sandbox was lost",
        retry_in,
    };
    // What is to wait does so no longer than it ever can.
    let minute = Duration::from_mins(1);
    let release = stepped.store.release(&claim.held, failed(minute)).await;
    assert_eq!(release.unwrap(), Written::Yes);
    assert!(stepped.claim(&hand).await.is_none(), "it waits");
    stepped.step(-2 * HOUR).await;
    let claim = stepped.claim(&hand).await;
    let claim = claim.expect("a job waits for longer than it can be told to");
    // By less than that, and it waits for as long as the clock was set back.
    let release = stepped
        .store
        .release(&claim.held, failed(Duration::ZERO))
        .await;
    assert_eq!(release.unwrap(), Written::Yes);
    stepped.step(-2 * HOUR - 3).await;
    let begun = Instant::now();
    let claim = loop {
        if let Some(claim) = stepped.claim(&hand).await {
            break claim;
        }
        sleep(Duration::from_millis(50)).await;
    };
    let waited = begun.elapsed();
    assert!(waited < Duration::from_secs(5), "{waited:?}");
    // And what is given back unused does not wait at all.
    let release = stepped.store.release(&claim.held, Release::Unused).await;
    assert_eq!(release.unwrap(), Written::Yes);
    stepped.step(-2 * HOUR - 30).await;
    let claim = stepped.claim(&hand).await.unwrap();
    hand.finish(&claim, &stop).await;
    let history = stepped.watch.assert_holds().await;
    assert_eq!(history.ended("succeeded"), 1);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn a_clock_that_is_set_back_makes_no_lease_last_for_longer() {
    let stepped = Stepped::start().await;
    let (lives, other) = (stepped.hand("lives"), stepped.hand("other"));
    for id in ["held", "abandoned"] {
        stepped.send(id).await;
    }
    let held = stepped.claim(&lives).await.unwrap();
    let abandoned = stepped.claim(&stepped.hand("dead")).await.unwrap();
    assert_eq!(abandoned.held.id, "abandoned");
    stepped.step(-HOUR).await;
    let (stop, begun) = (CancellationToken::new(), Instant::now());
    let mut pulse = stepped.store.pulse().await.unwrap();
    let claim = loop {
        let beat = pulse.beat(&lives.worker, std::slice::from_ref(&held.held));
        assert!(
            beat.await.unwrap()[0].holds,
            "who is heard of keeps his job"
        );
        for rescued in stepped.store.rescue().await.unwrap() {
            assert_eq!(rescued.id, "abandoned");
        }
        if let Some(claim) = stepped.claim(&other).await {
            break claim;
        }
        assert!(begun.elapsed() < SHORT * 5, "a lease lasts for too long");
        sleep(SHORT / 10).await;
    };
    assert_eq!((claim.held.id.as_str(), claim.attempt), ("abandoned", 2));
    assert!(begun.elapsed() > SHORT / 2, "{:?}", begun.elapsed());
    for (hand, claim) in [(&lives, &held), (&other, &claim)] {
        hand.finish(claim, &stop).await;
    }
    let history = stepped.watch.assert_holds().await;
    assert_eq!(history.ended("succeeded"), 2);
    assert_eq!(history.claims("held").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn of_a_clock_that_is_set_ahead_while_jobs_run_each_has_one_result() {
    let stepped = Stepped::start().await;
    let (hand, other) = (stepped.hand("w"), stepped.hand("other"));
    let (stop, mut claims) = (CancellationToken::new(), Vec::new());
    for number in 0..4 {
        stepped.send(&format!("job-{number}")).await;
        claims.extend(stepped.claim(&hand).await);
    }
    stepped.step(HOUR).await;
    // All leases are over, and what has ended before somebody takes it away counts.
    for claim in &claims[..2] {
        hand.finish(claim, &stop).await;
    }
    assert_eq!(stepped.store.rescue().await.unwrap().len(), 2);
    for claim in &claims[2..3] {
        hand.finish(claim, &stop).await;
    }
    for _ in 0..2 {
        let again = stepped.claim(&other).await.unwrap();
        assert_eq!(again.attempt, 2);
        other.finish(&again, &stop).await;
    }
    hand.finish(&claims[3], &stop).await;
    let history = stepped.watch.assert_holds().await;
    assert_eq!(history.ended("succeeded"), 4);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn a_database_whose_clock_is_stepped_loses_no_job_and_doubles_none() {
    let stepped = Stepped::start().await;
    let Stepped { store, watch, .. } = &stepped;
    let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
    for name in ["one", "other", "third"] {
        let (hand, stop) = (stepped.hand(name), stop.clone());
        tasks.spawn(async move { hand.work(&stop).await });
    }
    let (looks, until) = (store.clone(), stop.clone());
    tasks.spawn(async move { hands::rescue(&looks, &until).await });
    let mut jobs = 0;
    for offset_now in [0, -HOUR, 0, -2 * HOUR, HOUR, -HOUR] {
        stepped.step(offset_now).await;
        for _ in 0..40 {
            stepped.send(&format!("job-{jobs}")).await;
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
