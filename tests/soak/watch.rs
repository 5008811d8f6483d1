//! What a supervisor uses and what its jobs leave, seen from outside.

use crate::client::Client;
use crate::daemon::Daemon;
use crate::host::{cgroups_of, names_in, on_this_host, processes_that_mention};
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Until all that runs has ended and the pool is as it should be.
const PATIENCE: Duration = Duration::from_mins(2);

/// What should be the same whenever a supervisor has nothing to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct AtRest {
    pub(crate) descriptors: usize,
    pub(crate) mounts: usize,
    pub(crate) sandboxes: usize,
    pub(crate) spools: usize,
    pub(crate) children: usize,
}

impl AtRest {
    /// Waits until it has nothing to do, and looks. The connection of this client is open.
    pub(crate) fn of(daemon: &Daemon, client: &mut Client) -> Self {
        let begun = Instant::now();
        loop {
            let stats = client.stats();
            let pools = stats["pools"].as_array().unwrap();
            let settled = stats["running"] == 0
                && stats["connections"] == 1
                && (pools.iter())
                    .all(|pool| pool["ready"] == pool["target"] && pool["starting"] == 0);
            let ready: u64 = pools
                .iter()
                .map(|pool| pool["ready"].as_u64().unwrap())
                .sum();
            // Those of the last jobs are being cleared away.
            if settled && daemon.sandboxes().len() as u64 == ready {
                return Self::now(daemon);
            }
            assert!(begun.elapsed() < on_this_host(PATIENCE), "{stats}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn now(daemon: &Daemon) -> Self {
        let process = Path::new("/proc").join(daemon.pid().to_string());
        let mounts = fs::read_to_string(process.join("mountinfo")).unwrap();
        let spools = daemon.state().join("spools");
        Self {
            descriptors: names_in(&process.join("fd")).len(),
            mounts: mounts.lines().count(),
            sandboxes: daemon.sandboxes().len(),
            spools: if spools.exists() {
                names_in(&spools).len()
            } else {
                0
            },
            children: children(&process),
        }
    }
}

fn children(process: &Path) -> usize {
    let threads = process.join("task");
    let of = |thread: &String| fs::read_to_string(threads.join(thread).join("children"));
    let lists = names_in(&threads);
    let lists = lists.iter().filter_map(|thread| of(thread).ok());
    lists.map(|list| list.split_whitespace().count()).sum()
}

/// Those of these sandboxes that have left a cgroup.
pub(crate) fn left_of(ids: &BTreeSet<String>) -> Vec<&String> {
    ids.iter().filter(|id| !cgroups_of(id).is_empty()).collect()
}

/// The one in the middle.
pub(crate) fn median(numbers: &[u64]) -> u64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}

/// Ends a supervisor, after which nothing is left of it and of these sandboxes.
pub(crate) fn assert_ends_with_nothing(daemon: &mut Daemon, ids: &BTreeSet<String>) {
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.end().success(), "{}", daemon.log());
    daemon.assert_empty_within(Duration::ZERO);
    assert_eq!(left_of(ids), Vec::<&String>::new());
    let directory = daemon.state().display().to_string();
    assert_eq!(processes_that_mention(&directory), Vec::<String>::new());
}
