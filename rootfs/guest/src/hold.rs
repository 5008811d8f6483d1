//! An interpreter that waits for its program.
//!
//! It is the one that will run it: started as ever, on a `/code/main.py` that is empty yet, it is
//! held by the image's hook in its site initialisation, in a blocking read. Nothing else of it waits,
//! no thread and no poll, so that a checkpoint of it can be restored.

use crate::collect::Untouched;
use crate::report::Reports;
use crate::spawn::{self, Started};
use crate::{InitError, program};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signalfd::SignalFd;
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{mkfifo, unlink};
use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};
use tako_guest::HOLD_FIFO;

/// How often it is asked whether the interpreter is still alive, in milliseconds.
const CHECK: u8 = 200;

/// How long it may take until it says that it is held. The host waits no longer either.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is written to the interpreter in the place of variables: to rehearse, and to start with those that
/// it has.
const REHEARSE: &[u8] = b"rehearse\0\0";
const START: &[u8] = b"start\0\0";

/// The interpreter, and the only open end to write to it.
pub(crate) struct Held {
    interpreter: Started,
    release: File,
    children: SignalFd,
    output: Untouched,
    /// That with which it was started.
    environment: Vec<(String, String)>,
}

/// Starts the interpreter and waits until it is held.
pub(crate) fn start(
    environment: Vec<(String, String)>,
    reports: &mut Reports,
) -> Result<Held, InitError> {
    let failed = || InitError::system::<nix::Error>("make the FIFO that holds the interpreter");
    mkfifo(HOLD_FIFO, Mode::from_bits_truncate(0o600)).map_err(failed())?;
    let flags = OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    // Without a reader it could not be opened for writing.
    let reader = open(HOLD_FIFO, flags | OFlag::O_RDONLY, Mode::empty()).map_err(failed())?;
    let writer = open(HOLD_FIFO, flags | OFlag::O_WRONLY, Mode::empty()).map_err(failed())?;
    fchmod(&reader, Mode::from_bits_truncate(0o444)).map_err(failed())?;
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_WRONLY)).map_err(failed())?;
    let interpreter = spawn::start(&environment)?;
    reports.follow(interpreter.pid.as_raw().unsigned_abs());
    await_held(reports)?;
    // It has it open, and nobody else is to find it.
    unlink(HOLD_FIFO).map_err(failed())?;
    Ok(Held {
        interpreter,
        release: writer.into(),
        children: program::watch_children()?,
        output: Untouched::look()?,
        environment,
    })
}

/// Waits until the interpreter says that it is held.
fn await_held(reports: &mut Reports) -> Result<(), InitError> {
    let begun = Instant::now();
    while !reports.held() {
        if begun.elapsed() > PATIENCE {
            return Err(InitError::NotHeld);
        }
        let mut polled = [PollFd::new(reports.descriptor(), PollFlags::POLLIN)];
        match poll(&mut polled, CHECK) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(InitError::system("poll")(errno)),
        }
        let heard = reports.drain();
        if let Some(why) = reports.unfit() {
            let why = why.to_owned();
            return Err(InitError::Unfit { why });
        }
        if !heard && program::has_child_ended()? {
            return Err(InitError::NotHeld);
        }
    }
    Ok(())
}

impl Held {
    /// Lets the interpreter run the program that lies there as a rehearsal, and does itself what follows
    /// a program's end. At the same time it shows that both still live.
    ///
    /// The first time gVisor rewrites the place of each system call, in a page that is then brought in
    /// anew; and in a restored guest no page has been reached yet.
    pub(crate) fn rehearse(&mut self, reports: &mut Reports) -> Result<(), InitError> {
        reports.forget_held();
        self.release
            .write_all(REHEARSE)
            .map_err(InitError::system("reach the interpreter"))?;
        await_held(reports)?;
        program::rehearse(&self.interpreter, &self.children, reports)?;
        self.output.still().map(drop)
    }

    /// Lets the interpreter turn to `/code/main.py`, with this environment in place of its own.
    pub(crate) fn release(
        mut self,
        environment: &[(String, String)],
    ) -> Result<(Started, SignalFd, Untouched), InitError> {
        let mut text = Vec::new();
        if environment == self.environment {
            text.extend_from_slice(START);
        } else {
            for (name, value) in environment {
                for part in [name, "=", value, "\0"] {
                    text.extend_from_slice(part.as_bytes());
                }
            }
            // No variable is empty: this is the end.
            text.push(0);
        }
        self.release
            .write_all(&text)
            .map_err(InitError::system("release the interpreter"))?;
        Ok((self.interpreter, self.children, self.output))
    }
}
