//! Who may connect, and how many at once. Nothing is read from a peer before that is known.

use super::session::{self, Rights};
use super::slots::Slot;
use super::wire::{Message, Refusal, RefusalCode, ToClient};
use super::{Shared, slots::Slots};
use crate::job::one_line;
use crate::sys::endpoint::Access;
use crate::sys::peer::Peer;
use rustix::net::SendFlags;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};

/// How long nothing is accepted after that failed: descriptors are missing, and somebody has to give
/// some back first.
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections for ever; each is a task of its own, whose panic is its own.
pub(super) async fn accept(listener: UnixListener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => match admit(&stream, &shared) {
                Ok((peer, place)) => {
                    let shared = Arc::clone(&shared);
                    tokio::spawn(async move {
                        session::attend(shared, stream, peer, place.rights).await;
                        drop(place);
                    });
                }
                Err(refusal) => turn_away(&stream, refusal),
            },
            Err(error) => {
                shared
                    .journal
                    .caused(|| format!("cannot accept a connection: {error}"));
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// A connection's place.
struct Place {
    rights: Rights,
    _slot: Slot,
}

impl Place {
    fn of(peer: &Peer, shared: &Shared) -> Option<Self> {
        let with = |rights| {
            move |slot| Self {
                rights,
                _slot: slot,
            }
        };
        let usual = Slots::take(&shared.connections, peer.uid).map(with(Rights::All));
        if usual.is_some() || !peer.is_root() {
            return usual;
        }
        Slots::take(&shared.kept, peer.uid).map(with(Rights::NoJobs))
    }
}

/// Lets a peer in, with its place among the connections.
fn admit(stream: &UnixStream, shared: &Shared) -> Result<(Peer, Place), Refusal> {
    let peer = match Peer::of(stream) {
        Ok(peer) => peer,
        Err(error) => {
            shared
                .journal
                .caused(|| format!("cannot find out who has connected: {}", one_line(&error)));
            return Err(Refusal::new(
                RefusalCode::Forbidden,
                "it cannot be found out who you are",
            ));
        }
    };
    if !may_connect(&peer, shared.access) {
        shared.journal.caused(|| {
            format!(
                "refused the user {} (process {}), who is not in the group",
                peer.uid, peer.pid
            )
        });
        let message = match shared.access {
            Access::Root => "root alone may use this socket".to_owned(),
            Access::Group(gid) => format!(
                "root and members of the group {gid} may use this socket, and you are neither: be made \
                 a member, and log in again"
            ),
        };
        return Err(Refusal::new(RefusalCode::Forbidden, message));
    }
    if let Some(place) = Place::of(&peer, shared) {
        return Ok((peer, place));
    }
    shared
        .journal
        .caused(|| format!("refused one more connection of the user {}", peer.uid));
    Err(Refusal {
        retry_after_ms: Some(shared.figures.hint()),
        ..Refusal::new(
            RefusalCode::Busy,
            "there are as many connections as may be: close some, or come back",
        )
    })
}

fn may_connect(peer: &Peer, access: Access) -> bool {
    peer.is_root()
        || match access {
            Access::Root => false,
            Access::Group(gid) => peer.is_in(gid),
        }
}

/// Says why, if the peer's buffer takes it: nobody waits for it.
fn turn_away(stream: &UnixStream, refusal: Refusal) {
    let frame = ToClient::Refused(refusal).to_frame();
    // The buffer of a new connection is empty, and the frame much smaller; else it hears nothing.
    // Not by tokio, which knows nothing yet of what a new connection takes.
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::send(stream, &frame, flags).ok();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[tokio::test]
    async fn a_refusal_is_there_although_nothing_was_waited_for() {
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let ours = UnixStream::from_std(ours).unwrap();
        turn_away(&ours, Refusal::new(RefusalCode::Busy, "come back"));
        drop(ours);
        let mut told = Vec::new();
        theirs.read_to_end(&mut told).unwrap();
        assert_eq!(told.first(), Some(&b'x'));
    }

    #[test]
    fn root_and_members_may_connect_by_either_kind_of_membership() {
        let peer = |uid, gid, groups: &[u32]| Peer {
            pid: 1,
            uid,
            gid,
            groups: groups.to_vec(),
        };
        let group = Access::Group(7);
        assert!(may_connect(&peer(0, 0, &[]), Access::Root));
        assert!(may_connect(&peer(0, 0, &[]), group));
        assert!(may_connect(&peer(5, 7, &[]), group));
        assert!(may_connect(&peer(5, 5, &[1, 7]), group));
        assert!(!may_connect(&peer(5, 5, &[1, 8]), group));
        assert!(!may_connect(&peer(7, 0, &[0]), group));
        assert!(!may_connect(&peer(5, 7, &[7]), Access::Root));
    }
}
