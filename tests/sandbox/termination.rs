//! How a job ended is told by evidence: sixty endings, in no order, two at a time.

use crate::host::{Company, Host, Part, Ran, container, job, request, script, signal};
use nix::sys::signal::Signal;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tako_vm::job::{InputFile, JobRequest, JobSpec, Phase, Termination};
use tokio::sync::mpsc;

/// One job, what happens to it, and how it has to be reported.
struct Case {
    name: String,
    job: JobSpec,
    event: Event,
    runsc: Option<&'static str>,
    expected: Expected,
}

/// What happens to a job from outside.
#[derive(Clone, Copy)]
enum Event {
    Nothing,
    CancelAtOnce,
    CancelWhenUp,
    Kill(&'static [Part]),
}

#[derive(Clone)]
struct Expected {
    termination: Termination,
    error_type: Option<&'static str>,
    phase: &'static str,
}

impl Case {
    fn new(name: &str, job: JobSpec, termination: Termination, error_type: &'static str) -> Self {
        let phase = match termination {
            Termination::Exited(0) => "completed",
            Termination::TimedOut(Phase::Startup) => "startup",
            _ => "execution",
        };
        let error_type = Some(error_type).filter(|kind| !kind.is_empty());
        Self {
            name: name.to_owned(),
            job,
            event: Event::Nothing,
            runsc: None,
            expected: Expected {
                termination,
                error_type,
                phase,
            },
        }
    }

    fn with(mut self, event: Event) -> Self {
        self.event = event;
        self
    }

    fn before_the_interpreter_was_up(mut self) -> Self {
        self.expected.phase = "startup";
        self
    }

    /// What is wrong with the report, if anything is.
    async fn check(self) -> Result<(), String> {
        let scripts = tempfile::tempdir().unwrap();
        let host = match self.runsc {
            None => Host::new(),
            Some(body) => Host::with_runsc(&script(scripts.path(), body)),
        };
        let ran = self.run(&host).await;
        let (found, expected) = (&ran.outcome, &self.expected);
        let same = match (&found.termination, &expected.termination) {
            (Termination::SandboxLost(why), Termination::SandboxLost(part)) => why.contains(part),
            (found, expected) => found == expected,
        };
        let phase = found.timing.phase_at_exit;
        if same && ran.error_type() == expected.error_type && phase == expected.phase {
            return Ok(());
        }
        Err(format!(
            "{}: {:?} {:?} {phase} after {:?}, and not {:?} {:?} {}\n  {}",
            self.name,
            found.termination,
            ran.error_type(),
            ran.took,
            expected.termination,
            expected.error_type,
            expected.phase,
            ran.stderr(),
        ))
    }

