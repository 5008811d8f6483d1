//! Builds an executor image: packages from the host's mirror, unpacked and customized by the recipe,
//! then `tako-init` and the hook, then one EROFS file.
//!
//! The first part takes ten seconds and a network, the second half a second. So the tree of the first
//! part is kept under the digest of the recipe, and never touched again: the second part works on a
//! copy of it. (Hard links would save the copying, but compiling the hook runs the tree's own Python
//! in it, and whatever that wrote to would be changed in both.)

use crate::image::manifest::{Manifest, Package};
use crate::image::recipe::{self, ADDITIONS, BOOTSTRAP, MAKE_EROFS, PRELOAD, Recipe};
use crate::image::{ImageError, Images};
use crate::sys::apt::{self, Sources, WORKSHOP};
use crate::sys::digest::{self, DigestError};
use crate::sys::place::{self, PlaceError};
use crate::sys::process::{self, ProcessError};
use jiff::{Timestamp, Unit};
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The programs that a build starts, and the Debian packages they come in.
const TOOLS: [(&str, &str); 2] = [("mmdebstrap", "mmdebstrap"), ("mkfs.erofs", "erofs-utils")];

/// Why there is no new image.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
pub enum BuildError {
    #[error("building an executor image needs `{}`", tools.join("` and `"))]
    Tools {
        tools: Vec<&'static str>,
        packages: Vec<&'static str>,
    },
    #[error("the system's package sources have no security archive of Debian")]
    NoSecurity,
    #[error("cannot make the root tree with `mmdebstrap` (its output is in `{}`)", log.display())]
    Tree { log: PathBuf, source: ProcessError },
    #[error("cannot prepare the place to build in")]
    Place { source: PlaceError },
    #[error("cannot copy the root tree")]
    Copy { source: ProcessError },
    #[error("cannot add `{path}` to the root tree")]
    Add {
        path: &'static str,
        source: io::Error,
    },
    #[error("cannot run the Python of the root tree")]
    Python { source: ProcessError },
    #[error("cannot make the EROFS file")]
    Erofs { source: ProcessError },
    #[error("cannot hash the EROFS file")]
    Hash { source: DigestError },
    #[error("cannot measure `{}`", path.display())]
    Measure { path: PathBuf, source: io::Error },
    #[error("the list of packages in the root tree cannot be understood: `{line}`")]
    Packages { line: String },
    #[error("cannot write the manifest")]
    Manifest { source: serde_json::Error },
    #[error("cannot keep the image")]
    Keep { source: ImageError },
}

/// Whether this image was made by this very `tako-vm`, so that building it again would change nothing
/// but the versions of packages.
pub fn is_current(manifest: &Manifest, recipe: &Recipe) -> bool {
    manifest.recipe_digest == recipe.digest
        && manifest.init_digest == recipe::init_digest()
        && manifest.protocol == tako_guest::PROTOCOL
}

impl Images {
    /// Where the tree of this recipe is kept once it has been made.
    pub fn tree(&self, recipe: &Recipe) -> PathBuf {
        self.trees().join(recipe.digest.to_string())
    }
}

/// Builds the image of a recipe, replacing the one of that name. For the holder of the state
/// directory's lock.
///
/// # Errors
/// [`BuildError`]; the image that was there before is still there then, and nothing of the new one
/// but its tree if that was finished.
pub fn build(
    images: &Images,
    recipe: &Recipe,
    sources: &Sources,
    progress: &mut dyn FnMut(&str),
) -> Result<Manifest, BuildError> {
    require_tools()?;
    let tree = images.tree(recipe);
    if tree.exists() {
        progress("the packages are unpacked already");
    } else {
        unpack(images, recipe, sources, progress)?;
    }
    assemble(images, recipe, &tree, progress)
}

/// Checks that everything a build starts is installed.
///
/// # Errors
/// [`BuildError::Tools`] with what is missing.
pub fn require_tools() -> Result<(), BuildError> {
    let missing: Vec<_> = TOOLS
        .into_iter()
        .filter(|(tool, _)| process::find(OsStr::new(tool)).is_none())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let (tools, packages) = missing.into_iter().unzip();
    Err(BuildError::Tools { tools, packages })
}

