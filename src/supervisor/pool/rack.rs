//! The ready sandboxes of each profile, and how many there should be.

use super::super::wire::PoolStats;
use super::Settings;
use crate::image::Image;
use crate::job::Limits;
use crate::sandbox::Ready;
use crate::sys::processor;
use std::collections::{HashMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a ready sandbox is taken to use until some have been looked at.
const USUAL_BYTES: u64 = 32 << 20;

/// How long one is taken to take until some have been made.
const USUAL_TIME: Duration = Duration::from_millis(500);

/// How many wait thawed, at the front: thawing takes some milliseconds, and an idle sentry some CPU
/// time.
pub(super) const THAWED: usize = 2;

/// How long a profile is kept ready after its last job, unless it is configured.
const REMEMBERED: Duration = Duration::from_mins(10);

/// Profiles at most: each keeps some sandboxes ready. Beyond them, jobs start cold or restored.
const MAX_PROFILES: usize = 32;

/// How long a profile must have had no job to make room for another one.
const UNUSED: Duration = Duration::from_secs(10);

/// How fast the rate of arrivals forgets, in seconds: the time constant of its decay.
const MEMORY_S: f64 = 30.0;

/// Restores, and cold starts, that are measured before one way is preferred.
const TRIALS: usize = 3;

/// How many times as long a restore may take as a cold start. It takes three quarters of its CPU time.
const CLEARLY: f64 = 1.25;

/// Failures in a row after which a checkpoint is not used any more.
const MAX_FAILURES: u32 = 3;

/// What sandboxes have in common that can take one another's jobs.
#[derive(Debug, Clone)]
pub(super) struct Profile {
    /// Name of the image.
    pub(super) name: String,
    /// Digest of the image.
    pub(super) digest: String,
    /// Its file.
    pub(super) path: PathBuf,
    /// Limits that are fixed at the start.
    pub(super) limits: Limits,
}

impl Profile {
    pub(super) fn new(image: &Image, path: PathBuf, limits: &Limits) -> Self {
        Self {
            name: image.manifest.name.to_string(),
            digest: image.manifest.digest.to_string(),
            path,
            limits: limits.at_start(),
        }
    }
}

impl PartialEq for Profile {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest && self.name == other.name && self.limits == other.limits
    }
}

impl Eq for Profile {}

impl Hash for Profile {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.name, &self.digest, &self.limits).hash(state);
    }
}

/// A sandbox on its rack.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) ready: Ready,
    pub(super) frozen: bool,
    /// Memory that it used when it was put here.
    pub(super) bytes: u64,
}

/// The sandboxes of one profile.
#[derive(Debug, Default)]
pub(super) struct Rack {
    waiting: VecDeque<Waiting>,
    starting: usize,
    /// Off the rack to be frozen or thawed, and soon back.
    pub(super) in_hand: usize,
    /// Why the last one could not be made.
    pub(super) trouble: Option<String>,
    /// Memory that the last one used which was made.
    last_bytes: Option<u64>,
    pub(super) hits: u64,
    pub(super) misses: u64,
    pub(super) refills: u64,
    pub(super) restored: u64,
    pub(super) restore_failures: u64,
    pub(super) retired: u64,
    pub(super) ways: Ways,
    /// It is kept whether jobs come or not.
    pub(super) standing: bool,
    /// The image is another by now.
    pub(super) outdated: bool,
    target: usize,
    arrivals: Arrivals,
}

impl Rack {
    /// The oldest, or of those that are thawed at the front the first which is not on the processor that
    /// its caller is on: they would take turns. Nobody else gets it again.
    pub(super) fn take(&mut self) -> Option<Waiting> {
        let here = processor::current();
        let elsewhere = |one: &Waiting| one.ready.processor() != here;
        let front = self.waiting.iter().take(THAWED);
        let at = front.take_while(|one| !one.frozen).position(elsewhere);
        self.waiting.remove(at.unwrap_or(0))
    }

    /// Puts one back whose state was changed, where it came from.
    pub(super) fn put_back(&mut self, at: usize, waiting: Waiting) {
        self.in_hand = self.in_hand.saturating_sub(1);
        self.waiting.insert(at.min(self.waiting.len()), waiting);
    }

