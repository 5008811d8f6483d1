//! Having a supervisor run programs.

use super::Error;
use super::running::{self, Running};
use crate::config;
use crate::job::{JobRequest, JobSpec, SpecError};
use crate::sandbox::Event;
use crate::supervisor::connection::{self, ConnectionError, Connections, Output};
use crate::supervisor::wire::{Refusal, RefusalCode, Run};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// When to come back to a supervisor that does not say it.
const COME_BACK: Duration = Duration::from_secs(1);

/// A supervisor that was reached.
#[derive(Debug)]
pub(crate) struct Remote {
    connections: Connections,
    image: String,
}

impl Remote {
    /// The supervisor that runs programs; `None` when this process has to.
    ///
    /// A socket that is named must be one that somebody listens on. The default one is for those who
    /// want nothing in particular: not if a state directory or a configuration is named (`elsewhere`).
    pub(crate) fn find(
        named: Option<PathBuf>,
        elsewhere: bool,
        image: &str,
    ) -> Result<Option<Self>, Error> {
        let is_named = named.is_some();
        let socket = match named {
            Some(socket) => socket,
            None if elsewhere => return Ok(None),
            None => PathBuf::from(config::DEFAULT_SOCKET),
        };
        match connection::connect(&socket) {
            Ok(idle) => {
                let connections = Connections::new(socket);
                // For the first job.
                connections.keep(idle);
                Ok(Some(Self {
                    connections,
                    image: image.to_owned(),
                }))
            }
            Err(error) if !is_named && nobody_listens(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whoever keeps this for later jobs does not occupy a connection until then.
    pub(super) fn idle(self) -> Self {
        self.connections.close();
        self
    }

    /// Starts a job once the supervisor has checked it. `stream` asks for all of its output.
    pub(crate) async fn submit(
        &self,
        request: Arc<JobRequest>,
        stream: bool,
        cancel: &CancellationToken,
    ) -> Result<Running, Error> {
        // The supervisor takes more for no job at all, and says no more than that.
        JobSpec::check_counts(&request).map_err(Error::Job)?;
        let connection = self.connections.take().await?;
        let (run, parts) = Run::new(&self.image, &request, stream);
        let submitted = connection.submit(&run, &parts).await?;
        drop(parts);
        let connections = self.connections.clone();
        Ok(running::follow(
            submitted,
            connections,
            request,
            stream,
            cancel,
        ))
    }
}

fn nobody_listens(error: &ConnectionError) -> bool {
    let ConnectionError::Connect { source, .. } = error else {
        return false;
    };
    matches!(
        source.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

impl From<Output> for Event {
    fn from(output: Output) -> Self {
        match output {
            Output::Stdout(bytes) => Self::Stdout(bytes),
            Output::Stderr(bytes) => Self::Stderr(bytes),
        }
    }
}

impl From<ConnectionError> for Error {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::Refused { refusal } => refused(*refusal),
            // The listener's queue is full of others.
            ConnectionError::Connect { source, .. }
                if source.kind() == io::ErrorKind::WouldBlock =>
            {
                Self::Busy {
                    retry_after: COME_BACK,
                }
            }
            error => Self::Connection(error.into()),
        }
    }
}

fn refused(refusal: Refusal) -> Error {
    match refusal.code {
        RefusalCode::Invalid => Error::Job(SpecError {
            problems: refusal.into_problems(),
        }),
        RefusalCode::Image => Error::Image(refusal.message.into()),
        RefusalCode::Busy => Error::Busy {
            retry_after: refusal
                .retry_after_ms
                .map_or(COME_BACK, Duration::from_millis),
        },
        _ => Error::Refused(refusal.message.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_is_named_goes_before_everything_and_must_be_listened_on() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let named = || Some(socket.clone());
        for elsewhere in [false, true] {
            let refused = Remote::find(named(), elsewhere, "python");
            assert!(matches!(refused, Err(Error::Connection(_))), "{refused:?}");
        }
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for elsewhere in [false, true] {
            let found = Remote::find(named(), elsewhere, "python").unwrap();
            assert_eq!(found.unwrap().connections.socket(), socket);
        }
        assert!(Remote::find(None, true, "python").unwrap().is_none());
    }

    #[test]
    fn a_refusal_is_the_error_that_this_process_would_give_itself() {
        let of = |code, problems: &[&str]| {
            refused(Refusal {
                code,
                message: "said".to_owned(),
                problems: problems.iter().map(|&problem| problem.to_owned()).collect(),
                retry_after_ms: None,
            })
        };
        let Error::Job(error) = of(RefusalCode::Invalid, &["a", "b"]) else {
            panic!("bad fields are the caller's");
        };
        assert_eq!(error.problems, ["a", "b"]);
        assert!(
            matches!(of(RefusalCode::Invalid, &[]), Error::Job(error) if error.problems == ["said"])
        );
        assert!(matches!(of(RefusalCode::Image, &[]), Error::Image(_)));
        assert!(matches!(
            of(RefusalCode::Busy, &[]),
            Error::Busy {
                retry_after: COME_BACK
            }
        ));
        for code in [
            RefusalCode::Forbidden,
            RefusalCode::Protocol,
            RefusalCode::Draining,
            RefusalCode::Internal,
        ] {
            let error = of(code, &[]);
            assert!(matches!(error, Error::Refused(_)), "{error:?}");
            assert_eq!(error.to_string(), "said");
        }
    }
}
