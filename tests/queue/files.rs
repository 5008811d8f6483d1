//! Bytes of files, and the rows that name them.

use super::cluster;
use super::jobs::{ended, job, outcome_with_a_file, worker};
use std::time::Duration;
use tako_vm::job::Termination;
use tako_vm::store::files::Files;
use tako_vm::store::queue::tokens;

#[tokio::test]
async fn bytes_that_no_job_has_are_swept_and_no_others() {
    let (store, _url) = cluster::store().await;
    let directory = tempfile::tempdir().unwrap();
    let files = Files::in_directory(directory.path()).unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "bytes").unwrap();
    let (named, unnamed) = ("ab".repeat(32), "cd".repeat(32));
    for digest in [&named, &unnamed] {
        files.keep(&file, digest).await.unwrap();
    }
    store.enqueue(&job("a"), None, None).await.unwrap();
    let claim = store
        .claim(&worker("w"), &tokens(1))
        .await
        .unwrap()
        .remove(0);
    let outcome = outcome_with_a_file(Termination::Exited(0));
    store.finish(&claim.held, ended(&outcome)).await.unwrap();

    assert_eq!(files.sweep(&store).await.unwrap(), 0, "they are new");
    let long = Duration::from_hours(8 * 24);
    let old = std::time::SystemTime::now() - long;
    for digest in [&named, &unnamed] {
        let path = directory
            .path()
            .join("sha256")
            .join(&digest[..2])
            .join(digest);
        let opened = std::fs::File::options().write(true).open(path).unwrap();
        opened.set_modified(old).unwrap();
    }
    assert_eq!(files.sweep(&store).await.unwrap(), 1);
    assert_eq!(files.read(&named).await.unwrap(), b"bytes");
    assert!(files.read(&unnamed).await.is_err());
    // The job goes, and its file with it; what is kept once more before that is not taken away.
    store.forget(Duration::ZERO, 10, "w").await.unwrap();
    files.keep(&file, &named).await.unwrap();
    assert_eq!(files.sweep(&store).await.unwrap(), 0, "it was written anew");
}
