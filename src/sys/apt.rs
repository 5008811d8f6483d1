//! The apt of the host: where it downloads from, and a place where it can work for us without
//! touching anything of the system's.

use crate::sys::place::{self, PlaceError};
use crate::sys::process::{self, ProcessError};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the directory given to [`in_workshop`] appears to the program run in it.
pub const WORKSHOP: &str = "/mnt";

/// The signing keys of Debian's archive, under the names they had and have (package
/// `debian-archive-keyring`).
const KEYRINGS: [&str; 2] = [
    "/usr/share/keyrings/debian-archive-keyring.pgp",
    "/usr/share/keyrings/debian-archive-keyring.gpg",
];

/// Names under which a Debian mirror offers releases, by which one is told from other repositories.
const RELEASES: [&str; 9] = [
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "sid",
    "oldstable",
    "stable",
    "testing",
    "unstable",
];

/// What is run in the workshop's mount namespace: `$1` is the directory, the rest the command.
const ENTER: &str = r#"umask 022; mount --bind -- "$1" /mnt && cd /mnt && shift && exec "$@""#;

/// Why there is nothing to download from.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
pub enum AptError {
    #[error("cannot ask apt for the system's package sources")]
    Ask { source: ProcessError },
    #[error("the system's package sources name no mirror of Debian")]
    NoMirror,
    #[error("cannot install `{package}`")]
    Install {
        package: &'static str,
        source: ProcessError,
    },
    #[error("cannot use `{POSTGRESQL}`")]
    Configure { source: PlaceError },
    #[error("there is no keyring of Debian's archive (`{}`)", KEYRINGS.join("`, `"))]
    NoKeyring,
}

/// What Debian does when a version of PostgreSQL is installed.
const POSTGRESQL: &str = "/etc/postgresql-common/createcluster.conf";

/// Keeps Debian from making a database and starting it, which it does otherwise.
const NO_CLUSTER: &str = "\ncreate_main_cluster = false\n";

/// Installs PostgreSQL's programs. No database is made and none started; the configuration is as it was.
///
/// # Errors
/// [`AptError::Install`] or [`AptError::Configure`].
pub fn install_postgresql(http_proxy: Option<&str>) -> Result<(), AptError> {
    install("postgresql-common", http_proxy)?;
    let (path, failed) = (Path::new(POSTGRESQL), |source| AptError::Configure {
        source,
    });
    let configured = place::read(path).map_err(failed)?;
    let without = [&configured, NO_CLUSTER.as_bytes()].concat();
    place::write(path, &without, 0o644).map_err(failed)?;
    let installed = install("postgresql", http_proxy);
    place::write(path, &configured, 0o644).map_err(failed)?;
    installed
}

