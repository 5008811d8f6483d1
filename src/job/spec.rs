//! Checking what is asked for. Nothing below this module checks again.

use super::limits::{Limits, MIN_MEMORY_BYTES, whole_pages};
use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

/// Bytes of the program's source at most: some room above Tako VM's 100,000 characters.
const MAX_CODE_BYTES: usize = 1 << 20;

/// Bytes of `/input/data.json` at most.
const MAX_INPUT_BYTES: usize = 1 << 20;

/// Bytes of all input files together at most; they lie in the sandbox's memory.
const MAX_FILES_BYTES: usize = 64 << 20;

/// Files in `/input` at most.
pub const MAX_FILES: usize = 100;

/// Variables of the environment at most.
pub const MAX_VARIABLES: usize = 256;

/// Bytes of all variables at most: far below what exec takes.
const MAX_ENV_BYTES: usize = 256 << 10;

/// Longest name of an environment variable, and longest value, in bytes.
const MAX_ENV_NAME: usize = 256;
const MAX_ENV_VALUE: usize = 32 << 10;

/// The input of a job that has none.
pub(super) const EMPTY_INPUT: &str = "{}";

/// What a caller asks for, unchecked.
#[derive(Debug, Clone, Default)]
pub struct JobRequest {
    /// The program.
    pub code: String,
    /// JSON text for `/input/data.json`; `None` means `{}`.
    pub input: Option<String>,
    /// Further files of `/input`.
    pub files: Vec<InputFile>,
    /// Variables of the program's environment.
    pub environment: Vec<(String, String)>,
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// Thousandths of a CPU.
    pub millicpus: Option<u32>,
    /// Limit of the program's run.
    pub timeout: Option<Duration>,
    /// Limit of the interpreter's start.
    pub startup_timeout: Option<Duration>,
}

/// A file for `/input`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputFile {
    /// A single path component.
    pub name: String,
    /// Contents.
    pub bytes: Vec<u8>,
}

/// What an operator allows at most, and what applies where nothing is asked for.
#[derive(Debug, Clone)]
pub struct Maxima {
    /// Where the request is silent.
    pub defaults: Limits,
    /// Ceiling of `memory_bytes`.
    pub memory_bytes: u64,
    /// Ceiling of `millicpus`.
    pub millicpus: u32,
    /// Ceiling of `timeout`.
    pub timeout: Duration,
    /// Ceiling of `startup_timeout`.
    pub startup_timeout: Duration,
}

impl Default for Maxima {
    fn default() -> Self {
        Self {
            defaults: Limits::default(),
            memory_bytes: 32 << 30,
            millicpus: 16_000,
            timeout: Duration::from_mins(5),
            startup_timeout: Duration::from_mins(10),
        }
    }
}

/// A job that can be run as it is.
#[derive(Debug, Clone)]
pub struct JobSpec {
    /// The program, for `/code/main.py`.
    pub code: String,
    /// JSON text for `/input/data.json`.
    pub input: String,
    /// Further files of `/input`.
    pub files: Vec<InputFile>,
    /// The program's whole environment.
    pub environment: Vec<(String, String)>,
    /// Its limits.
    pub limits: Limits,
}

/// Everything that is wrong with a request, each with what, why and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecError {
    /// One sentence for each bad field.
    pub problems: Vec<String>,
}

impl fmt::Display for SpecError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.problems.join("; "))
    }
}

impl std::error::Error for SpecError {}

/// What every program finds in its environment; a request may override each of them.
const BASE_ENVIRONMENT: [(&str, &str); 5] = [
    ("PATH", "/usr/local/bin:/usr/bin:/bin"),
    ("HOME", "/tmp"),
    ("LANG", "C.UTF-8"),
    ("XDG_CACHE_HOME", "/tmp/.cache"),
    ("MPLCONFIGDIR", "/tmp/.cache/matplotlib"),
];

/// Beginnings of names of variables that are read while the interpreter starts, or while a library is
/// imported that an image may hold ready.
const READ_AT_START: [&str; 34] = [
    "PYTHON",
    "LD_",
    "LC_",
    "LANG",
    "TZ",
    "MALLOC_",
    "GLIBC_",
    "GCONV_",
    "LOCPATH",
    "PATH",
    "HOME",
    "OPENSSL_",
    "SSL_",
    "OMP_",
    "KMP_",
    "GOMP_",
    "OPENBLAS_",
    "GOTO_",
    "BLIS_",
    "MKL_",
    "NPY_",
    "NUMEXPR_",
    "MPL",
    "JOBLIB_",
    "SKLEARN_",
    "LOKY_",
    "MATPLOTLIB",
    "NUMPY_",
    "PANDAS_",
    "PILLOW_",
    "PYPARSING",
    "PYTZ_",
    "SCIPY_",
    "XDG_",
];

