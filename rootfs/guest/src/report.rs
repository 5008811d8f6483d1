//! What the hook in the interpreter says: that it waits, that it is up, which exception ended the
//! program, and with which status the interpreter ends.
//!
//! Records come through a FIFO, so that the program inherits no descriptor of ours. Any process of
//! the program can write there; a record counts only with the main program's pid. What it can bring
//! about is the end of its own program, with a status of its choice, as any of its processes can.

use crate::InitError;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::mkfifo;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use tako_guest::{Exception, REPORT_FIFO, RUN_DIR};

/// Longest record, in bytes: `PIPE_BUF`, up to which a write to a FIFO is atomic (pipe(7)).
const MAX_RECORD: usize = 4096;

/// The FIFO and what came through it.
pub(crate) struct Reports {
    fifo: File,
    // Keeps the FIFO from polling as hung up while no writer has it open.
    _writer: File,
    pending: Vec<u8>,
    main: u32,
    held: bool,
    up: bool,
    unfit: Option<String>,
    ended: Option<u8>,
    exception: Option<(String, String)>,
}

impl Reports {
    pub(crate) fn open() -> Result<Self, InitError> {
        let failed = || InitError::system::<nix::Error>("make the report FIFO");
        fs::create_dir_all(RUN_DIR).map_err(InitError::system("make the run directory"))?;
        mkfifo(REPORT_FIFO, Mode::empty()).map_err(failed())?;
        let flags = OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        // Owned by init; without DAC capabilities root needs its own permission bits to open it.
        fs::set_permissions(
            REPORT_FIFO,
            std::os::unix::fs::PermissionsExt::from_mode(0o600),
        )
        .map_err(InitError::system("open up the report FIFO"))?;
        let fifo = open(REPORT_FIFO, flags | OFlag::O_RDONLY, Mode::empty()).map_err(failed())?;
        let writer = open(REPORT_FIFO, flags | OFlag::O_WRONLY, Mode::empty()).map_err(failed())?;
        fchmod(&fifo, Mode::from_bits_truncate(0o622)).map_err(failed())?;
        Ok(Self {
            fifo: fifo.into(),
            _writer: writer.into(),
            pending: Vec::new(),
            main: 0,
            held: false,
            up: false,
            unfit: None,
            ended: None,
            exception: None,
        })
    }

    /// From now on records of this process count.
    pub(crate) fn follow(&mut self, main: u32) {
        self.main = main;
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.fifo.as_fd()
    }

    /// Whether the interpreter said that it waits for its program.
    pub(crate) fn held(&self) -> bool {
        self.held
    }

    /// From now on it has to say so again.
    pub(crate) fn forget_held(&mut self) {
        self.held = false;
    }

    /// Whether the interpreter said that it is up.
    pub(crate) fn up(&self) -> bool {
        self.up
    }

    /// Why the interpreter can take no program, if it said so. Once there is one, it may be the program
    /// that says so.
    pub(crate) fn unfit(&self) -> Option<&str> {
        self.unfit.as_deref()
    }

    /// The status with which the interpreter ends, if it said so. It stands still until it is killed.
    pub(crate) fn ended(&self) -> Option<u8> {
        self.ended
    }

    pub(crate) fn exception(&self) -> Option<Exception<'_>> {
        let (classes, message) = self.exception.as_ref()?;
        Some(Exception { classes, message })
    }

    /// Takes what waits in the FIFO, without blocking; whether something did. One read: a flood must
    /// not hold init here.
    pub(crate) fn drain(&mut self) -> bool {
        let mut chunk = [0; 4 * MAX_RECORD];
        // An error here means nothing waits.
        let count = self.fifo.read(&mut chunk).unwrap_or(0);
        for &byte in &chunk[..count] {
            if byte == 0 {
                self.take();
            } else if self.pending.len() < MAX_RECORD {
                self.pending.push(byte);
            }
        }
        count > 0
    }

    fn take(&mut self) {
        let record = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        let mut fields = record.splitn(4, '\n');
        let (Some(kind), Some(pid)) = (fields.next(), fields.next()) else {
            return;
        };
        if pid.parse() != Ok(self.main) {
            return;
        }
        match (kind, fields.next(), fields.next()) {
            ("held", ..) => self.held = true,
            ("up", ..) => self.up = true,
            ("unfit", Some(class), Some(message)) => {
                self.unfit = Some(format!("{class}: {message}"));
            }
            ("ended", Some(status), None) => self.ended = status.parse().ok(),
            ("exception", Some(classes), Some(message)) => {
                self.exception = Some((classes.to_owned(), message.to_owned()));
            }
            _ => {}
        }
    }
}
