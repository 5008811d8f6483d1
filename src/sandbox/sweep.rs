//! Clearing away what processes that were killed have left: whatever nobody holds.
//!
//! A sandbox whose owner lives is never touched, nor is anything whose name is not of our form, nor a
//! cgroup without a record here: that one belongs to another state directory, and may live.

use super::record::{Record, records, spools};
use super::{SandboxError, TeardownError};
use crate::sys::cgroup::{self, Hierarchies};
use crate::sys::held::{Held, Registry};
use crate::sys::place::{self, PlaceError};
use std::path::Path;
use std::thread;
use std::time::Duration;

/// How long the processes of one abandoned sandbox may take to die. The promise is 2 s for eight of
/// them; the rest is for a host that is itself out of breath. A start waits for it, and goes on
/// without: what is left cannot reach a new sandbox, and is tried again at the next start.
const PATIENCE: Duration = Duration::from_secs(3);

/// How many are cleared away at once. Most of the time is spent waiting for the kernel.
const AT_ONCE: usize = 16;

/// What a sweep did.
#[derive(Debug, Default)]
pub struct Swept {
    /// Names of the sandboxes and spools that are gone, with everything that belonged to them.
    pub removed: Vec<String>,
    /// What could not be removed, and is tried again by the next sweep.
    pub left: Vec<Left>,
}

/// Something abandoned that could not be cleared away.
#[derive(Debug, thiserror::Error)]
#[error("cannot clear away `{id}`, which a killed process has left")]
pub struct Left {
    /// Its name.
    pub id: String,
    /// What of it is left, and why.
    #[source]
    pub error: TeardownError,
}

/// Removes every sandbox and spool of `state_dir` whose owner is gone: processes, cgroup, directory.
///
/// # Errors
/// When it cannot even be looked for, or others than root can write there. What cannot be removed is in [`Swept::left`].
pub fn sweep(state_dir: &Path) -> Result<Swept, SandboxError> {
    // In a directory of somebody else's a record could be made for any sandbox that lives.
    let state_dir = &place::trusted(state_dir).map_err(SandboxError::Sweep)?;
    // Without an abandoned sandbox, no cgroup directory is made and removed again.
    if records(state_dir)
        .abandoned()
        .map_err(SandboxError::Sweep)?
        .is_empty()
    {
        let mut swept = Swept::default();
        sweep_spools(state_dir, &mut swept)?;
        return Ok(swept);
    }
    let hierarchies = Hierarchies::prepare().map_err(SandboxError::Cgroup)?;
    sweep_with(state_dir, &hierarchies)
}

/// Names of the sandboxes and spools of `state_dir` whose owner is gone. Nothing is changed.
///
/// # Errors
/// When it cannot be looked for.
pub fn orphans(state_dir: &Path) -> Result<Vec<String>, SandboxError> {
    let mut names = records(state_dir)
        .abandoned()
        .map_err(SandboxError::Sweep)?;
    names.extend(spools(state_dir).abandoned().map_err(SandboxError::Sweep)?);
    Ok(names)
}

/// Names of cgroups of our form that have no record in `state_dir`: those of other state directories,
/// or what is left of one that was deleted by hand. They may live, and no sweep of ours touches them.
///
/// # Errors
/// When the hierarchies cannot be read.
pub fn strangers(state_dir: &Path) -> Result<Vec<String>, SandboxError> {
    let records = records(state_dir);
    let unknown = |name: &String| records.is_name(name) && !records.has(name);
    let first: Vec<_> = cgroup::leaves()
        .map_err(SandboxError::Cgroup)?
        .into_iter()
        .filter(unknown)
        .collect();
    if first.is_empty() {
        return Ok(first);
    }
    // One of ours that ended between the two looks has no cgroup any more: it went first.
    let still = cgroup::leaves().map_err(SandboxError::Cgroup)?;
    Ok(first
        .into_iter()
        .filter(|name| still.contains(name))
        .collect())
}

/// Like [`sweep`], with hierarchies at hand.
pub(super) fn sweep_with(
    state_dir: &Path,
    hierarchies: &Hierarchies,
) -> Result<Swept, SandboxError> {
    let mut swept = Swept::default();
    let records = records(state_dir);
    let mut names = records.list().map_err(SandboxError::Sweep)?.into_iter();
    loop {
        let held = names
            .by_ref()
            .filter_map(|name| swept.claim(&records, name))
            .take(AT_ONCE)
            .collect::<Vec<_>>();
        if held.is_empty() {
            break;
        }
        thread::scope(|scope| {
            let clear = |held| scope.spawn(|| clear(Record::of_the_dead(held, hierarchies)));
            let threads: Vec<_> = held.into_iter().map(clear).collect();
            for thread in threads {
                match thread.join() {
                    Ok(Ok(id)) => swept.removed.push(id),
                    Ok(Err(left)) => swept.left.push(left),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
        });
    }
    sweep_spools(state_dir, &mut swept)?;
    Ok(swept)
}

fn sweep_spools(state_dir: &Path, swept: &mut Swept) -> Result<(), SandboxError> {
    let spools = spools(state_dir);
    for name in spools.list().map_err(SandboxError::Sweep)? {
        if let Some(mut held) = swept.claim(&spools, name) {
            let id = held.name().to_owned();
            match held.remove() {
                Ok(()) => swept.removed.push(id),
                Err(error) => swept.leave(id, error),
            }
        }
    }
    Ok(())
}

/// Clears one sandbox away, or leaves it to the next sweep.
fn clear(mut record: Record) -> Result<String, Left> {
    let id = record.id().to_owned();
    match record.clear(PATIENCE) {
        Ok(()) => Ok(id),
        Err(error) => {
            record.abandon();
            Err(Left { id, error })
        }
    }
}

impl Swept {
    fn claim(&mut self, registry: &Registry, name: String) -> Option<Held> {
        registry.claim(&name).unwrap_or_else(|error| {
            self.leave(name, error);
            None
        })
    }

    fn leave(&mut self, id: String, error: PlaceError) {
        let error = TeardownError::Directory(error);
        self.left.push(Left { id, error });
    }
}
