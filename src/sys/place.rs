//! Files and directories that are there whole or not at all, and that root alone can change.
//!
//! Everything unfinished carries the name [`PARTIAL`]`XXXXXX` beside the place it is meant for. What
//! a killed process leaves under such a name is rubbish, and [`sweep`] takes it away.

use std::fs::{self, File, Metadata, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use tempfile::{NamedTempFile, TempDir};

/// How the names of unfinished files and directories begin.
pub const PARTIAL: &str = ".partial-";

/// Write permission for group and others.
const FOREIGN_WRITE: u32 = 0o022;

/// `S_ISVTX`: only its owner can rename or remove an entry of such a directory.
const STICKY: u32 = 0o1000;

/// Why a place cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
pub enum PlaceError {
    #[error("cannot look at `{}`", path.display())]
    Look { path: PathBuf, source: io::Error },
    #[error("`{}` belongs to the user {owner}, not to root", path.display())]
    Owner { path: PathBuf, owner: u32 },
    #[error("`{}` (mode {mode:04o}) can be changed by others than root", path.display())]
    Writable { path: PathBuf, mode: u32 },
    #[error("cannot create `{}`", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("cannot write `{}`", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot read `{}`", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot remove `{}`", path.display())]
    Remove { path: PathBuf, source: io::Error },
    #[error("`{}` is no directory of the user {uid}: `chown` it, or name another", path.display())]
    Others { path: PathBuf, uid: u32 },
    #[error("cannot lock `{}`", path.display())]
    Lock { path: PathBuf, source: io::Error },
}

/// The path without symbolic links, after checking that root alone decides what lies there.
///
/// The file and every directory above it must belong to root and be writable by nobody else. A
/// directory above it may be writable for all if it is sticky, as `/tmp` is: what root owns in there
/// cannot be replaced by others.
///
/// # Errors
/// [`PlaceError::Owner`] or [`PlaceError::Writable`] names the first part that breaks the rule.
pub fn trusted(path: &Path) -> Result<PathBuf, PlaceError> {
    let resolved = fs::canonicalize(path).map_err(|source| PlaceError::Look {
        path: path.to_owned(),
        source,
    })?;
    for part in resolved.ancestors() {
        check_part(part, part == resolved)?;
    }
    Ok(resolved)
}

/// The path without symbolic links, after checking that root may make something there that others
/// cannot replace: as [`trusted`], but the directory itself may be a sticky one, as `/tmp` is.
///
/// # Errors
/// [`PlaceError::Owner`] or [`PlaceError::Writable`] names the first part that breaks the rule.
pub fn trusted_to_hold(directory: &Path) -> Result<PathBuf, PlaceError> {
    let resolved = fs::canonicalize(directory).map_err(|source| PlaceError::Look {
        path: directory.to_owned(),
        source,
    })?;
    for part in resolved.ancestors() {
        check_part(part, false)?;
    }
    Ok(resolved)
}

fn check_part(part: &Path, last: bool) -> Result<(), PlaceError> {
    let metadata = fs::symlink_metadata(part).map_err(|source| PlaceError::Look {
        path: part.to_owned(),
        source,
    })?;
    check_metadata(part, &metadata, last)
}

/// Checks that root alone can change what is there; for a directory on the way to something, that root
/// alone can replace what root has in it.
///
/// # Errors
/// [`PlaceError::Owner`] or [`PlaceError::Writable`].
pub(super) fn check_metadata(
    part: &Path,
    metadata: &Metadata,
    last: bool,
) -> Result<(), PlaceError> {
    if metadata.uid() != 0 {
        return Err(PlaceError::Owner {
            path: part.to_owned(),
            owner: metadata.uid(),
        });
    }
    let mode = metadata.mode() & 0o7777;
    let sticky_directory = !last && metadata.is_dir() && mode & STICKY != 0;
    if mode & FOREIGN_WRITE != 0 && !sticky_directory {
        return Err(PlaceError::Writable {
            path: part.to_owned(),
            mode,
        });
    }
    Ok(())
}

/// Makes a directory, and those above it, for root alone (0700). One that exists is left as it is.
///
/// # Errors
/// [`PlaceError::Create`].
pub fn directory(path: &Path) -> Result<(), PlaceError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| PlaceError::Create {
            path: path.to_owned(),
            source,
        })
}

