//! Runs real programs through the real command, each in a sandbox of its own, and then through a server,
//! shows how each ended and holds it against how it must end: `make demo`.
#![expect(clippy::print_stdout, reason = "a program for people at a terminal")]

mod server;

use clap::Parser;
use serde_json::Value;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tako_vm::config;
use tako_vm::sys::process::{self, ProcessError};

/// Run the example programs, each in a sandbox of its own
#[derive(Debug, Parser)]
struct Arguments {
    /// The `tako-vm` command [default: the one that was built with this program]
    #[arg(long, value_name = "PATH")]
    tako_vm: Option<PathBuf>,
    /// Where images, runsc and sandboxes lie
    #[arg(long, value_name = "DIR", env = config::STATE_DIR_VARIABLE, default_value = config::DEFAULT_STATE_DIR)]
    state_dir: PathBuf,
}

/// One program, how it is run, and how it must end.
struct Program {
    name: &'static str,
    /// Below `examples/programs`.
    file: &'static str,
    arguments: Vec<OsString>,
    status: &'static str,
    exit: i32,
    /// Checks what is special about its record and puts that into a few words.
    note: fn(&Value) -> Result<String, String>,
}

/// How long a program may run that only has to learn that there is no network.
const AT_ONCE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    match demonstrate(&Arguments::parse()) {
        Ok(problems) if problems.is_empty() => {
            println!("\nEvery program and every job ended as it must.");
            ExitCode::SUCCESS
        }
        Ok(problems) => {
            println!();
            for problem in &problems {
                complain(problem);
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn complain(problem: &str) {
    // Without a standard error there is nobody to tell; the exit status says it all the same.
    drop(writeln!(io::stderr(), "error: {problem}"));
}

/// Runs all programs; returns what went otherwise than it must.
fn demonstrate(arguments: &Arguments) -> Result<Vec<String>, String> {
    let tako_vm = absolute(&match &arguments.tako_vm {
        Some(path) => path.clone(),
        None => sibling()?,
    })?;
    let state_dir = absolute(&arguments.state_dir)?;
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let programs = programs(&examples.join("data/us_census.csv"));
    println!(
        "Running {} programs with `tako-vm run --json`, each in a gVisor sandbox of its own:\n",
        programs.len()
    );
    println!(
        "{:<10} {:<10} {:>4} {:>8} {:>8}  note",
        "program", "status", "exit", "wall ms", "peak MB"
    );
    let mut problems = Vec::new();
    let mut records = Vec::new();
    for program in &programs {
        let file = examples.join("programs").join(program.file);
        match run(&tako_vm, &state_dir, &file, program) {
            Ok((record, exit)) => {
                problems.extend(show(program, &record, exit));
                records.push((program.name, record));
            }
            Err(error) => {
                println!("{:<10} did not run", program.name);
                problems.push(format!("`{}`: {error}", program.name));
            }
        }
    }
    for (name, record) in &records {
        match *name {
            "census" => show_files(record),
            "endless" => show_partial_output(record),
            _ => {}
        }
    }
    problems.extend(server::demonstrate(&tako_vm, &state_dir)?);
    Ok(problems)
}

/// `target/release/tako-vm` beside `target/release/examples/demo`.
fn sibling() -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|error| format!("who am I: {error}"))?;
    let target = own.parent().and_then(Path::parent);
    target
        .map(|target| target.join("tako-vm"))
        .ok_or_else(|| format!("`{}` lies nowhere: give `--tako-vm`", own.display()))
}

/// Programs are started in `/`: a relative path would mean another place there.
fn absolute(path: &Path) -> Result<PathBuf, String> {
    path.canonicalize()
        .map_err(|error| format!("cannot find `{}`: {error}", path.display()))
}

fn programs(census: &Path) -> Vec<Program> {
    let program = |name, file, arguments: &[&str], (status, exit), note| Program {
        name,
        file,
        arguments: arguments.iter().map(OsString::from).collect(),
        status,
        exit,
        note,
    };
    let mut of_data = program(
        "census",
        "census.py",
        &[
            "--input",
            r#"{"from": 2010, "to": 2020, "top": 5}"#,
            "--file",
        ],
        ("succeeded", 0),
        note_of_census,
    );
    of_data.arguments.push(census.into());
    vec![
        program("hello", "hello.py", &[], ("succeeded", 0), first_line),
        of_data,
        program("raises", "raises.py", &[], ("failed", 1), error),
        program(
            "endless",
            "endless.py",
            &["--timeout", "2"],
            ("timeout", 124),
            note_of_endless,
        ),
        program("hog", "hog.py", &["--memory", "128m"], ("oom", 137), error),
        program("network", "network.py", &[], ("failed", 1), note_of_network),
        program("pool", "pool.py", &[], ("succeeded", 0), note_of_pool),
    ]
}

/// Runs one program; returns its record and the exit status of the command.
fn run(
    tako_vm: &Path,
    state_dir: &Path,
    file: &Path,
    program: &Program,
) -> Result<(Value, i32), String> {
    let mut command = process::program(tako_vm);
    command
        .arg("--state-dir")
        .arg(state_dir)
        .args(["run", "--json"])
        .args(&program.arguments)
        .arg(file);
    let (stdout, exit) = match process::run(&mut command) {
        Ok(printed) => (printed.stdout, 0),
        Err(ProcessError::Failed { stdout, status, .. }) if !stdout.is_empty() => {
            (stdout, status.code().unwrap_or(-1))
        }
        Err(error) => return Err(error.to_string()),
    };
    let record = serde_json::from_str(&stdout)
        .map_err(|error| format!("`tako-vm run --json` did not print a record: {error}"))?;
    Ok((record, exit))
}

/// Prints the line of a program that has run; returns what went otherwise than it must.
fn show(program: &Program, record: &Value, exit: i32) -> Vec<String> {
    let status = record["status"].as_str().unwrap_or("?");
    let note = (program.note)(record);
    println!(
        "{:<10} {:<10} {:>4} {:>8} {:>8}  {}",
        program.name,
        visible(status),
        exit,
        visible(&record["resource_usage"]["wall_time_ms"].to_string()),
        visible(&record["resource_usage"]["max_rss_mb"].to_string()),
        visible(note.as_ref().unwrap_or_else(|problem| problem))
    );
    let mut problems = Vec::new();
    if (status, exit) != (program.status, program.exit) {
        problems.push(format!(
            "`{}` ended as `{}` ({exit}) and not as `{}` ({})",
            program.name,
            visible(status),
            program.status,
            program.exit
        ));
    }
    if record["exit_code"] != exit {
        problems.push(format!(
            "`{}` has another exit code in its record: {}",
            program.name,
            visible(&record["exit_code"].to_string())
        ));
    }
    problems.extend(
        note.err()
            .map(|problem| format!("`{}`: {}", program.name, visible(&problem))),
    );
    problems
}

fn first_line(record: &Value) -> Result<String, String> {
    let line = record["stdout"]
        .as_str()
        .and_then(|text| text.lines().next());
    line.map(str::to_owned)
        .ok_or("it printed nothing".to_owned())
}

fn error(record: &Value) -> Result<String, String> {
    let (kind, message) = (&record["error"]["type"], &record["error"]["message"]);
    match (kind.as_str(), message.as_str()) {
        (Some(kind), Some(message)) => Ok(format!("{kind}: {message}")),
        _ => Err("its record has no error".to_owned()),
    }
}

fn note_of_census(record: &Value) -> Result<String, String> {
    let population = &record["output"]["population"];
    // The published total: the input arrived whole, and the output came back.
    if population != 331_449_281 {
        return Err(format!("the states add up to {population}"));
    }
    let names = artifact_names(record);
    let from_mkstemp = names.iter().any(|name| name.starts_with("chart-"));
    if !from_mkstemp || !names.contains(&"growth.csv") {
        return Err(format!("an artifact is missing: {}", names.join(", ")));
    }
    Ok(format!(
        "{population} people, {} files collected",
        names.len()
    ))
}

fn note_of_endless(record: &Value) -> Result<String, String> {
    match record["stdout"].as_str().map(|text| text.lines().count()) {
        Some(lines @ 1..) => Ok(format!("{}, {lines} lines kept", error(record)?)),
        _ => Err("its output until the timeout is lost".to_owned()),
    }
}

fn note_of_network(record: &Value) -> Result<String, String> {
    let ran = record["timing"]["execution_ms"]
        .as_u64()
        .map(Duration::from_millis);
    match ran {
        Some(ran) if ran < AT_ONCE => Ok(format!("{} (after {ran:?})", error(record)?)),
        _ => Err(format!("it did not fail within {AT_ONCE:?}")),
    }
}

fn note_of_pool(record: &Value) -> Result<String, String> {
    let primes = &record["output"]["primes_below_50000"];
    if primes == 5133 {
        Ok(format!("{primes} primes found by 4 processes"))
    } else {
        Err(format!("it found {primes} primes and not 5133"))
    }
}

fn artifact_names(record: &Value) -> Vec<&str> {
    let artifacts = record["artifacts"].as_array().map(Vec::as_slice);
    artifacts
        .unwrap_or_default()
        .iter()
        .filter_map(|artifact| artifact["name"].as_str())
        .collect()
}

fn show_files(record: &Value) {
    println!("\nThe result of `census`, /output/result.json:");
    let pretty = serde_json::to_string_pretty(&record["output"]).unwrap_or_default();
    show_lines(&pretty);
    println!("and the files that it left in /output:");
    for name in artifact_names(record) {
        println!("  {}", visible(name));
    }
}

fn show_partial_output(record: &Value) {
    println!("\nWhat `endless` printed until it was stopped:");
    show_lines(record["stdout"].as_str().unwrap_or_default());
}

fn show_lines(text: &str) {
    for line in text.lines() {
        println!("  {}", visible(line));
    }
}

/// One line of a program's own text, with everything escaped that could drive a terminal.
fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '"' | '\'' | '\\' => shown.push(letter),
            // Control characters, and those that reorder or hide text.
            _ => shown.extend(letter.escape_debug()),
        }
    }
    shown
}
