//! shim
#![expect(missing_docs, reason = "shim")]
use std::path::{Path, PathBuf};
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct ImageError;
pub struct Manifest {
    pub name: String,
}
pub struct Image {
    pub manifest: Manifest,
    pub path: PathBuf,
}
pub struct Images(PathBuf);
impl Images {
    pub fn at(p: &Path) -> Self {
        Self(p.to_owned())
    }
    pub fn find(&self, n: &str) -> Result<Image, ImageError> {
        Ok(Image {
            manifest: Manifest { name: n.to_owned() },
            path: self.0.join("img.erofs"),
        })
    }
}
