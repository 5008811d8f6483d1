//! Executor images: where they are kept, and when one may be used.
//!
//! An image is one EROFS file, named after its SHA-256, and a manifest, named after the image:
//!
//! ```text
//! <state>/images/NAME.json               the manifest; replaced in one step
//! <state>/images/sha256/HEX.erofs        the root file system of the sandboxes
//! <state>/digests/HEX                    that it has been hashed, see `sys::digest`
//! <state>/trees/HEX/                     unpacked packages, from which images are made
//! ```
//!
//! [`build`] and [`archive`] add images; both may only run under the state directory's lock.

pub mod archive;
pub mod build;
pub mod download;
pub mod manifest;
pub mod recipe;

use crate::image::recipe::Recipe;
use crate::sys::digest::{self, Digest, DigestError};
use crate::sys::place::{self, PlaceError};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

pub use manifest::{ImageName, Manifest, NotAReference, Package, Reference};

/// Why an image cannot be used, listed or removed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
pub enum ImageError {
    #[error("no image can be called so")]
    Reference { source: NotAReference },
    #[error(
        "no executor image named `{name}` ({}): run `{}`",
        existing(known),
        provider(name)
    )]
    UnknownImage { name: String, known: Vec<String> },
    #[error("the executor image `{name}` is sha256:{found}, not sha256:{wanted}")]
    OtherDigest {
        name: ImageName,
        found: Digest,
        wanted: Digest,
    },
    #[error(
        "the executor image `{name}` speaks version {found} of the guest protocol, this `tako-vm` version {wanted}: run `tako-vm setup`"
    )]
    Protocol {
        name: ImageName,
        found: u16,
        wanted: u16,
    },
    #[error(
        "the executor image `{name}` is damaged, its file has the SHA-256 {found} instead of {wanted}: run `tako-vm setup`"
    )]
    Damaged {
        name: ImageName,
        found: Digest,
        wanted: Digest,
    },
    #[error("cannot trust the executor image `{name}`")]
    Untrusted { name: ImageName, source: PlaceError },
    #[error("cannot hash the executor image `{name}`")]
    Hash {
        name: ImageName,
        source: DigestError,
    },
    #[error("the manifest `{}` cannot be understood: run `tako-vm setup`", path.display())]
    Manifest {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("cannot list the executor images")]
    List { source: PlaceError },
    #[error("cannot keep the executor image `{name}`")]
    Keep { name: ImageName, source: PlaceError },
    #[error("cannot remove the executor image `{name}`")]
    Remove { name: ImageName, source: PlaceError },
}

impl ImageError {
    /// What went wrong and what mends it, for somebody who need not know the places and the other
    /// images of this host.
    pub fn for_strangers(&self) -> String {
        match self {
            Self::Reference { source } => format!("{self}: {source}"),
            Self::UnknownImage { name, .. } => {
                format!("no executor image named `{name}`: run `{}`", provider(name))
            }
            Self::OtherDigest { .. } | Self::Protocol { .. } | Self::Damaged { .. } => {
                self.to_string()
            }
            Self::Untrusted { name, .. } | Self::Hash { name, .. } => {
                format!(
                    "{self}: root has to look at it, `{}` may mend it",
                    provider(name.as_str())
                )
            }
            Self::Manifest { .. } => {
                "the manifest of the executor image cannot be understood: run `tako-vm setup`"
                    .to_owned()
            }
            Self::List { .. } | Self::Keep { .. } | Self::Remove { .. } => self.to_string(),
        }
    }
}

fn existing(known: &[String]) -> String {
    if known.is_empty() {
        "there is none yet".to_owned()
    } else {
        format!("there is: `{}`", known.join("`, `"))
    }
}

/// The command that provides the image of this name, if any does.
fn provider(name: &str) -> String {
    let optional = Recipe::optional().unwrap_or_default();
    let option = if optional.iter().any(|recipe| recipe.name.as_str() == name) {
        format!(" --image {name}")
    } else {
        String::new()
    };
    format!("tako-vm setup{option}")
}

/// An image that may be used: everything about it has been checked.
#[derive(Debug, Clone)]
pub struct Image {
    /// What is known of it.
    pub manifest: Manifest,
    /// Its EROFS file, without symbolic links in the path.
    pub path: PathBuf,
}

/// The images of a state directory.
#[derive(Debug, Clone)]
pub struct Images {
    state_dir: PathBuf,
}

impl Images {
    /// Those kept in this state directory, which need not exist yet.
    pub fn at(state_dir: &Path) -> Self {
        Self {
            state_dir: state_dir.to_owned(),
        }
    }