/// Makes the tree of a recipe, from the first of the mirrors that has it.
fn unpack(
    images: &Images,
    recipe: &Recipe,
    sources: &Sources,
    progress: &mut dyn FnMut(&str),
) -> Result<(), BuildError> {
    let security = sources.security.first().ok_or(BuildError::NoSecurity)?;
    let mut failure = None;
    for mirror in &sources.mirrors {
        progress(&format!(
            "downloading packages of `{}` from {mirror}",
            recipe.suite
        ));
        let shop = place::partial_directory(&images.trees()).map_err(in_place)?;
        prepare_shop(shop.path(), recipe)?;
        let mut command = apt::in_workshop(shop.path(), "mmdebstrap", sources);
        command.args(bootstrap_arguments(recipe, sources, mirror, security));
        match process::run_while_we_live(&mut command) {
            Ok(_) => {
                let made = shop.path().join("tree");
                place::publish_directory(&made, &images.tree(recipe)).map_err(in_place)?;
                return remove_unused_trees(images, recipe);
            }
            Err(source) => failure = Some(source),
        }
    }
    let Some(source) = failure else {
        return Ok(());
    };
    let log = images.trees().join("failed.log");
    place::write(&log, output_of(&source).as_bytes(), 0o600).map_err(in_place)?;
    Err(BuildError::Tree { log, source })
}

fn in_place(source: PlaceError) -> BuildError {
    BuildError::Place { source }
}

fn output_of(error: &ProcessError) -> &str {
    match error {
        ProcessError::Failed { stderr, .. } => stderr,
        ProcessError::Start { .. } | ProcessError::TooSlow { .. } => "",
    }
}

/// The directory that the build sees as its workshop: the scripts, and the tree to be.
fn prepare_shop(shop: &Path, recipe: &Recipe) -> Result<(), BuildError> {
    // The user `_apt` has to pass through.
    fs::set_permissions(shop, Permissions::from_mode(0o755)).map_err(|source| {
        in_place(PlaceError::Write {
            path: shop.to_owned(),
            source,
        })
    })?;
    recipe.customize.iter().try_for_each(|(name, text)| {
        place::write(&shop.join(name), text.as_bytes(), 0o755).map_err(in_place)
    })
}

fn bootstrap_arguments(
    recipe: &Recipe,
    sources: &Sources,
    mirror: &str,
    security: &str,
) -> Vec<String> {
    let suite = &recipe.suite;
    let hook = format!("sh {WORKSHOP}/customize.sh \"$1\"");
    let mut arguments: Vec<String> = BOOTSTRAP.iter().map(ToString::to_string).collect();
    if let Some(proxy) = &sources.http_proxy {
        // mmdebstrap does not read the system's apt.conf.
        arguments.push(format!("--aptopt=Acquire::http::Proxy \"{proxy}\""));
    }
    arguments.extend([
        format!("--include={}", recipe.packages.join(",")),
        format!("--setup-hook={hook}"),
        format!("--extract-hook={hook}"),
        suite.clone(),
        format!("{WORKSHOP}/tree"),
    ]);
    arguments.extend(sources.lines(suite, mirror, security));
    arguments
}

/// Removes the trees that no image is made from any more, once this recipe's is there.
fn remove_unused_trees(images: &Images, recipe: &Recipe) -> Result<(), BuildError> {
    // A manifest that cannot be read may belong to any tree: then all of them stay.
    let Ok(manifests) = images.list() else {
        return Ok(());
    };
    let others = manifests.iter().filter(|image| image.name != recipe.name);
    let used = others.map(|image| image.recipe_digest.to_string());
    let kept: Vec<PathBuf> = used
        .chain([recipe.digest.to_string()])
        .map(|digest| images.trees().join(digest))
        .collect();
    for path in place::entries(&images.trees()).map_err(in_place)? {
        if !kept.contains(&path) {
            place::remove(&path).map_err(in_place)?;
        }
    }
    Ok(())
}

