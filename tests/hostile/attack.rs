//! One hostile job, a well-behaved one beside it, and what must hold after every one of them.

use crate::host::{Company, Host, IMAGE, Ran, Sandbox, job, request, runsc_binary, state_dir};
use crate::posture;
use crate::sentinels::Sentinels;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use tako_vm::image::Images;
use tako_vm::job::{
    InputFile, JobRequest, JobSpec, Limits, Phase, Record, ResourceUsage, Termination, Timing,
};
use tako_vm::sandbox::Event;
use tokio::sync::{RwLock, RwLockWriteGuard, mpsc};

/// From a limit to the end of the job: the backstop is at 3 s, and a killed sandbox is cleared away.
const SLACK: Duration = Duration::from_secs(4);

/// Shared by all attacks, and taken whole by a test that measures this process.
static MEASURED: RwLock<()> = RwLock::const_new(());

/// What the job beside the hostile one does: a bit of everything, and a look around.
const CANARY: &str = "
import json, os, subprocess
found = {place: os.listdir(place) for place in ('/tmp', '/dev/shm', '/output')}
child = subprocess.check_output(['echo', 'alive'], text=True)
processes = sorted(name for name in os.listdir('/proc') if name.isdigit())
with open('/output/result.json', 'w') as file:
    json.dump([sum(range(100_000)), child, found, len(processes), json.load(open('/input/data.json'))], file)
print('canary')
";

/// A hostile job.
pub(crate) struct Attack {
    name: &'static str,
    job: JobSpec,
    image: Option<PathBuf>,
}

/// How a job has to be told to have ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Class {
    termination: Termination,
    error_type: Option<&'static str>,
}

/// What is left of a hostile job.
pub(crate) struct Ended {
    pub(crate) class: Class,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// Contents of the collected files, by name.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) usage: ResourceUsage,
    pub(crate) timing: Timing,
    pub(crate) kill_time: Duration,
    pub(crate) record: Value,
}

pub(crate) const SUCCEEDED: Class = Class {
    termination: Termination::Exited(0),
    error_type: None,
};
pub(crate) const TIMED_OUT: Class = Class {
    termination: Termination::TimedOut(Phase::Execution),
    error_type: Some("execution_timeout"),
};
pub(crate) const OUT_OF_MEMORY: Class = Class {
    termination: Termination::OutOfMemory,
    error_type: Some("oom"),
};
pub(crate) const OUTPUT_LIMIT: Class = Class {
    termination: Termination::OutputLimit,
    error_type: Some("output_limit"),
};

pub(crate) fn failed(code: u8, error_type: &'static str) -> Class {
    Class {
        termination: Termination::Exited(code),
        error_type: Some(error_type),
    }
}

pub(crate) fn signalled(number: u8, error_type: &'static str) -> Class {
    Class {
        termination: Termination::Signalled(number),
        error_type: Some(error_type),
    }
}

