//! Many jobs of all kinds.

use crate::client::Client;
use crate::daemon::{self, Daemon};
use crate::kinds::Kind;
use crate::watch::{AtRest, assert_ends_with_nothing, left_of, median};
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

const CLIENTS: usize = 4;

/// How far the supervisor's memory may have moved between the second third and the last: one part of so
/// many, and in a short run some pages beside.
const PART: u64 = 20;
const SLACK: u64 = 4 << 20;
const LONG: usize = 5000;

#[test]
#[ignore = "needs root and runsc"]
fn every_job_ends_as_it_should_and_nothing_is_left_of_any() {
    let _alone = crate::alone();
    let jobs = crate::size("TAKO_VM_SOAK_JOBS", 300);
    // As many ready before as after: what each uses is in both counts.
    // More places than clients: that of a job is free a moment after its end.
    let config = "supervisor: {max_jobs: 16}\npool: {minimum: 2, maximum: 2}\n";
    let mut daemon = Daemon::in_directory(daemon::place(config), |_| {});
    let mut watcher = daemon.connect();
    let socket = daemon.socket();
    // One of each kind before: what is made once is there then, and the profiles are known.
    for number in 0..12 {
        Kind::of(number).run(&mut watcher, &socket, number);
    }
    let before = AtRest::of(&daemon, &mut watcher);
    let (next, memory) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let ids = Mutex::new(BTreeSet::new());
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut client = Client::connect(&socket);
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= jobs {
                        return;
                    }
                    let id = Kind::of(number).run(&mut client, &socket, number);
                    if let Some(id) = id {
                        assert!(ids.lock().unwrap().insert(id), "a sandbox served twice");
                    }
                    memory.lock().unwrap().push(daemon.memory());
                }
            });
        }
    });
    let took = begun.elapsed();
    let after = AtRest::of(&daemon, &mut watcher);
    let stats = watcher.stats();
    let memory = memory.into_inner().unwrap();
    let third = memory.len() / 3;
    let (second, last) = (
        median(&memory[third..2 * third]),
        median(&memory[2 * third..]),
    );
    eprintln!("{jobs} jobs in {took:?}; memory {second} and then {last} bytes; {after:?}; {stats}");
    assert_eq!(before, after);
    let slack = second / PART + if jobs < LONG { SLACK } else { 0 };
    assert!(
        last <= second + slack,
        "the memory grew from {second} to {last} bytes"
    );
    assert_eq!(stats["ended"], jobs + 12, "{stats}");
    let ids = ids.into_inner().unwrap();
    let waiting: BTreeSet<_> = daemon.sandboxes().into_iter().collect();
    assert!(
        ids.is_disjoint(&waiting),
        "one that had a job waits for another"
    );
    assert_eq!(left_of(&ids), Vec::<&String>::new());
    assert_ends_with_nothing(&mut daemon, &(&ids | &waiting));
    let log = daemon.log();
    assert!(!log.contains("error:"), "{log}");
}
