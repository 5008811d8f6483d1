//! Where runsc comes from, and whether the one that is installed is still the one that was examined.
//!
//! A runsc is a set of files: the binary itself and, in releases since 2026, helpers in `gvisor-bin/`
//! beside it. The set is copied, hashed and examined as a [`Candidate`], and only then installed:
//!
//! ```text
//! <state>/runsc/IDENTITY/runsc           the set, named after the SHA-256 of its list of files
//! <state>/runsc/IDENTITY/gvisor-bin/…
//! <state>/runsc/current.json             which set is in use, and the SHA-256 of its files
//! <state>/digests/IDENTITY               that they have been hashed, see `sys::digest`
//! ```

pub mod package;
mod set;

use crate::runsc::release;
use crate::sys::digest::{Digest, DigestError};
use crate::sys::place::{self, PlaceError};
use crate::sys::process::{self, ProcessError};
use jiff::civil::Date;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// The binary's name in a set.
const RUNSC: &str = "runsc";

/// The feature that each complaint of runsc means the absence of.
///
/// Systrap, since 2023, is what makes gVisor quick without KVM. `--oci-seccomp` is what makes it heed
/// our seccomp profile at all.
const COMPLAINTS: [(&str, &str); 2] = [
    ("unknown platform: systrap", "the systrap platform"),
    ("not defined: -oci-seccomp", "the flag `--oci-seccomp`"),
];

/// How long a runsc may take to answer what it is. It takes 20 ms.
const PATIENCE: Duration = Duration::from_secs(20);

/// How to get a current release. Debian's archive carries that of 2024.
pub const CURRENT_RELEASE: &str = "download and check `gvisor.tar.bz2` as <https://gvisor.dev/docs/user_guide/install/#install-latest> says, then `tako-vm setup --runsc gvisor.tar.bz2`";

/// Why there is no runsc to use.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
pub enum ProvisionError {
    #[error("no runsc is installed: run `tako-vm setup`")]
    NotInstalled,
    #[error("cannot trust the installed runsc")]
    Untrusted { source: PlaceError },
    #[error("the record `{}` cannot be understood: run `tako-vm setup`", path.display())]
    Record {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("cannot hash runsc")]
    Hash { source: DigestError },
    #[error("the installed runsc is damaged (`{}`): run `tako-vm setup`", path.display())]
    Damaged { path: PathBuf },
    #[error("cannot read `{}`", path.display())]
    Given { path: PathBuf, source: io::Error },
    #[error("there is no file `runsc` in `{}`", path.display())]
    NoRunsc { path: PathBuf },
    #[error("`{}` is neither a plain file nor a directory", path.display())]
    Link { path: PathBuf },
    #[error("cannot unpack `{}`", path.display())]
    Unpack { path: PathBuf, source: ProcessError },
    #[error("cannot copy `{}`", path.display())]
    Copy { path: PathBuf, source: io::Error },
    #[error("cannot place runsc")]
    Place { source: PlaceError },
    #[error("{origin} does not run")]
    Start {
        origin: String,
        source: ProcessError,
    },
    #[error("{origin} (release {version}) is too old: it lacks {lacks}")]
    TooOld {
        origin: String,
        version: String,
        lacks: &'static str,
    },
    #[error(
        "{origin} is release {version}, and `runsc_minimum_release` of the configuration asks for {} or newer",
        minimum.strftime("%Y%m%d")
    )]
    BelowMinimum {
        origin: String,
        version: String,
        minimum: Date,
    },
    #[error("{origin} (release {version}) does not accept the flags that Tako VM needs")]
    Flags {
        origin: String,
        version: String,
        source: Box<ProcessError>,
    },
    #[error("cannot fetch Debian's runsc package")]
    Package { source: package::PackageError },
}

impl ProvisionError {
    /// What can be done about it, where the message does not say it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::TooOld { .. } | Self::Flags { .. } | Self::Start { .. } => Some(
                "without `--runsc`, `tako-vm setup` fetches the package of Debian 13, which is recent enough; or give it a current release of gVisor with `--runsc`",
            ),
            Self::BelowMinimum { .. } => Some(CURRENT_RELEASE),
            Self::NoRunsc { .. } => Some(
                "a release of gVisor holds `runsc` and the directory `gvisor-bin` side by side",
            ),
            Self::Package { source } => Some(source.hint()),
            _ => None,
        }
    }
}

