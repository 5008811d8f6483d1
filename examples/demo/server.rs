//! Jobs over HTTP: a server with a database of its own, from its start to its end.

use super::visible;
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use tako_vm::sys::process::{self, PidFd};
use ureq::Agent;

/// Longest time that anything here may take.
const PATIENCE: Duration = Duration::from_mins(1);

struct Server {
    child: Child,
    url: String,
    agent: Agent,
}

/// What is sent, how, and how it must end.
struct Sent {
    name: &'static str,
    body: Value,
    way: Way,
    status: &'static str,
}

#[derive(PartialEq, Eq)]
enum Way {
    Sync,
    Async,
    Cancelled,
}

impl Way {
    fn name(&self) -> &'static str {
        match self {
            Self::Sync => "POST /execute",
            Self::Async => "POST /execute/async",
            Self::Cancelled => "async, then cancel",
        }
    }
}

fn jobs() -> Vec<Sent> {
    let sent = |name, body, way, status| Sent {
        name,
        body,
        way,
        status,
    };
    let doubled = "import json\nnumbers = json.load(open('/input/data.json'))['numbers']\n\
                   json.dump([2 * n for n in numbers], open('/output/result.json', 'w'))\n\
                   print('doubled', len(numbers))\n";
    vec![
        sent(
            "doubled",
            json!({"code": doubled, "input_data": {"numbers": [1, 2, 3]}}),
            Way::Sync,
            "succeeded",
        ),
        sent(
            "failing",
            json!({"code": "print('so far')\nraise ValueError('not a number')"}),
            Way::Sync,
            "failed",
        ),
        sent(
            "later",
            json!({"code": "import time\ntime.sleep(0.3)\nprint('done later')"}),
            Way::Async,
            "succeeded",
        ),
        sent(
            "endless",
            json!({"code": "while True: pass", "timeout": 60}),
            Way::Cancelled,
            "cancelled",
        ),
    ]
}

/// Runs jobs over HTTP, prints the history, and ends the server; returns what went otherwise than it must.
pub(super) fn demonstrate(tako_vm: &Path, state_dir: &Path) -> Result<Vec<String>, String> {
    let ground = tempfile::tempdir().map_err(|error| format!("no place for a server: {error}"))?;
    // The server's user walks it.
    fs::set_permissions(ground.path(), fs::Permissions::from_mode(0o755))
        .map_err(|error| format!("no place for a server: {error}"))?;
    println!("\nStarting `tako-vm server`, with a supervisor and a PostgreSQL of its own:");
    let begun = Instant::now();
    let server = Server::start(tako_vm, state_dir, ground.path())?;
    println!("  {} after {:.1?}\n", server.url, begun.elapsed());
    println!("{:<10} {:<20} {:>9}  answer", "job", "way", "took ms");
    let mut problems = Vec::new();
    for job in jobs() {
        let begun = Instant::now();
        match server.run(&job) {
            Ok(answer) => println!(
                "{:<10} {:<20} {:>9}  {}",
                job.name,
                job.way.name(),
                begun.elapsed().as_millis(),
                visible(&answer)
            ),
            Err(problem) => {
                println!("{:<10} {:<20} did not do", job.name, job.way.name());
                problems.push(format!("`{}`: {problem}", job.name));
            }
        }
    }
    println!("\nThe history, `GET /executions`, the newest first:");
    problems.extend(server.show_history(&jobs()).err());
    let begun = Instant::now();
    server.stop()?;
    println!(
        "\nThe server has ended by itself after SIGINT, in {:.1?}.",
        begun.elapsed()
    );
    Ok(problems)
}

impl Server {
    fn start(tako_vm: &Path, state_dir: &Path, ground: &Path) -> Result<Self, String> {
        let mut command = process::program(tako_vm);
        command
            .arg("--state-dir")
            .arg(state_dir)
            .args(["server", "--port", "0", "--socket"])
            .arg(ground.join("supervisor.sock"))
            .arg("--data-dir")
            .arg(ground.join("data"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = process::spawn_service(&mut command)
            .map_err(|error| format!("cannot start `tako-vm server`: {error}"))?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            // An error is an empty line as well.
            drop(BufReader::new(stdout).read_line(&mut line));
        }
        let Some((_, url)) = line.trim().split_once("listens on ") else {
            let mut said = String::new();
            if let Some(mut stderr) = child.stderr.take() {
                drop(stderr.read_to_string(&mut said));
            }
            return Err(format!("`tako-vm server` does not listen:\n{said}"));
        };
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            .build();
        Ok(Self {
            child,
            url: url.to_owned(),
            agent: agent.into(),
        })
    }

    fn call(&self, path: &str, body: Option<&Value>) -> Result<Value, String> {
        let url = format!("{}{path}", self.url);
        let answer = match body {
            Some(body) => self.agent.post(&url).send(body.to_string()),
            None => self.agent.get(&url).call(),
        };
        let text = answer.and_then(|mut answer| {
            let text = answer.body_mut().read_to_string()?;
            Ok((answer.status().as_u16(), text))
        });
        let (status, text) = text.map_err(|error| format!("{path}: {error}"))?;
        match serde_json::from_str(&text) {
            Ok(value) if status == 200 => Ok(value),
            _ => Err(format!("{path}: {status} {text}")),
        }
    }

    /// Sends a job and sees it to its end; gives what was answered, in short.
    fn run(&self, job: &Sent) -> Result<String, String> {
        if job.way == Way::Sync {
            let ran = self.call("/execute", Some(&job.body))?;
            return Ok(format!(
                "exit {}, stdout {}, output {}, error {}",
                ran["exit_code"], ran["stdout"], ran["output"], ran["error"]
            ));
        }
        let sent = self.call("/execute/async", Some(&job.body))?;
        let id = sent["job_id"].as_str().ok_or("it has no id")?;
        if job.way == Way::Cancelled {
            self.until_running(id)?;
            self.call(&format!("/jobs/{id}/cancel"), Some(&json!({})))?;
        }
        let record = self.call(&format!("/jobs/{id}/result?wait=true"), None)?;
        Ok(format!("{}, stdout {}", record["status"], record["stdout"]))
    }

    fn until_running(&self, id: &str) -> Result<(), String> {
        let late = Instant::now() + PATIENCE;
        while self.call(&format!("/jobs/{id}"), None)?["status"] != "running" {
            if Instant::now() > late {
                return Err("it is never run".to_owned());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn show_history(&self, jobs: &[Sent]) -> Result<(), String> {
        let page = self.call("/executions?limit=10", None)?;
        let items = page["items"].as_array().ok_or("there is no history")?;
        for item in items {
            let text = |name: &str| visible(item[name].as_str().unwrap_or("-"));
            println!(
                "  {}  {:<10} {:>6} ms  {}",
                text("created_at"),
                text("status"),
                item["duration_ms"],
                text("execution_id"),
            );
        }
        let found: Vec<_> = items.iter().rev().map(|item| &item["status"]).collect();
        let expected: Vec<_> = jobs.iter().map(|job| job.status).collect();
        if found == expected {
            Ok(())
        } else {
            Err(format!("the history says {found:?} and not {expected:?}"))
        }
    }

    fn stop(mut self) -> Result<(), String> {
        let told = PidFd::open(self.child.id().cast_signed()).and_then(|handle| handle.interrupt());
        told.map_err(|error| format!("cannot end the server: {error}"))?;
        let status = self.child.wait();
        let status = status.map_err(|error| format!("cannot wait for the server: {error}"))?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("the server has ended with {status}"))
        }
    }
}
