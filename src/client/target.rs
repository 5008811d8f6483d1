//! Writing collected files into a directory of the user's.

use super::Error;
use crate::job::Artifact;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// The directory, held open.
pub(crate) struct Target {
    path: PathBuf,
    directory: OwnedFd,
}

impl Target {
    /// Opens the directory, making it first where it is missing.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::MakeDirectory {
            path: path.to_owned(),
            source,
        };
        let directory = fs::create_dir_all(path)
            .and_then(|()| File::open(path))
            .map_err(failed)?;
        if !directory.metadata().map_err(failed)?.is_dir() {
            return Err(Error::NotADirectory {
                path: path.to_owned(),
            });
        }
        Ok(Self {
            path: path.to_owned(),
            directory: directory.into(),
        })
    }

    /// Copies the files into it, each under its own name; files of the same names are replaced.
    pub(super) fn take(&self, artifacts: &[Artifact]) -> Result<(), Error> {
        artifacts.iter().try_for_each(|artifact| {
            self.copy(artifact).map_err(|source| Error::Write {
                path: self.path.join(&artifact.name),
                source,
            })
        })
    }

    /// The name was checked when the file came; all the same nothing here follows a link, since we
    /// may be root and others may write into this directory.
    fn copy(&self, artifact: &Artifact) -> io::Result<()> {
        let mut components: Vec<&str> = artifact.name.split('/').collect();
        let name = components.pop().unwrap_or_default();
        let mut directory = self.directory.try_clone()?;
        for component in components {
            directory = enter(&directory, component)?;
        }
        // Whole under another name first, then in one step in the place of what is there: a link, a
        // FIFO or a hard link that somebody planted is replaced and not written through.
        let partial = format!(".{}.partial", hex::encode(rand::random::<[u8; 8]>()));
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
        let mode = Mode::from_bits_truncate(0o644);
        let mut to = File::from(openat(
            &directory,
            partial.as_str(),
            flags | OFlag::O_CLOEXEC,
            mode,
        )?);
        let placed = File::open(&artifact.path)
            .and_then(|mut from| io::copy(&mut from, &mut to))
            .and_then(|_| Ok(renameat(&directory, partial.as_str(), &directory, name)?));
        if placed.is_err() {
            // The first error is the one to tell.
            unlinkat(&directory, partial.as_str(), UnlinkatFlags::NoRemoveDir).ok();
        }
        placed
    }
}

fn enter(parent: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    match mkdirat(parent, name, Mode::from_bits_truncate(0o755)) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(parent, name, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_written_below_the_directory_and_no_link_is_followed() {
        let base = tempfile::tempdir().unwrap();
        let source = base.path().join("0");
        fs::write(&source, "new").unwrap();
        let artifact = |name: &str| Artifact {
            name: name.to_owned(),
            size_bytes: 3,
            sha256: String::new(),
            content_type: None,
            path: source.clone(),
        };
        let out = base.path().join("out");
        let target = Target::open(&out).unwrap();
        target.take(&[artifact("a/b.txt"), artifact("c")]).unwrap();
        assert_eq!(fs::read_to_string(out.join("a/b.txt")).unwrap(), "new");

        let victim = base.path().join("victim");
        fs::write(&victim, "old").unwrap();
        std::os::unix::fs::symlink(&victim, out.join("link")).unwrap();
        assert!(target.take(&[artifact("link/x")]).is_err());
        fs::hard_link(&victim, out.join("hard")).unwrap();
        target.take(&[artifact("link"), artifact("hard")]).unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "old");
        assert_eq!(fs::read_to_string(out.join("link")).unwrap(), "new");
        // A directory is in the way: an error, and nothing half-made beside it.
        assert!(target.take(&[artifact("a")]).is_err());
        assert_eq!(fs::read_dir(&out).unwrap().count(), 4);
    }
}