    /// One that was off the rack does not come back.
    pub(super) fn lost(&mut self) {
        self.in_hand = self.in_hand.saturating_sub(1);
        self.retired += 1;
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Takes those that are not to wait any longer: too old, too many, or all of them; the dead as well
    /// where they are to be looked at, which takes some system calls for each.
    pub(super) fn weed(&mut self, max_age: Duration, look: bool) -> Vec<Ready> {
        let target = if self.outdated { 0 } else { self.target };
        let mut kept = VecDeque::new();
        let mut weeded = Vec::new();
        for mut waiting in self.waiting.drain(..) {
            let fine = kept.len() < target
                && waiting.ready.age() < max_age
                && (!look || waiting.ready.is_alive());
            if fine {
                kept.push_back(waiting);
            } else {
                weeded.push(waiting.ready);
            }
        }
        self.waiting = kept;
        self.retired += weeded.len() as u64;
        weeded
    }

    /// Takes one whose state is not as it should be: thawed at the front while jobs come, else frozen.
    pub(super) fn take_misplaced(&mut self, frozen_after: Duration) -> Option<(usize, Waiting)> {
        let thawed = if self.arrivals.last_within(frozen_after) {
            THAWED
        } else {
            0
        };
        let at = (self.waiting.iter().enumerate())
            .position(|(at, waiting)| waiting.frozen == (at < thawed))?;
        let taken = self.waiting.remove(at)?;
        self.in_hand += 1;
        Some((at, taken))
    }

    /// Whether the next one that is put here is to be frozen at once.
    pub(super) fn is_front_full(&self, frozen_after: Duration) -> bool {
        self.waiting.len() >= THAWED || !self.arrivals.last_within(frozen_after)
    }

    /// How many are missing.
    pub(super) fn missing(&self) -> usize {
        if self.outdated {
            return 0;
        }
        self.target
            .saturating_sub(self.waiting.len() + self.in_hand + self.starting)
    }

    fn bytes(&self) -> u64 {
        self.waiting.iter().map(|waiting| waiting.bytes).sum()
    }

    fn usual_bytes(&self) -> u64 {
        match self.waiting.len() as u64 {
            0 => self.last_bytes.unwrap_or(USUAL_BYTES),
            count => self.bytes() / count,
        }
    }
}

/// What comes of a job's asking for a sandbox.
#[derive(Debug, Default)]
pub(super) struct AskedFor {
    /// Sandboxes are kept ready for its profile.
    pub(super) has_rack: bool,
    /// Those of another profile that had to make room.
    pub(super) forgotten: Vec<Ready>,
}

/// All racks.
#[derive(Debug)]
pub(super) struct Racks {
    all: HashMap<Arc<Profile>, Rack>,
    budget: u64,
}

impl Racks {
    pub(super) fn new(budget: u64) -> Self {
        Self {
            all: HashMap::new(),
            budget,
        }
    }

    /// The rack of a profile, if there is one: no other than [`Racks::asked_for`] and
    /// [`Racks::stand`] makes any.
    pub(super) fn get(&mut self, profile: &Profile) -> Option<&mut Rack> {
        self.all.get_mut(profile)
    }

    /// The rack of a profile is kept from now on.
    pub(super) fn stand(&mut self, profile: Profile) {
        let rack = self.all.entry(Arc::new(profile)).or_default();
        rack.standing = true;
        rack.outdated = false;
    }

    /// Whether sandboxes of this image with these limits are kept whether jobs come or not.
    pub(super) fn stands(&self, name: &str, limits: &Limits) -> bool {
        let limits = limits.at_start();
        (self.all.iter()).any(|(profile, rack)| {
            rack.standing && profile.name == name && profile.limits == limits
        })
    }

