//! What a server does not take, from its requests and from whoever starts it.

use crate::http;
use crate::process::{Options, Server, command, ground};
use serde_json::{Value, json};
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::chown;

fn kinds(answer: &Value) -> Vec<&str> {
    let problems = answer["detail"].as_array().unwrap();
    problems
        .iter()
        .map(|problem| problem["type"].as_str().unwrap())
        .collect()
}

#[test]
#[ignore = "needs root and runsc"]
fn what_is_wrong_with_a_request_is_said_in_the_three_shapes_of_tako_vm() {
    let ground = ground();
    let options = Options {
        configuration: "{api_max_payload_bytes: 4096, max_timeout: 60}",
        ..Options::default()
    };
    let server = Server::start(ground.path(), &options);

    let (status, answer) = server.post("/execute", &json!({"cod": 1, "timeout": 0}));
    assert_eq!(status, 422);
    assert_eq!(
        kinds(&answer),
        ["missing", "greater_than_equal", "extra_forbidden"]
    );
    assert!(answer.get("correlation_id").is_none());
    let (status, answer) = http::post(&format!("{}/execute", server.url), "{");
    assert_eq!((status, kinds(&answer)), (422, vec!["json_invalid"]));
    let (status, answer) = server.post("/execute", &json!({"code": "1", "timeout": 61}));
    assert_eq!(status, 422);
    assert!(
        answer["detail"].as_str().unwrap().contains("at most 60s"),
        "{answer}"
    );
    assert!(answer["correlation_id"].is_string());
    let (status, _) = server.post("/execute", &json!({"code": "#".repeat(5000)}));
    assert_eq!(status, 413);
    let (status, answer) = server.get("/jobs/no-such-job");
    assert_eq!((status, &answer["detail"]), (404, &json!("Job not found")));
    let (status, answer) = server.get("/nowhere");
    assert_eq!((status, answer), (404, json!({"detail": "Not Found"})));
    let (status, answer) = server.get("/execute");
    assert_eq!(
        (status, answer),
        (405, json!({"detail": "Method Not Allowed"}))
    );
    let (status, answer) = server.get("/jobs/x/result?wait=true&timeout=0");
    assert_eq!((status, kinds(&answer)), (422, vec!["greater_than_equal"]));
    server.stop();
}

#[test]
#[ignore = "needs root and runsc"]
fn a_full_queue_says_so_and_leaves_the_key_free() {
    let ground = ground();
    let options = Options {
        configuration: "{max_queue_size: 1, max_workers: 1}",
        ..Options::default()
    };
    let server = Server::start(ground.path(), &options);
    // One runs, one waits, and for the third there is no room: its key stays free.
    let slow = |key: &str| json!({"code": "import time\ntime.sleep(2)", "idempotency_key": key});
    let send = |key: &str| server.post("/execute/async", &slow(key));
    let (_, first) = send("first-key");
    let id = first["job_id"].as_str().unwrap();
    let (_, again) = send("first-key");
    assert_eq!(again["job_id"], first["job_id"]);
    let (status, _) = server.post(
        "/execute/async",
        &json!({"code": "1", "idempotency_key": "first-key"}),
    );
    assert_eq!(status, 409);
    while server.get(&format!("/jobs/{id}")).1["status"] == "pending" {}
    let (status, second) = send("second-key");
    assert_eq!(status, 200, "{second}");
    let second = second["job_id"].as_str().unwrap();
    let (_, standing) = server.get(&format!("/jobs/{second}"));
    assert_eq!(
        (&standing["status"], &standing["queue_position"]),
        (&json!("pending"), &json!(1))
    );
    let (status, full) = send("third-key");
    assert_eq!(status, 503, "{full}");
    http::ended(&server.url, second);
    let (status, third) = send("third-key");
    assert_eq!(status, 200, "{third}");
    http::ended(&server.url, third["job_id"].as_str().unwrap());
    server.stop();
}

#[test]
#[ignore = "needs root and runsc"]
fn every_answer_has_the_senders_correlation_id_and_the_headers_of_security() {
    let ground = ground();
    let server = Server::start(ground.path(), &Options::default());
    let get = |id: &str| {
        let url = format!("{}/jobs/none", server.url);
        let sent = http::agent()
            .get(&url)
            .header("X-Correlation-ID", id)
            .call();
        let mut answer = sent.unwrap();
        let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        let names = [
            "x-correlation-id",
            "x-content-type-options",
            "x-frame-options",
        ];
        let headers = names.map(header);
        let body: Value =
            serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap();
        (answer.status().as_u16(), headers, body)
    };
    let (status, [id, sniff, frame], body) = get("mine-1");
    assert_eq!((status, id.as_str()), (404, "mine-1"));
    assert_eq!((sniff.as_str(), frame.as_str()), ("nosniff", "DENY"));
    assert_eq!(body["correlation_id"], "mine-1");
    let (status, [id, ..], _) = get(&"x".repeat(65));
    assert_eq!((status, id.len()), (422, 36));
    let (status, ..) = get(&"x".repeat(64));
    assert_eq!(status, 404);
    server.stop();
}

/// The exit status and standard error of a server that does not start.
pub(crate) fn refused(command: &mut std::process::Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
#[ignore = "needs root and runsc"]
fn a_server_that_cannot_be_as_it_is_wanted_does_not_start() {
    let ground = ground();
    for (configuration, expected) in [
        (
            "server_host: 0.0.0.0",
            "anybody who reaches this host could run programs",
        ),
        ("api_auth_enabled: true", "`api_auth_enabled` is true"),
        ("max_worker: 1", "does not parse"),
        (
            "enable_seccomp: false",
            "the seccomp profile cannot be turned off",
        ),
        (
            "database_url: nonsense",
            "the database URL is not of the form",
        ),
        (
            "artifact_store: {url: 's3://jobs', region: eu-1}",
            "`artifact_store` needs AWS_ACCESS_KEY_ID",
        ),
    ] {
        let options = Options {
            configuration,
            ..Options::default()
        };
        let (code, said) = refused(&mut command(ground.path(), &options));
        assert!(
            matches!(code, Some(2 | 125)),
            "{configuration}: {code:?} {said}"
        );
        assert!(said.contains(expected), "{configuration}: {said}");
    }
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let options = Options {
        port: &port,
        ..Options::default()
    };
    let (code, said) = refused(&mut command(ground.path(), &options));
    assert_eq!(code, Some(125), "{said}");
    assert!(said.contains("cannot listen on 127.0.0.1"), "{said}");
    // A directory of somebody else's is not taken.
    let other = ground.path().join("otherdata");
    fs::create_dir(&other).unwrap();
    chown(&other, Some(12_345), Some(12_345)).unwrap();
    let options = Options {
        name: "other",
        ..Options::default()
    };
    let (code, said) = refused(&mut command(ground.path(), &options));
    assert_eq!(code, Some(125), "{said}");
    assert!(said.contains("is no directory of the user"), "{said}");
}
