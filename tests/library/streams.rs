//! Programs that are watched while they run, and ended before their time.

use crate::host::{processes_that_mention, state_dir};
use crate::{alone, assert_gone, beside_others, sandbox, sandboxes, settles, state};
use futures_core::Stream;
use std::future::poll_fn;
use std::pin::Pin;
use std::time::{Duration, Instant};
use tako_vm::{Event, Job, Running, Termination};

/// Prints at once, and then does nothing for longer than any test waits.
const WAITS: &str = "import os, time; os.write(1, b'up\\n'); time.sleep(100)";

async fn until_up(running: &mut Running) {
    assert_eq!(running.next().await, Some(Event::Stdout(b"up\n".to_vec())));
}

/// Waits until nothing is there that was not there before.
async fn until_gone(ids: &[String], before: &[String]) {
    let begun = Instant::now();
    while state() != before {
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", state());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for id in ids {
        assert_gone(id);
    }
}

#[tokio::test]
#[ignore = "needs root and runsc"]
async fn output_comes_in_order_and_while_the_program_runs() {
    let _guard = beside_others().await;
    let program = r"
import os, time
os.write(1, b'one\n'); time.sleep(0.3); os.write(2, b'two\n'); time.sleep(0.3); os.write(1, b'three\n')
";
    let mut running = sandbox().start(program).await.unwrap();
    let (mut events, mut times) = (Vec::new(), Vec::new());
    while let Some(event) = running.next().await {
        events.push(event);
        times.push(Instant::now());
    }
    let done = running.wait().await.unwrap();
    let out = |text: &str| Event::Stdout(text.into());
    let expected = [
        out("one\n"),
        Event::Stderr(b"two\n".to_vec()),
        out("three\n"),
    ];
    assert_eq!(events, expected);
    assert!(
        times[2] - times[0] > Duration::from_millis(400),
        "{times:?}"
    );
    assert_eq!(done.stdout(), "one\nthree\n");
    assert_gone(done.id());
}

#[tokio::test]
#[ignore = "needs root and runsc"]
async fn a_handle_is_a_stream() {
    let _guard = beside_others().await;
    let mut running = sandbox()
        .start("for n in range(3): print(n)")
        .await
        .unwrap();
    let mut output = Vec::new();
    while let Some(event) = poll_fn(|context| Pin::new(&mut running).poll_next(context)).await {
        match event {
            Event::Stdout(bytes) | Event::Stderr(bytes) => output.extend(bytes),
        }
    }
    assert_eq!(output, b"0\n1\n2\n");
    assert!(running.wait().await.unwrap().success());
}

#[tokio::test]
#[ignore = "needs root and runsc"]
async fn a_slow_reader_slows_the_program_and_loses_nothing() {
    let _guard = beside_others().await;
    // Far more than lies on the way from the program to its reader.
    let program = "import os, time
begun = time.monotonic()
for _ in range(256): os.write(1, b'x' * 65536)
open('/output/result.json', 'w').write(str(time.monotonic() - begun))";
    let mut running = sandbox().start(program).await.unwrap();
    let mut bytes = 0;
    while let Some(event) = running.next().await {
        if bytes == 0 {
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        match event {
            Event::Stdout(chunk) | Event::Stderr(chunk) => bytes += chunk.len(),
        }
    }
    let done = running.wait().await.unwrap();
    assert_eq!(bytes, 16 << 20);
    assert_eq!(done.stdout_captured().total, 16 << 20);
    assert!(done.stdout_captured().truncated());
    let seconds: f64 = done.result().unwrap();
    assert!(
        seconds > 1.5,
        "it wrote in {seconds} s what nobody had read"
    );
}

#[tokio::test]
#[ignore = "needs root and runsc"]
async fn whoever_waits_need_not_read() {
    let _guard = beside_others().await;
    let program = "for _ in range(256): print('x' * 65536)\nprint('end')";
    let running = sandbox().start(program).await.unwrap();
    let done = running.wait().await.unwrap();
    assert!(done.success());
    assert_eq!(done.stdout_captured().total, 256 * 65537 + 4);
}

#[tokio::test]
#[ignore = "needs root and runsc"]
async fn a_handle_cancels_its_program() {
    let _guard = beside_others().await;
    let mut running = sandbox().start(WAITS).await.unwrap();
    until_up(&mut running).await;
    let begun = Instant::now();
    running.cancel();
    let done = running.wait().await.unwrap();
    assert_eq!(done.termination(), &Termination::Cancelled);
    assert_eq!(done.exit_code(), Some(130));
    assert_eq!(done.stdout(), "up\n");
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "{:?}",
        begun.elapsed()
    );
    assert_gone(done.id());
}

