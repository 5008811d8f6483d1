//! The protocol of the supervisor's socket, in both directions: the first byte says how the others are
//! cut.

use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use tako_vm::supervisor::wire::{
    Incoming, MAX_BYTES, MAX_END, Message, Reader, Run, ToClient, ToSupervisor,
};
use tokio::io::{AsyncRead, ReadBuf};

/// Cut or not, the same messages come out, then the same error; each survives the wire again.
pub(crate) fn check(bytes: &[u8]) {
    let Some((&step, wire)) = bytes.split_first() else {
        return;
    };
    let step = usize::from(step).max(1);
    let (messages, error) = decode::<ToSupervisor>(wire, wire.len());
    assert_eq!(
        decode::<ToSupervisor>(wire, step),
        (messages.clone(), error)
    );
    for message in messages {
        assert_eq!(again(&message), message);
        if let ToSupervisor::Run(run) = message {
            check_job(*run, wire, step);
        }
    }
    let (messages, error) = decode::<ToClient>(wire, wire.len());
    assert_eq!(decode::<ToClient>(wire, step), (messages.clone(), error));
    for message in messages {
        let back = again(&message);
        // Numbers with a fraction may lose their last digit each time.
        if !matches!(message, ToClient::Stats(_) | ToClient::End(_)) {
            assert_eq!(back, message);
        }
    }
}

/// Bytes that come in pieces, with a pause before each.
struct Pieces<'a> {
    rest: &'a [u8],
    step: usize,
    paused: bool,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        self.paused = !self.paused;
        if self.paused {
            return Poll::Pending;
        }
        let length = self.rest.len().min(self.step).min(buffer.remaining());
        let (here, behind) = self.rest.split_at(length);
        buffer.put_slice(here);
        self.rest = behind;
        Poll::Ready(Ok(()))
    }
}

/// The messages in `wire`, and why there are no more. Each future is dropped as soon as it waits.
fn decode<M: Message>(wire: &[u8], step: usize) -> (Vec<M>, Option<String>) {
    let mut reader = Reader::new(Pieces {
        rest: wire,
        step,
        paused: false,
    });
    let mut context = Context::from_waker(Waker::noop());
    let mut messages = Vec::new();
    loop {
        let next = pin!(reader.next::<M>()).poll(&mut context);
        match next {
            Poll::Pending => {}
            Poll::Ready(Ok(Some(message))) => messages.push(message),
            Poll::Ready(Ok(None)) => return (messages, None),
            Poll::Ready(Err(error)) => return (messages, Some(error.to_string())),
        }
    }
}

fn again<M: Message>(message: &M) -> M {
    let frame = message.to_frame();
    assert!(frame.len() <= 5 + MAX_END);
    let (mut messages, error) = decode::<M>(&frame, frame.len());
    assert_eq!((messages.len(), error), (1, None));
    messages.remove(0)
}

/// A job takes the bytes that it has announced and not one more, however they come.
fn check_job(run: Run, bytes: &[u8], step: usize) {
    let (announced, files) = (run.bytes(), run.files.len());
    let mut incoming = Incoming::new(run);
    let mut taken = 0;
    for piece in bytes.chunks(step) {
        if !incoming.take(piece) {
            assert!(incoming.missing() < piece.len() as u64);
            break;
        }
        taken += piece.len() as u64;
        assert_eq!(incoming.missing(), announced - taken);
    }
    let whole = incoming.missing() == 0;
    let Some(request) = incoming.into_request() else {
        return;
    };
    let input = request.input.map_or(0, |input| input.len());
    let files_bytes: usize = request.files.iter().map(|file| file.bytes.len()).sum();
    assert!(whole && announced <= MAX_BYTES && request.files.len() == files);
    assert_eq!((request.code.len() + input + files_bytes) as u64, announced);
}