    /// A job of this profile has come.
    pub(super) fn asked_for(&mut self, profile: &Arc<Profile>) -> AskedFor {
        let mut forgotten = Vec::new();
        if !self.all.contains_key(profile) && self.all.len() >= MAX_PROFILES {
            let Some(ready) = self.forget_one() else {
                return AskedFor::default();
            };
            forgotten = ready;
        }
        let rack = self.all.entry(Arc::clone(profile)).or_default();
        // Its image was looked at just now.
        rack.outdated = false;
        rack.arrivals.one_more(Instant::now());
        AskedFor {
            has_rack: true,
            forgotten,
        }
    }

    /// Makes room for another profile, if there is one that was not used for some time: those that
    /// were ready for it.
    fn forget_one(&mut self) -> Option<Vec<Ready>> {
        let may_go = |rack: &Rack| {
            !rack.standing
                && rack.starting + rack.in_hand == 0
                && !rack.arrivals.last_within(UNUSED)
        };
        let oldest = (self.all.iter().filter(|(_, rack)| may_go(rack)))
            .max_by_key(|(_, rack)| rack.arrivals.since_last())
            .map(|(profile, _)| Arc::clone(profile))?;
        let rack = self.all.remove(&oldest)?;
        Some(rack.waiting.into_iter().map(|one| one.ready).collect())
    }

    /// Puts a new one on its rack, with what it counts; gives it back if there is no room for it.
    pub(super) fn put(&mut self, profile: &Profile, waiting: Waiting) -> Option<Waiting> {
        let used: u64 = self.all.values().map(Rack::bytes).sum();
        let fits = used.saturating_add(waiting.bytes) <= self.budget;
        let Some(rack) = self.all.get_mut(profile) else {
            return Some(waiting);
        };
        rack.last_bytes = Some(waiting.bytes);
        if !fits {
            return Some(waiting);
        }
        rack.refills += 1;
        rack.waiting.push_back(waiting);
        None
    }

    /// One that was begun is made, or will not be.
    pub(super) fn begun_one_ends(&mut self, profile: &Profile) {
        if let Some(rack) = self.all.get_mut(profile) {
            rack.starting = rack.starting.saturating_sub(1);
        }
    }

    /// Profiles, with what is known of them.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&Arc<Profile>, &mut Rack)> {
        self.all.iter_mut()
    }

    pub(super) fn profiles(&self) -> Vec<Arc<Profile>> {
        self.all.keys().cloned().collect()
    }

    /// Sets how many there should be of each, and forgets profiles that nobody has used for long.
    pub(super) fn aim(&mut self, settings: &Settings) {
        let now = Instant::now();
        self.all.retain(|_, rack| {
            rack.standing
                || rack.len() + rack.starting + rack.in_hand > 0
                || (!rack.outdated && rack.arrivals.last_within(REMEMBERED))
        });
        for rack in self.all.values_mut() {
            let used = rack.standing || rack.arrivals.last_within(REMEMBERED);
            rack.target = if used && !rack.outdated {
                let ahead = rack.arrivals.rate(now) * rack.ways.usual_time().as_secs_f64();
                target(ahead, settings.minimum, settings.maximum)
            } else {
                0
            };
        }
    }

    /// The profile that most lacks a sandbox, if there is memory for one more; it counts as starting.
    pub(super) fn begin_one(&mut self) -> Option<Arc<Profile>> {
        let room = self.budget.saturating_sub(self.bytes());
        let (profile, rack) = (self.all.iter_mut())
            .filter(|(_, rack)| rack.missing() > 0 && rack.usual_bytes() <= room)
            .max_by_key(|(_, rack)| (rack.len() == 0, rack.missing()))?;
        rack.starting += 1;
        Some(Arc::clone(profile))
    }

    /// Bytes of all that wait, and of those to come as far as can be told.
    pub(super) fn bytes(&self) -> u64 {
        let of = |rack: &Rack| rack.bytes() + rack.starting as u64 * rack.usual_bytes();
        self.all.values().map(of).sum()
    }

    pub(super) fn starting(&self) -> usize {
        self.all.values().map(|rack| rack.starting).sum()
    }

    /// Takes all that wait.
    pub(super) fn clear(&mut self) -> Vec<Ready> {
        let waiting = (self.all.values_mut()).flat_map(|rack| rack.waiting.drain(..));
        waiting.map(|one| one.ready).collect()
    }

