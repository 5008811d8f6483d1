//! No space for what jobs leave, or no leave to write there.

use super::daemon::Daemon;
use super::hands;
use super::history::Watch;
use super::host::on_this_host;
use super::postgres::{Postgres, Stop};
use super::server::{LEASE, Server};
use super::{cluster, processes};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tako_vm::store::queue::State;
use tako_vm::sys::process;
use tempfile::TempDir;
use tokio::time::sleep;

/// A small disk.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path, options: &str) -> Self {
        let mut mount = process::program("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at);
        process::run(&mut mount).unwrap();
        Self(at.to_owned())
    }

    /// Uses up its space; gives the file that does.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("full");
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

    /// Uses up its inodes; gives the directory of the files that do.
    fn fill_with_files(&self) -> PathBuf {
        let path = self.0.join("full");
        fs::create_dir(&path).unwrap();
        let error =
            (0..10_000).find_map(|number| File::create(path.join(format!("{number}"))).err());
        assert_eq!(error.unwrap().kind(), ErrorKind::StorageFull);
        path
    }

    /// As the kernel does it when a disk fails.
    fn remount(&self, how: &str) {
        let mut mount = process::program("mount");
        mount.args(["-o", &format!("remount,{how}")]).arg(&self.0);
        process::run(&mut mount).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Gone from here also when something still has it open.
        drop(process::run(
            process::program("umount").arg("--lazy").arg(&self.0),
        ));
    }
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(
            begun.elapsed() < on_this_host(Duration::from_secs(20)),
            "{what}"
        );
        sleep(Duration::from_millis(20)).await;
    }
}

/// A server, which can keep nothing between two calls: none of its jobs fails for that, nothing more is
/// claimed meanwhile, and afterwards all of them end as they should.
async fn nothing_fails<T>(directory: TempDir, take: impl FnOnce() -> T, give: impl FnOnce(T)) {
    let (daemon, url) = (Daemon::start(), cluster::database().await);
    let server = Server::start_in(directory, "w", &url, &daemon.socket()).await;
    let watch = Watch::begin(&url, LEASE).await;
    let taken = take();
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
    let ended = history.ended("succeeded") + history.ended("failed");
    assert_eq!(ended, 0, "jobs end whose files cannot be kept");
    assert_eq!(
        (depth.queued, depth.running),
        (6, 0),
        "nothing runs in vain"
    );
    // What ran when it was found out, and no more.
    assert!((1..=4).contains(&claims), "{claims} claims");
    assert!(server.dispatcher.is_full());
    give(taken);
    watch
        .all_ended_within(on_this_host(Duration::from_secs(20)))
        .await;
    assert!(!server.dispatcher.is_full());
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
    let tried = fs::read_dir(server.directory.path().join("files/tried"));
    assert_eq!(tried.map_or(0, Iterator::count), 0);
    eprintln!("{claims} attempts before it was found out");
    server.dispatcher.drain(Duration::from_secs(5)).await;
    daemon.assert_empty_within(Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_full_disk_records_no_half_result_and_nothing_is_claimed_until_there_is_space() {
    let place = TempDir::new().unwrap();
    let disk = Disk::mount(place.path(), "size=8m");
    let directory = TempDir::new_in(place.path()).unwrap();
    let give = |full| fs::remove_file(full).unwrap();
    nothing_fails(directory, || disk.fill(), give).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_disk_without_inodes_is_as_good_as_full() {
    let place = TempDir::new().unwrap();
    let disk = Disk::mount(place.path(), "size=64m,nr_inodes=200");
    let directory = TempDir::new_in(place.path()).unwrap();
    let give = |full| fs::remove_dir_all(full).unwrap();
    nothing_fails(directory, || disk.fill_with_files(), give).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_store_of_files_that_is_read_only_is_as_good_as_full() {
    let place = TempDir::new().unwrap();
    let directory = TempDir::new_in(place.path()).unwrap();
    let files = directory.path().join("files");
    fs::create_dir(&files).unwrap();
    let disk = Disk::mount(&files, "size=8m");
    nothing_fails(directory, || disk.remount("ro"), |()| disk.remount("rw")).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_journal_that_is_read_only_loses_no_result_and_nothing_is_claimed_until_it_is_not() {
    let (daemon, mut postgres) = (Daemon::start(), Postgres::start());
    let place = TempDir::new().unwrap();
    let directory = TempDir::new_in(place.path()).unwrap();
    let journal = directory.path().join("journal");
    fs::create_dir(&journal).unwrap();
    let disk = Disk::mount(&journal, "size=8m");
    let server = Server::start_in(directory, "w", &postgres.url(), &daemon.socket()).await;
    let watch = Watch::begin(&postgres.url(), LEASE).await;
    hands::send(&server.store, &watch.log, &processes::takes("a", 2.0)).await;
    server.until("a", State::Running).await;
    disk.remount("ro");
    postgres.stop(Stop::Fast);
    until("it does not notice", || server.dispatcher.is_full()).await;
    postgres.again();
    // It was here all the time.
    watch
        .all_ended_within(on_this_host(Duration::from_secs(20)))
        .await;
    hands::send(&server.store, &watch.log, &processes::takes("b", 0.0)).await;
    sleep(Duration::from_secs(3)).await;
    let standing = server.store.standing("b").await.unwrap().unwrap();
    assert_eq!(standing.state, State::Queued, "it is claimed");
    assert!(server.dispatcher.is_full());
    disk.remount("rw");
    watch
        .all_ended_within(on_this_host(Duration::from_secs(20)))
        .await;
    let history = watch.assert_holds().await;
    assert_eq!(history.ended("succeeded"), 2);
    for id in ["a", "b"] {
        assert_eq!(history.claims(id).len(), 1, "{id}");
    }
    server.dispatcher.drain(Duration::from_secs(5)).await;
    daemon.assert_empty_within(Duration::from_secs(5));
}
