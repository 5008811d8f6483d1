//! Setting up a [`Sandbox`].

use super::{Error, Job, Sandbox};
use crate::config::{self, Config};
use crate::job::JobSpec;
use std::path::PathBuf;
use std::time::Duration;

/// Settings of a [`Sandbox`]. Whatever is not set is as `tako-vm run` has it.
///
/// # Examples
///
/// ```no_run
/// use std::time::Duration;
///
/// # fn main() -> Result<(), tako_vm::Error> {
/// let sandbox = tako_vm::Sandbox::builder()
///     .image("python")
///     .timeout(Duration::from_secs(10))
///     .memory_bytes(256 << 20)
///     .cpus(0.5)
///     .build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
#[must_use = "it does nothing until `build` is called"]
pub struct SandboxBuilder {
    image: Option<String>,
    state_dir: Option<PathBuf>,
    config: Option<PathBuf>,
    defaults: Job,
}

impl SandboxBuilder {
    /// The executor image: `NAME` or `NAME@sha256:HEX`. Default `python`.
    pub fn image(mut self, reference: impl Into<String>) -> Self {
        self.image = Some(reference.into());
        self
    }

    /// Where `tako-vm setup` has put images and runsc. Default `TAKO_VM_STATE_DIR`, or
    /// `/var/lib/tako-vm`.
    pub fn state_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.state_dir = Some(path.into());
        self
    }

    /// The configuration of root's, which says what a job may ask for at most. Default
    /// `/etc/tako_vm/config.yaml` if there is one.
    pub fn config_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.config = Some(path.into());
        self
    }

    /// [`Job::timeout`] of every job that does not say its own.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.defaults = self.defaults.timeout(timeout);
        self
    }

    /// [`Job::startup_timeout`] of every job that does not say its own.
    pub fn startup_timeout(mut self, timeout: Duration) -> Self {
        self.defaults = self.defaults.startup_timeout(timeout);
        self
    }

    /// [`Job::memory_bytes`] of every job that does not say its own.
    pub fn memory_bytes(mut self, bytes: u64) -> Self {
        self.defaults = self.defaults.memory_bytes(bytes);
        self
    }

    /// [`Job::cpus`] of every job that does not say its own.
    pub fn cpus(mut self, cpus: f64) -> Self {
        self.defaults = self.defaults.cpus(cpus);
        self
    }

    /// Finds and checks everything that a sandbox takes; nothing is downloaded. What processes that
    /// were killed have left in the state directory is cleared away.
    ///
    /// This blocks for some milliseconds, or a second when image and runsc have not been hashed since
    /// they were last changed.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::Job`] for limits that are out of range, [`Error::Privilege`],
    /// [`Error::Image`], [`Error::Runtime`] or [`Error::Sandbox`].
    pub fn build(self) -> Result<Sandbox, Error> {
        let config =
            Config::load(self.config.as_deref()).map_err(|error| Error::Config(error.into()))?;
        // The limits now, and not with the first job. The program stands for any.
        JobSpec::check(
            Job::new("pass").or(&self.defaults).into_request(),
            &config.maxima,
        )?;
        let state_dir = self.state_dir.unwrap_or_else(config::state_dir);
        let image = self.image.as_deref().unwrap_or(config::DEFAULT_IMAGE);
        Ok(Sandbox {
            defaults: self.defaults,
            ..Sandbox::open(&state_dir, image, &config)?
        })
    }
}
