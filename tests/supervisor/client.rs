//! A client that knows of the protocol what `docs/supervisor-protocol.md` says, and nothing of ours.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Bytes of data in one frame at most.
const MAX_DATA: usize = 65_536;

pub(crate) struct Client {
    stream: UnixStream,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: char,
    pub(crate) body: Vec<u8>,
}

/// All that comes of a job.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) end: Value,
    pub(crate) files: BTreeMap<String, Vec<u8>>,
}

impl Frame {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// What was refused, and why.
    pub(crate) fn refusal(&self) -> Value {
        assert_eq!(self.kind, 'x', "{self:?}");
        self.json()
    }
}

/// A message as it goes over the wire.
pub(crate) fn frame(kind: char, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![u8::try_from(kind).unwrap()];
    bytes.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
    bytes.extend(body);
    bytes
}

pub(crate) fn hello() -> Vec<u8> {
    frame('h', br#"{"protocol":1,"version":"by hand"}"#)
}

/// A job of a program alone.
pub(crate) fn announcement(code: &str) -> Value {
    json!({ "image": "python", "code_bytes": code.len() })
}

impl Client {
    /// Connected, and nothing said.
    pub(crate) fn silent(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_mins(2)))
            .unwrap();
        Self { stream }
    }

    /// Connected and greeted.
    pub(crate) fn connect(socket: &Path) -> Self {
        let mut client = Self::silent(socket);
        client.write(&hello());
        let greeting = client.receive().unwrap();
        assert_eq!(greeting.kind, 'h', "{greeting:?}");
        assert_eq!(greeting.json()["protocol"], 1);
        client
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Like [`Client::write`], where the other end may have closed already.
    pub(crate) fn try_write(&mut self, bytes: &[u8]) {
        drop(self.stream.write_all(bytes));
    }

    pub(crate) fn send(&mut self, kind: char, body: &[u8]) {
        self.write(&frame(kind, body));
    }

    /// The next message; `None` when the supervisor has closed the connection.
    pub(crate) fn receive(&mut self) -> Option<Frame> {
        let mut header = [0; 5];
        match self.stream.read_exact(&mut header[..1]) {
            Ok(()) => {}
            // What we had sent was not read to its end.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return None,
            Err(error) => panic!("{error}"),
        }
        self.stream.read_exact(&mut header[1..]).unwrap();
        let length = u32::from_le_bytes(header[1..].try_into().unwrap());
        let mut body = vec![0; length.try_into().unwrap()];
        self.stream.read_exact(&mut body).unwrap();
        Some(Frame {
            kind: char::from(header[0]),
            body,
        })
    }

    /// A message that has to come.
    pub(crate) fn expect(&mut self, kind: char) -> Frame {
        let frame = self.receive().expect("the connection is open");
        let text = String::from_utf8_lossy(&frame.body);
        assert_eq!(frame.kind, kind, "{text}");
        frame
    }

    /// The refusal that has to come, after which the connection is closed.
    pub(crate) fn last_refusal(&mut self) -> Value {
        loop {
            let frame = self.receive().expect("a refusal comes before the end");
            if frame.kind == 'x' {
                assert_eq!(self.receive(), None);
                return frame.refusal();
            }
        }
    }

    /// Sends a job with the bytes that it announces.
    pub(crate) fn submit(&mut self, announcement: &Value, bytes: &[u8]) {
        self.send('r', announcement.to_string().as_bytes());
        for chunk in bytes.chunks(MAX_DATA) {
            self.send('d', chunk);
        }
    }

    /// Begins a program whose output comes as it is written, and waits for its first.
    pub(crate) fn begin(&mut self, code: &str) -> Frame {
        self.begin_with(code, &json!({}))
    }

    /// Like [`Client::begin`], with more in the announcement.
    pub(crate) fn begin_with(&mut self, code: &str, more: &Value) -> Frame {
        let mut job = announcement(code);
        job["stream"] = true.into();
        let more = more.as_object().unwrap().clone();
        job.as_object_mut().unwrap().extend(more);
        self.submit(&job, code.as_bytes());
        self.expect('a');
        self.receive().unwrap()
    }

    /// Runs a program to its end, as soon as there is a place: that of a job is free a moment after it
    /// has ended.
    pub(crate) fn run(&mut self, code: &str) -> Ran {
        loop {
            self.submit(&announcement(code), code.as_bytes());
            let answer = self.receive().expect("the connection is open");
            if answer.kind == 'a' {
                return self.finish();
            }
            assert_eq!(answer.refusal()["code"], "busy");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Why a program is not run.
    pub(crate) fn refused(&mut self, announcement: &Value, bytes: &[u8]) -> Value {
        self.submit(announcement, bytes);
        self.receive().unwrap().refusal()
    }

    /// Takes all that is to come of a job.
    pub(crate) fn finish(&mut self) -> Ran {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let end = loop {
            let frame = self.receive().expect("the job comes to its end");
            match frame.kind {
                'a' => {}
                'o' => stdout.extend(frame.body),
                'e' => stderr.extend(frame.body),
                'z' => break frame.json(),
                _ => panic!("{}", String::from_utf8_lossy(&frame.body)),
            }
        };
        let mut files = BTreeMap::new();
        let mut bytes = Vec::new();
        for artifact in end["artifacts"].as_array().unwrap() {
            let size = usize::try_from(artifact["size"].as_u64().unwrap()).unwrap();
            while bytes.len() < size {
                bytes.extend(self.expect('d').body);
            }
            let rest = bytes.split_off(size);
            files.insert(artifact["name"].as_str().unwrap().to_owned(), bytes);
            bytes = rest;
        }
        assert!(bytes.is_empty());
        Ran {
            stdout,
            stderr,
            end,
            files,
        }
    }

    pub(crate) fn stats(&mut self) -> Value {
        self.send('s', b"");
        self.expect('s').json()
    }
}

impl Ran {
    pub(crate) fn stdout(&self) -> &str {
        str::from_utf8(&self.stdout).unwrap()
    }

    pub(crate) fn stderr(&self) -> &str {
        str::from_utf8(&self.stderr).unwrap()
    }

    pub(crate) fn how(&self) -> &Value {
        &self.end["termination"]["how"]
    }
}
