//! What the queue promises, as a small machine that can be looked through whole: two workers, two jobs,
//! and everything that may happen to them in any order. `conformance.rs` holds the real queue against it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub(crate) const JOBS: usize = 2;
pub(crate) const WORKERS: usize = 2;

/// Attempts that a job may have.
pub(crate) const ATTEMPTS: u8 = 2;

/// What is checked by the statements of the queue. Each is a mutant when it is left out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// Who writes of an attempt shows its token.
    pub(crate) token: bool,
    /// Only what runs can end or be given back.
    pub(crate) state: bool,
    /// A lease that is over is not extended.
    pub(crate) lease: bool,
}

pub(crate) const ALL: Rules = Rules {
    token: true,
    state: true,
    lease: true,
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
}

/// The attempt that a worker believes it runs: which job, and its token.
pub(crate) type Belief = Option<(usize, u8)>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct World {
    pub(crate) jobs: [Job; JOBS],
    pub(crate) workers: [Belief; WORKERS],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Action {
    /// A free worker begins an attempt of the first job that waits.
    Claim(usize),
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
        };
        Self {
            jobs: [job; JOBS],
            workers: [None; WORKERS],
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
            Action::Crash(worker) => drop(self.workers[worker].take()?),
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

    fn claim(&mut self, worker: usize) -> Option<()> {
        let waits = |job: &Job| job.state == State::Queued;
        let next = self.jobs.iter().position(waits)?;
        if self.workers[worker].is_some() {
            return None;
        }
        let job = &mut self.jobs[next];
        job.state = State::Running;
        job.attempts += 1;
        job.token += 1;
        job.lease_is_over = false;
        self.workers[worker] = Some((next, job.token));
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
        }
        if let Action::Finish(worker) | Action::FinishUnheard(worker) = action
            && let Some((job, token)) = before.workers[worker]
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

    fn lose(&mut self) {
        self.lease_is_over = false;
        if self.cancel_asked {
            self.state = State::Cancelled;
        } else if self.attempts < ATTEMPTS {
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
    assert!(worlds > 1000, "{worlds}");
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
    ];
    for (rules, offence) in without {
        let error = explore(rules).unwrap_err();
        assert!(error.starts_with(offence), "{rules:?}: {error}");
    }
}
