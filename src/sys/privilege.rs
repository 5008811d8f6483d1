//! Being root, and ceasing to be.

use caps::{CapSet, Capability};
use nix::unistd::{Uid, User, setgroups, setresgid, setresuid};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What running a sandbox takes: namespaces, mounts, other users' processes and files.
const NEEDED: [Capability; 6] = [
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYS_CHROOT,
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    Capability::CAP_KILL,
];

/// Why privileges are missing, or could not be given up.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
pub enum PrivilegeError {
    #[error("this needs root")]
    NotRoot,
    #[error("root lacks the capability {capability} here")]
    Missing { capability: Capability },
    #[error("cannot read the capabilities of this process")]
    Read { source: caps::errors::CapsError },
    #[error("there is no user `{user}` to become: run `tako-vm setup`")]
    NoUser { user: String },
    #[error("cannot give up {what}")]
    Drop {
        what: &'static str,
        source: io::Error,
    },
    #[error("privileges are still there after they were given up")]
    StillThere,
    #[error("this is not for root")]
    Root,
    #[error("this process has capabilities, and shall have none")]
    Capabilities,
    #[error("cannot read `{}`", path.display())]
    Status { path: PathBuf, source: io::Error },
    #[error("`{}` has no line `{}`", path.display(), missing.escape_debug())]
    NotConfined { path: PathBuf, missing: String },
    #[error("`{}` is that of the host", path.display())]
    SharedNamespace { path: PathBuf },
}

/// Checks that this process is root and has what a sandbox takes.
///
/// # Errors
/// [`PrivilegeError::NotRoot`], or the capability that is missing (a restricted container, say).
pub fn require_root() -> Result<(), PrivilegeError> {
    if !Uid::effective().is_root() {
        return Err(PrivilegeError::NotRoot);
    }
    let effective =
        caps::read(None, CapSet::Effective).map_err(|source| PrivilegeError::Read { source })?;
    match NEEDED
        .into_iter()
        .find(|capability| !effective.contains(capability))
    {
        Some(capability) => Err(PrivilegeError::Missing { capability }),
        None => Ok(()),
    }
}

/// Checks that there is a user to become with [`drop_root`]; whoever is not root needs none.
///
/// # Errors
/// [`PrivilegeError::NoUser`], or [`PrivilegeError::Drop`] when the user database cannot be read.
pub fn require_user(user: &str) -> Result<(), PrivilegeError> {
    if !Uid::effective().is_root() {
        return Ok(());
    }
    find_user(user).map(drop)
}

fn find_user(user: &str) -> Result<User, PrivilegeError> {
    let found = User::from_name(user).map_err(|errno| PrivilegeError::Drop {
        what: "root for that user",
        source: errno.into(),
    })?;
    found.ok_or_else(|| PrivilegeError::NoUser {
        user: user.to_owned(),
    })
}

/// Checks that `/proc/PID/status` (proc(5)) has these lines: ids, capabilities, the seccomp mode.
///
/// # Errors
/// [`PrivilegeError::NotConfined`] names the first line that is missing.
pub fn require_status(pid: i32, lines: &[&str]) -> Result<(), PrivilegeError> {
    let path = PathBuf::from(format!("/proc/{pid}/status"));
    let status = match fs::read_to_string(&path) {
        Ok(status) => status,
        Err(source) => return Err(PrivilegeError::Status { path, source }),
    };
    let has = |wanted: &str| status.lines().any(|line| line.trim_end() == wanted);
    match lines.iter().find(|wanted| !has(wanted)) {
        Some(missing) => Err(PrivilegeError::NotConfined {
            path,
            missing: (*missing).to_owned(),
        }),
        None => Ok(()),
    }
}

/// Checks that a process is in none of our namespaces of these kinds (`namespaces(7)`).
///
/// # Errors
/// [`PrivilegeError::SharedNamespace`] names the first that it shares with us.
pub fn require_other_namespaces(pid: i32, kinds: &[&str]) -> Result<(), PrivilegeError> {
    let identity = |path: &Path| match fs::metadata(path) {
        Ok(found) => Ok((found.dev(), found.ino())),
        Err(source) => Err(PrivilegeError::Status {
            path: path.to_owned(),
            source,
        }),
    };
    for kind in kinds {
        let path = PathBuf::from(format!("/proc/{pid}/ns/{kind}"));
        if identity(&path)? == identity(&Path::new("/proc/self/ns").join(kind))? {
            return Err(PrivilegeError::SharedNamespace { path });
        }
    }
    Ok(())
}

/// Checks that this process has no privileges, and sees to it that no program that it starts gets any
/// (`PR_SET_NO_NEW_PRIVS`).
///
/// # Errors
/// [`PrivilegeError::Root`], [`PrivilegeError::Capabilities`], or [`PrivilegeError::Drop`].
pub fn require_none() -> Result<(), PrivilegeError> {
    if Uid::effective().is_root() || Uid::current().is_root() {
        return Err(PrivilegeError::Root);
    }
    let left =
        caps::read(None, CapSet::Permitted).map_err(|source| PrivilegeError::Read { source })?;
    if !left.is_empty() {
        return Err(PrivilegeError::Capabilities);
    }
    nix::sys::prctl::set_no_new_privs().map_err(|errno| PrivilegeError::Drop {
        what: "the way to new privileges",
        source: errno.into(),
    })
}

/// Gives up root for good, in every thread: afterwards this process is `user`, without groups and
/// capabilities. Bytes of a program may then be parsed. Never as `nobody`, whose uid the sentries of
/// all sandboxes have.
///
/// A process that is not root has nothing to give up.
///
/// # Errors
/// When any part of it cannot be given up: then nothing untrusted may be read.
pub fn drop_root(user: &str) -> Result<(), PrivilegeError> {
    if !Uid::effective().is_root() {
        return Ok(());
    }
    let User { uid, gid, .. } = find_user(user)?;
    let drop_error = |what| {
        move |errno: nix::Error| PrivilegeError::Drop {
            what,
            source: errno.into(),
        }
    };
    setgroups(&[]).map_err(drop_error("the supplementary groups"))?;
    setresgid(gid, gid, gid).map_err(drop_error("the group"))?;
    setresuid(uid, uid, uid).map_err(drop_error("the user"))?;
    let left =
        caps::read(None, CapSet::Permitted).map_err(|source| PrivilegeError::Read { source })?;
    // Were the change of user not to take them away, or root to be had back, it would be for show.
    if !left.is_empty() || setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).is_ok() {
        return Err(PrivilegeError::StillThere);
    }
    Ok(())
}