/// An installed runsc that may be used: its files are those that were examined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// The binary, without symbolic links in the path.
    pub binary: PathBuf,
    /// SHA-256 over the list of the set's files, in hexadecimal digits.
    pub identity: String,
    /// What the binary calls its release.
    pub version: String,
}

impl Installed {
    /// Checks that it is at least as new as the configuration asks for. A release that does not say its
    /// day is not.
    ///
    /// # Errors
    /// [`ProvisionError::BelowMinimum`].
    pub fn require(&self, minimum: Option<Date>) -> Result<(), ProvisionError> {
        require("the installed runsc", &self.version, minimum)
    }
}

fn require(origin: &str, version: &str, minimum: Option<Date>) -> Result<(), ProvisionError> {
    match minimum {
        Some(minimum) if release::day(version).is_none_or(|day| day < minimum) => {
            Err(ProvisionError::BelowMinimum {
                origin: origin.to_owned(),
                version: version.to_owned(),
                minimum,
            })
        }
        _ => Ok(()),
    }
}

/// What `current.json` says.
#[derive(Debug, Serialize, Deserialize)]
struct Current {
    identity: Digest,
    version: String,
    files: Vec<Member>,
    source: String,
}

/// One file of a set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Member {
    /// Relative to the set's directory.
    path: String,
    sha256: Digest,
}

/// The SHA-256 over the lines `path NUL sha256 LF` of the files, which are sorted by path.
fn identity(files: &[Member]) -> Digest {
    let line = |file: &Member| format!("{}\0{}\n", file.path, file.sha256);
    let list: String = files.iter().map(line).collect();
    Digest::of(list.as_bytes())
}

fn home(state_dir: &Path) -> PathBuf {
    state_dir.join("runsc")
}

fn memory(state_dir: &Path, identity: Digest) -> PathBuf {
    state_dir.join("digests").join(identity.to_string())
}

/// Where the record of the installed set is.
pub fn record_path(state_dir: &Path) -> PathBuf {
    home(state_dir).join("current.json")
}

/// The runsc installed in a state directory, checked for use: root alone can change it, and the set is
/// complete and has the digests that it was installed with.
///
/// # Errors
/// [`ProvisionError`], with the command that mends it where there is one.
pub fn installed(state_dir: &Path) -> Result<Installed, ProvisionError> {
    let record = record_path(state_dir);
    if !record.exists() {
        return Err(ProvisionError::NotInstalled);
    }
    let untrusted = |source| ProvisionError::Untrusted { source };
    let bytes = place::trusted(&record)
        .and_then(|path| place::read(&path))
        .map_err(untrusted)?;
    let current: Current =
        serde_json::from_slice(&bytes).map_err(|source| ProvisionError::Record {
            path: record,
            source,
        })?;
    let directory = home(state_dir).join(current.identity.to_string());
    if !directory.exists() {
        return Err(ProvisionError::Damaged { path: directory });
    }
    let directory = place::trusted(&directory).map_err(untrusted)?;
    let found = set::members(&directory, Some(&memory(state_dir, current.identity)))?;
    if identity(&found) != current.identity {
        return Err(ProvisionError::Damaged {
            path: first_difference(&directory, &found, &current.files),
        });
    }
    Ok(Installed {
        binary: directory.join(RUNSC),
        identity: current.identity.to_string(),
        version: current.version,
    })
}

/// A copy of an installed runsc in an empty directory: the very files, hashed again there.
///
/// # Errors
/// [`ProvisionError`] when it cannot be copied, or the copy is another.
pub fn copied(installed: &Installed, to: &Path) -> Result<Installed, ProvisionError> {
    set::copy(&installed.binary, &installed.binary, to)?;
    let found = set::members(to, None)?;
    if identity(&found).to_string() != installed.identity {
        return Err(ProvisionError::Damaged {
            path: to.to_owned(),
        });
    }
    Ok(Installed {
        binary: to.join(RUNSC),
        ..installed.clone()
    })
}