impl JobSpec {
    /// What every program finds in its environment unless its request says otherwise.
    pub fn base_environment() -> Vec<(String, String)> {
        environment(Vec::new())
    }

    /// Whether its environment has to be there before the interpreter is started: one that was started
    /// with the [base](Self::base_environment) would not take it up any more.
    pub fn needs_own_interpreter(&self) -> bool {
        let is_base = |name: &str, value: &str| BASE_ENVIRONMENT.contains(&(name, value));
        let is_read = |name: &str| READ_AT_START.iter().any(|start| name.starts_with(start));
        let mut own = self.environment.iter();
        own.any(|(name, value)| is_read(name) && !is_base(name, value))
    }

    /// Checks that there are no more files and variables than any job may have: what is sent to a
    /// service is bounded by that before anything else of it is looked at.
    ///
    /// # Errors
    /// [`SpecError`] with what are too many.
    pub fn check_counts(request: &JobRequest) -> Result<(), SpecError> {
        let mut problems = Problems(Vec::new());
        problems.check_counts(request.files.len(), request.environment.len());
        if problems.0.is_empty() {
            Ok(())
        } else {
            Err(SpecError {
                problems: problems.0,
            })
        }
    }

    /// Checks a request against the operator's maxima.
    ///
    /// # Errors
    /// [`SpecError`] naming every bad field, not only the first.
    pub fn check(request: JobRequest, maxima: &Maxima) -> Result<Self, SpecError> {
        let mut problems = Problems(Vec::new());
        problems.check_code(&request.code);
        let input = request.input.unwrap_or_else(|| EMPTY_INPUT.to_owned());
        problems.check_input(&input);
        problems.check_counts(request.files.len(), request.environment.len());
        problems.check_files(&request.files);
        problems.check_environment(&request.environment);
        let mut limits = maxima.defaults.clone();
        limits.memory_bytes = whole_pages(request.memory_bytes.unwrap_or(limits.memory_bytes));
        limits.millicpus = request.millicpus.unwrap_or(limits.millicpus);
        limits.execution = request.timeout.unwrap_or(limits.execution);
        limits.startup = request.startup_timeout.unwrap_or(limits.startup);
        problems.check_limits(&limits, maxima);
        if problems.0.is_empty() {
            let environment = environment(request.environment);
            Ok(Self {
                code: request.code,
                input,
                files: request.files,
                environment,
                limits,
            })
        } else {
            Err(SpecError {
                problems: problems.0,
            })
        }
    }
}

/// The base environment with the request's own variables over it.
fn environment(own: Vec<(String, String)>) -> Vec<(String, String)> {
    let base = BASE_ENVIRONMENT
        .iter()
        .filter(|(name, _)| own.iter().all(|(other, _)| other != name));
    let mut all: Vec<_> = base
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    all.extend(own);
    all
}

struct Problems(Vec<String>);

impl Problems {
    fn add(&mut self, problem: impl Into<String>) {
        self.0.push(problem.into());
    }

    fn at_most(&mut self, what: &str, found: usize, most: usize) {
        if found > most {
            self.add(format!(
                "{what} has {found} bytes, and at most {most} are allowed"
            ));
        }
    }

    fn check_code(&mut self, code: &str) {
        if code.trim().is_empty() {
            self.add("the program is empty: give it at least one statement");
        }
        if code.contains('\0') {
            self.add("the program contains a NUL byte, which Python does not read");
        }
        self.at_most("the program", code.len(), MAX_CODE_BYTES);
    }

    fn check_input(&mut self, input: &str) {
        self.at_most("the input", input.len(), MAX_INPUT_BYTES);
        // Into a tree, since serde_json bounds the depth of a tree (128) and not of text it skips.
        if let Err(error) = serde_json::from_str::<serde_json::Value>(input) {
            self.add(format!("the input is not JSON: {error}"));
        }
    }

    fn check_counts(&mut self, files: usize, variables: usize) {
        if files > MAX_FILES {
            self.add(format!(
                "{files} input files were given, and at most {MAX_FILES} are allowed"
            ));
        }
        if variables > MAX_VARIABLES {
            self.add(format!(
                "{variables} environment variables were given, and at most {MAX_VARIABLES} are allowed"
            ));
        }
    }

    fn check_files(&mut self, files: &[InputFile]) {
        let mut names = BTreeSet::from(["data.json"]);
        for file in files {
            let name = file.name.as_str();
            if !is_file_name(name) {
                self.add(format!(
                    "`{}` cannot be a file name in /input: use a single name without `/`, `..` and \
                     control characters, at most 255 bytes",
                    name.escape_debug()
                ));
            } else if !names.insert(name) {
                self.add(format!(
                    "two files in /input would be named `{name}`: rename one"
                ));
            }
        }
        let total = files.iter().map(|file| file.bytes.len()).sum();
        self.at_most("the sum of the input files", total, MAX_FILES_BYTES);
    }

