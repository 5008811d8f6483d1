//! Images on their way from one host to another: a tar file of exactly `manifest.json` and
//! `rootfs.erofs`, the same bytes whenever the same image is exported.

use crate::image::download::{self, DownloadError};
use crate::image::manifest::Manifest;
use crate::image::{Image, ImageError, Images};
use crate::sys::digest::{self, Digest, DigestError, Digester};
use crate::sys::place::{self, PlaceError};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use tar::{Archive, EntryType, Header};

const MANIFEST: &str = "manifest.json";
const ROOTFS: &str = "rootfs.erofs";

/// Longest manifest that is read, in bytes; that of `python` has 9 kB.
const MAX_MANIFEST: u64 = 1 << 20;

/// Why an image did not leave or arrive.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
pub enum ArchiveError {
    #[error("cannot read the image to export")]
    Image { source: ImageError },
    #[error("cannot open `{}`", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot write the archive")]
    Write { source: io::Error },
    #[error("cannot place the archive")]
    Place { source: PlaceError },
    #[error("cannot download the archive")]
    Download { source: DownloadError },
    #[error("cannot copy `{}`", path.display())]
    Copy { path: PathBuf, source: io::Error },
    #[error("cannot hash the archive")]
    Hash { source: DigestError },
    #[error("the archive has the SHA-256 {found}, not {wanted}")]
    OtherDigest { found: Digest, wanted: Digest },
    #[error("cannot read the archive")]
    Read { source: io::Error },
    #[error("the archive is not one of `tako-vm image export`: {found} instead of `{wanted}`")]
    Form { found: String, wanted: &'static str },
    #[error("the manifest in the archive cannot be understood")]
    Manifest { source: serde_json::Error },
    #[error("the image in the archive has the SHA-256 {found}, its manifest says {wanted}")]
    OtherImage { found: Digest, wanted: Digest },
    #[error(
        "the image in the archive speaks version {found} of the guest protocol, this `tako-vm` version {wanted}"
    )]
    Protocol { found: u16, wanted: u16 },
    #[error("cannot keep the image")]
    Keep { source: ImageError },
}

/// Where an archive comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A file of this host.
    File(PathBuf),
    /// An address that starts with `http://` or `https://`.
    Url(String),
}

impl From<&str> for Origin {
    fn from(text: &str) -> Self {
        if text.starts_with("http://") || text.starts_with("https://") {
            Self::Url(text.to_owned())
        } else {
            Self::File(PathBuf::from(text))
        }
    }
}

/// Writes an image's archive to a file, and gives the archive's digest.
///
/// # Errors
/// [`ArchiveError`]; nothing is left at `path` then that was not there before.
pub fn export(images: &Images, image: &Image, path: &Path) -> Result<Digest, ArchiveError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // Not by `place::partial_file`: a directory that does not exist is a mistyped path here.
    let mut file = tempfile::Builder::new()
        .prefix(place::PARTIAL)
        .tempfile_in(parent)
        .map_err(|source| ArchiveError::Open {
            path: path.to_owned(),
            source,
        })?;
    let digest = write(images, image, file.as_file_mut())?;
    place::publish(file, path, 0o644).map_err(|source| ArchiveError::Place { source })?;
    Ok(digest)
}

/// The digest that the archive of an installed image has.
///
/// # Errors
/// [`ArchiveError::Image`], [`ArchiveError::Open`] or [`ArchiveError::Write`].
pub fn digest_of(images: &Images, image: &Image) -> Result<Digest, ArchiveError> {
    write(images, image, &mut io::sink())
}

fn write(images: &Images, image: &Image, to: &mut dyn Write) -> Result<Digest, ArchiveError> {
    let manifest = images
        .manifest_bytes(&image.manifest.name)
        .map_err(|source| ArchiveError::Image { source })?;
    let rootfs = File::open(&image.path).map_err(|source| ArchiveError::Open {
        path: image.path.clone(),
        source,
    })?;
    let mut tee = Tee {
        to,
        digester: Digester::default(),
    };
    append(&mut tee, &manifest, &rootfs, image.manifest.size_bytes)
        .map_err(|source| ArchiveError::Write { source })?;
    Ok(tee.digester.finish())
}

