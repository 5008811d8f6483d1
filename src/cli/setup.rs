//! `tako-vm setup`: the system user, the state directory, the executor images, runsc.
//!
//! Each step first looks whether there is anything to do, and what it makes appears whole or not at
//! all. So setup can be run again at any time: after success it changes nothing, after a failure or a
//! kill it goes on with what is missing.

use super::{USER, one_line};
use crate::config::{Config, SecurityMode};
use crate::image::archive::{self, ArchiveError, Origin};
use crate::image::build::{self, BuildError};
use crate::image::download::DownloadError;
use crate::image::recipe::{Recipe, RecipeError};
use crate::image::{Image, ImageError, ImageName, Images, Manifest};
use crate::postgres;
use crate::runc::{self, Runc, RuncError};
use crate::runsc::Runsc;
use crate::runsc::provision::{self, Candidate, Installed, ProvisionError};
use crate::sandbox::{self, Runtime, Sandboxes};
use crate::sys::account::{self, AccountError};
use crate::sys::apt::{self, AptError, Sources};
use crate::sys::digest::Digest;
use crate::sys::place::{self, PlaceError};
use crate::sys::process;
use jiff::civil::Date;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The permissions of group and others.
const FOR_OTHERS: u32 = 0o077;

/// How long a runsc may take to write a checkpoint.
const PATIENCE: Duration = Duration::from_secs(30);

/// Steps that setup takes.
const STEPS: u8 = 5;

/// Prepare this host: system user, state directory, executor images, runsc, PostgreSQL
///
/// The image `python` is built, and every further one that is asked for with `--image`. Images that are
/// there already are brought up to date.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Use this runsc: a binary, a directory with `runsc` and `gvisor-bin`, or a tar file of one
    #[arg(long, value_name = "FILE|DIR|TARBALL")]
    runsc: Option<PathBuf>,
    /// Build this image too: `data` has numpy, pandas, matplotlib, scipy and scikit-learn
    #[arg(long = "image", value_name = "NAME", value_parser = buildable, conflicts_with = "from")]
    images: Vec<ImageName>,
    /// Build no image, but take one from an archive made by `tako-vm image export`
    #[arg(long, value_name = "FILE|URL", requires = "sha256")]
    from: Option<String>,
    /// The SHA-256 that the archive must have
    #[arg(long, value_name = "HEX", requires = "from")]
    sha256: Option<Digest>,
    /// Print what would be written, and where, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// The proxy for Debian's mirror, unless apt has one configured
    #[arg(long, value_name = "URL", env = "http_proxy", hide = true)]
    http_proxy: Option<String>,
}

/// A name that there is a recipe for.
fn buildable(text: &str) -> Result<ImageName, String> {
    let recipes = Recipe::all().map_err(|error| one_line(&error))?;
    let names: Vec<_> = recipes.iter().map(|recipe| recipe.name.as_str()).collect();
    let name = recipes.iter().find(|recipe| recipe.name.as_str() == text);
    name.map(|recipe| recipe.name.clone())
        .ok_or_else(|| format!("images that can be built: `{}`", names.join("`, `")))
}