    fn check_environment(&mut self, environment: &[(String, String)]) {
        let bytes = environment
            .iter()
            .map(|(name, value)| name.len() + value.len());
        self.at_most("the environment", bytes.sum(), MAX_ENV_BYTES);
        let mut names = BTreeSet::new();
        for (name, value) in environment {
            if !is_variable_name(name) {
                self.add(format!(
                    "`{}` cannot be an environment variable: use letters, digits and `_`, not starting \
                     with a digit, at most {MAX_ENV_NAME} bytes",
                    name.escape_debug()
                ));
            } else if !names.insert(name) {
                self.add(format!(
                    "the environment variable `{name}` is given twice: drop one"
                ));
            }
            if value.contains('\0') {
                self.add(format!(
                    "the value of `{}` contains a NUL byte",
                    name.escape_debug()
                ));
            }
            self.at_most(
                &format!("the value of `{}`", name.escape_debug()),
                value.len(),
                MAX_ENV_VALUE,
            );
        }
    }

    fn check_limits(&mut self, limits: &Limits, maxima: &Maxima) {
        let (found, most) = (limits.memory_bytes, maxima.memory_bytes);
        if found < MIN_MEMORY_BYTES {
            let (found, least) = (found >> 20, MIN_MEMORY_BYTES >> 20);
            self.add(format!(
                "{found} MiB of memory are too little for a sandbox: give it at least {least}m"
            ));
        } else if found > most {
            let (found, most) = (found >> 20, most >> 20);
            self.add(format!(
                "{found} MiB of memory exceed the maximum of {most}m"
            ));
        }
        if limits.millicpus < 100 || limits.millicpus > maxima.millicpus {
            let (found, most) = (
                f64::from(limits.millicpus) / 1e3,
                f64::from(maxima.millicpus) / 1e3,
            );
            self.add(format!(
                "{found} CPUs are out of range: give between 0.1 and {most}"
            ));
        }
        self.check_time("timeout", limits.execution, maxima.timeout);
        self.check_time("startup timeout", limits.startup, maxima.startup_timeout);
    }

    fn check_time(&mut self, what: &str, found: Duration, most: Duration) {
        if found.is_zero() || found > most {
            self.add(format!(
                "a {what} of {found:?} is out of range: give more than 0 and at most {most:?}"
            ));
        }
    }
}

/// One path component that can be made in `/input`.
fn is_file_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && name != "."
        && name != ".."
        && !name.contains(|letter: char| letter == '/' || letter.is_control())
}

