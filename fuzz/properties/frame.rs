//! The frame decoder: the first byte says how the others are cut.

use tako_guest::{Buffer, FrameError, MAX_CHUNK, ToGuest, ToHost, encode};

/// Cut or not, the same frames come out, then the same error; each survives the wire again.
pub(crate) fn check(bytes: &[u8]) {
    let Some((&step, wire)) = bytes.split_first() else {
        return;
    };
    for next in [next_to_host, next_to_guest] {
        let whole = decode(wire, MAX_CHUNK, next);
        assert_eq!(decode(wire, usize::from(step).max(1), next), whole);
        // Four bytes of header each, and one that names the variant.
        assert!(whole.0.len() <= wire.len() / 5);
    }
}

type Next = fn(&mut Buffer) -> Result<Option<Vec<u8>>, FrameError>;

/// The frames in `wire`, encoded again, and why there are no more.
fn decode(wire: &[u8], step: usize, next: Next) -> (Vec<Vec<u8>>, Option<String>) {
    let mut buffer = Buffer::new();
    let mut frames = Vec::new();
    for piece in wire.chunks(step) {
        buffer.extend(piece);
        loop {
            let announced = buffer.has_frame();
            match next(&mut buffer) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break assert!(!announced),
                Err(error) => return (frames, Some(error.to_string())),
            }
            assert!(announced);
        }
    }
    (frames, None)
}

fn next_to_host(buffer: &mut Buffer) -> Result<Option<Vec<u8>>, FrameError> {
    let Some(frame) = buffer.next::<ToHost>()? else {
        return Ok(None);
    };
    let mut wire = Vec::new();
    encode(&frame, &mut wire).unwrap();
    let mut again = Buffer::new();
    again.extend(&wire);
    assert_eq!(again.next::<ToHost>().unwrap(), Some(frame));
    Ok(Some(wire))
}

fn next_to_guest(buffer: &mut Buffer) -> Result<Option<Vec<u8>>, FrameError> {
    let Some(frame) = buffer.next::<ToGuest>()? else {
        return Ok(None);
    };
    let mut wire = Vec::new();
    encode(&frame, &mut wire).unwrap();
    let mut again = Buffer::new();
    again.extend(&wire);
    assert_eq!(again.next::<ToGuest>().unwrap(), Some(frame));
    Ok(Some(wire))
}