/// Makes a directory for a user alone (0700), where root alone decides what lies beside it. One that
/// exists must be the user's.
///
/// # Errors
/// [`PlaceError`]; nothing was changed then that was there before.
pub fn directory_of(path: &Path, uid: u32, gid: u32) -> Result<(), PlaceError> {
    let path = trusted_to_hold(parent(path))?.join(path.file_name().unwrap_or_default());
    let failed = |source| PlaceError::Create {
        path: path.clone(),
        source,
    };
    match fs::DirBuilder::new().mode(0o700).create(&path) {
        Ok(()) => return lchown(&path, Some(uid), Some(gid)).map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    let found = fs::symlink_metadata(&path).map_err(|source| PlaceError::Look {
        path: path.clone(),
        source,
    })?;
    if found.is_dir() && found.uid() == uid {
        return Ok(());
    }
    Err(PlaceError::Others { path, uid })
}

/// A directory to work in, below `parent`; it vanishes with the value, whatever is in it.
///
/// # Errors
/// [`PlaceError::Create`].
pub fn partial_directory(parent: &Path) -> Result<TempDir, PlaceError> {
    directory(parent)?;
    tempfile::Builder::new()
        .prefix(PARTIAL)
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(parent)
        .map_err(|source| PlaceError::Create {
            path: parent.join(PARTIAL),
            source,
        })
}

/// A file to fill, beside those of `parent`; it vanishes with the value unless [`publish`]ed.
///
/// # Errors
/// [`PlaceError::Create`].
pub fn partial_file(parent: &Path) -> Result<NamedTempFile, PlaceError> {
    directory(parent)?;
    tempfile::Builder::new()
        .prefix(PARTIAL)
        .tempfile_in(parent)
        .map_err(|source| PlaceError::Create {
            path: parent.join(PARTIAL),
            source,
        })
}

/// Gives a finished file its name, replacing what had it; its bytes are on disk before the name is.
///
/// # Errors
/// [`PlaceError::Write`]; the unfinished file is gone then, and the old one untouched.
pub fn publish(file: NamedTempFile, path: &Path, mode: u32) -> Result<(), PlaceError> {
    let failed = |source| PlaceError::Write {
        path: path.to_owned(),
        source,
    };
    file.as_file()
        .set_permissions(Permissions::from_mode(mode))
        .map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    sync_parent(path).map_err(failed)
}

/// Writes a whole file, or nothing.
///
/// # Errors
/// [`PlaceError::Create`] or [`PlaceError::Write`].
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), PlaceError> {
    let mut file = partial_file(parent(path))?;
    file.write_all(bytes).map_err(|source| PlaceError::Write {
        path: path.to_owned(),
        source,
    })?;
    publish(file, path, mode)
}

/// Gives a finished directory its name, replacing what had it; all of its files are on disk before.
///
/// # Errors
/// [`PlaceError::Remove`] or [`PlaceError::Write`].
pub fn publish_directory(from: &Path, path: &Path) -> Result<(), PlaceError> {
    let failed = |source| PlaceError::Write {
        path: path.to_owned(),
        source,
    };
    // A tree of thousands of files: one syncfs(2) instead of an fsync(2) for each of them.
    let opened = File::open(from).map_err(failed)?;
    nix::unistd::syncfs(&opened).map_err(|errno| failed(errno.into()))?;
    remove(path)?;
    fs::rename(from, path).map_err(failed)?;
    sync_parent(path).map_err(failed)
}

/// Reads a whole file.
///
/// # Errors
/// [`PlaceError::Read`].
pub fn read(path: &Path) -> Result<Vec<u8>, PlaceError> {
    fs::read(path).map_err(|source| PlaceError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Removes a file, or a directory with all that is in it; what is not there is no error.
///
/// # Errors
/// [`PlaceError::Remove`].
pub fn remove(path: &Path) -> Result<(), PlaceError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(PlaceError::Remove {
            path: path.to_owned(),
            source: error,
        }),
        _ => Ok(()),
    }
}

/// The entries of a directory, sorted by name; none where there is no such directory.
///
/// # Errors
/// [`PlaceError::Read`].
pub fn entries(directory: &Path) -> Result<Vec<PathBuf>, PlaceError> {
    let failed = |source| PlaceError::Read {
        path: directory.to_owned(),
        source,
    };
    let listing = match fs::read_dir(directory) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut paths = listing
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<_>>>()
        .map_err(failed)?;
    paths.sort();
    Ok(paths)
}

/// Removes from a directory what processes that were killed left unfinished.
///
/// Only for one who holds the [`lock`] under which such files are made.
///
/// # Errors
/// [`PlaceError::Read`] or [`PlaceError::Remove`].
pub fn sweep(directory: &Path) -> Result<(), PlaceError> {
    unfinished(directory)?
        .iter()
        .try_for_each(|path| remove(path))
}

/// What in a directory is unfinished: in the making, or left by processes that were killed.
///
/// # Errors
/// [`PlaceError::Read`].
pub fn unfinished(directory: &Path) -> Result<Vec<PathBuf>, PlaceError> {
    let mut paths = entries(directory)?;
    paths.retain(|path| {
        let name = path.file_name().unwrap_or_default();
        name.as_encoded_bytes().starts_with(PARTIAL.as_bytes())
    });
    Ok(paths)
}

