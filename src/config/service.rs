//! The keys of the supervisor: how much it does at a time, and what it keeps ready.

use super::{ConfigError, DEFAULT_IMAGE, in_range, problem};
use crate::job::{Limits, MIN_MEMORY_BYTES, Maxima, parse_bytes};
use serde::Deserialize;
use std::time::Duration;

/// Jobs at a time for each CPU of the host: one of two waits for something, in the mean.
const JOBS_PER_CPU: u64 = 2;

/// Jobs at a time on the smallest host.
const FEWEST_JOBS: u64 = 4;

/// Bounds of how much happens at a time. Nothing here means "unlimited".
const JOBS: (u64, u64) = (1, 10_000);
const CONNECTIONS: (u64, u64) = (1, 1024);

/// The share of the host's memory that ready sandboxes may have: one of so many parts.
const MEMORY_PART: u64 = 4;

/// The most that ready sandboxes have unless more is configured: room for a hundred.
const DEFAULT_MEMORY: u64 = 4 << 30;

/// Bounds of the memory of all ready sandboxes: at least one of the smallest.
const MEMORY: (u64, u64) = (MIN_MEMORY_BYTES, 1 << 40);

/// Bounds of the ready sandboxes of one profile.
const SANDBOXES: (u64, u64) = (0, 1000);

/// Profiles that are kept ready from the start, at most.
const MAX_PROFILES: usize = 64;

/// How much the supervisor does at a time. What is beyond is told to come back, and waits nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Supervisor {
    /// Jobs of all users. Default: 2 for each CPU, and at least 4.
    pub max_jobs: u32,
    /// Jobs of one user of the host (uid). Default: `max_jobs`.
    pub max_jobs_per_user: u32,
    /// Open connections of one user. Default: 64.
    pub max_connections_per_user: u32,
}

/// What is kept ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Bytes of memory that all ready sandboxes may use together, as their cgroups count it. It
    /// goes before `minimum`. Default: a quarter of the host's memory, at most 4 GiB.
    pub memory_bytes: u64,
    /// Ready sandboxes of a profile that is in use, at least. Default: 2, or `maximum` if that is less.
    pub minimum: u32,
    /// Ready sandboxes of one profile, at most; with 0 none is kept, and every job starts cold.
    /// Default: 16.
    pub maximum: u32,
    /// How long no job may have come before the sandboxes at the front are frozen like the rest.
    /// Default: 60 s.
    pub frozen_after: Duration,
    /// How old a ready sandbox may become before another takes its place. Default: 3600 s.
    pub max_age: Duration,
    /// The profiles that are kept ready from the start; others are once they are used. Default: the
    /// image `python` with the default limits.
    pub profiles: Vec<Profile>,
}

/// What sandboxes have to have in common for one to be in another's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// The executor image, as a job names it. Whether there is one is not looked at here. Default:
    /// `python`.
    pub image: String,
    /// Bytes of memory, in whole pages; the guest is told at its start. Default: that of a job.
    pub memory_bytes: u64,
}

impl Default for Supervisor {
    fn default() -> Self {
        let max_jobs = jobs_at_a_time(cpus());
        Self {
            max_jobs,
            max_jobs_per_user: max_jobs,
            max_connections_per_user: 64,
        }
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            memory_bytes: part_for_the_pool(host_memory()),
            minimum: 2,
            maximum: 16,
            frozen_after: Duration::from_mins(1),
            max_age: Duration::from_hours(1),
            profiles: vec![Profile::default()],
        }
    }
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            image: DEFAULT_IMAGE.to_owned(),
            memory_bytes: Limits::default().memory_bytes,
        }
    }
}

/// Those that this process may use.
fn cpus() -> u64 {
    // Where nobody knows, there is one.
    std::thread::available_parallelism().map_or(1, |count| count.get() as u64)
}

fn jobs_at_a_time(cpus: u64) -> u32 {
    let jobs = cpus.saturating_mul(JOBS_PER_CPU).max(FEWEST_JOBS);
    jobs.min(JOBS.1).try_into().unwrap_or(u32::MAX)
}

