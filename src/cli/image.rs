//! `tako-vm image`: the executor images of this host.

use super::setup::{self, SetupError};
use crate::image::archive::{self, ArchiveError};
use crate::image::{ImageError, ImageName, Images, Manifest, NotAReference};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// List, show, remove and export executor images
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// What to do
    #[command(subcommand)]
    command: Command,
}

/// What can be done with images.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List the images
    Ls {
        /// Print their manifests as one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Print the manifest of an image
    Show {
        /// The image
        name: String,
    },
    /// Remove an image
    Rm {
        /// The image
        name: String,
    },
    /// Write an image to an archive that `tako-vm setup --from` takes, and print its SHA-256
    Export {
        /// The image
        name: String,
        /// The archive to write
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
}

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub(super) enum ImageCommandError {
    #[error(transparent)]
    Setup(SetupError),
    #[error(transparent)]
    Image(ImageError),
    #[error("cannot export the executor image")]
    Export { source: ArchiveError },
    #[error("cannot print")]
    Print { source: io::Error },
}

impl ImageCommandError {
    /// What can be done about it, where the message does not say it.
    pub(super) fn hint(&self) -> Option<String> {
        match self {
            Self::Setup(error) => error.hint(),
            Self::Image(_) | Self::Export { .. } | Self::Print { .. } => None,
        }
    }
}

/// Does what the subcommand says.
///
/// # Errors
/// [`ImageCommandError`].
pub(super) fn run(arguments: &Arguments, state_dir: &Path) -> Result<(), ImageCommandError> {
    let images = Images::at(state_dir);
    let printed = match &arguments.command {
        Command::Ls { json: true } => json(&list(&images)?)?,
        Command::Ls { json: false } => table(&list(&images)?),
        Command::Show { name } => json(&manifest(&images, name)?)?,
        Command::Rm { name } => remove(state_dir, &images, name)?,
        Command::Export { name, output } => {
            let image = images.find(name).map_err(ImageCommandError::Image)?;
            let digest = archive::export(&images, &image, output)
                .map_err(|source| ImageCommandError::Export { source })?;
            format!("{digest}\n")
        }
    };
    io::stdout()
        .write_all(printed.as_bytes())
        .map_err(|source| ImageCommandError::Print { source })
}

fn list(images: &Images) -> Result<Vec<Manifest>, ImageCommandError> {
    images.list().map_err(ImageCommandError::Image)
}

fn manifest(images: &Images, name: &str) -> Result<Manifest, ImageCommandError> {
    parse(name)
        .and_then(|name| images.manifest(&name))
        .map_err(ImageCommandError::Image)
}

fn parse(name: &str) -> Result<ImageName, ImageError> {
    name.parse()
        .map_err(|source: NotAReference| ImageError::Reference { source })
}

fn remove(state_dir: &Path, images: &Images, name: &str) -> Result<String, ImageCommandError> {
    let name = parse(name).map_err(ImageCommandError::Image)?;
    // Before the lock, whose file must not be made in a directory that is none of ours.
    images
        .manifest_exists(&name)
        .map_err(ImageCommandError::Image)?;
    let _lock = setup::lock(state_dir).map_err(ImageCommandError::Setup)?;
    let removed = images.remove(&name).map_err(ImageCommandError::Image)?;
    let line = |path: &PathBuf| format!("removed `{}`\n", path.display());
    Ok(removed.iter().map(line).collect())
}

fn json(value: &impl serde::Serialize) -> Result<String, ImageCommandError> {
    let text = serde_json::to_string_pretty(value).map_err(|source| ImageCommandError::Print {
        source: source.into(),
    })?;
    Ok(text + "\n")
}

fn table(images: &[Manifest]) -> String {
    let row = |name: &str, digest: &str, size: &str, python: &str, created: &str| {
        format!("{name:<16}  {digest:<12}  {size:>9}  {python:<8}  {created}\n")
    };
    let mut text = row("NAME", "DIGEST", "SIZE", "PYTHON", "CREATED");
    for image in images {
        text.push_str(&row(
            image.name.as_str(),
            &image.digest.to_string()[..12],
            &setup::megabytes(image.size_bytes),
            &image.python,
            &image.created_at.to_string(),
        ));
    }
    text
}
