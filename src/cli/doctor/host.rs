//! Checks of the host that Tako VM did not make: the kernel and its settings, disk and clock.

use super::report::Check;
use crate::bundle::seccomp;
use crate::cli::one_line;
use crate::sys::cgroup::{self, Mounted, Version};
use crate::sys::host::{self, KernelVersion};
use std::io;
use std::path::Path;

/// Linux 5.11 has `close_range` with close-on-exec, which every start of a program needs.
const MINIMUM_KERNEL: KernelVersion = KernelVersion {
    major: 5,
    minor: 11,
};

/// Linux 5.19 has `memory.peak` in cgroup version 2, which every record needs.
const MINIMUM_KERNEL_V2: KernelVersion = KernelVersion {
    major: 5,
    minor: 19,
};

/// Below this a setup or the files of one job may not fit.
const LITTLE_SPACE: u64 = 1 << 30;

/// An image and a runsc are this large, and a job's files may be half of it.
const TOO_LITTLE_SPACE: u64 = 100 << 20;

/// As with bytes; a setup makes some five thousand files.
const FEW_FILES: u64 = 10_000;

/// Clock sources that are read without a system call.
const QUICK_CLOCKS: [&str; 4] = [
    "tsc",
    "kvm-clock",
    "hyperv_clocksource_tsc_page",
    "arch_sys_counter",
];

/// Settings that keep one user's links and FIFOs from another's programs (`proc_sys_fs(5)`).
const PROTECTED: [&str; 4] = [
    "protected_hardlinks",
    "protected_symlinks",
    "protected_fifos",
    "protected_regular",
];

/// A size for people.
fn size(bytes: u64) -> String {
    match bytes >> 20 {
        mebibytes @ 0..10_240 => format!("{mebibytes} MiB"),
        mebibytes => format!("{} GiB", mebibytes >> 10),
    }
}

/// All of them.
pub(super) fn checks(state_dir: &Path) -> Vec<Check> {
    let mounted = cgroup::mounted();
    vec![
        kernel(mounted.as_deref().unwrap_or_default()),
        cgroups(mounted.as_deref()),
        libseccomp(),
        disk(state_dir),
        swap(mounted.as_deref().unwrap_or_default()),
        clock(),
        protected_links(),
        core_pattern(),
        ksm(),
        cpu_vulnerabilities(),
        start_speed(),
    ]
}

fn unreadable(id: &'static str, error: &io::Error) -> Check {
    if error.kind() == io::ErrorKind::PermissionDenied {
        Check::needs_root(id)
    } else {
        Check::unknown(id, &error.to_string())
    }
}

fn kernel(mounted: &[Mounted]) -> Check {
    let release = match host::setting("/proc/sys/kernel/osrelease") {
        Ok(release) => release.unwrap_or_default(),
        Err(error) => return unreadable("kernel", &error),
    };
    judge_kernel(&release, std::env::consts::ARCH, memory_is_v2(mounted))
}

fn memory_is_v2(mounted: &[Mounted]) -> bool {
    let has_memory = |one: &&Mounted| one.controllers.iter().any(|name| name == "memory");
    let memory = mounted.iter().find(has_memory);
    memory.is_some_and(|one| one.version == Version::V2)
}

fn judge_kernel(release: &str, architecture: &str, memory_is_v2: bool) -> Check {
    let found = format!("Linux {release} on {architecture}");
    let (minimum, why) = if memory_is_v2 {
        (MINIMUM_KERNEL_V2, " for cgroup version 2")
    } else {
        (MINIMUM_KERNEL, "")
    };
    match host::kernel_version(release) {
        Some(version) if version < minimum => Check::fail(
            "kernel",
            found,
            format!(
                "boot Linux {}.{} or newer{why}",
                minimum.major, minimum.minor
            ),
        ),
        Some(_) if architecture == "x86_64" => Check::ok("kernel", found),
        _ => Check::warn(
            "kernel",
            found,
            "Tako VM has been tried on x86-64 alone: rely on the live tests below",
        ),
    }
}

fn cgroups(mounted: Result<&[Mounted], &cgroup::CgroupError>) -> Check {
    match mounted {
        Ok(mounted) => judge_cgroups(mounted),
        Err(error) => Check::fail(
            "cgroups",
            one_line(error),
            "mount the cgroup file systems, and make them readable here",
        ),
    }
}

fn judge_cgroups(mounted: &[Mounted]) -> Check {
    let found = cgroup::versions(mounted);
    let details = mounted.iter().map(describe_hierarchy).collect();
    let missing = cgroup::missing(mounted);
    if missing.is_empty() {
        return Check::ok("cgroups", found).with_details(details);
    }
    let found = format!("{found}; no controller {}", missing.join(", "));
    let fix = "boot with these controllers enabled (`systemd.unified_cgroup_hierarchy=1`, no `cgroup_disable=`); in a container, delegate them";
    Check::fail("cgroups", found, fix).with_details(details)
}

