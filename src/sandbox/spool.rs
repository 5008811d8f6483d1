//! Collected files, written as they come.
//!
//! The guest names them, we do not: on this host a file is a number in a directory of ours, and the
//! guest's name is data beside it.

use crate::job::{Artifact, Limits, Skipped};
use crate::sys::held::{Held, Registry};
use crate::sys::place::PlaceError;
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tako_guest::{MAX_FILE_NAME, SkipReason};

/// Files at most; the guest's own bound, held here too since the guest is not to be believed.
const MAX_FILES: usize = 1000;

/// Skipped names kept at most.
const MAX_SKIPPED: usize = 16;

/// The directory for the files that one job leaves, made with the first of them: most jobs leave none.
/// It vanishes when this is dropped, and with the next sweep if this process is killed before.
#[derive(Debug)]
pub struct SpoolDirectory {
    registry: Registry,
    made: OnceLock<Held>,
}

impl SpoolDirectory {
    pub(super) fn new(registry: Registry) -> Self {
        Self {
            registry,
            made: OnceLock::new(),
        }
    }

    /// Where it lies; it is there from then on.
    ///
    /// # Errors
    /// [`PlaceError`] when it cannot be made.
    pub fn path(&self) -> Result<&Path, PlaceError> {
        if self.made.get().is_none() {
            let held = self.registry.create()?;
            // Of two that are made at once, one vanishes again.
            self.made.get_or_init(|| held);
        }
        Ok(self.made.get().map_or(Path::new(""), Held::path))
    }

    /// Whether it is there.
    pub fn is_made(&self) -> bool {
        self.made.get().is_some()
    }
}

/// What has been collected.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) collected: Vec<Artifact>,
    pub(super) skipped: Vec<Skipped>,
    pub(super) truncated: bool,
}

/// Why the guest's files cannot be taken any further.
#[derive(Debug, thiserror::Error)]
pub(super) enum SpoolError {
    #[error("the guest sent a file frame out of order")]
    OutOfOrder,
    #[error("the guest exceeded its limits on collected files")]
    Limit,
    #[error("the guest named a file `{}`", name.escape_debug())]
    Name { name: String },
    #[error("cannot make the directory for collected files")]
    Directory { source: PlaceError },
    #[error("cannot write a collected file")]
    Write { source: io::Error },
}

/// Takes the frames of collected files.
pub(super) struct Spool<'a> {
    directory: &'a SpoolDirectory,
    file_bytes: u64,
    bytes_left: u64,
    begun: usize,
    current: Option<Current>,
    files: Files,
}

struct Current {
    name: String,
    path: PathBuf,
    file: File,
    hash: Sha256,
    bytes: u64,
}

impl<'a> Spool<'a> {
    pub(super) fn new(directory: &'a SpoolDirectory, limits: &Limits) -> Self {
        Self {
            directory,
            file_bytes: limits.artifact_bytes,
            bytes_left: limits.artifacts_total_bytes,
            begun: 0,
            current: None,
            files: Files::default(),
        }
    }

    pub(super) fn begin(&mut self, name: &str) -> Result<(), SpoolError> {
        if self.current.is_some() {
            return Err(SpoolError::OutOfOrder);
        }
        if self.begun >= MAX_FILES {
            return Err(SpoolError::Limit);
        }
        if !is_relative_path(name) {
            return Err(SpoolError::Name {
                name: name.chars().take(80).collect(),
            });
        }
        let directory = self.directory.path();
        let directory = directory.map_err(|source| SpoolError::Directory { source })?;
        let path = directory.join(self.begun.to_string());
        self.begun += 1;
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|source| SpoolError::Write { source })?;
        let name = name.to_owned();
        self.current = Some(Current {
            name,
            path,
            file,
            hash: Sha256::new(),
            bytes: 0,
        });
        Ok(())
    }

    pub(super) fn data(&mut self, bytes: &[u8]) -> Result<(), SpoolError> {
        let current = self.current.as_mut().ok_or(SpoolError::OutOfOrder)?;
        let count = bytes.len() as u64;
        current.bytes += count;
        self.bytes_left = self
            .bytes_left
            .checked_sub(count)
            .ok_or(SpoolError::Limit)?;
        if current.bytes > self.file_bytes {
            return Err(SpoolError::Limit);
        }
        current.hash.update(bytes);
        current
            .file
            .write_all(bytes)
            .map_err(|source| SpoolError::Write { source })
    }

    pub(super) fn end(&mut self, complete: bool) -> Result<(), SpoolError> {
        let current = self.current.take().ok_or(SpoolError::OutOfOrder)?;
        if !complete {
            self.skip(&current.name, SkipReason::Unreadable);
            return Ok(());
        }
        self.files.collected.push(Artifact {
            name: current.name,
            size_bytes: current.bytes,
            sha256: hex::encode(current.hash.finalize()),
            content_type: None,
            path: current.path,
        });
        Ok(())
    }

    pub(super) fn skip(&mut self, name: &str, reason: SkipReason) {
        self.files.truncated = true;
        if self.files.skipped.len() < MAX_SKIPPED {
            let name = name.chars().take(MAX_FILE_NAME).collect();
            self.files.skipped.push(Skipped {
                name,
                reason: describe(reason).into(),
            });
        }
    }

    /// Some file is missing, and nothing says which.
    pub(super) fn miss(&mut self) {
        self.files.truncated = true;
    }

    /// What was collected. A file that was being written is not among it.
    pub(super) fn finish(mut self) -> Files {
        self.files.truncated |= self.current.is_some();
        self.files
    }
}

