//! One processor for each sandbox that may use no more than one.
//!
//! A program in gVisor and the sentry that serves its system calls take turns. On one processor a turn
//! is a switch of threads; on two, each turn wakes a processor that sleeps, which in a virtual machine
//! takes ten times as long. The sentry counts its processors when it starts, and does not wait busily
//! for the other side when there is one.

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// The processors that this process may use, and who is on each.
#[derive(Debug, Clone, Default)]
pub struct Processors(Arc<Mutex<Vec<Occupied>>>);

#[derive(Debug)]
struct Occupied {
    number: usize,
    /// Sandboxes that were given it.
    sandboxes: usize,
    /// Those of them that have a job.
    busy: usize,
}

impl Processors {
    /// Those on which the calling thread may run.
    ///
    /// # Errors
    /// Those of `sched_getaffinity(2)`.
    pub fn of_this_thread() -> io::Result<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0))?;
        let numbers =
            (0..CpuSet::count()).filter(|&number| allowed.is_set(number).unwrap_or(false));
        Ok(Self::numbered(numbers))
    }

    fn numbered(numbers: impl IntoIterator<Item = usize>) -> Self {
        let occupied = numbers.into_iter().map(|number| Occupied {
            number,
            sandboxes: 0,
            busy: 0,
        });
        Self(Arc::new(Mutex::new(occupied.collect())))
    }

    /// Gives out the one with the fewest sandboxes.
    pub fn assign(&self) -> Option<Assigned> {
        self.with(|all| {
            let least = all.iter_mut().min_by_key(|one| (one.sandboxes, one.busy))?;
            least.sandboxes += 1;
            Some(Assigned {
                processors: self.clone(),
                number: least.number,
                busy: false,
            })
        })
    }

    fn with<T>(&self, change: impl FnOnce(&mut Vec<Occupied>) -> T) -> T {
        // Numbers that were right before a panic are right after it.
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The processor of one sandbox, until dropped.
#[derive(Debug)]
pub struct Assigned {
    processors: Processors,
    number: usize,
    busy: bool,
}

impl Assigned {
    /// Its number.
    pub fn number(&self) -> usize {
        self.number
    }

    /// The sandbox has a job from now on: it keeps its processor when no other has fewer jobs, and
    /// changes to one that has the fewest when there is one. Whether it changed.
    pub fn begin(&mut self) -> bool {
        if self.busy {
            return false;
        }
        self.busy = true;
        let old = self.number;
        self.number = self.processors.with(|all| {
            let least = all
                .iter_mut()
                .min_by_key(|one| (one.busy, one.number != old));
            let Some(least) = least else { return old };
            least.busy += 1;
            least.sandboxes += 1;
            let new = least.number;
            if let Some(left) = all.iter_mut().find(|one| one.number == old) {
                left.sandboxes -= 1;
            }
            new
        });
        self.number != old
    }
}

impl Drop for Assigned {
    fn drop(&mut self) {
        self.processors.with(|all| {
            if let Some(mine) = all.iter_mut().find(|one| one.number == self.number) {
                mine.sandboxes -= 1;
                mine.busy -= usize::from(self.busy);
            }
        });
    }
}

/// The one on which the calling thread runs at the moment, if the kernel says.
pub fn current() -> Option<usize> {
    sched_getcpu().ok()
}

/// Lets a thread run on this processor alone, and what it starts; 0 is the calling thread.
///
/// Allocates nothing: it may be called between fork and exec.
///
/// # Errors
/// `ESRCH` when there is no such thread, `EINVAL` when there is no such processor any more.
pub fn confine(thread: i32, processor: usize) -> Result<(), Errno> {
    let mut one = CpuSet::new();
    one.set(processor)?;
    sched_setaffinity(Pid::from_raw(thread), &one)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(all: &[Assigned]) -> Vec<usize> {
        all.iter().map(Assigned::number).collect()
    }

    #[test]
    fn sandboxes_are_spread_over_all_processors() {
        let processors = Processors::numbered([2, 5, 7]);
        let mut all: Vec<_> = (0..6).filter_map(|_| processors.assign()).collect();
        assert_eq!(numbers(&all), [2, 5, 7, 2, 5, 7]);
        all.remove(1);
        assert_eq!(processors.assign().map(|one| one.number()), Some(5));
    }

    #[test]
    fn a_job_goes_where_the_fewest_are_and_stays_where_it_can() {
        let processors = Processors::numbered([0, 1]);
        let mut all: Vec<_> = (0..4).filter_map(|_| processors.assign()).collect();
        assert!(!all[0].begin(), "nobody is in its way");
        assert!(all[2].begin(), "0 has a job, 1 has none");
        assert!(!all[2].begin(), "it has begun");
        assert_eq!(numbers(&all), [0, 1, 1, 1]);
        drop(all.remove(2));
        assert!(!all[1].begin(), "the job on 1 has ended");
    }

    #[test]
    fn a_thread_is_confined_to_what_it_may_use() {
        let numbers = Processors::of_this_thread().unwrap();
        let one = numbers.assign().unwrap();
        std::thread::spawn(move || {
            confine(0, one.number()).unwrap();
            let left = Processors::of_this_thread().unwrap();
            assert_eq!(left.assign().unwrap().number(), one.number());
            assert_eq!(left.with(|all| all.len()), 1);
        })
        .join()
        .unwrap();
    }
}
