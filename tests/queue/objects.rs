//! Bytes of files in a store that speaks S3.

use super::bucket::{Bucket, PREFIX, make_old};
use super::cluster;
use super::jobs::{ended, job, outcome_with_a_file, worker};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tako_vm::job::{Termination, one_line};
use tako_vm::store::files::{Files, FilesError, S3};
use tako_vm::store::queue::tokens;
use tempfile::TempDir;

fn file(directory: &TempDir, bytes: &[u8]) -> PathBuf {
    let path = directory.path().join("collected");
    std::fs::write(&path, bytes).unwrap();
    path
}

#[tokio::test]
async fn servers_share_what_each_of_them_keeps_and_equal_bytes_lie_there_once() {
    let (bucket, directory) = (Bucket::start(), tempfile::tempdir().unwrap());
    let (first, second) = (bucket.files(), bucket.files());
    // More than is written at once, and no whole number of parts.
    let large = vec![7; (19 << 20) + 5];
    for (digest, bytes) in [("ab".repeat(32), &b"bytes"[..]), ("cd".repeat(32), &large)] {
        let collected = file(&directory, bytes);
        first.keep(&collected, &digest).await.unwrap();
        let written = std::fs::metadata(bucket.path_of(&digest)).unwrap();
        second.keep(&collected, &digest).await.unwrap();
        let again = std::fs::metadata(bucket.path_of(&digest)).unwrap();
        assert_eq!(written.modified().unwrap(), again.modified().unwrap());
        assert_eq!(second.read(&digest).await.unwrap(), bytes);
        assert_eq!(first.read(&digest).await.unwrap(), bytes);
    }
    let name = |digest: &str| format!("{PREFIX}/sha256/{}/{}", digest, digest.repeat(32));
    assert_eq!(bucket.objects(), ["ab", "cd"].map(name));
    assert_eq!(bucket.unfinished(), 0);
    let missing = first.read(&"ef".repeat(32)).await;
    assert!(
        matches!(missing, Err(FilesError::Read { .. })),
        "{missing:?}"
    );
}

#[tokio::test]
async fn what_no_job_has_is_swept_below_the_prefix_and_nothing_else() {
    let (store, _url) = cluster::store().await;
    let (bucket, directory) = (Bucket::start(), tempfile::tempdir().unwrap());
    let files = bucket.files();
    let collected = file(&directory, b"bytes");
    let (named, unnamed) = ("ab".repeat(32), "cd".repeat(32));
    for digest in [&named, &unnamed] {
        files.keep(&collected, digest).await.unwrap();
    }
    files.try_to_keep(vec![1; 100]).await.unwrap();
    // Somebody else's, of another prefix, and what is not called as ours is.
    let others = [
        format!("sha256/cd/{unnamed}"),
        format!("{PREFIX}-2/sha256/cd/{unnamed}"),
        format!("{PREFIX}/sha256/ef/{unnamed}"),
        format!("{PREFIX}/sha256/cd/notes.txt"),
    ];
    for other in &others {
        std::fs::create_dir_all(bucket.path(other).parent().unwrap()).unwrap();
        std::fs::write(bucket.path(other), "theirs").unwrap();
        make_old(&bucket.path(other));
    }
    // The bytes of both are there, and the row of one.
    store.enqueue(&job("a"), None, None).await.unwrap();
    let claim = store
        .claim(&worker("w"), &tokens(1))
        .await
        .unwrap()
        .remove(0);
    let outcome = outcome_with_a_file(Termination::Exited(0));
    store.finish(&claim.held, ended(&outcome)).await.unwrap();
    assert_eq!(files.sweep(&store).await.unwrap(), 0, "they are new");

    for digest in [&named, &unnamed] {
        make_old(&bucket.path_of(digest));
    }
    assert_eq!(files.sweep(&store).await.unwrap(), 1);
    assert_eq!(files.read(&named).await.unwrap(), b"bytes");
    assert!(files.read(&unnamed).await.is_err());
    let mut left = others.to_vec();
    left.push(format!("{PREFIX}/sha256/ab/{named}"));
    left.sort();
    assert_eq!(bucket.objects(), left);
    // What is kept once more is written anew.
    files.keep(&collected, &named).await.unwrap();
    store.forget(Duration::ZERO, 10, "w").await.unwrap();
    assert_eq!(files.sweep(&store).await.unwrap(), 0);
}

#[tokio::test]
async fn a_crash_between_bytes_and_row_leaves_nothing_that_anybody_sees() {
    let (store, _url) = cluster::store().await;
    let (bucket, directory) = (Bucket::start(), tempfile::tempdir().unwrap());
    let files = bucket.files();
    store.enqueue(&job("a"), None, None).await.unwrap();
    store.claim(&worker("w"), &tokens(1)).await.unwrap();
    let digest = "ab".repeat(32);
    let collected = file(&directory, &vec![1; 9 << 20]);
    files.keep(&collected, &digest).await.unwrap();
    // Here its server is killed: the job has left nothing, and runs once more.
    let entry = store.entry("a").await.unwrap().unwrap();
    assert!(entry.left.is_none(), "{entry:?}");
    assert_eq!(store.usage("a").await.unwrap().bytes, 0);
    assert_eq!(bucket.objects().len(), 1);
    make_old(&bucket.path_of(&digest));
    assert_eq!(files.sweep(&store).await.unwrap(), 1);
    assert!(bucket.objects().is_empty());
}

#[tokio::test]
async fn a_store_that_refuses_says_why_and_no_secret_is_told() {
    let bucket = Bucket::start();
    let right = bucket.settings();
    let wrong_key = S3 {
        secret_access_key: "a-secret-that-is-wrong".to_owned(),
        ..right.clone()
    };
    let unknown = S3 {
        access_key_id: "nobody".to_owned(),
        ..right
    };
    for (settings, code) in [
        (wrong_key, "SignatureDoesNotMatch"),
        (unknown, "NotSignedUp"),
    ] {
        let files = Files::in_s3(&settings).unwrap();
        let error = files.try_to_keep(vec![0]).await.unwrap_err();
        let line = one_line(&error);
        let expected = format!("cannot keep anything in the store of files: it answers `{code}`");
        assert!(line.starts_with(&expected), "{line}");
        assert!(error.is_refusal(), "{line}");
        let shown = format!("{line} {error:?} {files:?}");
        assert!(!shown.contains(&settings.secret_access_key), "{shown}");
    }
    assert!(bucket.objects().is_empty());
}

#[tokio::test]
async fn a_store_that_is_away_is_an_error_soon_and_no_refusal_and_leaves_nothing_half() {
    let (mut bucket, directory) = (Bucket::start(), tempfile::tempdir().unwrap());
    let files = bucket.files();
    let collected = file(&directory, &vec![1; 20 << 20]);
    let digest = "ab".repeat(32);
    files.try_to_keep(vec![0]).await.unwrap();
    bucket.go_away();
    let begun = Instant::now();
    let error = files.keep(&collected, &digest).await.unwrap_err();
    assert!(!error.is_refusal(), "{error:?}");
    assert!(one_line(&error).contains("refused"), "{}", one_line(&error));
    assert!(files.try_to_keep(vec![0]).await.is_err());
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "{:?}",
        begun.elapsed()
    );
    bucket.come_back();
    files.keep(&collected, &digest).await.unwrap();
    assert_eq!(files.read(&digest).await.unwrap().len(), 20 << 20);
    assert_eq!((bucket.objects().len(), bucket.unfinished()), (1, 0));
}
