//! What the host computes for every job, without the kernel: `cargo bench --bench pure`.
#![expect(clippy::unwrap_used, reason = "a benchmark panics on what cannot be")]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use tako_guest::{Buffer, MAX_CHUNK, ToHost, encode};
use tako_vm::bundle::{self, Isolation, Profile, seccomp};
use tako_vm::job::{JobRequest, JobSpec, Limits, Maxima};

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

criterion_group!(benches, frames, specification, check);
criterion_main!(benches);
