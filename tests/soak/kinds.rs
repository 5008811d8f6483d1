//! What jobs are like, and how each has to end.

use crate::client::{Client, Ran, announcement};
use serde_json::{Value, json};
use std::path::Path;

/// Bytes that a job writes which writes much.
const FLOOD: usize = 300_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Fine,
    Failing,
    Cancelled,
    Files,
    Closed,
    Flooding,
    OutOfMemory,
    TimingOut,
}

impl Kind {
    /// Each as often as the others, but for those that take longest.
    pub(crate) fn of(number: usize) -> Self {
        const ALL: [Kind; 12] = [
            Kind::Fine,
            Kind::Failing,
            Kind::Cancelled,
            Kind::Files,
            Kind::Closed,
            Kind::Flooding,
            Kind::Fine,
            Kind::OutOfMemory,
            Kind::Failing,
            Kind::Files,
            Kind::TimingOut,
            Kind::Closed,
        ];
        ALL[number % ALL.len()]
    }

    fn code(self, number: usize) -> String {
        match self {
            Self::Fine => format!("print({number} + 1)"),
            Self::Failing => "raise ValueError('on purpose')".to_owned(),
            Self::Cancelled | Self::Closed => {
                "import time\nprint('up', flush=True)\ntime.sleep(1000)".to_owned()
            }
            Self::Files => "data = open('/input/kept', 'rb').read()\n\
                 open('/output/twice', 'wb').write(data * 2)"
                .to_owned(),
            Self::Flooding => format!("import sys; sys.stdout.write('x' * {FLOOD})"),
            Self::OutOfMemory => "kept = []\nwhile True: kept.append(b'x' * (1 << 20))".to_owned(),
            Self::TimingOut => "while True: pass".to_owned(),
        }
    }

    /// Runs one, and checks how it ended. Its sandbox, if that was told.
    pub(crate) fn run(self, client: &mut Client, socket: &Path, number: usize) -> Option<String> {
        let code = self.code(number);
        let mut job = announcement(&code);
        let mut bytes = code.clone().into_bytes();
        match self {
            Self::Cancelled => {
                client.begin(&code);
                client.send('c', b"");
            }
            Self::Closed => {
                client.begin(&code);
                *client = Client::connect(socket);
                return None;
            }
            Self::Files => {
                job["files"] = json!([{"name": "kept", "size": 10_000}]);
                bytes.extend([7; 10_000]);
                client.submit(&job, &bytes);
            }
            Self::OutOfMemory => {
                job["memory_bytes"] = (64 << 20).into();
                client.submit(&job, &bytes);
            }
            Self::TimingOut => {
                job["timeout_ms"] = 1000.into();
                client.submit(&job, &bytes);
            }
            Self::Flooding => {
                job["stream"] = true.into();
                client.submit(&job, &bytes);
            }
            Self::Fine | Self::Failing => client.submit(&job, &bytes),
        }
        let ran = client.finish();
        self.check(&ran, number);
        Some(ran.end["id"].as_str().unwrap().to_owned())
    }

    fn check(self, ran: &Ran, number: usize) {
        let end = &ran.end["termination"];
        let exited = |code: u8| json!({"how": "exited", "code": code});
        let is = |wanted: &Value| assert_eq!(end, wanted, "{self:?} {number}: {:?}", ran.end);
        match self {
            Self::Fine => {
                is(&exited(0));
                assert_eq!(ran.stdout(), format!("{}\n", number + 1));
            }
            Self::Failing => {
                is(&exited(1));
                assert_eq!(ran.end["exception"]["classes"][0], "ValueError");
            }
            Self::Cancelled | Self::Closed => is(&json!({"how": "cancelled"})),
            Self::Files => {
                is(&exited(0));
                assert_eq!(ran.files["twice"], vec![7; 20_000]);
            }
            Self::Flooding => {
                is(&exited(0));
                assert_eq!(ran.stdout.len(), FLOOD);
            }
            Self::OutOfMemory => is(&json!({"how": "out_of_memory"})),
            Self::TimingOut => is(&json!({"how": "timed_out", "phase": "execution"})),
        }
    }
}