    pub(super) fn stats(&self) -> Vec<PoolStats> {
        let mut all: Vec<_> = (self.all.iter())
            .map(|(profile, rack)| PoolStats {
                image: profile.name.clone(),
                memory_bytes: profile.limits.memory_bytes,
                target: rack.target as u64,
                ready: rack.len() as u64,
                frozen: rack.waiting.iter().filter(|one| one.frozen).count() as u64,
                starting: rack.starting as u64,
                hits: rack.hits,
                misses: rack.misses,
                refills: rack.refills,
                restored: rack.restored,
                restore_failures: rack.restore_failures,
                retired: rack.retired,
                checkpoint: rack.ways.checkpoint.is_some(),
            })
            .collect();
        all.sort_by(|one, other| {
            (&one.image, one.memory_bytes).cmp(&(&other.image, other.memory_bytes))
        });
        all
    }
}

/// How many there should be: those that jobs take while as many are made, twice over, above the floor.
fn target(ahead: f64, minimum: usize, maximum: usize) -> usize {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the cast saturates, and is cut below"
    )]
    let ahead = (2.0 * ahead).ceil() as usize;
    minimum.saturating_add(ahead).min(maximum)
}

/// When jobs have come, and how often they do.
#[derive(Debug, Default)]
struct Arrivals {
    last: Option<Instant>,
    /// Jobs per second when the last one came.
    rate: f64,
}

impl Arrivals {
    fn one_more(&mut self, now: Instant) {
        self.rate = self.rate(now) + 1.0 / MEMORY_S;
        self.last = Some(now);
    }

    /// Jobs per second, those of long ago counting less.
    fn rate(&self, now: Instant) -> f64 {
        self.last.map_or(0.0, |last| {
            let passed = now.saturating_duration_since(last).as_secs_f64();
            self.rate * (-passed / MEMORY_S).exp()
        })
    }

    fn since_last(&self) -> Duration {
        self.last.map_or(Duration::MAX, |last| last.elapsed())
    }

    fn last_within(&self, time: Duration) -> bool {
        self.since_last() < time
    }
}

/// The two ways to make a ready sandbox, and how long each takes here.
#[derive(Debug, Default)]
pub(super) struct Ways {
    /// Where the checkpoint lies, once there is one.
    pub(super) checkpoint: Option<PathBuf>,
    /// Making it was tried, whatever came of it.
    pub(super) checkpoint_tried: bool,
    cold: VecDeque<Duration>,
    restored: VecDeque<Duration>,
    failures: u32,
}

impl Ways {
    /// A cold start took this long.
    pub(super) fn started_cold(&mut self, took: Duration) {
        remember(&mut self.cold, took);
    }

    /// A restore took this long.
    pub(super) fn restored(&mut self, took: Duration) {
        self.failures = 0;
        remember(&mut self.restored, took);
    }

    /// A restore failed; the checkpoint if that is to be used no more.
    pub(super) fn failed(&mut self) -> Option<PathBuf> {
        self.failures += 1;
        if self.failures >= MAX_FAILURES {
            return self.checkpoint.take();
        }
        None
    }

    /// Whether the next one that is made ahead is to start cold, for its time to be known.
    pub(super) fn wants_cold_trial(&self) -> bool {
        self.cold.len() < TRIALS && self.restored.len() > self.cold.len()
    }

    /// The checkpoint, unless starting cold is faster here.
    pub(super) fn checkpoint_to_use(&self) -> Option<PathBuf> {
        let tried = self.restored.len() >= TRIALS && self.cold.len() >= TRIALS;
        // As long as they are about as fast, the way that takes less CPU time.
        if tried && median(&self.restored) > median(&self.cold).mul_f64(CLEARLY) {
            return None;
        }
        self.checkpoint.clone()
    }

    /// How long one takes to be made, in the way that is used.
    fn usual_time(&self) -> Duration {
        let used = match self.checkpoint_to_use() {
            Some(_) if !self.restored.is_empty() => &self.restored,
            _ => &self.cold,
        };
        if used.is_empty() {
            return USUAL_TIME;
        }
        median(used)
    }
}

