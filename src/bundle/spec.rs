//! The runtime specification (`config.json`), as the OCI runtime spec 1.0.2 defines it.

use super::{BundleError, seccomp};
use crate::job::Limits;
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capability, Linux, LinuxBuilder, LinuxCapabilities, LinuxCapabilitiesBuilder, LinuxIdMapping,
    LinuxIdMappingBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxSeccomp, Mount,
    MountBuilder, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, ProcessBuilder,
    RootBuilder, Spec, SpecBuilder, UserBuilder,
};
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

/// The bundle's root directory: empty, since gVisor mounts the EROFS image itself.
pub(super) const ROOT: &str = "rootfs";

/// The host name inside; the image's `/etc/hosts` knows it.
const HOSTNAME: &str = "sandbox";

/// Size of `/code`: one source file of at most 1 MiB.
const CODE_BYTES: u64 = 2 << 20;

/// Size of `/input`: at most 64 MiB of files, 1 MiB of JSON, and page rounding.
const INPUT_BYTES: u64 = 66 << 20;

/// Size of `/dev/shm`, without which `multiprocessing` fails: Docker's default.
const SHM_BYTES: u64 = 64 << 20;

/// Size of `/run`, which holds init's FIFO and nothing else.
const RUN_BYTES: u64 = 1 << 20;

/// Size of a container's `/dev`: a handful of entries.
const DEV_BYTES: u64 = 64 << 10;

/// Bytes that a program in a container may lock in memory: Linux's own default before 5.16.
const LOCKED_BYTES: u64 = 64 << 10;

/// The uids and gids of a container: init's, and the program's. Nobody else is known inside.
const IDS: [u32; 2] = [0, 1000];

/// What of `/proc` a container may not read: runc's own list, `/sys` aside, which is empty.
const MASKED: [&str; 9] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
];

/// What of `/proc` a container may not change: runc's own list.
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// What one sandbox is made of. Nothing here comes from a caller.
#[derive(Debug, Clone)]
pub struct Profile {
    /// What isolates it from the host, and where its root file system is.
    pub isolation: Isolation,
    /// `tako-init` inside it.
    pub init: &'static str,
    /// The cgroup leaf, made and limited already.
    pub cgroups_path: String,
    /// Limits that are fixed when the sandbox starts.
    pub limits: Limits,
    /// The system calls that the guest may make.
    pub seccomp: LinuxSeccomp,
}

/// What stands between a program and the host.
#[derive(Debug, Clone)]
pub enum Isolation {
    /// gVisor, a kernel of its own.
    Gvisor {
        /// The EROFS file with the root file system.
        image: PathBuf,
    },
    /// A container: namespaces of the host's kernel.
    Container {
        /// Where the root file system is mounted.
        root: PathBuf,
        /// The host's uid and gid that is 0 inside; another id lies as far above it.
        first_id: u32,
    },
}

/// The specification of a sandbox.
///
/// # Errors
/// [`BundleError::Spec`] when oci-spec refuses a value, which would be a defect of ours.
pub fn spec(profile: &Profile) -> Result<Spec, BundleError> {
    build(profile).map_err(|source| BundleError::Spec { source })
}

fn build(profile: &Profile) -> Result<Spec, OciSpecError> {
    let root = match &profile.isolation {
        Isolation::Gvisor { .. } => ROOT.into(),
        Isolation::Container { root, .. } => root.clone(),
    };
    let mut spec = SpecBuilder::default()
        .version("1.0.2")
        .root(RootBuilder::default().path(root).readonly(true).build()?)
        .hostname(HOSTNAME)
        .process(process(profile)?)
        .mounts(mounts(profile)?)
        .annotations(annotations(&profile.isolation))
        .build()?;
    // The builder fills in a default where nothing is given; ours is given in full.
    spec.set_linux(Some(linux(profile)?));
    Ok(spec)
}

