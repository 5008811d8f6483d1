//! `tako-vm run`: one program in one sandbox.

use super::{Failure, output};
use crate::client::{Error, Execution, Local, Remote, Running, Target, Unparsed};
use crate::config::{self, Config, SecurityMode};
use crate::job::{InputFile, JobRequest, JobSpec, Termination, parse_bytes};
use crate::sys::privilege;
use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Run a Python program in a gVisor sandbox of its own
///
/// The program finds its input in /input/data.json, writes its result to /output/result.json and
/// whatever else it wants to keep to /output. It has no network.
///
/// A supervisor runs it where one listens, for root and members of the group `tako-vm`; otherwise this
/// command does, as root.
///
/// Exit status: the program's own; 124 timed out; 137 out of memory or killed; 130 interrupted;
/// 125 Tako VM itself failed; 2 wrong usage.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// The program: a file, or `-` for standard input
    #[arg(required_unless_present = "code", conflicts_with = "code")]
    file: Option<PathBuf>,
    /// The program itself
    #[arg(short, long, value_name = "CODE")]
    code: Option<String>,
    /// JSON for /input/data.json, or `@FILE` to read it from
    #[arg(long, value_name = "JSON|@FILE")]
    input: Option<String>,
    /// A file to put into /input, under its own name or another
    #[arg(long = "file", value_name = "PATH[:NAME]")]
    files: Vec<String>,
    /// Seconds that the program may run [default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
    /// Seconds that the interpreter may take to start [default: 120]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    startup_timeout: Option<Duration>,
    /// Memory, the sandbox itself included, such as `512m` or `2g`; at least `64m` [default: 512m]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    memory: Option<u64>,
    /// CPUs, such as `0.5` [default: 1]
    #[arg(long, value_name = "NUMBER", value_parser = millicpus)]
    cpus: Option<u32>,
    /// A variable of the program's environment
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = variable)]
    environment: Vec<(String, String)>,
    /// A directory for the files of /output
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The executor image
    #[arg(long, value_name = "NAME", default_value = config::DEFAULT_IMAGE)]
    image: String,
    /// The socket of the supervisor that runs it [env: `TAKO_VM_SUPERVISOR_SOCKET`] [default:
    /// /run/tako-vm/supervisor.sock if one listens there, and neither state directory nor configuration
    /// is named]
    #[arg(long, value_name = "SOCKET")]
    supervisor: Option<PathBuf>,
    /// Print the full record as one JSON object and nothing else
    #[arg(long)]
    json: bool,
}

/// Bytes that are read of a program at most; the check of the job knows the exact limit.
const MAX_READ: u64 = 65 << 20;

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text
        .parse()
        .ok()
        .and_then(|number| Duration::try_from_secs_f64(number).ok());
    seconds.ok_or_else(|| format!("`{text}` is not a number of seconds"))
}

fn millicpus(text: &str) -> Result<u32, String> {
    let cpus = text
        .parse::<f64>()
        .ok()
        .filter(|number| (0.0..=1e6).contains(number));
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "bounded above"
    )]
    let millicpus = cpus.map(|cpus| (cpus * 1000.0).round() as u32);
    millicpus.ok_or_else(|| format!("`{text}` is not a number of CPUs"))
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// How long a supervisor that is busy is asked again.
const PATIENCE: Duration = Duration::from_secs(30);

/// After how long its user is told.
const UNTOLD: Duration = Duration::from_secs(1);

/// How often it is asked at most, and at least.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// Runs the program; returns the exit status of `tako-vm`.
pub(super) fn run(
    arguments: &Arguments,
    state_dir: Option<PathBuf>,
    config: Option<&Path>,
) -> Result<u8, Failure> {
    let request = request(arguments)?;
    let named = arguments.supervisor.clone().or_else(config::named_socket);
    let elsewhere = state_dir.is_some() || config.is_some();
    let remote = Remote::find(named, elsewhere, &arguments.image);
    if let Some(remote) = remote.map_err(|error| Failure::library(&error))? {
        return super::small_runtime()?.block_on(supervised(arguments, request, &remote));
    }
    // First, since whoever is not root may not be able to read the configuration either.
    super::require_root("run").map_err(|failure| Failure {
        hint: Some(
            "run it as root: `sudo tako-vm run`, or start `tako-vm supervisor` as root and become a \
             member of the group `tako-vm`"
                .to_owned(),
        ),
        ..failure
    })?;
    let state_dir = super::absolute(state_dir)?;
    let config = Config::load(config).map_err(|error| Failure::ours(&error))?;
    super::full_runtime()?.block_on(alone(arguments, request, &state_dir, &config))
}

