//! Configuration: of what runs with privileges from one file of root's, checked in whole; of the
//! [`Server`] from the same, or from one of its user's.
//!
//! The keys are those of Tako VM's `tako_vm.yaml`, and `supervisor`, `pool` and some of the server's. An
//! unknown key is an error, and so is one that would weaken the isolation.

mod artifact_store;
mod server;
mod service;

use crate::job::{Limits, Maxima, parse_bytes};
use crate::runc;
use jiff::civil::Date;
use serde::Deserialize;
use serde_yaml_ng::{Mapping, Value};
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use artifact_store::{ArtifactStore, artifact_store_key};
pub use server::{
    DATA_DIR_VARIABLE, DATABASE_URL_VARIABLE, DEFAULT_DATA_DIR, DatabaseUrl, FILE_VARIABLE,
    Overrides, RUNTIME_DIRECTORY_VARIABLE, Server, handed_down, runtime_directory,
};
pub use service::{Pool, Profile, Supervisor};

/// Where the configuration lies unless another file is named.
pub const DEFAULT_FILE: &str = "/etc/tako_vm/config.yaml";

/// Where images, runsc and sandboxes lie unless another directory is named.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/tako-vm";

/// The variable that names another state directory.
pub const STATE_DIR_VARIABLE: &str = "TAKO_VM_STATE_DIR";

/// Where the supervisor listens unless another socket is named.
pub const DEFAULT_SOCKET: &str = "/run/tako-vm/supervisor.sock";

/// The variable that names another socket.
pub const SOCKET_VARIABLE: &str = "TAKO_VM_SUPERVISOR_SOCKET";

/// The executor image, unless another is named.
pub const DEFAULT_IMAGE: &str = "python";

/// The state directory that the environment names.
pub fn named_state_dir() -> Option<PathBuf> {
    std::env::var_os(STATE_DIR_VARIABLE).map(PathBuf::from)
}

/// The state directory that the environment names, or else [`DEFAULT_STATE_DIR`].
pub fn state_dir() -> PathBuf {
    named_state_dir().unwrap_or_else(|| DEFAULT_STATE_DIR.into())
}

/// The supervisor's socket that the environment names. An empty variable names none.
pub fn named_socket() -> Option<PathBuf> {
    let named = std::env::var_os(SOCKET_VARIABLE).filter(|path| !path.is_empty());
    named.map(PathBuf::from)
}

/// Why a configuration is not used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
pub enum ConfigError {
    #[error("cannot read the configuration `{}`", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the configuration `{}` or a directory above it can be changed by others than root: `chown root` and `chmod go-w` it", path.display())]
    NotRoots { path: PathBuf },
    #[error("the configuration `{}` does not parse", path.display())]
    Parse {
        path: PathBuf,
        source: serde_yaml_ng::Error,
    },
    #[error("`{key}` {problem}")]
    Key { key: &'static str, problem: String },
}

/// Whether root alone decides what is there. A sticky directory protects what lies in it.
fn is_roots(metadata: &Metadata) -> bool {
    let sticky = metadata.is_dir() && metadata.mode() & 0o1000 != 0;
    metadata.uid() == 0 && (sticky || metadata.mode() & 0o022 == 0)
}

fn problem(key: &'static str, problem: impl Into<String>) -> ConfigError {
    ConfigError::Key {
        key,
        problem: problem.into(),
    }
}

/// What stands between programs and the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SecurityMode {
    /// gVisor, or nothing is run.
    #[default]
    Strict,
    /// A container of this runtime: the host's kernel is shared.
    Permissive(runc::Kind),
}

/// The checked configuration.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Defaults and maxima of jobs.
    pub maxima: Maxima,
    /// What runs a program. Nothing but the configuration chooses it.
    pub security_mode: SecurityMode,
    /// A runsc of the operator's own, which `tako-vm setup` takes in place of another.
    pub runsc: Option<PathBuf>,
    /// The oldest release of runsc that may be used; `None` leaves it to the features.
    pub runsc_minimum_release: Option<Date>,
    /// How much the supervisor does at a time.
    pub supervisor: Supervisor,
    /// What the supervisor keeps ready.
    pub pool: Pool,
}

