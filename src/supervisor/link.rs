//! The two directions of one connection, with their time limits.

use super::wire::{Message, Reader, Refusal, RefusalCode, ToClient, ToSupervisor, WireError};
use std::time::Duration;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

/// From the first byte of a frame to its last.
const FRAME: Duration = Duration::from_secs(10);

/// How long a client may take nothing of what waits for it.
const STALL: Duration = Duration::from_secs(30);

/// Bytes that are sent together.
const BATCH: usize = 64 << 10;

/// Bytes of memory that a connection keeps for its next frames.
const KEPT: usize = 256 << 10;

/// Why a conversation is over.
#[derive(Debug)]
pub(super) enum Closing {
    /// The client is gone, or takes nothing.
    Gone,
    /// This is the last that it hears.
    Refused(Refusal),
}

impl Closing {
    /// The client does not hold to the protocol.
    pub(super) fn violation(what: impl std::fmt::Display) -> Self {
        Self::Refused(Refusal::new(RefusalCode::Protocol, what.to_string()))
    }
}

impl From<WireError> for Closing {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Read { .. } | WireError::Cut => Self::Gone,
            // What it says of the body is for the client alone, whose values may be in it.
            WireError::Body { ref source } => Self::Refused(Refusal {
                problems: vec![source.to_string()],
                ..Refusal::new(RefusalCode::Protocol, error.to_string())
            }),
            WireError::Kind { .. } | WireError::TooLong { .. } => Self::violation(error),
        }
    }
}

/// What comes from the client.
#[derive(Debug)]
pub(super) struct Ears(Reader<BufReader<OwnedReadHalf>>);

impl Ears {
    pub(super) fn new(half: OwnedReadHalf) -> Self {
        Self(Reader::new(BufReader::new(half)))
    }

    /// The next message, for which there is all the time until it begins; `None` when the client has
    /// ended the conversation. Nothing is lost when the future is dropped before it is ready.
    pub(super) async fn next(&mut self) -> Result<Option<ToSupervisor>, Closing> {
        if !self.0.begun().await? {
            return Ok(None);
        }
        match timeout(FRAME, self.0.next()).await {
            Ok(message) => Ok(message?),
            Err(_) => Err(Closing::violation(format_args!(
                "a frame that was begun was not whole within {FRAME:?}"
            ))),
        }
    }
}

/// What goes to the client.
#[derive(Debug)]
pub(super) struct Mouth {
    half: OwnedWriteHalf,
    waiting: Vec<u8>,
    /// Bytes at the front of these that are sent already: whoever waits for the rest may be interrupted.
    sent: usize,
    patience: Patience,
}

/// Since when a client is expected to take what waits for it. While its program runs, it may let it
/// wait.
#[derive(Debug, Clone)]
pub(super) struct Patience {
    /// The program has ended.
    pub(super) ended: CancellationToken,
    /// When it has ended in any case.
    pub(super) latest: Instant,
}

impl Patience {
    /// Nothing runs.
    pub(super) fn none() -> Self {
        let ended = CancellationToken::new();
        ended.cancel();
        Self {
            ended,
            latest: Instant::now(),
        }
    }

    /// Ends when a client has taken nothing for too long, from now on.
    async fn over(&self) {
        tokio::select! {
            () = self.ended.cancelled() => {}
            () = sleep_until(self.latest) => {}
        }
        sleep(STALL).await;
    }
}

impl Mouth {
    pub(super) fn new(half: OwnedWriteHalf) -> Self {
        Self {
            half,
            waiting: Vec::new(),
            sent: 0,
            patience: Patience::none(),
        }
    }

    pub(super) fn set_patience(&mut self, patience: Patience) {
        self.patience = patience;
    }

    /// Sends a message at once, and what waits before it.
    pub(super) async fn say(&mut self, message: &ToClient) -> Result<(), Closing> {
        message.append_to(&mut self.waiting);
        self.flush().await
    }

    /// Sends a message with those after it.
    pub(super) async fn add(&mut self, message: &ToClient) -> Result<(), Closing> {
        message.append_to(&mut self.waiting);
        if self.waiting.len() >= BATCH {
            self.flush().await
        } else {
            Ok(())
        }
    }

    /// Sends what waits. Dropped before it is ready, it goes on the next time where it was.
    pub(super) async fn flush(&mut self) -> Result<(), Closing> {
        while self.sent < self.waiting.len() {
            let written = tokio::select! {
                biased;
                written = self.half.write(&self.waiting[self.sent..]) => written,
                () = self.patience.over() => return Err(Closing::Gone),
            };
            match written {
                Ok(0) | Err(_) => return Err(Closing::Gone),
                Ok(bytes) => self.sent += bytes,
            }
        }
        self.sent = 0;
        self.waiting.clear();
        self.waiting.shrink_to(KEPT);
        Ok(())
    }
}
