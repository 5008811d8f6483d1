//! Running the program: start it, time it, stream its output, bury everything that it left.

use crate::collect::Untouched;
use crate::spawn::{self, Started};
use crate::{InitError, hold::Held, host::Host, job::Job, report::Reports};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::sysinfo::sysinfo;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};
use tako_guest::{EndedBy, Exit, ExitStatus, Limits, MAX_CHUNK, ToHost};

/// From SIGTERM at a time limit to SIGKILL.
const TERM_GRACE: Duration = Duration::from_millis(500);

/// How long a program is let be from its beginning on, before anybody looks for output of it.
const QUIET: Duration = Duration::from_millis(2);

/// Everybody but init: kill(2), a pid of -1.
const EVERYBODY: Pid = Pid::from_raw(-1);

/// A program that has ended and was reported. Its descriptors are closed with it, for which nobody who
/// waits for its end needs to wait.
pub(crate) struct Finished {
    pub(crate) left: Left,
    _program: Program,
}

/// What is left of it.
pub(crate) enum Left {
    /// No file, and nothing that could make one.
    Nothing,
    /// Files perhaps. Init is the only process.
    Unknown,
}

/// Runs the job's program to its end and reports it, in the interpreter that is held if there is one.
pub(crate) fn run(
    host: &mut Host,
    job: &Job,
    held: Option<Held>,
    mut reports: Reports,
) -> Result<Finished, InitError> {
    let mut clock = Clock::new(job.limits);
    let (interpreter, children, output) = if let Some(held) = held {
        // Before: nobody is to think that the program was never begun when it was.
        host.queue(&ToHost::Started)?;
        // It was up before there was a job.
        host.queue(&clock.running())?;
        host.flush()?;
        // Nothing was before it that it might have waited for.
        host.has_sent();
        held.release(&job.environment)?
    } else {
        let output = Untouched::look()?;
        let interpreter = spawn::start(&job.environment)?;
        reports.follow(interpreter.pid.as_raw().unsigned_abs());
        host.queue(&ToHost::Started)?;
        (interpreter, watch_children()?, output)
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
        clock,
        written: 0,
    };
    let watched = program.watch(host);
    let left = match watched {
        // Nothing is to come then, and to wait until the memory of the program is taken apart would take
        // longer than a short program does. It is killed with the sandbox.
        Ok(Ended::Told(_)) if is_alone()? && output.still()? => Left::Nothing,
        _ => {
            bury(host);
            program.clock.tick();
            Left::Unknown
        }
    };
    let (Ended::Told(status) | Ended::Buried(status)) = watched?;
    // What follows waits for nobody, and is sent with the last word.
    program.drain(host)?;
    if let Left::Unknown = left {
        // Nobody is left to write: this ends.
        while program.reports.drain() {}
    }
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
    }))?;
    Ok(Finished {
        left,
        _program: program,
    })
}

/// How it is known that the main program has ended.
enum Ended {
    /// It said so, and stands still.
    Told(ExitStatus),
    /// The kernel says so.
    Buried(ExitStatus),
}

/// Whether there is one thread beside init's. Where the kernel counts those of others too, there are more.
fn is_alone() -> Result<bool, InitError> {
    let system = sysinfo().map_err(InitError::system("count the processes"))?;
    Ok(system.process_count() == 2)
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

pub(crate) struct Program {
    main: Pid,
    /// stdout, then stderr; `None` once closed by every process that had it.
    output: [Option<OwnedFd>; 2],
    children: SignalFd,
    reports: Reports,
    clock: Clock,
    written: u64,
}

impl Program {
    /// Until the main program is dead, or says that it ends.
    fn watch(&mut self, host: &mut Host) -> Result<Ended, InitError> {
        // Where it was started just now, its end may have been signalled before anybody watched for it.
        if self.clock.startup.is_none()
            && let Some(status) = self.reap()?
        {
            return Ok(Ended::Buried(status));
        }
        loop {
            host.flush()?;
            if host.has_sent() {
                // A host that takes its time has taken it from the program.
                self.clock.tick();
            }
            let ready = self.wait(host)?;
            self.clock.tick();
            if ready.cancel && host.wants_cancel()? {
                self.clock.end(EndedBy::Cancel);
            }
            // Before the output: what the interpreter says of itself it has said before the program
            // could print anything.
            if ready.report {
                self.reports.drain();
            }
            if self.reports.up() && self.clock.startup.is_none() {
                host.queue(&self.clock.running())?;
            }
            if let Some(status) = self.reports.ended() {
                return Ok(Ended::Told(ExitStatus::Exited(status)));
            }
            self.forward(host, ready.output)?;
            if ready.child
                && let Some(status) = self.reap()?
            {
                return Ok(Ended::Buried(status));
            }
            self.clock.enforce()?;
        }
    }

    /// Polls until something happens or the next time limit.
    ///
    /// At first output does not count: a short program that is let be until its end has it sooner.
    fn wait(&self, host: &Host) -> Result<Ready, InitError> {
        let quiet = self.clock.quiet();
        let mut polled = vec![
            PollFd::new(host.control(), PollFlags::POLLIN),
            PollFd::new(self.children.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.reports.descriptor(), PollFlags::POLLIN),
        ];
        for stream in self.output.iter().flatten().filter(|_| quiet.is_none()) {
            polled.push(PollFd::new(stream.as_fd(), PollFlags::POLLIN));
        }
        match poll(
            &mut polled,
            quiet.unwrap_or_else(|| self.clock.next_event()),
        ) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(InitError::system("poll")(errno)),
        }
        let mut events = polled.iter().map(|polled| polled.any().unwrap_or(true));
        let mut next = || events.next().unwrap_or(false);
        let (cancel, child, report) = (next(), next(), next());
        let output =
            [0, 1].map(|stream| quiet.is_some() || self.output[stream].is_some() && next());
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
        self.hold_output_limit();
        Ok(())
    }

    fn hold_output_limit(&mut self) {
        if self.written > self.clock.limits.output_bytes {
            self.clock.end(EndedBy::OutputLimit);
        }
    }

    /// Sends the next bytes of stdout (0) or stderr (1); whether there may be more.
    fn forward_one(&mut self, host: &mut Host, stream: usize) -> Result<bool, InitError> {
        let Some(descriptor) = self.output[stream].take() else {
            return Ok(false);
        };
        let mut file = File::from(descriptor);
        let mut chunk = [0; MAX_CHUNK];
        let read = match file.read(&mut chunk) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            read => Some(read.map_err(InitError::system("read the program's output"))?),
        };
        if read == Some(0) {
            return Ok(false);
        }
        self.output[stream] = Some(file.into());
        let Some(count) = read else {
            return Ok(false);
        };
        self.written += count as u64;
        let bytes = &chunk[..count];
        host.queue(&if stream == 0 {
            ToHost::Stdout(bytes)
        } else {
            ToHost::Stderr(bytes)
        })?;
        Ok(count == MAX_CHUNK)
    }

    /// What lies in the pipes after everybody who could write to them has ended.
    fn drain(&mut self, host: &mut Host) -> Result<(), InitError> {
        for stream in [0, 1] {
            while self.forward_one(host, stream)? {}
        }
        self.hold_output_limit();
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
    /// Whether there may be some.
    output: [bool; 2],
}

