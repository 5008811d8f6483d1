//! The bytes of files that jobs have left, in an object store, each once: its name is its digest.
//!
//! First the bytes are there, then the rows that name them, and rows alone are seen: a crash between the
//! two leaves bytes that nobody can see, until they are swept. The sweep takes old bytes alone, and bytes
//! that are there already are written anew before they are that old: so it never meets bytes whose rows
//! are still to come.
//!
//! A store is a directory of this host, or one that speaks [`S3`], which servers on several hosts share.

mod s3;
mod said;

pub use s3::S3;
pub use said::Said;

use super::{Store, StoreError};
use futures_util::TryStreamExt;
use object_store::buffered::BufWriter;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
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

/// Bytes that are written at once, and how many such parts of a file at the same time. A file that is longer
/// is there when all its parts are. S3 takes none below 5 MiB; each is held in memory.
const PART: usize = 8 << 20;
const PARTS: usize = 2;

/// How long a store may take to forget the parts of a file that did not become whole.
const ABORT: Duration = Duration::from_secs(5);

/// Why bytes cannot be kept or read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
pub enum FilesError {
    #[error("cannot open the store of files")]
    Open { source: Said },
    #[error("cannot read a collected file")]
    Collected { source: io::Error },
    #[error("cannot write `{name}`")]
    Write { name: ObjectPath, source: Said },
    #[error("cannot keep anything in the store of files")]
    Try { source: Said },
    #[error("cannot read `{name}`")]
    Read { name: ObjectPath, source: Said },
    #[error("cannot remove `{name}`")]
    Remove { name: ObjectPath, source: Said },
    #[error("cannot look through the store of files")]
    List { source: Said },
    #[error("cannot find out which files are in use")]
    Rows { source: StoreError },
}

impl FilesError {
    /// Whether the store has answered that it will not do it: the bucket is not there, or nothing may be
    /// written into it. Otherwise it may be away.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Write { source, .. } | Self::Try { source } => source.is_refusal(),
            _ => false,
        }
    }
}

/// Where bytes of files lie. Clones are the same.
#[derive(Clone)]
pub struct Files(Arc<dyn ObjectStore>);

impl fmt::Debug for Files {
    /// Not what it is opened with.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Files({})", self.0)
    }
}

/// `sha256/ab/abcd…`, for the digest in hexadecimal.
fn name_of(sha256: &str) -> ObjectPath {
    let first = sha256.get(..2).unwrap_or(sha256);
    ObjectPath::from_iter([PREFIX, first, sha256])
}

/// The digest of which this is the name. Whatever else lies there is not ours to remove.
fn digest_of(name: &ObjectPath) -> Option<String> {
    let digest = name.filename()?;
    let is_digest = hex::decode(digest).is_ok_and(|bytes| bytes.len() == 32);
    (is_digest && *name == name_of(digest)).then(|| digest.to_owned())
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
            .map_err(|source| FilesError::Open {
                source: source.into(),
            })
    }

    /// Keeps the bytes of a file that has this digest.
    ///
    /// # Errors
    /// [`FilesError::Collected`] or [`FilesError::Write`]: nothing is there then, or all of it.
    pub async fn keep(&self, file: &Path, sha256: &str) -> Result<(), FilesError> {
        let name = name_of(sha256);
        match self.age(&name).await {
            Ok(Some(age)) if age < RENEWED => return Ok(()),
            Ok(_) => {}
            // What is not there to be asked is not there to be written to.
            Err(error) => {
                let source = error.into();
                return Err(FilesError::Write { name, source });
            }
        }
        let from = tokio::fs::File::open(file).await;
        let from = from.map_err(|source| FilesError::Collected { source })?;
        let written = self.write(from, &name).await;
        written.map_err(|source| FilesError::Write { name, source })
    }

    /// How long ago this was written, if it is there.
    async fn age(&self, name: &ObjectPath) -> Result<Option<Duration>, object_store::Error> {
        match self.0.head(name).await {
            Ok(meta) => Ok(Some(age_of(&meta))),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn write(&self, mut from: tokio::fs::File, name: &ObjectPath) -> Result<(), Said> {
        let mut to = BufWriter::with_capacity(Arc::clone(&self.0), name.clone(), PART)
            .with_max_concurrency(PARTS);
        if let Err(error) = tokio::io::copy(&mut from, &mut to).await {
            // Parts of what never becomes whole are seen by nobody, and paid for.
            drop(timeout(ABORT, to.abort()).await);
            return Err(error.into());
        }
        to.shutdown().await.map_err(Said::from)
    }

    /// Finds out whether bytes can be kept, and removes them again.
    ///
    /// # Errors
    /// [`FilesError::Try`].
    pub async fn try_to_keep(&self, bytes: Vec<u8>) -> Result<(), FilesError> {
        let name = ObjectPath::from_iter([TRIED, &Uuid::new_v4().to_string()]);
        let tried = async {
            self.0.put(&name, bytes.into()).await?;
            self.0.delete(&name).await?;
            // Who may not list what is there is not told by S3 that something is not.
            self.age(&name).await
        };
        let tried = tried.await.map(drop);
        tried.map_err(|source| FilesError::Try {
            source: source.into(),
        })
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
            Err(error) => Err(FilesError::Read {
                name,
                source: error.into(),
            }),
        }
    }

    /// Removes bytes that no job has and that nobody is about to have; gives how many files they were.
    ///
    /// # Errors
    /// [`FilesError`]; what is left is swept the next time.
    pub async fn sweep(&self, store: &Store) -> Result<u64, FilesError> {
        let mut swept = 0;
        let digests = self.old(PREFIX).await?;
        let digests: Vec<_> = digests.iter().filter_map(digest_of).collect();
        for digests in digests.chunks(AT_ONCE) {
            let unused = store.without_rows(digests).await;
            for digest in unused.map_err(|source| FilesError::Rows { source })? {
                let name = name_of(&digest);
                // Looked at once more: it may have been written anew since.
                let age = self.age(&name).await.ok().flatten();
                if age.is_some_and(|age| age >= UNUSED) {
                    self.remove(name).await?;
                    swept += 1;
                }
            }
        }
        // Of those who never heard that it was there.
        for name in self.old(TRIED).await? {
            self.remove(name).await?;
        }
        Ok(swept)
    }

    /// The names below this one of what was written long ago.
    async fn old(&self, above: &str) -> Result<Vec<ObjectPath>, FilesError> {
        let all = self.0.list(Some(&ObjectPath::from(above)));
        let old = all
            .try_filter(|meta| std::future::ready(age_of(meta) >= UNUSED))
            .map_ok(|meta| meta.location)
            .try_collect()
            .await;
        old.map_err(|source| FilesError::List {
            source: source.into(),
        })
    }

    /// Another server may be at it too.
    async fn remove(&self, name: ObjectPath) -> Result<(), FilesError> {
        match self.0.delete(&name).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => {
                let source = error.into();
                Err(FilesError::Remove { name, source })
            }
        }
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