/// Components of visible characters, none of them hidden, `.` or `..`, not starting at the root.
fn is_relative_path(name: &str) -> bool {
    name.len() <= MAX_FILE_NAME
        && !name.chars().any(char::is_control)
        && name
            .split('/')
            .all(|component| !component.is_empty() && !component.starts_with('.'))
}

fn describe(reason: SkipReason) -> &'static str {
    match reason {
        SkipReason::TooLarge => "larger than one file may be",
        SkipReason::LimitReached => "the limits on collected files were used up",
        SkipReason::NotRegular => "not a regular file",
        SkipReason::BadName => "its name is not UTF-8, has control characters or is too long",
        SkipReason::Unreadable => "it could not be read to its end",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn directory(outer: &Path) -> SpoolDirectory {
        SpoolDirectory::new(Registry::at(outer.to_owned(), "spool-"))
    }

    fn spool(directory: &SpoolDirectory) -> Spool<'_> {
        let limits = Limits {
            artifact_bytes: 4,
            artifacts_total_bytes: 6,
            ..Limits::default()
        };
        Spool::new(directory, &limits)
    }

    #[test]
    fn names_never_become_paths_of_the_host() {
        let outer = tempfile::tempdir().unwrap();
        let directory = directory(outer.path());
        for name in [
            "../x", "/etc/x", "a//b", "a/../b", ".", "", "a/", ".hidden", "a\nb", "a\0b",
        ] {
            let refused = spool(&directory).begin(name);
            assert!(matches!(refused, Err(SpoolError::Name { .. })), "{name:?}");
        }
        assert!(!directory.is_made());
        let mut fine = spool(&directory);
        fine.begin("plots/a b.png").unwrap();
        fine.data(b"1234").unwrap();
        fine.end(true).unwrap();
        let files = fine.finish();
        assert_eq!(files.collected[0].path, directory.path().unwrap().join("0"));
        assert_eq!(files.collected[0].size_bytes, 4);
        assert!(!files.truncated);
    }

    #[test]
    fn a_guest_that_exceeds_its_limits_is_stopped() {
        let outer = tempfile::tempdir().unwrap();
        let (first, second) = (directory(outer.path()), directory(outer.path()));
        let mut one = spool(&first);
        one.begin("a").unwrap();
        assert!(matches!(one.data(b"12345"), Err(SpoolError::Limit)));
        let mut total = spool(&second);
        total.begin("a").unwrap();
        total.data(b"1234").unwrap();
        total.end(true).unwrap();
        total.begin("b").unwrap();
        assert!(matches!(total.data(b"123"), Err(SpoolError::Limit)));
    }

    #[test]
    fn a_file_that_breaks_off_is_reported_and_not_collected() {
        let outer = tempfile::tempdir().unwrap();
        let directory = directory(outer.path());
        let mut spool = spool(&directory);
        spool.begin("a").unwrap();
        spool.end(false).unwrap();
        assert!(matches!(spool.data(b"1"), Err(SpoolError::OutOfOrder)));
        spool.begin("b").unwrap();
        spool.end(true).unwrap();
        let files = spool.finish();
        assert_eq!(files.collected.len(), 1);
        assert!(files.truncated);
    }

    /// One frame of a guest that sends what it likes.
    #[derive(Debug, Clone)]
    enum Frame {
        Begin(String),
        Data(Vec<u8>),
        End(bool),
        Skip(String),
    }

    fn frame() -> impl Strategy<Value = Frame> {
        prop_oneof![
            3 => "[a-z./]{1,5}|.{0,20}".prop_map(Frame::Begin),
            3 => prop::collection::vec(any::<u8>(), 0..4).prop_map(Frame::Data),
            3 => any::<bool>().prop_map(Frame::End),
            1 => ".*".prop_map(Frame::Skip),
        ]
    }

    proptest! {
        #[test]
        fn any_sequence_of_frames_stays_in_the_directory_and_within_the_limits(
            frames in prop::collection::vec(frame(), 0..40),
        ) {
            let outer = tempfile::tempdir().unwrap();
            let directory = directory(outer.path());
            let mut spool = spool(&directory);
            for frame in frames {
                let taken = match frame {
                    Frame::Begin(name) => spool.begin(&name),
                    Frame::Data(bytes) => spool.data(&bytes),
                    Frame::End(complete) => spool.end(complete),
                    Frame::Skip(name) => {
                        spool.skip(&name, SkipReason::BadName);
                        Ok(())
                    }
                };
                if taken.is_err() {
                    break;
                }
            }
            let files = spool.finish();
            prop_assert!(files.skipped.len() <= MAX_SKIPPED);
            let total: u64 = files.collected.iter().map(|file| file.size_bytes).sum();
            prop_assert!(total <= 6);
            for file in &files.collected {
                let bytes = std::fs::read(&file.path).unwrap();
                prop_assert!(bytes.len() <= 4 && bytes.len() as u64 == file.size_bytes);
                prop_assert_eq!(hex::encode(Sha256::digest(&bytes)), &file.sha256[..]);
                prop_assert!(is_relative_path(&file.name));
            }
            for entry in std::fs::read_dir(directory.path().unwrap()).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                prop_assert!(name.parse::<usize>().is_ok(), "{}", name);
            }
            prop_assert_eq!(std::fs::read_dir(outer.path()).unwrap().count(), 1);
        }
    }
}