fn describe_hierarchy(one: &Mounted) -> String {
    let version = match one.version {
        Version::V1 => 1,
        Version::V2 => 2,
    };
    let controllers = if one.controllers.is_empty() {
        "no controller".to_owned()
    } else {
        one.controllers.join(", ")
    };
    format!("`{}`, version {version}: {controllers}", one.path.display())
}

fn libseccomp() -> Check {
    let version = libseccomp::ScmpVersion::current().map_or_else(
        |_| "of unknown version".to_owned(),
        |version| format!("{}.{}.{}", version.major, version.minor, version.micro),
    );
    match seccomp::load() {
        Ok(profile) => {
            let rules = profile.syscalls().as_ref().map_or(0, Vec::len);
            Check::ok(
                "libseccomp",
                format!("{version}; the profile of {rules} rules compiles"),
            )
        }
        Err(error) => Check::fail(
            "libseccomp",
            format!("{version}; {}", one_line(&error)),
            "`apt-get install --only-upgrade libseccomp2`",
        ),
    }
}

fn disk(state_dir: &Path) -> Check {
    // A state directory that is not there yet will be made where its parent is.
    let there = state_dir.ancestors().find(|path| path.exists());
    let there = there.unwrap_or(Path::new("/"));
    match host::space(there) {
        Ok(space) => judge_disk(there, space),
        Err(error) => unreadable("disk", &error),
    }
}

fn judge_disk(directory: &Path, space: host::Space) -> Check {
    let directory = directory.display();
    let files = space.free_files.unwrap_or(u64::MAX);
    let counted = match space.free_files {
        Some(files) => format!(" and {files} files"),
        None => String::new(),
    };
    let found = format!("{}{counted} free for `{directory}`", size(space.free_bytes));
    let other = "name another state directory with `--state-dir`";
    if space.read_only {
        let found = format!("`{directory}` is on a read-only file system");
        Check::fail("disk", found, format!("mount it writable, or {other}"))
    } else if space.no_exec {
        let found = format!("`{directory}` is on a file system from which nothing can be executed");
        Check::fail(
            "disk",
            found,
            format!("mount it without `noexec`, or {other}"),
        )
    } else if space.free_bytes < TOO_LITTLE_SPACE || files < FEW_FILES / 10 {
        Check::fail("disk", found, format!("make room, or {other}"))
    } else if space.free_bytes < LITTLE_SPACE || files < FEW_FILES {
        Check::warn("disk", found, format!("make room, or {other}"))
    } else {
        Check::ok("disk", found)
    }
}

fn swap(mounted: &[Mounted]) -> Check {
    match host::swaps() {
        Ok(swaps) => judge_swap(&swaps, swap_is_limited(mounted)),
        Err(error) => unreadable("swap", &error),
    }
}

/// Whether a sandbox's use of swap can be limited: version 2 always can (Linux 5.8).
fn swap_is_limited(mounted: &[Mounted]) -> bool {
    let limited = |one: &Mounted| one.path.join("memory.memsw.limit_in_bytes").exists();
    memory_is_v2(mounted) || mounted.iter().any(limited)
}

fn judge_swap(swaps: &[(String, u64)], limited: bool) -> Check {
    if swaps.is_empty() {
        return Check::ok("swap", "none");
    }
    let places: Vec<_> = swaps
        .iter()
        .map(|(name, bytes)| format!("`{name}` of {}", size(*bytes)))
        .collect();
    let found = places.join(", ");
    if limited {
        Check::ok(
            "swap",
            format!("{found}; a sandbox's memory limit includes it"),
        )
    } else {
        let found = format!("{found}, which no cgroup limits");
        Check::fail(
            "swap",
            found,
            "boot with `swapaccount=1`, or turn swap off (`swapoff -a`)",
        )
    }
}

fn clock() -> Check {
    let source = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let source = host::setting(source).ok().flatten();
    match host::clock_is_synchronised() {
        Ok(synchronised) => judge_clock(source.as_deref(), synchronised),
        Err(error) => unreadable("clock", &error),
    }
}

fn judge_clock(source: Option<&str>, synchronised: bool) -> Check {
    let source = source.unwrap_or("unknown");
    let found = format!("source `{source}`");
    if !QUICK_CLOCKS.contains(&source) {
        let fix = "every reading of it is a system call of the sentry: boot with `clocksource=tsc`, or repair why the kernel gave it up";
        Check::warn("clock", format!("{found}, which is slow"), fix)
    } else if synchronised {
        Check::ok("clock", format!("{found}, synchronised"))
    } else {
        let fix = "times in records may be wrong (time limits are not): run a time service such as `systemd-timesyncd` or `chrony`";
        Check::warn("clock", format!("{found}, not synchronised"), fix)
    }
}

