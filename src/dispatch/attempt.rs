//! One attempt of one job: the supervisor runs it, and how that ended is recorded.

use super::journal::{COLLECTED, Entry};
use super::wait::EndedHere;
use super::{Attempt, JournalError, MAX_PAUSE, Shared, Why, about, heart, quota};
use crate::store::StoreError;
use crate::store::files::FilesError;
use crate::store::history::End;
use crate::store::queue::{Claim, Ended, Held, Release, Submission};
use crate::supervisor::connection::{ConnectionError, Output, Prepared};
use crate::supervisor::wire::{RefusalCode, Run};
use std::error::Error;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc;
use tokio::time::sleep;

/// How long the supervisor is left alone when it does not say for how long.
const LEFT_ALONE: Duration = Duration::from_secs(1);

/// Bytes of a job at most that is handed over before it is ours: so few are written at once.
const SMALL: u64 = 64 << 10;

/// How a program ended that the supervisor has run, or why there is nothing to record.
enum Ending {
    /// To be recorded.
    Ran(Box<Entry>),
    /// It cannot be run as it is, here or elsewhere: why.
    Refused(String),
    /// It was not begun.
    Unused,
    /// It was begun, or may have been, and was lost.
    Lost(String),
}

/// Runs an attempt until nothing is left to be said of it. It is heard of from the call on.
pub(super) fn run(
    shared: Arc<Shared>,
    claim: Claim,
    slot: Option<OwnedSemaphorePermit>,
    prepared: Option<Prepared>,
) -> impl Future<Output = ()> {
    let running = Running::begin(shared, claim.held.clone());
    async move {
        let number = claim.attempt;
        let Running {
            shared,
            held,
            attempt,
        } = &running;
        let ending = execute(shared, claim, prepared, attempt).await;
        // What was taken away is another's to tell of.
        if attempt.why() != Some(Why::Lost) {
            record(shared, held, number, attempt, ending).await;
        }
        drop(running);
        drop(slot);
    }
}

/// An attempt that is heard of, as long as this is there: also one whose task fails is not for ever.
struct Running {
    shared: Arc<Shared>,
    held: Held,
    attempt: Attempt,
}