fn install(package: &'static str, http_proxy: Option<&str>) -> Result<(), AptError> {
    let run = |arguments: &[&str]| {
        let mut command = process::program("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command.envs(http_proxy.map(|proxy| ("http_proxy", proxy)));
        process::run_while_we_live(command.args(arguments))
    };
    // The lists may be old, or not be there; if they cannot be renewed, the next one says what is missing.
    drop(run(&["--quiet", "update"]));
    let arguments = [
        "--quiet",
        "--yes",
        "--no-install-recommends",
        "install",
        package,
    ];
    run(&arguments)
        .map(drop)
        .map_err(|source| AptError::Install { package, source })
}

/// Where the host downloads Debian's packages from.
#[derive(Debug, Clone)]
pub struct Sources {
    /// Base addresses of the archive, the most likely first.
    pub mirrors: Vec<String>,
    /// Base addresses of the security archive.
    pub security: Vec<String>,
    /// The keys that the archive is signed with.
    pub keyring: PathBuf,
    /// The proxy to reach them through, where there is one.
    pub http_proxy: Option<String>,
}

impl Sources {
    /// Those of the system, in whatever form its administrator wrote them down; nothing is
    /// downloaded to find out.
    ///
    /// `http_proxy` is that of the environment; one in apt's own configuration takes precedence.
    ///
    /// # Errors
    /// [`AptError`]; on a system that is not a Debian above all [`AptError::NoMirror`].
    pub fn of_system(http_proxy: Option<String>) -> Result<Self, AptError> {
        let keyring = KEYRINGS.iter().map(Path::new).find(|path| path.is_file());
        let keyring = keyring.ok_or(AptError::NoKeyring)?.to_owned();
        // `apt-get indextargets` would be the documented way, and prints nothing where the lists
        // have been purged, as in most container images.
        let printed = process::run(
            process::program("apt-get")
                .env("LC_ALL", "C")
                .args(["--print-uris", "update"]),
        )
        .map_err(|source| AptError::Ask { source })?;
        let (mirrors, security) = mirrors(&printed.stdout);
        if mirrors.is_empty() {
            return Err(AptError::NoMirror);
        }
        Ok(Self {
            mirrors,
            security,
            keyring,
            http_proxy: configured_proxy()?.or(http_proxy),
        })
    }

    /// The lines of a sources.list for the release `suite` and its updates, pinned to Debian's keys.
    pub fn lines(&self, suite: &str, mirror: &str, security: &str) -> [String; 3] {
        let keyring = self.keyring.display();
        [
            (mirror, suite.to_owned()),
            (mirror, format!("{suite}-updates")),
            (security, format!("{suite}-security")),
        ]
        .map(|(base, suite)| format!("deb [signed-by={keyring}] {base} {suite} main"))
    }
}

/// Bases of the archive and of the security archive, in what `apt-get --print-uris update` prints.
///
/// Another repository may use Debian's names for its own releases. It is found out later, since it
/// is not signed with Debian's keys.
fn mirrors(uris: &str) -> (Vec<String>, Vec<String>) {
    let (mut main, mut security) = (Vec::new(), Vec::new());
    for (base, suite) in uris.lines().filter_map(release_file) {
        let (release, into) = match suite.strip_suffix("-security") {
            Some(release) => (release, &mut security),
            None => (suite, &mut main),
        };
        if RELEASES.contains(&release) && !into.iter().any(|known| known == base) {
            into.push(base.to_owned());
        }
    }
    (main, security)
}

/// Base address and suite of a line `'BASE/dists/SUITE/InRelease' FILE SIZE`.
fn release_file(line: &str) -> Option<(&str, &str)> {
    let address = line.strip_prefix('\'')?.split('\'').next()?;
    let (base, suite) = address.strip_suffix("/InRelease")?.split_once("/dists/")?;
    // These end up in a line of a sources.list, where blanks and brackets have a meaning.
    let plain = |text: &str| !text.contains(|c: char| c.is_whitespace() || "[]".contains(c));
    (plain(base) && plain(suite)).then_some((base, suite))
}

fn configured_proxy() -> Result<Option<String>, AptError> {
    let mut command = process::program("apt-config");
    command.args(["shell", "PROXY", "Acquire::http::Proxy"]);
    let printed = process::run(&mut command).map_err(|source| AptError::Ask { source })?;
    Ok(shell_value(&printed.stdout))
}

/// The value in `PROXY='…'`, which is what `apt-config shell` prints; nothing where it is not set.
fn shell_value(text: &str) -> Option<String> {
    let value = text.trim().strip_prefix("PROXY='")?.strip_suffix('\'')?;
    (!value.is_empty()).then(|| value.to_owned())
}

/// A program that sees `directory` as [`WORKSHOP`] and starts there, in a mount namespace of its own.
///
/// The state directory is closed to everybody but root (0700), and apt downloads as the unprivileged
/// user `_apt`, who could not reach a directory below it by its own path: apt would then go on as
/// root. The paths are also the same for every state directory, odd characters in its name included.
pub fn in_workshop(directory: &Path, program: &str, sources: &Sources) -> Command {
    let mut command = process::program("unshare");
    command
        .args([
            "--mount",
            "--propagation",
            "private",
            "--",
            "sh",
            "-c",
            ENTER,
            "sh",
        ])
        .arg(directory)
        .arg(program)
        .env("LC_ALL", "C.UTF-8")
        .env("HOME", "/root")
        // What a killed tool leaves goes with the workshop.
        .env("TMPDIR", WORKSHOP);
    if let Some(proxy) = &sources.http_proxy {
        command.env("http_proxy", proxy);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_of_debian_are_told_from_other_repositories() {
        let uris = "\
'http://mirror.example/debian/dists/bookworm/InRelease' a 0 \n\
'http://mirror.example/debian/dists/bookworm-updates/InRelease' b 0 \n\
'http://mirror.example/debian-security/dists/bookworm-security/InRelease' c 0 \n\
'https://other.example/dists/nodistro/InRelease' d 0 \n\
'http://mirror.example/debian/dists/bookworm/main/binary-amd64/Packages.xz' e 0 \n\
'http://second.example/debian/dists/stable/InRelease' f 0 \n\
'http://mirror.example/debian/dists/trixie/InRelease' g 0 \n\
'cdrom:[Debian 12]/dists/bookworm/InRelease' h 0 \n";
        let (main, security) = mirrors(uris);
        assert_eq!(
            main,
            [
                "http://mirror.example/debian",
                "http://second.example/debian"
            ]
        );
        assert_eq!(security, ["http://mirror.example/debian-security"]);
    }

    #[test]
    fn a_proxy_that_is_not_set_is_none() {
        assert_eq!(shell_value(""), None);
        assert_eq!(shell_value("PROXY=''\n"), None);
        let proxy = Some("http://proxy.example:3128".to_owned());
        assert_eq!(shell_value("PROXY='http://proxy.example:3128'\n"), proxy);
    }

    #[test]
    #[ignore = "needs root"]
    fn the_unprivileged_user_of_apt_reaches_the_workshop_and_not_the_directory() {
        let base = tempfile::tempdir().unwrap();
        let closed = crate::sys::place::partial_directory(base.path()).unwrap();
        let shop = closed.path().join("with blank");
        std::fs::create_dir(&shop).unwrap();
        std::fs::write(shop.join("file"), "seen").unwrap();
        let sources = Sources {
            mirrors: Vec::new(),
            security: Vec::new(),
            keyring: PathBuf::new(),
            http_proxy: None,
        };
        let mut command = in_workshop(&shop, "setpriv", &sources);
        command.args(["--reuid=_apt", "--clear-groups", "cat", "/mnt/file"]);
        assert_eq!(process::run(&mut command).unwrap().stdout, "seen");
        let mut outside = process::program("setpriv");
        outside
            .args(["--reuid=_apt", "--clear-groups", "cat"])
            .arg(shop.join("file"));
        process::run(&mut outside).unwrap_err();
    }
}
