//! The steps of a sandbox's life, for those who want to follow it.

use std::fmt;
use std::sync::Arc;

/// A point that a sandbox has reached. They come in this order; a sandbox that fails skips some.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Its record is made and held.
    Recorded,
    /// Its cgroup is made, limited and read back in every hierarchy.
    CgroupMade,
    /// Its bundle is written.
    BundleWritten,
    /// runsc is started inside the cgroup.
    Started,
    /// Init waits for the job.
    Ready,
    /// The job is written. The guest's answer may overtake this one.
    HandedOver,
    /// The program's interpreter is up.
    Running,
    /// The program has ended; its files are being collected.
    Ended,
    /// Nothing more is to come from the guest.
    Attended,
    /// All its processes are dead.
    Killed,
    /// Its cgroup is removed; the record is next.
    CgroupRemoved,
    /// Nothing of it is left.
    Removed,
}

impl Step {
    /// Every step, in order.
    pub const ALL: [Self; 12] = [
        Self::Recorded,
        Self::CgroupMade,
        Self::BundleWritten,
        Self::Started,
        Self::Ready,
        Self::HandedOver,
        Self::Running,
        Self::Ended,
        Self::Attended,
        Self::Killed,
        Self::CgroupRemoved,
        Self::Removed,
    ];
}

/// Told of each step with the id of the sandbox. It is called where the step is made and holds the
/// sandbox up until it returns.
#[derive(Clone, Default)]
pub(super) struct Observer(Option<Arc<Observe>>);

type Observe = dyn Fn(&str, Step) + Send + Sync;

impl Observer {
    pub(super) fn new(observe: impl Fn(&str, Step) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(observe)))
    }

    pub(super) fn reached(&self, id: &str, step: Step) {
        if let Some(observe) = &self.0 {
            observe(id, step);
        }
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if self.0.is_some() {
            "observed"
        } else {
            "unobserved"
        })
    }
}
