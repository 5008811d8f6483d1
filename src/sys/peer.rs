//! Who is at the other end of a Unix socket, as the kernel vouches for it.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Supplementary groups that are read at first; most processes have fewer.
const FIRST_GROUPS: usize = 32;

/// Supplementary groups of a process at most (`NGROUPS_MAX`, since Linux 2.6.4).
const MAX_GROUPS: usize = 65_536;

/// The process that made the connection, with the ids that it had at that moment: it may have given
/// the socket to another since, or have ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its number; 0 if it lies outside of our PID namespace. For messages alone: it may be another's by
    /// now.
    pub pid: i32,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
    /// Its supplementary groups.
    pub groups: Vec<u32>,
}

impl Peer {
    /// Asks the kernel who is at the other end of a connection (unix(7): `SO_PEERCRED`; and
    /// `SO_PEERGROUPS`, Linux 4.13).
    ///
    /// # Errors
    /// For a socket that has no other end, or is no Unix socket.
    pub fn of(socket: impl AsFd) -> io::Result<Self> {
        let socket = socket.as_fd();
        // `struct ucred` is three numbers of 32 bits.
        let mut credentials = [0; 3];
        let there = numbers(socket, libc::SO_PEERCRED, &mut credentials)?;
        let [pid, uid, gid] = credentials;
        // The kernel answers with the uid -1 where nobody is.
        if there != credentials.len() || uid == u32::MAX {
            return Err(io::Error::from_raw_os_error(libc::ENOTCONN));
        }
        Ok(Self {
            pid: pid.cast_signed(),
            uid,
            gid,
            groups: groups(socket)?,
        })
    }

    /// Whether it may do what root alone may.
    pub fn is_root(&self) -> bool {
        self.uid == 0
    }

    /// Whether it is a member of the group, by its own group or by a supplementary one.
    pub fn is_in(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }
}

fn groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut room = FIRST_GROUPS;
    loop {
        let mut groups = vec![0; room];
        match numbers(socket, libc::SO_PEERGROUPS, &mut groups) {
            Ok(there) => {
                groups.truncate(there);
                return Ok(groups);
            }
            Err(error) if error.raw_os_error() == Some(libc::ERANGE) && room < MAX_GROUPS => {
                room = (room * 8).min(MAX_GROUPS);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Reads a socket option that is a row of 32-bit numbers; returns how many there are.
fn numbers(socket: BorrowedFd<'_>, option: i32, buffer: &mut [u32]) -> io::Result<usize> {
    let too_long = |_| io::Error::from_raw_os_error(libc::EINVAL);
    let mut length = libc::socklen_t::try_from(size_of_val(buffer)).map_err(too_long)?;
    // SAFETY: getsockopt(2) writes at most `length` bytes to the buffer, which is the buffer's length,
    // and any bits are a `u32`.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            buffer.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if answer == 0 {
        Ok(length as usize / size_of::<u32>())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::os::unix::process::CommandExt;

    #[test]
    fn both_ends_of_a_pair_are_ourselves() {
        let (one, other) = UnixStream::pair().unwrap();
        let ours = nix::unistd::getgroups().unwrap();
        for end in [&one, &other] {
            let peer = Peer::of(end).unwrap();
            assert_eq!(peer.pid, std::process::id().cast_signed());
            assert_eq!(peer.uid, nix::unistd::geteuid().as_raw());
            assert_eq!(peer.gid, nix::unistd::getegid().as_raw());
            let groups: Vec<_> = ours.iter().map(|group| group.as_raw()).collect();
            assert_eq!(peer.groups, groups);
            assert_eq!(peer.is_root(), peer.uid == 0);
            assert!(peer.is_in(peer.gid));
        }
    }

    #[test]
    fn a_socket_without_another_end_has_no_peer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let datagrams = std::os::unix::net::UnixDatagram::bind(path).unwrap();
        assert!(Peer::of(&datagrams).is_err());
        let file = tempfile::tempfile().unwrap();
        assert!(Peer::of(&file).is_err());
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(Peer::of(&tcp).is_err());
    }

    #[test]
    #[ignore = "needs root"]
    fn another_user_with_many_groups_is_seen_with_all_of_them() {
        let directory = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir()
            .unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666))
            .unwrap();
        for count in [0, 1, 32, 33, 300, 5000] {
            let groups: Vec<u32> = (70_000..70_000 + count).collect();
            let connected = std::thread::scope(|scope| {
                let (path, groups) = (&path, &groups);
                let client = scope.spawn(move || connect_as(path, 60_001, 60_002, groups));
                let (connected, _) = listener.accept().unwrap();
                client.join().unwrap();
                connected
            });
            // Its end is closed and its process is gone: what it was then is still known.
            let peer = Peer::of(&connected).unwrap();
            assert_eq!((peer.uid, peer.gid), (60_001, 60_002));
            assert_eq!(peer.groups, groups);
            assert!(!peer.is_root());
            assert!(peer.is_in(60_002));
            assert!(!peer.is_in(0));
            assert_eq!(peer.is_in(70_000), count > 0);
            assert_eq!(peer.is_in(74_999), count == 5000);
        }
    }

    /// Connects in a process of its own, with these ids.
    fn connect_as(path: &std::path::Path, uid: u32, gid: u32, groups: &[u32]) {
        let groups: Vec<_> = groups.iter().map(|&one| one.into()).collect();
        let mut command = process::program("perl");
        command.args([
            "-MIO::Socket::UNIX",
            "-e",
            "IO::Socket::UNIX->new(Peer => $ARGV[0]) or die $!",
        ]);
        let become_other = move || {
            nix::unistd::setgroups(&groups)?;
            nix::unistd::setgid(gid.into())?;
            nix::unistd::setuid(uid.into())?;
            Ok(())
        };
        // SAFETY: between fork and exec only async-signal-safe calls may run; these are three system
        // calls on memory that was made before.
        unsafe { command.arg(path).pre_exec(become_other) };
        process::run(&mut command).unwrap();
    }
}