/// Why the host is not ready.
#[derive(Debug, thiserror::Error)]
pub(super) enum SetupError {
    #[error("cannot use the state directory `{}`", path.display())]
    StateDirectory { path: PathBuf, source: PlaceError },
    #[error("the state directory `{}` is open to others (mode {mode:04o})", path.display())]
    Open { path: PathBuf, mode: u32 },
    #[error("cannot provide the system user")]
    Account { source: AccountError },
    #[error("cannot read the recipe")]
    Recipe { source: RecipeError },
    #[error("cannot find a mirror to build from")]
    Apt { source: AptError },
    #[error("cannot build the executor image")]
    Build { source: BuildError },
    #[error("cannot take the executor image from the archive")]
    Archive { source: ArchiveError },
    #[error("cannot use the executor image")]
    Image { source: ImageError },
    #[error("cannot provide runsc")]
    Runsc { source: ProvisionError },
    #[error("cannot use the container runtime")]
    Container { source: RuncError },
    #[error("`{name}` fails the feature probe: {why}")]
    ProbeContainer { name: &'static str, why: String },
    #[error("{origin} (release {version}) fails the feature probe: {why}")]
    Probe {
        origin: String,
        version: String,
        why: String,
    },
}

impl SetupError {
    /// What can be done about it, where the message does not say it.
    pub(super) fn hint(&self) -> Option<String> {
        match self {
            Self::Open { path, .. } => Some(format!(
                "if it is meant for Tako VM alone: `chmod 0700 {}`",
                path.display()
            )),
            Self::Build {
                source: BuildError::Tools { packages, .. },
            } => Some(format!(
                "`apt-get install {}`, or take an image that another host has built with `--from`",
                packages.join(" ")
            )),
            Self::Apt { .. }
            | Self::Build {
                source: BuildError::NoSecurity | BuildError::Tree { .. },
            } => Some("an image that another host has built can be taken with `--from`".to_owned()),
            Self::Archive {
                source:
                    ArchiveError::Download {
                        source: DownloadError::Broken { .. } | DownloadError::Request { .. },
                    },
            } => Some("run it again to go on where it broke off".to_owned()),
            Self::Runsc { source } => source.hint().map(str::to_owned),
            Self::Probe { .. } => {
                Some("give setup a current release of gVisor with `--runsc`".to_owned())
            }
            _ => None,
        }
    }
}

/// Prepares the host, or says what that would mean. The runsc of the configuration is taken where the
/// command line names none.
///
/// # Errors
/// [`SetupError`] names the step that failed; the steps before it are done and stay done.
pub(super) fn run(
    arguments: &Arguments,
    state_dir: &Path,
    config: &Config,
) -> Result<(), SetupError> {
    let setup = Setup::new(arguments, state_dir, config);
    if arguments.dry_run {
        setup.tell_plan()
    } else {
        setup.perform()
    }
}

/// What killed setups have left, or one that runs is making.
pub(super) fn unfinished(state_dir: &Path) -> Result<Vec<PathBuf>, SetupError> {
    let images = Images::at(state_dir);
    let mut paths = images
        .unfinished()
        .map_err(|source| SetupError::Image { source })?;
    let runsc = provision::unfinished(state_dir);
    paths.extend(runsc.map_err(|source| SetupError::Runsc { source })?);
    Ok(paths)
}

/// Removes what killed setups have left, unless one runs at this moment.
pub(super) fn sweep_unless_busy(state_dir: &Path) -> Result<(), SetupError> {
    let lock =
        place::try_lock(&lock_path(state_dir)).map_err(|source| SetupError::StateDirectory {
            path: state_dir.to_owned(),
            source,
        })?;
    lock.map_or(Ok(()), |_held| sweep(state_dir))
}

/// For the holder of the lock.
fn sweep(state_dir: &Path) -> Result<(), SetupError> {
    Images::at(state_dir)
        .sweep()
        .map_err(|source| SetupError::Image { source })?;
    provision::sweep(state_dir).map_err(|source| SetupError::Runsc { source })
}

fn lock_path(state_dir: &Path) -> PathBuf {
    state_dir.join("setup.lock")
}

/// Takes the lock under which the state directory's images and runsc are changed.
pub(super) fn lock(state_dir: &Path) -> Result<File, SetupError> {
    let mut wait = || detail("waiting for another `tako-vm` that changes the state directory");
    place::lock(&lock_path(state_dir), &mut wait).map_err(|source| SetupError::StateDirectory {
        path: state_dir.to_owned(),
        source,
    })
}

/// Whether the state directory is there, after checking that nobody but root has a hand in it or above
/// it.
pub(super) fn state_directory_exists(path: &Path) -> Result<bool, SetupError> {
    let failed = |source| SetupError::StateDirectory {
        path: path.to_owned(),
        source,
    };
    let Ok(metadata) = fs::metadata(path) else {
        let above = path.ancestors().find(|path| path.exists());
        place::trusted_to_hold(above.unwrap_or(Path::new("/"))).map_err(failed)?;
        return Ok(false);
    };
    place::trusted(path).map_err(failed)?;
    let mode = metadata.mode() & 0o7777;
    // Not simply closed: `--state-dir /usr` would be the end of this host.
    if mode & FOR_OTHERS == 0 {
        Ok(true)
    } else {
        Err(SetupError::Open {
            path: path.to_owned(),
            mode,
        })
    }
}

/// Tries out a runtime that is about to be used: which features it has, found by using them.
fn probe(runtime: impl Into<Runtime>, image: &Image, state_dir: &Path) -> Result<(), String> {
    let sandboxes = Sandboxes::prepare(state_dir, runtime);
    let sandboxes = sandboxes.map_err(|error| format!("cannot probe: {}", one_line(&error)))?;
    let probing = sandbox::probe(&sandboxes, &image.path, PATIENCE);
    // Setup is blocking code inside the runtime that the sandbox needs.
    tokio::runtime::Handle::current()
        .block_on(probing)
        .map_err(|error| one_line(&error))
}

fn newest_postgresql() -> Option<u32> {
    postgres::installed().ok()?.last().copied()
}

/// What there is to do for an image.
enum ImageTask {
    Nothing(Image),
    Build(Recipe),
    Receive(Origin, Digest),
}

struct Setup<'a> {
    arguments: &'a Arguments,
    mode: SecurityMode,
    runsc: Option<&'a Path>,
    minimum: Option<Date>,
    state_dir: PathBuf,
    images: Images,
}