/// The first file that is not as recorded, to be named in the message.
fn first_difference(directory: &Path, found: &[Member], recorded: &[Member]) -> PathBuf {
    let changed = recorded.iter().find(|file| !found.contains(file));
    let extra = found.iter().find(|file| !recorded.contains(file));
    match changed.or(extra) {
        Some(file) => directory.join(&file.path),
        None => directory.to_owned(),
    }
}

/// A runsc that has been copied into the state directory and examined, but not installed yet. It
/// vanishes with the value.
#[derive(Debug)]
pub struct Candidate {
    work: TempDir,
    files: Vec<Member>,
    version: String,
    origin: String,
}

impl Candidate {
    /// A runsc that the administrator points at: a binary, a directory with `runsc` and `gvisor-bin`,
    /// or a tar file of such a directory.
    ///
    /// # Errors
    /// [`ProvisionError`].
    pub fn given(state_dir: &Path, path: &Path) -> Result<Self, ProvisionError> {
        let work = workplace(state_dir)?;
        let origin = format!("`{}`", path.display());
        if path.is_dir() {
            set::copy(path, &path.join(RUNSC), &set_in(&work))?;
        } else if set::is_tarball(path) {
            let unpacked = set::unpack(path, work.path())?;
            set::copy(path, &unpacked.join(RUNSC), &set_in(&work))?;
        } else {
            set::copy(path, path, &set_in(&work))?;
        }
        Self::examine(work, origin)
    }

    /// The runsc in the fixed search path ([`process::PATH`]), if there is one.
    ///
    /// # Errors
    /// [`ProvisionError`]; among others when others than root can change it.
    pub fn on_path(state_dir: &Path) -> Result<Option<Self>, ProvisionError> {
        let Some(found) = process::find(OsStr::new(RUNSC)) else {
            return Ok(None);
        };
        let path = place::trusted(Path::new(&found))
            .map_err(|source| ProvisionError::Untrusted { source })?;
        for helper in set::helpers_of(&path)? {
            place::trusted(&helper).map_err(|source| ProvisionError::Untrusted { source })?;
        }
        Self::given(state_dir, &path).map(Some)
    }

    fn examine(work: TempDir, origin: String) -> Result<Self, ProvisionError> {
        let binary = set_in(&work).join(RUNSC);
        let version = version(&binary, &origin)?;
        check_flags(&binary, &work, &origin, &version)?;
        Ok(Self {
            files: set::members(&set_in(&work), None)?,
            version,
            origin,
            work,
        })
    }

    /// The binary, at a place of its own, to be tried out.
    pub fn binary(&self) -> PathBuf {
        set_in(&self.work).join(RUNSC)
    }

    /// SHA-256 over the list of the set's files, in hexadecimal digits.
    pub fn identity(&self) -> String {
        identity(&self.files).to_string()
    }

    /// What the binary calls its release.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Where it came from.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Checks what [`Installed::require`] will check.
    ///
    /// # Errors
    /// [`ProvisionError::BelowMinimum`].
    pub fn require(&self, minimum: Option<Date>) -> Result<(), ProvisionError> {
        require(&self.origin, &self.version, minimum)
    }

    /// Makes this the installed runsc, and removes others that were.
    ///
    /// # Errors
    /// [`ProvisionError::Place`]; the one that was installed before is still installed then.
    pub fn install(self, state_dir: &Path) -> Result<Installed, ProvisionError> {
        let failed = |source| ProvisionError::Place { source };
        let identity = identity(&self.files);
        let directory = home(state_dir).join(identity.to_string());
        place::publish_directory(&set_in(&self.work), &directory).map_err(failed)?;
        let current = Current {
            identity,
            version: self.version,
            files: self.files,
            source: self.origin,
        };
        let record = record_path(state_dir);
        let text =
            serde_json::to_vec_pretty(&current).map_err(|source| ProvisionError::Record {
                path: record.clone(),
                source,
            })?;
        place::write(&record, &text, 0o444).map_err(failed)?;
        drop(self.work);
        remove_others(state_dir, identity).map_err(failed)?;
        installed(state_dir)
    }
}

fn workplace(state_dir: &Path) -> Result<TempDir, ProvisionError> {
    place::partial_directory(&home(state_dir)).map_err(|source| ProvisionError::Place { source })
}

/// Where in its workplace a candidate lies, apart from what it was fetched with.
fn set_in(work: &TempDir) -> PathBuf {
    work.path().join("set")
}

