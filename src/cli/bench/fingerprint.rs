//! What the figures were measured on: without it they say nothing.

use crate::image::Images;
use crate::runsc::provision;
use crate::sys::cgroup;
use crate::sys::host;
use serde::Serialize;
use std::fmt;
use std::io;
use std::path::Path;

/// What the figures were measured on.
#[derive(Debug, Clone, Serialize)]
pub struct Fingerprint {
    kernel: String,
    architecture: &'static str,
    cpu: String,
    cores: usize,
    memory_mib: u64,
    cgroups: &'static str,
    /// Nothing where there is none, or none that this user may look at.
    runsc: Option<Release>,
    image: Option<Content>,
    tako_vm: &'static str,
    build: &'static str,
    /// Of the last 1, 5 and 15 minutes, before anything was measured: what else the machine did.
    load: Vec<f64>,
}

#[derive(Debug, Clone, Serialize)]
struct Release {
    release: String,
    digest: String,
}

#[derive(Debug, Clone, Serialize)]
struct Content {
    name: String,
    digest: String,
}

impl Fingerprint {
    /// Reads it, for a state directory and the image that is used.
    ///
    /// # Errors
    /// Those of reading what the kernel says.
    pub fn read(state_dir: &Path, image: &str) -> io::Result<Self> {
        let setting = |path: &str| host::setting(path).map(Option::unwrap_or_default);
        let mounted = cgroup::mounted().map_err(io::Error::other)?;
        let runsc = provision::installed(state_dir).ok();
        let image = Images::at(state_dir).find(image).ok();
        Ok(Self {
            kernel: setting("/proc/sys/kernel/osrelease")?,
            architecture: std::env::consts::ARCH,
            cpu: host::cpu_model()?,
            cores: std::thread::available_parallelism()?.get(),
            memory_mib: host::memory_bytes()? >> 20,
            cgroups: cgroup::versions(&mounted),
            runsc: runsc.map(|runsc| Release {
                release: runsc.version,
                digest: runsc.identity,
            }),
            image: image.map(|image| Content {
                name: image.manifest.name.to_string(),
                digest: image.manifest.digest.to_string(),
            }),
            tako_vm: env!("CARGO_PKG_VERSION"),
            build: if cfg!(debug_assertions) {
                "debug"
            } else {
                "release"
            },
            load: host::load()?,
        })
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runsc = self.runsc.as_ref();
        let image = self.image.as_ref();
        let short = |digest: &str| digest.chars().take(12).collect::<String>();
        write!(
            formatter,
            "host: Linux {}, {} cores of {}, {} MiB, cgroups: {}; load {}\n\
             tako-vm {} ({} build); runsc {}; image {}",
            self.kernel,
            self.cores,
            self.cpu,
            self.memory_mib,
            self.cgroups,
            self.load.first().copied().unwrap_or(f64::NAN),
            self.tako_vm,
            self.build,
            runsc.map_or_else(
                || "unknown".to_owned(),
                |runsc| format!("{} ({})", runsc.release, short(&runsc.digest))
            ),
            image.map_or_else(
                || "unknown".to_owned(),
                |image| format!("{} ({})", image.name, short(&image.digest))
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_runsc_and_image_has_all_other_fields() {
        let empty = tempfile::tempdir().unwrap();
        let fingerprint = Fingerprint::read(empty.path(), "python").unwrap();
        let value = serde_json::to_value(&fingerprint).unwrap();
        for text in ["kernel", "architecture", "cpu", "cgroups", "build"] {
            assert!(!value[text].as_str().unwrap().is_empty(), "{text}");
        }
        assert!(value["cores"].as_u64().unwrap() > 0);
        assert!(value["memory_mib"].as_u64().unwrap() > 0);
        assert_eq!(value["load"].as_array().unwrap().len(), 3);
        assert_eq!(value["tako_vm"], env!("CARGO_PKG_VERSION"));
        assert!(value["runsc"].is_null() && value["image"].is_null());
        let text = fingerprint.to_string();
        assert_eq!(text.lines().count(), 2, "{text}");
    }
}
