//! Accounts of the system.

use crate::sys::process::{self, ProcessError};
use nix::errno::Errno;
use nix::unistd::{Group, User};

/// Why an account is not there.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
pub enum AccountError {
    #[error("cannot look up the user `{name}`")]
    Look { name: String, source: Errno },
    #[error("cannot look up the group `{name}`")]
    LookGroup { name: String, source: Errno },
    #[error("cannot create the user `{name}`")]
    Create { name: String, source: ProcessError },
}

/// Whether such a user is known to the system, in whatever directory service.
///
/// # Errors
/// [`AccountError::Look`].
pub fn exists(name: &str) -> Result<bool, AccountError> {
    ids(name).map(|ids| ids.is_some())
}

/// The numbers of a user and of its own group; `None` where there is no such user.
///
/// # Errors
/// [`AccountError::Look`].
pub fn ids(name: &str) -> Result<Option<(u32, u32)>, AccountError> {
    let user = User::from_name(name).map_err(|source| AccountError::Look {
        name: name.to_owned(),
        source,
    })?;
    Ok(user.map(|user| (user.uid.as_raw(), user.gid.as_raw())))
}

/// The number of a group, from whatever directory service; `None` where there is no such group.
///
/// # Errors
/// [`AccountError::LookGroup`].
pub fn group(name: &str) -> Result<Option<u32>, AccountError> {
    Group::from_name(name)
        .map(|group| group.map(|group| group.gid.as_raw()))
        .map_err(|source| AccountError::LookGroup {
            name: name.to_owned(),
            source,
        })
}

/// Creates a system user with a group of the same name, who cannot log in and has no home.
///
/// # Errors
/// [`AccountError::Create`].
pub fn create(name: &str) -> Result<(), AccountError> {
    let mut command = process::program("useradd");
    command
        .args(["--system", "--user-group", "--no-create-home"])
        .args(["--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin"])
        .arg(name);
    match process::run(&mut command) {
        Ok(_) => Ok(()),
        Err(source) => Err(AccountError::Create {
            name: name.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_by_its_name_or_is_not_there() {
        assert_eq!(group("root").unwrap(), Some(0));
        assert_eq!(group("no-such-group-here").unwrap(), None);
    }
}
