//! Processes that are killed and stopped while jobs run.

use super::children::{Needs, Server};
use super::daemon::Daemon;
use super::hands::{self, keyed};
use super::history::Watch;
use super::host::on_this_host;
use super::server::{self, LEASE};
use super::{cluster, history};
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tako_vm::store::queue::Submission;
use tako_vm::store::{Database, Store};
use tempfile::TempDir;
use tokio::time::sleep;

/// After its lease: until somebody looks for what is lost, and begins it.
const TAKEN_OVER: Duration = Duration::from_secs(2);

/// For what has no bound of its own.
const PATIENCE: Duration = Duration::from_mins(1);

/// A program that takes so many seconds.
pub(crate) fn takes(id: &str, seconds: f64) -> Submission {
    let mut job = keyed(id);
    job.request.code = format!("import time\nprint('up')\ntime.sleep({seconds})");
    job
}

struct Place {
    daemon: Daemon,
    needs: Needs,
    store: Store,
    watch: Watch,
}

async fn place() -> Place {
    let (daemon, url) = (Daemon::start(), cluster::database().await);
    let database = Database::from_url(&url).unwrap();
    let store = Store::open(&database, 4).await.unwrap();
    let watch = Watch::begin(&url, LEASE).await;
    let socket = daemon.socket();
    Place {
        daemon,
        needs: Needs { url, socket },
        store,
        watch,
    }
}

impl Place {
    async fn send(&self, job: &Submission) {
        hands::send(&self.store, &self.watch.log, job).await;
    }

