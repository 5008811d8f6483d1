//! One server: what it answers, how it ends, and what is still there when it is started again.

use crate::host::on_this_host;
use crate::http;
use crate::process::{Options, Server, assert_none_of, assert_nothing_of, ground, kill};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

fn program(code: &str) -> Value {
    json!({"code": code})
}

#[test]
#[ignore = "needs root and runsc"]
fn jobs_are_run_at_once_or_later() {
    let ground = ground();
    let server = Server::start(ground.path(), &Options::default());

    let (status, ran) = server.post(
        "/execute",
        &json!({
            "code": "import json\nn = json.load(open('/input/data.json'))['n']\n\
                     print('hello')\njson.dump([n, n * 2], open('/output/result.json', 'w'))\n",
            "input_data": {"n": 21},
        }),
    );
    assert_eq!(status, 200, "{ran}");
    assert_eq!(ran["success"], true, "{ran}");
    assert_eq!(ran["output"], json!([21, 42]));
    assert_eq!(
        (&ran["stdout"], &ran["exit_code"]),
        (&json!("hello\n"), &json!(0))
    );
    assert_eq!(
        (&ran["runtime"], &ran["job_type"]),
        (&json!("runsc"), &json!("default"))
    );
    let id = ran["execution_id"].as_str().unwrap();
    assert!(id.starts_with("api-"), "{id}");
    let (_, record) = server.get(&format!("/jobs/{id}/result?view=full"));
    assert_eq!(record["status"], "succeeded");
    assert_eq!(record["artifacts"][0]["name"], "result.json");
    assert!(
        record["resource_usage"]["max_rss_mb"].as_f64().unwrap() > 1.0,
        "{record}"
    );

    let (status, failed) = server.post("/execute", &program("raise ValueError('no')"));
    assert_eq!((status, &failed["success"]), (200, &json!(false)));
    assert_eq!(failed["error"], "ValueError: no");
    assert!(
        failed["stderr"].as_str().unwrap().contains("Traceback"),
        "{failed}"
    );

    let (status, sent) = server.post("/execute/async", &program("print('later')"));
    assert_eq!((status, &sent["status"]), (200, &json!("queued")));
    let record = http::ended(&server.url, sent["job_id"].as_str().unwrap());
    assert_eq!(
        (&record["status"], &record["stdout"]),
        (&json!("succeeded"), &json!("later\n"))
    );

    server.stop();
}

#[test]
#[ignore = "needs root and runsc"]
fn a_job_that_is_cancelled_has_stopped_when_that_is_answered() {
    let ground = ground();
    let server = Server::start(ground.path(), &Options::default());
    let endless = program("print('up', flush=True)\nimport time\ntime.sleep(50)");
    let (_, sent) = server.post("/execute/async", &endless);
    let id = sent["job_id"].as_str().unwrap();
    until(&server, id, "running");
    let begun = Instant::now();
    let (status, cancelled) = server.post(&format!("/jobs/{id}/cancel"), &json!({}));
    assert_eq!(
        (status, &cancelled["status"]),
        (200, &json!("cancelled")),
        "{cancelled}"
    );
    assert!(begun.elapsed() < on_this_host(Duration::from_secs(5)));
    let (_, record) = server.get(&format!("/jobs/{id}/result"));
    assert_eq!(record["status"], "cancelled", "{record}");
    assert_eq!(record["error"]["type"], "cancelled");
    let (status, _) = server.post(&format!("/jobs/{id}/cancel"), &json!({}));
    assert_eq!(status, 404);

    let (status, page) = server.get("/executions?limit=1&status=cancelled");
    assert_eq!(
        (status, &page["count"], &page["has_more"]),
        (200, &json!(1), &json!(false))
    );
    assert_eq!(page["items"][0]["execution_id"], id);
    let (_, page) = server.get("/executions?status=nonsense");
    assert_eq!(page["items"], json!([]));
    let (status, _) = server.get("/executions?limit=0");
    assert_eq!(status, 422);
    let (_, one) = server.get(&format!("/executions/{id}?view=full"));
    assert_eq!(one["attempts"], 1);

    let (_, health) = server.get("/health");
    assert_eq!(health["status"], "healthy", "{health}");
    assert_eq!(
        health["queue_stats"],
        json!({
            "pending": 0, "running": 0, "max_workers": 4, "max_queue_size": 100,
        })
    );
    let (status, ready) = server.get("/ready");
    assert_eq!((status, &ready["ready"]), (200, &json!(true)), "{ready}");
    server.stop();
}