    /// The image that `reference` names (`NAME` or `NAME@sha256:HEX`), checked for use: root alone can
    /// change it, its protocol is ours, and its bytes have the digest that the manifest says.
    ///
    /// # Errors
    /// [`ImageError`], with the command that mends it where there is one.
    pub fn find(&self, reference: &str) -> Result<Image, ImageError> {
        let reference: Reference = reference
            .parse()
            .map_err(|source| ImageError::Reference { source })?;
        let manifest = self.manifest(&reference.name)?;
        if let Some(wanted) = reference.digest.filter(|digest| *digest != manifest.digest) {
            return Err(ImageError::OtherDigest {
                name: manifest.name,
                found: manifest.digest,
                wanted,
            });
        }
        if manifest.protocol != tako_guest::PROTOCOL {
            return Err(ImageError::Protocol {
                name: manifest.name,
                found: manifest.protocol,
                wanted: tako_guest::PROTOCOL,
            });
        }
        let path = self.checked_blob(&manifest)?;
        Ok(Image { manifest, path })
    }

    /// The path of the image's EROFS file, after hashing it unless that is known to be the same.
    fn checked_blob(&self, manifest: &Manifest) -> Result<PathBuf, ImageError> {
        let name = || manifest.name.clone();
        let blob = place::trusted(&self.blob(manifest.digest)).map_err(|source| {
            ImageError::Untrusted {
                name: name(),
                source,
            }
        })?;
        let memory = self.memory(manifest.digest);
        let digests =
            digest::remembered(std::slice::from_ref(&blob), &memory).map_err(|source| {
                ImageError::Hash {
                    name: name(),
                    source,
                }
            })?;
        match digests.as_slice() {
            [found] if *found == manifest.digest => Ok(blob),
            found => Err(ImageError::Damaged {
                name: name(),
                found: found.first().copied().unwrap_or_else(|| Digest::of(b"")),
                wanted: manifest.digest,
            }),
        }
    }

    /// The manifest of an image, whose file is not looked at.
    ///
    /// # Errors
    /// [`ImageError::UnknownImage`], [`ImageError::Untrusted`] or [`ImageError::Manifest`].
    pub fn manifest(&self, name: &ImageName) -> Result<Manifest, ImageError> {
        let bytes = self.manifest_bytes(name)?;
        let path = self.manifest_path(name);
        let manifest: Manifest = serde_json::from_slice(&bytes)
            .map_err(|source| ImageError::Manifest { path, source })?;
        if manifest.name == *name {
            Ok(manifest)
        } else {
            Err(ImageError::Manifest {
                path: self.manifest_path(name),
                source: serde::de::Error::custom(format!("it is that of `{}`", manifest.name)),
            })
        }
    }

    /// Whether there is such an image, in whatever state.
    ///
    /// # Errors
    /// [`ImageError::UnknownImage`] if not.
    pub fn manifest_exists(&self, name: &ImageName) -> Result<(), ImageError> {
        if self.manifest_path(name).exists() {
            return Ok(());
        }
        let known = self.names()?;
        Err(ImageError::UnknownImage {
            name: name.to_string(),
            known: known.iter().map(ToString::to_string).collect(),
        })
    }

    fn manifest_bytes(&self, name: &ImageName) -> Result<Vec<u8>, ImageError> {
        self.manifest_exists(name)?;
        place::trusted(&self.manifest_path(name))
            .and_then(|path| place::read(&path))
            .map_err(|source| ImageError::Untrusted {
                name: name.clone(),
                source,
            })
    }

    /// The manifests of all images, sorted by name.
    ///
    /// # Errors
    /// [`ImageError::List`], and for each of them those of [`Images::manifest`].
    pub fn list(&self) -> Result<Vec<Manifest>, ImageError> {
        self.names()?
            .iter()
            .map(|name| self.manifest(name))
            .collect()
    }

    fn names(&self) -> Result<Vec<ImageName>, ImageError> {
        let entries = place::entries(&self.state_dir.join("images"))
            .map_err(|source| ImageError::List { source })?;
        let stem = |path: &PathBuf| {
            path.file_name()?
                .to_str()?
                .strip_suffix(".json")?
                .parse()
                .ok()
        };
        Ok(entries.iter().filter_map(stem).collect())
    }

    /// Removes an image, and its file unless another image has the same. Gives what was removed.
    ///
    /// Sandboxes that run on it go on: the kernel keeps the file for as long as it is open.
    ///
    /// # Errors
    /// [`ImageError::UnknownImage`] or [`ImageError::Remove`].
    pub fn remove(&self, name: &ImageName) -> Result<Vec<PathBuf>, ImageError> {
        let path = self.manifest_path(name);
        self.manifest_exists(name)?;
        place::remove(&path).map_err(|source| ImageError::Remove {
            name: name.clone(),
            source,
        })?;
        let mut removed = vec![path];
        removed.extend(self.collect_garbage(name)?);
        Ok(removed)
    }