/// Has a supervisor run the program.
async fn supervised(
    arguments: &Arguments,
    request: JobRequest,
    remote: &Remote,
) -> Result<u8, Failure> {
    let prepared = Prepared::new(arguments)?;
    let request = Arc::new(request);
    let Some(running) = submit(remote, request, !arguments.json, &prepared.cancel).await? else {
        return Ok(super::INTERRUPTED);
    };
    let execution = attend(running, &prepared.cancel, arguments.json).await?;
    if execution.runtime() != GVISOR {
        warn_of(execution.runtime());
    }
    prepared.conclude(execution, ())
}

/// Hands the job over, as soon as there is room for it; `None` when somebody has lost patience.
async fn submit(
    remote: &Remote,
    request: Arc<JobRequest>,
    stream: bool,
    cancel: &CancellationToken,
) -> Result<Option<Running>, Failure> {
    let begun = Instant::now();
    let mut told = false;
    loop {
        let submitted = tokio::select! {
            biased;
            submitted = remote.submit(Arc::clone(&request), stream, cancel) => submitted,
            () = cancel.cancelled() => return Ok(None),
        };
        let pause = match submitted {
            Ok(running) => return Ok(Some(running)),
            Err(Error::Busy { retry_after }) if begun.elapsed() < PATIENCE => {
                retry_after.clamp(PAUSE.0, PAUSE.1)
            }
            Err(error) => return Err(Failure::library(&error)),
        };
        if !told && begun.elapsed() >= UNTOLD {
            told = true;
            let seconds = PATIENCE.as_secs();
            super::warn(&format!(
                "the supervisor runs as many jobs as it may: waiting for up to {seconds} s"
            ));
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = cancel.cancelled() => return Ok(None),
        }
    }
}

/// Runs the program in this process.
async fn alone(
    arguments: &Arguments,
    request: JobRequest,
    state_dir: &Path,
    config: &Config,
) -> Result<u8, Failure> {
    let job = JobSpec::check(request, &config.maxima).map_err(|error| Failure::usage(&error))?;
    // Before anything is made in the state directory.
    require_reader(arguments)?;
    let local = Local::open(state_dir, &arguments.image, config)
        .map_err(|error| Failure::library(&error))?;
    if let SecurityMode::Permissive(kind) = config.security_mode {
        warn_of(kind.name());
    }
    for left in &local.swept().left {
        super::warn(&super::one_line(left));
    }
    let prepared = Prepared::new(arguments)?;
    let running = local.launch(job, &prepared.cancel);
    let execution = attend(running, &prepared.cancel, arguments.json).await?;
    prepared.conclude(execution, local)
}

/// The runtime of strict mode, as an execution names it.
const GVISOR: &str = "runsc";

fn warn_of(runtime: &str) {
    super::warn(&format!(
        "permissive mode: the program runs in a `{}` container and shares the kernel of this host, \
         which isolates it less than gVisor does",
        output::visible(runtime)
    ));
}

/// Whom the result is parsed as, if we are root: missed before the program runs, not after.
fn require_reader(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.json {
        privilege::require_user(super::USER).map_err(|error| Failure::ours(&error))?;
    }
    Ok(())
}

/// What has to be in place before a program runs.
struct Prepared {
    out: Option<Target>,
    cancel: CancellationToken,
    json: bool,
}

impl Prepared {
    fn new(arguments: &Arguments) -> Result<Self, Failure> {
        require_reader(arguments)?;
        let out = arguments.out.as_deref().map(Target::open);
        let out = out.transpose().map_err(|error| Failure::usage(&error))?;
        let cancel =
            cancel_on_signals().map_err(|error| Failure::io("cannot watch signals", &error))?;
        Ok(Self {
            out,
            cancel,
            json: arguments.json,
        })
    }

    /// Saves and says what is left to say. `held` is what only root can give back.
    fn conclude(self, execution: Execution, held: impl Sized) -> Result<u8, Failure> {
        let saved = self.out.map_or(Ok(()), |out| execution.save_to(&out));
        let status = execution.exit_code().unwrap_or(super::FAILED);
        if self.json {
            let unparsed = execution
                .unparsed()
                .map_err(|error| Failure::ours(&error))?;
            // While we are root: both remove what only root can.
            drop((execution, held));
            print_record(unparsed)?;
        } else {
            explain(&execution);
        }
        saved
            .map(|()| status)
            .map_err(|error| Failure::ours(&error))
    }
}

