//! The connection to the host: frames over init's own stdin and stdout.

use crate::InitError;
use std::fs::File;
use std::io::{self, Write};
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};
use tako_guest::{Buffer, ToGuest, ToHost, encode};

/// Bytes that wait to be sent, at most, and one frame more: a chunk of output is sent at once.
const MAX_QUEUED: usize = 8 << 10;

pub(crate) struct Host {
    from: File,
    to: File,
    received: Buffer,
    sending: Vec<u8>,
    has_sent: bool,
}

impl Host {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self {
            from: io::stdin().as_fd().try_clone_to_owned()?.into(),
            to: io::stdout().as_fd().try_clone_to_owned()?.into(),
            received: Buffer::new(),
            sending: Vec::new(),
            has_sent: false,
        })
    }

    /// Sends a frame, after those that wait.
    pub(crate) fn send(&mut self, frame: &ToHost) -> Result<(), InitError> {
        self.queue(frame)?;
        self.flush()
    }

    /// Lets a frame wait for the next [`Host::flush`], but not when many wait: one write for each would
    /// be most of what a short program costs init.
    pub(crate) fn queue(&mut self, frame: &ToHost) -> Result<(), InitError> {
        encode(frame, &mut self.sending).map_err(|source| InitError::Protocol { source })?;
        if self.sending.len() >= MAX_QUEUED {
            self.flush()?;
        }
        Ok(())
    }

    /// Sends what waits. To be called before init itself waits for anything.
    pub(crate) fn flush(&mut self) -> Result<(), InitError> {
        if self.sending.is_empty() {
            return Ok(());
        }
        let written = self.to.write_all(&self.sending);
        self.has_sent = true;
        self.sending.clear();
        written.map_err(InitError::system("write to the host"))
    }

    /// Whether something was sent since this was asked last, which may have taken any time.
    pub(crate) fn has_sent(&mut self) -> bool {
        mem::take(&mut self.has_sent)
    }

    /// Blocks for the next frame and hands it to `take`.
    pub(crate) fn receive<T>(
        &mut self,
        take: impl FnOnce(ToGuest) -> Result<T, InitError>,
    ) -> Result<T, InitError> {
        // Two look-ups, because a borrowed frame cannot leave a loop that also fills the buffer.
        while !self.received.has_frame() {
            self.fill()?;
        }
        match self.received.next() {
            Ok(Some(frame)) => take(frame),
            Ok(None) => Err(InitError::OutOfOrder),
            Err(source) => Err(InitError::Protocol { source }),
        }
    }

    /// After [`Host::control`] polled readable: whether the host wants the program dead.
    pub(crate) fn wants_cancel(&mut self) -> Result<bool, InitError> {
        self.fill()?;
        match self.received.next() {
            Ok(Some(ToGuest::Cancel)) => Ok(true),
            Ok(Some(_)) => Err(InitError::OutOfOrder),
            Ok(None) => Ok(false),
            Err(source) => Err(InitError::Protocol { source }),
        }
    }

    /// The descriptor to poll for frames that come while the program runs.
    pub(crate) fn control(&self) -> BorrowedFd<'_> {
        self.from.as_fd()
    }

    fn fill(&mut self) -> Result<(), InitError> {
        match self.received.fill(&mut self.from) {
            Ok(0) => Err(InitError::HostGone),
            Ok(_) => Ok(()),
            Err(source) => Err(InitError::system("read from the host")(source)),
        }
    }
}