impl<'a> Setup<'a> {
    fn new(arguments: &'a Arguments, state_dir: &Path, config: &'a Config) -> Self {
        Self {
            arguments,
            mode: config.security_mode,
            runsc: arguments.runsc.as_deref().or(config.runsc.as_deref()),
            minimum: config.runsc_minimum_release,
            images: Images::at(state_dir),
            state_dir: state_dir.to_owned(),
        }
    }

    fn perform(&self) -> Result<(), SetupError> {
        Self::provide_user()?;
        self.provide_state_directory()?;
        let _lock = lock(&self.state_dir)?;
        sweep(&self.state_dir)?;
        let image = self.provide_images()?;
        match self.mode {
            SecurityMode::Strict => self.provide_runsc(&image),
            SecurityMode::Permissive(kind) => self.try_out_container(kind, &image),
        }?;
        self.provide_postgresql();
        Ok(())
    }

    /// For the server's own database. A host that cannot have it can run programs all the same, and a server
    /// can use a database elsewhere.
    fn provide_postgresql(&self) {
        if let Some(version) = newest_postgresql() {
            step(5, &format!("PostgreSQL: version {version}, up to date"));
            return;
        }
        detail("installing the Debian package `postgresql`, without a database");
        let installed = apt::install_postgresql(self.arguments.http_proxy.as_deref());
        match (installed, newest_postgresql()) {
            (Ok(()), Some(version)) => {
                step(5, &format!("PostgreSQL: version {version}, installed"));
            }
            (installed, _) => {
                step(5, "PostgreSQL: not installed");
                let why = installed.err().map(|error| one_line(&error));
                super::warn(&why.unwrap_or_else(|| "the package has no PostgreSQL".to_owned()));
                super::hint(
                    "`apt-get install postgresql`, or give the server the `database_url` of another",
                );
            }
        }
    }

    fn provide_user() -> Result<(), SetupError> {
        let failed = |source| SetupError::Account { source };
        let outcome = if account::exists(USER).map_err(failed)? {
            "exists"
        } else {
            account::create(USER).map_err(failed)?;
            "created"
        };
        step(1, &format!("system user `{USER}`: {outcome}"));
        Ok(())
    }

    fn provide_state_directory(&self) -> Result<(), SetupError> {
        let failed = |source| SetupError::StateDirectory {
            path: self.state_dir.clone(),
            source,
        };
        let outcome = if state_directory_exists(&self.state_dir)? {
            "exists"
        } else {
            place::directory(&self.state_dir).map_err(failed)?;
            "created"
        };
        let path = self.state_dir.display();
        step(2, &format!("state directory `{path}`: {outcome}"));
        Ok(())
    }