/// Bytes of memory of this host (`proc_meminfo(5)`); 0 where it does not say.
fn host_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kibibytes = total.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or(0).saturating_mul(1 << 10)
}

fn part_for_the_pool(host_memory: u64) -> u64 {
    (host_memory / MEMORY_PART).clamp(MEMORY.0, DEFAULT_MEMORY)
}

/// The keys below `supervisor`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(
    clippy::struct_field_names,
    reason = "the fields are called as the keys are"
)]
pub(super) struct SupervisorKeys {
    max_jobs: Option<u64>,
    max_jobs_per_user: Option<u64>,
    max_connections_per_user: Option<u64>,
}

/// The keys below `pool`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PoolKeys {
    memory: Option<String>,
    minimum: Option<u64>,
    maximum: Option<u64>,
    frozen_after_seconds: Option<u64>,
    max_age_seconds: Option<u64>,
    profiles: Option<Vec<ProfileKeys>>,
}

/// An entry of `pool.profiles`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ProfileKeys {
    image: Option<String>,
    memory: Option<String>,
}

impl SupervisorKeys {
    pub(super) fn check(&self) -> Result<Supervisor, ConfigError> {
        let default = Supervisor::default();
        let max_jobs = in_range("supervisor.max_jobs", self.max_jobs, default.max_jobs, JOBS)?;
        let max_jobs_per_user = in_range(
            "supervisor.max_jobs_per_user",
            self.max_jobs_per_user,
            max_jobs,
            JOBS,
        )?;
        if max_jobs_per_user > max_jobs {
            let why = format!("is {max_jobs_per_user} and exceeds `max_jobs`: {max_jobs}");
            return Err(problem("supervisor.max_jobs_per_user", why));
        }
        Ok(Supervisor {
            max_jobs,
            max_jobs_per_user,
            max_connections_per_user: in_range(
                "supervisor.max_connections_per_user",
                self.max_connections_per_user,
                default.max_connections_per_user,
                CONNECTIONS,
            )?,
        })
    }
}

impl PoolKeys {
    pub(super) fn check(&self) -> Result<Pool, ConfigError> {
        let default = Pool::default();
        let seconds = |key, value, default: Duration, range| {
            in_range(key, value, default.as_secs(), range).map(Duration::from_secs)
        };
        let maximum = in_range("pool.maximum", self.maximum, default.maximum, SANDBOXES)?;
        // One who lowers the maximum alone has not asked for the default minimum.
        let least = default.minimum.min(maximum);
        let minimum = in_range("pool.minimum", self.minimum, least, SANDBOXES)?;
        if minimum > maximum {
            let why = format!("is {minimum} and exceeds `maximum`: {maximum}");
            return Err(problem("pool.minimum", why));
        }
        let memory = self.memory.as_deref();
        Ok(Pool {
            memory_bytes: size("pool.memory", memory, default.memory_bytes, MEMORY)?,
            minimum,
            maximum,
            frozen_after: seconds(
                "pool.frozen_after_seconds",
                self.frozen_after_seconds,
                default.frozen_after,
                (1, 86_400),
            )?,
            max_age: seconds(
                "pool.max_age_seconds",
                self.max_age_seconds,
                default.max_age,
                (10, 604_800),
            )?,
            profiles: match &self.profiles {
                Some(profiles) => check_profiles(profiles)?,
                None => default.profiles,
            },
        })
    }
}

fn check_profiles(entries: &[ProfileKeys]) -> Result<Vec<Profile>, ConfigError> {
    if entries.len() > MAX_PROFILES {
        let why = format!("has {} entries: give at most {MAX_PROFILES}", entries.len());
        return Err(problem("pool.profiles", why));
    }
    let mut profiles = Vec::new();
    for entry in entries {
        let profile = entry.check()?;
        if profiles.contains(&profile) {
            let why = format!("has `{}` twice with the same memory", profile.image);
            return Err(problem("pool.profiles", why));
        }
        profiles.push(profile);
    }
    Ok(profiles)
}

