//! One job on a connection: its announcement, its bytes, its check; its output, its end, its files.

use super::Shared;
use super::journal;
use super::link::{COMPANY, Closing, Ears, Mouth, Patience};
use super::pool::Done;
use super::session::{Rights, Session};
use super::slots::{Slot, Slots};
use super::wire::{
    Accepted, End, Incoming, MAX_BYTES, MAX_DATA, MAX_END, Refusal, RefusalCode, Run, ToClient,
    ToSupervisor,
};
use crate::image::Image;
use crate::job::one_line;
use crate::job::{Artifact, JobSpec, Outcome, Termination};
use crate::sandbox::{Event, Order, SandboxError, SpoolDirectory, Word};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

/// From the announcement of a job to the last of its bytes, of which there are 65 MiB at most. It has
/// a slot meanwhile.
const ARRIVAL: Duration = Duration::from_secs(30);

/// The same where there is little to wait for.
const SMALL_ARRIVAL: Duration = Duration::from_secs(5);

/// Bytes of such a job at most.
const SMALL: u64 = 1 << 20;

/// Bytes of a job at most that is checked where it arrives: that takes less than to wake a thread for it.
const QUICK: u64 = 16 << 10;

/// From the last of the bytes of a job that is held to the word to begin: it has a slot and a sandbox
/// meanwhile.
const HELD: Duration = Duration::from_secs(5);

/// Beside its limits, what a job may take from its bytes to its end: its sandbox is ready within 30 s, takes
/// the job within 10 s, is held for 5 s at most, and each of its deadlines is held from outside 3 s later.
const BESIDE_LIMITS: Duration = Duration::from_mins(1);

/// Output on its way to a slow client, beside that which the sandbox itself keeps: 256 KiB.
const EVENTS: usize = 16;

/// Bytes of output that are still on their way when a job has ended at most: these, and what is being
/// sent.
const ON_ITS_WAY: u64 = 1 << 20;

/// How a job is run.
#[derive(Clone, Copy)]
struct Manner {
    /// All output goes to the client as it comes.
    stream: bool,
    /// The program begins when the client says so.
    hold: bool,
}

impl Manner {
    fn of(run: &Run) -> Self {
        let &Run { stream, hold, .. } = run;
        Self { stream, hold }
    }
}

/// A job that can be run.
struct Ready {
    image: Image,
    job: JobSpec,
    spool: SpoolDirectory,
}

/// What a job leaves: how it ended, and the place of its files.
type Left = Result<(Outcome, Spool), Refusal>;

/// The files that a job leaves, taken away in the background: there may be a thousand of them.
#[derive(Debug)]
struct Spool(Option<SpoolDirectory>);

impl Drop for Spool {
    fn drop(&mut self) {
        let made = self.0.take().filter(SpoolDirectory::is_made);
        if let Some(directory) = made
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn_blocking(move || drop(directory));
        }
    }
}

/// Runs a job for the client that has announced it.
pub(super) async fn run(session: &mut Session, run: Run) -> Result<(), Closing> {
    let shared = Arc::clone(&session.shared);
    // There are as many as connections: this one has its own.
    let _exchange = Slots::take(&shared.exchanges, session.peer.uid);
    let announced = run.bytes();
    if announced > MAX_BYTES {
        let message = format!(
            "a job of {announced} bytes was announced, and at most {MAX_BYTES} are allowed"
        );
        return Err(Closing::Refused(Refusal::new(
            RefusalCode::Invalid,
            message,
        )));
    }
    let slot = match admit(session) {
        Ok(slot) => slot,
        Err(refusal) => {
            // As many as connections may wait here, and it may be 2 MiB.
            drop(run);
            session.mouth.say(&ToClient::Refused(refusal)).await?;
            return arrive(&mut session.ears, announced, |_| true).await;
        }
    };
    let (image, manner) = (run.image.clone(), Manner::of(&run));
    let mut incoming = Incoming::new(run);
    arrive(&mut session.ears, announced, |bytes| incoming.take(bytes)).await?;
    match prepare(Arc::clone(&shared), image, announced, incoming).await {
        Ok(ready) => attend(session, ready, slot, manner).await,
        Err(refusal) => {
            drop(slot);
            session.mouth.say(&ToClient::Refused(refusal)).await
        }
    }
}