    /// Removes the files that no manifest refers to; `name` is on whose account.
    fn collect_garbage(&self, name: &ImageName) -> Result<Vec<PathBuf>, ImageError> {
        // A manifest that cannot be read may refer to any file: then all of them stay.
        let Ok(images) = self.list() else {
            return Ok(Vec::new());
        };
        let failed = |source| ImageError::Remove {
            name: name.clone(),
            source,
        };
        let mut removed = Vec::new();
        for path in place::entries(&self.blobs()).map_err(failed)? {
            if !images.iter().any(|image| self.blob(image.digest) == path) {
                let stem = path.file_stem().unwrap_or_default();
                place::remove(&self.state_dir.join("digests").join(stem)).map_err(failed)?;
                place::remove(&path).map_err(failed)?;
                removed.push(path);
            }
        }
        Ok(removed)
    }

    /// Makes an image of a finished file and its manifest, in place of the one of that name.
    ///
    /// The file gets its name first: there is never a manifest without it.
    fn keep(&self, manifest: &[u8], of: &Manifest, file: NamedTempFile) -> Result<(), ImageError> {
        let failed = |source| ImageError::Keep {
            name: of.name.clone(),
            source,
        };
        place::publish(file, &self.blob(of.digest), 0o444).map_err(failed)?;
        // Leaves the proof behind that it was hashed, so that the first run need not.
        self.checked_blob(of)?;
        place::write(&self.manifest_path(&of.name), manifest, 0o444).map_err(failed)?;
        self.collect_garbage(&of.name).map(|_| ())
    }

    /// The manifest's file.
    pub fn manifest_path(&self, name: &ImageName) -> PathBuf {
        self.state_dir.join("images").join(format!("{name}.json"))
    }

    /// The EROFS file with this digest.
    pub fn blob(&self, digest: Digest) -> PathBuf {
        self.blobs().join(format!("{digest}.erofs"))
    }

    fn blobs(&self) -> PathBuf {
        self.state_dir.join("images").join("sha256")
    }

    /// Where it is remembered that a file has been hashed; apart from the files, since every run may
    /// write there while no lock is held.
    fn memory(&self, digest: Digest) -> PathBuf {
        self.state_dir.join("digests").join(digest.to_string())
    }

    /// Where unpacked packages are kept.
    fn trees(&self) -> PathBuf {
        self.state_dir.join("trees")
    }

    /// The files of an image as a directory, where building it here has kept one.
    pub fn kept_tree(&self, manifest: &Manifest) -> Option<PathBuf> {
        let tree = self.trees().join(manifest.recipe_digest.to_string());
        tree.is_dir().then_some(tree)
    }

    /// Removes what killed processes left unfinished.
    ///
    /// # Errors
    /// [`ImageError::List`].
    pub fn sweep(&self) -> Result<(), ImageError> {
        self.workplaces()
            .iter()
            .try_for_each(|directory| place::sweep(directory))
            .map_err(|source| ImageError::List { source })
    }

    /// What [`Images::sweep`] would remove, and what is in the making now.
    ///
    /// # Errors
    /// [`ImageError::List`].
    pub fn unfinished(&self) -> Result<Vec<PathBuf>, ImageError> {
        let found = self
            .workplaces()
            .map(|directory| place::unfinished(&directory));
        let found: Result<Vec<_>, _> = found.into_iter().collect();
        found
            .map(|paths| paths.concat())
            .map_err(|source| ImageError::List { source })
    }

    /// Where things are made.
    fn workplaces(&self) -> [PathBuf; 3] {
        let images = self.state_dir.join("images");
        [images, self.blobs(), self.trees()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_hear_what_mends_it_and_nothing_of_the_host() {
        let unknown = ImageError::UnknownImage {
            name: "perl".to_owned(),
            known: vec!["secret".to_owned()],
        };
        assert_eq!(
            unknown.for_strangers(),
            "no executor image named `perl`: run `tako-vm setup`"
        );
        let path = PathBuf::from("/srv/secret/python.json");
        let source = serde_json::from_str::<()>("{").unwrap_err();
        let manifest = ImageError::Manifest { path, source }.for_strangers();
        assert!(!manifest.contains("secret"), "{manifest}");
        assert!(manifest.ends_with("run `tako-vm setup`"), "{manifest}");
    }

    #[test]
    fn an_image_that_is_missing_is_told_with_the_command_that_provides_it() {
        let missing = |name: &str| {
            let directory = Path::new("/nonexistent");
            Images::at(directory).find(name).unwrap_err().to_string()
        };
        for (name, command) in [
            ("python", "tako-vm setup"),
            ("data", "tako-vm setup --image data"),
            ("perl", "tako-vm setup"),
        ] {
            let end = format!("`{name}` (there is none yet): run `{command}`");
            assert!(missing(name).ends_with(&end), "{}", missing(name));
        }
    }
}