impl Config {
    /// Reads `file`, or [`DEFAULT_FILE`] if it exists, or takes the defaults.
    ///
    /// # Errors
    /// When the file cannot be read, is not root's alone, or has a key that is unknown, out of range,
    /// or would weaken the isolation.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        // Anything else that is wrong with it, such as a link that leads nowhere, is an error.
        let absent = |error: io::Error| error.kind() == io::ErrorKind::NotFound;
        if file.is_none() && path.symlink_metadata().is_err_and(absent) {
            return Ok(Self::default());
        }
        let failed = |source| ConfigError::Read {
            path: path.to_owned(),
            source,
        };
        let mut file = File::open(path).map_err(failed)?;
        // What was opened is what is checked and read, whatever the path names by then.
        let mut checked = vec![file.metadata().map_err(failed)?];
        for parent in path.canonicalize().map_err(failed)?.ancestors().skip(1) {
            checked.push(parent.metadata().map_err(failed)?);
        }
        if !checked.iter().all(is_roots) {
            return Err(ConfigError::NotRoots {
                path: path.to_owned(),
            });
        }
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed)?;
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let failed = |source| ConfigError::Parse {
            path: path.to_owned(),
            source,
        };
        let keys: Option<Mapping> = serde_yaml_ng::from_str(text).map_err(failed)?;
        let mut keys = keys.unwrap_or_default();
        // One file may serve both, and running a sandbox has no use for these.
        for key in server::KEYS {
            keys.remove(key);
        }
        let file = Keys::deserialize(Value::Mapping(keys)).map_err(failed)?;
        file.check_controls()?;
        Ok(Self {
            security_mode: file.security_mode()?,
            maxima: file.maxima()?,
            runsc_minimum_release: file.runsc_minimum_release()?,
            supervisor: file.supervisor.check()?,
            pool: file.pool.check()?,
            runsc: file.runsc_path,
        })
    }
}

/// The file as it is written, without the keys of the server.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Keys {
    runsc_path: Option<PathBuf>,
    runsc_minimum_release: Option<Value>,
    security_mode: Option<String>,
    container_runtime: Option<String>,
    enable_seccomp: Option<bool>,
    enable_cap_restrictions: Option<bool>,
    seccomp_profile_path: Option<PathBuf>,
    default_timeout: Option<u64>,
    max_timeout: Option<u64>,
    default_startup_timeout: Option<u64>,
    max_startup_timeout: Option<u64>,
    max_stdout_bytes: Option<u64>,
    max_stderr_bytes: Option<u64>,
    max_artifact_bytes: Option<u64>,
    max_total_artifacts_bytes: Option<u64>,
    container_limits: ContainerLimits,
    supervisor: service::SupervisorKeys,
    pool: service::PoolKeys,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ContainerLimits {
    nofile_soft: Option<u64>,
    nofile_hard: Option<u64>,
    nproc_soft: Option<u64>,
    nproc_hard: Option<u64>,
    fsize: Option<u64>,
    tmpfs_size: Option<String>,
    pids_limit: Option<u64>,
}

impl Keys {
    /// Strict unless permissive mode is asked for, with the runtime that it means: nothing becomes
    /// weaker by leaving something out.
    fn security_mode(&self) -> Result<SecurityMode, ConfigError> {
        let runtime = self.container_runtime.as_deref().unwrap_or("runsc");
        let container = runc::Kind::named(runtime);
        if container.is_none() && runtime != "runsc" {
            let why = format!("is `{runtime}`: set it to `runsc`");
            return Err(problem("container_runtime", why));
        }
        match (self.security_mode.as_deref().unwrap_or("strict"), container) {
            ("strict", None) => Ok(SecurityMode::Strict),
            ("strict", Some(_)) => {
                let why = format!(
                    "is `{runtime}`, whose containers share the host's kernel: in strict mode it is \
                     `runsc`, and `security_mode: permissive` is the only other"
                );
                Err(problem("container_runtime", why))
            }
            ("permissive", Some(kind)) => Ok(SecurityMode::Permissive(kind)),
            ("permissive", None) => {
                let why = "is `permissive`, and no weaker runtime is named: set `container_runtime` to \
                           `runc` or `crun`, or remove this key to run in gVisor";
                Err(problem("security_mode", why))
            }
            (other, _) => Err(problem(
                "security_mode",
                format!("is `{other}`: set it to `strict`"),
            )),
        }
    }

    /// Refuses what would switch a control off. Nothing here is switched off in silence.
    fn check_controls(&self) -> Result<(), ConfigError> {
        if self.enable_seccomp == Some(false) {
            return Err(problem(
                "enable_seccomp",
                "is false: the seccomp profile cannot be turned off",
            ));
        }
        if self.enable_cap_restrictions == Some(false) {
            let why = "is false: a program never gets capabilities";
            return Err(problem("enable_cap_restrictions", why));
        }
        if self.seccomp_profile_path.is_some() {
            let why = "names a profile of your own, which this version does not take: the built-in one \
                       is always in force";
            return Err(problem("seccomp_profile_path", why));
        }
        Ok(())
    }

