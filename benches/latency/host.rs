//! What the figures were measured on: without it they say nothing.

use anyhow::Context;
use serde::Serialize;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use tako_vm::sys::process;

#[derive(Debug, Serialize)]
pub(crate) struct Host {
    kernel: String,
    cores: usize,
    cpu: String,
    memory_mib: u64,
    cgroups: &'static str,
    runsc: String,
    build: &'static str,
    /// Of the last minute, when the measurement began: what else the machine was doing.
    load: String,
}

impl Host {
    pub(crate) fn read(runsc: &Path) -> anyhow::Result<Self> {
        let version = process::run(process::program(runsc).arg("--version"))?;
        let total = field("/proc/meminfo", "MemTotal")?;
        let kib = total.split_whitespace().next().unwrap_or_default();
        Ok(Self {
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            cores: std::thread::available_parallelism()?.get(),
            cpu: field("/proc/cpuinfo", "model name")
                .unwrap_or_else(|_| std::env::consts::ARCH.to_owned()),
            memory_mib: kib.parse::<u64>()? / 1024,
            cgroups: cgroups()?,
            runsc: version
                .stdout
                .lines()
                .next()
                .unwrap_or_default()
                .trim_start_matches("runsc version ")
                .to_owned(),
            build: if cfg!(debug_assertions) {
                "debug"
            } else {
                "release"
            },
            load: read("/proc/loadavg")?
                .split(' ')
                .next()
                .unwrap_or_default()
                .to_owned(),
        })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "host: Linux {}, {} cores of {}, {} MiB, cgroup {}, runsc {}, {} build, \
             load {}",
            self.kernel,
            self.cores,
            self.cpu,
            self.memory_mib,
            self.cgroups,
            self.runsc,
            self.build,
            self.load
        )
    }
}

fn read(path: &str) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read `{path}`"))
}

/// What stands behind the first `name:` of a file in `/proc`.
fn field(path: &str, name: &str) -> anyhow::Result<String> {
    let text = read(path)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|line| line.split_once(':'));
    value
        .map(|(_, value)| value.trim().to_owned())
        .with_context(|| format!("`{path}` has no `{name}`"))
}

/// Where the cgroup hierarchies are mounted.
pub(crate) fn cgroup_mounts() -> anyhow::Result<Vec<PathBuf>> {
    let is_cgroup = |kind: &str| matches!(kind, "cgroup" | "cgroup2");
    let mounts = mounted()?.into_iter();
    Ok(mounts
        .filter(|(_, kind)| is_cgroup(kind))
        .map(|(mount, _)| mount)
        .collect())
}

fn cgroups() -> anyhow::Result<&'static str> {
    let kinds: Vec<String> = mounted()?.into_iter().map(|(_, kind)| kind).collect();
    let has = |kind: &str| kinds.iter().any(|found| found == kind);
    Ok(match (has("cgroup"), has("cgroup2")) {
        (true, true) => "v1 and v2 (hybrid)",
        (true, false) => "v1",
        (false, true) => "v2",
        (false, false) => "none",
    })
}

/// Mount points and file system types, as proc(5) has them.
fn mounted() -> anyhow::Result<Vec<(PathBuf, String)>> {
    let text = read("/proc/self/mounts")?;
    let entry = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?.into(), fields.next()?.to_owned()))
    };
    Ok(text.lines().filter_map(entry).collect())
}
