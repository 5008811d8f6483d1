//! Directories that live as long as the process that made them.
//!
//! Their owner holds an flock(2) on them. The kernel lets go of it when the owner is gone, however
//! that came about, and so a directory that nobody holds is what a killed process has left. A process
//! number in a file would not do: numbers are given anew.
//!
//! Nothing here waits for anybody. A directory that was made and is not yet held may be taken for an
//! abandoned one; its maker then notices, because the lock is worth something only while the name
//! still leads to what was locked, and makes another.
//!
//! The lock belongs to the opened directory and not to a process (flock(2)): a child holds it too
//! from fork to exec, where the descriptor closes. So as long as a child is on its way into whatever
//! the directory stands for, the directory is held, even if its owner dies meanwhile.

use crate::sys::place::{self, PlaceError};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat, mkdirat};
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// Hexadecimal digits in a name: 128 random bits, so that no name is ever given twice.
const DIGITS: usize = 32;

/// How often a new directory may be taken for an abandoned one, in the microseconds before it is held.
const MAX_TRIES: u32 = 100;

/// A directory that belongs to whoever holds this.
///
/// Dropped, it vanishes with all that is in it, if this process has made it.
#[derive(Debug)]
pub struct Held {
    path: PathBuf,
    name: String,
    directory: File,
    keep: bool,
}

/// Where held directories of one kind lie: those named `PREFIX` and 32 hexadecimal digits. Anything
/// else in there is not ours and never touched.
#[derive(Debug, Clone)]
pub struct Registry {
    parent: PathBuf,
    prefix: &'static str,
}

impl Registry {
    /// The directories below `parent` whose names begin with `prefix`.
    pub fn at(parent: PathBuf, prefix: &'static str) -> Self {
        Self { parent, prefix }
    }

    /// Whether a name is of the form of ours.
    pub fn is_name(&self, name: &str) -> bool {
        let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        name.strip_prefix(self.prefix)
            .is_some_and(|digits| digits.len() == DIGITS && digits.bytes().all(digit))
    }

    /// Makes a directory for root alone and holds it.
    ///
    /// # Errors
    /// [`PlaceError::Create`] or [`PlaceError::Lock`].
    pub fn create(&self) -> Result<Held, PlaceError> {
        place::directory(&self.parent)?;
        for _ in 0..MAX_TRIES {
            let name = format!("{}{}", self.prefix, hex::encode(rand::random::<[u8; 16]>()));
            let path = self.parent.join(&name);
            let failed = |source| PlaceError::Create {
                path: path.clone(),
                source,
            };
            let parent = open_directory(&self.parent).map_err(failed)?;
            mkdirat(&parent, name.as_str(), Mode::S_IRWXU).map_err(|e| failed(e.into()))?;
            if let Some(mut held) = self.claim(&name)? {
                held.keep = false;
                return Ok(held);
            }
            // Somebody looks at it or sweeps it away; whatever they leave of it nobody wants.
            fs::remove_dir(&path).ok();
        }
        Err(PlaceError::Lock {
            path: self.parent.clone(),
            source: io::ErrorKind::WouldBlock.into(),
        })
    }

    /// Takes a directory over if nobody holds it. It stays until it is removed explicitly.
    ///
    /// # Errors
    /// [`PlaceError::Lock`].
    pub fn claim(&self, name: &str) -> Result<Option<Held>, PlaceError> {
        let lock = self.lock(name, File::try_lock)?;
        Ok(lock.map(|directory| Held {
            path: self.parent.join(name),
            name: name.to_owned(),
            directory,
            keep: true,
        }))
    }