fn protected_links() -> Check {
    let mut off = Vec::new();
    for name in PROTECTED {
        match host::setting(&format!("/proc/sys/fs/{name}")) {
            Ok(Some(value)) if value == "0" => off.push(format!("fs.{name}")),
            // A kernel that does not know one (before 4.19) is too old for Tako VM anyway.
            Ok(_) => {}
            Err(error) => return unreadable("protected_links", &error),
        }
    }
    judge_protected_links(&off)
}

fn judge_protected_links(off: &[String]) -> Check {
    if off.is_empty() {
        return Check::ok(
            "protected_links",
            "hard links, symbolic links, FIFOs and regular files",
        );
    }
    let settings: Vec<_> = off.iter().map(|name| format!("{name}=1")).collect();
    Check::warn(
        "protected_links",
        format!("off: {}", off.join(", ")),
        format!(
            "`sysctl -w {}`, and the same in a file of `/etc/sysctl.d`",
            settings.join(" ")
        ),
    )
}

fn core_pattern() -> Check {
    match host::setting("/proc/sys/kernel/core_pattern") {
        Ok(pattern) => judge_core_pattern(&pattern.unwrap_or_default()),
        Err(error) => unreadable("core_pattern", &error),
    }
}

fn judge_core_pattern(pattern: &str) -> Check {
    match pattern.strip_prefix('|') {
        None => Check::ok("core_pattern", format!("`{pattern}`, no program")),
        Some(program) => Check::warn(
            "core_pattern",
            format!("a crash is piped into `{}`", program.trim()),
            "that program runs as root and reads the memory of a crashed sandbox: `sysctl -w kernel.core_pattern=core` on hosts of sandboxes alone",
        ),
    }
}

fn ksm() -> Check {
    match host::setting("/sys/kernel/mm/ksm/run") {
        Ok(run) => judge_ksm(run.as_deref()),
        Err(error) => unreadable("ksm", &error),
    }
}

fn judge_ksm(run: Option<&str>) -> Check {
    match run {
        None => Check::ok("ksm", "not part of this kernel"),
        Some("1") => Check::warn(
            "ksm",
            "memory of different processes is merged, and by the time a write takes one sandbox can tell what another holds",
            "`echo 2 > /sys/kernel/mm/ksm/run`, which takes it apart again",
        ),
        Some(_) => Check::ok("ksm", "off"),
    }
}

fn cpu_vulnerabilities() -> Check {
    match host::vulnerabilities() {
        Ok(names) => judge_vulnerabilities(&names),
        Err(error) => unreadable("cpu_vulnerabilities", &error),
    }
}

fn judge_vulnerabilities(names: &[String]) -> Check {
    if names.is_empty() {
        return Check::ok("cpu_vulnerabilities", "the kernel knows none that is open");
    }
    Check::warn(
        "cpu_vulnerabilities",
        format!(
            "the kernel calls this processor vulnerable: {}",
            names.join(", ")
        ),
        "update kernel and microcode, in a virtual machine those of its host, and boot without `mitigations=off`; `grep . /sys/devices/system/cpu/vulnerabilities/*` says more",
    )
}

/// What `rcu_expedited` was measured to change: see docs/doctor.md.
const RCU_MEASURED: &str = "`echo 1 > /sys/kernel/rcu_expedited` made `tako-vm run` faster, 206 ms instead of 261 (medians of 25 interleaved runs, November 2026, 2 cores, Linux 6.18); it costs every processor of the host interruptions, and lasts until the next boot";

fn start_speed() -> Check {
    match host::setting("/sys/kernel/rcu_expedited") {
        Ok(value) => judge_start_speed(value.as_deref()),
        Err(error) => unreadable("start_speed", &error),
    }
}