    /// A release is named after its day. YAML takes eight digits without quotes for a number.
    fn runsc_minimum_release(&self) -> Result<Option<Date>, ConfigError> {
        let Some(value) = &self.runsc_minimum_release else {
            return Ok(None);
        };
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => String::new(),
        };
        let date = Date::strptime("%Y%m%d", &text).map_err(|_invalid| {
            let why = "is no release: give the day that it is named after, such as `20260817`";
            problem("runsc_minimum_release", why)
        })?;
        Ok(Some(date))
    }

    fn maxima(&self) -> Result<Maxima, ConfigError> {
        let mut maxima = Maxima::default();
        let seconds = |key, value, default, range| {
            in_range(key, value, default, range).map(Duration::from_secs)
        };
        let limits = &mut maxima.defaults;
        limits.execution = seconds("default_timeout", self.default_timeout, 30, (1, 3600))?;
        limits.startup = seconds(
            "default_startup_timeout",
            self.default_startup_timeout,
            120,
            (10, 600),
        )?;
        maxima.timeout = seconds("max_timeout", self.max_timeout, 300, (1, 86_400))?;
        maxima.startup_timeout = seconds(
            "max_startup_timeout",
            self.max_startup_timeout,
            600,
            (30, 1800),
        )?;
        let captured = (1 << 10, 100 << 20);
        limits.stdout_bytes = in_range(
            "max_stdout_bytes",
            self.max_stdout_bytes,
            limits.stdout_bytes,
            captured,
        )?;
        limits.stderr_bytes = in_range(
            "max_stderr_bytes",
            self.max_stderr_bytes,
            limits.stderr_bytes,
            captured,
        )?;
        limits.artifact_bytes = in_range(
            "max_artifact_bytes",
            self.max_artifact_bytes,
            limits.artifact_bytes,
            (1, 1 << 30),
        )?;
        limits.artifacts_total_bytes = in_range(
            "max_total_artifacts_bytes",
            self.max_total_artifacts_bytes,
            limits.artifacts_total_bytes,
            (1, 10 << 30),
        )?;
        self.container_limits.apply(limits)?;
        if limits.execution > maxima.timeout {
            return Err(problem("default_timeout", "exceeds `max_timeout`"));
        }
        if limits.startup > maxima.startup_timeout {
            return Err(problem(
                "default_startup_timeout",
                "exceeds `max_startup_timeout`",
            ));
        }
        Ok(maxima)
    }
}

impl ContainerLimits {
    /// A guest has one bound where the file has a soft and a hard one: the soft one, which is the
    /// lower, and which a program could otherwise raise.
    fn apply(&self, limits: &mut Limits) -> Result<(), ConfigError> {
        let files = (64, 65_536);
        let open_files = in_range("nofile_soft", self.nofile_soft, limits.open_files, files)?;
        if open_files > in_range("nofile_hard", self.nofile_hard, open_files, files)? {
            return Err(problem("nofile_soft", "exceeds `nofile_hard`"));
        }
        let processes = (10, 1000);
        let soft = in_range("nproc_soft", self.nproc_soft, limits.processes, processes)?;
        if soft > in_range("nproc_hard", self.nproc_hard, soft, processes)? {
            return Err(problem("nproc_soft", "exceeds `nproc_hard`"));
        }
        let pids = in_range("pids_limit", self.pids_limit, 100, processes)?;
        limits.open_files = open_files;
        limits.processes = soft.min(pids);
        limits.file_bytes = in_range("fsize", self.fsize, limits.file_bytes, (1 << 20, 1 << 30))?;
        if let Some(size) = &self.tmpfs_size {
            let bytes =
                parse_bytes(size).map_err(|error| problem("tmpfs_size", error.to_string()))?;
            limits.tmp_bytes = in_range("tmpfs_size", Some(bytes), 0, (10 << 20, 2 << 30))?;
        }
        Ok(())
    }
}

