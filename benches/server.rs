//! The server over HTTP: how long a job takes from the request to the answer, with its record on disk, and
//! what of that is HTTP and the database; and what a server that is busy does of what its supervisor does.
//!
//! Needs root, and the state directory of `TAKO_VM_STATE_DIR`. `SERVER_JOBS` is how many are paced (100),
//! `SERVER_SECONDS` how long each load lasts (10).
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark reports by printing, and fails by panicking"
)]

#[path = "../tests/queue/cluster.rs"]
mod cluster;
#[path = "../tests/queue/jobs.rs"]
#[expect(dead_code, reason = "the tests use all of it")]
mod jobs;

use hdrhistogram::Histogram;
use std::fs;
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tako_vm::job::Termination;
use tako_vm::store::Store;
use tako_vm::store::queue::Enqueued;
use tako_vm::sys::process::{self, PidFd};
use tako_vm::{Error, Sandbox};
use ureq::Agent;

const CODE: &str = "print(1 + 1)";

/// From one paced request to the next.
const PACE: Duration = Duration::from_millis(333);

/// Of a kind, until it is the turn of the next kind.
const TURN: usize = 25;

const CLIENTS: u32 = 4;

/// How often the two loads take turns.
const ROUNDS: u32 = 3;

#[expect(clippy::disallowed_methods, reason = "a benchmark's own setting")]
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

struct Server {
    child: Child,
    url: String,
    agent: Agent,
}

