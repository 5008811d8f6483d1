//! Output without end, and what it costs us.

use crate::alone;
use crate::host::{Company, Host, job};
use std::fs;
use std::time::Duration;
use tako_vm::job::{JobSpec, Termination};
use tako_vm::sandbox::Event;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Numbered lines of eight bytes for a start, then a gibibyte and more at full speed.
const FLOOD: &str = "
import os
os.write(1, b''.join(b'%07d\\n' % number for number in range(8192)))
block = bytes(65536)
while True: os.write(1, block)
";

fn flood() -> JobSpec {
    let mut job = job(FLOOD);
    job.limits.execution = Duration::from_mins(2);
    job
}

/// Bytes of memory that this process has of its own (statm: the second number, in pages).
fn resident() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = pages.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_gibibyte_of_output_ends_the_program_and_costs_us_no_memory() {
    let _alone = alone().await;
    let host = Host::new();
    let before = resident();
    let job = flood();
    let done = CancellationToken::new();
    let over = done.clone();
    let watcher = tokio::spawn(async move {
        let mut most = before;
        while !over.is_cancelled() {
            most = most.max(resident());
            sleep(Duration::from_millis(20)).await;
        }
        most
    });
    let ran = host.run(&job).await;
    done.cancel();
    let grown = watcher.await.unwrap() - before;
    println!("{:?}, {} KiB more memory", ran.took, grown >> 10);
    assert_eq!(ran.outcome.termination, Termination::OutputLimit);
    assert_eq!(ran.error_type(), Some("output_limit"));
    let lines: Vec<_> = (0..8192).map(|number| format!("{number:07}\n")).collect();
    assert_eq!(ran.outcome.stdout.bytes.len(), 64 << 10);
    assert!(
        ran.outcome.stdout.bytes == lines.concat().as_bytes(),
        "the first bytes"
    );
    let total = ran.outcome.stdout.total;
    assert!((1 << 30..(1 << 30) + (2 << 20)).contains(&total), "{total}");
    assert!(grown < 16 << 20, "{grown} bytes more");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_slow_receiver_slows_a_flood_down_and_piles_nothing_up() {
    let _alone = alone().await;
    let host = Host::new();
    let before = resident();
    let mut job = flood();
    job.limits.execution = Duration::from_secs(2);
    let (sender, mut receiver) = mpsc::channel(4);
    let company = Company {
        events: Some(sender),
        ..Company::default()
    };
    let (ran, (taken, most)) = tokio::join!(host.run_with(&job, company), async {
        let (mut taken, mut most) = (0, before);
        while let Some(event) = receiver.recv().await {
            let (Event::Stdout(bytes) | Event::Stderr(bytes)) = event;
            taken += bytes.len() as u64;
            most = most.max(resident());
            sleep(Duration::from_millis(2)).await;
        }
        (taken, most)
    });
    println!("{taken} of {} bytes", ran.outcome.stdout.total);
    assert_eq!(taken, ran.outcome.stdout.total);
    assert!(most - before < 16 << 20, "{} bytes more", most - before);
}
