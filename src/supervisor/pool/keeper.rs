//! Whoever keeps sandboxes ready: retires, freezes and thaws, makes new ones, makes checkpoints.

use super::super::journal;
use super::checkpoint::Checkpoints;
use super::rack::{Profile, Waiting};
use super::{AtWork, Shared, discard};
use crate::image::Reference;
use crate::job::one_line;
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

/// How long a job that has taken one is left alone: a short one has ended then.
const BREATH: Duration = Duration::from_millis(20);

/// How long nothing is made after that has failed.
const PAUSE: Duration = Duration::from_secs(2);

/// How long an image that is there and of no use is left alone: looking at it may mean to hash it.
const LEFT_ALONE: Duration = Duration::from_mins(1);

/// Configured profiles that cannot be kept ready: with which digest, if any, and since when.
type Missing = BTreeMap<String, (Option<String>, Instant)>;

/// Keeps the pool until it ends.
pub(super) async fn keep(at_work: AtWork) {
    let shared = &at_work.0;
    let mut missing = Missing::new();
    stand(shared, &mut missing);
    sweep(shared, true);
    let mut looked = Instant::now();
    while !shared.ended.is_cancelled() {
        let look = looked.elapsed() >= TICK;
        if look {
            looked = Instant::now();
            look_at_images(shared);
            stand(shared, &mut missing);
            unstage(shared);
        }
        retire(shared, look);
        settle(shared).await;
        refill(shared);
        // Whoever takes one says so, and has a job to run first.
        if timeout(TICK, shared.changed.notified()).await.is_ok() {
            sleep(BREATH).await;
        }
    }
}

/// Opens the racks that are kept from the start.
fn stand(shared: &Shared, missing: &mut Missing) {
    for (name, limits) in &shared.settings.profiles {
        if shared.racks().stands(name, limits) {
            continue;
        }
        let digest = digest_of(shared, name);
        let known = missing.get(name);
        if known.is_some_and(|(before, since)| {
            *before == digest && (digest.is_none() || since.elapsed() < LEFT_ALONE)
        }) {
            continue;
        }
        match process::blocking(|| shared.images.find(name)) {
            Ok(image) => {
                missing.remove(name);
                let path = process::blocking(|| shared.settings.stage(&image));
                shared.racks().stand(Profile::new(&image, path, limits));
            }
            Err(error) => {
                let now = (digest, Instant::now());
                if missing.insert(name.clone(), now).is_none() {
                    journal::warn(&format!("keeps none ready: {}", one_line(&error)));
                }
            }
        }
    }
}

/// The digest of an image according to its manifest, if it has a valid one.
fn digest_of(shared: &Shared, name: &str) -> Option<String> {
    let name = name.parse::<Reference>().ok()?.name;
    let manifest = process::blocking(|| shared.images.manifest(&name)).ok()?;
    Some(manifest.digest.to_string())
}

/// Removes checkpoints of what is not as it was, or not in use.
fn sweep(shared: &Shared, unfinished: bool) {
    let profiles = shared.racks().profiles();
    let kept: Vec<PathBuf> = (profiles.iter())
        .filter_map(|profile| shared.checkpoints.path(&shared.sandboxes, profile))
        .collect();
    if let Err(error) = process::blocking(|| shared.checkpoints.keep(&kept, unfinished)) {
        journal::warn(&format!(
            "cannot remove old checkpoints: {}",
            one_line(&error)
        ));
    }
}

/// Finds out which images are others by now.
fn look_at_images(shared: &Shared) {
    let mut digests: BTreeMap<String, Option<String>> = BTreeMap::new();
    let profiles = shared.racks().profiles();
    for profile in &profiles {
        if digests.contains_key(&profile.name) {
            continue;
        }
        digests.insert(profile.name.clone(), digest_of(shared, &profile.name));
    }
    for (profile, rack) in shared.racks().iter_mut() {
        // One that a job has opened meanwhile was looked at by that job.
        let Some(digest) = digests.get(&profile.name) else {
            continue;
        };
        let outdated = digest.as_deref() != Some(&profile.digest);
        if outdated && !rack.outdated {
            rack.standing = false;
            journal::info(&format!(
                "the image `{}` is another: its ready sandboxes go",
                profile.name
            ));
        }
        rack.outdated = outdated;
    }
}

/// Drops copies of images that no profile has any more.
fn unstage(shared: &Shared) {
    if let Some(staged) = &shared.settings.staged {
        let profiles = shared.racks().profiles();
        let digests: Vec<_> = (profiles.iter())
            .map(|profile| profile.digest.clone())
            .collect();
        process::blocking(|| staged.keep(&digests));
    }
}