fn remember(times: &mut VecDeque<Duration>, took: Duration) {
    if times.len() == 9 {
        times.pop_front();
    }
    times.push_back(took);
}

fn median(times: &VecDeque<Duration>) -> Duration {
    let mut sorted: Vec<_> = times.iter().copied().collect();
    sorted.sort();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn as_many_are_wanted_as_come_while_one_is_made_and_never_more_than_may_be() {
        assert_eq!(target(0.0, 2, 16), 2);
        assert_eq!(target(0.6, 2, 16), 4);
        assert_eq!(target(100.0, 2, 16), 16);
        assert_eq!(target(f64::INFINITY, 2, 16), 16);
        assert_eq!(target(0.0, 2, 1), 1);
    }

    fn profile(megabytes: u64) -> Arc<Profile> {
        Arc::new(Profile {
            name: "python".to_owned(),
            digest: "d".to_owned(),
            path: "p".into(),
            limits: Limits {
                memory_bytes: megabytes << 20,
                ..Limits::default()
            },
        })
    }

    #[test]
    fn there_are_only_so_many_racks_and_one_that_is_not_used_makes_room() {
        let mut racks = Racks::new(1 << 30);
        racks.stand(Profile::clone(&profile(1)));
        for megabytes in 2..=MAX_PROFILES as u64 {
            assert!(racks.asked_for(&profile(megabytes)).has_rack);
        }
        let (new, old) = (profile(1000), profile(2));
        assert!(!racks.asked_for(&new).has_rack);
        assert!(racks.get(&new).is_none());
        // One that is being made, and one that stands, have to stay.
        let long_ago = Instant::now().checked_sub(2 * UNUSED);
        for kept in [profile(1), profile(3)] {
            let rack = racks.get(&kept).unwrap();
            rack.arrivals.last = long_ago;
            rack.starting = 1;
        }
        assert!(!racks.asked_for(&new).has_rack);
        racks.get(&old).unwrap().arrivals.last = long_ago;
        assert!(racks.asked_for(&new).has_rack);
        assert!(racks.get(&old).is_none());
        assert_eq!(racks.profiles().len(), MAX_PROFILES);
        // What was begun for a rack that is gone by then counts nowhere.
        racks.begun_one_ends(&old);
        racks.begun_one_ends(&new);
        assert_eq!(racks.starting(), 2);
    }

    #[test]
    fn a_profile_without_a_floor_is_kept_ready_once_it_is_used() {
        let mut arrivals = Arrivals::default();
        arrivals.one_more(Instant::now());
        let ahead = arrivals.rate(Instant::now()) * Ways::default().usual_time().as_secs_f64();
        assert_eq!(target(ahead, 0, 16), 1);
    }

    #[test]
    fn the_rate_follows_the_arrivals_and_decays_without_them() {
        let mut arrivals = Arrivals::default();
        let begin = Instant::now();
        let mut now = begin;
        for _ in 0..600 {
            now += SECOND / 3;
            arrivals.one_more(now);
        }
        let rate = arrivals.rate(now);
        assert!((2.8..3.2).contains(&rate), "{rate}");
        assert!(arrivals.rate(now + 60 * SECOND) < rate / 5.0);
    }

    #[test]
    fn the_faster_way_is_taken_once_both_are_known() {
        let mut ways = Ways::default();
        assert_eq!(ways.checkpoint_to_use(), None);
        ways.checkpoint = Some("c".into());
        for _ in 0..TRIALS {
            ways.restored(2 * SECOND);
            assert!(ways.checkpoint_to_use().is_some());
        }
        for _ in 0..TRIALS {
            ways.started_cold(SECOND);
        }
        assert_eq!(ways.checkpoint_to_use(), None);
        for _ in 0..9 {
            ways.restored(SECOND / 2);
        }
        assert!(ways.checkpoint_to_use().is_some());
        let mut checkpoint = None;
        for _ in 0..MAX_FAILURES {
            checkpoint = ways.failed();
        }
        assert_eq!(checkpoint, Some("c".into()));
        assert_eq!(ways.checkpoint_to_use(), None);
    }
}
