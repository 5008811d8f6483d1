//! The files of one runsc: found, unpacked, copied, hashed.

use crate::runsc::provision::{Member, ProvisionError, RUNSC};
use crate::sys::digest;
use crate::sys::place;
use crate::sys::process;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The helpers of a release, which runsc looks for beside itself.
const HELPERS: &str = "gvisor-bin";

/// How the names of tar files end that GNU tar can unpack.
const TARBALLS: [&str; 8] = [
    ".tar",
    ".tar.gz",
    ".tgz",
    ".tar.bz2",
    ".tar.xz",
    ".tar.zst",
    ".tar.zstd",
    ".tzst",
];

pub(super) fn is_tarball(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    TARBALLS.iter().any(|ending| name.ends_with(ending))
}

/// Unpacks a tar file below `work`, and gives the directory.
///
/// GNU tar refuses members with `..` and strips a leading `/`. Links are refused afterwards: nothing
/// has followed them, since tar makes those that lead outside only at the end.
pub(super) fn unpack(tarball: &Path, work: &Path) -> Result<PathBuf, ProvisionError> {
    let directory = work.join("unpacked");
    place::directory(&directory).map_err(|source| ProvisionError::Place { source })?;
    let absolute = fs::canonicalize(tarball).map_err(|source| ProvisionError::Given {
        path: tarball.to_owned(),
        source,
    })?;
    let mut command = process::program("tar");
    command
        .args(["--no-same-owner", "--no-same-permissions", "--force-local"])
        .arg("--extract")
        .arg("--directory")
        .arg(&directory)
        .arg("--file")
        .arg(absolute);
    process::run_while_we_live(&mut command).map_err(|source| ProvisionError::Unpack {
        path: tarball.to_owned(),
        source,
    })?;
    for path in files_below(&directory)? {
        let links = fs::symlink_metadata(&path).map_or(0, |metadata| metadata.nlink());
        if links != 1 {
            return Err(ProvisionError::Link { path });
        }
    }
    Ok(directory)
}

/// Copies a binary, and the helpers beside it, into the new directory `to`, for all to execute and
/// nobody to write. `given` is what the message names when there is no such binary.
pub(super) fn copy(given: &Path, binary: &Path, to: &Path) -> Result<(), ProvisionError> {
    fs::metadata(given).map_err(|source| ProvisionError::Given {
        path: given.to_owned(),
        source,
    })?;
    if !binary.is_file() {
        return Err(ProvisionError::NoRunsc {
            path: given.to_owned(),
        });
    }
    copy_file(binary, &to.join(RUNSC))?;
    let beside = binary.parent().unwrap_or(Path::new("/"));
    for path in helpers_of(binary)? {
        let name = path.strip_prefix(beside).unwrap_or(&path);
        copy_file(&path, &to.join(name))?;
    }
    Ok(())
}

/// The helpers that lie beside a binary, as current releases of gVisor have them.
pub(super) fn helpers_of(binary: &Path) -> Result<Vec<PathBuf>, ProvisionError> {
    let helpers = binary.with_file_name(HELPERS);
    if helpers.is_dir() {
        files_below(&helpers)
    } else {
        Ok(Vec::new())
    }
}

fn copy_file(from: &Path, to: &Path) -> Result<(), ProvisionError> {
    let copied = || -> io::Result<()> {
        if let Some(directory) = to.parent() {
            fs::create_dir_all(directory)?;
            fs::set_permissions(directory, Permissions::from_mode(0o755))?;
        }
        fs::copy(from, to)?;
        fs::set_permissions(to, Permissions::from_mode(0o555))
    };
    copied().map_err(|source| ProvisionError::Copy {
        path: from.to_owned(),
        source,
    })
}

/// The files of a set, sorted by path; their digests as remembered in `memory`, where one is given.
pub(super) fn members(
    directory: &Path,
    memory: Option<&Path>,
) -> Result<Vec<Member>, ProvisionError> {
    let mut paths = files_below(directory)?;
    paths.sort();
    for path in &paths {
        place::trusted(path).map_err(|source| ProvisionError::Untrusted { source })?;
    }
    let hashed = match memory {
        Some(memory) => digest::remembered(&paths, memory),
        None => paths.iter().map(|path| digest::of_file(path)).collect(),
    };
    let digests = hashed.map_err(|source| ProvisionError::Hash { source })?;
    let name = |path: &PathBuf| {
        let below = path.strip_prefix(directory).unwrap_or(path);
        below.to_string_lossy().into_owned()
    };
    Ok(paths
        .iter()
        .zip(digests)
        .map(|(path, sha256)| Member {
            path: name(path),
            sha256,
        })
        .collect())
}

/// All files below a directory. Anything but files and directories is refused.
fn files_below(directory: &Path) -> Result<Vec<PathBuf>, ProvisionError> {
    let entries = place::entries(directory).map_err(|source| ProvisionError::Place { source })?;
    let mut files = Vec::new();
    for path in entries {
        let metadata = fs::symlink_metadata(&path).map_err(|source| ProvisionError::Given {
            path: path.clone(),
            source,
        })?;
        if metadata.is_dir() {
            files.extend(files_below(&path)?);
        } else if metadata.is_file() {
            files.push(path);
        } else {
            return Err(ProvisionError::Link { path });
        }
    }
    Ok(files)
}
