//! Where a service of root's listens: a directory and a Unix socket that nobody reaches but root and
//! the members of one group.

use crate::sys::place::{self, PlaceError};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::fs::{self, DirBuilder, File, Metadata, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown, fchown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Connections that may wait to be accepted: a burst of clients. The kernel clips it
/// (`net.core.somaxconn`).
const BACKLOG: i32 = 1024;

/// Why a service cannot listen.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
pub enum EndpointError {
    #[error("cannot use the place of the socket")]
    Place(#[source] PlaceError),
    #[error("`{}` is no directory, or a link", path.display())]
    NoDirectory { path: PathBuf, source: io::Error },
    #[error("cannot {doing} `{}`", path.display())]
    File {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("`{}` is there and is no socket", path.display())]
    NoSocket { path: PathBuf },
    #[error("a supervisor is listening at `{}` already", path.display())]
    Listening { path: PathBuf },
}

impl EndpointError {
    fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File {
            doing,
            path,
            source,
        }
    }
}

/// Who besides root may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nobody.
    Root,
    /// Members of the group with this id.
    Group(u32),
}

impl Access {
    fn gid(self) -> u32 {
        match self {
            Self::Root => 0,
            Self::Group(gid) => gid,
        }
    }

    fn directory_mode(self) -> u32 {
        match self {
            Self::Root => 0o700,
            Self::Group(_) => 0o750,
        }
    }

    fn socket_mode(self) -> u32 {
        match self {
            Self::Root => 0o600,
            Self::Group(_) => 0o660,
        }
    }
}

/// Makes the directory, or sets owner and mode of the one that is there: 0750 of root and the group, or
/// 0700.
///
/// Only for a directory that is ours by its name. One that an operator has named may be `/run`.
///
/// # Errors
/// When it is a link or no directory, or when it, or what is above it, can be changed by others than
/// root: what is in it may be theirs then.
pub fn own_directory(path: &Path, access: Access) -> Result<(), EndpointError> {
    place::trusted_to_hold(place::parent(path)).map_err(EndpointError::Place)?;
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(EndpointError::file("make", path)(error));
        }
        _ => {}
    }
    // What was opened is what is checked and changed.
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let opened = open(path, flags, Mode::empty()).map_err(|errno| EndpointError::NoDirectory {
        path: path.to_owned(),
        source: errno.into(),
    })?;
    let directory = File::from(opened);
    let found = directory
        .metadata()
        .map_err(EndpointError::file("look at", path))?;
    place::check_metadata(path, &found, true).map_err(EndpointError::Place)?;
    // First the group, which is to have what the mode grants.
    fchown(&directory, Some(0), Some(access.gid()))
        .map_err(EndpointError::file("change the group of", path))?;
    directory
        .set_permissions(Permissions::from_mode(access.directory_mode()))
        .map_err(EndpointError::file("change the mode of", path))
}

/// The name under which a listener is reached. It is taken away with the value, and so is the lock that
/// keeps a second one from it.
#[derive(Debug)]
pub struct Endpoint {
    path: PathBuf,
    /// The socket that we put there: device and inode.
    identity: (u64, u64),
    _lock: File,
}

impl Endpoint {
    /// Listens at `path`: 0660 of root and the group, or 0600. The listener does not block.
    ///
    /// A socket that was left behind by one who was killed is replaced.
    ///
    /// # Errors
    /// [`EndpointError::Listening`] when somebody listens there, and when the directory of it can be
    /// changed by others than root, or something else lies there.
    pub fn listen(path: &Path, access: Access) -> Result<(UnixListener, Self), EndpointError> {
        let directory = place::trusted(place::parent(path)).map_err(EndpointError::Place)?;
        let path = directory.join(path.file_name().unwrap_or_default());
        // Without it two who start at once would take each other's new socket for an old one.
        let mut lock = path.clone().into_os_string();
        lock.push(".lock");
        let lock = place::try_lock(Path::new(&lock)).map_err(EndpointError::Place)?;
        let Some(lock) = lock else {
            return Err(EndpointError::Listening { path });
        };
        let address = SocketAddrUnix::new(&path)
            .map_err(|errno| EndpointError::file("use the name", &path)(errno.into()))?;
        remove_stale(&path, &address)?;
        let socket = socket(&path)?;
        let step = |doing| {
            let path = path.clone();
            move |errno: rustix::io::Errno| EndpointError::file(doing, &path)(errno.into())
        };
        rustix::net::bind(&socket, &address).map_err(step("make the socket"))?;
        let placed = restrict(&path, access);
        // Last: until then nobody can connect, whatever the mode of a new socket is.
        let listening = placed.and_then(|metadata| {
            rustix::net::listen(&socket, BACKLOG).map_err(step("listen at"))?;
            Ok(metadata)
        });
        match listening {
            Ok(metadata) => {
                let endpoint = Self {
                    identity: identity(&metadata),
                    path,
                    _lock: lock,
                };
                Ok((UnixListener::from(socket), endpoint))
            }
            Err(error) => {
                // The error says more than a failure to clean up.
                drop(fs::remove_file(&path));
                Err(error)
            }
        }
    }