    /// Tasks for the archive, or for all images that this host is to have: `python` first.
    fn image_tasks(&self) -> Result<Vec<ImageTask>, SetupError> {
        if let (Some(from), Some(wanted)) = (&self.arguments.from, self.arguments.sha256) {
            return Ok(vec![match self.image_of_archive(wanted) {
                Some(image) => ImageTask::Nothing(image),
                None => ImageTask::Receive(Origin::from(from.as_str()), wanted),
            }]);
        }
        let failed = |source| SetupError::Recipe { source };
        let mut recipes = Recipe::optional().map_err(failed)?;
        recipes.retain(|recipe| {
            let asked = self.arguments.images.contains(&recipe.name);
            asked || self.images.manifest_exists(&recipe.name).is_ok()
        });
        recipes.insert(0, Recipe::python().map_err(failed)?);
        Ok(recipes
            .into_iter()
            .map(|recipe| self.image_task(recipe))
            .collect())
    }

    fn image_task(&self, recipe: Recipe) -> ImageTask {
        match self.images.find(recipe.name.as_str()) {
            Ok(image) if build::is_current(&image.manifest, &recipe) => ImageTask::Nothing(image),
            Ok(_) | Err(ImageError::UnknownImage { .. }) => ImageTask::Build(recipe),
            Err(error) => {
                detail(&format!("replacing the image, since {}", one_line(&error)));
                ImageTask::Build(recipe)
            }
        }
    }

    /// The installed image whose archive has this digest. One that cannot be used is none.
    fn image_of_archive(&self, wanted: Digest) -> Option<Image> {
        let installed = self.images.list().ok()?;
        installed.iter().find_map(|manifest| {
            let image = self.images.find(manifest.name.as_str()).ok()?;
            let digest = archive::digest_of(&self.images, &image).ok()?;
            (digest == wanted).then_some(image)
        })
    }

    /// Gives the first of them, which is as good as any other to try out a runtime.
    fn provide_images(&self) -> Result<Image, SetupError> {
        let mut tasks = self.image_tasks()?.into_iter();
        let python = Recipe::python().map_err(|source| SetupError::Recipe { source })?;
        let first = tasks.next().unwrap_or(ImageTask::Build(python));
        let image = self.provide_image(first)?;
        for task in tasks {
            self.provide_image(task)?;
        }
        Ok(image)
    }

    fn provide_image(&self, task: ImageTask) -> Result<Image, SetupError> {
        let (manifest, outcome) = match task {
            ImageTask::Nothing(image) => {
                step(3, &describe_image(&image.manifest, "up to date"));
                return Ok(image);
            }
            ImageTask::Build(recipe) => (self.build_image(&recipe)?, "built"),
            ImageTask::Receive(origin, wanted) => {
                let received = archive::receive(&self.images, &origin, wanted, &mut detail);
                let manifest = received.map_err(|source| SetupError::Archive { source })?;
                (manifest, "taken from the archive")
            }
        };
        step(3, &describe_image(&manifest, outcome));
        self.images
            .find(manifest.name.as_str())
            .map_err(|source| SetupError::Image { source })
    }

    fn build_image(&self, recipe: &Recipe) -> Result<Manifest, SetupError> {
        build::require_tools().map_err(|source| SetupError::Build { source })?;
        let sources = self.sources()?;
        build::build(&self.images, recipe, &sources, &mut detail)
            .map_err(|source| SetupError::Build { source })
    }

    fn sources(&self) -> Result<Sources, SetupError> {
        Sources::of_system(self.arguments.http_proxy.clone())
            .map_err(|source| SetupError::Apt { source })
    }

    /// The installed one, if it may be used.
    fn current_runsc(&self) -> Result<Installed, ProvisionError> {
        let installed = provision::installed(&self.state_dir)?;
        installed.require(self.minimum).map(|()| installed)
    }

