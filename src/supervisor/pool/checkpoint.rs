//! Checkpoints of ready guests, kept from one start of the supervisor to the next.
//!
//! Made of a guest that never had a job, for root alone, and never by name: the directory is called
//! after everything that a checkpoint depends on, so that one which does not fit is not found.

use super::rack::Profile;
use crate::sandbox::Sandboxes;
use crate::sys::digest::Digest;
use crate::sys::host;
use crate::sys::place::{self, PlaceError};
use std::path::{Path, PathBuf};

/// Where checkpoints lie.
#[derive(Debug)]
pub(super) struct Checkpoints {
    directory: PathBuf,
    /// What all of this host and this `tako-vm` have in common.
    common: String,
}

impl Checkpoints {
    /// Names the place below `state_dir`. `runtime` is the digest of its files.
    pub(super) fn below(state_dir: &Path, runtime: &str) -> Self {
        // Without the features of the processor none fits: a restored guest may use what is not there.
        let processor = host::cpu_features().unwrap_or_default();
        Self {
            directory: state_dir.join("checkpoints"),
            common: format!(
                "{runtime}\n{processor}\n{}\n{}\n",
                tako_guest::PROTOCOL,
                env!("CARGO_PKG_VERSION")
            ),
        }
    }

    /// Where that of a profile lies, if it can be told.
    pub(super) fn path(&self, sandboxes: &Sandboxes, profile: &Profile) -> Option<PathBuf> {
        let shape = sandboxes.shape(&profile.path, &profile.limits).ok()?;
        let all = format!("{}{}\n{shape}", self.common, profile.digest);
        Some(self.directory.join(Digest::of(all.as_bytes()).to_string()))
    }

    /// An empty directory to write one into, which vanishes unless it is published.
    pub(super) fn begin(&self) -> Result<tempfile::TempDir, PlaceError> {
        place::directory(&self.directory)?;
        place::partial_directory(&self.directory)
    }

    /// Removes all but these, and what was never finished.
    pub(super) fn keep(&self, kept: &[PathBuf]) -> Result<(), PlaceError> {
        if !self.directory.exists() {
            return Ok(());
        }
        for entry in place::entries(&self.directory)? {
            if !kept.contains(&entry) {
                place::remove(&entry)?;
            }
        }
        Ok(())
    }
}