    /// Where it is, without links.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let ours = |found: Metadata| identity(&found) == self.identity;
        if fs::symlink_metadata(&self.path).is_ok_and(ours) {
            // The next one replaces what stays.
            drop(fs::remove_file(&self.path));
        }
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn socket(path: &Path) -> Result<OwnedFd, EndpointError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|errno| EndpointError::file("make a socket for", path)(errno.into()))
}

/// Gives a new socket to those who may connect to it.
fn restrict(path: &Path, access: Access) -> Result<Metadata, EndpointError> {
    chown(path, Some(0), Some(access.gid()))
        .map_err(EndpointError::file("change the group of", path))?;
    fs::set_permissions(path, Permissions::from_mode(access.socket_mode()))
        .map_err(EndpointError::file("change the mode of", path))?;
    fs::symlink_metadata(path).map_err(EndpointError::file("look at", path))
}

/// Removes a socket at which nobody listens.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), EndpointError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(EndpointError::file("look at", path)(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(EndpointError::NoSocket {
                path: path.to_owned(),
            });
        }
        Ok(_) => {}
    }
    // It does not block: one who listens and does not accept would hold us up for ever.
    match rustix::net::connect(socket(path)?, address) {
        Err(rustix::io::Errno::CONNREFUSED) => {
            fs::remove_file(path).map_err(EndpointError::file("remove", path))
        }
        Ok(()) | Err(rustix::io::Errno::AGAIN) => Err(EndpointError::Listening {
            path: path.to_owned(),
        }),
        Err(errno) => Err(EndpointError::file("connect to", path)(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    /// Nobody's.
    const GROUP: u32 = 61_234;

    fn mode(path: &Path) -> (u32, u32, u32) {
        let found = fs::symlink_metadata(path).unwrap();
        (found.mode() & 0o7777, found.uid(), found.gid())
    }

    #[test]
    #[ignore = "needs root"]
    fn the_directory_is_roots_and_the_groups_whoever_made_it() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("tako-vm");
        for (access, expected) in [
            (Access::Group(GROUP), (0o750, 0, GROUP)),
            (Access::Root, (0o700, 0, 0)),
            (Access::Group(GROUP), (0o750, 0, GROUP)),
        ] {
            own_directory(&path, access).unwrap();
            assert_eq!(mode(&path), expected);
        }
        // As systemd makes it.
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        own_directory(&path, Access::Group(GROUP)).unwrap();
        assert_eq!(mode(&path).0, 0o750);
    }

    #[test]
    #[ignore = "needs root"]
    fn a_directory_that_others_can_change_and_a_link_are_refused_and_left_as_they_are() {
        let base = tempfile::tempdir().unwrap();
        let refused = |path: &Path| own_directory(path, Access::Group(GROUP)).unwrap_err();
        let path = base.path().join("tako-vm");
        fs::create_dir(&path).unwrap();
        for bad in [0o770, 0o777, 0o1777] {
            fs::set_permissions(&path, Permissions::from_mode(bad)).unwrap();
            let error = refused(&path);
            let writable = matches!(&error, EndpointError::Place(PlaceError::Writable { .. }));
            assert!(writable, "{error}");
            assert_eq!(mode(&path), (bad, 0, 0));
            let error = Endpoint::listen(&path.join("socket"), Access::Root).unwrap_err();
            assert!(matches!(error, EndpointError::Place(_)), "{error}");
        }
        fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
        chown(&path, Some(1), None).unwrap();
        let owner = refused(&path);
        assert!(matches!(
            &owner,
            EndpointError::Place(PlaceError::Owner { owner: 1, .. })
        ));

        let link = base.path().join("link");
        let target = base.path().join("target");
        fs::create_dir(&target).unwrap();
        symlink(&target, &link).unwrap();
        let file = base.path().join("file");
        fs::write(&file, "").unwrap();
        for path in [&link, &file] {
            assert!(matches!(refused(path), EndpointError::NoDirectory { .. }));
        }
        assert_eq!(mode(&target).2, 0);

        // Above it, too.
        fs::set_permissions(base.path(), Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(
            refused(&base.path().join("new")),
            EndpointError::Place(_)
        ));
        assert!(!base.path().join("new").exists());
    }

    #[test]
    #[ignore = "needs root"]
    fn a_socket_is_the_groups_and_goes_with_its_endpoint() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("socket");
        for (access, expected) in [
            (Access::Group(GROUP), (0o660, 0, GROUP)),
            (Access::Root, (0o600, 0, 0)),
        ] {
            let (listener, endpoint) = Endpoint::listen(&path, access).unwrap();
            assert_eq!(mode(endpoint.path()), expected);
            let early = listener.accept().unwrap_err();
            assert_eq!(early.kind(), io::ErrorKind::WouldBlock);
            let mut client = UnixStream::connect(&path).unwrap();
            drop(listener.accept().unwrap());
            assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
            drop(endpoint);
            assert!(!path.exists());
        }
    }

    #[test]
    #[ignore = "needs root"]
    fn a_stale_socket_is_replaced_and_one_at_which_somebody_listens_is_not() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("socket");
        let listen = || Endpoint::listen(&path, Access::Root);
        let refused = || matches!(listen(), Err(EndpointError::Listening { .. }));

        // A supervisor, and one that does not know of locks and never accepts.
        let first = listen().unwrap();
        assert!(refused());
        let message = listen().unwrap_err().to_string();
        assert!(
            message.starts_with("a supervisor is listening at `"),
            "{message}"
        );
        // Killed: the kernel closes the socket and lets go of the lock, the name stays.
        let (listener, endpoint) = first;
        drop(listener);
        assert!(refused(), "it still has the lock");
        drop(endpoint);
        let other = UnixListener::bind(&path).unwrap();
        assert!(refused());
        rustix::net::listen(&other, 0).unwrap();
        for attempt in 0..3 {
            assert!(refused(), "its queue is full: attempt {attempt}");
        }
        assert!(path.exists());
        drop(other);
        let (_listener, endpoint) = listen().unwrap();

        // What is there when it ends may be another's.
        fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(endpoint);
        assert!(path.exists());
    }

    #[test]
    #[ignore = "needs root"]
    fn what_is_no_stale_socket_is_left_alone() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("socket");
        let listen = |path: &Path| Endpoint::listen(path, Access::Root).unwrap_err();
        fs::write(&path, "mine").unwrap();
        assert!(matches!(listen(&path), EndpointError::NoSocket { .. }));
        assert_eq!(fs::read(&path).unwrap(), b"mine");
        fs::remove_file(&path).unwrap();
        symlink("/nonexistent", &path).unwrap();
        assert!(matches!(listen(&path), EndpointError::NoSocket { .. }));
        fs::remove_file(&path).unwrap();
        let _datagrams = UnixDatagram::bind(&path).unwrap();
        assert!(matches!(listen(&path), EndpointError::File { .. }));
        assert!(path.exists());
        let long = base.path().join("n".repeat(120));
        assert!(matches!(listen(&long), EndpointError::File { .. }));
        let lost = base.path().join("nowhere/socket");
        assert!(matches!(listen(&lost), EndpointError::Place(_)));
    }

    #[test]
    #[ignore = "needs root"]
    fn of_many_who_start_at_once_one_listens() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        let listening: Vec<_> = std::thread::scope(|scope| {
            let start = || scope.spawn(|| Endpoint::listen(&path, Access::Root));
            let started: Vec<_> = (0..16).map(|_| start()).collect();
            let ends = started.into_iter().map(|one| one.join().unwrap());
            ends.filter_map(Result::ok).collect()
        });
        assert_eq!(listening.len(), 1);
        UnixStream::connect(&path).unwrap();
    }
}