/// A slot for a job of this client, or why there is none.
fn admit(session: &Session) -> Result<Slot, Refusal> {
    let shared = &session.shared;
    let slot = match session.rights {
        Rights::All => Slots::take(&shared.jobs, session.peer.uid),
        Rights::NoJobs => None,
    };
    // Not before the slot is taken: whoever drains then waits for it.
    if shared.stop.is_draining() {
        let message = "the supervisor ends and takes no more jobs";
        return Err(Refusal::new(RefusalCode::Draining, message));
    }
    slot.ok_or_else(|| {
        let retry_after_ms = Some(shared.figures.turned_away());
        let uid = session.peer.uid;
        shared
            .journal
            .caused(|| format!("turned a job of the user {uid} away: there are as many as may be"));
        let message = match session.rights {
            Rights::All => "as many jobs run as may be: come back",
            Rights::NoJobs => {
                "there are as many connections as may be, and this one is kept for looking and \
                 draining: come back"
            }
        };
        Refusal {
            retry_after_ms,
            ..Refusal::new(RefusalCode::Busy, message)
        }
    })
}

/// Takes the bytes that were announced, of which `take` says whether they may be.
async fn arrive(
    ears: &mut Ears,
    announced: u64,
    mut take: impl FnMut(&[u8]) -> bool,
) -> Result<(), Closing> {
    let mut missing = announced;
    let all = async {
        while missing > 0 {
            match ears.next().await? {
                Some(ToSupervisor::Data(bytes)) => {
                    let left = missing.checked_sub(bytes.len() as u64);
                    missing = left.filter(|_| take(&bytes)).ok_or_else(|| {
                        Closing::violation("more bytes than the job has announced")
                    })?;
                }
                Some(_) => {
                    return Err(Closing::violation("the bytes of the job were expected"));
                }
                None => return Err(Closing::Gone),
            }
        }
        Ok(())
    };
    let limit = if announced <= SMALL {
        SMALL_ARRIVAL
    } else {
        ARRIVAL
    };
    timeout(limit, all).await.unwrap_or_else(|_| {
        Err(Closing::violation(format_args!(
            "the bytes of the job were not there within {limit:?}"
        )))
    })
}

/// Finds the image of a job, and checks the job against root's maxima.
async fn prepare(
    shared: Arc<Shared>,
    image: String,
    announced: u64,
    incoming: Incoming,
) -> Result<Ready, Refusal> {
    if announced <= QUICK
        && let Some(image) = shared.known.unchanged(&image)
    {
        return check(&shared, image, incoming);
    }
    let checked = tokio::task::spawn_blocking(move || {
        let image = shared.known.find(&image).map_err(|error| {
            shared.journal.caused(|| one_line(&error));
            Refusal::new(RefusalCode::Image, error.for_strangers())
        })?;
        check(&shared, image, incoming)
    });
    checked.await.unwrap_or_else(|_| Err(Refusal::internal()))
}

fn check(shared: &Shared, image: Image, incoming: Incoming) -> Result<Ready, Refusal> {
    let request = incoming.into_request().ok_or_else(|| {
        let problem = "the program or its input is not UTF-8: send it as UTF-8";
        Refusal::invalid(vec![problem.to_owned()])
    })?;
    let job = JobSpec::check(request, &shared.maxima)
        .map_err(|error| Refusal::invalid(error.problems))?;
    Ok(Ready {
        image,
        job,
        spool: shared.sandboxes.spool(),
    })
}

/// Runs a job that was accepted, and tells its client all that becomes of it.
async fn attend(
    session: &mut Session,
    ready: Ready,
    slot: Slot,
    Manner { stream, hold }: Manner,
) -> Result<(), Closing> {
    let limits = &ready.job.limits;
    let accepted = Accepted {
        stdout_limit: limits.stdout_bytes,
        stderr_limit: limits.stderr_bytes,
    };
    let latest = Instant::now() + limits.startup + limits.execution + BESIDE_LIMITS;
    let patience = Patience::until(latest, ON_ITS_WAY);
    session.mouth.set_patience(patience.clone());
    let image = ready.image.manifest.name.to_string();
    let (sender, events) = mpsc::channel(EVENTS);
    let (report, left) = oneshot::channel();
    let cancel = session.shared.stop.now.child_token();
    let (word, begin) = watch::channel(None);
    let task = Task {
        shared: Arc::clone(&session.shared),
        ready,
        slot,
        events: stream.then_some(sender),
        begin: hold.then_some(begin),
        cancel: cancel.clone(),
        ended: patience.ended.drop_guard(),
        report,
    };
    tokio::spawn(task.run());
    // However this ends, the job ends with it.
    let _job = cancel.clone().drop_guard();
    if hold {
        hear_the_word(&mut session.ears).await?;
        word.send_replace(Some(Instant::now().into_std()));
    }
    session.mouth.add(&ToClient::Accepted(accepted)).await?;
    let left = follow(session, events, left, &cancel).await?;
    session.mouth.set_patience(Patience::none());
    match left {
        Ok((outcome, spool)) => {
            let patience = Patience::with(bytes_of(&outcome));
            session.mouth.set_patience(patience);
            let told = tell(&mut session.mouth, outcome, &image, stream).await;
            drop(spool);
            session.mouth.set_patience(Patience::none());
            told
        }
        Err(refusal) => session.mouth.say(&ToClient::Refused(refusal)).await,
    }
}

