//! Running programs in this process, as root.

use super::running::{self, Running};
use super::{Cause, Error};
use crate::config::{Config, SecurityMode};
use crate::image::{Image, Images};
use crate::job::{JobSpec, Maxima};
use crate::runc::{Runc, RuncError};
use crate::runsc::Runsc;
use crate::runsc::provision;
use crate::sandbox::{Runtime, Sandboxes, Swept};
use crate::sys::privilege;
use std::path::{self, Path};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// What all sandboxes of this process share.
#[derive(Debug)]
pub(crate) struct Local {
    pub(super) image: Image,
    pub(super) maxima: Maxima,
    pub(super) sandboxes: Sandboxes,
}

impl Local {
    /// Checks that this process can run sandboxes at all.
    pub(super) fn require_root() -> Result<(), Error> {
        privilege::require_root().map_err(|error| Error::Privilege(error.into()))
    }

    /// Finds and checks everything that a sandbox takes.
    pub(crate) fn open(state_dir: &Path, image: &str, config: &Config) -> Result<Arc<Self>, Error> {
        Self::require_root()?;
        let unusable = |error: Cause| Error::Sandbox(error);
        // The program that calls us may change its directory.
        let state_dir = path::absolute(state_dir).map_err(|error| unusable(error.into()))?;
        let image = Images::at(&state_dir)
            .find(image)
            .map_err(|error| Error::Image(error.into()))?;
        let sandboxes = Sandboxes::prepare(&state_dir, runtime(&state_dir, config)?)
            .map_err(|error| unusable(error.into()))?;
        Ok(Arc::new(Self {
            image,
            maxima: config.maxima.clone(),
            sandboxes,
        }))
    }

    /// What killed processes had left, and what of it is still there.
    pub(crate) fn swept(&self) -> &Swept {
        self.sandboxes.swept()
    }

    /// Starts a checked job, which also `cancel` cancels.
    pub(crate) fn launch(self: &Arc<Self>, job: JobSpec, cancel: &CancellationToken) -> Running {
        running::launch(Arc::clone(self), job, cancel)
    }
}

/// The container runtime of permissive mode; `None` in strict mode.
pub(crate) fn container(config: &Config) -> Option<Result<Runc, RuncError>> {
    match config.security_mode {
        SecurityMode::Strict => None,
        SecurityMode::Permissive(kind) => Some(Runc::find(kind)),
    }
}

/// What programs are run with: as the configuration says, and nobody else.
pub(crate) fn runtime(state_dir: &Path, config: &Config) -> Result<Runtime, Error> {
    if let Some(runc) = container(config) {
        let runc = runc.map_err(|error| Error::Runtime(error.into()))?;
        return Ok(runc.into());
    }
    let installed = provision::installed(state_dir).and_then(|runsc| {
        runsc.require(config.runsc_minimum_release)?;
        Ok(runsc)
    });
    let installed = installed.map_err(|error| Error::Runtime(error.into()))?;
    Ok(Runsc::new(installed.binary).into())
}
