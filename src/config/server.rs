//! Configuration of the server: the same file, whose keys of the supervisor say what a job may ask for.

use super::artifact_store::{self, ArtifactStore};
use super::{Config, ConfigError, DEFAULT_FILE, in_range, problem};
use crate::job::Maxima;
use serde::Deserialize;
use serde_yaml_ng::{Mapping, Value};
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The variable that names the configuration of what runs without privileges.
pub const FILE_VARIABLE: &str = "TAKO_VM_CONFIG";

/// The variable that names the database.
pub const DATABASE_URL_VARIABLE: &str = "TAKO_VM_DATABASE_URL";

/// The variable that names the directory of the server.
pub const DATA_DIR_VARIABLE: &str = "TAKO_VM_DATA_DIR";

/// Where the server that root starts has its data, unless another directory is named.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/tako-vm-server";

/// Where else a configuration may lie, the first that is there; then below the home of the user, and
/// [`DEFAULT_FILE`].
const FILES: [&str; 2] = ["tako_vm.yaml", "config/tako_vm.yaml"];

/// Keys of the server, and of nothing else.
pub(super) const KEYS: [&str; 36] = [
    "production_mode",
    "log_level",
    "server_host",
    "server_port",
    "allow_unauthenticated_network_access",
    "api_max_payload_bytes",
    "api_auth_enabled",
    "api_keys",
    "api_auth_header",
    "api_rate_limit_enabled",
    "api_rate_limit_requests",
    "api_rate_limit_window_seconds",
    "max_retry_attempts",
    "retry_base_delay",
    "queue_wait_timeout",
    "data_dir",
    "artifact_store",
    "max_artifact_storage_bytes",
    "database_url",
    "lease_seconds",
    "drain_seconds",
    "max_workers",
    "max_queue_size",
    "allow_runtime_requirements",
    "dependency_proxy_url",
    "enable_runtime_dependency_cache",
    "sessions_enabled",
    "session_idle_timeout_seconds",
    "session_max_ttl_seconds",
    "session_max_concurrent",
    "execution_record_ttl_days",
    "dlq_ttl_days",
    "audit_ttl_days",
    "docker_image",
    "enable_userns",
    "job_types",
];

/// The variable that names a directory for sockets.
pub const RUNTIME_DIRECTORY_VARIABLE: &str = "RUNTIME_DIRECTORY";

const HANDED_DOWN: [&str; 12] = [
    FILE_VARIABLE,
    DATABASE_URL_VARIABLE,
    "TAKO_VM_API_MAX_PAYLOAD_BYTES",
    "TAKO_VM_ALLOW_UNAUTHENTICATED_NETWORK_ACCESS",
    "TAKO_VM_API_AUTH_ENABLED",
    "TAKO_VM_API_KEYS",
    "TAKO_VM_ALLOW_RUNTIME_REQUIREMENTS",
    "TAKO_VM_SESSIONS_ENABLED",
    artifact_store::ENDPOINT_URL,
    artifact_store::REGION,
    "RUST_BACKTRACE",
    // Where PostgreSQL finds passwords and certificates for a database of the operator's.
    "PGPASSFILE",
];

const DAY: Duration = Duration::from_hours(24);

/// How a database is reached. What it is made of is not shown: it may hold a password.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("DatabaseUrl(..)")
    }
}

