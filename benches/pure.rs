//! What the host computes for every job, without the kernel: `cargo bench --bench pure`.
#![expect(clippy::unwrap_used, reason = "a benchmark panics on what cannot be")]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::time::Duration;
use tako_guest::{Buffer, MAX_CHUNK, ToHost, encode};
use tako_vm::bundle::{self, Isolation, Profile, seccomp};
use tako_vm::job::{JobRequest, JobSpec, Limits, Maxima};
use tako_vm::supervisor::wire::{self, Message, Run, ToClient, ToSupervisor};

fn frames(criterion: &mut Criterion) {
    let chunk = vec![b'x'; MAX_CHUNK];
    let mut wire = Vec::new();
    encode(&ToHost::Stdout(&chunk), &mut wire).unwrap();
    let mut group = criterion.benchmark_group("frame of 16 KiB");
    group.throughput(Throughput::Bytes(MAX_CHUNK as u64));
    group.bench_function("encode", |bencher| {
        let mut out = Vec::with_capacity(wire.len());
        bencher.iter(|| {
            out.clear();
            encode(black_box(&ToHost::Stdout(&chunk)), &mut out).unwrap();
        });
    });
    group.bench_function("decode", |bencher| {
        let mut buffer = Buffer::new();
        bencher.iter(|| {
            buffer.extend(black_box(&wire));
            assert!(buffer.next::<ToHost>().unwrap().is_some());
        });
    });
    group.finish();
}

fn specification(criterion: &mut Criterion) {
    let profile = Profile {
        isolation: Isolation::Gvisor {
            image: "/images/python.erofs".into(),
        },
        init: tako_guest::INIT_PATH,
        cgroups_path: "/tako-vm/tako-0123".to_owned(),
        limits: Limits::default(),
        seccomp: seccomp::load().unwrap(),
    };
    criterion.bench_function("bundle::spec", |bencher| {
        bencher.iter(|| bundle::spec(black_box(&profile)).unwrap());
    });
}

fn check(criterion: &mut Criterion) {
    let maxima = Maxima::default();
    let request = || JobRequest {
        code: "print(1 + 1)\n".repeat(1000),
        input: Some(format!("[{}1]", "1, ".repeat(1000))),
        ..JobRequest::default()
    };
    criterion.bench_function("JobSpec::check", |bencher| {
        bencher.iter_batched(
            request,
            |request| JobSpec::check(request, &maxima).unwrap(),
            BatchSize::SmallInput,
        );
    });
}

/// What goes over the supervisor's socket for a job: announced, taken, told of.
fn socket(criterion: &mut Criterion) {
    let request = JobRequest {
        code: "print(1 + 1)\n".repeat(1000),
        environment: vec![("NAME".to_owned(), "value".to_owned())],
        timeout: Some(Duration::from_secs(30)),
        ..JobRequest::default()
    };
    let announced = |request: &JobRequest| {
        let (run, parts) = Run::new("python", request, false);
        let mut out = ToSupervisor::Run(Box::new(run)).to_frame();
        for part in parts {
            ToSupervisor::Data(part.to_vec()).append_to(&mut out);
        }
        out
    };
    let frames = announced(&request);
    let end = end_frame();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let mut group = criterion.benchmark_group("socket");
    group.bench_function("encode a job of 13 KB", |bencher| {
        bencher.iter(|| announced(black_box(&request)));
    });
    group.bench_function("decode it", |bencher| {
        bencher.iter(|| {
            runtime.block_on(async {
                let mut from = black_box(frames.as_slice());
                let mut reader = wire::Reader::new(&mut from);
                while reader.next::<ToSupervisor>().await.unwrap().is_some() {}
            });
        });
    });
    group.bench_function("decode its end with 100 files", |bencher| {
        bencher.iter(|| {
            runtime.block_on(async {
                let mut from = black_box(end.as_slice());
                let end = wire::read::<ToClient>(&mut from).await.unwrap();
                assert!(end.is_some());
            });
        });
    });
    group.finish();
}

fn end_frame() -> Vec<u8> {
    let artifacts: Vec<_> = (0..100)
        .map(|number| serde_json::json!({"name": format!("out/{number}.csv"), "size": 1000, "sha256": "0".repeat(64)}))
        .collect();
    let end = serde_json::json!({
        "id": "0123456789abcdef", "image": "python", "runtime": "runsc",
        "termination": {"how": "exited", "code": 0}, "exception": null,
        "stdout_bytes": 2, "stderr_bytes": 0,
        "artifacts": artifacts, "artifacts_truncated": false, "artifacts_skipped": [],
        "started_at": "2026-01-01T00:00:00Z", "ended_at": "2026-01-01T00:00:01Z",
        "timing": {"start": "warm", "sandbox_ms": 0, "startup_ms": 1, "execution_ms": 1, "total_ms": 2},
        "usage": {"max_rss_mb": 20.0, "cpu_time_ms": 100, "wall_time_ms": 2, "oom_kills": 0},
    });
    ToClient::End(Box::new(serde_json::from_value(end).unwrap())).to_frame()
}

criterion_group!(benches, frames, specification, check, socket);
criterion_main!(benches);
