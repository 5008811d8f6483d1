//! shim
#![expect(missing_docs, reason = "shim")]
use std::path::{Path, PathBuf};
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct ProvisionError;
pub struct Installed {
    pub binary: PathBuf,
}
pub fn installed(p: &Path) -> Result<Installed, ProvisionError> {
    Ok(Installed {
        binary: p.join("runsc"),
    })
}
