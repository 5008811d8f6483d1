//! Debian 13's package `runsc`, fetched with apt's own tools.
//!
//! apt works in directories of its own: the system's sources, lists, cache and hooks are not touched,
//! and nothing is installed. What it downloads it checks as always: the package against the index, the
//! index against the Release file, that against the keys of Debian's archive.

use crate::runsc::provision::{Candidate, ProvisionError, set, set_in, workplace};
use crate::sys::apt::{self, Sources, WORKSHOP};
use crate::sys::place::{self, PlaceError};
use crate::sys::process::{self, ProcessError};
use nix::unistd::User;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The first release of Debian whose runsc has the systrap platform. It is a static binary and runs
/// on Debian 12 too.
pub const SUITE: &str = "trixie";

/// Directories of apt's that its unprivileged user `_apt` writes to.
const FOR_APT: [&str; 3] = ["state/lists/partial", "cache/archives/partial", "packages"];

/// What apt is told, besides the architecture. Read after the system's own configuration (`-c`), so
/// that `#clear` works: the hooks of the system would act on the system's files. Its proxies and
/// passwords stay in force.
const CONFIGURATION: &str = r#"
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
#clear Acquire::IndexTargets::deb::DEP-11;
#clear Acquire::IndexTargets::deb::DEP-11-icons-small;
#clear Acquire::IndexTargets::deb::DEP-11-icons;
#clear Acquire::IndexTargets::deb::DEP-11-icons-hidpi;
#clear Acquire::IndexTargets::deb::DEP-11-icons-large;
#clear Acquire::IndexTargets::deb::DEP-11-icons-large-hidpi;
#clear APT::Architectures;
APT::Get::AllowUnauthenticated "false";
APT::Default-Release "";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::http::Timeout "30";
Dir::State "/mnt/state";
Dir::State::lists "/mnt/state/lists";
Dir::State::status "/mnt/status";
Dir::State::extended_states "/mnt/state/extended_states";
Dir::Cache "/mnt/cache";
Dir::Cache::archives "/mnt/cache/archives";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Dir::Etc::sourcelist "/mnt/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::Etc::trusted "/dev/null";
Dir::Etc::trustedparts "/dev/null";
"#;

/// Why the package has not been fetched.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
pub enum PackageError {
    #[error("cannot prepare a place for apt")]
    Place { source: PlaceError },
    #[error("cannot give `{}` to the user `_apt`", path.display())]
    Give { path: PathBuf, source: io::Error },
    #[error("cannot ask for this machine's architecture")]
    Architecture { source: ProcessError },
    #[error("no mirror gives a signed index of `{SUITE}`")]
    Index { source: ProcessError },
    #[error("the system's package sources name no mirror of Debian")]
    NoMirror,
    #[error("cannot download the package")]
    Download { source: ProcessError },
    #[error("apt has downloaded no package")]
    Missing,
    #[error("cannot unpack `{}`", path.display())]
    Unpack { path: PathBuf, source: ProcessError },
}

impl PackageError {
    /// What can be done about it.
    pub(super) fn hint(&self) -> &'static str {
        match self {
            Self::Index {
                source: ProcessError::Failed { stderr, .. },
            } if stderr.contains("NO_PUBKEY") => {
                "the keys of Debian 13 are missing: `apt-get install --only-upgrade debian-archive-keyring`"
            }
            _ => "give setup a release of gVisor with `--runsc FILE|DIR|TARBALL`",
        }
    }
}

