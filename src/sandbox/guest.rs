//! The host's end of the guest protocol.

use super::Order;
use crate::job::{InputFile, Limits, milliseconds};
use std::io;
use tako_guest::{Area, Buffer, FrameError, MAX_CHUNK, ToGuest, ToHost, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{ChildStdin, ChildStdout};

/// Frames from the guest.
pub(super) struct Guest {
    stdout: ChildStdout,
    buffer: Buffer,
    chunk: Vec<u8>,
}

impl Guest {
    pub(super) fn new(stdout: ChildStdout) -> Self {
        Self {
            stdout,
            buffer: Buffer::new(),
            chunk: vec![0; MAX_CHUNK],
        }
    }

    /// Reads once; 0 means that nobody is left to write. Loses nothing when dropped half-way.
    pub(super) async fn fill(&mut self) -> io::Result<usize> {
        let count = self.stdout.read(&mut self.chunk).await?;
        self.buffer.extend(&self.chunk[..count]);
        Ok(count)
    }

    /// The next frame that is there in whole.
    pub(super) fn next(&mut self) -> Result<Option<ToHost<'_>>, FrameError> {
        self.buffer.next()
    }
}

/// Bytes that are gathered before they are written: a small job is one write.
const GATHERED: usize = 64 << 10;

/// Sends a job, and gives back the connection for a later cancel. The word to begin is sent when it is said.
pub(super) async fn hand_over(mut stdin: ChildStdin, order: &Order<'_>) -> io::Result<ChildStdin> {
    let (job, mut wire) = (order.job, Vec::new());
    put_environment(&job.environment, &mut wire)?;
    let files = [
        (Area::Code, "main.py", job.code.as_bytes()),
        (Area::Input, "data.json", job.input.as_bytes()),
    ];
    let further = job.files.iter();
    let further = further.map(|InputFile { name, bytes }| (Area::Input, name.as_str(), &bytes[..]));
    for (area, name, bytes) in files.into_iter().chain(further) {
        let size = bytes.len() as u64;
        put(&ToGuest::File { area, name, size }, &mut wire)?;
        for chunk in bytes.chunks(MAX_CHUNK) {
            put(&ToGuest::Data(chunk), &mut wire)?;
            if wire.len() >= GATHERED {
                stdin.write_all(&wire).await?;
                wire.clear();
            }
        }
    }
    if let Some(mut begin) = order.begin.clone() {
        stdin.write_all(&wire).await?;
        wire.clear();
        // Where nobody says it any more, the job is ended.
        if begin.wait_for(Option::is_some).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
    put(&ToGuest::Start(limits(&job.limits)), &mut wire)?;
    stdin.write_all(&wire).await?;
    Ok(stdin)
}

/// What asks init to start an interpreter with this environment and to hold it.
pub(super) fn hold_frames(environment: &[(String, String)]) -> io::Result<Vec<u8>> {
    let mut wire = Vec::new();
    put_environment(environment, &mut wire)?;
    put(&ToGuest::Hold, &mut wire)?;
    Ok(wire)
}

/// The program of a rehearsal.
const REHEARSAL: &str = "\
def f(x):
    return [x + 1, f'{x}', (x,), {x: x}]
for x in range(2):
    f(x)
";

/// What asks init to rehearse: a job as any other, but that it is not begun.
pub(super) fn rehearsal_frames(environment: &[(String, String)]) -> io::Result<Vec<u8>> {
    let mut wire = Vec::new();
    put_environment(environment, &mut wire)?;
    let files = [
        (Area::Code, "main.py", REHEARSAL),
        (Area::Input, "data.json", "{}"),
    ];
    for (area, name, text) in files {
        let size = text.len() as u64;
        put(&ToGuest::File { area, name, size }, &mut wire)?;
        put(&ToGuest::Data(text.as_bytes()), &mut wire)?;
    }
    put(&ToGuest::Ping, &mut wire)?;
    Ok(wire)
}

/// Asks init to kill the program.
pub(super) async fn send_cancel(stdin: &mut ChildStdin) -> io::Result<()> {
    send(stdin, &ToGuest::Cancel).await
}

async fn send(stdin: &mut ChildStdin, frame: &ToGuest<'_>) -> io::Result<()> {
    let mut wire = Vec::new();
    put(frame, &mut wire)?;
    stdin.write_all(&wire).await
}

fn put_environment(environment: &[(String, String)], wire: &mut Vec<u8>) -> io::Result<()> {
    environment
        .iter()
        .try_for_each(|(name, value)| put(&ToGuest::Env { name, value }, wire))
}

fn put(frame: &ToGuest<'_>, wire: &mut Vec<u8>) -> io::Result<()> {
    encode(frame, wire).map_err(io::Error::other)
}

fn limits(limits: &Limits) -> tako_guest::Limits {
    tako_guest::Limits {
        startup_ms: milliseconds(limits.startup),
        execution_ms: milliseconds(limits.execution),
        output_bytes: limits.output_bytes,
        artifact_bytes: limits.artifact_bytes,
        artifacts_total_bytes: limits.artifacts_total_bytes,
    }
}
