//! A server in a process of its own, with all that it starts.

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

use crate::host::{on_this_host, processes_that_mention};

/// Where servers have what is theirs: their user can walk it.
pub(crate) fn ground() -> TempDir {
    let ground = tempfile::Builder::new()
        .prefix("tako-vm-server-")
        .tempdir()
        .unwrap();
    fs::set_permissions(ground.path(), fs::Permissions::from_mode(0o755)).unwrap();
    ground
}

/// What one is started with.
#[derive(Clone)]
pub(crate) struct Options<'a> {
    /// Its part of the ground: `data` and `config.yaml` are called after it.
    pub(crate) name: &'static str,
    /// Of an external one.
    pub(crate) database_url: Option<String>,
    /// More of its configuration.
    pub(crate) configuration: &'static str,
    /// 0 for any.
    pub(crate) port: &'a str,
    /// More of root's environment.
    pub(crate) environment: Vec<(&'static str, String)>,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self {
            name: "",
            database_url: None,
            configuration: "",
            port: "0",
            environment: Vec::new(),
        }
    }
}

pub(crate) struct Server {
    child: Child,
    stdout: BufReader<ChildStdout>,
    stderr: ChildStderr,
    pub(crate) data: PathBuf,
    /// `http://127.0.0.1:PORT`.
    pub(crate) url: String,
}

pub(crate) fn command(ground: &Path, options: &Options<'_>) -> Command {
    let configuration = ground.join(format!("{}config.yaml", options.name));
    fs::write(&configuration, options.configuration).unwrap();
    let mut command = tako_vm::sys::process::program(env!("CARGO_BIN_EXE_tako-vm"));
    command
        .env("TAKO_VM_STATE_DIR", crate::host::state_dir())
        .arg("--config")
        .arg(configuration)
        .args(["server", "--port", options.port, "--socket"])
        .arg(ground.join("supervisor.sock"))
        .arg("--data-dir")
        .arg(ground.join(format!("{}data", options.name)))
        .envs(options.environment.clone())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some(url) = &options.database_url {
        command.env("TAKO_VM_DATABASE_URL", url);
    }
    command
}

impl Server {
    pub(crate) fn start(ground: &Path, options: &Options<'_>) -> Self {
        let mut child = command(ground, options).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut stderr = child.stderr.take().unwrap();
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let Some(url) = line.trim().strip_prefix("tako-vm server listens on ") else {
            let mut said = String::new();
            stderr.read_to_string(&mut said).unwrap();
            panic!("{line:?} {said}");
        };
        Self {
            child,
            stdout,
            stderr,
            data: ground.join(format!("{}data", options.name)),
            url: url.to_owned(),
        }
    }

    /// Root's process.
    pub(crate) fn leader(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// The server itself, which has no privileges.
    pub(crate) fn worker(&self) -> Pid {
        let children = format!("/proc/{0}/task/{0}/children", self.child.id());
        let pids = fs::read_to_string(children).unwrap();
        let servers = pids.split_whitespace().filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains("--attended")
        });
        let pids: Vec<&str> = servers.collect();
        let [pid] = pids[..] else { panic!("{pids:?}") };
        Pid::from_raw(pid.parse().unwrap())
    }

    pub(crate) fn get(&self, path: &str) -> (u16, Value) {
        crate::http::get(&format!("{}{path}", self.url))
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        crate::http::post(&format!("{}{path}", self.url), &body.to_string())
    }

    /// Waits for the end; gives the exit status, and what it wrote on standard error.
    pub(crate) fn ended(mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        self.stderr.read_to_string(&mut said).unwrap();
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        let status = self.child.wait().unwrap();
        (status.code(), said + &rest)
    }

    /// Tells it to end, and waits until it has.
    pub(crate) fn stop(self) {
        kill(self.leader(), Signal::SIGTERM);
        let data = self.data.clone();
        let (code, said) = self.ended();
        assert_eq!(code, Some(0), "{said}");
        assert_nothing_of(&data);
    }
}

/// Sends a signal to a process that we have not waited for.
#[expect(
    clippy::disallowed_methods,
    reason = "a test's own processes, whose numbers nobody has waited for"
)]
pub(crate) fn kill(pid: Pid, signal: Signal) {
    nix::sys::signal::kill(pid, signal).unwrap();
}

/// Neither processes that serve it nor those of its database.
pub(crate) fn assert_nothing_of(data: &Path) {
    assert_none_of(data, |_| true);
}

/// Those of them that are meant, by their command lines, have ended or do so soon.
pub(crate) fn assert_none_of(data: &Path, is_meant: fn(&str) -> bool) {
    let late = Instant::now() + on_this_host(Duration::from_secs(20));
    loop {
        let mut left = processes_that_mention(data.to_str().unwrap());
        left.retain(|line| is_meant(line));
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < late, "{left:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