/// Makes the image out of a copy of the tree and what is added to it.
fn assemble(
    images: &Images,
    recipe: &Recipe,
    tree: &Path,
    progress: &mut dyn FnMut(&str),
) -> Result<Manifest, BuildError> {
    progress("adding `tako-init` and making the EROFS file");
    let work = place::partial_directory(&images.trees()).map_err(in_place)?;
    let copy = work.path().join("tree");
    let mut command = process::program("cp");
    command
        .args(["--archive", "--reflink=auto"])
        .arg(tree)
        .arg(&copy);
    process::run_while_we_live(&mut command).map_err(|source| BuildError::Copy { source })?;
    add_ours(&copy, recipe)?;
    let file = place::partial_file(&images.blobs()).map_err(in_place)?;
    let mut command = process::program("mkfs.erofs");
    command.args(MAKE_EROFS).arg(file.path()).arg(&copy);
    process::run_while_we_live(&mut command).map_err(|source| BuildError::Erofs { source })?;
    let manifest = describe(recipe, &copy, file.path())?;
    let text =
        serde_json::to_vec_pretty(&manifest).map_err(|source| BuildError::Manifest { source })?;
    images
        .keep(&text, &manifest, file)
        .map_err(|source| BuildError::Keep { source })?;
    Ok(manifest)
}

/// Adds init, the hook and what that has to import, and compiles the hook as the rest of the tree has
/// been compiled.
fn add_ours(tree: &Path, recipe: &Recipe) -> Result<(), BuildError> {
    let preload: String = recipe
        .preload
        .iter()
        .flat_map(|name| [name, "\n"])
        .collect();
    let list = (!preload.is_empty()).then_some((PRELOAD, preload.as_bytes(), 0o644));
    for (path, bytes, mode) in ADDITIONS.into_iter().chain(list) {
        let add = || -> io::Result<()> {
            let target = tree.join(path);
            if let Some(directory) = target.parent().filter(|directory| !directory.exists()) {
                fs::create_dir(directory)?;
                fs::set_permissions(directory, Permissions::from_mode(0o755))?;
            }
            fs::write(&target, bytes)?;
            fs::set_permissions(&target, Permissions::from_mode(mode))
        };
        add().map_err(|source| BuildError::Add { path, source })?;
    }
    let hook = format!("/{}", ADDITIONS[1].0);
    let compile = [
        "-m",
        "compileall",
        "-q",
        "--invalidation-mode",
        "unchecked-hash",
        &hook,
    ];
    python(tree, &compile).map(|_| ())
}

/// Runs the tree's own Python, and gives what it prints. It is Debian's, not yet anybody's program.
fn python(tree: &Path, arguments: &[&str]) -> Result<String, BuildError> {
    let mut command = process::program("chroot");
    command
        .arg(tree)
        // -S: the hook, which site would load, is for sandboxes.
        .args(["/usr/bin/python3", "-B", "-S"])
        .args(arguments)
        .env("LC_ALL", "C.UTF-8")
        // Sets among the constants are stored in the order of their hashes.
        .env("PYTHONHASHSEED", "0")
        .env("PYTHONNOUSERSITE", "1");
    process::run_while_we_live(&mut command)
        .map(|printed| printed.stdout.trim().to_owned())
        .map_err(|source| BuildError::Python { source })
}

fn describe(recipe: &Recipe, tree: &Path, file: &Path) -> Result<Manifest, BuildError> {
    let measured = |path: &Path, source| BuildError::Measure {
        path: path.to_owned(),
        source,
    };
    let size = fs::metadata(file).map_err(|source| measured(file, source))?;
    let version = ["-c", "import platform; print(platform.python_version())"];
    let now = Timestamp::now();
    Ok(Manifest {
        name: recipe.name.clone(),
        digest: digest::of_file(file).map_err(|source| BuildError::Hash { source })?,
        size_bytes: size.len(),
        tree_bytes: bytes_below(tree).map_err(|source| measured(tree, source))?,
        python: python(tree, &version)?,
        preload: recipe.preload.clone(),
        packages: packages(tree)?,
        recipe_digest: recipe.digest,
        init_digest: recipe::init_digest(),
        protocol: tako_guest::PROTOCOL,
        created_at: now.round(Unit::Second).unwrap_or(now),
    })
}