impl Candidate {
    /// The runsc of Debian 13, from the host's own mirror.
    ///
    /// # Errors
    /// [`ProvisionError::Package`], and those of examining it.
    pub fn debian(
        state_dir: &Path,
        sources: &Sources,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Self, ProvisionError> {
        let work = workplace(state_dir)?;
        let (binary, package) = fetch(work.path(), sources, progress)
            .map_err(|source| ProvisionError::Package { source })?;
        set::copy(&binary, &binary, &set_in(&work))?;
        Self::examine(work, package)
    }
}

/// Fetches and unpacks the package below `shop`; gives the binary, and what to call the package.
fn fetch(
    shop: &Path,
    sources: &Sources,
    progress: &mut dyn FnMut(&str),
) -> Result<(PathBuf, String), PackageError> {
    prepare(shop)?;
    update(shop, sources, progress)?;
    progress("downloading the package `runsc`");
    let mut command = apt::in_workshop(shop, "env", sources);
    command.args(["-C", &format!("{WORKSHOP}/packages"), "apt-get"]);
    command.args(["-q", "-c", "/mnt/apt.conf", "download", "runsc"]);
    process::run_while_we_live(&mut command).map_err(|source| PackageError::Download { source })?;
    let downloaded =
        place::entries(&shop.join("packages")).map_err(|source| PackageError::Place { source })?;
    let package = downloaded
        .into_iter()
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .ok_or(PackageError::Missing)?;
    unpack(shop, &package)
}

/// Lays out apt's directories, as [`CONFIGURATION`] names them.
fn prepare(shop: &Path) -> Result<(), PackageError> {
    let placed = |source| PackageError::Place { source };
    let printed = process::run(process::program("dpkg").arg("--print-architecture"))
        .map_err(|source| PackageError::Architecture { source })?;
    let architecture = printed.stdout.trim();
    let configuration = format!(
        "{CONFIGURATION}APT::Architecture \"{architecture}\";\nAPT::Architectures \"{architecture}\";\n"
    );
    place::write(&shop.join("apt.conf"), configuration.as_bytes(), 0o644).map_err(placed)?;
    // No package is installed, as far as this apt knows: nothing depends on the host's state.
    place::write(&shop.join("status"), b"", 0o644).map_err(placed)?;
    for directory in FOR_APT {
        let path = shop.join(directory);
        open_way(shop, &path).map_err(|source| PackageError::Give { path, source })?;
    }
    Ok(())
}

/// Makes a directory that `_apt` can reach and write to. Where there is no such user, apt works as root.
fn open_way(shop: &Path, path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    for part in path.ancestors().take_while(|part| part.starts_with(shop)) {
        fs::set_permissions(part, Permissions::from_mode(0o755))?;
    }
    match User::from_name("_apt")? {
        Some(user) => std::os::unix::fs::chown(path, Some(user.uid.as_raw()), None),
        None => Ok(()),
    }
}

/// Fetches the index from the first mirror that has one which Debian has signed.
fn update(
    shop: &Path,
    sources: &Sources,
    progress: &mut dyn FnMut(&str),
) -> Result<(), PackageError> {
    let mut failure = PackageError::NoMirror;
    for mirror in &sources.mirrors {
        progress(&format!(
            "fetching the package index of `{SUITE}` from {mirror}"
        ));
        let keyring = sources.keyring.display();
        let line = format!("deb [signed-by={keyring}] {mirror} {SUITE} main\n");
        place::write(&shop.join("sources.list"), line.as_bytes(), 0o644)
            .map_err(|source| PackageError::Place { source })?;
        let mut command = apt::in_workshop(shop, "apt-get", sources);
        // Without --error-on, a failed download or signature is a warning, and the status 0.
        command.args(["-q", "-c", "/mnt/apt.conf", "update", "--error-on=any"]);
        match process::run_while_we_live(&mut command) {
            Ok(_) => return Ok(()),
            Err(source) => failure = PackageError::Index { source },
        }
    }
    Err(failure)
}

fn unpack(shop: &Path, package: &Path) -> Result<(PathBuf, String), PackageError> {
    let failed = |source| PackageError::Unpack {
        path: package.to_owned(),
        source,
    };
    let directory = shop.join("unpacked");
    let mut command = process::program("dpkg-deb");
    command.arg("--extract").arg(package).arg(&directory);
    process::run_while_we_live(&mut command).map_err(failed)?;
    let mut command = process::program("dpkg-deb");
    command.arg("--field").arg(package).arg("Version");
    let version = process::run(&mut command).map_err(failed)?;
    let name = format!("Debian's package runsc {} ({SUITE})", version.stdout.trim());
    Ok((directory.join("usr/bin/runsc"), name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apt_is_pointed_at_the_workshop_and_at_nothing_of_the_system() {
        for line in CONFIGURATION
            .lines()
            .filter(|line| line.starts_with("Dir::"))
        {
            let value = line.split('"').nth(1).unwrap();
            let ours = value.starts_with(&format!("{WORKSHOP}/"));
            assert!(ours || value.is_empty() || value == "/dev/null", "{line}");
        }
    }
}
