//! How many bytes of files an owner may have kept.
//!
//! It is looked at before the bytes are kept, and counted with the row that names them. So jobs that end at
//! the same moment may each find room that is enough for one of them, and an owner may have more than he may
//! by what those bring: at most what all slots of all servers may leave. Nobody waits for anybody for that.

use super::{Shared, heart};
use crate::store::queue::Held;
use crate::supervisor::wire::{End, FileDigest, FileReason};
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// Files that are named as left out, at most: as many as the collector names.
const NAMED: usize = 16;

/// Owners who can keep no more, and of whom that was said.
#[derive(Debug, Default)]
pub(super) struct Told(Mutex<BTreeSet<String>>);

impl Told {
    /// Whether it is news.
    fn is_news(&self, owner: &str, is_over: bool) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if is_over {
            return told.insert(owner.to_owned());
        }
        told.remove(owner);
        false
    }
}

/// Takes those files out of what a job has left that are more than its owner may keep.
///
/// Where the database does not say how much there is, all are kept: results wait for it too, and nothing
/// more is claimed meanwhile.
pub(super) async fn leave_out(shared: &Shared, held: &Held, end: &mut End) {
    if end.artifacts.is_empty() || shared.reach.is_away() {
        return;
    }
    let usage = shared.store.usage(&held.id);
    let usage = shared
        .reach
        .within("find out how much is kept of an owner", usage)
        .await;
    let usage = match usage {
        Ok(usage) => usage,
        Err(error) => return heart::warn("cannot look at the quota of a job's owner", &error),
    };
    let most = shared.settings.artifact_storage_bytes;
    let room = most.saturating_sub(usage.bytes);
    let left_out = take_out(&mut end.artifacts, &mut end.artifacts_skipped, room, most);
    end.artifacts_truncated |= left_out > 0;
    if shared.over_quota.is_news(&usage.owner, left_out > 0) {
        tracing::warn!(
            "owner `{}` has {} of {most} bytes of files: what job `{}` leaves beyond that is not kept, and \
             no more is said of it until something is",
            usage.owner,
            usage.bytes,
            held.id,
        );
    }
}

/// Takes out what does not fit beside what comes before it; gives how many files that were.
fn take_out(
    files: &mut Vec<FileDigest>,
    skipped: &mut Vec<FileReason>,
    mut room: u64,
    most: u64,
) -> usize {
    let before = files.len();
    files.retain(|file| {
        if let Some(left) = room.checked_sub(file.size) {
            room = left;
            return true;
        }
        if skipped.len() < NAMED {
            skipped.push(FileReason {
                name: file.name.clone(),
                reason: format!(
                    "{} bytes, and its owner has {room} left of {most} (`max_artifact_storage_bytes`)",
                    file.size
                ),
            });
        }
        false
    });
    before - files.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, size: u64) -> FileDigest {
        FileDigest {
            name: name.to_owned(),
            size,
            sha256: String::new(),
        }
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_what_still_does_is_not() {
        let mut files = vec![file("a", 4), file("b", 7), file("c", 6), file("d", 0)];
        let mut skipped = Vec::new();
        assert_eq!(take_out(&mut files, &mut skipped, 10, 12), 1);
        let names: Vec<_> = files.iter().map(|file| &file.name[..]).collect();
        assert_eq!(names, ["a", "c", "d"]);
        assert_eq!(skipped[0].name, "b");
        assert_eq!(
            skipped[0].reason,
            "7 bytes, and its owner has 6 left of 12 (`max_artifact_storage_bytes`)"
        );
        let mut many: Vec<_> = (0..30).map(|number| file(&number.to_string(), 1)).collect();
        assert_eq!(take_out(&mut many, &mut skipped, 0, 12), 30);
        assert_eq!(skipped.len(), NAMED);
    }

    #[test]
    fn an_owner_who_can_keep_no_more_is_told_of_once_until_he_can_again() {
        let told = Told::default();
        let news = [
            ("a", true),
            ("a", true),
            ("b", true),
            ("a", false),
            ("a", true),
        ];
        let news = news.map(|(owner, is_over)| told.is_news(owner, is_over));
        assert_eq!(news, [true, false, true, false, true]);
    }
}