/// The checked configuration of the server.
#[derive(Debug, Clone)]
pub struct Server {
    /// Where it listens. Default: 127.0.0.1. Anything but the host itself takes
    /// `allow_unauthenticated_network_access`.
    pub host: IpAddr,
    /// Default: 8000.
    pub port: u16,
    /// Bytes of a request's body at most. Default: 2 MiB.
    pub max_payload_bytes: usize,
    /// A database of the operator's; without it the server runs one of its own.
    pub database_url: Option<DatabaseUrl>,
    /// Results that wait, files of jobs, the server's own database.
    pub data_dir: Option<PathBuf>,
    /// Where files of jobs are kept in place of `data_dir`.
    pub artifact_store: Option<ArtifactStore>,
    /// Bytes of files that an owner may have kept, 1 B to 1 PiB. Default: 10 GiB.
    pub max_artifact_storage_bytes: u64,
    /// Jobs that this server runs at a time, 1 to 64. Default: 4.
    pub max_workers: u16,
    /// Jobs that wait at most, 1 to 10,000. Default: 100.
    pub max_queue_size: u32,
    /// Attempts of a job that is lost to infrastructure, 1 to 10. Default: 2.
    pub max_attempts: i16,
    /// Before the second attempt; twice as long before each further one. Default: 1 s.
    pub retry_base_delay: Duration,
    /// How long a job is a server's without a word of it, 3 s to 10 min. Default: 15 s.
    pub lease: Duration,
    /// How long jobs may go on after the server was told to end, up to a day. Default: 30 s.
    pub drain: Duration,
    /// How long a job is known after its end. Default: 30 days.
    pub keep_records: Duration,
    /// How long a dead letter is kept. Default: 30 days.
    pub keep_dead_letters: Duration,
    /// How long it is known who did what. Default: 365 days.
    pub keep_acts: Duration,
    /// A job type that is not known is an error. Default: it is the default type.
    pub production_mode: bool,
    /// What is logged, in the words of `tracing_subscriber`'s `EnvFilter`. Default: `info`.
    pub log_level: &'static str,
    /// Defaults and maxima of jobs.
    pub maxima: Maxima,
}

/// The keys as they are written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(
    clippy::struct_excessive_bools,
    clippy::struct_field_names,
    reason = "the fields are called as the keys are, and a key is no state"
)]
struct Keys {
    production_mode: bool,
    log_level: Option<String>,
    server_host: Option<String>,
    server_port: Option<u64>,
    allow_unauthenticated_network_access: bool,
    api_max_payload_bytes: Option<u64>,
    api_auth_enabled: bool,
    api_keys: Vec<Value>,
    #[serde(rename = "api_auth_header")]
    _api_auth_header: Option<Value>,
    api_rate_limit_enabled: bool,
    #[serde(rename = "api_rate_limit_requests")]
    _api_rate_limit_requests: Option<Value>,
    #[serde(rename = "api_rate_limit_window_seconds")]
    _api_rate_limit_window_seconds: Option<Value>,
    max_retry_attempts: Option<u64>,
    retry_base_delay: Option<f64>,
    #[serde(rename = "queue_wait_timeout")]
    _queue_wait_timeout: Option<Value>,
    data_dir: Option<PathBuf>,
    artifact_store: Option<artifact_store::Keys>,
    max_artifact_storage_bytes: Option<u64>,
    database_url: Option<String>,
    lease_seconds: Option<u64>,
    drain_seconds: Option<u64>,
    max_workers: Option<u64>,
    max_queue_size: Option<u64>,
    allow_runtime_requirements: bool,
    #[serde(rename = "dependency_proxy_url")]
    _dependency_proxy_url: Option<Value>,
    #[serde(rename = "enable_runtime_dependency_cache")]
    _enable_runtime_dependency_cache: Option<Value>,
    sessions_enabled: bool,
    #[serde(rename = "session_idle_timeout_seconds")]
    _session_idle_timeout_seconds: Option<Value>,
    #[serde(rename = "session_max_ttl_seconds")]
    _session_max_ttl_seconds: Option<Value>,
    #[serde(rename = "session_max_concurrent")]
    _session_max_concurrent: Option<Value>,
    execution_record_ttl_days: Option<u64>,
    dlq_ttl_days: Option<u64>,
    audit_ttl_days: Option<u64>,
    #[serde(rename = "docker_image")]
    _docker_image: Option<Value>,
    #[serde(rename = "enable_userns")]
    _enable_userns: Option<Value>,
    job_types: Vec<Value>,
}

/// What the command line says in place of the file.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// See [`Server::host`].
    pub host: Option<String>,
    /// See [`Server::port`].
    pub port: Option<u16>,
    /// See [`Server::data_dir`].
    pub data_dir: Option<PathBuf>,
}

