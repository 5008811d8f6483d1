//! Copies in huge pages of what every sandbox maps: the runtime, and the images.
//!
//! A sandbox maps the same hundred megabytes as all the others, and touches some thousand pages of them.
//! In huge pages that are a few dozen faults, in each process of it. The file system is seen by the
//! supervisor and its sandboxes alone, and ends with them.

use super::journal;
use crate::image::Image;
use crate::job::one_line;
use crate::sys::digest;
use crate::sys::host;
use crate::sys::mount::{self, MountError};
use crate::sys::place::{self, PlaceError};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of all copies at most: the runtime, and two or three images.
const MAX_BYTES: u64 = 1 << 30;

/// The share of the host's memory that they may have: one of so many parts.
const MEMORY_PART: u64 = 8;

/// Where the copies lie.
#[derive(Debug)]
pub struct Staged {
    directory: PathBuf,
    /// By digest; `None` where the original has to do.
    images: Mutex<HashMap<String, Option<PathBuf>>>,
}

/// Why there are no copies.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
pub enum StageError {
    #[error(transparent)]
    Place(PlaceError),
    #[error(transparent)]
    Mount(MountError),
}

impl Staged {
    /// Makes room for copies, below the state directory. For a process of one thread, which from then
    /// on has a mount namespace of its own.
    ///
    /// # Errors
    /// [`StageError`], also where the kernel has no huge pages for files.
    pub fn mount(state_dir: &Path) -> Result<Self, StageError> {
        let directory = state_dir.join("staged");
        place::directory(state_dir).map_err(StageError::Place)?;
        place::trusted(state_dir).map_err(StageError::Place)?;
        place::directory(&directory).map_err(StageError::Place)?;
        mount::leave_namespace().map_err(StageError::Mount)?;
        let memory = host::memory_bytes().unwrap_or(0);
        let bytes = MAX_BYTES.min(memory / MEMORY_PART);
        mount::huge_pages(&directory, bytes).map_err(StageError::Mount)?;
        Ok(Self {
            directory,
            images: Mutex::default(),
        })
    }

    /// A new directory there.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub fn directory(&self, name: &str) -> Result<PathBuf, PlaceError> {
        let directory = self.directory.join(name);
        place::directory(&directory)?;
        Ok(directory)
    }

    /// Makes a copy of an image, checked against its digest, unless that was tried before. Blocks.
    pub(super) fn stage(&self, image: &Image) {
        let digest = image.manifest.digest.to_string();
        if self.images().contains_key(&digest) {
            return;
        }
        let copy = self.directory.join(format!("{digest}.erofs"));
        // Not under the lock: jobs look for copies meanwhile.
        let made = copied(image, &copy);
        if !made {
            // Half of one may be there.
            fs::remove_file(&copy).ok();
        }
        self.images().insert(digest, made.then_some(copy));
    }

    /// The copy of an image, if there is one.
    pub(super) fn copy(&self, image: &Image) -> Option<PathBuf> {
        let digest = image.manifest.digest.to_string();
        self.images().get(&digest).cloned().flatten()
    }

    /// Drops all copies but those with these digests. Sandboxes that map one keep it.
    pub(super) fn keep(&self, digests: &[String]) {
        self.images().retain(|digest, copy| {
            let kept = digests.contains(digest);
            if !kept && let Some(copy) = copy {
                fs::remove_file(copy).ok();
            }
            kept
        });
    }

    fn images(&self) -> MutexGuard<'_, HashMap<String, Option<PathBuf>>> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Copies an image; whether the copy is what it should be.
fn copied(image: &Image, to: &Path) -> bool {
    if let Err(error) = fs::copy(&image.path, to) {
        journal::info(&format!(
            "the image `{}` is not held in huge pages: {error}",
            image.manifest.name
        ));
        return false;
    }
    match digest::of_file(to) {
        Ok(found) if found == image.manifest.digest => true,
        Ok(_) => false,
        Err(error) => {
            journal::warn(&one_line(&error));
            false
        }
    }
}