/// The value, or the default, between the two bounds.
fn in_range<T: TryFrom<u64> + Into<u64>>(
    key: &'static str,
    value: Option<u64>,
    default: T,
    (least, most): (u64, u64),
) -> Result<T, ConfigError> {
    let value = value.unwrap_or_else(|| default.into());
    match T::try_from(value) {
        Ok(checked) if (least..=most).contains(&value) => Ok(checked),
        _ => Err(problem(
            key,
            format!("is {value}: give between {least} and {most}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(super) fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("config.yaml")).map_err(|error| {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            [Some(error.to_string()), source]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join(": ")
        })
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        assert_eq!(parse("").unwrap().maxima.defaults, Limits::default());
        assert_eq!(
            parse("# nothing\n").unwrap().maxima.defaults,
            Limits::default()
        );
    }

    #[test]
    fn limits_are_taken_from_the_file() {
        let text = "default_timeout: 5\nmax_stdout_bytes: 2048\nserver_port: 8000\n\
                    container_limits: {nproc_soft: 20, nproc_hard: 30, tmpfs_size: 20m}";
        let limits = parse(text).unwrap().maxima.defaults;
        assert_eq!(limits.execution, Duration::from_secs(5));
        assert_eq!(
            (limits.stdout_bytes, limits.processes, limits.tmp_bytes),
            (2048, 20, 20 << 20)
        );
    }

    #[test]
    fn the_oldest_release_is_a_day_with_and_without_quotes() {
        let day = jiff::civil::date(2026, 8, 17);
        for text in ["20260817", "'20260817'"] {
            let config = parse(&format!("runsc_minimum_release: {text}")).unwrap();
            assert_eq!(config.runsc_minimum_release, Some(day), "{text}");
        }
        assert_eq!(parse("").unwrap().runsc_minimum_release, None);
        for text in ["20261317", "release-20260817.0", "2026", "[]", "true"] {
            let error = parse(&format!("runsc_minimum_release: {text}")).unwrap_err();
            assert!(
                error.starts_with("`runsc_minimum_release` is no release"),
                "{error}"
            );
        }
    }

    #[test]
    fn nothing_switches_a_control_off() {
        for key in [
            "security_mode: permissive",
            "security_mode: off",
            "container_runtime: runc",
            "container_runtime: crun",
            "container_runtime: docker",
            "{security_mode: strict, container_runtime: runc}",
            "{security_mode: permissive, container_runtime: runsc}",
            "{security_mode: permissive, container_runtime: docker}",
            "{security_mode: Permissive, container_runtime: runc}",
            "{security_mode: permissive, container_runtime: runc, enable_seccomp: false}",
            "enable_seccomp: false",
            "enable_cap_restrictions: false",
            "seccomp_profile_path: /tmp/allow-all.json",
        ] {
            assert!(parse(key).is_err(), "{key}");
        }
    }

    #[test]
    fn permissive_mode_takes_both_keys_and_strict_mode_none() {
        let mode = |text: &str| parse(text).unwrap().security_mode;
        for text in ["", "security_mode: strict", "container_runtime: runsc"] {
            assert_eq!(mode(text), SecurityMode::Strict, "{text}");
        }
        for (name, kind) in [("runc", runc::Kind::Runc), ("crun", runc::Kind::Crun)] {
            let text = format!("{{security_mode: permissive, container_runtime: {name}}}");
            assert_eq!(mode(&text), SecurityMode::Permissive(kind));
        }
    }

    #[test]
    fn unknown_keys_and_bad_values_are_named() {
        assert!(
            parse("max_timeot: 3")
                .unwrap_err()
                .contains("unknown field `max_timeot`")
        );
        assert_eq!(
            parse("max_timeout: 0").unwrap_err(),
            "`max_timeout` is 0: give between 1 and 86400"
        );
        assert_eq!(
            parse("default_timeout: 400").unwrap_err(),
            "`default_timeout` exceeds `max_timeout`"
        );
    }

    #[test]
    fn a_file_that_others_can_change_is_not_used() {
        use std::os::unix::fs::PermissionsExt;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o666)).unwrap();
        assert!(matches!(
            Config::load(Some(file.path())),
            Err(ConfigError::NotRoots { .. })
        ));
    }

    proptest! {
        #[test]
        fn any_text_is_a_configuration_within_its_bounds_or_an_error(
            text in ".*",
            number in prop_oneof![0..100_u64, 100..10_000_u64, any::<u64>()],
            key in prop::sample::select(vec![
                "default_timeout", "max_timeout", "default_startup_timeout", "max_startup_timeout",
                "max_stdout_bytes", "max_stderr_bytes", "max_artifact_bytes",
                "max_total_artifacts_bytes", "nofile_soft", "nofile_hard", "nproc_soft",
                "nproc_hard", "fsize", "pids_limit", "tmpfs_size",
            ]),
        ) {
            // Whatever it says.
            drop(parse(&text));
            let keys = format!("{key}: {number}");
            let inner = format!("container_limits: {{{key}: {number}}}");
            for text in [keys, inner] {
                let Ok(config) = parse(&text) else { continue };
                let (maxima, limits) = (&config.maxima, &config.maxima.defaults);
                prop_assert!(!limits.execution.is_zero() && limits.execution <= maxima.timeout);
                prop_assert!(!limits.startup.is_zero() && limits.startup <= maxima.startup_timeout);
                prop_assert!((10..=1000).contains(&limits.processes));
                prop_assert!((64..=65_536).contains(&limits.open_files));
                prop_assert!((1 << 20..=1 << 30).contains(&limits.file_bytes));
                prop_assert!((10 << 20..=2 << 30).contains(&limits.tmp_bytes));
                prop_assert!((1..=10 << 30).contains(&limits.artifacts_total_bytes));
            }
        }
    }

    #[test]
    fn a_text_that_nests_without_end_is_an_error() {
        assert!(parse(&"[".repeat(100_000)).is_err());
        assert!(parse(&format!("runsc_path: {}", "{a: ".repeat(10_000))).is_err());
    }
}