fn linux(profile: &Profile) -> Result<Linux, OciSpecError> {
    let mut kinds = vec![
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Network,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Mount,
    ];
    let isolation = &profile.isolation;
    if let Isolation::Container { .. } = isolation {
        kinds.extend([LinuxNamespaceType::Cgroup, LinuxNamespaceType::User]);
    }
    let namespaces = kinds
        .into_iter()
        .map(|kind| LinuxNamespaceBuilder::default().typ(kind).build());
    let mut linux = LinuxBuilder::default()
        .cgroups_path(&profile.cgroups_path)
        .namespaces(namespaces.collect::<Result<Vec<_>, _>>()?)
        .build()?;
    // No `resources`: the leaf carries the limits, and no runtime is to touch them.
    linux
        .set_resources(None)
        .set_masked_paths(None)
        .set_readonly_paths(None);
    match *isolation {
        Isolation::Gvisor { .. } => linux.set_seccomp(Some(profile.seccomp.clone())),
        Isolation::Container { first_id, .. } => linux
            .set_seccomp(Some(seccomp::for_linux(profile.seccomp.clone())?))
            .set_uid_mappings(Some(id_mappings(first_id)?))
            .set_gid_mappings(Some(id_mappings(first_id)?))
            .set_masked_paths(Some(MASKED.map(str::to_owned).to_vec()))
            .set_readonly_paths(Some(READ_ONLY.map(str::to_owned).to_vec())),
    };
    Ok(linux)
}

/// Root of the container is nobody on the host, and so is its program.
fn id_mappings(first: u32) -> Result<Vec<LinuxIdMapping>, OciSpecError> {
    let one = |id: u32| {
        LinuxIdMappingBuilder::default()
            .container_id(id)
            .host_id(first + id)
            .size(1u32)
            .build()
    };
    IDS.into_iter().map(one).collect()
}

/// gVisor's own way to mount an EROFS image as root; without an overlay annotation it is read-only.
fn annotations(isolation: &Isolation) -> HashMap<String, String> {
    match isolation {
        Isolation::Gvisor { image } => HashMap::from([
            (
                "dev.gvisor.spec.rootfs.source".to_owned(),
                image.display().to_string(),
            ),
            ("dev.gvisor.spec.rootfs.type".to_owned(), "erofs".to_owned()),
        ]),
        Isolation::Container { .. } => HashMap::new(),
    }
}

fn process(profile: &Profile) -> Result<Process, OciSpecError> {
    let mut process = ProcessBuilder::default()
        .terminal(false)
        .user(UserBuilder::default().uid(0u32).gid(0u32).build()?)
        .args(vec![profile.init.to_owned()])
        .env(Vec::new())
        .cwd("/")
        .capabilities(capabilities()?)
        .rlimits(rlimits(profile)?)
        .no_new_privileges(true)
        .build()?;
    if let Isolation::Container { .. } = profile.isolation {
        // A caller whom the kernel is to spare when memory is short does not pass that on.
        process.set_oom_score_adj(Some(0));
    }
    Ok(process)
}

/// What init needs to start the program as another user and to kill it, and nothing to inherit.
fn capabilities() -> Result<LinuxCapabilities, OciSpecError> {
    let needed = HashSet::from([Capability::Setuid, Capability::Setgid, Capability::Kill]);
    LinuxCapabilitiesBuilder::default()
        .bounding(needed.clone())
        .effective(needed.clone())
        .permitted(needed)
        .inheritable(HashSet::new())
        .ambient(HashSet::new())
        .build()
}

fn rlimits(profile: &Profile) -> Result<Vec<PosixRlimit>, OciSpecError> {
    let limits = &profile.limits;
    let mut all = vec![
        (PosixRlimitType::RlimitNofile, u64::from(limits.open_files)),
        (PosixRlimitType::RlimitNproc, u64::from(limits.processes)),
        (PosixRlimitType::RlimitFsize, limits.file_bytes),
        (PosixRlimitType::RlimitCore, 0),
    ];
    if let Isolation::Container { .. } = profile.isolation {
        // The host's own scheduler and memory: no real-time policy, no better priority, little locked.
        all.extend([
            (PosixRlimitType::RlimitRtprio, 0),
            (PosixRlimitType::RlimitNice, 0),
            (PosixRlimitType::RlimitMemlock, LOCKED_BYTES),
        ]);
    }
    let build = |(kind, bound)| {
        PosixRlimitBuilder::default()
            .typ(kind)
            .soft(bound)
            .hard(bound)
            .build()
    };
    all.into_iter().map(build).collect()
}

