//! The OCI bundle of one sandbox: what a runtime is told to build.
//!
//! The specification is a pure function of an image, a cgroup and limits. No byte of a caller can
//! reach it: a job's code, input, names and environment travel to the guest as frames.

pub mod seccomp;
mod spec;

pub use spec::{Isolation, Profile, spec};

use oci_spec::runtime::Spec;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Why a bundle could not be made.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
pub enum BundleError {
    #[error("cannot build the specification of a sandbox")]
    Spec { source: oci_spec::OciSpecError },
    #[error("cannot write the specification of a sandbox")]
    Encode { source: serde_json::Error },
    #[error("cannot make `{}`", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Writes `config.json` and the empty root directory that runsc asks for (a container has its root
/// elsewhere) into `directory`, which exists and belongs to root alone.
///
/// # Errors
/// When one of them exists already or cannot be written.
pub fn write(directory: &Path, spec: &Spec) -> Result<(), BundleError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| BundleError::Write { path, source }
    };
    let root = directory.join(spec::ROOT);
    DirBuilder::new()
        .mode(0o700)
        .create(&root)
        .map_err(failed(&root))?;
    let config = directory.join("config.json");
    let text = serde_json::to_vec(spec).map_err(|source| BundleError::Encode { source })?;
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&config)
        .and_then(|mut file| file.write_all(&text))
        .map_err(failed(&config))
}