    fn provide_runsc(&self, image: &Image) -> Result<(), SetupError> {
        let failed = |source| SetupError::Runsc { source };
        let current = self.current_runsc();
        let candidate = match (self.runsc, &current) {
            (Some(path), _) => Candidate::given(&self.state_dir, path).map_err(failed)?,
            // The very files that were examined when they were installed.
            (None, Ok(current)) => {
                step(
                    4,
                    &describe_runsc(&current.version, &current.identity, "up to date"),
                );
                return Ok(());
            }
            (None, Err(error)) => {
                if !matches!(error, ProvisionError::NotInstalled) {
                    detail(&format!("replacing runsc, since {}", one_line(error)));
                }
                self.search_runsc(image)?
            }
        };
        if current.is_ok_and(|current| current.identity == candidate.identity()) {
            let (version, identity) = (candidate.version(), candidate.identity());
            step(4, &describe_runsc(version, &identity, "up to date"));
            return Ok(());
        }
        self.try_out(&candidate, image)?;
        let outcome = format!("installed from {}", candidate.origin());
        let installed = candidate.install(&self.state_dir).map_err(failed)?;
        step(
            4,
            &describe_runsc(&installed.version, &installed.identity, &outcome),
        );
        Ok(())
    }

    /// The one on the search path if it is fit, or else Debian's.
    fn search_runsc(&self, image: &Image) -> Result<Candidate, SetupError> {
        let failed = |source| SetupError::Runsc { source };
        let found = match Candidate::on_path(&self.state_dir).map_err(failed) {
            Ok(None) => None,
            Ok(Some(candidate)) => Some(self.try_out(&candidate, image).map(|()| candidate)),
            Err(error) => Some(Err(error)),
        };
        match found {
            Some(Ok(candidate)) => return Ok(candidate),
            Some(Err(error)) => detail(&format!("passed over: {}", one_line(&error))),
            None => {}
        }
        let sources = self.sources()?;
        Candidate::debian(&self.state_dir, &sources, &mut detail).map_err(failed)
    }

    fn try_out(&self, candidate: &Candidate, image: &Image) -> Result<(), SetupError> {
        detail("trying out runsc: a program under seccomp, a checkpoint, a restore");
        candidate
            .require(self.minimum)
            .map_err(|source| SetupError::Runsc { source })?;
        probe(Runsc::new(candidate.binary()), image, &self.state_dir).map_err(|why| {
            SetupError::Probe {
                origin: candidate.origin().to_owned(),
                version: candidate.version().to_owned(),
                why,
            }
        })
    }

    /// Permissive mode has no use for runsc, and a host that cannot run it is what the mode is for.
    fn try_out_container(&self, kind: runc::Kind, image: &Image) -> Result<(), SetupError> {
        let name = kind.name();
        let runc = Runc::find(kind).map_err(|source| SetupError::Container { source })?;
        detail(&format!("trying out {name}: a program under seccomp"));
        probe(runc, image, &self.state_dir)
            .map_err(|why| SetupError::ProbeContainer { name, why })?;
        step(
            4,
            &format!("{name}: fit (permissive mode: weaker than gVisor)"),
        );
        Ok(())
    }

    /// Says what [`Setup::perform`] would write, and where.
    fn tell_plan(&self) -> Result<(), SetupError> {
        if !account::exists(USER).map_err(|source| SetupError::Account { source })? {
            say(&format!(
                "would create the system user and group `{USER}` in `/etc/passwd` and `/etc/group`"
            ));
        }
        if !state_directory_exists(&self.state_dir)? {
            let path = self.state_dir.display();
            say(&format!("would create the directory `{path}`, mode 0700"));
        }
        for task in self.image_tasks()? {
            self.tell_image_plan(&task);
        }
        match self.mode {
            SecurityMode::Strict => self.tell_runsc_plan(),
            SecurityMode::Permissive(kind) => say(&format!("would try out `{}`", kind.name())),
        }
        if newest_postgresql().is_none() {
            say("would install the Debian package `postgresql`, without a database");
        }
        Ok(())
    }