/// Held by a test that measures this process, with no attack beside its own.
pub(crate) struct Alone(#[expect(dead_code, reason = "held")] RwLockWriteGuard<'static, ()>);

pub(crate) async fn alone() -> Alone {
    Alone(MEASURED.write().await)
}

impl Attack {
    /// A program with little time and the other defaults; `name` is for messages.
    pub(crate) fn new(name: &'static str, program: &str) -> Self {
        let mut job = job(program);
        job.limits.execution = Duration::from_secs(20);
        Self {
            name,
            job,
            image: None,
        }
    }

    /// With input files.
    pub(crate) fn with_files(name: &'static str, program: &str, files: Vec<InputFile>) -> Self {
        let mut attack = Self::new(name, program);
        attack.job.files = request(JobRequest {
            code: program.to_owned(),
            files,
            ..JobRequest::default()
        })
        .files;
        attack
    }

    pub(crate) fn seconds(self, seconds: u64) -> Self {
        self.limits(|limits| limits.execution = Duration::from_secs(seconds))
    }

    pub(crate) fn memory(self, mebibytes: u64) -> Self {
        self.limits(|limits| limits.memory_bytes = mebibytes << 20)
    }

    pub(crate) fn limits(mut self, change: impl FnOnce(&mut Limits)) -> Self {
        change(&mut self.job.limits);
        self
    }

    /// In another image than that of all the others.
    pub(crate) fn in_image(mut self, image: PathBuf) -> Self {
        self.image = Some(image);
        self
    }

    /// With variables of its own.
    pub(crate) fn with_environment(mut self, variables: &[(&str, &str)]) -> Self {
        let own = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        self.job.environment = request(JobRequest {
            code: self.job.code.clone(),
            environment: own.collect(),
            ..JobRequest::default()
        })
        .environment;
        self
    }

    fn host(&self) -> Host {
        Host::of(&runsc_binary(), &self.image())
    }

    fn image(&self) -> PathBuf {
        let default = || Images::at(&state_dir()).find(IMAGE).unwrap().path;
        self.image.clone().unwrap_or_else(default)
    }

    /// Runs it, and checks that it ends as it must and that everything holds that must hold then.
    pub(crate) async fn ends(self, class: &Class) -> Ended {
        self.ends_as_one_of(&[class]).await
    }

    /// Like [`Attack::ends`], where the kernel decides which of its limits a program meets first.
    pub(crate) async fn ends_as_one_of(self, classes: &[&Class]) -> Ended {
        let _shared = MEASURED.read().await;
        self.run(classes, Company::default()).await
    }

    /// Like [`Attack::ends`], in a test that measures this process.
    pub(crate) async fn ends_alone(self, _alone: &Alone, class: &Class) -> Ended {
        self.run(&[class], Company::default()).await
    }

    /// Like [`Attack::ends`], with a look from outside at the sandbox once the program has printed
    /// something, and at what that was.
    pub(crate) async fn observed<T>(
        self,
        class: &Class,
        look: impl AsyncFnOnce(&Sandbox, &[u8]) -> T,
    ) -> (Ended, T) {
        let _shared = MEASURED.read().await;
        let (sender, mut events) = mpsc::channel(16);
        let company = Company {
            events: Some(sender),
            ..Company::default()
        };
        let host = self.host();
        let (name, classes, image) = (self.name, [class], self.image());
        tokio::join!(self.run_on(&host, &classes, company), async {
            let printed = events.recv().await;
            let Some(Event::Stdout(printed) | Event::Stderr(printed)) = printed else {
                panic!("{name}: it printed nothing");
            };
            let names = host.sandboxes();
            let sandbox = Sandbox {
                id: names.first().expect("the sandbox is there").clone(),
            };
            posture::assert_expected(host.directory(), &image, &sandbox);
            let seen = look(&sandbox, &printed).await;
            posture::assert_expected(host.directory(), &image, &sandbox);
            while events.recv().await.is_some() {}
            seen
        })
    }

    async fn run(self, classes: &[&Class], company: Company) -> Ended {
        let host = self.host();
        self.run_on(&host, classes, company).await
    }

    #[expect(clippy::print_stdout, reason = "shown with a test that fails")]
    async fn run_on(mut self, host: &Host, classes: &[&Class], company: Company) -> Ended {
        let sentinels = Sentinels::plant();
        self.job.input = sentinels.targets();
        let other = Host::new();
        let canary = job(CANARY);
        // Both check that no process, cgroup or file is left of their sandboxes.
        let (ran, beside) = tokio::join!(host.run_with(&self.job, company), other.run(&canary));
        self.check_times(&ran);
        self.check_usage(&ran);
        check_canary(self.name, &beside);
        sentinels.assert_untouched(self.name);
        let secrets = [
            host.directory().display().to_string(),
            state_dir().display().to_string(),
            sentinels.secret().to_owned(),
        ];
        let id = ran.outcome.id.clone();
        let ended = Ended::of(&self.job, ran);
        println!(
            "{}: {:?}, beside it a job of {:?}",
            self.name, ended.timing, beside.took
        );
        for secret in &secrets {
            ended.assert_nowhere(self.name, secret);
        }
        // The record names the sandbox; nothing of the program's may.
        ended.assert_not_printed(self.name, &id);
        assert!(
            classes.contains(&&ended.class),
            "{}: {:?} {:?}, and not {classes:?}\n{}",
            self.name,
            ended.class,
            ended.record["error"],
            String::from_utf8_lossy(&ended.stderr)
        );
        ended
    }

    /// The end is reported within the limit and 4 s, whatever the program does.
    fn check_times(&self, ran: &Ran) {
        let timing = ran.outcome.timing;
        let spent = timing.total_ms - timing.sandbox_ms - timing.startup_ms.unwrap_or(0);
        let spent = Duration::from_millis(spent);
        let limit = match timing.startup_ms {
            Some(_) => self.job.limits.execution,
            None => self.job.limits.startup,
        };
        assert!(
            spent < limit + SLACK,
            "{}: {spent:?} of {limit:?}",
            self.name
        );
    }

    /// What it used is told, and is within its limits.
    fn check_usage(&self, ran: &Ran) {
        let (name, usage) = (self.name, ran.outcome.usage);
        #[expect(clippy::cast_precision_loss, reason = "mebibytes")]
        let limit = (self.job.limits.memory_bytes >> 20) as f64;
        let peak = usage.max_rss_mb;
        assert!(peak > 1.0 && peak <= limit, "{name}: {usage:?}");
        assert!(usage.cpu_time_ms > 0, "{name}: {usage:?}");
        if ran.outcome.termination == Termination::OutOfMemory {
            assert!(usage.oom_kills > 0, "{name}: {usage:?}");
        }
    }
}

/// The well-behaved job was not hindered and saw nothing of the other.
fn check_canary(name: &str, ran: &Ran) {
    assert_eq!(
        ran.outcome.termination,
        Termination::Exited(0),
        "beside {name}: {}",
        ran.stderr()
    );
    assert_eq!(ran.stdout(), "canary\n", "beside {name}");
    let result: Value = serde_json::from_slice(&ran.files["result.json"]).unwrap();
    let nothing = json!({ "/tmp": [], "/dev/shm": [], "/output": [] });
    let expected = json!([4_999_950_000_u64, "alive\n", nothing, 2, {}]);
    assert_eq!(result, expected, "beside {name}");
}

impl Ended {
    fn of(job: &JobSpec, ran: Ran) -> Self {
        let class = Class {
            error_type: ran.error_type(),
            termination: ran.outcome.termination.clone(),
        };
        let (stdout, stderr) = (
            ran.outcome.stdout.bytes.clone(),
            ran.outcome.stderr.bytes.clone(),
        );
        let (usage, timing) = (ran.outcome.usage, ran.outcome.timing);
        let kill_time = ran.outcome.kill_time;
        let result = ran.files.get("result.json").map(Vec::as_slice);
        let record = Record::new(job, "python", ran.outcome, result);
        Self {
            class,
            stdout,
            stderr,
            files: ran.files,
            usage,
            timing,
            kill_time,
            record: serde_json::to_value(record).unwrap(),
        }
    }

    /// What the program printed, as JSON.
    pub(crate) fn json(&self) -> Value {
        let text = String::from_utf8_lossy(&self.stdout);
        serde_json::from_str(&text).unwrap_or_else(|error| {
            panic!("{error}: {text}{}", String::from_utf8_lossy(&self.stderr));
        })
    }

    /// Names of the collected files.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.files.keys().map(String::as_str).collect()
    }

    fn assert_nowhere(&self, name: &str, secret: &str) {
        self.assert_not_printed(name, secret);
        let record = self.record.to_string();
        assert!(
            !record.contains(secret),
            "{name}: `{secret}` is in {record}"
        );
    }

    fn assert_not_printed(&self, name: &str, secret: &str) {
        let contents = self
            .files
            .iter()
            .flat_map(|(name, bytes)| [name.as_bytes(), bytes]);
        for bytes in contents.chain([self.stdout.as_slice(), &self.stderr]) {
            let found = bytes
                .windows(secret.len())
                .any(|part| part == secret.as_bytes());
            assert!(!found, "{name}: `{secret}` has reached the program");
        }
    }
}