/// The release, from the first line of `runsc --version`: `runsc version RELEASE`.
fn version(binary: &Path, origin: &str) -> Result<String, ProvisionError> {
    let printed = process::run_within(process::program(binary).arg("--version"), PATIENCE);
    let printed = printed.map_err(|source| ProvisionError::Start {
        origin: origin.to_owned(),
        source,
    })?;
    let line = printed.stdout.lines().next().unwrap_or_default();
    Ok(line.trim_start_matches("runsc version ").trim().to_owned())
}

/// Lets runsc parse the flags that decide, with a command that starts nothing.
fn check_flags(
    binary: &Path,
    work: &TempDir,
    origin: &str,
    version: &str,
) -> Result<(), ProvisionError> {
    let mut command = process::program(binary);
    command.arg("--root").arg(work.path().join("root"));
    command.args(["--platform=systrap", "--oci-seccomp", "list"]);
    let Err(source) = process::run_within(&mut command, PATIENCE) else {
        return Ok(());
    };
    let said = match &source {
        ProcessError::Failed { stdout, stderr, .. } => format!("{stdout}{stderr}"),
        ProcessError::Start { .. } | ProcessError::TooSlow { .. } => String::new(),
    };
    let (origin, version) = (origin.to_owned(), version.to_owned());
    let complaint = COMPLAINTS.iter().find(|(text, _)| said.contains(text));
    Err(match complaint {
        Some((_, lacks)) => ProvisionError::TooOld {
            origin,
            version,
            lacks,
        },
        None => ProvisionError::Flags {
            origin,
            version,
            source: Box::new(source),
        },
    })
}

fn remove_others(state_dir: &Path, kept: Digest) -> Result<(), PlaceError> {
    for path in place::entries(&home(state_dir))? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if let Some(other) = name.parse::<Digest>().ok().filter(|other| *other != kept) {
            place::remove(&memory(state_dir, other))?;
            place::remove(&path)?;
        }
    }
    Ok(())
}

/// Removes what killed processes left unfinished. For the holder of the state directory's lock.
///
/// # Errors
/// [`ProvisionError::Place`].
pub fn sweep(state_dir: &Path) -> Result<(), ProvisionError> {
    place::sweep(&home(state_dir)).map_err(|source| ProvisionError::Place { source })
}

