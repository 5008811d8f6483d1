//! How the supervisor begins and ends.

use crate::client::announcement;
use crate::daemon::{self, Daemon};
use crate::host::on_this_host;
use nix::sys::signal::Signal;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tako_vm::sys::process;

const ENDLESS: &str = "import time\nprint('up', flush=True)\ntime.sleep(1000)";

/// From an order to end now until nothing is left.
const NOW: Duration = Duration::from_secs(5);

fn assert_ended(daemon: &mut Daemon) {
    let status = daemon.end();
    assert!(status.success(), "{status}: {}", daemon.log());
    assert!(!daemon.socket().exists());
    daemon.assert_empty_within(Duration::ZERO);
}

#[test]
#[ignore = "needs root and runsc"]
fn sigterm_takes_no_more_jobs_and_waits_for_those_that_run() {
    let mut daemon = Daemon::start();
    let mut running = daemon.connect();
    let mut idle = daemon.connect();
    running.begin(
        "print('up', flush=True); import time; time.sleep(2); open('/output/x', 'w').write('y')",
    );
    daemon.signal(Signal::SIGTERM);
    daemon::wait_for(
        Duration::from_secs(5),
        || idle.stats()["draining"] == true,
        String::new,
    );
    // On an old connection and on a new one.
    for client in [&mut idle, &mut daemon.connect()] {
        let refusal = client.refused(&announcement("print(1)"), b"print(1)");
        assert_eq!(refusal["code"], "draining");
    }
    let ran = running.finish();
    assert_eq!(
        (ran.how(), &ran.files["x"]),
        (&"exited".into(), &b"y".to_vec())
    );
    assert_ended(&mut daemon);
}

#[test]
#[ignore = "needs root and runsc"]
fn a_second_sigterm_and_a_sigint_cancel_the_jobs_that_run() {
    for signals in [&[Signal::SIGTERM, Signal::SIGTERM][..], &[Signal::SIGINT]] {
        let mut daemon = Daemon::start();
        let mut running = daemon.connect();
        running.begin(ENDLESS);
        let begun = Instant::now();
        for signal in signals {
            daemon.signal(*signal);
            // Two at once are one.
            std::thread::sleep(Duration::from_millis(200));
        }
        assert_eq!(running.finish().how(), "cancelled");
        assert_ended(&mut daemon);
        assert!(begun.elapsed() < on_this_host(NOW));
    }
}

#[test]
#[ignore = "needs root and runsc"]
fn root_drains_by_request_too_and_a_sigterm_after_it_is_the_first() {
    let mut daemon = Daemon::start();
    let mut running = daemon.connect();
    running.begin("print('up', flush=True); import time; time.sleep(2)");
    let mut client = daemon.connect();
    client.send('q', b"");
    client.expect('q');
    daemon.signal(Signal::SIGTERM);
    assert_eq!(running.finish().how(), "exited");
    assert_ended(&mut daemon);
}

#[test]
#[ignore = "needs root and runsc"]
fn what_a_killed_supervisor_leaves_is_cleared_away_by_the_next() {
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    client.begin(ENDLESS);
    let sandbox = daemon.sandbox();
    let directory = daemon.killed();
    let daemon = Daemon::in_directory(directory, |_| {});
    crate::host::assert_gone(&sandbox);
    daemon.assert_empty_within(Duration::ZERO);
    let mut client = daemon.connect();
    assert!(client.stats()["swept"].as_u64().unwrap() >= 1);
    daemon.assert_logs(&sandbox);
    assert_eq!(client.run("print(1)").stdout(), "1\n");
}

#[test]
#[ignore = "needs root and runsc"]
fn a_second_supervisor_at_the_same_socket_is_refused_and_the_first_goes_on() {
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    let directory = daemon.socket().parent().unwrap().to_owned();
    let second = daemon::command(&directory)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(125));
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(said.contains("a supervisor is listening at"), "{said}");
    // Before it has touched anything, also where that would be nobody's.
    let elsewhere = daemon::place("");
    let third = process::program(env!("CARGO_BIN_EXE_tako-vm"))
        .arg("supervisor")
        .arg("--socket")
        .arg(daemon.socket())
        .arg("--config")
        .arg(elsewhere.path().join("config.yaml"))
        .arg("--state-dir")
        .arg(elsewhere.path().join("state"))
        .output()
        .unwrap();
    assert_eq!(third.status.code(), Some(125));
    assert!(!elsewhere.path().join("state/sandboxes").exists());
    assert_eq!(client.run("print(1)").stdout(), "1\n");
    assert_eq!(daemon.connect().run("print(2)").stdout(), "2\n");
}

#[test]
#[ignore = "needs root and runsc"]
fn the_service_manager_hears_of_the_beginning_of_life_and_of_the_end() {
    let directory = daemon::place("");
    let path = directory.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let mut daemon = Daemon::in_directory(directory, |command| {
        command
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "1000000");
    });
    let receive = || {
        let mut bytes = [0; 1024];
        let length = manager.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    let mut heard = String::new();
    let begun = Instant::now();
    while heard.matches("WATCHDOG=1").count() < 5 {
        heard += &receive();
        assert!(
            begun.elapsed() < on_this_host(Duration::from_secs(10)),
            "{heard}"
        );
    }
    // Every half second.
    assert!(begun.elapsed() > Duration::from_millis(1500), "{heard}");
    assert!(heard.contains("READY=1"), "{heard}");
    assert!(heard.contains("STATUS=0 of "), "{heard}");
    daemon.signal(Signal::SIGTERM);
    let mut heard = String::new();
    while !heard.contains("STOPPING=1") {
        heard += &receive();
    }
    assert!(heard.contains("STATUS=draining: "), "{heard}");
    assert_ended(&mut daemon);
}
