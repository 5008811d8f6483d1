//! Running the program: start it, time it, stream its output, bury everything that it left.

use crate::spawn::{self, Started};
use crate::{InitError, hold::Held, host::Host, job::Job, report::Reports};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};
use tako_guest::{EndedBy, Exit, ExitStatus, Limits, MAX_CHUNK, ToHost};

/// From SIGTERM at a time limit to SIGKILL.
const TERM_GRACE: Duration = Duration::from_millis(500);

/// Everybody but init: kill(2), a pid of -1.
const EVERYBODY: Pid = Pid::from_raw(-1);

/// Runs the job's program to its end and reports it, in the interpreter that is held if there is one.
/// Afterwards init is the only process.
pub(crate) fn run(
    host: &mut Host,
    job: &Job,
    held: Option<Held>,
    mut reports: Reports,
) -> Result<(), InitError> {
    let started = Instant::now();
    let (interpreter, children) = if let Some(held) = held {
        // Before: nobody is to think that the program was never begun when it was.
        host.send(&ToHost::Started)?;
        held.release(&job.environment)?
    } else {
        let interpreter = spawn::start(&job.environment)?;
        let children = watch_children()?;
        reports.follow(interpreter.pid.as_raw().unsigned_abs());
        host.send(&ToHost::Started)?;
        (interpreter, children)
    };
    let Started {
        pid: main,
        stdout,
        stderr,
    } = interpreter;
    let mut program = Program {
        main,
        output: [Some(stdout), Some(stderr)],
        children,
        reports,
        clock: Clock::new(started, job.limits),
        written: 0,
    };
    let watched = program.watch(host);
    bury(host);
    let status = watched?;
    // What follows waits for nobody, and is sent with the last word.
    program.drain(host)?;
    // Nobody is left to write: this ends.
    while program.reports.drain() {}
    // A short program may have been up and gone before anybody looked.
    if program.reports.up() && program.clock.startup.is_none() && program.clock.ended_by.is_none() {
        program.clock.up();
    }
    host.queue(&ToHost::Exit(Exit {
        status,
        ended_by: program.clock.ended_by,
        startup_ms: program.clock.startup.map(milliseconds),
        execution_ms: program.clock.execution_ms(),
        exception: program.reports.exception(),
    }))
}

/// A descriptor through which SIGCHLD arrives.
///
/// Made after the program was started, which would inherit the blocked signal.
pub(crate) fn watch_children() -> Result<SignalFd, InitError> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals
        .thread_block()
        .map_err(InitError::system("block SIGCHLD"))?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(InitError::system("watch children"))
}

struct Program {
    main: Pid,
    /// stdout, then stderr; `None` once closed by every process that had it.
    output: [Option<OwnedFd>; 2],
    children: SignalFd,
    reports: Reports,
    clock: Clock,
    written: u64,
}

impl Program {
    /// Until the main program is dead.
    fn watch(&mut self, host: &mut Host) -> Result<ExitStatus, InitError> {
        // Its end may have been signalled before anybody watched for it.
        if let Some(status) = self.reap()? {
            return Ok(status);
        }
        loop {
            host.flush()?;
            let ready = self.wait(host)?;
            if ready.cancel && host.wants_cancel()? {
                self.clock.end(EndedBy::Cancel);
            }
            // Before the output: what the interpreter says of itself it has said before the program
            // could print anything.
            if ready.report {
                self.reports.drain();
            }
            if self.reports.up() && self.clock.startup.is_none() {
                let startup = self.clock.up();
                host.queue(&ToHost::Running {
                    startup_ms: milliseconds(startup),
                })?;
            }
            self.forward(host, ready.output)?;
            if ready.child
                && let Some(status) = self.reap()?
            {
                return Ok(status);
            }
            self.clock.enforce()?;
        }
    }

    /// Polls until something happens or the next time limit.
    fn wait(&self, host: &Host) -> Result<Ready, InitError> {
        let mut polled = vec![
            PollFd::new(host.control(), PollFlags::POLLIN),
            PollFd::new(self.children.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.reports.descriptor(), PollFlags::POLLIN),
        ];
        for stream in self.output.iter().flatten() {
            polled.push(PollFd::new(stream.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut polled, self.clock.next_event()) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(InitError::system("poll")(errno)),
        }
        let mut events = polled.iter().map(|polled| polled.any().unwrap_or(true));
        let mut next = || events.next().unwrap_or(false);
        let (cancel, child, report) = (next(), next(), next());
        let output = [0, 1].map(|stream| self.output[stream].is_some() && next());
        Ok(Ready {
            cancel,
            child,
            report,
            output,
        })
    }

    fn forward(&mut self, host: &mut Host, ready: [bool; 2]) -> Result<(), InitError> {
        for (stream, _) in ready.iter().enumerate().filter(|(_, ready)| **ready) {
            self.forward_one(host, stream)?;
        }
        if self.written > self.clock.limits.output_bytes {
            self.clock.end(EndedBy::OutputLimit);
        }
        Ok(())
    }

    /// Sends the next bytes of stdout (0) or stderr (1); whether there may be more.
    fn forward_one(&mut self, host: &mut Host, stream: usize) -> Result<bool, InitError> {
        let Some(descriptor) = self.output[stream].take() else {
            return Ok(false);
        };
        let mut file = std::fs::File::from(descriptor);
        let mut chunk = [0; MAX_CHUNK];
        let count = file
            .read(&mut chunk)
            .map_err(InitError::system("read the program's output"))?;
        if count == 0 {
            return Ok(false);
        }
        self.output[stream] = Some(file.into());
        self.written += count as u64;
        let bytes = &chunk[..count];
        host.queue(&if stream == 0 {
            ToHost::Stdout(bytes)
        } else {
            ToHost::Stderr(bytes)
        })?;
        Ok(true)
    }

    /// What lies in the pipes after everybody who could write to them is dead.
    fn drain(&mut self, host: &mut Host) -> Result<(), InitError> {
        for stream in [0, 1] {
            while self.forward_one(host, stream)? {}
        }
        Ok(())
    }

    /// Buries every child that ended; the status of the main program if it is among them.
    fn reap(&mut self) -> Result<Option<ExitStatus>, InitError> {
        while let Ok(Some(_)) = self.children.read_signal() {}
        let mut ended = None;
        loop {
            match wait_for_any(Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) if pid == self.main => {
                    ended = Some(ExitStatus::Exited(
                        u8::try_from(code & 0xff).unwrap_or(u8::MAX),
                    ));
                }
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == self.main => {
                    let number = u8::try_from(signal as i32).unwrap_or(u8::MAX);
                    ended = Some(ExitStatus::Signalled(number));
                }
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(ended),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(InitError::system("wait for the program")(errno)),
            }
        }
    }
}

