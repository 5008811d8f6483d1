//! The archive of an image and the manifest in it: the first byte decides whether the others are an
//! archive as they are, or the parts of one whose checksums and digests are right.

use arbitrary::{Arbitrary, Result, Unstructured};
use std::fs;
use std::path::{Path, PathBuf};
use tako_vm::image::archive::{self, Origin};
use tako_vm::image::{Images, Manifest};
use tako_vm::sys::digest::Digest;

/// An archive becomes exactly one image whose bytes have the digest of its manifest, or leaves
/// nothing; in no case is anything written outside the state directory.
pub(crate) fn check(bytes: &[u8]) {
    let archive = match bytes.split_first() {
        Some((0, raw)) => raw.to_vec(),
        Some((1, parts)) => match built(&mut Unstructured::new(parts)) {
            Ok(archive) => archive,
            // Too few bytes for an archive.
            Err(_) => return,
        },
        Some((_, text)) => return check_manifest(text),
        None => return,
    };
    let place = tempfile::tempdir().unwrap();
    let state = place.path().join("state");
    let file = place.path().join("archive.tar");
    fs::write(&file, &archive).unwrap();
    let images = Images::at(&state);
    let origin = Origin::File(file.clone());
    let received = archive::receive(&images, &origin, Digest::of(&archive), &mut |_| {});
    let mut expected = vec![file];
    if let Ok(manifest) = received {
        assert_eq!(images.list().unwrap(), std::slice::from_ref(&manifest));
        let blob = images.blob(manifest.digest);
        assert_eq!(Digest::of(&fs::read(&blob).unwrap()), manifest.digest);
        assert_eq!(manifest.protocol, tako_guest::PROTOCOL);
        expected.extend([images.manifest_path(&manifest.name), blob]);
        // That the bytes were hashed, which only root's memory keeps.
        let digest = manifest.digest.to_string();
        expected.extend(Some(state.join("digests").join(digest)).filter(|path| path.exists()));
    }
    expected.sort();
    assert_eq!(files_below(place.path()), expected);
}

/// A manifest that is understood has a name that is one plain path component, and says the same
/// when it is written and read again.
fn check_manifest(text: &[u8]) {
    let Ok(manifest) = serde_json::from_slice::<Manifest>(text) else {
        return;
    };
    let name = manifest.name.as_str();
    assert!(!name.contains('/') && !name.starts_with('.') && (1..=64).contains(&name.len()));
    let again: Manifest = serde_json::from_str(&serde_json::to_string(&manifest).unwrap()).unwrap();
    assert_eq!(again, manifest);
}

/// One entry of an archive, with whatever its header may say.
#[derive(Debug)]
struct Part {
    name: Vec<u8>,
    kind: u8,
    size: Option<u64>,
    content: Vec<u8>,
}

impl Arbitrary<'_> for Part {
    fn arbitrary(bytes: &mut Unstructured) -> Result<Self> {
        let name = match bytes.int_in_range(0..=3)? {
            0 => Vec::arbitrary(bytes)?,
            1 => b"../manifest.json".to_vec(),
            2 => b"manifest.json".to_vec(),
            _ => b"rootfs.erofs".to_vec(),
        };
        Ok(Self {
            name,
            kind: *bytes.choose(&[b'0', b'0', b'0', 0, b'1', b'2', b'5', b'L', b'x', b'S'])?,
            size: Option::arbitrary(bytes)?,
            content: Vec::arbitrary(bytes)?,
        })
    }
}

/// A tar file of such parts; where a manifest is to be, the text may ask for the digest and the size
/// of the image.
fn built(bytes: &mut Unstructured) -> Result<Vec<u8>> {
    let rootfs = Vec::<u8>::arbitrary(bytes)?;
    let manifest = if bool::arbitrary(bytes)? {
        manifest_of(&rootfs)
    } else {
        String::arbitrary(bytes)?
    };
    let mut archive = Vec::new();
    for mut part in Vec::<Part>::arbitrary(bytes)? {
        match (&part.name[..], part.content.is_empty()) {
            (b"manifest.json", true) => part.content = manifest.clone().into_bytes(),
            (b"rootfs.erofs", true) => part.content.clone_from(&rootfs),
            _ => {}
        }
        append(&part, &mut archive);
    }
    if bool::arbitrary(bytes)? {
        archive.extend([0; 1024]);
    }
    Ok(archive)
}

fn manifest_of(rootfs: &[u8]) -> String {
    let (digest, size, protocol) = (Digest::of(rootfs), rootfs.len(), tako_guest::PROTOCOL);
    format!(
        r#"{{"name":"small","digest":"{digest}","size_bytes":{size},"tree_bytes":1,"python":"3.11.2",
        "packages":[],"recipe_digest":"{digest}","init_digest":"{digest}","protocol":{protocol},
        "created_at":"2026-01-01T00:00:00Z"}}"#
    )
}

fn append(part: &Part, archive: &mut Vec<u8>) {
    let mut header = tar::Header::new_gnu();
    let field = &mut header.as_old_mut().name;
    let length = part.name.len().min(field.len());
    field[..length].copy_from_slice(&part.name[..length]);
    header.set_entry_type(tar::EntryType::new(part.kind));
    header.set_mode(0o644);
    header.set_size(part.size.unwrap_or(part.content.len() as u64));
    header.set_cksum();
    archive.extend(header.as_bytes());
    archive.extend(&part.content);
    archive.resize(archive.len().next_multiple_of(512), 0);
}

/// Everything but directories, sorted.
fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            files.extend(files_below(&entry.path()));
        } else {
            files.push(entry.path());
        }
    }
    files.sort();
    files
}
