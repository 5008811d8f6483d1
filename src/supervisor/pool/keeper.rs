//! Whoever keeps sandboxes ready: retires, freezes and thaws, makes new ones, makes checkpoints.

use super::super::journal::{self, one_line};
use super::rack::{Profile, Waiting};
use super::{Shared, discard};
use crate::sandbox::{Ready, SandboxError};
use crate::sys::cgroup::Urgency;
use crate::sys::{place, process};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

/// How often it looks around when nothing happens.
const TICK: Duration = Duration::from_secs(1);

/// How long nothing is made after that has failed.
const PAUSE: Duration = Duration::from_secs(2);

/// Keeps the pool until it ends.
pub(super) async fn keep(shared: Arc<Shared>) {
    stand(&shared);
    sweep(&shared);
    let mut looked = None;
    while !shared.ended.is_cancelled() {
        if looked.is_none_or(|looked: Instant| looked.elapsed() >= TICK) {
            looked = Some(Instant::now());
            look_at_images(&shared);
        }
        retire(&shared);
        settle(&shared).await;
        refill(&shared);
        // Whoever takes one says so.
        drop(timeout(TICK, shared.changed.notified()).await);
    }
}

/// Opens the racks that are kept from the start.
fn stand(shared: &Shared) {
    for (name, limits) in &shared.settings.profiles {
        match process::blocking(|| shared.images.find(name)) {
            Ok(image) => {
                let path = process::blocking(|| shared.settings.path_of(&image));
                let profile = Profile::new(&image, path, limits);
                let mut racks = shared.racks();
                let rack = racks.of(&profile);
                rack.standing = true;
                rack.outdated = false;
            }
            Err(error) => journal::warn(&format!("keeps none ready: {}", one_line(&error))),
        }
    }
}

/// Removes checkpoints of what is not as it was.
fn sweep(shared: &Shared) {
    let profiles = shared.racks().profiles();
    let kept: Vec<PathBuf> = (profiles.iter())
        .filter_map(|profile| shared.checkpoints.path(&shared.sandboxes, profile))
        .collect();
    if let Err(error) = process::blocking(|| shared.checkpoints.keep(&kept)) {
        journal::warn(&format!(
            "cannot remove old checkpoints: {}",
            one_line(&error)
        ));
    }
}

/// Finds out which images are others by now; a standing profile moves on to the new one.
fn look_at_images(shared: &Shared) {
    let mut digests: BTreeMap<String, Option<String>> = BTreeMap::new();
    let profiles = shared.racks().profiles();
    for profile in &profiles {
        if digests.contains_key(&profile.name) {
            continue;
        }
        let manifest = (profile.name.parse().ok())
            .and_then(|name| process::blocking(|| shared.images.manifest(&name)).ok());
        let digest = manifest.map(|manifest| manifest.digest.to_string());
        digests.insert(profile.name.clone(), digest);
    }
    let mut replaced = false;
    for (profile, rack) in shared.racks().iter_mut() {
        let is = digests.get(&profile.name).and_then(Option::as_deref);
        if is != Some(&profile.digest) && !rack.outdated {
            rack.outdated = true;
            replaced |= std::mem::take(&mut rack.standing);
            if let Some(staged) = &shared.settings.staged {
                staged.forget(&profile.digest);
            }
            journal::info(&format!(
                "the image `{}` is another: its ready sandboxes go",
                profile.name
            ));
        }
    }
    let standing = shared
        .racks()
        .iter_mut()
        .filter(|(_, rack)| rack.standing)
        .count();
    if replaced || standing < shared.settings.profiles.len() {
        stand(shared);
    }
}

/// Destroys those that are dead, too old, out of date or too many.
fn retire(shared: &Arc<Shared>) {
    let mut weeded = Vec::new();
    {
        let mut racks = shared.racks();
        racks.aim(&shared.settings);
        for (_, rack) in racks.iter_mut() {
            weeded.extend(rack.weed(shared.settings.max_age));
        }
    }
    for ready in weeded {
        tokio::spawn(discard(ready));
    }
}