    /// Waits for the claim of this number of a job, and gives who has claimed.
    async fn claimed(&self, job: &str, number: usize, limit: Duration) -> (String, i64) {
        let begun = Instant::now();
        loop {
            let claims = self.watch.history().await.claims(job);
            if let Some(claim) = claims.get(number - 1) {
                return claim.clone();
            }
            let waited = begun.elapsed();
            assert!(waited < limit, "after {waited:?}: {claims:?}");
            sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Three servers, each with a directory of its own.
struct Three {
    needs: Needs,
    directories: Vec<TempDir>,
    servers: Vec<Server>,
    kills: usize,
}

impl Three {
    fn start(needs: &Needs) -> Self {
        let directories: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        let servers = directories.iter().enumerate();
        let servers = servers.map(|(number, directory)| {
            Server::start(&format!("server-{number}"), needs, directory.path())
        });
        Self {
            servers: servers.collect(),
            needs: needs.clone(),
            directories,
            kills: 0,
        }
    }

    /// Kills one of them, whose directory goes to another process.
    fn kill_any(&mut self) {
        let number = rand::random_range(0..self.servers.len());
        self.kills += 1;
        self.servers.remove(number).kill();
        let name = format!("server-{number}-{}", self.kills);
        let next = Server::start(&name, &self.needs, self.directories[number].path());
        self.servers.insert(number, next);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn servers_and_supervisors_that_are_killed_at_random_lose_nothing_and_share_the_work() {
    let mut place = place().await;
    let mut three = Three::start(&place.needs);
    let limit = Duration::from_secs(crate::size("TAKO_VM_SOAK_LOAD_SECONDS", 12) as u64);
    let (begun, mut next_kill) = (Instant::now(), Duration::from_secs(2));
    let (mut jobs, mut supervisors) = (0, 0);
    while begun.elapsed() < limit {
        let seconds = rand::random_range(0.0..0.6);
        place.send(&takes(&format!("job-{jobs}"), seconds)).await;
        jobs += 1;
        if begun.elapsed() > next_kill {
            three.kill_any();
            if three.kills.is_multiple_of(4) {
                place.daemon = Daemon::in_directory(place.daemon.killed(), |_| {});
                supervisors += 1;
            }
            next_kill = begun.elapsed() + Duration::from_millis(rand::random_range(500..2000));
        }
        sleep(Duration::from_millis(300)).await;
    }
    let patience = on_this_host(PATIENCE);
    place.watch.all_ended_within(patience).await;
    let history = place.watch.assert_holds().await;
    assert_eq!(history.ended("succeeded"), jobs);
    let workers = workers(&history);
    for number in 0..3 {
        let name = format!("server-{number}");
        let has_worked = workers.iter().any(|worker| worker.starts_with(&name));
        assert!(has_worked, "{workers:?}");
    }
    let claims: usize = (0..jobs)
        .map(|number| history.claims(&format!("job-{number}")).len())
        .sum();
    let kills = three.kills;
    eprintln!(
        "{kills} servers and {supervisors} supervisors killed, {jobs} jobs claimed {claims} times, \
         all recorded once"
    );
    assert!(kills > 2 && claims > jobs, "nothing was lost");
    for server in three.servers {
        assert!(server.leave().success());
    }
    place.daemon.assert_empty_within(Duration::from_secs(5));
}

fn workers(history: &history::History) -> BTreeSet<String> {
    let workers = history
        .changes
        .iter()
        .filter_map(|change| change.worker.clone());
    workers.collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn what_one_of_three_runs_that_is_killed_is_taken_over_in_time() {
    let place = place().await;
    let (mut times, three) = (Vec::new(), Three::start(&place.needs));
    let mut servers: Vec<_> = (0..3)
        .map(|number| format!("server-{number}"))
        .zip(three.servers)
        .collect();
    let patience = on_this_host(PATIENCE);
    let mut killed = BTreeSet::new();
    for round in 0..2 {
        let id = format!("job-{round}");
        place.send(&takes(&id, 1.0)).await;
        let (worker, _) = place.claimed(&id, 1, patience).await;
        // It runs, and was heard of some times.
        sleep(Duration::from_millis(500)).await;
        let number = servers
            .iter()
            .position(|(name, _)| *name == worker)
            .unwrap();
        servers.remove(number).1.kill();
        let dead = Instant::now();
        let (other, _) = place.claimed(&id, 2, patience).await;
        times.push(dead.elapsed());
        assert!(killed.insert(worker) && !killed.contains(&other), "{other}");
    }
    place.watch.all_ended_within(patience).await;
    let history = place.watch.assert_holds().await;
    assert_eq!(history.ended("succeeded"), 2);
    let worst = times.iter().max().unwrap();
    eprintln!("taken over after {times:?}; the lease is {LEASE:?}");
    assert!(*worst <= on_this_host(LEASE + TAKEN_OVER), "{times:?}");
    drop(servers);
    place.daemon.assert_empty_within(Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_server_that_is_stopped_past_its_lease_records_nothing_when_it_goes_on() {
    let place = place().await;
    let directory = tempfile::tempdir().unwrap();
    let stopped = Server::start("stopped", &place.needs, directory.path());
    place.send(&takes("a", 1.5)).await;
    let patience = on_this_host(PATIENCE);
    let (worker, _) = place.claimed("a", 1, patience).await;
    assert_eq!(worker, "stopped");
    place.daemon.sandbox();
    stopped.signal(Signal::SIGSTOP);
    let other = server::Server::start("other", &place.needs.url, &place.needs.socket).await;
    assert_eq!(place.claimed("a", 2, patience).await.0, "other");
    place.watch.all_ended_within(patience).await;
    let changes = place.watch.history().await.changes.len();
    // What it ran has ended long ago, and it believes that the result is its own to record.
    stopped.signal(Signal::SIGCONT);
    sleep(Duration::from_secs(2)).await;
    let history = place.watch.assert_holds().await;
    assert_eq!(history.changes.len(), changes);
    assert_eq!(history.ended("succeeded"), 1);
    // It works as before, and nothing waits in its journal.
    other.dispatcher.drain(Duration::from_secs(5)).await;
    place.send(&takes("b", 0.0)).await;
    place.watch.all_ended_within(patience).await;
    let history = place.watch.assert_holds().await;
    assert_eq!(history.claims("b")[0].0, "stopped");
    let journal = std::fs::read_dir(directory.path().join("journal")).unwrap();
    assert_eq!(journal.count(), 0);
    assert!(stopped.leave().success());
    place.daemon.assert_empty_within(Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_supervisor_that_is_stopped_for_longer_than_a_lease_ends_its_jobs_once() {
    let place = place().await;
    let server = server::Server::start("w", &place.needs.url, &place.needs.socket).await;
    let other = server::Server::start("other", &place.needs.url, &place.needs.socket).await;
    for id in ["short", "long"] {
        place
            .send(&takes(id, if id == "short" { 0.5 } else { 6.0 }))
            .await;
    }
    let patience = on_this_host(PATIENCE);
    for id in ["short", "long"] {
        place.claimed(id, 1, patience).await;
    }
    super::daemon::wait_for(
        patience,
        || place.daemon.sandboxes().len() == 2,
        || format!("{:?}", place.daemon.sandboxes()),
    );
    place.daemon.signal(Signal::SIGSTOP);
    // It takes the connection, and says nothing.
    place.send(&takes("late", 0.0)).await;
    sleep(LEASE + Duration::from_secs(2)).await;
    let history = place.watch.history().await;
    assert_eq!(history.ended("succeeded"), 0);
    place.daemon.signal(Signal::SIGCONT);
    place.watch.all_ended_within(patience).await;
    let history = place.watch.assert_holds().await;
    assert_eq!(history.ended("succeeded"), 3);
    for id in ["short", "long", "late"] {
        // Those who wait for it are heard of all the time.
        assert_eq!(history.claims(id).len(), 1, "{id}");
    }
    drop((server, other));
    place.daemon.assert_empty_within(Duration::from_secs(5));
}
