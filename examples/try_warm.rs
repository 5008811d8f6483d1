use std::time::{Duration, Instant};
use tako_vm::image::Images;
use tako_vm::job::*;
use tako_vm::runsc::{Runsc, provision};
use tako_vm::sandbox::*;
use tako_vm::sys::cgroup::Urgency;
use tokio_util::sync::CancellationToken;
#[tokio::main]
async fn main() {
    let state = tako_vm::config::state_dir();
    let image = Images::at(&state)
        .find(&std::env::var("IMAGE").unwrap_or("python".into()))
        .unwrap();
    let mut image = image;
    if let Some(path) = std::env::var_os("IMAGE_FILE") {
        image.path = path.into();
    }
    let runsc = Runsc::new(
        std::env::var_os("RUNSC")
            .map(Into::into)
            .unwrap_or(provision::installed(&state).unwrap().binary),
    );
    let t0 = Instant::now();
    let steps = std::env::var("STEPS").is_ok();
    let sandboxes = Sandboxes::prepare(&state, runsc)
        .unwrap()
        .observed(move |_, step| {
            if steps {
                println!("   {:?} {:?}", t0.elapsed(), step)
            }
        });
    let code = std::env::args().nth(1).unwrap_or("print(1+1)".into());
    let job = JobSpec::check(
        JobRequest {
            code,
            ..Default::default()
        },
        &Maxima::default(),
    )
    .unwrap();
    let n: usize = std::env::var("N").map(|n| n.parse().unwrap()).unwrap_or(5);
    let frozen = std::env::var("FROZEN").is_ok();
    let checkpoint = tempfile::tempdir_in(&state).unwrap();
    let at = checkpoint.path().join("c");
    let t = Instant::now();
    let ready = sandboxes
        .ready(&image.path, &job.limits, Urgency::Job)
        .await
        .unwrap();
    println!("ready {:?}", t.elapsed());
    let t = Instant::now();
    sandboxes.checkpoint(ready, &at).await.unwrap();
    println!("checkpoint {:?}", t.elapsed());
    for round in 0..n {
        for restored in [false, true] {
            let t = Instant::now();
            let ready = if restored {
                sandboxes
                    .restore(&image.path, &job.limits, Urgency::Job, &at)
                    .await
                    .unwrap()
            } else {
                sandboxes
                    .ready(&image.path, &job.limits, Urgency::Job)
                    .await
                    .unwrap()
            };
            let made = t.elapsed();
            if frozen {
                ready.freeze().unwrap();
            }
            tokio::time::sleep(Duration::from_millis(
                std::env::var("WAIT")
                    .map(|w| w.parse().unwrap())
                    .unwrap_or(300),
            ))
            .await;
            if let Ok(cpus) = std::env::var("WIDEN") {
                let procs = std::fs::read_to_string(format!(
                    "/sys/fs/cgroup/cpu/tako-vm/{}/tasks",
                    ready.id()
                ))
                .unwrap();
                for pid in procs.lines() {
                    std::process::Command::new("taskset")
                        .args(["-pc", &cpus, pid])
                        .output()
                        .unwrap();
                }
            }
            let spool = sandboxes.spool().unwrap();
            let t = Instant::now();
            let window = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
            if frozen {
                ready.thaw().unwrap();
            }
            let usage = format!(
                "/sys/fs/cgroup/cpuacct/tako-vm/{}/cpuacct.usage",
                ready.id()
            );
            let cpu = |path: &str| {
                std::fs::read_to_string(path)
                    .unwrap()
                    .trim()
                    .parse::<u64>()
                    .unwrap() as f64
                    / 1e6
            };
            let before = cpu(&usage);
            let mem = ready.memory_used().unwrap() >> 20;
            let order = Order {
                image: &image.path,
                job: &job,
                spool: spool.path(),
                events: None,
                cancel: CancellationToken::new(),
            };
            let done = sandboxes.run_in(ready, &order, Start::Warm).await.unwrap();
            let ran = t.elapsed();
            let end = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
            if !restored {
                println!(
                    "WINDOW {}.{:09} {}.{:09}",
                    window.tv_sec, window.tv_nsec, end.tv_sec, end.tv_nsec
                );
            }
            let used = std::fs::read_to_string(&usage)
                .map(|t| t.trim().parse::<u64>().unwrap() as f64 / 1e6 - before)
                .unwrap_or(0.0);
            let o = done.outcome;
            let kill = done.clearing.await.unwrap().unwrap();
            println!(
                "{round} used {used:.1} restored={restored} made {made:?} ran {ran:?} gone {:?} kill {kill:?} mem {mem} cpu {} {:?} {:?} {:?}",
                t.elapsed(),
                o.usage.cpu_time_ms,
                o.termination,
                o.stdout.text(),
                o.stderr.text().chars().take(300).collect::<String>()
            );
        }
    }
}
