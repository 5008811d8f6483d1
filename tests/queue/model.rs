//! What the queue promises, as a small machine that can be looked through whole: two workers, two jobs,
//! and everything that may happen to them in any order. `conformance.rs` holds the real queue against it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub(crate) const JOBS: usize = 2;
pub(crate) const WORKERS: usize = 2;

/// The job that is not repeated once it may have begun.
pub(crate) const ONCE: usize = 1;

/// Attempts that a job may have.
pub(crate) const ATTEMPTS: u8 = 2;

/// What is checked by the statements of the queue. Each is a mutant when it is left out.
#[derive(Debug, Clone, Copy)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each rule is there or left out"
)]
pub(crate) struct Rules {
    /// Who writes of an attempt shows its token.
    pub(crate) token: bool,
    /// Only what runs can end or be given back.
    pub(crate) state: bool,
    /// A lease that is over is not extended.
    pub(crate) lease: bool,
    /// Only what was not heard of is given back as not begun.
    pub(crate) unheard: bool,
}

pub(crate) const ALL: Rules = Rules {
    token: true,
    state: true,
    lease: true,
    unheard: true,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum State {
    Queued,
    Running,
    Succeeded,
    Cancelled,
    Failed,
}

impl State {
    pub(crate) fn is_end(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Job {
    pub(crate) state: State,
    pub(crate) attempts: u8,
    /// The attempt that runs.
    pub(crate) token: u8,
    pub(crate) lease_is_over: bool,
    pub(crate) cancel_asked: bool,
    pub(crate) results: u8,
    /// It may have an effect that must not come twice.
    pub(crate) is_once: bool,
    /// Attempts that a worker has heard of: their program may have run.
    pub(crate) begun: u8,
}

/// The attempt that a worker believes it runs: which job, and its token.
pub(crate) type Belief = Option<(usize, u8)>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct World {
    pub(crate) jobs: [Job; JOBS],
    pub(crate) workers: [Belief; WORKERS],
    /// Attempts that a worker has asked for and not heard of: it knows no more than their tokens.
    pub(crate) unheard: [Belief; WORKERS],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Action {
    /// A free worker begins an attempt of the first job that waits.
    Claim(usize),
    /// The same, and the worker does not hear of it. It may have asked long ago, and may have tried to give
    /// back meanwhile what was not there yet.
    ClaimUnheard(usize),
    /// What was begun unheard is given back.
    GiveBack(usize),
    /// A worker is heard of; what is not its own any more it gives up.
    Beat(usize),
    /// A program has ended and is recorded.
    Finish(usize),
    /// The same, and the worker does not hear that it was: it will say it again.
    FinishUnheard(usize),
    /// A worker's sandbox was lost, and it gives the attempt back.
    Release(usize),
    /// A worker dies, and another takes its place that knows nothing.
    Crash(usize),
    /// So much time goes by that a lease is over.
    Expire(usize),
    /// Attempts whose lease is over are taken away.
    Rescue,
    /// Somebody wants a job to end.
    Cancel(usize),
}

pub(crate) fn actions() -> Vec<Action> {
    let mut all = vec![Action::Rescue];
    for worker in 0..WORKERS {
        all.extend([
            Action::Claim(worker),
            Action::ClaimUnheard(worker),
            Action::GiveBack(worker),
            Action::Beat(worker),
            Action::Finish(worker),
            Action::FinishUnheard(worker),
            Action::Release(worker),
            Action::Crash(worker),
        ]);
    }
    for job in 0..JOBS {
        all.extend([Action::Expire(job), Action::Cancel(job)]);
    }
    all
}

impl World {
    pub(crate) fn new() -> Self {
        let job = Job {
            state: State::Queued,
            attempts: 0,
            token: 0,
            lease_is_over: false,
            cancel_asked: false,
            results: 0,
            is_once: false,
            begun: 0,
        };
        let mut jobs = [job; JOBS];
        jobs[ONCE].is_once = true;
        Self {
            jobs,
            workers: [None; WORKERS],
            unheard: [None; WORKERS],
        }
    }

    /// Whether the attempt that a worker believes in may be written of.
    fn holds(&self, (job, token): (usize, u8), rules: Rules) -> bool {
        let found = self.jobs[job];
        (!rules.state || found.state == State::Running) && (!rules.token || found.token == token)
    }

    /// The world after an action; `None` where there is nothing to act on.
    pub(crate) fn after(mut self, action: Action, rules: Rules) -> Option<Self> {
        match action {
            Action::Claim(worker) => self.claim(worker)?,
            Action::ClaimUnheard(worker) => self.claim_unheard(worker)?,
            Action::GiveBack(worker) => self.give_back(worker, rules)?,
            Action::Beat(worker) => self.beat(worker, rules)?,
            Action::Finish(worker) => {
                self.finish(worker, rules)?;
                self.workers[worker] = None;
            }
            Action::FinishUnheard(worker) => self.finish(worker, rules)?,
            Action::Release(worker) => {
                let held = self.workers[worker].take()?;
                if self.holds(held, rules) {
                    self.jobs[held.0].lose();
                }
            }
            Action::Crash(worker) => {
                let lost = (self.workers[worker].take(), self.unheard[worker].take());
                if lost == (None, None) {
                    return None;
                }
            }
            Action::Expire(job) => {
                let job = &mut self.jobs[job];
                if job.state != State::Running || job.lease_is_over {
                    return None;
                }
                job.lease_is_over = true;
            }
            Action::Rescue => {
                let over = |job: &&mut Job| job.state == State::Running && job.lease_is_over;
                let mut over = self.jobs.iter_mut().filter(over).peekable();
                over.peek()?;
                over.for_each(Job::lose);
            }
            Action::Cancel(job) => self.jobs[job].cancel()?,
        }
        Some(self)
    }

    /// The next job, and the token of an attempt of it that begins.
    fn begin(&mut self) -> Option<(usize, u8)> {
        let waits = |job: &Job| job.state == State::Queued;
        let next = self.jobs.iter().position(waits)?;
        let job = &mut self.jobs[next];
        job.state = State::Running;
        job.attempts += 1;
        job.token += 1;
        job.lease_is_over = false;
        Some((next, job.token))
    }

    fn claim(&mut self, worker: usize) -> Option<()> {
        if self.workers[worker].is_some() {
            return None;
        }
        let held = self.begin()?;
        self.jobs[held.0].begun += 1;
        self.workers[worker] = Some(held);
        Some(())
    }

    fn claim_unheard(&mut self, worker: usize) -> Option<()> {
        if self.unheard[worker].is_some() {
            return None;
        }
        self.unheard[worker] = Some(self.begin()?);
        Some(())
    }

    fn give_back(&mut self, worker: usize, rules: Rules) -> Option<()> {
        let held = match self.unheard[worker].take() {
            None if !rules.unheard => self.workers[worker].take()?,
            unheard => unheard?,
        };
        if self.holds(held, rules) {
            self.jobs[held.0].give_back();
        }
        Some(())
    }

    fn beat(&mut self, worker: usize, rules: Rules) -> Option<()> {
        let (job, token) = self.workers[worker]?;
        let job = &mut self.jobs[job];
        let is_over = rules.lease && job.lease_is_over;
        if job.token == token && job.state == State::Running && !is_over {
            job.lease_is_over = false;
        } else {
            self.workers[worker] = None;
        }
        Some(())
    }

    fn finish(&mut self, worker: usize, rules: Rules) -> Option<()> {
        let held = self.workers[worker]?;
        if self.holds(held, rules) {
            let job = &mut self.jobs[held.0];
            job.state = State::Succeeded;
            job.results += 1;
        }
        Some(())
    }

    /// The same world with the lowest tokens that there can be: what is given back may be begun again without
    /// end, and only whose token is the same matters.
    fn with_low_tokens(mut self) -> Self {
        for number in 0..JOBS {
            let beliefs = self.workers.iter_mut().chain(&mut self.unheard).flatten();
            let of_job = beliefs.filter_map(|(job, token)| (*job == number).then_some(token));
            let mut tokens: Vec<_> = of_job.chain([&mut self.jobs[number].token]).collect();
            let seen: BTreeSet<u8> = tokens.iter().map(|token| **token).collect();
            for token in &mut tokens {
                let lower = seen.range(..**token).count();
                **token = u8::try_from(lower).unwrap();
            }
        }
        self
    }

    /// What went wrong on the way from `before`, if anything did.
    fn offence(&self, before: &Self, action: Action) -> Option<&'static str> {
        for (job, was) in self.jobs.iter().zip(&before.jobs) {
            if job.results > 1 {
                return Some("a job has two results");
            }
            if job.state.is_end() != (job.results == 1) {
                return Some("a job has ended without a result, or has one without having ended");
            }
            if was.state.is_end() && job != was {
                return Some("a job that had ended has changed");
            }
            let runs_on = job.state == State::Running && job.token == was.token;
            if runs_on && was.lease_is_over && !job.lease_is_over {
                return Some("a lease that was over holds again");
            }
            if job.attempts > ATTEMPTS {
                return Some("a job has more attempts than it may");
            }
            if job.is_once && job.begun > 1 {
                return Some("a job that must not be repeated has begun twice");
            }
        }
        let writer = match action {
            Action::Finish(worker) | Action::FinishUnheard(worker) => before.workers[worker],
            Action::GiveBack(worker) => before.unheard[worker],
            _ => None,
        };
        if let Some((job, token)) = writer
            && before.jobs[job].token != token
            && self.jobs[job] != before.jobs[job]
        {
            return Some("an attempt that was taken away has written");
        }
        None
    }
}

impl Job {
    fn cancel(&mut self) -> Option<()> {
        match self.state {
            State::Queued => {
                self.state = State::Cancelled;
                self.cancel_asked = true;
                self.results += 1;
            }
            State::Running if !self.cancel_asked => self.cancel_asked = true,
            _ => return None,
        }
        Some(())
    }

    fn give_back(&mut self) {
        if self.cancel_asked {
            return self.lose();
        }
        self.lease_is_over = false;
        self.attempts -= 1;
        self.state = State::Queued;
    }

    fn lose(&mut self) {
        self.lease_is_over = false;
        if self.cancel_asked {
            self.state = State::Cancelled;
        } else if self.attempts < ATTEMPTS && !self.is_once {
            self.state = State::Queued;
            return;
        } else {
            self.state = State::Failed;
        }
        self.results += 1;
    }
}

/// Looks at every world that can be reached; gives how many there are, or the way to the first offence.
pub(crate) fn explore(rules: Rules) -> Result<usize, String> {
    let begin = World::new();
    let mut came_from = BTreeMap::from([(begin, None)]);
    let mut backwards = BTreeMap::<World, Vec<World>>::new();
    let mut to_do = VecDeque::from([begin]);
    while let Some(world) = to_do.pop_front() {
        for action in actions() {
            let Some(next) = world.after(action, rules) else {
                continue;
            };
            if let Some(offence) = next.offence(&world, action) {
                let mut way = vec![action];
                let mut at = world;
                while let Some(Some((before, action))) = came_from.get(&at) {
                    way.push(*action);
                    at = *before;
                }
                way.reverse();
                return Err(format!("{offence}: {way:?}"));
            }
            let next = next.with_low_tokens();
            backwards.entry(next).or_default().push(world);
            came_from.entry(next).or_insert_with(|| {
                to_do.push_back(next);
                Some((world, action))
            });
        }
    }
    every_world_can_end(&came_from.keys().copied().collect(), &backwards)?;
    Ok(came_from.len())
}

/// No job is lost: whatever has happened, all can still end.
fn every_world_can_end(
    worlds: &BTreeSet<World>,
    backwards: &BTreeMap<World, Vec<World>>,
) -> Result<(), String> {
    let has_ended = |world: &&World| world.jobs.iter().all(|job| job.state.is_end());
    let mut can_end: BTreeSet<World> = worlds.iter().filter(has_ended).copied().collect();
    let mut to_do: Vec<World> = can_end.iter().copied().collect();
    while let Some(world) = to_do.pop() {
        for before in backwards.get(&world).into_iter().flatten() {
            if can_end.insert(*before) {
                to_do.push(*before);
            }
        }
    }
    match worlds.difference(&can_end).next() {
        Some(stuck) => Err(format!("a job can never end: {stuck:?}")),
        None => Ok(()),
    }
}

#[test]
fn in_no_order_of_events_is_a_job_lost_or_has_two_results() {
    let worlds = explore(ALL).unwrap();
    println!("{worlds} worlds");
    // Had an action become impossible, there would be fewer.
    assert!(worlds > 10_000, "{worlds}");
}

#[test]
fn without_any_one_of_its_rules_something_goes_wrong() {
    let without = [
        (
            Rules {
                token: false,
                ..ALL
            },
            "an attempt that was taken away has written",
        ),
        (
            Rules {
                state: false,
                ..ALL
            },
            "a job has two results",
        ),
        (
            Rules {
                lease: false,
                ..ALL
            },
            "a lease that was over holds again",
        ),
        (
            Rules {
                unheard: false,
                ..ALL
            },
            "a job that must not be repeated has begun twice",
        ),
    ];
    for (rules, offence) in without {
        let error = explore(rules).unwrap_err();
        assert!(error.starts_with(offence), "{rules:?}: {error}");
    }
}