fn append(to: &mut Tee<'_>, manifest: &[u8], rootfs: &File, size: u64) -> io::Result<()> {
    let mut archive = tar::Builder::new(to);
    archive.append_data(&mut header(manifest.len() as u64), MANIFEST, manifest)?;
    archive.append_data(&mut header(size), ROOTFS, rootfs)?;
    archive.finish()
}

/// A header that says nothing of the host it is made on.
fn header(size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header
}

/// Writes on, and hashes what it writes.
struct Tee<'a> {
    to: &'a mut dyn Write,
    digester: Digester,
}

impl Write for Tee<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.to.write(bytes)?;
        self.digester.write_all(&bytes[..length])?;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Where a downloaded archive is put together.
pub fn download_path(state_dir: &Path, wanted: Digest) -> PathBuf {
    state_dir
        .join("downloads")
        .join(format!("{wanted}.partial"))
}

/// Fetches an archive, checks it, and makes its image one of ours. For the holder of the state
/// directory's lock.
///
/// The archive is copied into the state directory before it is looked at: what has been checked there
/// cannot be exchanged by anybody else before it is opened.
///
/// # Errors
/// [`ArchiveError`]. What a broken connection has brought is kept for the next attempt; an archive
/// with another digest is removed.
pub fn receive(
    images: &Images,
    origin: &Origin,
    wanted: Digest,
    progress: &mut dyn FnMut(&str),
) -> Result<Manifest, ArchiveError> {
    let partial = download_path(&images.state_dir, wanted);
    let placed = |source| ArchiveError::Place { source };
    let directory = images.state_dir.join("downloads");
    place::directory(&directory).map_err(placed)?;
    match origin {
        Origin::Url(url) => download::fetch(url, &partial, progress)
            .map_err(|source| ArchiveError::Download { source })?,
        Origin::File(path) => copy(path, &partial)?,
    }
    let received = check_digest(&partial, wanted)
        .and_then(|()| progress_then_import(images, &partial, progress));
    place::remove(&partial).map_err(placed)?;
    place::remove(&download::validator_path(&partial)).map_err(placed)?;
    received
}

fn copy(from: &Path, to: &Path) -> Result<(), ArchiveError> {
    let copied = || -> io::Result<u64> {
        let mut file = File::open(from)?;
        io::copy(&mut file, &mut File::create(to)?)
    };
    let failed = copied().map(|_| ()).map_err(|source| ArchiveError::Copy {
        path: from.to_owned(),
        source,
    });
    if failed.is_err() {
        place::remove(to).map_err(|source| ArchiveError::Place { source })?;
    }
    failed
}

fn check_digest(archive: &Path, wanted: Digest) -> Result<(), ArchiveError> {
    let found = digest::of_file(archive).map_err(|source| ArchiveError::Hash { source })?;
    if found == wanted {
        Ok(())
    } else {
        Err(ArchiveError::OtherDigest { found, wanted })
    }
}

fn progress_then_import(
    images: &Images,
    archive: &Path,
    progress: &mut dyn FnMut(&str),
) -> Result<Manifest, ArchiveError> {
    progress("the archive is what was asked for; unpacking it");
    let file = File::open(archive).map_err(|source| ArchiveError::Open {
        path: archive.to_owned(),
        source,
    })?;
    import(images, file)
}