impl Server {
    /// Where its data lie: what is configured, or else where systemd says or the user has such things.
    ///
    /// # Errors
    /// When there is no such place.
    pub fn data_dir(&self) -> Result<PathBuf, ConfigError> {
        let data = self.data_dir.clone().or_else(usual_data_dir);
        data.ok_or_else(|| problem("data_dir", "is not set, and this user has no home: set it"))
    }

    /// Reads `file`, or the first of the usual places where there is one, or takes the defaults; then
    /// the environment, then what the command line says.
    ///
    /// # Errors
    /// When the file cannot be read, or has a key that is unknown, out of range, or asks for a
    /// protection that is not there.
    pub fn load(file: Option<&Path>, overrides: Overrides) -> Result<Self, ConfigError> {
        let named = std::env::var_os(FILE_VARIABLE).filter(|path| !path.is_empty());
        let named = file.map(Path::to_owned).or(named.map(PathBuf::from));
        let Some(path) = named.or_else(usual) else {
            return Self::parse("", Path::new(DEFAULT_FILE), &variable, overrides);
        };
        Self::parse(&read(&path)?, &path, &variable, overrides)
    }

    /// Reads `file`, or [`DEFAULT_FILE`] where there is one, and no other: for root, who does not follow
    /// what lies in the directory that he happens to be in. [`Config::load`] has looked at whose it is.
    ///
    /// # Errors
    /// As [`Server::load`].
    pub fn load_as_root(file: Option<&Path>, overrides: Overrides) -> Result<Self, ConfigError> {
        Config::load(file)?;
        let default = Path::new(DEFAULT_FILE);
        let file = file.or_else(|| default.exists().then_some(default));
        let text = file.map(read).transpose()?.unwrap_or_default();
        Self::parse(&text, file.unwrap_or(default), &variable, overrides)
    }

    fn parse(
        text: &str,
        path: &Path,
        variable: &dyn Fn(&str) -> Option<String>,
        overrides: Overrides,
    ) -> Result<Self, ConfigError> {
        let failed = |source| ConfigError::Parse {
            path: path.to_owned(),
            source,
        };
        let mut all: Option<Mapping> = serde_yaml_ng::from_str(text).map_err(failed)?;
        let mut keys = Mapping::new();
        for key in KEYS {
            if let Some(value) = all.as_mut().and_then(|all| all.remove(key)) {
                keys.insert(key.into(), value);
            }
        }
        let mut keys = Keys::deserialize(Value::Mapping(keys)).map_err(failed)?;
        keys.read_environment(variable)?;
        keys.check_controls()?;
        let artifact_store = keys.artifact_store.take();
        let artifact_store = artifact_store.map(|store| store.check(variable));
        let server = keys.check(Config::parse(text, path)?.maxima, overrides)?;
        Ok(Self {
            artifact_store: artifact_store.transpose()?,
            ..server
        })
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })
}

/// The first of the usual places where there is a file, or something that is meant to be one.
fn usual() -> Option<PathBuf> {
    let home = std::env::home_dir().map(|home| home.join(".tako_vm/config.yaml"));
    let places = FILES.map(PathBuf::from).into_iter().chain(home);
    let absent = |error: io::Error| error.kind() == io::ErrorKind::NotFound;
    let mut places = places.chain([DEFAULT_FILE.into()]);
    places.find(|path| !path.symlink_metadata().is_err_and(absent))
}

fn variable(name: &str) -> Option<String> {
    let value = std::env::var_os(name)?.into_string().ok();
    value.filter(|value| !value.is_empty())
}

/// What of the environment of root's process is that of what it starts without privileges.
pub fn handed_down() -> impl Iterator<Item = (&'static str, OsString)> {
    let variables = HANDED_DOWN.into_iter();
    variables.filter_map(|name| Some((name, std::env::var_os(name)?)))
}

/// Where whoever starts the server wants its sockets: systemd, for `RuntimeDirectory=`.
pub fn runtime_directory() -> Option<PathBuf> {
    std::env::var_os(RUNTIME_DIRECTORY_VARIABLE).map(PathBuf::from)
}

