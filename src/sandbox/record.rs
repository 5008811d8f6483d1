//! What a sandbox is on the host: a directory, which is its record, and a cgroup of the same name.
//!
//! The directory is made first and removed last, and its owner holds it ([`crate::sys::held`]). So
//! there is no moment at which a killed owner leaves a cgroup that no record names, and no record of a
//! living owner that is free to be taken.

use super::{SandboxError, TeardownError};
use crate::sys::cgroup::{Hierarchies, Leaf, LeafLimits};
use crate::sys::held::{Held, Registry};
use crate::sys::place::PlaceError;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// How long a sandbox that nobody tears down may take to die.
const BACKSTOP: Duration = Duration::from_secs(5);

/// Where the records of a state directory lie. Whatever has another name in there is not ours.
pub(super) fn records(state_dir: &Path) -> Registry {
    Registry::at(state_dir.join("sandboxes"), "tako-")
}

/// Where the directories of collected files lie.
pub(super) fn spools(state_dir: &Path) -> Registry {
    Registry::at(state_dir.join("spools"), "spool-")
}

/// The file of a record that says which directory it was made as: a copy of a state directory has the
/// names of the original's sandboxes, and their cgroups belong to whoever holds the original.
const IDENTITY: &str = "identity";

/// Device and inode of a record.
fn identity(held: &Held) -> io::Result<String> {
    let directory = held.directory().metadata()?;
    Ok(format!("{}:{}", directory.dev(), directory.ino()))
}

/// A record that is held, and its cgroup. Dropped without having been removed, everything inside is
/// killed and both are removed.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) leaf: Leaf,
    held: Held,
    finished: bool,
}

impl Record {
    /// The cgroup for a record that was just made.
    pub(super) fn with_leaf(
        mut held: Held,
        hierarchies: &Hierarchies,
        limits: LeafLimits,
    ) -> Result<Self, SandboxError> {
        // Before the cgroup: one without it in its record is nobody's to remove.
        let path = held.path().join(IDENTITY);
        identity(&held)
            .and_then(|text| fs::write(&path, text))
            .map_err(|source| SandboxError::Directory(PlaceError::Write { path, source }))?;
        match hierarchies.create(held.name(), limits) {
            Ok(leaf) => Ok(Self {
                leaf,
                held,
                finished: false,
            }),
            Err(source) => {
                // Part of the cgroup may be left, and is then found by its record.
                if hierarchies.exists(held.name()) {
                    held.abandon();
                }
                Err(SandboxError::Cgroup(source))
            }
        }
    }

    /// What an owner who is gone has left.
    pub(super) fn of_the_dead(held: Held, hierarchies: &Hierarchies) -> Self {
        let mut leaf = hierarchies.adopt(held.name());
        let made_as = fs::read_to_string(held.path().join(IDENTITY));
        let is_the_one = made_as.is_ok_and(|made_as| identity(&held).is_ok_and(|is| is == made_as));
        if !is_the_one {
            leaf.abandon();
        }
        Self {
            leaf,
            held,
            finished: false,
        }
    }

    pub(super) fn id(&self) -> &str {
        self.held.name()
    }

    pub(super) fn path(&self) -> &Path {
        self.held.path()
    }

    /// Kills whatever is inside and removes both.
    pub(super) fn clear(&mut self, patience: Duration) -> Result<(), TeardownError> {
        self.leaf
            .kill(patience, None)
            .map_err(TeardownError::Kill)?;
        self.remove_cgroup()?;
        self.remove_directory()
    }

    pub(super) fn remove_cgroup(&mut self) -> Result<(), TeardownError> {
        self.leaf.remove().map_err(TeardownError::Cgroup)
    }

    /// The end of it, once the cgroup is gone.
    pub(super) fn remove_directory(&mut self) -> Result<(), TeardownError> {
        self.held.remove().map_err(TeardownError::Directory)?;
        self.finished = true;
        Ok(())
    }

    /// Leaves what could not be removed to the next sweep, which finds it by its record.
    pub(super) fn abandon(mut self) {
        self.leave();
    }

    fn leave(&mut self) {
        self.leaf.abandon();
        self.held.abandon();
        self.finished = true;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // Nobody is left to tell; what remains is the sweep's.
        if !self.finished && self.clear(BACKSTOP).is_err() {
            self.leave();
        }
    }
}