    fn tell_image_plan(&self, task: &ImageTask) {
        let state = self.state_dir.display();
        let (name, size) = match task {
            ImageTask::Nothing(image) => {
                say(&describe_image(&image.manifest, "up to date"));
                return;
            }
            ImageTask::Build(recipe) => {
                let (tree, about) = (self.images.tree(recipe), recipe.megabytes);
                if !tree.exists() {
                    say(&format!(
                        "would download about {} MB of packages of Debian, suite `{}`",
                        about.download, recipe.suite
                    ));
                    say(&format!(
                        "would write `{}/`, about {} MB",
                        tree.display(),
                        about.tree
                    ));
                }
                let size = format!(", about {} MB", about.image);
                (recipe.name.to_string(), size)
            }
            ImageTask::Receive(origin, wanted) => {
                let partial = archive::download_path(&self.state_dir, *wanted);
                let (from, size) = describe_origin(origin);
                say(&format!(
                    "would copy {from} to `{}`{size}, and remove it afterwards",
                    partial.display()
                ));
                ("NAME".to_owned(), size)
            }
        };
        say(&format!(
            "would write `{state}/images/sha256/DIGEST.erofs`{size}"
        ));
        say(&format!(
            "would write `{state}/images/{name}.json`, about 10 kB"
        ));
        say(&format!(
            "would write `{state}/digests/DIGEST`, less than 1 kB"
        ));
    }

    fn tell_runsc_plan(&self) {
        let current = self.current_runsc();
        if let (None, Ok(current)) = (self.runsc, &current) {
            say(&describe_runsc(
                &current.version,
                &current.identity,
                "up to date",
            ));
            return;
        }
        let given = self.runsc;
        let found = process::find(OsStr::new("runsc")).map(PathBuf::from);
        let from = match (given, found) {
            (Some(path), _) => format!("`{}`{}", path.display(), size_of(path)),
            (None, Some(path)) => format!(
                "`{}`{} if it has the features, or else Debian's package, about 30 MB",
                path.display(),
                size_of(&path)
            ),
            (None, None) => "Debian's package (7 MB to download), about 30 MB".to_owned(),
        };
        let state = self.state_dir.display();
        say(&format!(
            "would write `{state}/runsc/IDENTITY/`, from {from}"
        ));
        say(&format!(
            "would write `{}`, less than 1 kB",
            provision::record_path(&self.state_dir).display()
        ));
        say(&format!(
            "would write `{state}/digests/IDENTITY`, less than 1 kB"
        ));
    }
}

fn describe_image(manifest: &Manifest, outcome: &str) -> String {
    format!(
        "executor image `{}`: {outcome} (Python {}, {} packages, {}, sha256:{})",
        manifest.name,
        manifest.python,
        manifest.packages.len(),
        megabytes(manifest.size_bytes),
        manifest.digest
    )
}

fn describe_runsc(version: &str, identity: &str, outcome: &str) -> String {
    format!("runsc: {outcome} (release {version}, sha256:{identity})")
}

fn describe_origin(origin: &Origin) -> (String, String) {
    match origin {
        Origin::File(path) => (format!("`{}`", path.display()), size_of(path)),
        Origin::Url(url) => (format!("`{url}`"), String::new()),
    }
}

/// A file's size as an addition to its name; nothing for what is no file.
fn size_of(path: &Path) -> String {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => format!(", {}", megabytes(metadata.len())),
        _ => String::new(),
    }
}

pub(super) fn megabytes(bytes: u64) -> String {
    let tenths = bytes.saturating_add(50_000) / 100_000;
    format!("{}.{} MB", tenths / 10, tenths % 10)
}

fn step(number: u8, text: &str) {
    say(&format!("[{number}/{STEPS}] {text}"));
}

/// What happens within a step.
fn detail(text: &str) {
    say(&format!("      {text}"));
}

fn say(text: &str) {
    // Setup goes on when nobody listens any more.
    writeln!(io::stdout(), "{text}").ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_to_a_tenth_of_a_megabyte() {
        assert_eq!(megabytes(0), "0.0 MB");
        assert_eq!(megabytes(67_870_720), "67.9 MB");
    }
}