impl Server {
    fn start(ground: &Path, database: &str) -> Self {
        let mut command = process::program(env!("CARGO_BIN_EXE_tako-vm"));
        command
            .env("TAKO_VM_STATE_DIR", tako_vm::config::state_dir())
            .env("TAKO_VM_DATABASE_URL", database)
            .args(["server", "--port", "0", "--socket"])
            .arg(ground.join("supervisor.sock"))
            .arg("--data-dir")
            .arg(ground.join("data"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = process::spawn_service(&mut command).unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let (_, url) = line.trim().split_once("listens on ").unwrap();
        Self {
            child,
            url: url.to_owned(),
            agent: Agent::config_builder()
                .http_status_as_error(false)
                .timeout_global(Some(Duration::from_mins(1)))
                .build()
                .into(),
        }
    }

    fn execute(&self) {
        let body = format!(r#"{{"code": "{CODE}"}}"#);
        let url = format!("{}/execute", self.url);
        let mut answer = self.agent.post(&url).send(body).unwrap();
        let text = answer.body_mut().read_to_string().unwrap();
        assert!(text.contains(r#""stdout":"2\n""#), "{text}");
    }

    /// HTTP and nothing else.
    fn nothing(&self) {
        let url = format!("{}/nowhere", self.url);
        let mut answer = self.agent.get(&url).call().unwrap();
        answer.body_mut().read_to_string().unwrap();
    }

    fn stop(mut self) {
        let handle = PidFd::open(self.child.id().cast_signed()).unwrap();
        handle.interrupt().unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

async fn run(sandbox: &Sandbox) {
    loop {
        match sandbox.run(CODE).await {
            // The server's last job is still being cleared away.
            Err(Error::Busy { retry_after }) => tokio::time::sleep(retry_after).await,
            ended => return assert_eq!(ended.unwrap().stdout(), "2\n"),
        }
    }
}

/// What a synchronous job says to the database.
async fn record(store: &Store, id: &str) {
    let (job, worker) = (jobs::job(id), jobs::worker("bench"));
    let enqueued = store
        .enqueue(&job, None, Some((&worker, uuid::Uuid::new_v4())))
        .await;
    let Enqueued::Claimed(claim) = enqueued.unwrap() else {
        panic!("it was not claimed");
    };
    let outcome = jobs::outcome(Termination::Exited(0));
    let end = store.finish(&claim.held, jobs::ended(&outcome)).await;
    assert!(end.unwrap().is_some());
}

fn tell(what: &str, times: &Histogram<u64>) {
    let ms = |quantile| Duration::from_micros(times.value_at_quantile(quantile));
    println!(
        "  {what:<44} median {:>8.2?}  p99 {:>8.2?}  max {:>8.2?}",
        ms(0.5),
        ms(0.99),
        ms(1.0)
    );
}

/// Does something at the pace of one client.
async fn timed(numbers: Range<u64>, times: &mut Histogram<u64>, job: impl AsyncFn(u64)) {
    for number in numbers {
        tokio::time::sleep(PACE).await;
        let begun = Instant::now();
        job(number).await;
        let took = u64::try_from(begun.elapsed().as_micros()).unwrap();
        times.record(took).unwrap();
    }
}

/// One request at a time, at 3 a second, and its parts at the same pace, in turns.
async fn paced(server: &Server, sandbox: &Sandbox, store: &Store) {
    let count = number("SERVER_JOBS", 100);
    let mut all = [(); 4].map(|()| Histogram::new(3).unwrap());
    for from in (0..count).step_by(TURN) {
        let [http, nothing, direct, database] = &mut all;
        let numbers = from..count.min(from + TURN as u64);
        let execute = async |_| tokio::task::block_in_place(|| server.execute());
        timed(numbers.clone(), http, execute).await;
        timed(numbers.clone(), direct, async |_| run(sandbox).await).await;
        let nowhere = async |_| tokio::task::block_in_place(|| server.nothing());
        timed(numbers.clone(), nothing, nowhere).await;
        let recorded = async |number| record(store, &format!("bench-{number}")).await;
        timed(numbers, database, recorded).await;
    }
    let [http, nothing, direct, database] = &all;
    println!("paced at 3 a second, {count} of each, pool warm, records durable:");
    tell("POST /execute (bar: median 6 ms, p99 30 ms)", http);
    tell("the same through the supervisor alone", direct);
    tell("a request that needs neither", nothing);
    tell("what it says to the database", database);
}

async fn for_a_while(seconds: u64, job: impl AsyncFn()) -> u64 {
    let late = Instant::now() + Duration::from_secs(seconds);
    let done = AtomicU64::new(0);
    let client = async || {
        while Instant::now() < late {
            job().await;
            done.fetch_add(1, Ordering::Relaxed);
        }
    };
    futures_util::future::join_all((0..CLIENTS).map(|_| client())).await;
    done.load(Ordering::Relaxed)
}

/// Four clients who wait for nothing but their jobs.
async fn saturated(server: &Server, sandbox: &Sandbox) {
    let seconds = number("SERVER_SECONDS", 10);
    let (mut over_http, mut direct) = (0, 0);
    for _ in 0..ROUNDS {
        over_http += std::thread::scope(|scope| {
            let late = Instant::now() + Duration::from_secs(seconds);
            let clients: Vec<_> = (0..CLIENTS)
                .map(|_| {
                    scope.spawn(move || {
                        let mut done = 0_u64;
                        while Instant::now() < late {
                            server.execute();
                            done += 1;
                        }
                        done
                    })
                })
                .collect();
            let done = clients.into_iter().map(|client| client.join().unwrap());
            done.sum::<u64>()
        });
        direct += for_a_while(seconds, async || run(sandbox).await).await;
    }
    #[expect(clippy::cast_precision_loss, reason = "some hundreds")]
    let (over_http, direct) = (over_http as f64, direct as f64);
    #[expect(clippy::cast_precision_loss, reason = "some seconds")]
    let time = (seconds * u64::from(ROUNDS)) as f64;
    println!(
        "saturated, {CLIENTS} clients: {:.2} jobs/s over HTTP, {:.2} through the supervisor alone: {:.2} \
         of it (bar: at least 0.9)",
        over_http / time,
        direct / time,
        over_http / direct
    );
}

#[tokio::main]
async fn main() {
    let (store, url) = cluster::store().await;
    let ground = tempfile::tempdir().unwrap();
    fs::set_permissions(ground.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let server = Server::start(ground.path(), &url);
    let builder = Sandbox::builder().supervisor(ground.path().join("supervisor.sock"));
    let sandbox = builder.build().unwrap();
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        tokio::task::block_in_place(|| server.execute());
        run(&sandbox).await;
    }
    paced(&server, &sandbox, &store).await;
    saturated(&server, &sandbox).await;
    server.stop();
}