/// Makes an image of an archive's content.
fn import(images: &Images, archive: impl Read) -> Result<Manifest, ArchiveError> {
    let failed = |source| ArchiveError::Read { source };
    let mut archive = Archive::new(archive);
    let mut entries = archive.entries().map_err(failed)?;

    let first = expect(entries.next(), MANIFEST)?;
    let mut text = Vec::new();
    first
        .take(MAX_MANIFEST)
        .read_to_end(&mut text)
        .map_err(failed)?;
    let manifest = check_manifest(&text)?;

    let mut second = expect(entries.next(), ROOTFS)?;
    let mut file =
        place::partial_file(&images.blobs()).map_err(|source| ArchiveError::Place { source })?;
    let mut tee = Tee {
        to: file.as_file_mut(),
        digester: Digester::default(),
    };
    let copied = io::copy(&mut second, &mut tee).map_err(failed)?;
    if copied != manifest.size_bytes {
        return Err(ArchiveError::Form {
            found: format!("an image of {copied} bytes"),
            wanted: "one of the size that its manifest says",
        });
    }
    let found = tee.digester.finish();
    if found != manifest.digest {
        return Err(ArchiveError::OtherImage {
            found,
            wanted: manifest.digest,
        });
    }
    if let Some(third) = entries.next() {
        return Err(ArchiveError::Form {
            found: describe(&third.map_err(failed)?),
            wanted: "the end",
        });
    }
    images
        .keep(&text, &manifest, file)
        .map_err(|source| ArchiveError::Keep { source })?;
    Ok(manifest)
}

fn check_manifest(text: &[u8]) -> Result<Manifest, ArchiveError> {
    let manifest: Manifest =
        serde_json::from_slice(text).map_err(|source| ArchiveError::Manifest { source })?;
    if manifest.protocol == tako_guest::PROTOCOL {
        Ok(manifest)
    } else {
        Err(ArchiveError::Protocol {
            found: manifest.protocol,
            wanted: tako_guest::PROTOCOL,
        })
    }
}

/// The next entry, if it is a plain file of this very name.
fn expect<'a, R: Read>(
    entry: Option<io::Result<tar::Entry<'a, R>>>,
    wanted: &'static str,
) -> Result<tar::Entry<'a, R>, ArchiveError> {
    let Some(entry) = entry else {
        return Err(ArchiveError::Form {
            found: "the end".to_owned(),
            wanted,
        });
    };
    let entry = entry.map_err(|source| ArchiveError::Read { source })?;
    if entry.header().entry_type() == EntryType::Regular
        && entry.path_bytes().as_ref() == wanted.as_bytes()
    {
        Ok(entry)
    } else {
        Err(ArchiveError::Form {
            found: describe(&entry),
            wanted,
        })
    }
}