/// Waits until the client lets the program of its job begin.
async fn hear_the_word(ears: &mut Ears) -> Result<(), Closing> {
    let message = timeout(HELD, ears.next()).await.unwrap_or_else(|_| {
        Err(Closing::violation(format_args!(
            "a job was held, and not begun within {HELD:?}"
        )))
    })?;
    match message {
        Some(ToSupervisor::Begin) => Ok(()),
        Some(_) => Err(Closing::violation(
            "nothing but the word to begin may come while a job is held",
        )),
        None => Err(Closing::Gone),
    }
}

/// Passes output on until the job has ended, while the client may cancel it or go away.
async fn follow(
    session: &mut Session,
    mut events: mpsc::Receiver<Event>,
    left: oneshot::Receiver<Left>,
    cancel: &CancellationToken,
) -> Result<Left, Closing> {
    let Session { ears, mouth, .. } = session;
    let output = async {
        let mut company = pin!(sleep(COMPANY));
        let (mut left, mut alone, mut ended) = (pin!(left), true, false);
        loop {
            tokio::select! {
                biased;
                event = events.recv(), if !ended => {
                    let Some(event) = event else {
                        ended = true;
                        continue;
                    };
                    mouth.add(&ToClient::from(event)).await?;
                    if events.is_empty() {
                        mouth.flush().await?;
                    }
                }
                left = &mut left, if ended => {
                    return Ok(left.unwrap_or_else(|_| Err(Refusal::internal())));
                }
                () = &mut company, if alone => {
                    alone = false;
                    mouth.flush().await?;
                }
            }
        }
    };
    let orders = async {
        loop {
            match ears.next().await {
                Ok(Some(ToSupervisor::Cancel)) => cancel.cancel(),
                Ok(Some(_)) => {
                    let what = "nothing but a cancel may come while a job runs";
                    return Closing::violation(what);
                }
                Ok(None) => return Closing::Gone,
                Err(closing) => return closing,
            }
        }
    };
    tokio::select! {
        biased;
        closing = orders => Err(closing),
        left = output => left,
    }
}

impl From<Event> for ToClient {
    fn from(event: Event) -> Self {
        match event {
            Event::Stdout(bytes) => Self::Stdout(bytes),
            Event::Stderr(bytes) => Self::Stderr(bytes),
        }
    }
}

/// What of an outcome is sent at most.
fn bytes_of(outcome: &Outcome) -> u64 {
    let kept = outcome.stdout.bytes.len() + outcome.stderr.bytes.len() + MAX_END;
    let files = outcome.artifacts.iter().map(|file| file.size_bytes);
    files.fold(kept as u64, u64::saturating_add)
}

/// Tells how a job ended, and sends what it left.
async fn tell(
    mouth: &mut Mouth,
    outcome: Outcome,
    image: &str,
    streamed: bool,
) -> Result<(), Closing> {
    if !streamed {
        for bytes in outcome.stdout.bytes.chunks(MAX_DATA) {
            mouth.add(&ToClient::Stdout(bytes.to_vec())).await?;
        }
        for bytes in outcome.stderr.bytes.chunks(MAX_DATA) {
            mouth.add(&ToClient::Stderr(bytes.to_vec())).await?;
        }
    }
    let end = Box::new(End::new(&outcome, image));
    mouth.say(&ToClient::End(end)).await?;
    for artifact in &outcome.artifacts {
        send_file(mouth, artifact).await?;
    }
    mouth.flush().await
}