/// Freezes and thaws, until all are as they should be.
async fn settle(shared: &Shared) {
    let profiles = shared.racks().profiles();
    for profile in profiles {
        loop {
            let after = shared.settings.frozen_after;
            let misplaced = shared.racks().of(&profile).take_misplaced(after);
            let Some((at, mut waiting)) = misplaced else {
                break;
            };
            // Off the rack meanwhile: a job does not wait for it, and does not get it either.
            let frozen = !waiting.frozen;
            match process::blocking(|| set_frozen(&waiting.ready, frozen)) {
                Ok(()) => {
                    waiting.frozen = frozen;
                    shared.racks().of(&profile).put_back(at, waiting);
                }
                Err(error) => {
                    journal::warn(&one_line(&error));
                    shared.racks().of(&profile).retired += 1;
                    discard(waiting.ready).await;
                }
            }
        }
    }
}

fn set_frozen(ready: &Ready, frozen: bool) -> Result<(), SandboxError> {
    if frozen { ready.freeze() } else { ready.thaw() }
}

/// Begins to make what is missing, unless a job waits for a sandbox of its own.
fn refill(shared: &Arc<Shared>) {
    let at_once = std::thread::available_parallelism().map_or(1, usize::from);
    while !shared.ended.is_cancelled() && shared.waiting.load(Ordering::Relaxed) == 0 {
        let mut racks = shared.racks();
        if racks.starting() >= at_once {
            return;
        }
        let Some(profile) = racks.begin_one() else {
            return;
        };
        drop(racks);
        tokio::spawn(make(Arc::clone(shared), profile));
    }
}

/// Makes one sandbox and puts it on its rack.
async fn make(shared: Arc<Shared>, profile: Arc<Profile>) {
    let made = make_one(&shared, &profile).await;
    let kept = match made {
        Ok(ready) => put(&shared, &profile, ready),
        Err(error) => {
            journal::error(&one_line(&error));
            sleep(PAUSE).await;
            None
        }
    };
    shared.racks().of(&profile).starting -= 1;
    shared.changed.notify_one();
    if let Some(ready) = kept {
        discard(ready).await;
    }
}

async fn make_one(shared: &Shared, profile: &Profile) -> Result<Ready, SandboxError> {
    if shared.racks().of(profile).ways.checkpoint.is_none() {
        look_for_checkpoint(shared, profile).await;
    }
    if let Some(ready) = shared.restore(profile, Urgency::Refill).await {
        return Ok(ready);
    }
    start(shared, profile).await
}

async fn start(shared: &Shared, profile: &Profile) -> Result<Ready, SandboxError> {
    let begun = Instant::now();
    let ready = shared
        .sandboxes
        .ready(&profile.path, &profile.limits, Urgency::Refill)
        .await?;
    shared
        .racks()
        .of(profile)
        .ways
        .started_cold(begun.elapsed());
    Ok(ready)
}

/// Puts one on its rack, as it is to wait there; gives it back when the pool has ended.
fn put(shared: &Shared, profile: &Profile, ready: Ready) -> Option<Ready> {
    let after = shared.settings.frozen_after;
    let frozen = shared.racks().of(profile).is_front_full(after);
    if frozen && let Err(error) = process::blocking(|| ready.freeze()) {
        journal::warn(&one_line(&error));
        return Some(ready);
    }
    let bytes = ready.memory_used().unwrap_or(0);
    let mut racks = shared.racks();
    // Looked at under the lock: whoever ends the pool empties the racks after that.
    if shared.ended.is_cancelled() {
        return Some(ready);
    }
    let rack = racks.of(profile);
    rack.refills += 1;
    rack.put(Waiting {
        ready,
        frozen,
        bytes,
    });
    None
}

/// Finds the checkpoint of a profile, or makes it, at its first use.
async fn look_for_checkpoint(shared: &Shared, profile: &Profile) {
    let tried = std::mem::replace(&mut shared.racks().of(profile).ways.checkpoint_tried, true);
    if tried {
        return;
    }
    let Some(path) = shared.checkpoints.path(&shared.sandboxes, profile) else {
        return;
    };
    if !path.is_dir()
        && let Err(error) = make_checkpoint(shared, profile, &path).await
    {
        journal::error(&format!(
            "cannot make a checkpoint of the image `{}`, and starts cold instead: {}",
            profile.name,
            one_line(&*error)
        ));
        return;
    }
    shared.racks().of(profile).ways.checkpoint = Some(path);
}

async fn make_checkpoint(
    shared: &Shared,
    profile: &Profile,
    path: &std::path::Path,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let partial = process::blocking(|| shared.checkpoints.begin())?;
    let ready = start(shared, profile).await?;
    shared.sandboxes.checkpoint(ready, partial.path()).await?;
    process::blocking(|| place::publish_directory(partial.path(), path))?;
    // It has another name now.
    drop(partial.keep());
    Ok(())
}
