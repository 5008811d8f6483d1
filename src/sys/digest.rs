//! A file's SHA-256, remembered until the file changes.
//!
//! An executor image is hashed before it is used, and hashing 68 MB takes longer than the run it is
//! for. So what has been hashed once is remembered together with what the kernel says of the file:
//! device, inode, size, modification time, and the time of the last change of the inode (`ctime`).
//!
//! The last one makes that safe. Every write, truncation, change of owner or mode, and even a
//! modification time set back with utimensat(2) sets `ctime` to the present, and no system call sets
//! it to anything else (inode(7)). What remains is to set the clock back, to write to the block device
//! underneath, or to hold a writable mapping: each takes root, who could replace us as well.
//!
//! The kernel stamps with a coarse clock, so a write in the same tick as the one before it leaves no
//! trace. A file is therefore hashed only after it has been left alone for [`SETTLED`].

use crate::sys::place::{self, PlaceError};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, SystemTime};

/// How long a file must not have changed before its digest can be remembered.
///
/// Twice the longest tick that Linux can be built with (`CONFIG_HZ_100`: 10 ms).
const SETTLED: Duration = Duration::from_millis(20);

/// Why there is no digest.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
pub enum DigestError {
    #[error("cannot open `{}`", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("`{}` is not a regular file", path.display())]
    NotAFile { path: PathBuf },
    #[error("cannot read `{}`", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("`{}` changed while it was read", path.display())]
    Changing { path: PathBuf },
    #[error("cannot remember the digests in `{}`", path.display())]
    Remember { path: PathBuf, source: PlaceError },
}

/// A SHA-256, written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// The text is not a SHA-256.
#[derive(Debug, thiserror::Error)]
#[error("`{text}` is not a SHA-256 (64 lower-case hexadecimal digits)")]
pub struct NotADigest {
    text: String,
}

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 32];
        let lower = !text.bytes().any(|byte| byte.is_ascii_uppercase());
        match hex::decode_to_slice(text, &mut bytes) {
            Ok(()) if lower => Ok(Self(bytes)),
            _ => Err(NotADigest {
                text: text.to_owned(),
            }),
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = NotADigest;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// Collects bytes into a [`Digest`], as a sink to write to.
#[derive(Debug, Default, Clone)]
pub struct Digester(Sha256);

impl Digester {
    /// The digest of everything written.
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

impl io::Write for Digester {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the kernel says of a file, and what changes with it, whoever changes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// That of the file that the metadata are of.
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// How long ago the inode changed; nothing if that lies in the future (the clock was set back).
    fn age(&self) -> Option<Duration> {
        let seconds = u64::try_from(self.changed.0).ok()?;
        let nanoseconds = u32::try_from(self.changed.1).ok()?;
        let changed = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds);
        changed.elapsed().ok()
    }
}

/// A digest, and the state of the file that it is the digest of.
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    stamp: Stamp,
    sha256: Digest,
}

/// The digest of a file, read from the first byte to the last.
///
/// # Errors
/// [`DigestError::Changing`] if somebody writes to it meanwhile.
pub fn of_file(path: &Path) -> Result<Digest, DigestError> {
    let file = open(path)?;
    hash(&file, path).map(|hashed| hashed.sha256)
}

/// The digests of files, in their order; those that have not changed since the last time are taken
/// from `memory`, a file that root alone may be able to write to.
///
/// A `memory` that is missing, damaged or open to others is the same as none.
///
/// # Errors
/// Those of [`of_file`], and [`DigestError::Remember`].
pub fn remembered(paths: &[PathBuf], memory: &Path) -> Result<Vec<Digest>, DigestError> {
    let known = recall(memory);
    let mut hashed_any = known.len() != paths.len();
    let mut all = Vec::with_capacity(paths.len());
    for (index, path) in paths.iter().enumerate() {
        let file = open(path)?;
        let stamp = stamp(&file, path)?;
        match known.get(index) {
            Some(entry) if entry.stamp == stamp && stamp.age().is_some() => all.push(Remembered {
                stamp,
                sha256: entry.sha256,
            }),
            _ => {
                hashed_any = true;
                all.push(hash(&file, path)?);
            }
        }
    }
    if hashed_any {
        remember(memory, &all)?;
    }
    Ok(all.into_iter().map(|entry| entry.sha256).collect())
}

fn recall(memory: &Path) -> Vec<Remembered> {
    let bytes = place::trusted(memory).and_then(|path| place::read(&path));
    match bytes.map(|bytes| serde_json::from_slice(&bytes)) {
        Ok(Ok(entries)) => entries,
        // Whatever is wrong with it: hashing again is always right.
        Ok(Err(_)) | Err(_) => Vec::new(),
    }
}

