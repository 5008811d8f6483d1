//! An interpreter that waits for its program.
//!
//! It is the one that will run it: started as ever, on a `/code/main.py` that is not there yet, it is
//! held by the image's hook in its site initialisation, in a blocking read. Nothing else of it waits,
//! no thread and no poll, so that a checkpoint of it can be restored.

use crate::report::Reports;
use crate::spawn::{self, Started};
use crate::{InitError, collect, job, program};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signalfd::SignalFd;
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{mkfifo, unlink};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use tako_guest::{HOLD_FIFO, RUN_DIR};

/// How often it is asked whether the interpreter is still alive, in milliseconds.
const CHECK: u8 = 200;

/// The interpreter, and the only open end to write to it.
pub(crate) struct Held {
    interpreter: Started,
    release: File,
    children: SignalFd,
}

/// Starts the interpreter and waits until it is held.
pub(crate) fn start(
    environment: &[(String, String)],
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
    let interpreter = spawn::start(environment)?;
    reports.follow(interpreter.pid.as_raw().unsigned_abs());
    await_held(reports)?;
    // It has it open, and nobody else is to find it.
    unlink(HOLD_FIFO).map_err(failed())?;
    let held = Held {
        interpreter,
        release: writer.into(),
        children: program::watch_children()?,
    };
    held.rehearse()?;
    Ok(held)
}

/// Waits until the interpreter says that it is held.
fn await_held(reports: &mut Reports) -> Result<(), InitError> {
    while !reports.held() {
        let mut polled = [PollFd::new(reports.descriptor(), PollFlags::POLLIN)];
        match poll(&mut polled, CHECK) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(InitError::system("poll")(errno)),
        }
        if !reports.drain() && program::has_child_ended()? {
            return Err(InitError::NotHeld);
        }
    }
    Ok(())
}

/// Writes a file as those of a job are written, for the reason of [`program::rehearse`].
fn rehearse_files() -> io::Result<()> {
    let path = Path::new(RUN_DIR).join("rehearsal");
    let mut file = job::new_file(&path)?;
    file.write_all(&[0])?;
    drop(file);
    fs::remove_file(path)
}

impl Held {
    /// Does once more what is done at the end of a program, and lets the interpreter do so too: in a
    /// restored guest no page has been reached yet. At the same time it shows that both still live.
    pub(crate) fn rehearse_again(&mut self, reports: &mut Reports) -> Result<(), InitError> {
        reports.forget_held();
        // An environment that is none.
        self.release
            .write_all(b"\0\0")
            .map_err(InitError::system("reach the interpreter"))?;
        await_held(reports)?;
        self.rehearse()
    }

    fn rehearse(&self) -> Result<(), InitError> {
        program::rehearse(&self.children)?;
        rehearse_files().map_err(InitError::system("rehearse"))?;
        collect::is_empty()?;
        Ok(())
    }

    /// Lets the interpreter turn to `/code/main.py`, with this environment in place of its own.
    pub(crate) fn release(
        mut self,
        environment: &[(String, String)],
    ) -> Result<(Started, SignalFd), InitError> {
        let mut text = Vec::new();
        for (name, value) in environment {
            for part in [name, "=", value, "\0"] {
                text.extend_from_slice(part.as_bytes());
            }
        }
        // No variable is empty: this is the end.
        text.push(0);
        self.release
            .write_all(&text)
            .map_err(InitError::system("release the interpreter"))?;
        Ok((self.interpreter, self.children))
    }
}