/// Where data lie unless a directory is named: where systemd says, for `StateDirectory=`, or below the
/// user's home.
fn usual_data_dir() -> Option<PathBuf> {
    let service = std::env::var_os("STATE_DIRECTORY").map(PathBuf::from);
    let data = || std::env::var_os("XDG_DATA_HOME").map(|home| Path::new(&home).join("tako_vm"));
    let home = || std::env::home_dir().map(|home| home.join(".tako_vm"));
    service.or_else(data).or_else(home)
}

fn is_true(text: &str) -> bool {
    ["true", "1", "yes"].contains(&text.to_lowercase().as_str())
}

impl Keys {
    fn read_environment(
        &mut self,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<(), ConfigError> {
        self.database_url = variable(DATABASE_URL_VARIABLE).or(self.database_url.take());
        let data_dir = variable(DATA_DIR_VARIABLE).map(PathBuf::from);
        self.data_dir = data_dir.or(self.data_dir.take());
        if let Some(bytes) = variable("TAKO_VM_API_MAX_PAYLOAD_BYTES") {
            let bytes = bytes.parse().map_err(|_no_number| {
                let why = "is no number, as TAKO_VM_API_MAX_PAYLOAD_BYTES has it";
                problem("api_max_payload_bytes", why)
            })?;
            self.api_max_payload_bytes = Some(bytes);
        }
        if variable("TAKO_VM_API_KEYS").is_some() {
            self.api_keys.push(Value::Null);
        }
        for (name, key) in [
            (
                "TAKO_VM_ALLOW_UNAUTHENTICATED_NETWORK_ACCESS",
                &mut self.allow_unauthenticated_network_access,
            ),
            ("TAKO_VM_API_AUTH_ENABLED", &mut self.api_auth_enabled),
            (
                "TAKO_VM_ALLOW_RUNTIME_REQUIREMENTS",
                &mut self.allow_runtime_requirements,
            ),
            ("TAKO_VM_SESSIONS_ENABLED", &mut self.sessions_enabled),
        ] {
            if let Some(value) = variable(name) {
                *key = is_true(&value);
            }
        }
        Ok(())
    }

    /// What is asked for and is not there is refused: nobody shall believe that he has it.
    fn check_controls(&self) -> Result<(), ConfigError> {
        let why = if self.api_auth_enabled {
            ("api_auth_enabled", "is true")
        } else if !self.api_keys.is_empty() {
            ("api_keys", "has keys")
        } else if self.api_rate_limit_enabled {
            ("api_rate_limit_enabled", "is true")
        } else if self.allow_runtime_requirements {
            ("allow_runtime_requirements", "is true")
        } else if self.sessions_enabled {
            ("sessions_enabled", "is true")
        } else if !self.job_types.is_empty() {
            ("job_types", "has entries")
        } else {
            return Ok(());
        };
        let (key, what) = why;
        let problem_text = format!("{what}, and this version does not have that: remove it");
        Err(problem(key, problem_text))
    }

    fn check(self, maxima: Maxima, overrides: Overrides) -> Result<Server, ConfigError> {
        let days = |key, value, default: u32, most| {
            in_range(key, value, default, (1, most)).map(|days| DAY.saturating_mul(days))
        };
        let seconds = |key, value, default: u64, range| {
            in_range(key, value, default, range).map(Duration::from_secs)
        };
        Ok(Server {
            host: self.host(overrides.host)?,
            port: match overrides.port {
                Some(port) => port,
                None => in_range("server_port", self.server_port, 8000_u16, (1, 65_535))?,
            },
            max_payload_bytes: usize::try_from(in_range(
                "api_max_payload_bytes",
                self.api_max_payload_bytes,
                2_097_152_u64,
                (1 << 10, 100 << 20),
            )?)
            .unwrap_or(usize::MAX),
            max_workers: in_range("max_workers", self.max_workers, 4_u16, (1, 64))?,
            max_queue_size: in_range("max_queue_size", self.max_queue_size, 100_u32, (1, 10_000))?,
            max_attempts: i16::from(in_range(
                "max_retry_attempts",
                self.max_retry_attempts,
                2_u8,
                (1, 10),
            )?),
            retry_base_delay: retry_base_delay(self.retry_base_delay.unwrap_or(1.0))?,
            lease: seconds("lease_seconds", self.lease_seconds, 15, (3, 600))?,
            drain: seconds("drain_seconds", self.drain_seconds, 30, (0, 86_400))?,
            keep_records: days(
                "execution_record_ttl_days",
                self.execution_record_ttl_days,
                30,
                3650,
            )?,
            keep_dead_letters: days("dlq_ttl_days", self.dlq_ttl_days, 30, 365)?,
            keep_acts: days("audit_ttl_days", self.audit_ttl_days, 365, 3650)?,
            production_mode: self.production_mode,
            log_level: level(self.log_level.as_deref().unwrap_or("INFO"))?,
            database_url: self.database_url.map(DatabaseUrl),
            data_dir: overrides.data_dir.or(self.data_dir),
            artifact_store: None,
            max_artifact_storage_bytes: in_range(
                "max_artifact_storage_bytes",
                self.max_artifact_storage_bytes,
                10_u64 << 30,
                (1, 1 << 50),
            )?,
            maxima,
        })
    }

    fn host(&self, other: Option<String>) -> Result<IpAddr, ConfigError> {
        let host = other.or_else(|| self.server_host.clone());
        let host = match host.as_deref() {
            None | Some("localhost") => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Some(host) => host.parse().map_err(|_no_address| {
                let why = "is no IP address: give one of this host's, such as 127.0.0.1";
                problem("server_host", why)
            })?,
        };
        if !host.is_loopback() && !self.allow_unauthenticated_network_access {
            let why = format!(
                "is {host}, where anybody who reaches this host could run programs: use 127.0.0.1 and a \
                 proxy that knows its users, or set `allow_unauthenticated_network_access: true`"
            );
            return Err(problem("server_host", why));
        }
        Ok(host)
    }
}

fn retry_base_delay(seconds: f64) -> Result<Duration, ConfigError> {
    if (0.1..=60.0).contains(&seconds) {
        return Ok(Duration::from_secs_f64(seconds));
    }
    let why = format!("is {seconds}: give between 0.1 and 60 seconds");
    Err(problem("retry_base_delay", why))
}

fn level(name: &str) -> Result<&'static str, ConfigError> {
    Ok(match name.to_uppercase().as_str() {
        "DEBUG" => "debug",
        "INFO" => "info",
        "WARNING" => "warn",
        "ERROR" | "CRITICAL" => "error",
        _ => {
            let why = format!("is `{name}`: give DEBUG, INFO, WARNING, ERROR or CRITICAL");
            return Err(problem("log_level", why));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_with(
        text: &str,
        variables: &[(&str, &str)],
        overrides: Overrides,
    ) -> Result<Server, String> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(other, _)| *other == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Server::parse(text, Path::new("tako_vm.yaml"), &variable, overrides)
            .map_err(|error| error.to_string())
    }

    fn parse(text: &str) -> Result<Server, String> {
        parse_with(text, &[], Overrides::default())
    }

    #[test]
    fn the_defaults_are_those_of_tako_vm() {
        let server = parse("").unwrap();
        assert_eq!(
            (server.host.to_string().as_str(), server.port),
            ("127.0.0.1", 8000)
        );
        assert_eq!((server.max_workers, server.max_queue_size), (4, 100));
        assert_eq!(server.max_payload_bytes, 2 << 20);
        assert_eq!(server.max_attempts, 2);
        assert_eq!(server.max_artifact_storage_bytes, 10 << 30);
        assert!(server.artifact_store.is_none());
        assert_eq!(
            (
                server.keep_records,
                server.keep_dead_letters,
                server.keep_acts
            ),
            (30 * DAY, 30 * DAY, 365 * DAY)
        );
        assert!(server.database_url.is_none() && server.data_dir.is_none());
        assert_eq!(server.maxima.timeout, Duration::from_mins(5));
    }

    #[test]
    fn one_file_serves_both_and_each_key_is_taken() {
        let text = "
server_host: 127.0.0.2
server_port: 9000
max_workers: 8
max_queue_size: 7
max_retry_attempts: 3
retry_base_delay: 0.5
lease_seconds: 5
drain_seconds: 0
data_dir: /srv/tako
database_url: postgresql://u:p@h/d
log_level: WARNING
execution_record_ttl_days: 1
audit_ttl_days: 2
max_artifact_storage_bytes: 1000
max_timeout: 60
pool: {maximum: 1}
";
        let server = parse(text).unwrap();
        assert_eq!(server.host.to_string(), "127.0.0.2");
        assert_eq!((server.port, server.max_workers), (9000, 8));
        assert_eq!((server.max_queue_size, server.max_attempts), (7, 3));
        assert_eq!(server.retry_base_delay, Duration::from_millis(500));
        assert_eq!(
            (server.lease, server.drain),
            (Duration::from_secs(5), Duration::ZERO)
        );
        assert_eq!(server.data_dir.as_deref(), Some(Path::new("/srv/tako")));
        assert_eq!(server.log_level, "warn");
        assert_eq!((server.keep_records, server.keep_acts), (DAY, 2 * DAY));
        assert_eq!(server.max_artifact_storage_bytes, 1000);
        assert_eq!(server.maxima.timeout, Duration::from_mins(1));
        // The same file does for the supervisor.
        assert!(Config::parse(text, Path::new("tako_vm.yaml")).is_ok());
        let url = server.database_url.as_ref().map(DatabaseUrl::as_str);
        assert_eq!(url, Some("postgresql://u:p@h/d"));
        assert!(!format!("{server:?}").contains("u:p"), "{server:?}");
    }

    #[test]
    fn the_environment_goes_before_the_file_and_the_command_line_before_both() {
        let text = "{server_port: 9000, data_dir: /a, database_url: 'postgresql://file/d'}";
        let variables = [
            (DATABASE_URL_VARIABLE, "postgresql://variable/d"),
            (DATA_DIR_VARIABLE, "/b"),
            ("TAKO_VM_API_MAX_PAYLOAD_BYTES", "4096"),
        ];
        let overrides = Overrides {
            host: Some("localhost".to_owned()),
            port: Some(0),
            data_dir: Some("/c".into()),
        };
        let server = parse_with(text, &variables, overrides).unwrap();
        assert_eq!(server.port, 0);
        assert_eq!(server.data_dir.as_deref(), Some(Path::new("/c")));
        assert_eq!(
            server.database_url.unwrap().as_str(),
            "postgresql://variable/d"
        );
        assert_eq!(server.max_payload_bytes, 4096);
        let server = parse_with(text, &variables, Overrides::default()).unwrap();
        assert_eq!(server.data_dir.as_deref(), Some(Path::new("/b")));
    }

    #[test]
    fn what_is_wrong_is_refused_and_named() {
        for (text, expected) in [
            (
                "server_host: 0.0.0.0",
                "anybody who reaches this host could run programs",
            ),
            ("server_host: example", "`server_host` is no IP address"),
            ("server_port: 65536", "`server_port` is 65536"),
            ("max_workers: 65", "`max_workers` is 65"),
            ("max_queue_size: 0", "`max_queue_size` is 0"),
            ("retry_base_delay: 0.01", "`retry_base_delay` is 0.01"),
            ("lease_seconds: 2", "`lease_seconds` is 2"),
            ("audit_ttl_days: 0", "`audit_ttl_days` is 0"),
            ("log_level: LOUD", "`log_level` is `LOUD`"),
            ("max_worker: 1", "does not parse"),
            (
                "max_artifact_storage_bytes: 0",
                "`max_artifact_storage_bytes` is 0",
            ),
            ("api_auth_enabled: true", "`api_auth_enabled` is true"),
            ("api_keys: [abc]", "`api_keys` has keys"),
            (
                "api_rate_limit_enabled: true",
                "`api_rate_limit_enabled` is true",
            ),
            ("sessions_enabled: true", "`sessions_enabled` is true"),
            ("job_types: [{name: a}]", "`job_types` has entries"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let open = "{server_host: 0.0.0.0, allow_unauthenticated_network_access: true}";
        assert!(parse(open).is_ok());
        let asked = [("TAKO_VM_API_KEYS", "a-key-of-somebody")];
        let error = parse_with("", &asked, Overrides::default()).unwrap_err();
        assert!(error.contains("`api_keys` has keys"), "{error}");
    }
}