fn remember(memory: &Path, entries: &[Remembered]) -> Result<(), DigestError> {
    let text = serde_json::to_vec(entries).map_err(|source| DigestError::Remember {
        path: memory.to_owned(),
        source: PlaceError::Write {
            path: memory.to_owned(),
            source: source.into(),
        },
    })?;
    place::write(memory, &text, 0o600).map_err(|source| DigestError::Remember {
        path: memory.to_owned(),
        source,
    })
}

fn open(path: &Path) -> Result<File, DigestError> {
    File::options()
        .read(true)
        // A FIFO in its place must not make us wait, nor a link lead us elsewhere.
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .map_err(|source| DigestError::Open {
            path: path.to_owned(),
            source,
        })
}

fn stamp(file: &File, path: &Path) -> Result<Stamp, DigestError> {
    let metadata = file.metadata().map_err(|source| DigestError::Read {
        path: path.to_owned(),
        source,
    })?;
    if !metadata.is_file() {
        return Err(DigestError::NotAFile {
            path: path.to_owned(),
        });
    }
    Ok(Stamp::of(&metadata))
}

fn hash(file: &File, path: &Path) -> Result<Remembered, DigestError> {
    let before = stamp(file, path)?;
    if let Some(rest) = before.age().and_then(|age| SETTLED.checked_sub(age)) {
        std::thread::sleep(rest);
    }
    let sha256 = hash_bytes(file).map_err(|source| DigestError::Read {
        path: path.to_owned(),
        source,
    })?;
    if stamp(file, path)? != before {
        return Err(DigestError::Changing {
            path: path.to_owned(),
        });
    }
    Ok(Remembered {
        stamp: before,
        sha256,
    })
}

fn hash_bytes(mut file: &File) -> io::Result<Digest> {
    let mut digester = Sha256::new();
    let mut buffer = vec![0; 1 << 17];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Digest(digester.finalize().into())),
            length => digester.update(&buffer[..length]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::FileExt;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_digest_is_read_back_from_its_digits_and_from_nothing_else() {
        let digest = Digest::of(b"abc");
        assert_eq!(digest.to_string(), ABC);
        assert_eq!(ABC.parse::<Digest>().unwrap(), digest);
        let upper = ABC.to_uppercase();
        for wrong in ["", "abc", &ABC[1..], &format!("{ABC}0"), &upper] {
            wrong.parse::<Digest>().unwrap_err();
        }
    }

    #[test]
    fn a_file_has_the_digest_of_its_bytes_and_a_link_or_fifo_has_none() {
        let base = tempfile::tempdir().unwrap();
        let file = base.path().join("file");
        fs::write(&file, "abc").unwrap();
        assert_eq!(of_file(&file).unwrap().to_string(), ABC);
        let link = base.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(matches!(of_file(&link), Err(DigestError::Open { .. })));
        let fifo = base.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(of_file(&fifo), Err(DigestError::NotAFile { .. })));
    }

    #[test]
    #[ignore = "needs root"]
    fn a_changed_byte_is_found_even_with_the_modification_time_set_back() {
        let base = tempfile::tempdir().unwrap();
        let (file, memory) = (base.path().join("file"), base.path().join("memory"));
        fs::write(&file, "abc").unwrap();
        let paths = [file.clone()];
        assert_eq!(remembered(&paths, &memory).unwrap()[0].to_string(), ABC);

        let opened = File::options().write(true).open(&file).unwrap();
        let modified = opened.metadata().unwrap().modified().unwrap();
        opened.write_at(b"x", 1).unwrap();
        opened.set_modified(modified).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().modified().unwrap(), modified);
        assert_eq!(
            remembered(&paths, &memory).unwrap(),
            [Digest::of(b"axc")],
            "the remembered digest was used"
        );
    }

    #[test]
    #[ignore = "needs root"]
    fn an_unchanged_file_is_not_hashed_again_unless_others_can_write_the_memory() {
        let base = tempfile::tempdir().unwrap();
        let (file, memory) = (base.path().join("file"), base.path().join("memory"));
        fs::write(&file, "abc").unwrap();
        let paths = [file];
        remembered(&paths, &memory).unwrap();
        // A digest that no hashing gives shows where the answer comes from.
        let planted = fs::read_to_string(&memory)
            .unwrap()
            .replace(ABC, &Digest::of(b"planted").to_string());
        place::write(&memory, planted.as_bytes(), 0o600).unwrap();
        assert_eq!(
            remembered(&paths, &memory).unwrap(),
            [Digest::of(b"planted")]
        );
        place::write(&memory, planted.as_bytes(), 0o666).unwrap();
        assert_eq!(remembered(&paths, &memory).unwrap()[0].to_string(), ABC);
    }
}
