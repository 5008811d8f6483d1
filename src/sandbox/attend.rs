//! Attending a job: hand it over, take what the guest sends, hold the deadlines, know the end.
//!
//! One loop waits for everything at once, so that no slow part (a guest that does not read, a
//! receiver that does not take output) can hold up a deadline.

use super::Order;
use super::confinement::ConfinementError;
use super::guest;
use super::spool::{Files, Spool, SpoolError};
use super::start::Sandbox;
use super::step::Step;
use crate::job::{Captured, Ending, Evidence, Exception, Killed, Limits, Phase};
use crate::sys::process;
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::time::Duration;
use tako_guest::{EndedBy, Exit, ExitStatus, FrameError, PROTOCOL, ToHost};
use tokio::io::AsyncWriteExt;
use tokio::process::ChildStdin;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval_at, sleep_until};

/// How long a sandbox may take until it waits for its job. A cold start takes 0.2 s.
const BOOT: Duration = Duration::from_secs(30);

/// How long a job may take to be written into the guest, 65 MiB at most, and to be taken up by it; half of it
/// at most may be spent in being held. One that does not answer has not begun the job.
const HAND_OVER: Duration = Duration::from_secs(10);

/// From a time limit to the backstop. Init has sent SIGTERM at the limit and SIGKILL half a second
/// later, and has had two seconds to collect `/output`.
const BACKSTOP: Duration = Duration::from_secs(3);

/// From the program's end to the end of the collection: two seconds, and some to transfer.
const COLLECTION: Duration = Duration::from_secs(3);

/// From a cancel to the backstop, for what the program wrote until then.
///
/// Half of the second in which everything has to be dead, even with a sentry that is stopped.
const CANCEL: Duration = Duration::from_millis(500);

/// How often the kernel is asked whether it killed a process because the memory limit was reached.
const MEMORY_CHECK: Duration = Duration::from_millis(200);

/// From such a kill to the backstop, unless the guest says how the program ended.
///
/// A sentry whose guest process the kernel took away may wait for it for ever, and spin: seen in 3 of
/// 16 runs with gVisor 20240729. From outside this looks like a program that copes with the loss of a
/// process, which therefore has to end within this time.
const OUT_OF_MEMORY: Duration = Duration::from_secs(2);

/// From the end of the runtime to the end of what the guest sent before.
const DRAIN: Duration = Duration::from_secs(2);

/// Output above its limit that may be on its way when init kills the program.
const OUTPUT_SLACK: u64 = 1 << 20;

/// Events that wait for a slow receiver at most: 1 MiB of output.
const MAX_PENDING: usize = 64;

/// Output of the program, as it comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Bytes of standard output.
    Stdout(Vec<u8>),
    /// Bytes of standard error.
    Stderr(Vec<u8>),
}

/// What is known of a job when its sandbox is about to be cleared away.
pub(super) struct Attended {
    pub(super) evidence: Evidence,
    pub(super) exception: Option<Exception>,
    pub(super) stdout: Captured,
    pub(super) stderr: Captured,
    pub(super) files: Files,
    /// The guest has taken the job up, or said something of it.
    pub(super) touched: bool,
    /// The guest has told the whole story, to its end.
    pub(super) complete: bool,
    pub(super) ready_at: Option<std::time::Instant>,
    pub(super) startup_ms: Option<u64>,
    pub(super) execution_ms: Option<u64>,
    /// Output that nobody has taken yet.
    pub(super) pending: VecDeque<Event>,
}

