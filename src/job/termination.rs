//! How a job ended, decided from evidence alone.
//!
//! Exit codes and the program's own text prove nothing: a program can produce any of them. The order
//! of belief is: our own record of having killed it, the kernel's out-of-memory counter, the wait
//! status that init saw. Without any of these the sandbox was lost.

use serde::{Deserialize, Serialize};

/// The two phases of a job that have a time limit of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Until the interpreter is up.
    Startup,
    /// The program itself.
    Execution,
}

impl Phase {
    /// Its name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Startup => "startup",
            Self::Execution => "execution",
        }
    }
}

/// Why we, init or the supervisor, killed a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Killed {
    /// A time limit was over.
    Deadline(Phase),
    /// More output than allowed.
    OutputLimit,
    /// Somebody asked for it.
    Cancelled,
}

/// The wait status of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It ended by itself with this code.
    Exited(u8),
    /// A signal of this number killed it.
    Signalled(u8),
}

/// The exception that the interpreter says ended the program: the program's own claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exception {
    /// Names of the class and its bases, most derived first.
    pub classes: Vec<String>,
    /// Its text.
    pub message: String,
}

/// What is known about the end of a job.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Evidence {
    /// Our own record of having killed it.
    pub killed: Option<Killed>,
    /// Processes that the kernel killed because the memory limit was reached.
    pub oom_kills: u64,
    /// The wait status, if init lived to report it.
    pub ending: Option<Ending>,
    /// What went wrong with the sandbox, if it did.
    pub fault: Option<String>,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Termination {
    /// The program ended by itself with this code.
    Exited(u8),
    /// A signal of this number killed the program; it was not sent by us.
    Signalled(u8),
    /// It ran longer than it may.
    TimedOut(Phase),
    /// The kernel killed a process of it because the memory limit was reached.
    OutOfMemory,
    /// It wrote more than it may.
    OutputLimit,
    /// Somebody cancelled it.
    Cancelled,
    /// The sandbox ended without a word of how the program did. Not the program's fault.
    SandboxLost(String),
}

impl Evidence {
    /// The verdict, in the order of belief that the module explains.
    pub fn verdict(&self) -> Termination {
        if let Some(killed) = self.killed {
            return match killed {
                Killed::Deadline(phase) => Termination::TimedOut(phase),
                Killed::OutputLimit => Termination::OutputLimit,
                Killed::Cancelled => Termination::Cancelled,
            };
        }
        match self.ending {
            // A program that coped with the loss of a process has succeeded.
            Some(Ending::Exited(0)) => Termination::Exited(0),
            _ if self.oom_kills > 0 => Termination::OutOfMemory,
            Some(Ending::Exited(code)) => Termination::Exited(code),
            Some(Ending::Signalled(signal)) => Termination::Signalled(signal),
            None => Termination::SandboxLost(self.fault.clone().unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(killed: Option<Killed>, oom_kills: u64, ending: Option<Ending>) -> Termination {
        Evidence {
            killed,
            oom_kills,
            ending,
            fault: Some("gone".to_owned()),
        }
        .verdict()
    }

    #[test]
    fn our_own_kill_is_believed_before_anything_else() {
        let timeout = Some(Killed::Deadline(Phase::Execution));
        let ended = Some(Ending::Exited(0));
        assert_eq!(
            verdict(timeout, 3, ended),
            Termination::TimedOut(Phase::Execution)
        );
        assert_eq!(
            verdict(Some(Killed::Cancelled), 0, None),
            Termination::Cancelled
        );
    }

    #[test]
    fn the_kernels_counter_is_believed_before_the_exit_code() {
        assert_eq!(
            verdict(None, 1, Some(Ending::Exited(1))),
            Termination::OutOfMemory
        );
        assert_eq!(
            verdict(None, 1, Some(Ending::Signalled(9))),
            Termination::OutOfMemory
        );
        assert_eq!(verdict(None, 1, None), Termination::OutOfMemory);
    }

    #[test]
    fn a_program_that_coped_with_an_oom_kill_has_succeeded() {
        assert_eq!(
            verdict(None, 2, Some(Ending::Exited(0))),
            Termination::Exited(0)
        );
    }

    #[test]
    fn codes_that_look_like_ours_are_the_programs_own() {
        for code in [1, 124, 125, 128, 137, 143] {
            assert_eq!(
                verdict(None, 0, Some(Ending::Exited(code))),
                Termination::Exited(code)
            );
        }
        assert_eq!(
            verdict(None, 0, Some(Ending::Signalled(9))),
            Termination::Signalled(9)
        );
    }

    #[test]
    fn without_evidence_the_sandbox_was_lost() {
        assert_eq!(
            verdict(None, 0, None),
            Termination::SandboxLost("gone".to_owned())
        );
    }
}
