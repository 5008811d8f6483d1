//! The supervisor killed under load, again and again.

use crate::client::{Client, announcement, frame, hello};
use crate::daemon::{self, Daemon};
use crate::host::{assert_gone, on_this_host};
use crate::watch::assert_ends_with_nothing;
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const CLIENTS: usize = 4;

/// From the start of the next supervisor to the end of its first job.
const READY: Duration = Duration::from_secs(2);

/// What a short run may take beside: others use the host as well.
const SLACK: Duration = Duration::from_secs(2);
const MANY: usize = 50;

#[test]
#[ignore = "needs root and runsc"]
fn a_supervisor_that_is_killed_leaves_nothing_to_the_next_which_is_ready_at_once() {
    let _alone = crate::alone();
    let kills = crate::size("TAKO_VM_SOAK_KILLS", 10);
    let limit = READY + if kills < MANY { SLACK } else { Duration::ZERO };
    let (stop, mut seen, mut times) = (AtomicBool::new(false), BTreeSet::new(), Vec::new());
    let config = "supervisor: {max_jobs: 16}\npool: {minimum: 3}\n";
    let daemon = Daemon::in_directory(daemon::place(config), |_| {});
    let socket = daemon.socket();
    let mut daemon = std::thread::scope(|scope| {
        let mut daemon = daemon;
        for number in 0..CLIENTS {
            let (socket, stop) = (&socket, &stop);
            scope.spawn(move || load(socket, stop, number));
        }
        // The clients end with us, whatever happens.
        let _stop = Stop(&stop);
        for round in 0..kills {
            // At other moments of the jobs and of the pool each time.
            let wait = 300 + (round as u64 * 137) % 900;
            std::thread::sleep(Duration::from_millis(wait));
            let old = daemon.sandboxes();
            let directory = daemon.killed();
            let begun = Instant::now();
            daemon = Daemon::in_directory(directory, |_| {});
            for id in &old {
                assert_gone(id);
            }
            first_job(&daemon.socket(), begun + on_this_host(limit));
            times.push(begun.elapsed());
            assert!(
                begun.elapsed() <= on_this_host(limit),
                "round {round}: ready after {:?}: {}",
                begun.elapsed(),
                daemon.log()
            );
            let alive: BTreeSet<_> = daemon.sandboxes().into_iter().collect();
            assert!(!old.iter().any(|id| alive.contains(id)), "round {round}");
            seen.extend(old);
        }
        daemon
    });
    times.sort_unstable();
    eprintln!(
        "{kills} kills, {} sandboxes; ready after {:?} in the median, {:?} at most",
        seen.len(),
        times[times.len() / 2],
        times[times.len() - 1]
    );
    seen.extend(daemon.sandboxes());
    assert_ends_with_nothing(&mut daemon, &seen);
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A job of the first client that is not turned away.
fn first_job(socket: &Path, until: Instant) {
    let mut client = Client::connect(socket);
    let code = "print(1 + 1)";
    loop {
        client.submit(&announcement(code), code.as_bytes());
        match client.receive().expect("the connection is open") {
            taken if taken.kind == 'a' => {
                assert_eq!(client.finish().stdout(), "2\n");
                return;
            }
            refused => assert_eq!(refused.refusal()["code"], "busy"),
        }
        assert!(Instant::now() < until, "there is no room for a job");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Jobs one after the other, whoever serves them, without an interest in what becomes of them.
fn load(socket: &Path, stop: &AtomicBool, number: usize) {
    let codes = [
        "print(1)".to_owned(),
        "import time; time.sleep(0.3)".to_owned(),
        "import time; time.sleep(1000)".to_owned(),
        "import os; [os.fork() for _ in range(3)]; os.wait()".to_owned(),
    ];
    let code = &codes[number % codes.len()];
    while !stop.load(Ordering::Relaxed) {
        if let Ok(mut stream) = UnixStream::connect(socket) {
            let job = announcement(code).to_string();
            let bytes = [
                hello(),
                frame('r', job.as_bytes()),
                frame('d', code.as_bytes()),
            ]
            .concat();
            drop(stream.set_read_timeout(Some(Duration::from_millis(800))));
            // It may be killed at any moment, and what comes does not matter.
            if stream.write_all(&bytes).is_ok() {
                let mut answer = [0; 4096];
                let begun = Instant::now();
                while begun.elapsed() < Duration::from_secs(2)
                    && matches!(stream.read(&mut answer), Ok(1..))
                    && !answer.contains(&b'z')
                {}
            }
        }
        std::thread::sleep(Duration::from_millis(30));
    }
}
