//! The bytes of files that jobs have left, in an object store, each once: its name is its digest.
//!
//! First the bytes are there, then the rows that name them, and rows alone are seen: a crash between the
//! two leaves bytes that nobody can see, until they are swept. The sweep takes old bytes alone, and bytes
//! that are there already are written anew before they are that old: so it never meets bytes whose rows
//! are still to come.

use super::{Store, StoreError};
use futures_util::TryStreamExt;
use object_store::buffered::BufWriter;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::AsyncWriteExt;
use uuid::Uuid;

/// Above all of ours.
const PREFIX: &str = "sha256";

/// Above what is kept only to find out whether it can be.
const TRIED: &str = "tried";

/// Bytes without a row that are older are swept. Longer than a server is down whose journal has results.
const UNUSED: Duration = Duration::from_hours(7 * 24);

/// Bytes that are older are written anew when they are kept once more.
const RENEWED: Duration = Duration::from_hours(1);

/// Digests that the database is asked for at once.
const AT_ONCE: usize = 1000;

/// Why bytes cannot be kept or read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
pub enum FilesError {
    #[error("cannot open the store of files")]
    Open { source: object_store::Error },
    #[error("cannot read a collected file")]
    Collected { source: io::Error },
    #[error("cannot write `{name}`")]
    Write { name: ObjectPath, source: io::Error },
    #[error("cannot keep anything in the store of files")]
    Try { source: object_store::Error },
    #[error("cannot read `{name}`")]
    Read {
        name: ObjectPath,
        source: object_store::Error,
    },
    #[error("cannot remove `{name}`")]
    Remove {
        name: ObjectPath,
        source: object_store::Error,
    },
    #[error("cannot look through the store of files")]
    List { source: object_store::Error },
    #[error("cannot find out which files are in use")]
    Rows { source: StoreError },
}

/// Where bytes of files lie. Clones are the same.
#[derive(Debug, Clone)]
pub struct Files(Arc<dyn ObjectStore>);

/// `sha256/ab/abcd…`, for the digest in hexadecimal.
fn name_of(sha256: &str) -> ObjectPath {
    let first = sha256.get(..2).unwrap_or(sha256);
    ObjectPath::from_iter([PREFIX, first, sha256])
}

/// How long ago an object was written.
fn age_of(meta: &ObjectMeta) -> Duration {
    let written = u64::try_from(meta.last_modified.timestamp()).unwrap_or_default();
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default()
        .saturating_sub(Duration::from_secs(written))
}

impl Files {
    /// Those in a directory that exists. What is kept there is on disk.
    ///
    /// # Errors
    /// [`FilesError::Open`].
    pub fn in_directory(path: &Path) -> Result<Self, FilesError> {
        LocalFileSystem::new_with_prefix(path)
            .map(|local| Self(Arc::new(local.with_fsync(true))))
            .map_err(|source| FilesError::Open { source })
    }

    /// Keeps the bytes of a file that has this digest.
    ///
    /// # Errors
    /// [`FilesError::Collected`] or [`FilesError::Write`]: nothing is there then, or all of it.
    pub async fn keep(&self, file: &Path, sha256: &str) -> Result<(), FilesError> {
        let name = name_of(sha256);
        let there = self.0.head(&name).await;
        if there.is_ok_and(|meta| age_of(&meta) < RENEWED) {
            return Ok(());
        }
        let from = tokio::fs::File::open(file).await;
        let mut from = from.map_err(|source| FilesError::Collected { source })?;
        let mut to = BufWriter::new(Arc::clone(&self.0), name.clone());
        let written = async {
            tokio::io::copy(&mut from, &mut to).await?;
            to.shutdown().await
        };
        written
            .await
            .map_err(|source| FilesError::Write { name, source })
    }

    /// Finds out whether bytes can be kept, and removes them again.
    ///
    /// # Errors
    /// [`FilesError::Try`].
    pub async fn try_to_keep(&self, bytes: Vec<u8>) -> Result<(), FilesError> {
        let name = ObjectPath::from_iter([TRIED, &Uuid::new_v4().to_string()]);
        let kept = self.0.put(&name, bytes.into()).await.map(drop);
        let removed = self.0.delete(&name).await;
        kept.and(removed)
            .map_err(|source| FilesError::Try { source })
    }

    /// All bytes of a file.
    ///
    /// # Errors
    /// [`FilesError::Read`].
    pub async fn read(&self, sha256: &str) -> Result<Vec<u8>, FilesError> {
        let name = name_of(sha256);
        let bytes = async { self.0.get(&name).await?.bytes().await };
        match bytes.await {
            Ok(bytes) => Ok(bytes.into()),
            Err(source) => Err(FilesError::Read { name, source }),
        }
    }

    /// Removes bytes that no job has and that nobody is about to have; gives how many files they were.
    ///
    /// # Errors
    /// [`FilesError`]; what is left is swept the next time.
    pub async fn sweep(&self, store: &Store) -> Result<u64, FilesError> {
        let prefix = ObjectPath::from(PREFIX);
        let old: Vec<_> = self
            .0
            .list(Some(&prefix))
            .try_filter(|meta| std::future::ready(age_of(meta) >= UNUSED))
            .map_ok(|meta| meta.location)
            .try_collect()
            .await
            .map_err(|source| FilesError::List { source })?;
        let mut swept = 0;
        for names in old.chunks(AT_ONCE) {
            let digests: Vec<_> = names
                .iter()
                .filter_map(|name| name.filename().map(str::to_owned))
                .collect();
            let unused = store.without_rows(&digests).await;
            for digest in unused.map_err(|source| FilesError::Rows { source })? {
                let name = name_of(&digest);
                // Looked at once more: it may have been written anew since.
                let meta = self.0.head(&name).await;
                if meta.is_ok_and(|meta| age_of(&meta) >= UNUSED) {
                    let deleted = self.0.delete(&name).await;
                    deleted.map_err(|source| FilesError::Remove { name, source })?;
                    swept += 1;
                }
            }
        }
        Ok(swept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn equal_bytes_lie_there_once_and_can_be_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::in_directory(directory.path()).unwrap();
        let file = directory.path().join("collected");
        // More than is written at once.
        let bytes = vec![7; 12 << 20];
        std::fs::write(&file, &bytes).unwrap();
        let digest = "ab".repeat(32);
        for _ in 0..2 {
            files.keep(&file, &digest).await.unwrap();
        }
        assert_eq!(files.read(&digest).await.unwrap(), bytes);
        let below = directory.path().join("sha256/ab");
        assert_eq!(std::fs::read_dir(below).unwrap().count(), 1);
        let other = files.read(&"cd".repeat(32)).await;
        assert!(matches!(other, Err(FilesError::Read { .. })), "{other:?}");
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_read_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::in_directory(directory.path()).unwrap();
        let digest = "ab".repeat(32);
        let missing = files.keep(&directory.path().join("missing"), &digest).await;
        assert!(
            matches!(missing, Err(FilesError::Collected { .. })),
            "{missing:?}"
        );
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