/// Why attending stopped before the guest was done. The sandbox's fault, not the program's.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("it was not ready within {BOOT:?}")]
    NotReady,
    #[error("it did not take its job within {HAND_OVER:?}")]
    HandOverTime,
    #[error("its program would not be confined")]
    Confinement { source: ConfinementError },
    #[error("its CPU limit could not be applied")]
    Cpu {
        source: crate::sys::cgroup::CgroupError,
    },
    #[error("it speaks version {found} of the guest protocol and not {PROTOCOL}")]
    Version { found: u16 },
    #[error("it does not speak the guest protocol")]
    Frame { source: FrameError },
    #[error("it sent `{frame}` out of order")]
    OutOfOrder { frame: &'static str },
    #[error("its files cannot be taken")]
    Files { source: SpoolError },
    #[error("init reports: {text}")]
    Init { text: String },
    #[error("it ended before its program was reported to end")]
    Ended,
    #[error("it cannot be written to")]
    Write { source: io::Error },
    #[error("it cannot be read from")]
    Read { source: io::Error },
}

/// Where a job stands, as far as the guest has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Booting,
    HandingOver,
    Starting,
    Running,
    Collecting,
    Done,
}

struct Attendance<'a> {
    limits: &'a Limits,
    events: Option<&'a mpsc::Sender<Event>>,
    stage: Stage,
    /// The runtime has ended.
    orphaned: bool,
    /// The kernel has killed a process because the memory limit was reached.
    out_of_memory: bool,
    deadline: Instant,
    spool: Spool<'a>,
    known: Attended,
}

/// Attends the job of `order` in a sandbox that was just started, until nothing more is to come.
pub(super) async fn attend(sandbox: &mut Sandbox, order: &Order<'_>) -> Attended {
    let attendance = Attendance::new(order, Stage::Booting, BOOT);
    attendance.run(sandbox, order).await
}

/// Like [`attend`], in a sandbox that waits for a job.
pub(super) async fn attend_ready(sandbox: &mut Sandbox, order: &Order<'_>) -> Attended {
    let attendance = Attendance::new(order, Stage::HandingOver, HAND_OVER);
    attendance.run(sandbox, order).await
}

/// Waits until a sandbox that was just started can take a job, or be told to hold an interpreter.
pub(super) async fn await_ready(sandbox: &mut Sandbox) -> Result<(), String> {
    let ready = expect(sandbox, |frame| match frame {
        ToHost::Ready { protocol: PROTOCOL } => Ok(()),
        ToHost::Ready { protocol } => Err(Fault::Version { found: *protocol }),
        frame => Err(out_of_order(frame)),
    });
    let ready = within_boot(ready).await;
    explained(sandbox, ready).await
}

/// Lets a sandbox that is ready hold an interpreter with this environment.
pub(super) async fn hold(
    sandbox: &mut Sandbox,
    environment: &[(String, String)],
) -> Result<(), String> {
    let held = ask(sandbox, guest::hold_frames(environment)).await;
    explained(sandbox, held).await
}

/// Lets a sandbox that holds one, or is restored from one that did, do what it will do with a job.
pub(super) async fn rehearse(
    sandbox: &mut Sandbox,
    environment: &[(String, String)],
) -> Result<(), String> {
    let held = ask(sandbox, guest::rehearsal_frames(environment)).await;
    explained(sandbox, held).await
}

/// Sends what is answered with `Held`, and waits for that.
async fn ask(sandbox: &mut Sandbox, frames: io::Result<Vec<u8>>) -> Result<(), Fault> {
    let asked = async {
        let frames = frames.map_err(|source| Fault::Write { source })?;
        if let Some(stdin) = &mut sandbox.stdin {
            // A guest that does not read has a reason, and it is still to be read.
            stdin.write_all(&frames).await.ok();
        }
        expect(sandbox, |frame| match frame {
            ToHost::Held => Ok(()),
            frame => Err(out_of_order(frame)),
        })
        .await
    };
    within_boot(asked).await
}

async fn within_boot(done: impl Future<Output = Result<(), Fault>>) -> Result<(), Fault> {
    tokio::time::timeout(BOOT, done)
        .await
        .unwrap_or(Err(Fault::NotReady))
}