fn judge_start_speed(rcu_expedited: Option<&str>) -> Check {
    match rcu_expedited {
        None => Check::ok(
            "start_speed",
            "this kernel has no switch that is known to help",
        ),
        Some("0") => Check::ok(
            "start_speed",
            "one switch of the host is known to help, and is off",
        )
        .with_details(vec![RCU_MEASURED.to_owned()]),
        Some(_) => Check::ok("start_speed", "`rcu_expedited` is on"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::report::Verdict;
    use std::path::PathBuf;

    #[test]
    fn old_kernels_fail_sooner_with_version_2() {
        let verdict = |release, v2| judge_kernel(release, "x86_64", v2).verdict;
        assert_eq!(verdict("5.10.0-30-amd64", false), Verdict::Fail);
        assert_eq!(verdict("5.15.0", false), Verdict::Ok);
        assert_eq!(verdict("5.15.0", true), Verdict::Fail);
        assert_eq!(verdict("6.1.0-44-cloud-amd64", true), Verdict::Ok);
        assert_eq!(verdict("?", true), Verdict::Warn);
        assert_eq!(
            judge_kernel("6.1.0", "aarch64", true).verdict,
            Verdict::Warn
        );
    }

    #[test]
    fn missing_controllers_are_named() {
        let v2 = |names: &[&str]| Mounted {
            version: Version::V2,
            path: PathBuf::from("/sys/fs/cgroup"),
            controllers: names.iter().map(ToString::to_string).collect(),
        };
        let check = judge_cgroups(&[v2(&["cpu", "memory", "pids"])]);
        assert_eq!(
            (check.verdict, check.found.as_str()),
            (Verdict::Ok, "version 2")
        );
        assert_eq!(
            check.details,
            ["`/sys/fs/cgroup`, version 2: cpu, memory, pids"]
        );
        let check = judge_cgroups(&[v2(&["cpu"])]);
        assert_eq!(check.verdict, Verdict::Fail);
        assert!(
            check.found.ends_with("no controller memory, pids"),
            "{}",
            check.found
        );
        assert_eq!(judge_cgroups(&[]).verdict, Verdict::Fail);
    }

    #[test]
    fn a_disk_that_cannot_be_used_fails_and_a_nearly_full_one_warns() {
        let good = host::Space {
            free_bytes: 10 << 30,
            free_files: None,
            read_only: false,
            no_exec: false,
        };
        let verdict = |space| judge_disk(Path::new("/state"), space).verdict;
        assert_eq!(verdict(good), Verdict::Ok);
        for (bytes, files, expected) in [
            (500 << 20, 1 << 20, Verdict::Warn),
            (10 << 30, 5000, Verdict::Warn),
            (10 << 20, 1 << 20, Verdict::Fail),
            (10 << 30, 10, Verdict::Fail),
        ] {
            let space = host::Space {
                free_bytes: bytes,
                free_files: Some(files),
                ..good
            };
            assert_eq!(verdict(space), expected, "{bytes} {files}");
        }
        for space in [
            host::Space {
                read_only: true,
                ..good
            },
            host::Space {
                no_exec: true,
                ..good
            },
        ] {
            assert_eq!(verdict(space), Verdict::Fail);
        }
    }

    #[test]
    fn swap_is_fine_when_it_can_be_limited() {
        let swaps = [("/dev/vdb2".to_owned(), 1 << 30)];
        assert_eq!(judge_swap(&[], false).verdict, Verdict::Ok);
        assert_eq!(judge_swap(&swaps, true).verdict, Verdict::Ok);
        let check = judge_swap(&swaps, false);
        assert_eq!(check.verdict, Verdict::Fail);
        assert!(
            check.found.contains("`/dev/vdb2` of 1024 MiB"),
            "{}",
            check.found
        );
    }

    #[test]
    fn settings_that_help_an_attacker_warn_with_how_to_change_them() {
        let off = [
            "fs.protected_fifos".to_owned(),
            "fs.protected_regular".to_owned(),
        ];
        let fix = judge_protected_links(&off).fix.unwrap();
        assert!(
            fix.contains("sysctl -w fs.protected_fifos=1 fs.protected_regular=1"),
            "{fix}"
        );
        let crash = judge_core_pattern("|/usr/share/apport/apport %p");
        assert_eq!(crash.verdict, Verdict::Warn);
        for (check, expected) in [
            (judge_protected_links(&[]), Verdict::Ok),
            (judge_core_pattern("core"), Verdict::Ok),
            (judge_core_pattern("/var/crash/%p"), Verdict::Ok),
            (judge_ksm(None), Verdict::Ok),
            (judge_ksm(Some("0")), Verdict::Ok),
            (judge_ksm(Some("2")), Verdict::Ok),
            (judge_ksm(Some("1")), Verdict::Warn),
            (judge_clock(Some("tsc"), true), Verdict::Ok),
            (judge_clock(Some("tsc"), false), Verdict::Warn),
            (judge_clock(Some("hpet"), true), Verdict::Warn),
            (judge_vulnerabilities(&[]), Verdict::Ok),
            (
                judge_vulnerabilities(&["meltdown".to_owned()]),
                Verdict::Warn,
            ),
        ] {
            assert_eq!(check.verdict, expected, "{check:?}");
        }
    }
}