/// The two time limits, and what follows when one is over.
///
/// It is looked at once for each thing that happens: to ask gVisor for the time is a system call in a
/// restored guest.
struct Clock {
    limits: Limits,
    now: Instant,
    started: Instant,
    startup: Option<Duration>,
    ended_by: Option<EndedBy>,
    /// When to send SIGKILL, once SIGTERM was sent.
    kill_at: Option<Instant>,
    killed: bool,
}

impl Clock {
    fn new(limits: Limits) -> Self {
        let now = Instant::now();
        Self {
            limits,
            now,
            started: now,
            startup: None,
            ended_by: None,
            kill_at: None,
            killed: false,
        }
    }

    fn tick(&mut self) {
        self.now = Instant::now();
    }

    fn elapsed(&self) -> Duration {
        self.now.saturating_duration_since(self.started)
    }

    /// How long the program is let be yet, which has just begun.
    fn quiet(&self) -> Option<PollTimeout> {
        let since = self.elapsed().checked_sub(self.startup?)?;
        let left = QUIET.checked_sub(since)?;
        // One more, because poll counts whole milliseconds.
        let left = PollTimeout::try_from(left.as_millis() + 1).ok()?;
        self.ended_by.is_none().then_some(left)
    }

    /// The interpreter is up, and the host is to hear of it.
    fn running(&mut self) -> ToHost<'static> {
        ToHost::Running {
            startup_ms: milliseconds(self.up()),
        }
    }

    /// The interpreter is up: the execution limit begins.
    fn up(&mut self) -> Duration {
        *self.startup.insert(self.elapsed())
    }

    fn execution_ms(&self) -> u64 {
        self.startup.map_or(0, |startup| {
            milliseconds(self.elapsed().saturating_sub(startup))
        })
    }

    /// Kills at once, unless something else ended the program before.
    fn end(&mut self, by: EndedBy) {
        self.ended_by.get_or_insert(by);
        self.kill_at = Some(self.now);
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
            Some(_) if self.killed => self.now + TERM_GRACE,
            Some(kill_at) => kill_at,
            None => self.deadline().0,
        };
        // One more, because poll counts whole milliseconds and waking early would spin.
        let wait = at.saturating_duration_since(self.now).as_millis() + 1;
        PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)
    }

    /// Signals what is due.
    fn enforce(&mut self) -> Result<(), InitError> {
        let now = self.now;
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

/// Makes the calls of a program's end on the living interpreter, without effect.
pub(crate) fn rehearse(
    interpreter: &Started,
    children: &SignalFd,
    reports: &Reports,
) -> Result<(), InitError> {
    let mut polled = [
        PollFd::new(children.as_fd(), PollFlags::POLLIN),
        PollFd::new(reports.descriptor(), PollFlags::POLLIN),
        PollFd::new(interpreter.stdout.as_fd(), PollFlags::POLLIN),
        PollFd::new(interpreter.stderr.as_fd(), PollFlags::POLLIN),
    ];
    poll(&mut polled, PollTimeout::ZERO).map_err(InitError::system("poll"))?;
    children
        .read_signal()
        .map_err(InitError::system("watch children"))?;
    if has_child_ended()? {
        return Err(InitError::NotHeld);
    }
    is_alone()?;
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
