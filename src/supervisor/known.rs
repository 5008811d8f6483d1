//! Images that have been checked, for as long as nothing about their files changes.

use crate::image::{Image, ImageError, Images, Reference};
use crate::sys::digest::Stamp;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a check counts: directories above the files are not looked at meanwhile.
const LASTS: Duration = Duration::from_mins(1);

/// The images, and what is known of them.
#[derive(Debug)]
pub(super) struct Known {
    images: Images,
    checked: Mutex<HashMap<String, Checked>>,
}

#[derive(Debug)]
struct Checked {
    image: Image,
    /// Manifest and file.
    files: [(PathBuf, Stamp); 2],
    at: Instant,
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    fs::symlink_metadata(path).map(|metadata| Stamp::of(&metadata))
}

impl Known {
    pub(super) fn new(images: Images) -> Self {
        Self {
            images,
            checked: Mutex::default(),
        }
    }

    /// The image of this name or digest, checked now or a short time ago. Blocks: it may hash the image.
    pub(super) fn find(&self, reference: &str) -> Result<Image, ImageError> {
        if let Some(image) = self.unchanged(reference) {
            return Ok(image);
        }
        // Before the check: a change meanwhile makes the stamps differ.
        let manifest = manifest_path(&self.images, reference);
        let before = manifest.map(|path| (stamp(&path), path));
        let image = self.images.find(reference)?;
        if let Some((Ok(manifest), path)) = before
            && let Ok(file) = stamp(&image.path)
        {
            let checked = Checked {
                files: [(path, manifest), (image.path.clone(), file)],
                image: image.clone(),
                at: Instant::now(),
            };
            self.lock().insert(reference.to_owned(), checked);
        }
        Ok(image)
    }

    /// The image if it was checked a short time ago and its files are as they were: two system calls.
    pub(super) fn unchanged(&self, reference: &str) -> Option<Image> {
        let mut all = self.lock();
        let checked = all.get(reference)?;
        let same = |(path, before): &(PathBuf, Stamp)| stamp(path).is_ok_and(|now| now == *before);
        if checked.at.elapsed() < LASTS && checked.files.iter().all(same) {
            return Some(checked.image.clone());
        }
        all.remove(reference);
        None
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Checked>> {
        self.checked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn manifest_path(images: &Images, reference: &str) -> Option<PathBuf> {
    let reference: Reference = reference.parse().ok()?;
    Some(images.manifest_path(&reference.name))
}