/// The sizes of all regular files below a directory, added up.
fn bytes_below(directory: &Path) -> io::Result<u64> {
    let mut total = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            total += bytes_below(&entry.path())?;
        } else if kind.is_file() {
            total += entry.metadata()?.len();
        }
    }
    Ok(total)
}

fn packages(tree: &Path) -> Result<Vec<Package>, BuildError> {
    let list = tree.join("usr/share/tako-vm/packages.tsv");
    let bytes = place::read(&list).map_err(in_place)?;
    String::from_utf8_lossy(&bytes)
        .lines()
        .map(|line| {
            package(line).ok_or_else(|| BuildError::Packages {
                line: line.to_owned(),
            })
        })
        .collect()
}

/// Name, version, architecture and SHA-256, separated by tabs.
fn package(line: &str) -> Option<Package> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [name, version, architecture, sha256] = fields.as_slice() else {
        return None;
    };
    Some(Package {
        name: (*name).to_owned(),
        version: (*version).to_owned(),
        architecture: (*architecture).to_owned(),
        sha256: sha256.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::digest::Digest;

    #[test]
    fn a_package_is_read_from_its_line_or_refused() {
        let sha256 = Digest::of(b"deb");
        let read = package(&format!("tzdata\t2025b-0+deb12u1\tall\t{sha256}")).unwrap();
        assert_eq!(read.name, "tzdata");
        assert_eq!(read.sha256, sha256);
        assert!(package("tzdata\t2025b\tall").is_none());
        assert!(package("tzdata\t2025b\tall\tnot-a-digest").is_none());
    }

    fn add_manifest(images: &Images, recipe: &Recipe) {
        let manifest = Manifest {
            name: recipe.name.clone(),
            digest: Digest::of(b"rootfs"),
            size_bytes: 6,
            tree_bytes: 6,
            python: "3.11.2".to_owned(),
            preload: Vec::new(),
            packages: Vec::new(),
            recipe_digest: recipe.digest,
            init_digest: recipe::init_digest(),
            protocol: tako_guest::PROTOCOL,
            created_at: Timestamp::UNIX_EPOCH,
        };
        let path = images.manifest_path(&recipe.name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        place::write(&path, &serde_json::to_vec(&manifest).unwrap(), 0o444).unwrap();
    }

    #[test]
    #[ignore = "needs root"]
    fn the_trees_of_other_images_are_kept_and_those_of_none_are_not() {
        let state = tempfile::tempdir().unwrap();
        let images = Images::at(state.path());
        let new = Recipe::python().unwrap();
        let old = new.clone().with(new.name.clone(), &["since-left-out"]);
        let other = new.clone().with("other".parse().unwrap(), &[]);
        let nobodys = new.clone().with("gone".parse().unwrap(), &[]);
        for recipe in [&old, &other] {
            add_manifest(&images, recipe);
        }
        for recipe in [&new, &old, &other, &nobodys] {
            fs::create_dir_all(images.tree(recipe)).unwrap();
        }
        remove_unused_trees(&images, &new).unwrap();
        let there = |recipe| images.tree(recipe).exists();
        assert_eq!(
            [&new, &old, &other, &nobodys].map(there),
            [true, false, true, false]
        );
    }

    #[test]
    fn every_source_is_pinned_to_the_keys_of_debian() {
        let recipe = Recipe::python().unwrap();
        let sources = Sources {
            mirrors: vec!["http://mirror.example/debian".to_owned()],
            security: vec!["http://mirror.example/security".to_owned()],
            keyring: PathBuf::from("/keys.gpg"),
            http_proxy: None,
        };
        let arguments =
            bootstrap_arguments(&recipe, &sources, &sources.mirrors[0], &sources.security[0]);
        let lines: Vec<&String> = arguments.iter().filter(|a| a.contains("example")).collect();
        assert_eq!(
            lines,
            [
                "deb [signed-by=/keys.gpg] http://mirror.example/debian bookworm main",
                "deb [signed-by=/keys.gpg] http://mirror.example/debian bookworm-updates main",
                "deb [signed-by=/keys.gpg] http://mirror.example/security bookworm-security main",
            ]
        );
    }
}