fn describe<R: Read>(entry: &tar::Entry<'_, R>) -> String {
    let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
    format!("`{}`", name.escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::manifest::Reference;
    use proptest::prelude::*;

    fn manifest_of(rootfs: &[u8]) -> Vec<u8> {
        let digest = Digest::of(rootfs);
        let protocol = tako_guest::PROTOCOL;
        format!(
            r#"{{"name":"small","digest":"{digest}","size_bytes":{},"tree_bytes":1,"python":"3.11.2",
            "packages":[],"recipe_digest":"{digest}","init_digest":"{digest}","protocol":{protocol},
            "created_at":"2026-01-01T00:00:00Z","from_a_later_version":true}}"#,
            rootfs.len()
        )
        .into_bytes()
    }

    fn archive_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (name, bytes) in entries {
            let mut header = header(bytes.len() as u64);
            archive.append_data(&mut header, name, *bytes).unwrap();
        }
        archive.into_inner().unwrap()
    }

    fn refused(archive: &[u8]) -> ArchiveError {
        let state = tempfile::tempdir().unwrap();
        let images = Images::at(state.path());
        let error = import(&images, archive).unwrap_err();
        assert!(images.list().unwrap().is_empty());
        assert!(place::entries(&images.blobs()).unwrap().is_empty());
        error
    }

    #[test]
    fn an_archive_of_anything_else_than_the_two_files_is_refused() {
        let manifest = manifest_of(b"rootfs");
        let (first, second) = ((MANIFEST, &manifest[..]), (ROOTFS, &b"rootfs"[..]));
        for entries in [
            vec![],
            vec![first],
            vec![second, first],
            vec![first, second, ("extra", b"")],
        ] {
            let error = refused(&archive_of(&entries));
            assert!(matches!(error, ArchiveError::Form { .. }), "{error}");
        }
        refused(
            b"not a tar file, but long enough to be taken for one?"
                .repeat(20)
                .as_slice(),
        );
    }

    #[test]
    fn an_image_that_is_not_what_its_manifest_says_is_refused() {
        let manifest = manifest_of(b"rootfs");
        let error = refused(&archive_of(&[(MANIFEST, &manifest), (ROOTFS, b"rootfz")]));
        assert!(matches!(error, ArchiveError::OtherImage { .. }), "{error}");
    }

    #[test]
    fn an_image_for_another_guest_protocol_is_refused() {
        let ours = format!("\"protocol\":{}", tako_guest::PROTOCOL);
        let manifest = String::from_utf8(manifest_of(b"rootfs")).unwrap();
        let manifest = manifest.replace(&ours, "\"protocol\":65535");
        let error = refused(&archive_of(&[
            (MANIFEST, manifest.as_bytes()),
            (ROOTFS, b"rootfs"),
        ]));
        assert!(
            matches!(error, ArchiveError::Protocol { found: 65535, .. }),
            "{error}"
        );
    }

    #[test]
    #[ignore = "needs root"]
    fn an_exported_image_is_imported_and_exported_again_with_the_same_bytes() {
        let state = tempfile::tempdir().unwrap();
        let images = Images::at(state.path());
        let manifest = manifest_of(b"rootfs");
        let first = archive_of(&[(MANIFEST, &manifest), (ROOTFS, b"rootfs")]);
        import(&images, &first[..]).unwrap();
        let image = images.find("small").unwrap();
        let file = state.path().join("archive.tar");
        let digest = export(&images, &image, &file).unwrap();
        assert_eq!(digest, digest_of(&images, &image).unwrap());
        assert_eq!(digest, digest::of_file(&file).unwrap());
        assert_eq!(std::fs::read(&file).unwrap(), first);
    }

    #[test]
    #[ignore = "needs root"]
    fn an_image_is_found_by_name_and_digest_until_it_is_changed_or_removed() {
        let state = tempfile::tempdir().unwrap();
        let images = Images::at(state.path());
        let error = images.find("small").unwrap_err().to_string();
        assert_eq!(
            error,
            "no executor image named `small` (there is none yet): run `tako-vm setup`"
        );
        let manifest = manifest_of(b"rootfs");
        let archive = archive_of(&[(MANIFEST, &manifest), (ROOTFS, b"rootfs")]);
        import(&images, &archive[..]).unwrap();
        let found = images.find("small").unwrap();
        let digest = found.manifest.digest;
        images.find(&format!("small@sha256:{digest}")).unwrap();
        let other = format!("small@sha256:{}", Digest::of(b"other"));
        let error = images.find(&other).unwrap_err();
        assert!(matches!(error, ImageError::OtherDigest { .. }), "{error}");
        let error = images.find("large").unwrap_err().to_string();
        assert!(error.contains("there is: `small`"), "{error}");

        std::fs::write(&found.path, b"rootfz").unwrap();
        let error = images.find("small").unwrap_err();
        assert!(matches!(error, ImageError::Damaged { .. }), "{error}");

        let reference: Reference = "small".parse().unwrap();
        images.remove(&reference.name).unwrap();
        assert!(!found.path.exists());
        images.remove(&reference.name).unwrap_err();
    }

    proptest! {
        #[test]
        fn an_archive_with_another_byte_is_the_same_image_or_nothing(
            at in any::<prop::sample::Index>(),
            byte: u8,
        ) {
            let manifest = manifest_of(b"rootfs");
            let mut archive = archive_of(&[(MANIFEST, &manifest), (ROOTFS, b"rootfs")]);
            let at = at.index(archive.len());
            archive[at] = byte;
            let state = tempfile::tempdir().unwrap();
            let images = Images::at(state.path());
            if let Ok(kept) = import(&images, &archive[..]) {
                prop_assert_eq!(images.list().unwrap(), std::slice::from_ref(&kept));
                prop_assert_eq!(std::fs::read(images.blob(kept.digest)).unwrap(), b"rootfs");
            } else {
                prop_assert!(images.list().unwrap().is_empty());
                prop_assert!(place::entries(&images.blobs()).unwrap().is_empty());
            }
        }
    }
}