/// The next frame, which `check` has to be content with.
async fn expect(
    sandbox: &mut Sandbox,
    check: impl Fn(&ToHost<'_>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    loop {
        let next = sandbox.guest.next();
        match next.map_err(|source| Fault::Frame { source })? {
            Some(ToHost::Fault(text)) => return Err(reported(text)),
            Some(frame) => return check(&frame),
            None => {}
        }
        let read = sandbox.guest.fill().await;
        if read.map_err(|source| Fault::Read { source })? == 0 {
            return Err(Fault::Ended);
        }
    }
}

async fn explained(sandbox: &mut Sandbox, done: Result<(), Fault>) -> Result<(), String> {
    match done {
        Ok(()) => Ok(()),
        Err(fault) => Err(explain(sandbox, &fault).await),
    }
}

fn out_of_order(frame: &ToHost<'_>) -> Fault {
    Fault::OutOfOrder { frame: name(frame) }
}

fn reported(text: &str) -> Fault {
    Fault::Init {
        text: text.chars().take(300).collect(),
    }
}

/// The fault, its causes, and what the runtime said.
async fn explain(sandbox: &mut Sandbox, fault: &Fault) -> String {
    let mut text = fault.to_string();
    let mut cause = std::error::Error::source(fault);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    // Dead first: a runtime that hangs holds its streams open. An error comes back in the teardown.
    let killed = process::blocking(|| sandbox.kill());
    drop(killed);
    let complaint = sandbox.complaint().await;
    if complaint.is_empty() {
        text
    } else {
        format!("{text}: {complaint}")
    }
}

impl<'a> Attendance<'a> {
    fn new(order: &'a Order<'_>, stage: Stage, time: Duration) -> Self {
        let limits = &order.job.limits;
        let known = Attended {
            evidence: Evidence::default(),
            exception: None,
            stdout: Captured::default(),
            stderr: Captured::default(),
            files: Files::default(),
            touched: false,
            complete: false,
            ready_at: None,
            startup_ms: None,
            execution_ms: None,
            pending: VecDeque::new(),
        };
        Self {
            limits,
            events: order.events.as_ref(),
            stage,
            orphaned: false,
            out_of_memory: false,
            deadline: Instant::now() + time,
            spool: Spool::new(order.spool, limits),
            known,
        }
    }

    async fn run(mut self, sandbox: &mut Sandbox, order: &Order<'_>) -> Attended {
        if let Err(fault) = self.attend(sandbox, order).await {
            self.known.evidence.fault = Some(explain(sandbox, &fault).await);
        }
        sandbox.reached(Step::Attended);
        let mut known = self.known;
        known.complete = self.stage == Stage::Done && known.evidence.ending.is_some();
        known.files = self.spool.finish();
        known.files.truncated |= self.stage != Stage::Done;
        known
    }