impl ProfileKeys {
    fn check(&self) -> Result<Profile, ConfigError> {
        let default = Profile::default();
        let image = self.image.clone().unwrap_or(default.image);
        if image.is_empty() {
            return Err(problem("pool.profiles.image", "is empty: name an image"));
        }
        // What no job may ask for is not kept ready.
        let bounds = (MIN_MEMORY_BYTES, Maxima::default().memory_bytes);
        let memory = self.memory.as_deref();
        Ok(Profile {
            image,
            memory_bytes: size("pool.profiles.memory", memory, default.memory_bytes, bounds)?,
        })
    }
}

/// The size, or the default, between the two bounds.
fn size(
    key: &'static str,
    text: Option<&str>,
    default: u64,
    bounds: (u64, u64),
) -> Result<u64, ConfigError> {
    let bytes = text
        .map(|text| parse_bytes(text).map_err(|error| problem(key, error.to_string())))
        .transpose()?;
    in_range(key, bytes, default, bounds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::parse;
    use proptest::prelude::*;

    #[test]
    fn the_defaults_follow_the_host_within_bounds() {
        assert_eq!(jobs_at_a_time(1), 4);
        assert_eq!(jobs_at_a_time(2), 4);
        assert_eq!(jobs_at_a_time(12), 24);
        assert_eq!(jobs_at_a_time(u64::MAX), 10_000);
        assert_eq!(part_for_the_pool(0), 64 << 20);
        assert_eq!(part_for_the_pool(2 << 30), 512 << 20);
        assert_eq!(part_for_the_pool(1 << 40), 4 << 30);
        assert!(host_memory() > 64 << 20);
        let config = parse("").unwrap();
        assert_eq!(config.supervisor, Supervisor::default());
        assert_eq!(config.pool, Pool::default());
        assert_eq!(config.pool.profiles[0].image, "python");
        assert_eq!(config.pool.profiles[0].memory_bytes, 512 << 20);
        // The mappings may be there and say nothing.
        let empty = parse("{supervisor: {}, pool: {}}").unwrap();
        assert_eq!(
            (empty.supervisor, empty.pool),
            (config.supervisor, config.pool)
        );
    }

    #[test]
    fn the_keys_are_taken_from_the_file() {
        let text = "
max_timeout: 60
max_workers: 4
supervisor: {max_jobs: 10, max_jobs_per_user: 3, max_connections_per_user: 8}
pool:
  memory: 1g
  minimum: 1
  maximum: 5
  frozen_after_seconds: 30
  max_age_seconds: 600
  profiles:
    - {image: data, memory: 1g}
    - memory: 256m
    - {}
";
        let config = parse(text).unwrap();
        let supervisor = Supervisor {
            max_jobs: 10,
            max_jobs_per_user: 3,
            max_connections_per_user: 8,
        };
        assert_eq!(config.supervisor, supervisor);
        let profile = |image: &str, memory_bytes| Profile {
            image: image.to_owned(),
            memory_bytes,
        };
        let pool = Pool {
            memory_bytes: 1 << 30,
            minimum: 1,
            maximum: 5,
            frozen_after: Duration::from_secs(30),
            max_age: Duration::from_mins(10),
            profiles: vec![
                profile("data", 1 << 30),
                profile("python", 256 << 20),
                profile("python", 512 << 20),
            ],
        };
        assert_eq!(config.pool, pool);
        assert_eq!(config.maxima.timeout, Duration::from_mins(1));
    }

    #[test]
    fn one_key_alone_draws_those_that_depend_on_it_along() {
        let supervisor = parse("supervisor: {max_jobs: 2}").unwrap().supervisor;
        assert_eq!(supervisor.max_jobs_per_user, 2);
        let pool = |text: &str| parse(text).unwrap().pool;
        assert_eq!(pool("pool: {maximum: 1}").minimum, 1);
        let none = pool("pool: {maximum: 0, profiles: []}");
        assert_eq!((none.minimum, none.maximum, none.profiles), (0, 0, vec![]));
    }

    #[test]
    fn unknown_keys_and_bad_values_are_refused_and_named() {
        for (text, expected) in [
            ("supervisor: {max_job: 3}", "unknown field `max_job`"),
            ("pool: {restore: true}", "unknown field `restore`"),
            ("pool: {profiles: [{name: python}]}", "unknown field `name`"),
            (
                "supervisor: {max_jobs: 0}",
                "`supervisor.max_jobs` is 0: give between 1 and 10000",
            ),
            ("supervisor: {max_jobs: -1}", "does not parse"),
            ("pool: 3", "does not parse"),
            ("supervisor: [max_jobs]", "does not parse"),
            (
                "supervisor: {max_jobs: 4, max_jobs_per_user: 5}",
                "`supervisor.max_jobs_per_user` is 5 and exceeds `max_jobs`: 4",
            ),
            (
                "supervisor: {max_connections_per_user: 4294967296}",
                "`supervisor.max_connections_per_user` is 4294967296",
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn bad_sizes_and_numbers_of_the_pool_are_refused_and_named() {
        for (text, expected) in [
            (
                "pool: {minimum: 17}",
                "`pool.minimum` is 17 and exceeds `maximum`: 16",
            ),
            (
                "pool: {maximum: 1001}",
                "`pool.maximum` is 1001: give between 0 and 1000",
            ),
            ("pool: {memory: lots}", "`pool.memory` `lots` is not a size"),
            (
                "pool: {memory: 63m}",
                "`pool.memory` is 66060288: give between",
            ),
            ("pool: {memory: '0'}", "`pool.memory` is 0"),
            (
                "pool: {frozen_after_seconds: 0}",
                "`pool.frozen_after_seconds` is 0",
            ),
            ("pool: {max_age_seconds: 9}", "`pool.max_age_seconds` is 9"),
            (
                "pool: {profiles: [{image: ''}]}",
                "`pool.profiles.image` is empty",
            ),
            (
                "pool: {profiles: [{memory: 1m}]}",
                "`pool.profiles.memory` is 1048576",
            ),
            (
                "pool: {profiles: [{memory: 64g}]}",
                "`pool.profiles.memory` is 68719476736",
            ),
            (
                "pool: {profiles: [{}, {memory: 512m}]}",
                "`pool.profiles` has `python` twice",
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let many = format!("pool: {{profiles: [{}]}}", "{}, ".repeat(65));
        assert!(
            parse(&many)
                .unwrap_err()
                .contains("has 65 entries: give at most 64")
        );
    }

    proptest! {
        #[test]
        fn any_number_is_within_its_bounds_or_an_error(
            number in prop_oneof![0..20_u64, 0..20_000_u64, any::<u64>()],
            other in prop_oneof![0..20_u64, any::<u64>()],
            key in prop::sample::select(vec![
                "max_jobs", "max_jobs_per_user", "max_connections_per_user", "minimum", "maximum",
                "frozen_after_seconds", "max_age_seconds", "memory",
            ]),
        ) {
            for text in [
                format!("supervisor: {{{key}: {number}}}"),
                format!("supervisor: {{max_jobs: {number}, max_jobs_per_user: {other}}}"),
                format!("pool: {{{key}: {number}}}"),
                format!("pool: {{minimum: {number}, maximum: {other}}}"),
                format!("pool: {{memory: '{number}', profiles: [{{memory: '{other}'}}]}}"),
            ] {
                let Ok(config) = parse(&text) else { continue };
                let (supervisor, pool) = (config.supervisor, config.pool);
                prop_assert!((1..=10_000).contains(&supervisor.max_jobs));
                prop_assert!((1..=supervisor.max_jobs).contains(&supervisor.max_jobs_per_user));
                prop_assert!((1..=1024).contains(&supervisor.max_connections_per_user));
                prop_assert!(pool.minimum <= pool.maximum && pool.maximum <= 1000);
                prop_assert!((64 << 20..=1 << 40).contains(&pool.memory_bytes));
                prop_assert!((1..=86_400).contains(&pool.frozen_after.as_secs()));
                prop_assert!((10..=604_800).contains(&pool.max_age.as_secs()));
                prop_assert!(pool.profiles.iter().all(|one| one.memory_bytes >= 64 << 20));
            }
        }
    }
}