fn mounts(profile: &Profile) -> Result<Vec<Mount>, OciSpecError> {
    let limits = &profile.limits;
    // Some room above what will be collected: block rounding, and files that are then skipped.
    let output = limits.artifacts_total_bytes + limits.artifacts_total_bytes / 10;
    let mut mounts = vec![
        MountBuilder::default()
            .destination("/proc")
            .typ("proc")
            .source("proc")
            .options(["nosuid", "nodev", "noexec"].map(str::to_owned))
            .build()?,
    ];
    if let Isolation::Container { .. } = profile.isolation {
        // gVisor has one of its own. Devices are bound here from the host's: no `nodev`.
        mounts.push(tmpfs("/dev", &["nosuid", "noexec"], 0o755, DEV_BYTES)?);
    }
    let all = [
        ("/dev/shm", 0o1777, SHM_BYTES),
        ("/run", 0o755, RUN_BYTES),
        ("/code", 0o755, CODE_BYTES),
        ("/input", 0o755, INPUT_BYTES),
        ("/output", 0o1777, output),
        ("/tmp", 0o1777, limits.tmp_bytes),
    ];
    for (destination, mode, size) in all {
        let options = ["nosuid", "nodev", "noexec"];
        mounts.push(tmpfs(destination, &options, mode, size)?);
    }
    Ok(mounts)
}

fn tmpfs(destination: &str, options: &[&str], mode: u32, size: u64) -> Result<Mount, OciSpecError> {
    let sizes = [format!("mode={mode:o}"), format!("size={size}")];
    let options = options.iter().map(ToString::to_string).chain(sizes);
    MountBuilder::default()
        .destination(destination)
        .typ("tmpfs")
        .source("tmpfs")
        .options(options.collect::<Vec<_>>())
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::seccomp;

    fn profile() -> Profile {
        Profile {
            isolation: Isolation::Gvisor {
                image: "/images/python.erofs".into(),
            },
            init: "/usr/lib/tako-vm/tako-init",
            cgroups_path: "/tako-vm/tako-0123".to_owned(),
            limits: Limits::default(),
            seccomp: seccomp::load().unwrap(),
        }
    }

    fn container() -> Profile {
        Profile {
            isolation: Isolation::Container {
                root: "/sys/firmware".into(),
                first_id: 1_900_000_000,
            },
            ..profile()
        }
    }

    /// The specification for people to review, without the seccomp profile, which has tests of its own.
    fn review(profile: &Profile) -> String {
        let mut value = serde_json::to_value(spec(profile).unwrap()).unwrap();
        let linux = value["linux"].as_object_mut().unwrap();
        assert!(linux.remove("seccomp").is_some());
        // oci-spec keeps capabilities in hash sets.
        let sets = value["process"]["capabilities"].as_object_mut().unwrap();
        for set in sets.values_mut() {
            let set = set.as_array_mut().unwrap();
            set.sort_by_key(serde_json::Value::to_string);
        }
        serde_json::to_string_pretty(&value).unwrap()
    }

    #[test]
    fn the_specification_is_this_and_nothing_more() {
        insta::assert_snapshot!(review(&profile()));
    }

    #[test]
    fn the_specification_of_a_container_is_this_and_nothing_more() {
        insta::assert_snapshot!(review(&container()));
    }

    #[test]
    fn the_annotations_are_the_two_that_name_the_image() {
        let spec = spec(&profile()).unwrap();
        let mut names: Vec<_> = spec.annotations().as_ref().unwrap().keys().collect();
        names.sort();
        assert_eq!(
            names,
            [
                "dev.gvisor.spec.rootfs.source",
                "dev.gvisor.spec.rootfs.type"
            ]
        );
    }

    #[test]
    fn limits_reach_the_guest_as_numbers() {
        let mut smaller = profile();
        smaller.limits.processes = 7;
        smaller.limits.tmp_bytes = 4096;
        let text = serde_json::to_string(&spec(&smaller).unwrap()).unwrap();
        assert!(
            text.contains(r#"{"type":"RLIMIT_NPROC","hard":7,"soft":7}"#),
            "{text}"
        );
        assert!(text.contains("size=4096"), "{text}");
    }
}
