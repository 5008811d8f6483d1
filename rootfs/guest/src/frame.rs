//! Frames: a little-endian `u32` length, then that many bytes of `postcard`.

use serde::{Deserialize, Serialize};
use std::io::{self, Read};

/// Largest payload of a data frame, in bytes.
///
/// A quarter of a pipe's default capacity, so that a writer is rarely blocked by its own frame.
pub const MAX_CHUNK: usize = 16 * 1024;

/// Largest frame body, in bytes: an environment variable of 32 KiB and its wrapping.
///
/// This bounds what a hostile peer can make the decoder allocate.
pub const MAX_FRAME: usize = 34 * 1024;

const HEADER: usize = 4;

/// Why bytes are not a frame. After it the stream cannot be trusted any more.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
pub enum FrameError {
    #[error("a frame of {length} bytes exceeds the limit of {MAX_FRAME} bytes")]
    TooLong { length: usize },
    #[error("a frame does not decode")]
    Malformed { source: postcard::Error },
    #[error("a frame has {trailing} bytes behind its end")]
    Trailing { trailing: usize },
}

/// Appends `message` to `out` as one frame.
///
/// # Errors
/// [`FrameError::TooLong`] when it is larger than [`MAX_FRAME`]; `out` is then as it was.
pub fn encode(message: &impl Serialize, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let body = postcard::to_stdvec(message).map_err(|source| FrameError::Malformed { source })?;
    let length = body.len();
    match u32::try_from(length) {
        Ok(header) if length <= MAX_FRAME => {
            out.extend_from_slice(&header.to_le_bytes());
            out.extend_from_slice(&body);
            Ok(())
        }
        _ => Err(FrameError::TooLong { length }),
    }
}

