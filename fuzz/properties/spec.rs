//! From what a caller asks for to the specification that runsc is given.

use arbitrary::{Arbitrary, Result, Unstructured};
use serde_json::{Value, json};
use std::sync::LazyLock;
use tako_guest::{MAX_FRAME, ToGuest, encode};
use tako_vm::bundle::{self, Isolation, Profile, seccomp};
use tako_vm::job::{InputFile, JobRequest, JobSpec, Limits, Maxima};

/// A request is refused with its reasons; or its job is within the maxima, can be sent as frames,
/// and its specification differs from any other in six numbers and nothing else.
pub(crate) fn check(bytes: &[u8]) {
    let mut bytes = Unstructured::new(bytes);
    // Too few bytes for a request.
    let (Ok(maxima), Ok(request)) = (maxima(&mut bytes), request(&mut bytes)) else {
        return;
    };
    match JobSpec::check(request.clone(), &maxima) {
        Err(error) => {
            assert!(!error.problems.is_empty());
            assert!(error.problems.iter().all(|problem| !problem.is_empty()));
        }
        Ok(job) => {
            check_limits(&job.limits, &request, &maxima);
            check_frames(&job);
            assert_eq!(specification(&job.limits), expected(&job.limits));
        }
    }
}

/// What an operator can configure, and a little beyond.
fn maxima(bytes: &mut Unstructured) -> Result<Maxima> {
    let mut maxima = Maxima::default();
    let limits = &mut maxima.defaults;
    limits.processes = bytes.int_in_range(1..=2000)?;
    limits.open_files = bytes.int_in_range(1..=70_000)?;
    limits.file_bytes = bytes.int_in_range(1..=2 << 30)?;
    limits.tmp_bytes = bytes.int_in_range(1..=4 << 30)?;
    limits.artifacts_total_bytes = bytes.int_in_range(1..=20 << 30)?;
    Ok(maxima)
}

fn request(bytes: &mut Unstructured) -> Result<JobRequest> {
    Ok(JobRequest {
        code: String::arbitrary(bytes)?,
        input: Option::arbitrary(bytes)?,
        files: Vec::<(String, Vec<u8>)>::arbitrary(bytes)?
            .into_iter()
            .map(|(name, bytes)| InputFile { name, bytes })
            .collect(),
        environment: Vec::arbitrary(bytes)?,
        memory_bytes: Option::arbitrary(bytes)?,
        millicpus: Option::arbitrary(bytes)?,
        timeout: Option::arbitrary(bytes)?,
        startup_timeout: Option::arbitrary(bytes)?,
    })
}

fn check_limits(limits: &Limits, asked: &JobRequest, maxima: &Maxima) {
    let given = Limits {
        // Memory is given in whole pages.
        memory_bytes: (asked.memory_bytes).map_or(limits.memory_bytes, |bytes| bytes / 4096 * 4096),
        millicpus: asked.millicpus.unwrap_or(limits.millicpus),
        execution: asked.timeout.unwrap_or(limits.execution),
        startup: asked.startup_timeout.unwrap_or(limits.startup),
        ..maxima.defaults.clone()
    };
    assert_eq!(*limits, given);
    assert!((64 << 20..=maxima.memory_bytes).contains(&limits.memory_bytes));
    assert!((100..=maxima.millicpus).contains(&limits.millicpus));
    assert!(!limits.execution.is_zero() && limits.execution <= maxima.timeout);
    assert!(!limits.startup.is_zero() && limits.startup <= maxima.startup_timeout);
}

/// What init would be unable to take must have been refused before.
fn check_frames(job: &JobSpec) {
    let mut wire = Vec::new();
    for (name, value) in &job.environment {
        wire.clear();
        encode(&ToGuest::Env { name, value }, &mut wire).unwrap();
        assert!(wire.len() <= MAX_FRAME);
        assert!(!name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0'));
    }
    for file in &job.files {
        assert!(!file.name.contains(['/', '\0']) && !matches!(&*file.name, "" | "." | ".."));
        assert_ne!(file.name, "data.json");
    }
}

fn specification(limits: &Limits) -> Value {
    static PROFILE: LazyLock<Profile> = LazyLock::new(|| Profile {
        isolation: Isolation::Gvisor {
            image: "/images/python.erofs".into(),
        },
        init: tako_guest::INIT_PATH,
        cgroups_path: "/tako-vm/tako-0".to_owned(),
        limits: Limits::default(),
        seccomp: seccomp::load().unwrap(),
    });
    let profile = Profile {
        limits: limits.clone(),
        ..PROFILE.clone()
    };
    let mut spec = serde_json::to_value(bundle::spec(&profile).unwrap()).unwrap();
    // oci-spec keeps capabilities in hash sets.
    for set in spec["process"]["capabilities"]
        .as_object_mut()
        .unwrap()
        .values_mut()
    {
        set.as_array_mut().unwrap().sort_by_key(Value::to_string);
    }
    spec
}

/// The specification of the default limits, with these numbers in it.
fn expected(limits: &Limits) -> Value {
    static DEFAULT: LazyLock<Value> = LazyLock::new(|| specification(&Limits::default()));
    let mut spec = DEFAULT.clone();
    for rlimit in spec["process"]["rlimits"].as_array_mut().unwrap() {
        let bound = match rlimit["type"].as_str().unwrap() {
            "RLIMIT_NOFILE" => u64::from(limits.open_files),
            "RLIMIT_NPROC" => u64::from(limits.processes),
            "RLIMIT_FSIZE" => limits.file_bytes,
            _ => continue,
        };
        rlimit["soft"] = json!(bound);
        rlimit["hard"] = json!(bound);
    }
    for mount in spec["mounts"].as_array_mut().unwrap() {
        let total = limits.artifacts_total_bytes;
        let bytes = match mount["destination"].as_str().unwrap() {
            "/tmp" => limits.tmp_bytes,
            "/output" => total + total / 10,
            _ => continue,
        };
        *mount["options"].as_array_mut().unwrap().last_mut().unwrap() =
            json!(format!("size={bytes}"));
    }
    spec
}