    async fn run(&self, host: &Host) -> Ran {
        let (sender, mut events) = mpsc::channel(16);
        let mut company = Company::default();
        if matches!(self.event, Event::CancelWhenUp | Event::Kill(_)) {
            company.events = Some(sender);
        }
        let cancel = company.cancel.clone();
        if matches!(self.event, Event::CancelAtOnce) {
            cancel.cancel();
        }
        let meddle = async {
            match self.event {
                Event::CancelWhenUp => {
                    host.running(&mut events).await;
                    cancel.cancel();
                }
                Event::Kill(parts) => {
                    let sandbox = host.running(&mut events).await;
                    let pids: Vec<i32> =
                        parts.iter().flat_map(|part| sandbox.parts(*part)).collect();
                    signal(&pids, Signal::SIGKILL);
                }
                Event::Nothing | Event::CancelAtOnce => {}
            }
        };
        tokio::join!(host.run_with(&self.job, company), meddle).0
    }
}

fn with_memory(code: &str, mebibytes: u64) -> JobSpec {
    request(JobRequest {
        code: code.to_owned(),
        memory_bytes: Some(mebibytes << 20),
        ..JobRequest::default()
    })
}

fn out_of_memory() -> Vec<Case> {
    let list = "held = []\nwhile True: held.append(bytearray(1 << 20))";
    let programs = [
        ("a list that grows", list.to_owned()),
        (
            "an anonymous mapping",
            "import mmap\nheld = mmap.mmap(-1, 1 << 30)\n\
             for at in range(0, 1 << 30, 4096): held[at] = 1"
                .to_owned(),
        ),
        (
            "files in memory",
            "for path in ('/dev/shm/x', '/tmp/x', '/output/x'):\n  try:\n    \
             file = open(path, 'wb')\n    while True: file.write(bytes(1 << 20))\n  \
             except OSError: pass\nraise SystemExit(9)"
                .to_owned(),
        ),
        (
            "a child that grows",
            format!(
                "import subprocess, sys\n\
                 sys.exit(subprocess.call(['python3', '-c', {list:?}]) != 0)"
            ),
        ),
    ];
    let case = |(name, code): &(&str, String)| {
        let job = with_memory(code, 128);
        Case::new(name, job, Termination::OutOfMemory, "oom")
    };
    programs.iter().chain(&programs).map(case).collect()
}

fn exits() -> Vec<Case> {
    let case = |(asked, code): (i32, u8)| {
        let error_type = if code == 0 { "" } else { "runtime_error" };
        let exit = job(&format!("import os; os._exit({asked})"));
        let name = format!("exit {asked}");
        Case::new(&name, exit, Termination::Exited(code), error_type)
    };
    let same = [0, 1, 2, 124, 125, 128, 130, 137, 139, 143].map(|code| (i32::from(code), code));
    same.into_iter()
        .chain([(300, 44), (-1, 255)])
        .map(case)
        .collect()
}

fn signals() -> Vec<Case> {
    let of = |name, code, number, error_type| {
        Case::new(name, job(code), Termination::Signalled(number), error_type)
    };
    vec![
        of(
            "SIGKILL to itself",
            "import os; os.kill(os.getpid(), 9)",
            9,
            "killed",
        ),
        of(
            "SIGKILL from its child",
            "import os, time\nif os.fork() == 0: os.kill(os.getppid(), 9)\ntime.sleep(20)",
            9,
            "killed",
        ),
        of(
            "SIGTERM to itself",
            "import os; os.kill(os.getpid(), 15)",
            15,
            "killed",
        ),
        of(
            "a null pointer",
            "import ctypes; ctypes.string_at(0)",
            11,
            "segfault",
        ),
        of("abort", "import os; os.abort()", 6, "abort"),
        of(
            "SIGFPE to itself",
            "import os; os.kill(os.getpid(), 8)",
            8,
            "arithmetic_error",
        ),
    ]
}

fn exceptions() -> Vec<Case> {
    let of =
        |name, code, error_type| Case::new(name, job(code), Termination::Exited(1), error_type);
    vec![
        of("ValueError", "int('x')", "value_error"),
        of(
            "an own class",
            "class MyError(KeyError): pass\nraise MyError('oom ImportError')",
            "key_error",
        ),
        of(
            "a MemoryError of its own",
            "raise MemoryError('mine')",
            "oom",
        ),
        of("a missing module", "import not_there", "import_error"),
        of("a syntax error", "x = = 1", "syntax_error"),
        of(
            "a full disk",
            "open('/tmp/x', 'wb').write(bytes(101 << 20))",
            "os_error",
        ),
        of("endless recursion", "def f(): f()\nf()", "recursion_error"),
        of(
            "an exit with a text",
            "import sys; sys.exit('MemoryError: Killed')",
            "runtime_error",
        ),
    ]
}

fn time_limits() -> Vec<Case> {
    let execution = [
        ("an endless loop", "while True: pass"),
        ("an endless sleep", "import time; time.sleep(1000)"),
        (
            "SIGTERM ignored",
            "import signal\nsignal.signal(15, signal.SIG_IGN)\nwhile True: pass",
        ),
        (
            "exit 0 at SIGTERM",
            "import os, signal, time\nsignal.signal(15, lambda *_: os._exit(0))\ntime.sleep(1000)",
        ),
        (
            "closed streams",
            "import os, time\nos.close(0); os.close(1); os.close(2)\ntime.sleep(1000)",
        ),
        ("a loop in C", "import re; re.match('(a*)*b', 'a' * 60)"),
    ];
    let mut cases: Vec<_> = execution
        .into_iter()
        .map(|(name, code)| {
            let mut job = job(code);
            job.limits.execution = Duration::from_secs(1);
            let termination = Termination::TimedOut(Phase::Execution);
            Case::new(name, job, termination, "execution_timeout")
        })
        .collect();
    for (name, code) in [
        ("an interpreter that loops", "while True: pass"),
        (
            "an interpreter that sleeps",
            "import posix, time; time.sleep(1000)",
        ),
    ] {
        let mut job = request(JobRequest {
            code: "print('never')".to_owned(),
            // The interpreter imports it before it looks at any program.
            files: vec![InputFile {
                name: "encodings.py".to_owned(),
                bytes: code.as_bytes().to_vec(),
            }],
            environment: vec![("PYTHONPATH".to_owned(), "/input".to_owned())],
            ..JobRequest::default()
        });
        job.limits.startup = Duration::from_secs(1);
        let termination = Termination::TimedOut(Phase::Startup);
        cases.push(Case::new(name, job, termination, "startup_timeout"));
    }
    cases
}

/// Says that it is up, and stays.
const UP: &str = "import time; print('up', flush=True); time.sleep(1000)";

const STUBBORN: &str = "
import signal
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
print('up', flush=True)
while True: pass
";

const MANY: &str = "
import os, time
for _ in range(40):
    if os.fork() == 0:
        while True: pass
print('up', flush=True)
time.sleep(1000)
";

fn cancels() -> Vec<Case> {
    let of = |name, code, event| {
        Case::new(name, job(code), Termination::Cancelled, "cancelled").with(event)
    };
    vec![
        of("cancelled before it was ready", UP, Event::CancelAtOnce)
            .before_the_interpreter_was_up(),
        of("cancelled", UP, Event::CancelWhenUp),
        of(
            "cancelled, all signals ignored",
            STUBBORN,
            Event::CancelWhenUp,
        ),
        of("cancelled with 40 children", MANY, Event::CancelWhenUp),
    ]
}

fn lost_sandboxes() -> Vec<Case> {
    let lost = |why: &str| Termination::SandboxLost(why.to_owned());
    let killed = |name, parts| {
        let termination = lost("it ended before its program was reported to end");
        Case::new(name, job(UP), termination, "internal_error").with(Event::Kill(parts))
    };
    let replaced = |name, body, why| {
        let mut case = Case::new(name, job(UP), lost(why), "internal_error");
        case.runsc = Some(body);
        case.before_the_interpreter_was_up()
    };
    let mut cases = vec![
        killed("sentry killed", &[Part::Sentry]),
        killed("sentry killed again", &[Part::Sentry]),
        killed("all but runsc killed", &[Part::Sentry, Part::Stub]),
        killed("runsc killed", &[Part::Runsc]),
        killed("runsc killed again", &[Part::Runsc]),
        replaced("runsc exits with 0", "exit 0", "it ended before"),
        replaced(
            "runsc exits with 128",
            "echo no such thing >&2; exit 128",
            "it ended before its program was reported to end: no such thing",
        ),
        replaced(
            "runsc prints garbage",
            "echo Usage: runsc; exec sleep 1000",
            "it does not speak the guest protocol",
        ),
        replaced(
            "an init of another version",
            r"printf '\002\000\000\000\000\011'; exec sleep 1000",
            "it speaks version 9 of the guest protocol and not 4",
        ),
    ];
    cases.push(if container().is_none() {
        killed("all but the sentry killed", &[Part::Runsc, Part::Stub])
    } else {
        // A container's init sees its program die.
        let termination = Termination::Signalled(9);
        Case::new("program killed", job(UP), termination, "killed").with(Event::Kill(&[Part::Stub]))
    });
    // Half a minute, and the same whatever hangs: once is enough.
    if container().is_none() {
        cases.push(replaced(
            "runsc hangs",
            "exec sleep 1000",
            "it was not ready within 30s",
        ));
    }
    cases
}

fn floods() -> Vec<Case> {
    let programs = [
        (
            "a flood on stdout",
            "import os\nwhile True: os.write(1, b'x' * 4096)",
        ),
        (
            "a flood on stderr",
            "import os\nwhile True: os.write(2, b'x' * 4096)",
        ),
        (
            "a flood by children",
            "import os\nos.fork()\nwhile True: os.write(1, b'x'); os.write(2, b'x' * 65536)",
        ),
    ];
    let case = |(name, code)| {
        let mut job = job(code);
        job.limits.output_bytes = 1 << 20;
        Case::new(name, job, Termination::OutputLimit, "output_limit")
    };
    programs.into_iter().map(case).collect()
}

/// Takes cases until none is left; returns what was wrong.
async fn work(cases: Arc<Mutex<VecDeque<Case>>>) -> Vec<String> {
    let mut wrong = Vec::new();
    loop {
        let next = cases.lock().unwrap().pop_front();
        let Some(case) = next else {
            return wrong;
        };
        wrong.extend(case.check().await.err());
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn sixty_endings_are_each_told_for_what_they_are() {
    let mut cases: Vec<Case> = [
        out_of_memory(),
        exits(),
        signals(),
        exceptions(),
        time_limits(),
        cancels(),
        lost_sandboxes(),
        floods(),
    ]
    .into_iter()
    .flatten()
    .collect();
    let count = if container().is_none() { 60 } else { 59 };
    assert_eq!(cases.len(), count);
    let seed = rand::rng().random::<u64>();
    println!("seed {seed}");
    cases.shuffle(&mut rand::rngs::StdRng::seed_from_u64(seed));
    let cases = Arc::new(Mutex::new(VecDeque::from(cases)));
    let workers = [0, 1].map(|_| tokio::spawn(work(Arc::clone(&cases))));
    let mut wrong = Vec::new();
    for worker in workers {
        wrong.extend(worker.await.unwrap());
    }
    assert!(
        wrong.is_empty(),
        "{} of {count} are wrong, seed {seed}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
