//! The host's end of the guest protocol.

use crate::job::{InputFile, JobSpec, Limits, milliseconds};
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

/// Sends a job, and gives back the connection for a later cancel.
pub(super) async fn hand_over(mut stdin: ChildStdin, job: &JobSpec) -> io::Result<ChildStdin> {
    let mut wire = Vec::new();
    for (name, value) in &job.environment {
        put(&ToGuest::Env { name, value }, &mut wire)?;
    }
    stdin.write_all(&wire).await?;
    send_file(&mut stdin, Area::Code, "main.py", job.code.as_bytes()).await?;
    send_file(&mut stdin, Area::Input, "data.json", job.input.as_bytes()).await?;
    for InputFile { name, bytes } in &job.files {
        send_file(&mut stdin, Area::Input, name, bytes).await?;
    }
    send(&mut stdin, &ToGuest::Start(limits(&job.limits))).await?;
    Ok(stdin)
}

/// Asks init to kill the program.
pub(super) async fn send_cancel(stdin: &mut ChildStdin) -> io::Result<()> {
    send(stdin, &ToGuest::Cancel).await
}

async fn send_file(stdin: &mut ChildStdin, area: Area, name: &str, bytes: &[u8]) -> io::Result<()> {
    send(
        stdin,
        &ToGuest::File {
            area,
            name,
            size: bytes.len() as u64,
        },
    )
    .await?;
    for chunk in bytes.chunks(MAX_CHUNK) {
        send(stdin, &ToGuest::Data(chunk)).await?;
    }
    Ok(())
}

async fn send(stdin: &mut ChildStdin, frame: &ToGuest<'_>) -> io::Result<()> {
    let mut wire = Vec::new();
    put(frame, &mut wire)?;
    stdin.write_all(&wire).await
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