struct Ready {
    cancel: bool,
    child: bool,
    report: bool,
    output: [bool; 2],
}

/// The two time limits, and what follows when one is over.
struct Clock {
    limits: Limits,
    started: Instant,
    startup: Option<Duration>,
    ended_by: Option<EndedBy>,
    /// When to send SIGKILL, once SIGTERM was sent.
    kill_at: Option<Instant>,
    killed: bool,
}

impl Clock {
    fn new(started: Instant, limits: Limits) -> Self {
        Self {
            limits,
            started,
            startup: None,
            ended_by: None,
            kill_at: None,
            killed: false,
        }
    }

    /// The interpreter is up: the execution limit begins.
    fn up(&mut self) -> Duration {
        *self.startup.insert(self.started.elapsed())
    }

    fn execution_ms(&self) -> u64 {
        self.startup.map_or(0, |startup| {
            milliseconds(self.started.elapsed().saturating_sub(startup))
        })
    }

    /// Kills at once, unless something else ended the program before.
    fn end(&mut self, by: EndedBy) {
        self.ended_by.get_or_insert(by);
        self.kill_at = Some(Instant::now());
    }

    fn deadline(&self) -> (Instant, EndedBy) {
        match self.startup {
            None => (
                self.started + Duration::from_millis(self.limits.startup_ms),
                EndedBy::StartupLimit,
            ),
            Some(startup) => (
                self.started + startup + Duration::from_millis(self.limits.execution_ms),
                EndedBy::ExecutionLimit,
            ),
        }
    }

    fn next_event(&self) -> PollTimeout {
        let at = match self.kill_at {
            // After SIGKILL the kernel owes us a SIGCHLD; ask again now and then all the same.
            Some(_) if self.killed => Instant::now() + TERM_GRACE,
            Some(kill_at) => kill_at,
            None => self.deadline().0,
        };
        // One more, because poll counts whole milliseconds and waking early would spin.
        let wait = at.saturating_duration_since(Instant::now()).as_millis() + 1;
        PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)
    }

    /// Signals what is due.
    fn enforce(&mut self) -> Result<(), InitError> {
        let now = Instant::now();
        if let Some(kill_at) = self.kill_at {
            if now >= kill_at {
                self.killed = true;
                return signal_everybody(Some(Signal::SIGKILL));
            }
        } else if let (deadline, limit) = self.deadline()
            && now >= deadline
        {
            self.ended_by = Some(limit);
            self.kill_at = Some(now + TERM_GRACE);
            return signal_everybody(Some(Signal::SIGTERM));
        }
        Ok(())
    }
}

/// Makes the calls that follow a program's end once, on the living interpreter and without effect.
///
/// gVisor rewrites the place of each system call when it is first reached: that takes longer than the
/// call itself, and a program that waits for its sandbox would wait for it.
pub(crate) fn rehearse(children: &SignalFd) -> Result<(), InitError> {
    children
        .read_signal()
        .map_err(InitError::system("watch children"))?;
    if has_child_ended()? {
        return Err(InitError::NotHeld);
    }
    // No signal: only asks.
    signal_everybody(None)
}

/// Whether a child has ended, which is then buried.
pub(crate) fn has_child_ended() -> Result<bool, InitError> {
    match wait_for_any(Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => Ok(false),
        Ok(_) => Ok(true),
        Err(errno) => Err(InitError::system("wait for the interpreter")(errno)),
    }
}

/// Kills and reaps whatever the program left. The host's backstop bounds it from outside.
fn bury(host: &mut Host) {
    let mut flags = Some(WaitPidFlag::WNOHANG);
    loop {
        // A failure shows in the next line: then some child is still alive.
        let killed = signal_everybody(Some(Signal::SIGKILL));
        match wait_for_any(flags) {
            Err(Errno::ECHILD) if killed.is_ok() => return,
            Err(Errno::ECHILD) => std::thread::sleep(Duration::from_millis(1)),
            Ok(WaitStatus::StillAlive) => {
                // A host that is gone shows in what is sent next.
                host.flush().ok();
                flags = None;
            }
            _ => {}
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "pid 1 signals all the others; there is no pid to recycle"
)]
fn signal_everybody(signal: Option<Signal>) -> Result<(), InitError> {
    match kill(EVERYBODY, signal) {
        // Nobody is left.
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(InitError::system("signal the program")(errno)),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "pid 1 inherits every orphan and must reap them all"
)]
fn wait_for_any(flags: Option<WaitPidFlag>) -> nix::Result<WaitStatus> {
    waitpid(None, flags)
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
