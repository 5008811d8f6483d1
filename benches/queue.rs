//! The queue alone, on a PostgreSQL of its own: how many jobs a second go through it when nothing runs
//! them, and how long a claim takes when very many wait, or when somebody keeps a transaction open.
//!
//! `QUEUE_SECONDS` is how long each load lasts (10), `QUEUE_HELD_SECONDS` how long the transaction is open
//! (60).
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
use sqlx::Connection;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tako_vm::job::Termination;
use tako_vm::store::Store;
use tako_vm::store::queue::tokens;

/// Tasks that bring jobs in, and that claim and end them.
const SENDERS: u64 = 16;
const WORKERS: u64 = 4;

/// Jobs that a worker claims at once.
const AT_ONCE: u16 = 8;

/// Jobs that wait at most, so that what is measured is the way through and not a heap.
const MOST: u32 = 200;

#[tokio::main]
async fn main() {
    // Cargo says `--bench`, and means nothing by it.
    let seconds = seconds("QUEUE_SECONDS", 10);
    through(seconds).await;
    deep().await;
    held(Duration::from_secs(self::seconds("QUEUE_HELD_SECONDS", 60))).await;
}

#[expect(clippy::disallowed_methods, reason = "a benchmark's own setting")]
fn seconds(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Claims and ends jobs until there are none and `stop` is set.
async fn work(store: Store, name: String, stop: Arc<AtomicBool>, done: Arc<AtomicU64>) {
    let worker = jobs::worker(&name);
    let outcome = jobs::outcome_with_a_file(Termination::Exited(0));
    loop {
        let claims = store.claim(&worker, &tokens(AT_ONCE)).await.unwrap();
        if claims.is_empty() {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let ends = claims.iter().map(|claim| {
            let (store, outcome) = (store.clone(), outcome.clone());
            let held = claim.held.clone();
            tokio::spawn(async move { store.finish(&held, jobs::ended(&outcome)).await.unwrap() })
        });
        for end in ends.collect::<Vec<_>>() {
            end.await.unwrap();
            done.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn through(seconds: u64) {
    let (store, _url) = cluster::store().await;
    let (stop, done) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let begun = Instant::now();
    let senders = (0..SENDERS).map(|sender| {
        let (store, stop) = (store.clone(), Arc::clone(&stop));
        tokio::spawn(async move {
            for number in 0_u64.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let job = jobs::job(&format!("{sender}-{number}"));
                while let tako_vm::store::queue::Enqueued::Full =
                    store.enqueue(&job, Some(MOST), None).await.unwrap()
                {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
        })
    });
    let senders: Vec<_> = senders.collect();
    let workers: Vec<_> = (0..WORKERS)
        .map(|number| {
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            tokio::spawn(work(store.clone(), format!("worker-{number}"), stop, done))
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let (count, took) = (done.load(Ordering::Relaxed), begun.elapsed());
    stop.store(true, Ordering::Relaxed);
    for task in senders.into_iter().chain(workers) {
        task.await.unwrap();
    }
    #[expect(clippy::cast_precision_loss, reason = "a few thousand a second")]
    let rate = count as f64 / took.as_secs_f64();
    println!(
        "through the queue: {count} jobs in {took:.1?}: {rate:.0} jobs/s (bar: at least 1500)"
    );
}

fn tell(what: &str, times: &Histogram<u64>) {
    let ms = |quantile| Duration::from_micros(times.value_at_quantile(quantile));
    println!(
        "{what}: {} claims, median {:.1?}, p99 {:.1?}, max {:.1?} (bar: p99 at most 20 ms)",
        times.len(),
        ms(0.5),
        ms(0.99),
        ms(1.0)
    );
}

/// Claims one job and ends it; gives how long the claim took.
async fn claim_and_end(store: &Store, times: &mut Histogram<u64>) {
    let outcome = jobs::outcome_with_a_file(Termination::Exited(0));
    let begun = Instant::now();
    let claims = store.claim(&jobs::worker("w"), &tokens(1)).await.unwrap();
    let took = begun.elapsed();
    times
        .record(u64::try_from(took.as_micros()).unwrap())
        .unwrap();
    for claim in claims {
        store
            .finish(&claim.held, jobs::ended(&outcome))
            .await
            .unwrap();
    }
}

async fn deep() {
    let (store, url) = cluster::store().await;
    let mut connection = cluster::connect(&url).await;
    let bring = "WITH job AS (
            INSERT INTO jobs (id, state, priority, owner, turn, job_type, attempts, max_attempts)
            SELECT 'job-' || n, 'queued', 0, 'owner-' || n % 10, n / 10, 'default', 0, 2
            FROM generate_series(1, 100000) n
            RETURNING id
        )
        INSERT INTO payloads (job_id, code, input, code_sha256, input_sha256, image)
        SELECT id, 'print(1 + 1)', '{}', sha256('x'), sha256('x'), 'python' FROM job";
    sqlx::query(bring).execute(&mut connection).await.unwrap();
    let mut times = Histogram::new(3).unwrap();
    for _ in 0..2000 {
        claim_and_end(&store, &mut times).await;
    }
    tell("with 100,000 that wait", &times);
}

async fn held(time: Duration) {
    let (store, url) = cluster::store().await;
    let mut connection = cluster::connect(&url).await;
    let mut holder = cluster::connect(&url).await;
    let size = "SELECT pg_table_size('jobs') / 1024, pg_indexes_size('jobs') / 1024";
    let mut open = holder.begin().await.unwrap();
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        .execute(&mut *open)
        .await
        .unwrap();
    sqlx::query("SELECT count(*) FROM jobs")
        .execute(&mut *open)
        .await
        .unwrap();
    let mut times = Histogram::new(3).unwrap();
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    let begun = Instant::now();
    for number in 0_u64.. {
        if begun.elapsed() > time {
            break;
        }
        tick.tick().await;
        store
            .enqueue(&jobs::job(&format!("job-{number}")), None, None)
            .await
            .unwrap();
        claim_and_end(&store, &mut times).await;
    }
    let sizes: (i64, i64) = sqlx::query_as(size)
        .fetch_one(&mut connection)
        .await
        .unwrap();
    tell(
        &format!("with a transaction open for {time:?} at 20 jobs/s"),
        &times,
    );
    println!(
        "  the table of jobs has {} KiB then, its indexes {} KiB",
        sizes.0, sizes.1
    );
    open.rollback().await.unwrap();
}
