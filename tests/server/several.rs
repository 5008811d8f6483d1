//! Several servers on one database.

use crate::cluster;
use crate::host::on_this_host;
use crate::http;
use crate::process::{Options, Server, ground, kill};
use nix::sys::signal::Signal;
use serde_json::json;
use sqlx::Row;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Seconds that a job is a server's without a word of it.
const LEASE: Duration = Duration::from_secs(3);

fn options(name: &'static str, url: &str) -> Options<'static> {
    Options {
        name,
        database_url: Some(url.to_owned()),
        configuration: "{lease_seconds: 3, max_workers: 1, supervisor: {max_jobs: 8}}",
        ..Options::default()
    }
}

/// How many jobs each worker has ended.
async fn shares(url: &str) -> BTreeMap<String, i64> {
    let mut connection = cluster::connect(url).await;
    let rows =
        sqlx::query("SELECT worker, count(*) FROM jobs WHERE ended_at IS NOT NULL GROUP BY worker")
            .fetch_all(&mut connection)
            .await
            .unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[test]
#[ignore = "needs root and runsc"]
fn three_share_the_work_and_what_a_dead_one_had_runs_elsewhere() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let url = runtime.block_on(cluster::database());
    let ground = ground();
    // The first has the supervisor in its process, and all use it.
    let servers = ["a", "b", "c"].map(|name| Server::start(ground.path(), &options(name, &url)));
    let code = json!({"code": "import time\ntime.sleep(0.2)\nprint('done')"});
    let jobs: Vec<String> = (0..24)
        .map(|_| {
            servers[0].post("/execute/async", &code).1["job_id"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    for id in &jobs {
        // Whoever is asked knows of all.
        assert_eq!(http::ended(&servers[2].url, id)["stdout"], "done\n");
    }
    let shares = runtime.block_on(shares(&url));
    assert_eq!(shares.values().sum::<i64>(), 24);
    assert_eq!(shares.len(), 3, "{shares:?}");
    assert!(shares.values().all(|&share| share >= 3), "{shares:?}");

    cancelled_by_one_run_by_any(&servers);
    one_is_killed(&servers);
    let [first, killed, last] = servers;
    killed.ended();
    last.stop();
    first.stop();
}

#[test]
#[ignore = "needs root and runsc"]
fn a_server_says_what_it_waits_for_when_somebody_has_the_schema_locked() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let url = runtime.block_on(cluster::database());
    let ground = ground();
    // It makes the schema.
    Server::start(ground.path(), &options("a", &url)).stop();
    let mut keeps = runtime.block_on(async {
        let mut keeps = cluster::connect(&url).await;
        let lock = "SET application_name = 'somebody'; BEGIN;
            LOCK TABLE _sqlx_migrations IN ACCESS EXCLUSIVE MODE";
        sqlx::raw_sql(lock).execute(&mut keeps).await.unwrap();
        keeps
    });
    let gives_up = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(12));
        runtime.block_on(async {
            sqlx::raw_sql("COMMIT").execute(&mut keeps).await.unwrap();
        });
    });
    let server = Server::start(ground.path(), &options("a", &url));
    gives_up.join().unwrap();
    kill(server.leader(), Signal::SIGTERM);
    let (code, said) = server.ended();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("the schema `tako` is locked"), "{said}");
    assert!(said.contains("`somebody`"), "{said}");
}

#[test]
#[ignore = "needs root and runsc"]
fn the_audit_tells_when_a_server_came_and_went_and_who_cancelled_what() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let url = runtime.block_on(cluster::database());
    let ground = ground();
    let server = Server::start(ground.path(), &options("a", &url));
    let endless = json!({"code": "import time\ntime.sleep(50)"});
    let (_, sent) = server.post("/execute/async", &endless);
    let id = sent["job_id"].as_str().unwrap().to_owned();
    let (status, answer) = server.post(&format!("/jobs/{id}/cancel"), &json!({}));
    assert_eq!(status, 200, "{answer}");
    server.stop();
    let acts = runtime.block_on(acts(&url));
    let [start, cancel, drain, stop] = &acts[..] else {
        panic!("{acts:?}")
    };
    assert_eq!(cancel[..3], ["cancel", &id, "127.0.0.1"]);
    for (act, action) in [
        (start, "server_start"),
        (drain, "server_drain"),
        (stop, "server_stop"),
    ] {
        assert_eq!(act[..3], [action, "", ""]);
        assert!(!act[3].is_empty() && act[3] == start[3], "{acts:?}");
    }
}

/// Action, job, address and server of each line of the audit.
async fn acts(url: &str) -> Vec<[String; 4]> {
    let rows = sqlx::query(
        "SELECT action, COALESCE(job_id, ''), COALESCE(client_address, ''),
            COALESCE(detail->>'server', '')
        FROM audit ORDER BY id",
    )
    .fetch_all(&mut cluster::connect(url).await)
    .await
    .unwrap();
    rows.iter()
        .map(|row| [row.get(0), row.get(1), row.get(2), row.get(3)])
        .collect()
}

fn cancelled_by_one_run_by_any(servers: &[Server; 3]) {
    let endless = json!({"code": "import time\ntime.sleep(50)"});
    let (_, sent) = servers[1].post("/execute/async", &endless);
    let id = sent["job_id"].as_str().unwrap();
    std::thread::sleep(Duration::from_millis(800));
    for server in [&servers[2], &servers[0]] {
        let (status, answer) = server.post(&format!("/jobs/{id}/cancel"), &json!({}));
        let expected = if server.url == servers[2].url {
            200
        } else {
            404
        };
        assert_eq!(status, expected, "{answer}");
    }
}

/// All three are busy.
fn one_is_killed(servers: &[Server; 3]) {
    let slow = json!({"code": "import time\ntime.sleep(2)\nprint('slow')"});
    let jobs: Vec<String> = (0..3)
        .map(|_| {
            servers[0].post("/execute/async", &slow).1["job_id"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    let running = |id: &String| servers[0].get(&format!("/jobs/{id}")).1["status"] == "running";
    let late = Instant::now() + on_this_host(Duration::from_secs(10));
    while !jobs.iter().all(running) {
        assert!(Instant::now() < late);
    }
    kill(servers[1].worker(), Signal::SIGKILL);
    let killed = Instant::now();
    let attempts: Vec<i64> = jobs
        .iter()
        .map(|id| {
            let record = http::ended(&servers[0].url, id);
            assert_eq!(record["stdout"], "slow\n", "{record}");
            record["attempts"].as_i64().unwrap()
        })
        .collect();
    assert_eq!(attempts.iter().sum::<i64>(), 4, "{attempts:?}");
    // Taken over within the lease and two seconds; then it runs for two more.
    let bound = on_this_host(LEASE + Duration::from_secs(2) + Duration::from_secs(2));
    assert!(
        killed.elapsed() < bound + Duration::from_secs(1),
        "{:?}",
        killed.elapsed()
    );
}