impl Running {
    fn begin(shared: Arc<Shared>, held: Held) -> Self {
        let attempt = Attempt::default();
        shared.attempts().insert(held.clone(), attempt.clone());
        Self {
            shared,
            held,
            attempt,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.attempts().remove(&self.held);
        self.shared.tell_of_the_end(&self.held, None);
    }
}

impl Shared {
    fn tell_of_the_end(&self, held: &Held, end: Option<End>) {
        let (id, end) = (held.id.clone(), end.map(Arc::new));
        // Nobody has to wait for it.
        drop(self.ends.send(EndedHere { id, end }));
    }
}

/// Hands a job to the supervisor that is not ours yet, whose program begins when it is: where that is quickly
/// done, and likely to be of use. One with a key may be there already.
pub(super) async fn prepare(shared: &Shared, job: &Submission) -> Option<Prepared> {
    if job.idempotency.is_some() || shared.reach.is_away() {
        return None;
    }
    let (run, parts) = Run::new(&job.image, &job.request, false);
    if run.bytes() > SMALL {
        return None;
    }
    let connection = shared.supervisor.take_kept()?;
    // It is handed over again then, and fails in the open.
    connection.prepare(&run, &parts).await.ok()
}

async fn execute(
    shared: &Shared,
    claim: Claim,
    prepared: Option<Prepared>,
    attempt: &Attempt,
) -> Ending {
    match ask(shared, claim, prepared, attempt).await {
        Ok(entry) => Ending::Ran(Box::new(entry)),
        Err(Failure::GivenUp) => Ending::Lost("it was ended before it had begun".to_owned()),
        Err(Failure::Connection(error @ ConnectionError::Write { .. })) => no_space(shared, &error),
        Err(Failure::Connection(error)) => failed(shared, &error),
        Err(Failure::Read(error)) => no_space(shared, &error),
        Err(Failure::Files(error)) => no_space(shared, &error),
    }
}

enum Failure {
    /// It was to end before the supervisor had taken it.
    GivenUp,
    Connection(ConnectionError),
    /// They cannot be taken over.
    Read(io::Error),
    /// They cannot be kept.
    Files(FilesError),
}

impl From<FilesError> for Failure {
    fn from(error: FilesError) -> Self {
        Self::Files(error)
    }
}

impl From<ConnectionError> for Failure {
    fn from(error: ConnectionError) -> Self {
        Self::Connection(error)
    }
}

async fn ask(
    shared: &Shared,
    claim: Claim,
    prepared: Option<Prepared>,
    attempt: &Attempt,
) -> Result<Entry, Failure> {
    let submit = async {
        if let Some(prepared) = prepared.filter(Prepared::is_held) {
            return prepared.begin().await;
        }
        let (run, parts) = Run::new(&claim.image, &claim.request, false);
        let connection = shared.supervisor.take().await?;
        connection.submit(&run, &parts).await
    };
    // With its connection, a job ends.
    let submitted = attempt.cancel.run_until_cancelled(submit).await;
    let submitted = submitted.ok_or(Failure::GivenUp)??;
    let nobody: Option<mpsc::Sender<Output>> = None;
    let ended = submitted.attend(nobody, &attempt.cancel).await?;
    let mut end = ended.end().clone();
    let directory = if end.artifacts.is_empty() {
        None
    } else {
        Some(collected(shared).map_err(Failure::Read)?)
    };
    let place = directory
        .as_ref()
        .map_or(&*shared.settings.directory, TempDir::path);
    let (outcome, connection) = ended.collect(place, &attempt.cancel).await?;
    if !attempt.cancel.is_cancelled() {
        shared.supervisor.put_back(connection);
    }
    quota::leave_out(shared, &claim.held, &mut end).await;
    for kept in &end.artifacts {
        let file = outcome.artifacts.iter().find(|file| file.name == kept.name);
        if let Some(file) = file {
            shared.files.keep(&file.path, &file.sha256).await?;
        }
    }
    Entry::new(claim.held, end, &outcome).map_err(Failure::Read)
}

/// A directory for the files that a job has left.
fn collected(shared: &Shared) -> io::Result<TempDir> {
    tempfile::Builder::new()
        .prefix(COLLECTED)
        .tempdir_in(&shared.settings.directory)
}

/// Files that a job has left cannot be kept: a disk is full, or the store of files is away. What comes next
/// would fare no better, until something can be kept there.
fn no_space(shared: &Shared, error: &dyn Error) -> Ending {
    shared.is_full.store(true, Ordering::Relaxed);
    heart::warn("cannot keep the files of a job", error);
    Ending::Lost("the files that it has left cannot be kept".to_owned())
}

/// What a failure of the supervisor, or of the way to it, means for the attempt.
fn failed(shared: &Shared, error: &ConnectionError) -> Ending {
    let ConnectionError::Refused { refusal } = error else {
        shared.pause_for(about(LEFT_ALONE));
        heart::warn("cannot have the supervisor run a job", error);
        // Before anything was asked for.
        let unused = matches!(
            error,
            ConnectionError::Connect { .. } | ConnectionError::Version { .. }
        );
        return if unused {
            Ending::Unused
        } else {
            Ending::Lost(error.to_string())
        };
    };
    match refusal.code {
        RefusalCode::Busy | RefusalCode::Draining | RefusalCode::Forbidden => {
            let pause = refusal.retry_after_ms.map(Duration::from_millis);
            shared.pause_for(about(pause.unwrap_or(LEFT_ALONE)));
            Ending::Unused
        }
        RefusalCode::Invalid => Ending::Refused(refusal.clone().into_problems().join("; ")),
        RefusalCode::Image => Ending::Refused(refusal.message.clone()),
        _ => {
            shared.pause_for(about(LEFT_ALONE));
            Ending::Lost(refusal.message.clone())
        }
    }
}

/// What the database has to hear of an attempt.
#[derive(Debug, Clone, Copy)]
enum Word<'a> {
    Result(&'a Entry),
    Refused(&'a Held, &'a str),
    GivenBack(&'a Held, Release<'a>),
}

/// Records an attempt, however long the database is away.
async fn record(shared: &Shared, held: &Held, number: i16, attempt: &Attempt, ending: Ending) {
    let interrupted = Word::GivenBack(held, Release::Interrupted("its server was ended"));
    let why = attempt.why();
    match ending {
        // It would have gone on, had we.
        Ending::Ran(entry) if entry.was_cancelled() && why == Some(Why::Drained) => {
            insist(shared, interrupted).await;
        }
        Ending::Lost(_) if why == Some(Why::Drained) => insist(shared, interrupted).await,
        Ending::Unused => insist(shared, Word::GivenBack(held, Release::Unused)).await,
        Ending::Refused(why) => insist(shared, Word::Refused(held, &why)).await,
        Ending::Lost(reason) => {
            insist(shared, Word::GivenBack(held, lost(shared, number, &reason))).await;
        }
        // Nobody here wanted it to end.
        Ending::Ran(entry) if entry.was_cancelled() && why.is_none() => {
            let reason = "its supervisor was ended";
            insist(shared, Word::GivenBack(held, lost(shared, number, reason))).await;
        }
        Ending::Ran(entry) => match entry.lost() {
            Some(reason) => {
                insist(shared, Word::GivenBack(held, lost(shared, number, reason))).await;
            }
            None => hand_over(shared, &entry).await,
        },
    }
}

/// An attempt that counts, and is repeated after a pause that doubles with each.
fn lost<'a>(shared: &Shared, number: i16, reason: &'a str) -> Release<'a> {
    let doubled = 1_u32 << number.clamp(1, 10).cast_unsigned().saturating_sub(1);
    let pause = shared.settings.retry_base_delay.saturating_mul(doubled);
    Release::Failed {
        reason,
        retry_in: about(pause.min(MAX_PAUSE)),
    }
}