/// What [`sweep`] would remove, and what is in the making now.
///
/// # Errors
/// [`ProvisionError::Place`].
pub fn unfinished(state_dir: &Path) -> Result<Vec<PathBuf>, ProvisionError> {
    place::unfinished(&home(state_dir)).map_err(|source| ProvisionError::Place { source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    /// A program that answers as a runsc with all features does.
    const GOOD: &str =
        "#!/bin/sh\n[ \"$1\" != --version ] || echo 'runsc version release-20260914.0'\n";

    /// One that refuses the platform, in the words of the release of December 2022.
    const OLD: &str = "#!/bin/sh\nif [ \"$1\" = --version ]; then echo 'runsc version 0.0~20221219.0'; else echo 'unknown platform: systrap' >&2; exit 128; fi\n";

    fn release(directory: &Path, script: &str) -> PathBuf {
        let release = directory.join("release");
        fs::create_dir_all(release.join("gvisor-bin")).unwrap();
        for (name, text) in [
            ("runsc", script),
            ("gvisor-bin/gvisor_sentry", "sentry"),
            ("containerd-shim-runsc-v1", "not ours"),
        ] {
            fs::write(release.join(name), text).unwrap();
            let executable = Permissions::from_mode(0o755);
            fs::set_permissions(release.join(name), executable).unwrap();
        }
        release
    }

    fn tarball(release: &Path, name: &str) -> PathBuf {
        let path = release.with_file_name(name);
        let mut command = process::program("tar");
        command
            .arg("-caf")
            .arg(&path)
            .arg("-C")
            .arg(release)
            .arg(".");
        process::run(&mut command).unwrap();
        path
    }

    #[test]
    #[ignore = "needs root"]
    fn a_directory_and_its_tarball_are_the_same_set_and_leave_no_candidate_behind() {
        let base = tempfile::tempdir().unwrap();
        let state = base.path().join("state");
        let release = release(base.path(), GOOD);
        let candidate = Candidate::given(&state, &release).unwrap();
        assert_eq!(candidate.version(), "release-20260914.0");
        let installed_set = candidate.install(&state).unwrap();
        assert_eq!(installed(&state).unwrap(), installed_set);
        for name in [
            "gvisor.tar",
            "gvisor.tar.gz",
            "gvisor.tar.bz2",
            "gvisor.tar.zst",
        ] {
            let candidate = Candidate::given(&state, &tarball(&release, name)).unwrap();
            assert_eq!(candidate.identity(), installed_set.identity, "{name}");
        }
        let entries = place::entries(&home(&state)).unwrap();
        let set = home(&state).join(&installed_set.identity);
        assert_eq!(entries, [set.clone(), record_path(&state)]);
        assert!(set.join("gvisor-bin/gvisor_sentry").exists());
        assert!(!set.join("containerd-shim-runsc-v1").exists());
    }

    #[test]
    #[ignore = "needs root"]
    fn a_changed_missing_or_added_file_is_found() {
        let base = tempfile::tempdir().unwrap();
        let state = base.path().join("state");
        let release = release(base.path(), GOOD);
        let install = || Candidate::given(&state, &release).unwrap().install(&state);
        let good = install().unwrap();
        let sentry = good
            .binary
            .with_file_name("gvisor-bin")
            .join("gvisor_sentry");

        let damages: [&dyn Fn() -> io::Result<()>; 3] = [
            &|| fs::write(&sentry, "Sentry"),
            &|| fs::remove_file(&sentry),
            &|| fs::write(sentry.with_file_name("extra"), ""),
        ];
        for damage in damages {
            damage().unwrap();
            let error = installed(&state).unwrap_err();
            assert!(matches!(error, ProvisionError::Damaged { .. }), "{error}");
            assert_eq!(install().unwrap(), good);
        }
    }

    #[test]
    fn a_release_without_the_platform_is_refused_by_name() {
        let base = tempfile::tempdir().unwrap();
        let state = base.path().join("state");
        let release = release(base.path(), OLD);
        let error = Candidate::given(&state, &release.join("runsc")).unwrap_err();
        let expected = "(release 0.0~20221219.0) is too old: it lacks the systrap platform";
        assert!(error.to_string().ends_with(expected), "{error}");
        assert!(error.hint().unwrap().contains("Debian 13"));
        assert!(place::entries(&home(&state)).unwrap().is_empty());
    }

    #[test]
    fn an_older_release_than_the_minimum_and_one_without_a_day_are_refused() {
        let minimum = Some(jiff::civil::date(2026, 8, 17));
        for version in ["0.0~20240729.0", "release-20260810.0", "VERSION_MISSING"] {
            let error = require("it", version, minimum).unwrap_err();
            assert!(
                error.to_string().contains("asks for 20260817 or newer"),
                "{error}"
            );
            assert!(error.hint().unwrap().contains("--runsc"));
            require("it", version, None).unwrap();
        }
        require("it", "release-20260817.0", minimum).unwrap();
        require("it", "release-20260914.0", minimum).unwrap();
    }

    #[test]
    fn links_and_sets_without_runsc_are_refused() {
        let base = tempfile::tempdir().unwrap();
        let state = base.path().join("state");
        let release = release(base.path(), GOOD);
        let link = release.join("gvisor-bin/link");
        std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
        for path in [&release, &tarball(&release, "symbolic.tar")] {
            let error = Candidate::given(&state, path).unwrap_err();
            assert!(matches!(error, ProvisionError::Link { .. }), "{error}");
        }
        fs::remove_file(&link).unwrap();
        fs::hard_link(release.join("runsc"), &link).unwrap();
        let error = Candidate::given(&state, &tarball(&release, "hard.tar")).unwrap_err();
        assert!(matches!(error, ProvisionError::Link { .. }), "{error}");

        fs::remove_file(&link).unwrap();
        fs::remove_file(release.join("runsc")).unwrap();
        for path in [&release, &tarball(&release, "empty.tar")] {
            let error = Candidate::given(&state, path).unwrap_err();
            assert!(matches!(error, ProvisionError::NoRunsc { .. }), "{error}");
        }
    }
}
