//! Servers whose jobs leave their files in a store that speaks S3.

use crate::bucket::{ACCESS_KEY_ID, Bucket, SECRET_ACCESS_KEY};
use crate::cluster;
use crate::host::on_this_host;
use crate::http;
use crate::process::{Options, Server, assert_nothing_of, command, ground, kill};
use crate::refusals::refused;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::fs;
use std::time::{Duration, Instant};

const CONFIGURATION: &str = "{lease_seconds: 3, max_workers: 2, retry_base_delay: 0.1, \
                             artifact_store: {url: 's3://jobs/some/where', allow_http: true}}";

fn options(name: &'static str, bucket: &Bucket, secret: &str) -> Options<'static> {
    Options {
        name,
        configuration: CONFIGURATION,
        environment: vec![
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", secret.to_owned()),
            ("AWS_ENDPOINT_URL", bucket.endpoint()),
        ],
        ..Options::default()
    }
}

/// Writes a file that is like no other, after a while.
fn writes(text: &str, seconds: f64) -> Value {
    let code = format!(
        "import time\ntime.sleep({seconds})\nopen('/output/a', 'w').write('{text}' * 100_000)"
    );
    json!({"code": code})
}

fn send(server: &Server, job: &Value) -> String {
    let (status, sent) = server.post("/execute/async", job);
    assert_eq!(status, 200, "{sent}");
    sent["job_id"].as_str().unwrap().to_owned()
}

/// What lies in the bucket for the one file of a job that has succeeded.
fn kept(bucket: &Bucket, record: &Value) -> Vec<u8> {
    assert_eq!(record["status"], "succeeded", "{record}");
    let digest = record["artifacts"][0]["sha256"].as_str().unwrap();
    fs::read(bucket.path_of(digest)).unwrap()
}

fn until_ready(server: &Server, expected: bool) -> Value {
    let late = Instant::now() + on_this_host(Duration::from_secs(30));
    loop {
        let (_, answer) = server.get("/ready");
        if answer["ready"] == expected {
            return answer;
        }
        assert!(Instant::now() < late, "{answer}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
#[ignore = "needs root and runsc"]
fn no_job_is_lost_while_the_store_of_files_is_away_and_all_go_on_when_it_is_back() {
    let (ground, mut bucket) = (ground(), Bucket::start());
    let server = Server::start(ground.path(), &options("", &bucket, SECRET_ACCESS_KEY));
    until_ready(&server, true);
    let before = send(&server, &writes("before", 0.0));
    let record = http::ended(&server.url, &before);
    assert_eq!(kept(&bucket, &record), "before".repeat(100_000).as_bytes());

    bucket.go_away();
    let names = ["a", "b", "c", "d", "e", "f"];
    let jobs = names.map(|name| send(&server, &writes(name, 0.5)));
    let answer = until_ready(&server, false);
    let problems = answer["problems"].to_string();
    assert!(problems.contains("artifact store"), "{problems}");
    std::thread::sleep(Duration::from_secs(3));
    let ended = |id: &String| {
        let (_, standing) = server.get(&format!("/jobs/{id}"));
        !["pending", "running"].contains(&standing["status"].as_str().unwrap())
    };
    assert!(!jobs.iter().any(ended), "nothing has failed for it");

    bucket.come_back();
    let mut attempts = 0;
    for (id, name) in jobs.iter().zip(names) {
        let record = http::ended(&server.url, id);
        assert_eq!(kept(&bucket, &record), name.repeat(100_000).as_bytes());
        attempts += record["attempts"].as_i64().unwrap();
    }
    // What ran when it was found out, and no more.
    assert!((7..=8).contains(&attempts), "{attempts} attempts of 6 jobs");
    until_ready(&server, true);
    let left = bucket.objects();
    assert!(!left.iter().any(|name| name.contains("tried")), "{left:?}");

    let (data, leader) = (server.data.clone(), server.leader());
    kill(leader, Signal::SIGTERM);
    let (code, said) = server.ended();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("cannot keep the files of a job"), "{said}");
    assert!(!said.contains(SECRET_ACCESS_KEY), "{said}");
    assert_nothing_of(&data);
}

#[test]
#[ignore = "needs root and runsc"]
fn a_server_that_is_started_while_the_store_is_away_waits_for_it_and_a_wrong_key_is_refused() {
    let (ground, mut bucket) = (ground(), Bucket::start());
    let wrong = options("wrong", &bucket, "a-secret-that-is-wrong");
    let (code, said) = refused(&mut command(ground.path(), &wrong));
    assert_eq!(code, Some(2), "{said}");
    for expected in [
        "it answers `SignatureDoesNotMatch`",
        "AWS_SECRET_ACCESS_KEY",
    ] {
        assert!(said.contains(expected), "{said}");
    }
    assert!(!said.contains("that-is-wrong"), "{said}");

    bucket.go_away();
    let server = Server::start(ground.path(), &options("", &bucket, SECRET_ACCESS_KEY));
    let answer = until_ready(&server, false);
    assert!(answer["problems"].to_string().contains("artifact store"));
    let id = send(&server, &writes("x", 0.0));
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(server.get(&format!("/jobs/{id}")).1["status"], "pending");
    bucket.come_back();
    let record = http::ended(&server.url, &id);
    assert_eq!(record["attempts"], 1, "{record}");
    assert_eq!(kept(&bucket, &record).len(), 100_000);
    until_ready(&server, true);
    server.stop();
}

#[test]
#[ignore = "needs root and runsc"]
fn two_servers_on_one_database_keep_equal_files_once() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let url = runtime.block_on(cluster::database());
    let (ground, bucket) = (ground(), Bucket::start());
    let servers = ["a", "b"].map(|name| {
        let options = Options {
            database_url: Some(url.clone()),
            ..options(name, &bucket, SECRET_ACCESS_KEY)
        };
        Server::start(ground.path(), &options)
    });
    let jobs: Vec<_> = (0..8)
        .map(|_| send(&servers[0], &writes("same", 0.3)))
        .collect();
    for id in &jobs {
        let record = http::ended(&servers[1].url, id);
        assert_eq!(kept(&bucket, &record), "same".repeat(100_000).as_bytes());
    }
    assert_eq!(bucket.objects().len(), 1);
    let [first, last] = servers;
    last.stop();
    first.stop();
}
