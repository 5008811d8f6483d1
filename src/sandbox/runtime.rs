//! What runs a sandbox: gVisor, or in permissive mode a container runtime.

use crate::runc::Runc;
use crate::runsc::Runsc;

/// The runtime of all sandboxes of a [`Sandboxes`](super::Sandboxes).
#[derive(Debug, Clone)]
pub enum Runtime {
    /// gVisor: a program never speaks to the host's kernel.
    Gvisor(Runsc),
    /// A container: weaker, since a program's system calls are the host's. Only where root asks for
    /// permissive mode.
    Container(Runc),
}

impl Runtime {
    /// Its name in records.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Gvisor(_) => "runsc",
            Self::Container(runc) => runc.kind().name(),
        }
    }
}

impl From<Runsc> for Runtime {
    fn from(runsc: Runsc) -> Self {
        Self::Gvisor(runsc)
    }
}

impl From<Runc> for Runtime {
    fn from(runc: Runc) -> Self {
        Self::Container(runc)
    }
}