/// Waits for the end; prints the output as it comes, unless a record is to be printed.
async fn attend(
    running: Running,
    cancel: &CancellationToken,
    json: bool,
) -> Result<Execution, Failure> {
    if json {
        let ended = running.wait().await;
        return ended.map_err(|error| Failure::library(&error));
    }
    let (events, completion) = running.into_parts();
    let printer = output::print(events, cancel.clone());
    let ended = completion.wait().await;
    let execution = ended.map_err(|error| Failure::library(&error))?;
    output::finish(printer, cancel).await;
    Ok(execution)
}

/// What the command line asks for, read from where it says.
fn request(arguments: &Arguments) -> Result<JobRequest, Failure> {
    let code = match (&arguments.code, &arguments.file) {
        (Some(code), _) => code.clone(),
        (None, Some(file)) if file == Path::new("-") => {
            text("standard input", read(io::stdin(), "standard input")?)?
        }
        (None, Some(file)) => read_text(file)?,
        (None, None) => String::new(),
    };
    let input = match &arguments.input {
        Some(input) => Some(match input.strip_prefix('@') {
            Some(file) => read_text(Path::new(file))?,
            None => input.clone(),
        }),
        None => None,
    };
    let files = arguments
        .files
        .iter()
        .map(|file| input_file(file))
        .collect::<Result<_, _>>()?;
    Ok(JobRequest {
        code,
        input,
        files,
        environment: arguments.environment.clone(),
        memory_bytes: arguments.memory,
        millicpus: arguments.cpus,
        timeout: arguments.timeout,
        startup_timeout: arguments.startup_timeout,
    })
}

/// `PATH[:NAME]`; a path with a colon needs a name behind it.
fn input_file(argument: &str) -> Result<InputFile, Failure> {
    let (path, name) = argument.rsplit_once(':').unwrap_or((argument, ""));
    let path = Path::new(path);
    let name = if name.is_empty() {
        path.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    } else {
        name.to_owned()
    };
    let file = File::open(path).map_err(|error| unreadable(path, &error))?;
    Ok(InputFile {
        name,
        bytes: read(file, &path.display().to_string())?,
    })
}

fn read_text(path: &Path) -> Result<String, Failure> {
    let file = File::open(path).map_err(|error| unreadable(path, &error))?;
    let name = path.display().to_string();
    text(&name, read(file, &name)?)
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::wrong(format!("cannot read `{}`: {error}", path.display()))
}

fn read(source: impl Read, name: &str) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    source
        .take(MAX_READ)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::wrong(format!("cannot read `{name}`: {error}")))?;
    Ok(bytes)
}

fn text(name: &str, bytes: Vec<u8>) -> Result<String, Failure> {
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Failure::wrong(format!(
            "`{name}` is not UTF-8 at byte {at}: save it as UTF-8"
        ))
    })
}

/// A token that SIGINT, SIGTERM and SIGHUP cancel.
pub(super) fn cancel_on_signals() -> io::Result<CancellationToken> {
    let token = CancellationToken::new();
    for kind in [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ] {
        let mut signals = signal(kind)?;
        let token = token.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                token.cancel();
            }
        });
    }
    Ok(token)
}

fn print_record(unparsed: Unparsed) -> Result<(), Failure> {
    // The result is a program's: it is parsed as a user who can do nothing.
    privilege::drop_root(super::USER).map_err(|error| Failure::ours(&error))?;
    let mut line = serde_json::to_vec(&unparsed.parse()).map_err(|error| Failure::ours(&error))?;
    line.push(b'\n');
    let mut stdout = io::stdout().lock();
    if stdout.is_terminal() {
        line = output::visible_json(&String::from_utf8_lossy(&line)).into_bytes();
    }
    match stdout.write_all(&line).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::io("cannot write the record", &error))
        }
        _ => Ok(()),
    }
}

/// Says on stderr what the program's own output cannot: why we ended it, and what was left out.
fn explain(execution: &Execution) {
    let termination = execution.termination();
    let ended_by_us = !matches!(
        termination,
        Termination::Exited(_) | Termination::Signalled(_) | Termination::Cancelled
    );
    if ended_by_us && let Some(error) = execution.error() {
        super::complain(&output::visible(&error.message));
        if let Some(hint) = hint(termination) {
            super::hint(hint);
        }
    }
    if execution.artifacts_truncated() {
        super::complain("some files of /output were not collected");
        for skipped in execution.artifacts_skipped() {
            super::hint(&format!(
                "`{}`: {}",
                output::visible(&skipped.name),
                skipped.reason
            ));
        }
    }
}

fn hint(termination: &Termination) -> Option<&'static str> {
    match termination {
        Termination::TimedOut(_) => {
            Some("give it more time with `--timeout` or `--startup-timeout`")
        }
        Termination::OutOfMemory => Some("give it more with `--memory`"),
        _ => None,
    }
}