    async fn attend(&mut self, sandbox: &mut Sandbox, order: &Order<'_>) -> Result<(), Fault> {
        // Until the guest is ready there is nothing to hand over to.
        let mut link = Link::Idle(sandbox.stdin.take());
        let mut cancelled = pin!(order.cancel.cancelled());
        let (mut handed_over, mut cancelling) = (false, false);
        // Not at once: a short program has ended by then.
        let mut memory_checks = interval_at(Instant::now() + MEMORY_CHECK, MEMORY_CHECK);
        // What a guest that waits has said on its own comes before anything that it is asked.
        self.take_frames(sandbox)?;
        while self.stage != Stage::Done {
            if !handed_over
                && self.stage == Stage::HandingOver
                && let Link::Idle(stdin) = &mut link
                && let Some(stdin) = stdin.take()
            {
                handed_over = true;
                self.known.ready_at = Some(std::time::Instant::now());
                sandbox.reached(Step::Ready);
                sandbox.has_started();
                sandbox
                    .check_confinement()
                    .map_err(|source| Fault::Confinement { source })?;
                sandbox
                    .begin_job(self.limits.millicpus)
                    .map_err(|source| Fault::Cpu { source })?;
                link = Link::Writing(Box::pin(guest::hand_over(stdin, order)));
            }
            tokio::select! {
                biased;
                () = sleep_until(self.deadline) => {
                    if self.stage == Stage::HandingOver {
                        self.hear_the_last(sandbox).await?;
                    }
                    return self.overdue();
                }
                () = &mut cancelled, if !cancelling => {
                    cancelling = true;
                    if !self.cancel(&mut link).await {
                        return Ok(());
                    }
                }
                handed = link.written() => {
                    // A guest that stopped reading has a reason, and it is still to be read.
                    link = Link::Idle(handed.ok());
                    sandbox.reached(Step::HandedOver);
                }
                _ = sandbox.runtime.wait(), if !self.orphaned => self.abandon(sandbox),
                _ = memory_checks.tick(), if !self.out_of_memory => self.check_memory(sandbox),
                sent = deliver(self.events, &self.known.pending), if !self.known.pending.is_empty() => {
                    self.delivered(sent);
                }
                read = sandbox.guest.fill(), if self.has_room() => {
                    match read.map_err(|source| Fault::Read { source })? {
                        0 => return self.ended(),
                        _ => self.take_frames(sandbox)?,
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether more may be read: a slow receiver holds the program back. Not any more once the runtime
    /// has ended; what a pipe holds is little, and its end must be seen.
    fn has_room(&self) -> bool {
        self.orphaned || self.known.pending.len() < MAX_PENDING
    }

    /// Whether the job was begun decides whether another sandbox may take it: so this one is killed, and what
    /// it has said until then is taken.
    async fn hear_the_last(&mut self, sandbox: &mut Sandbox) -> Result<(), Fault> {
        // An error comes back in the teardown, which kills again.
        drop(process::blocking(|| sandbox.kill()));
        while let Ok(Ok(1..)) = tokio::time::timeout(DRAIN, sandbox.guest.fill()).await {
            self.take_frames(sandbox)?;
        }
        if self.stage < Stage::Collecting {
            self.stage = Stage::HandingOver;
        }
        Ok(())
    }

    /// A deadline is over: ours, held from outside, whatever the guest does.
    fn overdue(&mut self) -> Result<(), Fault> {
        let killed = match self.stage {
            _ if self.orphaned => return self.ended(),
            // The counter says how it ended.
            _ if self.out_of_memory => return Ok(()),
            Stage::Booting => return Err(Fault::NotReady),
            Stage::HandingOver => return Err(Fault::HandOverTime),
            Stage::Starting => Killed::Deadline(Phase::Startup),
            Stage::Running => Killed::Deadline(Phase::Execution),
            // How the program ended is known; only files are missing.
            Stage::Collecting | Stage::Done => return Ok(()),
        };
        self.known.evidence.killed.get_or_insert(killed);
        Ok(())
    }

    /// Asks init to end the program; false when there is nothing to wait for.
    async fn cancel(&mut self, link: &mut Link<'_>) -> bool {
        if self.stage >= Stage::Collecting {
            // It has ended by itself already.
            return true;
        }
        self.known.evidence.killed.get_or_insert(Killed::Cancelled);
        self.deadline = self.deadline.min(Instant::now() + CANCEL);
        match link {
            Link::Idle(Some(stdin)) if self.stage >= Stage::Starting => {
                // A guest that does not read is not waited for.
                tokio::time::timeout(CANCEL, guest::send_cancel(stdin))
                    .await
                    .is_ok_and(|sent| sent.is_ok())
            }
            _ => false,
        }
    }

    fn check_memory(&mut self, sandbox: &Sandbox) {
        // An error comes back in the teardown, which reads the counter too.
        if sandbox.oom_kills().is_ok_and(|kills| kills > 0) {
            self.out_of_memory = true;
            if self.stage < Stage::Collecting {
                self.deadline = self.deadline.min(Instant::now() + OUT_OF_MEMORY);
            }
        }
    }

    /// The runtime has ended. Whatever it started ends with it; then the stream ends, after all that was
    /// sent before.
    fn abandon(&mut self, sandbox: &mut Sandbox) {
        self.orphaned = true;
        self.deadline = self.deadline.min(Instant::now() + DRAIN);
        // An error comes back in the teardown, which kills again.
        let killed = process::blocking(|| sandbox.kill());
        drop(killed);
    }

    /// Nobody is left to write to us.
    fn ended(&self) -> Result<(), Fault> {
        if self.stage >= Stage::Collecting {
            Ok(())
        } else {
            Err(Fault::Ended)
        }
    }

    fn enter(&mut self, stage: Stage, time: Duration) {
        self.stage = stage;
        // A cancel has shortened the deadline; nothing lengthens it again. Only the news that the
        // program has ended lengthens it after an out-of-memory kill.
        let cancelled = self.known.evidence.killed == Some(Killed::Cancelled);
        if !cancelled && (!self.out_of_memory || stage >= Stage::Collecting) {
            self.deadline = Instant::now() + time;
        }
    }

    /// The receiver took an event, or has gone away: then nobody wants the others.
    fn delivered(&mut self, sent: bool) {
        if sent {
            self.known.pending.pop_front();
        } else {
            self.events = None;
            self.known.pending.clear();
        }
    }

    /// Tells of the steps between a stage and the present one, which some frames at once may span.
    fn tell(&self, before: Stage, sandbox: &Sandbox) {
        for (stage, step) in [
            (Stage::Running, Step::Running),
            (Stage::Collecting, Step::Ended),
        ] {
            if before < stage && stage <= self.stage {
                sandbox.reached(step);
            }
        }
    }

    fn take_frames(&mut self, sandbox: &mut Sandbox) -> Result<(), Fault> {
        let before = self.stage;
        while self.stage != Stage::Done
            && let Some(frame) = sandbox
                .guest
                .next()
                .map_err(|source| Fault::Frame { source })?
        {
            self.take(frame)?;
        }
        self.tell(before, sandbox);
        Ok(())
    }

    fn take(&mut self, frame: ToHost<'_>) -> Result<(), Fault> {
        match (self.stage, frame) {
            (Stage::Booting, ToHost::Ready { protocol: PROTOCOL }) => {
                self.enter(Stage::HandingOver, HAND_OVER);
            }
            (Stage::Booting, ToHost::Ready { protocol }) => {
                return Err(Fault::Version { found: protocol });
            }
            (Stage::HandingOver, ToHost::Started) => {
                self.known.touched = true;
                self.enter(Stage::Starting, self.limits.startup + BACKSTOP);
            }
            (Stage::HandingOver | Stage::Starting, ToHost::Running { startup_ms }) => {
                self.known.touched = true;
                self.known.startup_ms = Some(startup_ms);
                self.enter(Stage::Running, self.limits.execution + BACKSTOP);
            }
            (Stage::HandingOver | Stage::Starting | Stage::Running, ToHost::Stdout(bytes)) => {
                self.known.touched = true;
                self.known.stdout.push(bytes, self.limits.stdout_bytes);
                self.pass_on(|| Event::Stdout(bytes.to_vec()));
            }
            (Stage::HandingOver | Stage::Starting | Stage::Running, ToHost::Stderr(bytes)) => {
                self.known.touched = true;
                self.known.stderr.push(bytes, self.limits.stderr_bytes);
                self.pass_on(|| Event::Stderr(bytes.to_vec()));
            }
            (Stage::HandingOver | Stage::Starting | Stage::Running, ToHost::Exit(exit)) => {
                self.exited(&exit);
            }
            (Stage::Collecting, frame) => {
                return self
                    .collect(&frame)
                    .map_err(|source| Fault::Files { source });
            }
            (_, ToHost::Fault(text)) => return Err(reported(text)),
            (_, frame) => return Err(out_of_order(&frame)),
        }
        self.hold_output_limit();
        Ok(())
    }

    fn pass_on(&mut self, event: impl FnOnce() -> Event) {
        if self.events.is_some() {
            self.known.pending.push_back(event());
        }
    }

    /// Init holds the limit; a guest that does not is killed from here.
    fn hold_output_limit(&mut self) {
        let total = self.known.stdout.total + self.known.stderr.total;
        if total > self.limits.output_bytes + OUTPUT_SLACK {
            self.known
                .evidence
                .killed
                .get_or_insert(Killed::OutputLimit);
            self.spool.miss();
            self.stage = Stage::Done;
        }
    }

    fn exited(&mut self, exit: &Exit<'_>) {
        self.known.touched = true;
        let evidence = &mut self.known.evidence;
        evidence.ending = Some(match exit.status {
            ExitStatus::Exited(code) => Ending::Exited(code),
            ExitStatus::Signalled(signal) => Ending::Signalled(signal),
        });
        if let Some(by) = exit.ended_by {
            evidence.killed.get_or_insert(match by {
                EndedBy::StartupLimit => Killed::Deadline(Phase::Startup),
                EndedBy::ExecutionLimit => Killed::Deadline(Phase::Execution),
                EndedBy::OutputLimit => Killed::OutputLimit,
                EndedBy::Cancel => Killed::Cancelled,
            });
        }
        self.known.startup_ms = exit.startup_ms;
        self.known.execution_ms = exit.startup_ms.map(|_| exit.execution_ms);
        self.known.exception = exit.exception.as_ref().map(|exception| Exception {
            classes: exception.classes.split(' ').map(str::to_owned).collect(),
            message: exception.message.to_owned(),
        });
        self.enter(Stage::Collecting, COLLECTION);
    }

    fn collect(&mut self, frame: &ToHost<'_>) -> Result<(), SpoolError> {
        match frame {
            ToHost::File { name, .. } => self.spool.begin(name),
            ToHost::Data(bytes) => self.spool.data(bytes),
            ToHost::FileEnd { complete } => self.spool.end(*complete),
            ToHost::Skipped { name, reason } => {
                self.spool.skip(name, *reason);
                Ok(())
            }
            ToHost::Done { skipped } => {
                if *skipped > 0 {
                    self.spool.miss();
                }
                self.stage = Stage::Done;
                Ok(())
            }
            _ => Err(SpoolError::OutOfOrder),
        }
    }
}

/// The connection to the guest's stdin: idle, or a job being written.
enum Link<'a> {
    Idle(Option<ChildStdin>),
    Writing(Pin<Box<dyn Future<Output = io::Result<ChildStdin>> + Send + 'a>>),
}

impl Link<'_> {
    /// Resolves once when the job has been written; never while idle.
    async fn written(&mut self) -> io::Result<ChildStdin> {
        match self {
            Link::Idle(_) => std::future::pending().await,
            Link::Writing(writing) => writing.as_mut().await,
        }
    }
}

/// Offers the first pending event; whether somebody took it.
async fn deliver(events: Option<&mpsc::Sender<Event>>, pending: &VecDeque<Event>) -> bool {
    match (events, pending.front()) {
        (Some(events), Some(event)) => match events.reserve().await {
            Ok(permit) => {
                permit.send(event.clone());
                true
            }
            Err(_) => false,
        },
        _ => false,
    }
}

fn name(frame: &ToHost<'_>) -> &'static str {
    match frame {
        ToHost::Ready { .. } => "ready",
        ToHost::Started => "started",
        ToHost::Running { .. } => "running",
        ToHost::Stdout(_) => "stdout",
        ToHost::Stderr(_) => "stderr",
        ToHost::Exit(_) => "exit",
        ToHost::File { .. } => "file",
        ToHost::Data(_) => "data",
        ToHost::FileEnd { .. } => "file end",
        ToHost::Skipped { .. } => "skipped",
        ToHost::Done { .. } => "done",
        ToHost::Fault(_) => "fault",
        ToHost::Held => "held",
    }
}
