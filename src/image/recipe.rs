//! The recipes of the executor images, carried inside `tako-vm`, and the digests that tell whether an
//! image was made by this very recipe.

use crate::image::manifest::ImageName;
use crate::sys::digest::Digest;
use serde::Deserialize;

/// What is added to the unpacked packages, last: path in the tree, bytes, mode.
pub const ADDITIONS: [(&str, &[u8], u32); 4] = [
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
    (
        "usr/lib/tako-vm/end.so",
        include_bytes!(concat!(env!("OUT_DIR"), "/end.so")),
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

/// Where in an image stands what an interpreter that is held ready has imported before it gets its
/// program: one module a line. An image without such modules has no such file.
pub const PRELOAD: &str = "usr/share/tako-vm/preload";

/// `rootfs/python`: what its script makes of the unpacked packages, it makes in every image.
const PYTHON: Source = Source {
    toml: include_str!("../../rootfs/python/recipe.toml"),
    customize: include_str!("../../rootfs/python/customize.sh"),
};

/// `rootfs/data`, which extends `python`.
const DATA: Source = Source {
    toml: include_str!("../../rootfs/data/recipe.toml"),
    customize: include_str!("../../rootfs/data/customize.sh"),
};

/// The files of a recipe.
struct Source {
    toml: &'static str,
    customize: &'static str,
}

/// What an image is made of, and how.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// What the image will be called.
    pub name: ImageName,
    /// The release of Debian.
    pub suite: String,
    /// The packages asked for; those they depend on come along.
    pub packages: Vec<String>,
    /// Modules that an interpreter which is held ready has imported before it gets its program.
    pub preload: Vec<String>,
    /// About how large everything is.
    pub megabytes: Megabytes,
    /// The scripts that make the tree of the unpacked packages: names, by which the first finds the
    /// others, and texts.
    pub customize: Vec<(&'static str, &'static str)>,
    /// SHA-256 of everything that decides what the unpacked packages become.
    pub digest: Digest,
}

/// About how large things are, in millions of bytes: to be said before they are made.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Megabytes {
    /// The packages to download.
    pub download: u32,
    /// The unpacked tree that is kept.
    pub tree: u32,
    /// The EROFS file.
    pub image: u32,
}

/// The fields of the `recipe.toml` of an image that stands alone.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: ImageName,
    suite: String,
    #[serde(rename = "python")]
    _python: String,
    packages: Vec<String>,
    megabytes: Megabytes,
}

/// The fields of the `recipe.toml` of an image that extends another.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Extension {
    name: ImageName,
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "there is one to extend; a test compares it")
    )]
    extends: ImageName,
    packages: Vec<String>,
    preload: Vec<String>,
    megabytes: Megabytes,
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
        let written: Written =
            toml::from_str(PYTHON.toml).map_err(|source| RecipeError { source })?;
        let mut parts = vec![PYTHON.toml.as_bytes(), PYTHON.customize.as_bytes()];
        parts.extend(BOOTSTRAP.iter().map(|argument| argument.as_bytes()));
        Ok(Self {
            name: written.name,
            suite: written.suite,
            packages: written.packages,
            preload: Vec::new(),
            megabytes: written.megabytes,
            customize: vec![("customize.sh", PYTHON.customize)],
            digest: digest_of_parts(&parts),
        })
    }

    /// That of the image `data`: `python` and the libraries that programs about data import.
    ///
    /// # Errors
    /// [`RecipeError`], which a test excludes.
    pub fn data() -> Result<Self, RecipeError> {
        let extension = Extension::read(&DATA)?;
        let mut recipe = Self::python()?;
        let digest = recipe.digest.to_string();
        let parts = [
            digest.as_bytes(),
            DATA.toml.as_bytes(),
            DATA.customize.as_bytes(),
        ];
        recipe.digest = digest_of_parts(&parts);
        recipe.name = extension.name;
        recipe.packages.extend(extension.packages);
        recipe.preload = extension.preload;
        recipe.megabytes = extension.megabytes;
        recipe.customize.push(("further.sh", DATA.customize));
        Ok(recipe)
    }

    /// Those of the images that a host has when it is asked to.
    ///
    /// # Errors
    /// [`RecipeError`], which a test excludes.
    pub fn optional() -> Result<Vec<Self>, RecipeError> {
        Ok(vec![Self::data()?])
    }

    /// Those of all images that this `tako-vm` can build: `python`, which every host has, and the
    /// [optional](Self::optional) ones.
    ///
    /// # Errors
    /// [`RecipeError`], which a test excludes.
    pub fn all() -> Result<Vec<Self>, RecipeError> {
        let mut recipes = vec![Self::python()?];
        recipes.extend(Self::optional()?);
        Ok(recipes)
    }

    /// That of the image of this name, if this `tako-vm` can build it.
    ///
    /// # Errors
    /// [`RecipeError`], which a test excludes.
    pub fn named(name: &ImageName) -> Result<Option<Self>, RecipeError> {
        Ok(Self::all()?.into_iter().find(|recipe| recipe.name == *name))
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

impl Extension {
    fn read(source: &Source) -> Result<Self, RecipeError> {
        toml::from_str(source.toml).map_err(|source| RecipeError { source })
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
    fn the_recipes_that_are_carried_along_can_be_read() {
        let recipes = Recipe::all().unwrap();
        let names: Vec<_> = recipes.iter().map(|recipe| recipe.name.as_str()).collect();
        assert_eq!(names, ["python", "data"]);
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
        for recipe in &recipes {
            assert_eq!(recipe.suite, "bookworm");
            assert!(recipe.packages.iter().any(|package| package == "python3"));
            for package in &recipe.packages {
                assert!(package.chars().all(plain), "{package}");
            }
            let again = Recipe::named(&recipe.name).unwrap().unwrap();
            assert_eq!(again.digest, recipe.digest);
        }
        assert!(Recipe::named(&"perl".parse().unwrap()).unwrap().is_none());
    }

    #[test]
    fn data_is_python_and_more() {
        let (python, data) = (Recipe::python().unwrap(), Recipe::data().unwrap());
        assert_eq!(Extension::read(&DATA).unwrap().extends, python.name);
        assert!(data.packages.starts_with(&python.packages));
        assert!(data.customize.starts_with(&python.customize));
        assert_ne!(data.digest, python.digest);
        for package in ["python3-pandas", "python3-matplotlib", "python3-sklearn"] {
            assert!(
                data.packages.iter().any(|asked| asked == package),
                "{package}"
            );
        }
    }

    #[test]
    fn modules_to_hold_are_names_that_can_be_imported() {
        assert!(Recipe::python().unwrap().preload.is_empty());
        let data = Recipe::data().unwrap();
        assert!(data.preload.iter().any(|module| module == "pandas"));
        let letter = |c: char| c.is_ascii_lowercase() || c == '_';
        for module in &data.preload {
            let plain = |part: &str| !part.is_empty() && part.chars().all(letter);
            assert!(module.split('.').all(plain), "{module}");
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