/// Takes the lock that the file at `path` stands for, until the value is dropped.
///
/// `wait` is called once if somebody else holds it, before waiting for them.
///
/// # Errors
/// [`PlaceError::Create`] or [`PlaceError::Lock`].
pub fn lock(path: &Path, wait: &mut dyn FnMut()) -> Result<File, PlaceError> {
    let (file, taken) = try_to_lock(path)?;
    if !taken {
        wait();
        file.lock().map_err(|source| PlaceError::Lock {
            path: path.to_owned(),
            source,
        })?;
    }
    Ok(file)
}

/// Takes the lock as [`lock`] does, unless somebody else holds it.
///
/// # Errors
/// [`PlaceError::Create`] or [`PlaceError::Lock`].
pub fn try_lock(path: &Path) -> Result<Option<File>, PlaceError> {
    let (file, taken) = try_to_lock(path)?;
    Ok(taken.then_some(file))
}

/// Opens the lock's file, and takes the lock if nobody holds it.
fn try_to_lock(path: &Path) -> Result<(File, bool), PlaceError> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|source| PlaceError::Create {
            path: path.to_owned(),
            source,
        })?;
    match file.try_lock() {
        Ok(()) => Ok((file, true)),
        Err(TryLockError::WouldBlock) => Ok((file, false)),
        Err(TryLockError::Error(source)) => Err(PlaceError::Lock {
            path: path.to_owned(),
            source,
        }),
    }
}

/// The directory that a path is in.
pub(super) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A new name is only sure to survive a power cut once its directory is on disk.
fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(parent(path))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unfinished_file_or_directory_vanishes_and_a_swept_one_too() {
        let base = tempfile::tempdir().unwrap();
        drop(partial_file(base.path()).unwrap());
        drop(partial_directory(base.path()).unwrap());
        assert!(entries(base.path()).unwrap().is_empty());
        std::mem::forget(partial_directory(base.path()).unwrap());
        fs::write(base.path().join("kept"), "").unwrap();
        sweep(base.path()).unwrap();
        assert_eq!(entries(base.path()).unwrap(), [base.path().join("kept")]);
    }

    #[test]
    fn a_written_file_replaces_the_old_one_with_the_mode_asked_for() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("file");
        write(&path, b"old", 0o600).unwrap();
        write(&path, b"new", 0o444).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o444);
        assert_eq!(entries(base.path()).unwrap(), [path]);
    }

    #[test]
    fn the_second_one_to_lock_waits_for_the_first() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("lock");
        let held = lock(&path, &mut || panic!("nobody holds it")).unwrap();
        let mut held = Some(held);
        let mut waited = false;
        drop(
            lock(&path, &mut || {
                waited = true;
                held.take();
            })
            .unwrap(),
        );
        assert!(waited);
    }

    #[test]
    #[ignore = "needs root"]
    fn only_what_root_alone_can_change_is_trusted() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("directory");
        let file = directory.join("file");
        fs::create_dir(&directory).unwrap();
        fs::write(&file, "").unwrap();
        assert_eq!(
            trusted(&file).unwrap(),
            fs::canonicalize(&file).unwrap(),
            "below a sticky /tmp"
        );

        fs::set_permissions(&directory, Permissions::from_mode(0o775)).unwrap();
        let error = trusted(&file).unwrap_err();
        assert!(
            matches!(&error, PlaceError::Writable { path, mode: 0o775 } if path.ends_with("directory")),
            "{error}"
        );
        fs::set_permissions(&directory, Permissions::from_mode(0o1777)).unwrap();
        trusted(&file).unwrap();
        trusted(&directory).unwrap_err();
        trusted_to_hold(&directory).unwrap();

        std::os::unix::fs::chown(&file, Some(1), None).unwrap();
        let error = trusted(&file).unwrap_err();
        assert!(
            matches!(error, PlaceError::Owner { owner: 1, .. }),
            "{error}"
        );
    }

    #[test]
    #[ignore = "needs root"]
    fn a_link_into_a_foreign_directory_is_not_trusted() {
        let base = tempfile::tempdir().unwrap();
        let foreign = base.path().join("foreign");
        fs::create_dir(&foreign).unwrap();
        fs::write(foreign.join("file"), "").unwrap();
        std::os::unix::fs::chown(&foreign, Some(1), None).unwrap();
        let link = base.path().join("link");
        std::os::unix::fs::symlink(foreign.join("file"), &link).unwrap();
        let error = trusted(&link).unwrap_err();
        assert!(
            matches!(error, PlaceError::Owner { owner: 1, .. }),
            "{error}"
        );
    }
}