#[tokio::test]
#[ignore = "needs root and runsc"]
async fn another_thread_can_cancel_and_only_this_program() {
    let _guard = beside_others().await;
    let sandbox = sandbox();
    let other = sandbox.start("print('other')").await.unwrap();
    let mut running = sandbox.start(WAITS).await.unwrap();
    until_up(&mut running).await;
    let canceller = running.canceller();
    let copy = canceller.clone();
    std::thread::spawn(move || copy.cancel()).join().unwrap();
    let done = running.wait().await.unwrap();
    assert_eq!(done.termination(), &Termination::Cancelled);
    assert!(other.wait().await.unwrap().success());
    // Too late is no failure.
    canceller.cancel();
}

#[tokio::test]
#[ignore = "needs root and runsc"]
async fn dropping_a_handle_ends_the_program_and_clears_it_away() {
    let _guard = alone().await;
    let before = state();
    let sandbox = sandbox();
    let mut running = sandbox.start(WAITS).await.unwrap();
    until_up(&mut running).await;
    let ids = sandboxes();
    assert_eq!(ids.len(), 1, "{ids:?}");
    drop(running);
    until_gone(&ids, &before).await;

    // The same for a run that somebody has lost patience with.
    let patience = Duration::from_secs(2);
    let impatient = tokio::time::timeout(patience, sandbox.run(WAITS)).await;
    assert!(impatient.is_err());
    let ids = sandboxes();
    assert_eq!(ids.len(), 1, "{ids:?}");
    until_gone(&ids, &before).await;
}

#[test]
#[ignore = "needs root and runsc"]
fn a_runtime_that_is_shut_down_leaves_nothing() {
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    let _guard = runtime().block_on(alone());
    let before = state();
    let shut_down = runtime();
    let running = shut_down.block_on(async {
        let mut running = sandbox().start(WAITS).await.unwrap();
        until_up(&mut running).await;
        running
    });
    let ids = sandboxes();
    assert_eq!(ids.len(), 1, "{ids:?}");
    drop(shut_down);
    assert!(settles(|| state() == before), "{:?}", state());
    let error = runtime().block_on(running.wait()).unwrap_err();
    assert!(matches!(error, tako_vm::Error::Abandoned(_)), "{error:?}");
    let path = state_dir().join("sandboxes").join(&ids[0]);
    assert!(!path.exists());
    assert!(processes_that_mention(&ids[0]).is_empty());
    assert_gone(&ids[0]);
}

#[tokio::test]
#[ignore = "needs root and runsc"]
async fn a_program_that_nobody_reads_is_still_held_to_its_time() {
    let _guard = beside_others().await;
    let job = Job::new("while True: print('x' * 1000)").timeout(Duration::from_secs(1));
    let running = sandbox().start(job).await.unwrap();
    // Not read for longer than the program may run and the host waits.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let done = running.wait().await.unwrap();
    assert!(matches!(done.termination(), Termination::TimedOut(_)));
    assert!(done.timing().total_ms < 6000, "{:?}", done.timing());
    assert_gone(done.id());
}