/// Sends a file as long as it was announced. One that is not cannot be told: the connection ends.
async fn send_file(mouth: &mut Mouth, artifact: &Artifact) -> Result<(), Closing> {
    let mut missing = artifact.size_bytes;
    if missing == 0 {
        return Ok(());
    }
    let Ok(mut file) = tokio::fs::File::open(&artifact.path).await else {
        return Err(Closing::Gone);
    };
    while missing > 0 {
        let most = usize::try_from(missing).unwrap_or(MAX_DATA).min(MAX_DATA);
        let mut bytes = vec![0; most];
        let read = file.read(&mut bytes).await.unwrap_or(0);
        if read == 0 {
            return Err(Closing::Gone);
        }
        bytes.truncate(read);
        missing -= read as u64;
        mouth.add(&ToClient::Data(bytes)).await?;
    }
    Ok(())
}

/// What goes on whether its client listens or not: a job, until nothing is left of it.
struct Task {
    shared: Arc<Shared>,
    ready: Ready,
    slot: Slot,
    events: Option<mpsc::Sender<Event>>,
    begin: Option<Word>,
    cancel: CancellationToken,
    ended: DropGuard,
    report: oneshot::Sender<Left>,
}

impl Task {
    async fn run(self) {
        let begun = Instant::now();
        let Ready { image, job, spool } = self.ready;
        let order = Order {
            image: &image.path,
            job: &job,
            spool: &spool,
            events: self.events,
            begin: self.begin,
            cancel: self.cancel,
        };
        let result = self.shared.pool.run(&image, order).await;
        self.shared.figures.job_ended(begun.elapsed());
        drop(self.ended);
        let (left, clearing) = match result {
            Ok(Done {
                mut outcome,
                clearing,
            }) => {
                if let Termination::SandboxLost(reason) = &mut outcome.termination {
                    let id = &outcome.id;
                    let line = || format!("the sandbox `{id}` was lost: {reason}");
                    self.shared.journal.caused(line);
                    *reason = without_causes(reason);
                }
                (Ok((outcome, Spool(Some(spool)))), Some(clearing))
            }
            Err(error) => {
                drop(Spool(Some(spool)));
                (Err(failed(&error)), None)
            }
        };
        // The next job need not wait for the end of this one's sandbox, as long as there are few of those.
        // Before the client hears of it: it may come back at once.
        let place = Slots::take(&self.shared.clearing, self.slot.uid());
        let slot = if place.is_some() {
            drop(self.slot);
            None
        } else {
            Some(self.slot)
        };
        // Without a client nobody wants to know, and the files go.
        drop(self.report.send(left));
        if let Some(clearing) = clearing {
            match clearing.await {
                Ok(Ok(took)) => self.shared.figures.killed(took),
                Ok(Err(error)) => journal::error(&one_line(&error)),
                Err(error) => journal::error(&one_line(&error)),
            }
        }
        drop((place, slot));
    }
}

/// What was lost of a sandbox. Its causes, and what the runtime has said, have places of this host in
/// them.
fn without_causes(reason: &str) -> String {
    let first = reason.split(": ").next().unwrap_or_default();
    format!("{first}; the supervisor's log says more")
}

fn failed(error: &SandboxError) -> Refusal {
    journal::error(&one_line(error));
    failure(error)
}

/// What a client hears of it: which step, and nothing of the host.
fn failure(error: &SandboxError) -> Refusal {
    match error {
        // Whatever the runtime has said.
        SandboxError::NotReady { .. } => Refusal::failed("a sandbox was not ready to take a job"),
        error => Refusal::failed(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::TeardownError;
    use crate::sys::cgroup::CgroupError;

    #[test]
    fn a_client_hears_which_step_failed_and_nothing_of_the_host() {
        let cgroup = CgroupError::NotHeld {
            path: "/sys/fs/cgroup/secret".into(),
            wanted: "1".to_owned(),
            found: "2".to_owned(),
        };
        assert!(one_line(&cgroup).contains("secret"));
        let id = "tako-1".to_owned();
        let source = TeardownError::Kill(cgroup);
        let teardown = failure(&SandboxError::Teardown { id, source }).message;
        assert!(teardown.contains("cannot clear the sandbox `tako-1` away"));
        assert!(!teardown.contains("secret"), "{teardown}");
        let why = "runsc says: /srv/secret".to_owned();
        let not_ready = failure(&SandboxError::NotReady { why }).message;
        assert!(not_ready.contains("was not ready to take a job"));
        assert!(!not_ready.contains("secret"), "{not_ready}");
        assert_eq!(
            without_causes("its CPU limit could not be applied: cannot write `/srv/secret`"),
            "its CPU limit could not be applied; the supervisor's log says more"
        );
    }
}
