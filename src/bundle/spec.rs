//! The runtime specification (`config.json`), as the OCI runtime spec 1.0.2 defines it.

use super::BundleError;
use crate::job::Limits;
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capability, LinuxBuilder, LinuxCapabilities, LinuxCapabilitiesBuilder, LinuxNamespaceBuilder,
    LinuxNamespaceType, LinuxSeccomp, Mount, MountBuilder, PosixRlimit, PosixRlimitBuilder,
    PosixRlimitType, Process, ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
};
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

/// The bundle's root directory: empty, since the root file system is an EROFS image.
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

/// What one sandbox is made of. Nothing here comes from a caller.
#[derive(Debug, Clone)]
pub struct Profile {
    /// The EROFS file with the root file system.
    pub image: PathBuf,
    /// `tako-init` inside it.
    pub init: &'static str,
    /// The cgroup leaf, made and limited already.
    pub cgroups_path: String,
    /// Limits that are fixed when the sandbox starts.
    pub limits: Limits,
    /// The system calls that the guest may make.
    pub seccomp: LinuxSeccomp,
}

/// The specification of a sandbox.
///
/// # Errors
/// [`BundleError::Spec`] when oci-spec refuses a value, which would be a defect of ours.
pub fn spec(profile: &Profile) -> Result<Spec, BundleError> {
    build(profile).map_err(|source| BundleError::Spec { source })
}

fn build(profile: &Profile) -> Result<Spec, OciSpecError> {
    let namespaces = [
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Network,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Mount,
    ];
    let namespaces = namespaces
        .into_iter()
        .map(|kind| LinuxNamespaceBuilder::default().typ(kind).build());
    // No `resources`: the leaf carries the limits, and runsc is not to touch them.
    let linux = LinuxBuilder::default()
        .cgroups_path(&profile.cgroups_path)
        .namespaces(namespaces.collect::<Result<Vec<_>, _>>()?)
        .seccomp(profile.seccomp.clone())
        .build()?;
    let mut spec = SpecBuilder::default()
        .version("1.0.2")
        .root(RootBuilder::default().path(ROOT).readonly(true).build()?)
        .hostname(HOSTNAME)
        .process(process(profile)?)
        .mounts(mounts(&profile.limits)?)
        .annotations(annotations(profile))
        .build()?;
    // The builder fills in a default where nothing is given; ours is given in full.
    spec.set_linux(Some(clear_resources(linux)));
    Ok(spec)
}

fn clear_resources(mut linux: oci_spec::runtime::Linux) -> oci_spec::runtime::Linux {
    linux
        .set_resources(None)
        .set_masked_paths(None)
        .set_readonly_paths(None);
    linux
}

/// gVisor's own way to mount an EROFS image as root; without an overlay annotation it is read-only.
fn annotations(profile: &Profile) -> HashMap<String, String> {
    HashMap::from([
        (
            "dev.gvisor.spec.rootfs.source".to_owned(),
            profile.image.display().to_string(),
        ),
        ("dev.gvisor.spec.rootfs.type".to_owned(), "erofs".to_owned()),
    ])
}

fn process(profile: &Profile) -> Result<Process, OciSpecError> {
    ProcessBuilder::default()
        .terminal(false)
        .user(UserBuilder::default().uid(0u32).gid(0u32).build()?)
        .args(vec![profile.init.to_owned()])
        .env(Vec::new())
        .cwd("/")
        .capabilities(capabilities()?)
        .rlimits(rlimits(&profile.limits)?)
        .no_new_privileges(true)
        .build()
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

fn rlimits(limits: &Limits) -> Result<Vec<PosixRlimit>, OciSpecError> {
    let all = [
        (PosixRlimitType::RlimitNofile, u64::from(limits.open_files)),
        (PosixRlimitType::RlimitNproc, u64::from(limits.processes)),
        (PosixRlimitType::RlimitFsize, limits.file_bytes),
        (PosixRlimitType::RlimitCore, 0),
    ];
    let build = |(kind, bound)| {
        PosixRlimitBuilder::default()
            .typ(kind)
            .soft(bound)
            .hard(bound)
            .build()
    };
    all.into_iter().map(build).collect()
}

fn mounts(limits: &Limits) -> Result<Vec<Mount>, OciSpecError> {
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
    let all = [
        ("/dev/shm", 0o1777, SHM_BYTES),
        ("/run", 0o755, RUN_BYTES),
        ("/code", 0o755, CODE_BYTES),
        ("/input", 0o755, INPUT_BYTES),
        ("/output", 0o1777, output),
        ("/tmp", 0o1777, limits.tmp_bytes),
    ];
    for (destination, mode, size) in all {
        mounts.push(tmpfs(destination, mode, size)?);
    }
    Ok(mounts)
}

fn tmpfs(destination: &str, mode: u32, size: u64) -> Result<Mount, OciSpecError> {
    let sizes = [format!("mode={mode:o}"), format!("size={size}")];
    let options = ["nosuid", "nodev", "noexec"]
        .map(str::to_owned)
        .into_iter()
        .chain(sizes);
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
            image: "/images/python.erofs".into(),
            init: "/usr/lib/tako-vm/tako-init",
            cgroups_path: "/tako-vm/tako-0123".to_owned(),
            limits: Limits::default(),
            seccomp: seccomp::load().unwrap(),
        }
    }

    #[test]
    fn the_specification_is_this_and_nothing_more() {
        let mut value = serde_json::to_value(spec(&profile()).unwrap()).unwrap();
        // The profile has tests of its own.
        assert!(
            value["linux"]
                .as_object_mut()
                .unwrap()
                .remove("seccomp")
                .is_some()
        );
        // oci-spec keeps capabilities in hash sets.
        for set in value["process"]["capabilities"]
            .as_object_mut()
            .unwrap()
            .values_mut()
        {
            set.as_array_mut()
                .unwrap()
                .sort_by_key(serde_json::Value::to_string);
        }
        insta::assert_snapshot!(serde_json::to_string_pretty(&value).unwrap());
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
