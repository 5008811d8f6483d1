//! One connection: a greeting each way, then one request after the other.

use super::Shared;
use super::exchange;
use super::link::{Closing, Ears, Mouth};
use super::wire::{Hello, PROTOCOL, Refusal, RefusalCode, ToClient, ToSupervisor};
use crate::sys::peer::Peer;
use std::sync::Arc;
use tokio::net::UnixStream;

/// The conversation with one peer.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) shared: Arc<Shared>,
    pub(super) peer: Peer,
    pub(super) rights: Rights,
    pub(super) ears: Ears,
    pub(super) mouth: Mouth,
}

/// What may be asked for on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rights {
    /// Whatever its peer may.
    All,
    /// The same but jobs: it is there for looking and draining when all others are taken.
    NoJobs,
}

/// Talks to a peer that was let in, until either closes.
pub(super) async fn attend(shared: Arc<Shared>, stream: UnixStream, peer: Peer, rights: Rights) {
    let (from, to) = stream.into_split();
    let mut session = Session {
        shared,
        peer,
        rights,
        ears: Ears::new(from),
        mouth: Mouth::new(to),
    };
    match session.converse().await {
        Ok(()) | Err(Closing::Gone) => {}
        Err(Closing::Refused(refusal)) => session.part(refusal).await,
    }
}

impl Session {
    async fn converse(&mut self) -> Result<(), Closing> {
        self.mouth.say(&ToClient::Hello(Hello::ours())).await?;
        match self.ears.next().await? {
            None => return Ok(()),
            Some(ToSupervisor::Hello(hello)) if hello.protocol == PROTOCOL => {}
            Some(ToSupervisor::Hello(hello)) => {
                return Err(Closing::violation(format_args!(
                    "this supervisor speaks version {PROTOCOL} of the protocol, and you speak version \
                     {}: install the same version of Tako VM on both sides",
                    hello.protocol
                )));
            }
            Some(_) => return Err(Closing::violation("the first message has to be a greeting")),
        }
        while let Some(message) = self.ears.next().await? {
            match message {
                ToSupervisor::Run(run) => exchange::run(self, *run).await?,
                ToSupervisor::Stats => {
                    let stats = Box::new(self.shared.stats());
                    self.mouth.say(&ToClient::Stats(stats)).await?;
                }
                ToSupervisor::Drain => self.drain().await?,
                // They crossed with the refusal or the end of the job that they were meant for.
                ToSupervisor::Begin | ToSupervisor::Cancel => {}
                ToSupervisor::Hello(_) => {
                    return Err(Closing::violation("a second greeting"));
                }
                ToSupervisor::Data(_) => {
                    return Err(Closing::violation("bytes that no job has announced"));
                }
            }
        }
        Ok(())
    }

    async fn drain(&mut self) -> Result<(), Closing> {
        if !self.peer.is_root() {
            let who = self.peer.uid;
            self.shared
                .journal
                .caused(|| format!("the user {who} may not drain this service"));
            let refusal = Refusal::new(
                RefusalCode::Forbidden,
                "root alone may drain the supervisor",
            );
            return self.mouth.say(&ToClient::Refused(refusal)).await;
        }
        // The end may come at once, and the answer would not.
        let told = self.mouth.say(&ToClient::Draining).await;
        self.shared.stop.drain();
        told
    }

    /// The last word to a client that does not hold to the protocol or to its bounds.
    async fn part(&mut self, refusal: Refusal) {
        let (uid, pid) = (self.peer.uid, self.peer.pid);
        self.shared.journal.caused(|| {
            format!(
                "closed a connection of the user {uid} (process {pid}): {}",
                refusal.message
            )
        });
        // A client that is gone has nothing to hear.
        drop(self.mouth.say(&ToClient::Refused(refusal)).await);
    }
}