/// Bytes read so far, out of which frames are taken. Never grows beyond two frames.
#[derive(Debug, Default)]
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    /// An empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends bytes from the peer. Callers add at most [`MAX_FRAME`] bytes between two drains.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.start);
        self.start = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// Reads once from `source` and appends what came; 0 means end of file.
    ///
    /// # Errors
    /// Those of `source`.
    pub fn fill(&mut self, mut source: impl Read) -> io::Result<usize> {
        let mut chunk = [0; MAX_CHUNK];
        let count = source.read(&mut chunk)?;
        self.extend(&chunk[..count]);
        Ok(count)
    }

    /// The next whole frame, or `None` until more bytes came.
    ///
    /// # Errors
    /// [`FrameError`] when the peer does not speak the protocol.
    pub fn next<'a, T: Deserialize<'a>>(&'a mut self) -> Result<Option<T>, FrameError> {
        let Some(body) = self.next_body()? else {
            return Ok(None);
        };
        let (message, rest) =
            postcard::take_from_bytes(body).map_err(|source| FrameError::Malformed { source })?;
        if rest.is_empty() {
            Ok(Some(message))
        } else {
            Err(FrameError::Trailing {
                trailing: rest.len(),
            })
        }
    }

    /// Whether [`Buffer::next`] has an answer: a whole frame, or an error.
    pub fn has_frame(&self) -> bool {
        match self.bytes[self.start..].split_first_chunk::<HEADER>() {
            Some((header, rest)) => {
                let length = usize::try_from(u32::from_le_bytes(*header)).unwrap_or(usize::MAX);
                length > MAX_FRAME || rest.len() >= length
            }
            None => false,
        }
    }

    fn next_body(&mut self) -> Result<Option<&[u8]>, FrameError> {
        let pending = &self.bytes[self.start..];
        let Some((header, rest)) = pending.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_le_bytes(*header)).unwrap_or(usize::MAX);
        if length > MAX_FRAME {
            return Err(FrameError::TooLong { length });
        }
        if rest.len() < length {
            return Ok(None);
        }
        let body = self.start + HEADER;
        self.start = body + length;
        Ok(Some(&self.bytes[body..body + length]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Area, Exception, Exit, ExitStatus, Limits, SkipReason, ToGuest, ToHost};
    use proptest::prelude::*;

    fn to_host_frames() -> Vec<ToHost<'static>> {
        vec![
            ToHost::Ready { protocol: 1 },
            ToHost::Started,
            ToHost::Running { startup_ms: 21 },
            ToHost::Stdout(b"one\0two"),
            ToHost::Stderr(&[0xff, 0xfe]),
            ToHost::Exit(Exit {
                status: ExitStatus::Signalled(9),
                ended_by: None,
                startup_ms: Some(3),
                execution_ms: 40,
                exception: Some(Exception {
                    classes: "ValueError Exception",
                    message: "no",
                }),
            }),
            ToHost::File {
                name: "a/b.txt",
                size: 3,
            },
            ToHost::Data(b"abc"),
            ToHost::FileEnd { complete: true },
            ToHost::Skipped {
                name: "big",
                reason: SkipReason::TooLarge,
            },
            ToHost::Done { skipped: 1 },
            ToHost::Fault("no interpreter"),
            ToHost::Held,
        ]
    }

    #[test]
    fn every_frame_survives_the_wire_however_it_is_cut() {
        let mut wire = Vec::new();
        for frame in to_host_frames() {
            encode(&frame, &mut wire).unwrap();
        }
        for step in [1, 2, 3, 7, wire.len()] {
            let mut buffer = Buffer::new();
            let mut seen = 0;
            for piece in wire.chunks(step) {
                buffer.extend(piece);
                while let Some(frame) = buffer.next::<ToHost>().unwrap() {
                    assert_eq!(frame, to_host_frames()[seen]);
                    seen += 1;
                }
            }
            assert_eq!(seen, to_host_frames().len());
        }
    }

    #[test]
    fn the_wire_format_stays_what_version_4_says() {
        let mut wire = Vec::new();
        encode(
            &ToGuest::File {
                area: Area::Input,
                name: "x",
                size: 300,
            },
            &mut wire,
        )
        .unwrap();
        encode(&ToGuest::Cancel, &mut wire).unwrap();
        assert_eq!(wire, [6, 0, 0, 0, 1, 1, 1, b'x', 0xac, 2, 1, 0, 0, 0, 4]);
        wire.clear();
        encode(&ToGuest::Hold, &mut wire).unwrap();
        encode(&ToGuest::Ping, &mut wire).unwrap();
        encode(&ToHost::Held, &mut wire).unwrap();
        assert_eq!(wire, [1, 0, 0, 0, 5, 1, 0, 0, 0, 6, 1, 0, 0, 0, 12]);
    }

    #[test]
    fn a_length_above_the_limit_is_refused_before_its_body_is_read() {
        let mut buffer = Buffer::new();
        buffer.extend(&u32::MAX.to_le_bytes());
        assert!(matches!(
            buffer.next::<ToHost>(),
            Err(FrameError::TooLong { .. })
        ));
    }

    #[test]
    fn a_frame_that_is_too_long_is_not_sent_and_leaves_nothing_behind() {
        let mut wire = vec![1];
        let data = vec![0; MAX_FRAME + 1];
        assert!(encode(&ToHost::Stdout(&data), &mut wire).is_err());
        assert_eq!(wire, [1]);
    }

    #[test]
    fn bytes_behind_the_end_of_a_message_are_an_error() {
        let mut buffer = Buffer::new();
        buffer.extend(&[2, 0, 0, 0, 1, 0]);
        assert!(matches!(
            buffer.next::<ToHost>(),
            Err(FrameError::Trailing { trailing: 1 })
        ));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic_or_grow(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let mut buffer = Buffer::new();
            buffer.extend(&bytes);
            for _ in 0..bytes.len() {
                match buffer.next::<ToHost>() {
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => break,
                }
            }
            prop_assert!(buffer.bytes.len() <= bytes.len());
        }

        #[test]
        fn limits_survive_the_wire(startup_ms: u64, execution_ms: u64, output_bytes: u64) {
            let limits = Limits { startup_ms, execution_ms, output_bytes, artifact_bytes: 1, artifacts_total_bytes: 2 };
            let mut wire = Vec::new();
            encode(&ToGuest::Start(limits), &mut wire).unwrap();
            let mut buffer = Buffer::new();
            buffer.extend(&wire);
            prop_assert_eq!(buffer.next::<ToGuest>().unwrap(), Some(ToGuest::Start(limits)));
        }
    }
}
