//! Setting up a [`Sandbox`].

use super::{Error, Host, Job, Local, Remote, Sandbox};
use crate::config::{self, Config};
use crate::job::JobSpec;
use std::path::PathBuf;
use std::sync::Arc;
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
    supervisor: Option<PathBuf>,
    in_process: bool,
    defaults: Job,
}

impl SandboxBuilder {
    /// The executor image: `NAME` or `NAME@sha256:HEX`. Default `python`.
    pub fn image(mut self, reference: impl Into<String>) -> Self {
        self.image = Some(reference.into());
        self
    }

    /// The socket of the supervisor that runs the programs. Default `TAKO_VM_SUPERVISOR_SOCKET`.
    ///
    /// One that is named, here or there, must be listened on; neither a state directory nor a
    /// configuration is read then. Where none is named, `/run/tako-vm/supervisor.sock` is used if a
    /// supervisor listens there and neither a [state directory](Self::state_dir) nor a
    /// [configuration](Self::config_file) is named. Otherwise this process runs the programs, and must
    /// be root.
    pub fn supervisor(mut self, socket: impl Into<PathBuf>) -> Self {
        self.supervisor = Some(socket.into());
        self
    }

    /// This process runs the programs, whoever listens and whatever is named.
    pub(crate) fn in_process(mut self) -> Self {
        self.in_process = true;
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
    /// were killed have left in the state directory is cleared away. Of a supervisor it only finds out
    /// that it listens: image and limits are checked by it, with every job.
    ///
    /// This blocks for some milliseconds, or a second when image and runsc have not been hashed since
    /// they were last changed.
    ///
    /// # Errors
    /// [`Error::Connection`] when nobody listens on the socket that was named. Without a supervisor
    /// [`Error::Config`], [`Error::Job`] for limits that are out of range, [`Error::Privilege`],
    /// [`Error::Image`], [`Error::Runtime`] or [`Error::Sandbox`].
    pub fn build(self) -> Result<Sandbox, Error> {
        let image = self.image.as_deref().unwrap_or(config::DEFAULT_IMAGE);
        let named = self.supervisor.or_else(config::named_socket);
        let state_dir = self.state_dir.or_else(config::named_state_dir);
        let elsewhere = state_dir.is_some() || self.config.is_some();
        let remote = if self.in_process {
            None
        } else {
            Remote::find(named, elsewhere, image)?
        };
        let host = if let Some(remote) = remote {
            Host::Supervisor(remote.idle())
        } else {
            let config = Config::load(self.config.as_deref())
                .map_err(|error| Error::Config(error.into()))?;
            // The limits now, and not with the first job. The program stands for any.
            JobSpec::check(
                Job::new("pass").or(&self.defaults).into_request(),
                &config.maxima,
            )?;
            let state_dir = state_dir.unwrap_or_else(|| config::DEFAULT_STATE_DIR.into());
            Host::Local(Local::open(&state_dir, image, &config)?)
        };
        Ok(Sandbox {
            host: Arc::new(host),
            defaults: self.defaults,
        })
    }
}
