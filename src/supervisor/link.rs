//! The two directions of one connection, with their time limits.

use super::wire::{Message, Reader, Refusal, RefusalCode, ToClient, ToSupervisor, WireError};
use std::time::Duration;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

/// From the first byte of a frame to its last.
const FRAME: Duration = Duration::from_secs(10);

/// How long a client may take nothing of what waits for it.
const STALL: Duration = Duration::from_secs(30);

/// How fast, beside one such pause, a client takes what its job has left at least, in bytes a second:
/// until then it lies on our disk or in our memory. 1 MiB/s is slower than any disk.
const PACE: u64 = 1 << 20;

/// How long the news that a job was accepted waits for company: a client would be woken by it only to wait
/// again, on the processor perhaps that its short program runs on.
pub(super) const COMPANY: Duration = Duration::from_millis(2);

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
            WireError::Body { ref source } => {
                Self::Refused(Refusal::protocol(error.to_string(), source.to_string()))
            }
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
    /// When that has begun to count.
    counted: Option<Instant>,
}

/// Since when a client is expected to take what waits for it. While its program runs, it may let it
/// wait.
#[derive(Debug, Clone)]
pub(super) struct Patience {
    /// The program has ended.
    pub(super) ended: CancellationToken,
    /// When it has ended in any case.
    pub(super) latest: Instant,
    /// How long it may take nothing then.
    stall: Duration,
    /// How long it may take for everything then.
    whole: Option<Duration>,
}

impl Patience {
    /// Nothing runs.
    pub(super) fn none() -> Self {
        let ended = CancellationToken::new();
        ended.cancel();
        Self {
            ended,
            latest: Instant::now(),
            stall: STALL,
            whole: None,
        }
    }

    /// A program runs, until `latest` at the latest, and this much of its output may be on its way.
    pub(super) fn until(latest: Instant, on_its_way: u64) -> Self {
        Self {
            ended: CancellationToken::new(),
            latest,
            stall: STALL,
            whole: Some(time_for(on_its_way)),
        }
    }

    /// Nothing runs, and this much is to be sent.
    pub(super) fn with(bytes: u64) -> Self {
        Self {
            whole: Some(time_for(bytes)),
            ..Self::none()
        }
    }

    /// Ends when a client has taken nothing for too long, from now on, or has not taken everything. It
    /// is noted in `counted` when the time for that begins.
    async fn over(&self, counted: &mut Option<Instant>) {
        tokio::select! {
            () = self.ended.cancelled() => {}
            () = sleep_until(self.latest) => {}
        }
        let counted = *counted.get_or_insert_with(Instant::now);
        let stalled = Instant::now() + self.stall;
        let end = self
            .whole
            .map_or(stalled, |whole| stalled.min(counted + whole));
        sleep_until(end).await;
    }
}

/// How long a client may take for so many bytes.
fn time_for(bytes: u64) -> Duration {
    STALL + Duration::from_secs(bytes.div_ceil(PACE))
}

impl Mouth {
    pub(super) fn new(half: OwnedWriteHalf) -> Self {
        Self {
            half,
            waiting: Vec::new(),
            sent: 0,
            patience: Patience::none(),
            counted: None,
        }
    }

    pub(super) fn set_patience(&mut self, patience: Patience) {
        self.patience = patience;
        self.counted = None;
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
                () = self.patience.over(&mut self.counted) => return Err(Closing::Gone),
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;
    use tokio::net::UnixStream;
    use tokio::time::sleep;

    fn impatient(stall: u64, whole: u64) -> Patience {
        Patience {
            stall: Duration::from_millis(stall),
            whole: Some(Duration::from_millis(whole)),
            ..Patience::none()
        }
    }

    /// How sending 4 MiB ends for a client that takes 1 KiB in each `pause`.
    async fn sent_with(pause: Duration, patience: Patience) -> (Result<(), Closing>, Duration) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (_ears, half) = ours.into_split();
        let mut mouth = Mouth::new(half);
        mouth.set_patience(patience);
        let mut theirs = theirs;
        let reading = tokio::spawn(async move {
            let mut some = [0; 1024];
            while theirs.read(&mut some).await.unwrap() > 0 {
                sleep(pause).await;
            }
        });
        let begun = Instant::now();
        let bytes = vec![0; 64 << 10];
        let mut told = Ok(());
        for _ in 0..64 {
            told = mouth.add(&ToClient::Stdout(bytes.clone())).await;
            if told.is_err() {
                break;
            }
        }
        let took = begun.elapsed();
        drop(mouth);
        reading.abort();
        (told, took)
    }

    #[tokio::test]
    async fn who_takes_a_little_now_and_then_is_given_up_all_the_same() {
        let pause = Duration::from_millis(1);
        let (told, took) = sent_with(pause, impatient(60_000, 400)).await;
        assert!(matches!(told, Err(Closing::Gone)), "{told:?}");
        assert!(took >= Duration::from_millis(400), "{took:?}");
        assert!(took < Duration::from_secs(20), "{took:?}");
    }

    #[tokio::test]
    async fn who_takes_nothing_is_given_up_before_and_who_takes_it_has_it() {
        let (told, took) = sent_with(Duration::from_hours(1), impatient(200, 60_000)).await;
        assert!(matches!(told, Err(Closing::Gone)), "{told:?}");
        assert!(took < Duration::from_secs(20), "{took:?}");
        let (told, _) = sent_with(Duration::ZERO, impatient(60_000, 60_000)).await;
        told.unwrap();
    }

    #[tokio::test]
    async fn the_time_for_all_begins_with_the_end_of_the_program() {
        let mut patience = impatient(60_000, 1);
        patience.ended = CancellationToken::new();
        patience.latest = Instant::now() + Duration::from_hours(1);
        let ended = patience.ended.clone();
        tokio::spawn(async move {
            sleep(Duration::from_millis(300)).await;
            ended.cancel();
        });
        let (told, took) = sent_with(Duration::from_millis(1), patience).await;
        assert!(matches!(told, Err(Closing::Gone)), "{told:?}");
        assert!(took >= Duration::from_millis(300), "{took:?}");
    }

    #[test]
    fn a_refusal_of_a_body_is_short_however_long_its_field_is() {
        let text = format!("{{\"image\":\"python\",\"{}\":1}}", "x".repeat(1 << 20));
        let error = ToSupervisor::decode(b'r', text.into_bytes()).unwrap_err();
        let Closing::Refused(refusal) = Closing::from(error) else {
            panic!("it is told");
        };
        let told = ToClient::Refused(refusal).to_frame();
        assert!(told.len() < 5000, "{}", told.len());
    }
}