/// Destroys those that are too old, out of date or too many; the dead too, where they are looked at.
fn retire(shared: &Arc<Shared>, look: bool) {
    let mut weeded = Vec::new();
    {
        let mut racks = shared.racks();
        racks.aim(&shared.settings);
        for (_, rack) in racks.iter_mut() {
            weeded.extend(rack.weed(shared.settings.max_age, look));
        }
    }
    for ready in weeded {
        shared.throw_away(ready);
    }
}

/// Freezes and thaws, until all are as they should be.
async fn settle(shared: &Shared) {
    let after = shared.settings.frozen_after;
    let profiles = shared.racks().profiles();
    for profile in profiles {
        while let Some((at, mut waiting)) = shared
            .on_rack(&profile, |rack| rack.take_misplaced(after))
            .flatten()
        {
            // Off the rack meanwhile: no job gets it as it changes.
            let frozen = !waiting.frozen;
            let set = process::blocking(|| set_frozen(&waiting.ready, frozen));
            waiting.frozen = frozen;
            let (back, ready) = match set {
                Ok(()) => (Some(waiting), None),
                Err(error) => {
                    journal::warn(&one_line(&error));
                    (None, Some(waiting.ready))
                }
            };
            shared.on_rack(&profile, |rack| match back {
                Some(waiting) => rack.put_back(at, waiting),
                None => rack.lost(),
            });
            shared.returned.notify_waiters();
            if let Some(ready) = ready {
                discard(ready).await;
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
        let begun = Begun {
            at_work: AtWork::new(shared),
            profile,
        };
        tokio::spawn(make(begun));
    }
}

/// One that is being made: it counts until this is dropped, whatever becomes of its task.
struct Begun {
    at_work: AtWork,
    profile: Arc<Profile>,
}

impl Drop for Begun {
    fn drop(&mut self) {
        let shared = &self.at_work.0;
        shared.racks().begun_one_ends(&self.profile);
        shared.changed.notify_one();
    }
}

/// Makes one sandbox and puts it on its rack.
async fn make(begun: Begun) {
    let (shared, profile) = (&begun.at_work.0, &begun.profile);
    let made = tokio::select! {
        made = make_one(shared, profile) => made,
        // Dropped, it is killed: at its low weight it may take long on a busy host, and nobody wants it.
        () = shared.ended.cancelled() => return,
    };
    let left = match made {
        Ok(ready) => {
            shared.on_rack(profile, |rack| rack.trouble = None);
            put(shared, profile, ready)
        }
        Err(error) => {
            let trouble = one_line(&error);
            let before = shared.on_rack(profile, |rack| rack.trouble.replace(trouble.clone()));
            if before.flatten().as_ref() != Some(&trouble) {
                journal::error(&trouble);
            }
            rest(shared).await;
            None
        }
    };
    if let Some(ready) = left {
        discard(ready).await;
        rest(shared).await;
    }
}

/// Nothing is made meanwhile in the place of what was of no use.
async fn rest(shared: &Shared) {
    drop(timeout(PAUSE, shared.ended.cancelled()).await);
}

async fn make_one(shared: &Shared, profile: &Profile) -> Result<Ready, SandboxError> {
    look_for_checkpoint(shared, profile).await;
    let trial = shared.on_rack(profile, |rack| rack.ways.wants_cold_trial());
    if trial != Some(true)
        && let Some(ready) = shared.restore(profile, Urgency::Refill).await
    {
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
    let took = begun.elapsed();
    shared.on_rack(profile, |rack| rack.ways.started_cold(took));
    Ok(ready)
}

/// Puts one on its rack, as it is to wait there; gives it back when there is no place for it.
fn put(shared: &Shared, profile: &Profile, ready: Ready) -> Option<Ready> {
    let after = shared.settings.frozen_after;
    let frozen = shared.on_rack(profile, |rack| rack.is_front_full(after))?;
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
    let waiting = Waiting {
        ready,
        frozen,
        bytes,
    };
    let refused = racks.put(profile, waiting);
    refused.map(|waiting| waiting.ready)
}

/// Finds the checkpoint of a profile, or makes it, at its first use.
async fn look_for_checkpoint(shared: &Shared, profile: &Profile) {
    let tried = shared.on_rack(profile, |rack| {
        std::mem::replace(&mut rack.ways.checkpoint_tried, true)
    });
    if tried != Some(false) {
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
    shared.on_rack(profile, |rack| rack.ways.checkpoint = Some(path));
}

async fn make_checkpoint(
    shared: &Shared,
    profile: &Profile,
    path: &std::path::Path,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    // Those of forgotten profiles: else each job with limits of its own would leave one.
    sweep(shared, false);
    let partial = process::blocking(|| shared.checkpoints.begin())?;
    let ready = start(shared, profile).await?;
    shared.sandboxes.checkpoint(ready, partial.path()).await?;
    process::blocking(|| {
        Checkpoints::close(partial.path())?;
        place::publish_directory(partial.path(), path)
    })?;
    // It has another name now.
    drop(partial.keep());
    Ok(())
}