    /// Names of the directories that are there, held or not, sorted.
    ///
    /// # Errors
    /// [`PlaceError::Read`].
    pub fn list(&self) -> Result<Vec<String>, PlaceError> {
        let failed = |errno: Errno| PlaceError::Read {
            path: self.parent.clone(),
            source: errno.into(),
        };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut listing = match Dir::open(&self.parent, flags, Mode::empty()) {
            Err(Errno::ENOENT) => return Ok(Vec::new()),
            opened => opened.map_err(failed)?,
        };
        let mut names = Vec::new();
        for entry in listing.iter() {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy();
            if self.is_name(&name) {
                names.push(name.into_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Names of the directories that nobody holds, without touching them.
    ///
    /// # Errors
    /// [`PlaceError::Read`] or [`PlaceError::Lock`].
    pub fn abandoned(&self) -> Result<Vec<String>, PlaceError> {
        let mut names = Vec::new();
        for name in self.list()? {
            // Shared: two who only look do not hide it from each other.
            if self.lock(&name, File::try_lock_shared)?.is_some() {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Whether there is such a directory.
    pub fn has(&self, name: &str) -> bool {
        self.is_name(name) && self.parent.join(name).is_dir()
    }

    fn lock(
        &self,
        name: &str,
        lock: impl Fn(&File) -> Result<(), TryLockError>,
    ) -> Result<Option<File>, PlaceError> {
        let attempt = || {
            let parent = open_directory(&self.parent)?;
            let Some(opened) = open_below(&parent, name)? else {
                return Ok(None);
            };
            match lock(&opened) {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            // Whoever held it until now may have removed it.
            Ok(leads_to(&parent, name, &opened)?.then_some(opened))
        };
        attempt().map_err(|source| PlaceError::Lock {
            path: self.parent.join(name),
            source,
        })
    }
}

impl Held {
    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its name, which nothing else ever has.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Removes it with all that is in it.
    ///
    /// # Errors
    /// [`PlaceError::Remove`]; it can be tried again.
    pub fn remove(&mut self) -> Result<(), PlaceError> {
        place::remove(&self.path)?;
        self.keep = true;
        Ok(())
    }

    /// Leaves it to the next sweep: once dropped it is there and nobody's.
    pub fn abandon(&mut self) {
        self.keep = true;
    }

    /// The open directory, which carries the lock.
    pub fn directory(&self) -> &File {
        &self.directory
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.keep {
            // The lock goes after it. What cannot be removed is left to the sweep.
            self.remove().ok();
        }
    }
}

fn open_directory(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options()
        .read(true)
        .custom_flags(libc::O_DIRECTORY)
        .open(path)
}

/// A directory below another, unless it is gone, a link or something else.
fn open_below(parent: &File, name: &str) -> io::Result<Option<File>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match openat(parent, name, flags, Mode::empty()) {
        Ok(descriptor) => Ok(Some(descriptor.into())),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether the name still leads to what was opened by it.
fn leads_to(parent: &File, name: &str, opened: &File) -> io::Result<bool> {
    let identity = |stat: &FileStat| (stat.st_dev, stat.st_ino);
    match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(there) => Ok(identity(&there) == identity(&fstat(opened)?)),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};

    const PATIENCE: Duration = Duration::from_secs(50);

    fn registry(parent: &Path) -> Registry {
        Registry::at(parent.join("held"), "test-")
    }

    #[test]
    fn a_held_directory_is_nobody_elses_until_its_owner_is_gone() {
        let base = tempfile::tempdir().unwrap();
        let registry = registry(base.path());
        assert_eq!(registry.list().unwrap(), Vec::<String>::new());
        let mut held = registry.create().unwrap();
        let name = held.name().to_owned();
        assert!(registry.is_name(&name));
        let mode = held.directory().metadata().unwrap().mode();
        assert_eq!(mode & 0o7777, 0o700);
        assert!(registry.claim(&name).unwrap().is_none());
        assert!(registry.abandoned().unwrap().is_empty());
        held.abandon();
        drop(held);
        assert_eq!(registry.abandoned().unwrap(), [name.as_str()]);
        let mut claimed = registry.claim(&name).unwrap().unwrap();
        assert!(registry.claim(&name).unwrap().is_none());
        drop(registry.claim(&name).unwrap());
        fs::write(claimed.path().join("file"), "").unwrap();
        claimed.remove().unwrap();
        assert!(registry.claim(&name).unwrap().is_none());
        drop(registry.create().unwrap());
        assert_eq!(registry.list().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn what_was_claimed_and_not_removed_stays_for_the_next_sweep() {
        let base = tempfile::tempdir().unwrap();
        let registry = registry(base.path());
        let mut held = registry.create().unwrap();
        held.abandon();
        let name = held.name().to_owned();
        drop(held);
        drop(registry.claim(&name).unwrap().unwrap());
        assert_eq!(registry.abandoned().unwrap(), [name]);
    }

    #[test]
    fn the_lock_does_not_reach_a_program_that_is_started() {
        let base = tempfile::tempdir().unwrap();
        let held = registry(base.path()).create().unwrap();
        let flags = nix::fcntl::fcntl(held.directory(), nix::fcntl::FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
        assert!(held.directory().as_raw_fd() > 2);
    }

    #[test]
    fn links_files_and_other_names_are_not_ours() {
        let base = tempfile::tempdir().unwrap();
        let registry = registry(base.path());
        drop(registry.create().unwrap());
        let digits = "0123456789abcdef0123456789abcdef";
        let parent = base.path().join("held");
        let elsewhere = base.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        symlink(&elsewhere, parent.join(format!("test-{digits}"))).unwrap();
        fs::write(
            parent.join(format!("test-{}", digits.replace('0', "1"))),
            "",
        )
        .unwrap();
        for name in ["test-", "test-12", "other"] {
            fs::create_dir(parent.join(name)).unwrap();
        }
        fs::create_dir(parent.join(format!("test-{}", digits.to_uppercase()))).unwrap();
        fs::create_dir(parent.join(format!("test-{digits}0"))).unwrap();
        fs::create_dir(parent.join(format!("tests-{digits}"))).unwrap();
        assert_eq!(registry.list().unwrap().len(), 2, "the link and the file");
        assert_eq!(registry.abandoned().unwrap(), Vec::<String>::new());
        for name in registry.list().unwrap() {
            assert!(registry.claim(&name).unwrap().is_none(), "{name}");
        }
    }

    #[test]
    fn a_lock_counts_only_while_the_name_leads_to_what_was_locked() {
        let base = tempfile::tempdir().unwrap();
        let registry = registry(base.path());
        let mut held = registry.create().unwrap();
        held.abandon();
        let (name, path) = (held.name().to_owned(), held.path().to_owned());
        drop(held);
        // Between opening and locking a sweep removes it; somebody else makes it anew.
        let removed = |file: &File| {
            fs::remove_dir(&path).unwrap();
            file.try_lock()
        };
        assert!(registry.lock(&name, removed).unwrap().is_none());
        fs::create_dir(&path).unwrap();
        let replaced = |file: &File| {
            fs::rename(&path, base.path().join("old")).unwrap();
            fs::create_dir(&path).unwrap();
            file.try_lock()
        };
        assert!(registry.lock(&name, replaced).unwrap().is_none());
        assert!(registry.lock(&name, File::try_lock).unwrap().is_some());
    }

    /// The moment between making and holding, met a thousand times.
    #[test]
    fn a_directory_that_is_just_being_made_is_never_lost_to_a_sweep() {
        let base = tempfile::tempdir().unwrap();
        let registry = registry(base.path());
        let done = AtomicBool::new(false);
        let mut taken = 0;
        std::thread::scope(|scope| {
            let sweeps = [(); 2].map(|()| {
                scope.spawn(|| {
                    let (mut taken, begun) = (0, Instant::now());
                    // Not for ever when the other side has failed.
                    while !done.load(Ordering::Relaxed) && begun.elapsed() < PATIENCE {
                        for name in registry.list().unwrap() {
                            if let Some(mut abandoned) = registry.claim(&name).unwrap() {
                                abandoned.remove().unwrap();
                                taken += 1;
                            }
                        }
                    }
                    taken
                })
            });
            for _ in 0..1000 {
                let held = registry.create().unwrap();
                let there = fs::metadata(held.path()).unwrap();
                assert_eq!(there.ino(), held.directory().metadata().unwrap().ino());
                std::thread::yield_now();
                assert!(held.path().exists(), "it was swept away");
            }
            done.store(true, Ordering::Relaxed);
            taken = sweeps.into_iter().map(|sweep| sweep.join().unwrap()).sum();
        });
        println!("{taken} were taken before they were held");
        assert!(registry.list().unwrap().is_empty());
    }
}
