//! Results that the database cannot take yet, each a file. One that is there is whole, and on disk.

use super::heart;
use crate::job::{Outcome, RESULT_FILE, check_result};
use crate::store::queue::Held;
use crate::supervisor::wire::{End, Ended};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// What the files of the journal are called.
const EXTENSION: &str = "json";

/// What the directories begin with that the files of a job are collected in.
pub(super) const COLLECTED: &str = "job-";

/// What those are called that nobody can record.
const BROKEN: &str = "broken";

/// What they are called until they are whole.
const UNFINISHED: &str = "unfinished";

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
pub enum JournalError {
    #[error("cannot make the directory `{}`", path.display())]
    Make { path: PathBuf, source: io::Error },
    #[error("cannot write `{}`", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot read `{}`", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("another process has `{}`: end it, or name another directory", path.display())]
    Taken { path: PathBuf },
    #[error("`{}` is no result", path.display())]
    Decode {
        path: PathBuf,
        source: serde_json::Error,
    },
}

/// A result, with all that is recorded of it. The bytes of its files lie elsewhere.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Entry {
    job: String,
    token: Uuid,
    end: End,
    #[serde(with = "hex")]
    stdout: Vec<u8>,
    #[serde(with = "hex")]
    stderr: Vec<u8>,
    result: Option<Result<String, String>>,
}

impl Entry {
    /// Reads the result that the program has written, if it has.
    pub(super) fn new(held: Held, end: End, outcome: &Outcome) -> io::Result<Self> {
        let file = outcome
            .artifacts
            .iter()
            .find(|file| file.name == RESULT_FILE);
        let bytes = file.map(|file| fs::read(&file.path)).transpose()?;
        Ok(Self {
            job: held.id,
            token: held.token,
            stdout: outcome.stdout.bytes.clone(),
            stderr: outcome.stderr.bytes.clone(),
            result: bytes.map(|bytes| check_result(&bytes).map(str::to_owned)),
            end,
        })
    }

    pub(super) fn held(&self) -> Held {
        Held {
            id: self.job.clone(),
            token: self.token,
        }
    }

    pub(super) fn image(&self) -> &str {
        &self.end.image
    }

    pub(super) fn result(&self) -> Option<Result<&str, &str>> {
        let result = self.result.as_ref()?;
        Some(result.as_deref().map_err(String::as_str))
    }

    /// The outcome without the places of its files.
    pub(super) fn outcome(&self) -> Outcome {
        let nowhere = vec![PathBuf::new(); self.end.artifacts.len()];
        let end = self.end.clone();
        end.into_outcome(self.stdout.clone(), self.stderr.clone(), nowhere)
    }

    pub(super) fn was_cancelled(&self) -> bool {
        self.end.termination == Ended::Cancelled
    }

    /// Why the sandbox was lost, if that is how it ended.
    pub(super) fn lost(&self) -> Option<&str> {
        match &self.end.termination {
            Ended::SandboxLost { reason } => Some(reason),
            _ => None,
        }
    }
}

#[derive(Debug)]
pub(super) struct Journal(PathBuf);

impl Journal {
    /// The journal of a directory, which is for one process at a time, and the lock that says so. What a
    /// process that was killed has left unfinished there is removed.
    pub(super) fn open(directory: &Path) -> Result<(Self, File), JournalError> {
        let path = directory.join("journal");
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path);
        made.map_err(|source| JournalError::Make {
            path: path.clone(),
            source,
        })?;
        let lock = lock(&directory.join("lock"))?;
        let journal = Self(path);
        let unfinished = |path: &Path| path.extension() == Some(OsStr::new(UNFINISHED));
        for path in journal.paths()?.into_iter().filter(|path| unfinished(path)) {
            drop(fs::remove_file(path));
        }
        for path in paths(directory)? {
            let name = path.file_name().unwrap_or_default();
            if name.as_encoded_bytes().starts_with(COLLECTED.as_bytes()) {
                drop(fs::remove_dir_all(path));
            }
        }
        Ok((journal, lock))
    }

    fn paths(&self) -> Result<Vec<PathBuf>, JournalError> {
        paths(&self.0)
    }

    pub(super) fn directory(&self) -> &PathBuf {
        &self.0
    }

    fn path(&self, entry: &Entry) -> PathBuf {
        // The token alone: a job's name may be as long as a file's.
        self.0
            .join(entry.token.to_string())
            .with_extension(EXTENSION)
    }

    /// On disk when this returns, under its name or not at all.
    pub(super) fn keep(&self, entry: &Entry) -> Result<(), JournalError> {
        let path = self.path(entry);
        let failed = |source| JournalError::Write {
            path: path.clone(),
            source,
        };
        let mut file = tempfile::Builder::new()
            .suffix(&format!(".{UNFINISHED}"))
            .tempfile_in(&self.0)
            .map_err(failed)?;
        let bytes = serde_json::to_vec(entry).map_err(|error| failed(error.into()))?;
        file.write_all(&bytes).map_err(failed)?;
        file.as_file().sync_all().map_err(failed)?;
        file.persist(&path).map_err(|error| failed(error.error))?;
        File::open(&self.0)
            .and_then(|directory| directory.sync_all())
            .map_err(failed)
    }

    /// It has been recorded. Were it not forgotten, it would be found stale the next time.
    pub(super) fn forget(&self, entry: &Entry) {
        drop(fs::remove_file(self.path(entry)));
    }

    /// It cannot be recorded, and is kept for somebody to look at.
    pub(super) fn put_aside(&self, entry: &Entry) {
        let path = self.path(entry);
        drop(fs::rename(&path, path.with_extension(BROKEN)));
    }

    /// All that waits. What cannot be read as a result is put aside, and told.
    pub(super) fn read(&self) -> Result<Vec<Entry>, JournalError> {
        let mut entries = Vec::new();
        for path in self.paths()? {
            if path.extension() != Some(OsStr::new(EXTENSION)) {
                continue;
            }
            match decode(&path) {
                Ok(entry) => entries.extend(entry),
                Err(error @ JournalError::Decode { .. }) => {
                    heart::warn("a result is put aside", &error);
                    drop(fs::rename(&path, path.with_extension(BROKEN)));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(entries)
    }
}

/// `None` if it was forgotten in this very moment.
fn decode(path: &Path) -> Result<Option<Entry>, JournalError> {
    let path = path.to_owned();
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| JournalError::Decode { path, source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(JournalError::Read { path, source }),
    }
}

fn paths(directory: &Path) -> Result<Vec<PathBuf>, JournalError> {
    let failed = |source| JournalError::Read {
        path: directory.to_owned(),
        source,
    };
    let entries = fs::read_dir(directory).map_err(failed)?;
    entries
        .map(|entry| entry.map(|entry| entry.path()).map_err(failed))
        .collect()
}

fn lock(path: &Path) -> Result<File, JournalError> {
    let failed = |source| JournalError::Write {
        path: path.to_owned(),
        source,
    };
    let file = File::options()
        .create(true)
        .append(true)
        .open(path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(JournalError::Taken {
            path: path.to_owned(),
        }),
        Err(fs::TryLockError::Error(source)) => Err(failed(source)),
    }
}
