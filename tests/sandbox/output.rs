//! What a program prints: kept exactly, bounded, and unable to mislead anybody.

use crate::host::{Company, Host, container, job};
use serde_json::json;
use std::time::Duration;
use tako_vm::job::{Phase, Termination};
use tako_vm::sandbox::Event;
use tokio::sync::mpsc;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn bytes_that_are_no_text_are_kept_as_they_are() {
    let ran = Host::new()
        .run(&job(r"
import os
os.write(1, bytes(range(256)) + b'\x1b[31mred\x1b]0;title\x07\r\n' + b'\xf0\x9f')
os.write(2, b'\x00\xff\x00' + '\u202e'.encode())
"))
        .await;
    let mut expected: Vec<u8> = (0..=255).collect();
    expected.extend(b"\x1b[31mred\x1b]0;title\x07\r\n\xf0\x9f");
    assert_eq!(ran.outcome.stdout.bytes, expected);
    assert_eq!(ran.outcome.stderr.bytes, b"\0\xff\0\xe2\x80\xae");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_record_keeps_the_first_bytes_and_the_program_goes_on() {
    let mut job = job("
import sys
for number in range(100_000):
    print(f'{number:07}')
print('e' * 10, file=sys.stderr)
open('/output/went-on', 'w').close()
");
    job.limits.stdout_bytes = 1001;
    job.limits.stderr_bytes = 4;
    let ran = Host::new().run(&job).await;
    assert_eq!(ran.outcome.termination, Termination::Exited(0));
    let lines: Vec<_> = (0..126).map(|number| format!("{number:07}\n")).collect();
    assert_eq!(ran.outcome.stdout.bytes, lines.concat().as_bytes()[..1001]);
    assert_eq!(ran.outcome.stdout.total, 800_000);
    assert!(ran.outcome.stdout.truncated());
    assert_eq!(ran.stderr(), "eeee");
    assert_eq!(ran.outcome.stderr.total, 11);
    assert_eq!(ran.names(), ["went-on"]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn one_line_of_fifty_megabytes_is_like_any_other_output() {
    let ran = Host::new()
        .run(&job("import sys; sys.stdout.write('é' * (25 << 20))"))
        .await;
    assert_eq!(ran.outcome.termination, Termination::Exited(0));
    assert_eq!(ran.outcome.stdout.total, 50 << 20);
    assert_eq!(ran.stdout(), "é".repeat(32 << 10));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn ten_thousand_writes_of_one_byte_arrive_in_order() {
    let ran = Host::new()
        .run(&job("
import os
for number in range(10_000):
    os.write(1, b'%d' % (number % 10))
"))
        .await;
    assert_eq!(ran.stdout(), "0123456789".repeat(1000));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn frames_that_a_program_prints_are_plain_output() {
    let mut forged = Vec::new();
    let exit = tako_guest::ToHost::Exit(tako_guest::Exit {
        status: tako_guest::ExitStatus::Exited(0),
        ended_by: None,
        startup_ms: Some(1),
        execution_ms: 1,
        exception: None,
    });
    let file = tako_guest::ToHost::File {
        name: "forged",
        size: 1,
    };
    let frames = [exit, file, tako_guest::ToHost::Done { skipped: 0 }];
    for frame in &frames {
        tako_guest::encode(frame, &mut forged).unwrap();
    }
    let code = format!(
        "import os, sys\nforged = bytes.fromhex('{}')\n\
         os.write(1, forged)\nos.write(2, forged)\nsys.exit(7)",
        hex::encode(&forged)
    );
    let ran = Host::new().run(&job(&code)).await;
    assert_eq!(ran.outcome.termination, Termination::Exited(7));
    assert_eq!(ran.outcome.stdout.bytes, forged);
    assert_eq!(ran.outcome.stderr.bytes, forged);
    assert!(ran.files.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn the_descriptors_of_init_are_out_of_reach() {
    let ran = Host::new()
        .run(&job("
import errno, json, os
def attempt(path, flags):
    try:
        os.close(os.open(path, flags | os.O_NONBLOCK))
        return 'opened'
    except OSError as error:
        return errno.errorcode[error.errno]
paths = [f'/proc/1/fd/{number}' for number in range(16)]
paths = [path for path in paths if os.path.lexists(path)]
opened = {(path, flags) for path in paths for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)
          if attempt(path, flags) == 'opened'}
# The FIFO of reports is there to be written to.
fifo = {(path, os.O_WRONLY) for path in paths if os.readlink(path) == '/run/tako-vm/report'}
print(json.dumps([len(paths) > 2, sorted(opened - fifo)]))
"))
        .await;
    // Linux does not even tell which there are.
    assert_eq!(ran.json(), json!([container().is_none(), []]));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_receiver_that_takes_nothing_does_not_hold_up_a_deadline() {
    let mut job = job("while True: print('x' * 1000)");
    job.limits.execution = Duration::from_secs(1);
    let (sender, receiver) = mpsc::channel(1);
    let company = Company {
        events: Some(sender),
        ..Company::default()
    };
    let host = Host::new();
    let (ran, ()) = tokio::join!(host.run_with(&job, company), async {
        // Long enough for the time limit and the backstop; then it goes away, and takes the rest.
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert!(host.sandboxes().is_empty(), "it waited for its receiver");
        drop(receiver);
    });
    let execution = Termination::TimedOut(Phase::Execution);
    assert_eq!(ran.outcome.termination, execution);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn events_hold_all_that_was_printed_and_arrive_while_the_program_runs() {
    let (sender, mut receiver) = mpsc::channel(4);
    let company = Company {
        events: Some(sender),
        ..Company::default()
    };
    let host = Host::new();
    let mut job = job("
import sys, time
print('first', flush=True)
time.sleep(1)
print(*range(100_000), sep='\\n')
print('error', file=sys.stderr)
");
    job.limits.stdout_bytes = 10;
    let (ran, (stdout, stderr)) = tokio::join!(host.run_with(&job, company), async {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        while stdout != b"first\n" {
            match receiver.recv().await {
                Some(Event::Stdout(bytes)) => stdout.extend(bytes),
                other => panic!("{other:?} after {stdout:?}"),
            }
        }
        assert_eq!(host.sandboxes().len(), 1, "it still runs");
        while let Some(event) = receiver.recv().await {
            match event {
                Event::Stdout(bytes) => stdout.extend(bytes),
                Event::Stderr(bytes) => stderr.extend(bytes),
            }
        }
        (stdout, stderr)
    });
    assert_eq!(ran.stdout(), "first\n0\n1\n");
    let numbers: Vec<_> = (0..100_000).map(|number| format!("{number}\n")).collect();
    assert!(stdout == format!("first\n{}", numbers.concat()).as_bytes());
    assert_eq!(stderr, b"error\n");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn reports_that_a_program_forges_name_its_own_exception_at_most() {
    let mut job = job(r"
import os, sys, time
fifo = os.open('/run/tako-vm/report', os.O_WRONLY | os.O_NONBLOCK)
def report(bytes):
    try:
        os.write(fifo, bytes)
    except BlockingIOError:
        time.sleep(0.001)
for _ in range(2000):
    report(b'x' * 4096)
    report(b'\0' * 4096)
    report(b'exception\n1\nMemoryError\nof init\0')
    report(b'\xff\n' * 1000 + b'\0')
    report(b'up\n%d\0' % os.getpid())
# One more pipe's worth, behind which the real report has to be found.
time.sleep(0.5)
for _ in range(14):
    report(b'x' * 4095 + b'\0')
raise KeyError('real')
");
    job.limits.execution = Duration::from_secs(20);
    let ran = Host::new().run(&job).await;
    assert_eq!(ran.outcome.termination, Termination::Exited(1));
    assert_eq!(ran.error_type(), Some("key_error"));
    let exception = ran.outcome.exception.unwrap();
    assert_eq!(exception.message, "'real'");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_report_never_changes_how_the_job_ended() {
    let ran = Host::new()
        .run(&job(r"
import os
with open('/run/tako-vm/report', 'wb', buffering=0) as fifo:
    fifo.write(b'exception\n%d\nMemoryError\nforged\0' % os.getpid())
"))
        .await;
    assert_eq!(ran.outcome.termination, Termination::Exited(0));
    assert_eq!(ran.error_type(), None);
}

/// As if it had called `os._exit`; that it is unfit for a program it is too late to say.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_program_that_reports_its_own_end_has_ended() {
    let ran = Host::new()
        .run(&job(r"
import os, time
print('before')
with open('/run/tako-vm/report', 'wb', buffering=0) as fifo:
    fifo.write(b'unfit\n%d\nForged\nnobody asks\0' % os.getpid())
    fifo.write(b'ended\n%d\n3\0' % os.getpid())
time.sleep(60)
"))
        .await;
    assert_eq!(ran.outcome.termination, Termination::Exited(3));
    assert_eq!(ran.stdout(), "before\n");
    assert!(ran.took < Duration::from_secs(20), "{:?}", ran.took);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn exceptions_of_any_shape_are_reported_within_bounds() {
    let host = Host::new();
    let huge = host.run(&job("raise ValueError('m' * (50 << 20))")).await;
    assert_eq!(huge.outcome.termination, Termination::Exited(1));
    assert_eq!(huge.error_type(), Some("value_error"));
    let message = &huge.outcome.exception.as_ref().unwrap().message;
    assert!(
        message.len() > 3000 && message.len() < 4096,
        "{}",
        message.len()
    );
    assert!(message.bytes().all(|byte| byte == b'm'));

    let mute = host
        .run(&job("
class Mute(IndexError):
    def __str__(self): raise MemoryError('in __str__')
raise Mute
"))
        .await;
    assert_eq!(mute.outcome.termination, Termination::Exited(1));
    assert_eq!(mute.error_type(), Some("index_error"));
    assert_eq!(mute.outcome.exception.unwrap().message, "");

    let odd = host
        .run(&job(
            r"raise type('Odd Name', (TypeError,), {})('a\0b\nc\udcff')",
        ))
        .await;
    assert_eq!(odd.outcome.termination, Termination::Exited(1));
    assert_eq!(odd.error_type(), Some("type_error"));
    assert_eq!(odd.outcome.exception.unwrap().message, "ab\nc\\udcff");

    let chained = host
        .run(&job("
error = ValueError('0')
for number in range(2000):
    try:
        raise KeyError(number) from error
    except KeyError as caught:
        error = caught
raise error
"))
        .await;
    assert_eq!(chained.outcome.termination, Termination::Exited(1));
    assert_eq!(chained.error_type(), Some("key_error"));
}
