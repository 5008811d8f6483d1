//! Checkpoints of ready guests, kept from one start of the supervisor to the next.
//!
//! Made of a guest that never had a job, for root alone, and never by name: the directory is called
//! after everything that a checkpoint depends on, so that one which does not fit is not found.

use super::rack::Profile;
use crate::sandbox::Sandboxes;
use crate::sys::digest::Digest;
use crate::sys::host;
use crate::sys::place::{self, PlaceError};
use std::fs::{self, File, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A file beside the checkpoints, by which supervisors know of each other.
const LOCK: &str = "lock";

/// Where checkpoints lie.
#[derive(Debug)]
pub(super) struct Checkpoints {
    directory: PathBuf,
    /// Locked, shared, by every supervisor that uses what lies there; alone by one that removes.
    lock: OnceLock<Option<File>>,
    /// What all of this host and this `tako-vm` have in common; without it none is known to fit.
    common: Option<String>,
}

impl Checkpoints {
    /// Names the place below `state_dir`. `runtime` is the digest of its files.
    pub(super) fn below(state_dir: &Path, runtime: &str) -> Self {
        // A restored guest may use what another processor does not have.
        let processor = host::cpu_features().ok().filter(|text| !text.is_empty());
        let common = processor.filter(|_| !runtime.is_empty()).map(|processor| {
            let (guest, ours) = (tako_guest::PROTOCOL, env!("CARGO_PKG_VERSION"));
            format!("{runtime}\n{processor}\n{guest}\n{ours}\n")
        });
        Self {
            directory: state_dir.join("checkpoints"),
            lock: OnceLock::new(),
            common,
        }
    }

    /// Where that of a profile lies, if it can be told.
    pub(super) fn path(&self, sandboxes: &Sandboxes, profile: &Profile) -> Option<PathBuf> {
        let shape = sandboxes.shape(&profile.path, &profile.limits).ok()?;
        // A guest is told of its memory by its cgroup, of which the shape says nothing.
        let all = format!(
            "{}{}\n{:?}\n{shape}",
            self.common.as_ref()?,
            profile.digest,
            profile.limits
        );
        Some(self.directory.join(Digest::of(all.as_bytes()).to_string()))
    }

    /// An empty directory to write one into, which vanishes unless it is published.
    pub(super) fn begin(&self) -> Result<tempfile::TempDir, PlaceError> {
        place::directory(&self.directory)?;
        place::partial_directory(&self.directory)
    }

    /// Gives one that was written to root alone.
    pub(super) fn close(directory: &Path) -> Result<(), PlaceError> {
        for path in place::entries(directory)? {
            fs::set_permissions(&path, Permissions::from_mode(0o600))
                .map_err(|source| PlaceError::Write { path, source })?;
        }
        Ok(())
    }

    /// Removes all but these, and what was never finished if `unfinished`. Where another supervisor
    /// uses the same directory, all stays: it may need what we do not know.
    pub(super) fn keep(&self, kept: &[PathBuf], unfinished: bool) -> Result<(), PlaceError> {
        let locked = || lock(&self.directory).ok();
        let Some(lock) = self.lock.get_or_init(locked) else {
            return Ok(());
        };
        let alone = lock.try_lock();
        let removed = match alone {
            Ok(()) => self.remove_all_but(kept, unfinished),
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => Ok(()),
        };
        // Trying to have it alone has given up what we had.
        drop(lock.lock_shared());
        removed
    }

    fn remove_all_but(&self, kept: &[PathBuf], unfinished: bool) -> Result<(), PlaceError> {
        let being_written = if unfinished {
            Vec::new()
        } else {
            place::unfinished(&self.directory)?
        };
        for entry in place::entries(&self.directory)? {
            let is_lock = entry.file_name().is_some_and(|name| name == LOCK);
            if !is_lock && !kept.contains(&entry) && !being_written.contains(&entry) {
                place::remove(&entry)?;
            }
        }
        Ok(())
    }
}

/// The lock, shared. Without it nothing is removed.
fn lock(directory: &Path) -> io::Result<File> {
    place::directory(directory).map_err(io::Error::other)?;
    let mut options = File::options();
    options.create(true).truncate(false).write(true).mode(0o600);
    let file = options.open(directory.join(LOCK))?;
    file.lock_shared()?;
    Ok(file)
}
