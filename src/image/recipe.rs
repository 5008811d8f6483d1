//! The recipe of the executor image, carried inside `tako-vm`, and the digests that tell whether an
//! image was made by this very recipe.

use crate::image::manifest::ImageName;
use crate::sys::digest::Digest;
use serde::Deserialize;

/// What is added to the unpacked packages, last: path in the tree, bytes, mode.
pub const ADDITIONS: [(&str, &[u8], u32); 3] = [
    (
        "usr/lib/tako-vm/tako-init",
        include_bytes!(concat!(env!("OUT_DIR"), "/tako-init")),
        0o755,
    ),
    (
        "usr/lib/python3/dist-packages/tako_vm_hook.py",
        include_bytes!("../../rootfs/python/tako_vm_hook.py"),
        0o644,
    ),
    (
        "usr/lib/python3/dist-packages/tako_vm.pth",
        include_bytes!("../../rootfs/python/tako_vm.pth"),
        0o644,
    ),
];

/// The arguments of `mmdebstrap` that do not depend on the host; the reason of each stands in
/// `rootfs/python/README.md`.
pub const BOOTSTRAP: [&str; 10] = [
    "--variant=extract",
    "--mode=root",
    "--format=directory",
    "--skip=chroot/mount,chroot/policy-rc.d,chroot/start-stop-daemon,cleanup,output/dev",
    "--aptopt=APT::Install-Recommends \"false\"",
    "--aptopt=APT::Install-Suggests \"false\"",
    "--aptopt=APT::Get::AllowUnauthenticated \"false\"",
    "--aptopt=Acquire::AllowInsecureRepositories \"false\"",
    "--aptopt=Acquire::Languages \"none\"",
    "--aptopt=Acquire::Retries \"2\"",
];

/// The arguments of `mkfs.erofs` before the two paths.
///
/// `-T`: 1980-01-01, the earliest modification time that a ZIP file can hold; `zipfile` refuses
/// files that are older. `-U`: any, but always the same.
pub const MAKE_EROFS: [&str; 7] = [
    "--quiet",
    "-x-1",
    "-E",
    "noinline_data",
    "-T315532800",
    "-U",
    "7a6b6f00-0000-4000-8000-000000000001",
];

const TOML: &str = include_str!("../../rootfs/python/recipe.toml");
const CUSTOMIZE: &str = include_str!("../../rootfs/python/customize.sh");

/// What an image is made of, and how.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// What the image will be called.
    pub name: ImageName,
    /// The release of Debian.
    pub suite: String,
    /// The packages asked for; those they depend on come along.
    pub packages: Vec<String>,
    /// The script that makes the tree of the unpacked packages.
    pub customize: &'static str,
    /// SHA-256 of everything above and of the arguments of the tools.
    pub digest: Digest,
}

/// The fields of `recipe.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: ImageName,
    suite: String,
    #[serde(rename = "python")]
    _python: String,
    packages: Vec<String>,
}

/// Why the recipe cannot be read: a defect of this `tako-vm`.
#[derive(Debug, thiserror::Error)]
#[error("the recipe of the executor image cannot be read")]
pub struct RecipeError {
    source: toml::de::Error,
}

impl Recipe {
    /// That of the image `python`.
    ///
    /// # Errors
    /// [`RecipeError`], which a test excludes.
    pub fn python() -> Result<Self, RecipeError> {
        let written: Written = toml::from_str(TOML).map_err(|source| RecipeError { source })?;
        let mut parts = vec![TOML.as_bytes(), CUSTOMIZE.as_bytes()];
        parts.extend(BOOTSTRAP.iter().map(|argument| argument.as_bytes()));
        Ok(Self {
            name: written.name,
            suite: written.suite,
            packages: written.packages,
            customize: CUSTOMIZE,
            digest: digest_of_parts(&parts),
        })
    }

    /// This one under another name, with further packages.
    #[must_use]
    pub fn with(mut self, name: ImageName, packages: &[&str]) -> Self {
        let digest = self.digest.to_string();
        let mut parts = vec![digest.as_bytes(), name.as_str().as_bytes()];
        parts.extend(packages.iter().map(|package| package.as_bytes()));
        self.digest = digest_of_parts(&parts);
        self.name = name;
        self.packages
            .extend(packages.iter().map(ToString::to_string));
        self
    }
}

/// SHA-256 of [`ADDITIONS`] and [`MAKE_EROFS`]: the last, cheap step.
pub fn init_digest() -> Digest {
    let mut parts: Vec<&[u8]> = Vec::new();
    for (path, bytes, _) in ADDITIONS {
        parts.extend([path.as_bytes(), bytes]);
    }
    parts.extend(MAKE_EROFS.iter().map(|argument| argument.as_bytes()));
    digest_of_parts(&parts)
}

/// SHA-256 over the SHA-256 of each part: no part can run into the next.
fn digest_of_parts(parts: &[&[u8]]) -> Digest {
    let mut all = String::new();
    for part in parts {
        all.push_str(&Digest::of(part).to_string());
    }
    Digest::of(all.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recipe_that_is_carried_along_can_be_read() {
        let recipe = Recipe::python().unwrap();
        assert_eq!(recipe.name.as_str(), "python");
        assert_eq!(recipe.suite, "bookworm");
        assert!(recipe.packages.iter().any(|package| package == "python3"));
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
        for package in &recipe.packages {
            assert!(package.chars().all(plain), "{package}");
        }
    }

    #[test]
    fn further_packages_make_another_recipe() {
        let python = Recipe::python().unwrap();
        let name: ImageName = "science".parse().unwrap();
        let science = python.clone().with(name.clone(), &["python3-numpy"]);
        assert_eq!(science.name, name);
        assert_eq!(science.packages.len(), python.packages.len() + 1);
        assert_ne!(science.digest, python.digest);
        assert_ne!(science.digest, python.clone().with(name, &[]).digest);
    }

    #[test]
    fn a_part_cannot_run_into_the_next() {
        assert_ne!(
            digest_of_parts(&[b"ab", b"c"]),
            digest_of_parts(&[b"a", b"bc"])
        );
    }

    #[test]
    fn the_guest_protocol_names_init_where_it_is_put() {
        assert_eq!(tako_guest::INIT_PATH, format!("/{}", ADDITIONS[0].0));
    }
}