fn until(server: &Server, id: &str, state: &str) {
    let late = Instant::now() + on_this_host(Duration::from_secs(20));
    loop {
        let (_, standing) = server.get(&format!("/jobs/{id}"));
        if standing["status"] == state {
            return;
        }
        assert!(Instant::now() < late, "{standing}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Lines of `/proc/PID/status`.
fn line(pid: nix::unistd::Pid, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(name));
    line.unwrap()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
#[ignore = "needs root and runsc"]
fn the_process_that_serves_has_no_privileges_and_neither_has_its_database() {
    let ground = ground();
    let server = Server::start(ground.path(), &Options::default());
    let uid = nix::unistd::User::from_name("tako-vm")
        .unwrap()
        .unwrap()
        .uid;
    let pids = [server.worker(), database_of(&server)];
    for pid in pids {
        assert_eq!(line(pid, "Uid:"), format!("Uid: {uid} {uid} {uid} {uid}"));
        assert_eq!(line(pid, "Groups:"), "Groups:");
        for set in ["CapPrm:", "CapEff:", "CapAmb:", "CapInh:"] {
            assert_eq!(line(pid, set), format!("{set} 0000000000000000"));
        }
        assert_eq!(line(pid, "NoNewPrivs:"), "NoNewPrivs: 1");
    }
    assert_eq!(line(server.leader(), "Uid:"), "Uid: 0 0 0 0");
    server.stop();
}

/// The first process of its PostgreSQL.
fn database_of(server: &Server) -> nix::unistd::Pid {
    let pid = fs::read_to_string(server.data.join("postgres/data/postmaster.pid")).unwrap();
    nix::unistd::Pid::from_raw(pid.lines().next().unwrap().parse().unwrap())
}

#[test]
#[ignore = "needs root and runsc"]
fn a_signal_lets_jobs_end_and_a_second_gives_them_back_to_the_queue() {
    let ground = ground();
    let options = Options::default();
    let server = Server::start(ground.path(), &options);
    let slow = program("import time\ntime.sleep(2)\nprint('done')");
    let url = server.url.clone();
    let waiting =
        std::thread::spawn(move || http::post(&format!("{url}/execute"), &slow.to_string()));
    std::thread::sleep(Duration::from_millis(700));
    kill(server.leader(), Signal::SIGTERM);
    std::thread::sleep(Duration::from_millis(300));
    let (status, refused) = server.post("/execute/async", &program("print(1)"));
    assert_eq!(status, 503, "{refused}");
    let (code, said) = server.ended();
    assert_eq!(code, Some(0), "{said}");
    let (status, ran) = waiting.join().unwrap();
    assert_eq!((status, &ran["stdout"]), (200, &json!("done\n")), "{ran}");

    // With other words: it runs for longer than anybody waits here.
    let server = Server::start(ground.path(), &options);
    let (_, sent) = server.post(
        "/execute/async",
        &program(
            "import time, os\ntime.sleep(60 if os.path.exists('/nowhere') else 3)\nprint('again')",
        ),
    );
    let id = sent["job_id"].as_str().unwrap().to_owned();
    until(&server, &id, "running");
    kill(server.leader(), Signal::SIGINT);
    std::thread::sleep(Duration::from_millis(200));
    kill(server.leader(), Signal::SIGINT);
    let begun = Instant::now();
    let (code, said) = server.ended();
    assert_eq!(code, Some(0), "{said}");
    assert!(
        begun.elapsed() < on_this_host(Duration::from_secs(10)),
        "{said}"
    );

    let server = Server::start(ground.path(), &options);
    let record = http::ended(&server.url, &id);
    assert_eq!(
        (&record["status"], &record["stdout"]),
        (&json!("succeeded"), &json!("again\n"))
    );
    server.stop();
    // Nothing but what is the server's to keep.
    let mut left: Vec<_> = fs::read_dir(ground.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["config.yaml", "data", "supervisor.sock.lock"]);
}

#[test]
#[ignore = "needs root and runsc"]
fn what_was_accepted_is_run_though_all_processes_are_killed() {
    let ground = ground();
    let options = Options {
        configuration: "{lease_seconds: 3, max_workers: 2}",
        ..Options::default()
    };
    let server = Server::start(ground.path(), &options);
    let jobs: Vec<String> = (0..6)
        .map(|number| {
            let code = format!("import time\ntime.sleep(1)\nprint({number})");
            let (status, sent) = server.post("/execute/async", &program(&code));
            assert_eq!(status, 200, "{sent}");
            sent["job_id"].as_str().unwrap().to_owned()
        })
        .collect();
    until(&server, &jobs[0], "running");
    // Two run, four wait.
    let database = database_of(&server);
    for pid in [server.worker(), server.leader(), database] {
        kill(pid, Signal::SIGKILL);
    }
    let data = server.data.clone();
    server.ended();
    assert_nothing_of(&data);

    let server = Server::start(ground.path(), &options);
    for (number, id) in jobs.iter().enumerate() {
        let record = http::ended(&server.url, id);
        assert_eq!(record["status"], "succeeded", "{record}");
        assert_eq!(record["stdout"], format!("{number}\n"));
    }
    server.stop();
}

#[test]
#[ignore = "needs root and runsc"]
fn one_process_that_dies_takes_the_others_along() {
    for (victim, code) in [("leader", None), ("worker", Some(137))] {
        let ground = ground();
        let server = Server::start(ground.path(), &Options::default());
        let (worker, leader) = (server.worker(), server.leader());
        let pid = if victim == "leader" { leader } else { worker };
        kill(pid, Signal::SIGKILL);
        let data = server.data.clone();
        let (found, said) = server.ended();
        assert_eq!(found, code, "{said}");
        // Its database is ended by the next start.
        assert_none_of(&data, |line| !line.contains("postgres -D"));
        Server::start(ground.path(), &Options::default()).stop();
    }
}

#[test]
#[ignore = "needs root and runsc"]
fn its_database_is_started_again_when_it_dies() {
    let ground = ground();
    let server = Server::start(ground.path(), &Options::default());
    let (_, before) = server.post("/execute", &program("print(1)"));
    kill(database_of(&server), Signal::SIGKILL);
    let late = Instant::now() + on_this_host(Duration::from_secs(20));
    loop {
        let (status, ready) = server.get("/ready");
        if status == 200 && database_lives(&server) {
            break;
        }
        assert!(Instant::now() < late, "{ready}");
        std::thread::sleep(Duration::from_millis(50));
    }
    let id = before["execution_id"].as_str().unwrap();
    assert_eq!(http::ended(&server.url, id)["stdout"], "1\n");
    let (status, ran) = server.post("/execute", &program("print(2)"));
    assert_eq!((status, &ran["stdout"]), (200, &json!("2\n")), "{ran}");
    server.stop();
}

/// An empty disk that cannot be written to, over a directory of a server's, as that sees it.
struct ReadOnly {
    server: nix::unistd::Pid,
    path: std::path::PathBuf,
}

impl ReadOnly {
    fn over(server: nix::unistd::Pid, path: &Path) -> Self {
        let read_only = Self {
            server,
            path: path.to_owned(),
        };
        let mut mount = read_only.inside("mount");
        mount.args(["-t", "tmpfs", "-o", "ro", "tmpfs"]).arg(path);
        tako_vm::sys::process::run(&mut mount).unwrap();
        read_only
    }

    /// A program in the server's mount namespace, with which what it mounts ends at the latest.
    fn inside(&self, program: &str) -> std::process::Command {
        let mut command = tako_vm::sys::process::program("nsenter");
        command
            .arg(format!("--mount=/proc/{}/ns/mnt", self.server))
            .arg(program);
        command
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        let mut umount = self.inside("umount");
        drop(tako_vm::sys::process::run(
            umount.arg("--lazy").arg(&self.path),
        ));
    }
}

#[test]
#[ignore = "needs root and runsc"]
fn a_server_that_can_keep_no_files_says_that_it_is_not_ready_until_it_can() {
    let ground = ground();
    let server = Server::start(ground.path(), &Options::default());
    let read_only = ReadOnly::over(server.worker(), &server.data.join("files"));
    let leaves = program("open('/output/a', 'w').write('x')");
    let (_, sent) = server.post("/execute/async", &leaves);
    let ready = |wanted: u16| {
        let late = Instant::now() + on_this_host(Duration::from_secs(20));
        loop {
            let (status, ready) = server.get("/ready");
            if status == wanted {
                return ready;
            }
            assert!(Instant::now() < late, "{ready}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let not = ready(503);
    assert!(not.to_string().contains("cannot be kept"), "{not}");
    let id = sent["job_id"].as_str().unwrap();
    let (_, standing) = server.get(&format!("/jobs/{id}"));
    assert_eq!(standing["status"], "pending", "{standing}");
    drop(read_only);
    ready(200);
    let record = http::ended(&server.url, id);
    assert_eq!(record["status"], "succeeded", "{record}");
    server.stop();
}

fn database_lives(server: &Server) -> bool {
    let file = server.data.join("postgres/data/postmaster.pid");
    file.exists() && Path::new(&format!("/proc/{}", database_of(server))).exists()
}
