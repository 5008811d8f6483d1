//! No space for what jobs leave.

use super::daemon::Daemon;
use super::hands;
use super::history::Watch;
use super::host::on_this_host;
use super::server::{LEASE, Server};
use super::{cluster, processes};
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tako_vm::store::queue::State;
use tako_vm::sys::process;
use tempfile::TempDir;
use tokio::time::sleep;

/// A small disk.
struct Disk(TempDir);

impl Disk {
    fn mount() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut mount = process::program("mount");
        mount
            .args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"])
            .arg(directory.path());
        process::run(&mut mount).unwrap();
        Self(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Uses it up; gives the file that does.
    fn fill(&self) -> PathBuf {
        let path = self.path().join("full");
        let mut file = File::create(&path).unwrap();
        for size in [1 << 16, 1 << 12, 1] {
            let error = loop {
                if let Err(error) = file.write_all(&vec![1; size]) {
                    break error;
                }
            };
            assert_eq!(error.kind(), ErrorKind::StorageFull);
        }
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Gone from here also when something still has it open.
        drop(process::run(
            process::program("umount").arg("--lazy").arg(self.path()),
        ));
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_full_disk_records_no_half_result_and_nothing_is_claimed_until_there_is_space() {
    let (daemon, url, disk) = (Daemon::start(), cluster::database().await, Disk::mount());
    let directory = TempDir::new_in(disk.path()).unwrap();
    let server = Server::start_in(directory, "w", &url, &daemon.socket()).await;
    let watch = Watch::begin(&url, LEASE).await;
    let full = disk.fill();
    for number in 0..6 {
        let mut job = processes::takes(&format!("job-{number}"), 0.1);
        let writes = format!("\nopen('/output/a', 'w').write('{number}' * 100_000)");
        job.request.code.push_str(&writes);
        job.max_attempts = 2;
        hands::send(&server.store, &watch.log, &job).await;
    }
    sleep(Duration::from_secs(8)).await;
    let history = watch.history().await;
    let claims: usize = (0..6)
        .map(|number| history.claims(&format!("job-{number}")).len())
        .sum();
    let depth = server.store.depth().await.unwrap();
    assert_eq!(history.ended("succeeded") + history.ended("failed"), 0);
    assert_eq!(
        (depth.queued, depth.running),
        (6, 0),
        "nothing runs in vain"
    );
    // What ran when it was found out, and no more.
    assert!((1..=4).contains(&claims), "{claims} claims");
    std::fs::remove_file(full).unwrap();
    watch
        .all_ended_within(on_this_host(Duration::from_secs(20)))
        .await;
    let history = watch.assert_holds().await;
    assert_eq!(history.ended("succeeded"), 6);
    for number in 0..6 {
        let entry = server.ended(&format!("job-{number}")).await;
        assert_eq!(entry.state, State::Ended(tako_vm::job::Status::Succeeded));
        let left = entry.left.unwrap();
        let digest = hex::encode(&left.artifacts[0].sha256);
        let bytes = server.files.read(&digest).await.unwrap();
        assert_eq!(bytes, number.to_string().repeat(100_000).as_bytes());
    }
    let tried = std::fs::read_dir(server.directory.path().join("files/tried"));
    assert_eq!(tried.map_or(0, Iterator::count), 0);
    eprintln!("{claims} attempts before it was found out");
    server.dispatcher.drain(Duration::from_secs(5)).await;
    daemon.assert_empty_within(Duration::from_secs(5));
}