fn is_variable_name(name: &str) -> bool {
    name.len() <= MAX_ENV_NAME
        && name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name
            .chars()
            .all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(code: &str) -> JobRequest {
        JobRequest {
            code: code.to_owned(),
            ..JobRequest::default()
        }
    }

    #[test]
    fn a_plain_request_gets_the_defaults() {
        let job = JobSpec::check(request("print(1)"), &Maxima::default()).unwrap();
        assert_eq!(job.input, "{}");
        let limits = job.limits;
        assert_eq!((limits.memory_bytes, limits.millicpus), (512 << 20, 1000));
        assert_eq!(limits.execution, Duration::from_secs(30));
        assert_eq!(limits.startup, Duration::from_mins(2));
        assert_eq!((limits.processes, limits.open_files), (50, 256));
        assert_eq!(
            (limits.stdout_bytes, limits.output_bytes),
            (64 << 10, 1 << 30)
        );
        assert!(
            job.environment
                .contains(&("LANG".to_owned(), "C.UTF-8".to_owned()))
        );
    }

    #[test]
    fn what_the_interpreter_reads_at_its_start_needs_one_of_its_own() {
        let needs = |name: &str, value: &str| {
            let mut own = request("pass");
            own.environment = vec![(name.to_owned(), value.to_owned())];
            JobSpec::check(own, &Maxima::default())
                .unwrap()
                .needs_own_interpreter()
        };
        for name in [
            "PYTHONHASHSEED",
            "LC_ALL",
            "LANGUAGE",
            "TZ",
            "HOME",
            "MPLBACKEND",
        ] {
            assert!(needs(name, "1"), "{name}");
        }
        assert!(!needs("HOME", "/tmp"));
        assert!(!needs("GREETING", "hello"));
        let plain = JobSpec::check(request("pass"), &Maxima::default()).unwrap();
        assert!(!plain.needs_own_interpreter());
    }

    #[test]
    fn every_bad_field_is_named_at_once() {
        let bad = JobRequest {
            code: " \n".to_owned(),
            input: Some("{".to_owned()),
            files: vec![
                InputFile {
                    name: "../x".to_owned(),
                    bytes: vec![],
                },
                InputFile {
                    name: "data.json".to_owned(),
                    bytes: vec![],
                },
            ],
            environment: vec![("A=B".to_owned(), "1\0".to_owned())],
            memory_bytes: Some(1 << 20),
            millicpus: Some(0),
            timeout: Some(Duration::ZERO),
            startup_timeout: Some(Duration::from_secs(601)),
        };
        let error = JobSpec::check(bad, &Maxima::default()).unwrap_err();
        insta::assert_snapshot!(error.problems.join("\n"), @r"
        the program is empty: give it at least one statement
        the input is not JSON: EOF while parsing an object at line 1 column 1
        `../x` cannot be a file name in /input: use a single name without `/`, `..` and control characters, at most 255 bytes
        two files in /input would be named `data.json`: rename one
        `A=B` cannot be an environment variable: use letters, digits and `_`, not starting with a digit, at most 256 bytes
        the value of `A=B` contains a NUL byte
        1 MiB of memory are too little for a sandbox: give it at least 64m
        0 CPUs are out of range: give between 0.1 and 16
        a timeout of 0ns is out of range: give more than 0 and at most 300s
        a startup timeout of 601s is out of range: give more than 0 and at most 600s
        ");
    }

    #[test]
    fn what_would_not_fit_into_a_sandbox_is_refused_with_both_numbers() {
        let maxima = Maxima::default();
        let refused = |request| JobSpec::check(request, &maxima).unwrap_err().to_string();
        let long = refused(request(&"#".repeat(MAX_CODE_BYTES + 1)));
        assert_eq!(
            long,
            "the program has 1048577 bytes, and at most 1048576 are allowed"
        );
        let mut many = request("print(1)");
        many.environment = (0..=MAX_VARIABLES)
            .map(|number| (format!("V{number}"), String::new()))
            .collect();
        assert!(refused(many).starts_with("257 environment variables were given"));
        let mut big = request("print(1)");
        big.files = vec![InputFile {
            name: "a".to_owned(),
            bytes: vec![0; MAX_FILES_BYTES + 1],
        }];
        assert!(refused(big).starts_with("the sum of the input files has 67108865 bytes"));
        let mut deep = request("print(1)");
        deep.input = Some("[".repeat(200) + &"]".repeat(200));
        assert!(refused(deep).contains("recursion limit"));
    }

    #[test]
    fn memory_is_rounded_down_to_whole_pages_as_the_kernel_has_them() {
        let mut odd = request("print(1)");
        odd.memory_bytes = Some(100_000_001);
        let job = JobSpec::check(odd, &Maxima::default()).unwrap();
        assert_eq!(job.limits.memory_bytes, 99_999_744);
    }

    #[test]
    fn an_own_variable_replaces_the_base_one() {
        let mut own = request("print(1)");
        own.environment = vec![("LANG".to_owned(), "C".to_owned())];
        let job = JobSpec::check(own, &Maxima::default()).unwrap();
        let values: Vec<_> = job
            .environment
            .iter()
            .filter(|(name, _)| name == "LANG")
            .collect();
        assert_eq!(values, [&("LANG".to_owned(), "C".to_owned())]);
    }

    proptest! {
        #[test]
        fn each_bad_field_is_one_problem_and_no_other_is(bad: [bool; 8]) {
            let [code, input, file, variable, memory, cpu, timeout, startup] = bad;
            let file = InputFile {
                name: if file { "a/b" } else { "b" }.to_owned(),
                bytes: vec![],
            };
            let variable = if variable { "1A" } else { "A" }.to_owned();
            let request = JobRequest {
                code: if code { "" } else { "print(1)" }.to_owned(),
                input: Some(if input { "{" } else { "[]" }.to_owned()),
                files: vec![file],
                environment: vec![(variable, String::new())],
                memory_bytes: Some(if memory { u64::MAX } else { 64 << 20 }),
                millicpus: Some(if cpu { 99 } else { 100 }),
                timeout: Some(if timeout { Duration::MAX } else { Duration::from_nanos(1) }),
                startup_timeout: Some(if startup { Duration::ZERO } else { Duration::from_mins(10) }),
            };
            let problems = match JobSpec::check(request, &Maxima::default()) {
                Ok(_) => 0,
                Err(error) => error.problems.len(),
            };
            prop_assert_eq!(problems, bad.iter().filter(|bad| **bad).count());
        }

        #[test]
        fn a_name_that_is_let_through_means_nothing_to_a_path_or_an_environment(name in ".{0,300}") {
            if is_file_name(&name) {
                let components: Vec<_> = std::path::Path::new(&name).components().collect();
                prop_assert!(matches!(components[..], [std::path::Component::Normal(_)]));
            }
            if is_variable_name(&name) {
                prop_assert!(!name.contains(['=', '\0']) && !name.is_empty());
            }
        }
    }
}