/// Records a result, first on disk where the database does not take it at once.
async fn hand_over(shared: &Shared, entry: &Entry) {
    // That the database is away need not be found out once more.
    if !shared.reach.is_away() {
        let Err(error) = say(shared, Word::Result(entry)).await else {
            return;
        };
        heart::warn("cannot record a result, which waits in the journal", &error);
    }
    if let Err(error) = shared.journal.keep(entry) {
        heart::warn("cannot write the journal", &error);
        // It is here as long as this process is, and what comes next would fare no better.
        shared.is_full.store(true, Ordering::Relaxed);
    }
    insist(shared, Word::Result(entry)).await;
}

async fn say(shared: &Shared, word: Word<'_>) -> Result<(), StoreError> {
    let told = tell(shared, word);
    shared.reach.within("record an attempt", told).await
}

async fn tell(shared: &Shared, word: Word<'_>) -> Result<(), StoreError> {
    match word {
        Word::Refused(held, why) => {
            shared.store.refuse(held, "config_error", why).await?;
        }
        Word::GivenBack(held, release) => {
            shared.store.release(held, release).await?;
        }
        Word::Result(entry) => {
            let outcome = entry.outcome();
            let ended = Ended {
                outcome: &outcome,
                image: entry.image(),
                result: entry.result(),
            };
            let end = shared.store.finish(&entry.held(), ended).await?;
            if end.is_some() {
                shared.tell_of_the_end(&entry.held(), end);
            }
            shared.journal.forget(entry);
        }
    }
    Ok(())
}

/// Says something to the database until it has heard it, or there is no sense in it any more.
async fn insist(shared: &Shared, word: Word<'_>) {
    let mut pause = Duration::from_millis(100);
    loop {
        // Once at least, also when nothing more is to be done.
        shared.stop.run_until_cancelled(shared.reach.back()).await;
        let Err(error) = say(shared, word).await else {
            return;
        };
        if error.is_about_the_data() {
            heart::warn("the database refuses to record an attempt", &error);
            return;
        }
        if shared.stop.is_cancelled() {
            return;
        }
        sleep(about(pause)).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

/// Hands over what waits in the journal: of an earlier process, or of this one, which insists as well.
pub(super) async fn hand_over_what_waits(shared: &Shared) -> Result<(), JournalError> {
    for entry in shared.journal.read()? {
        match say(shared, Word::Result(&entry)).await {
            Ok(()) => {}
            Err(error) if error.is_about_the_connection() => break,
            Err(error) if error.is_about_the_data() => {
                heart::warn("the database refuses a result, which is put aside", &error);
                shared.journal.put_aside(&entry);
            }
            Err(error) => heart::warn("a result still waits in the journal", &error),
        }
    }
    Ok(())
}
