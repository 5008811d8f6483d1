//! `tako-vm supervisor status`: the supervisor in numbers, for people and for programs.

use super::{Failure, output, run};
use crate::supervisor::connection::{Connection, ConnectionError};
use crate::supervisor::wire::{Kills, PoolStats, Stats};
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

/// How often a live view is drawn anew.
const INTERVAL: Duration = Duration::from_secs(1);

/// To the upper left corner, and everything behind it cleared (ECMA-48).
const REDRAW: &str = "\x1b[H\x1b[J";

/// Show what the supervisor runs and keeps ready
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print everything as one JSON object
    #[arg(long)]
    json: bool,
    /// Show it anew every second, until interrupted
    #[arg(long)]
    watch: bool,
}

/// Shows the numbers; returns the exit status.
pub(super) async fn run(arguments: &Arguments, socket: &Path) -> Result<u8, Failure> {
    let failed = |error: ConnectionError| Failure {
        hint: error.hint().map(str::to_owned),
        ..Failure::ours(&error)
    };
    let mut connection = Connection::open(socket).await.map_err(failed)?;
    let interrupted =
        run::cancel_on_signals().map_err(|error| Failure::io("cannot watch signals", &error))?;
    loop {
        let stats = tokio::select! {
            stats = connection.stats() => stats.map_err(failed)?,
            () = interrupted.cancelled() => return Ok(0),
        };
        if !show(&stats, arguments)? || !arguments.watch {
            return Ok(0);
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            // The way that a live view is meant to end.
            () = interrupted.cancelled() => return Ok(0),
        }
    }
}

/// Prints it; false when nobody reads that any more.
fn show(stats: &Stats, arguments: &Arguments) -> Result<bool, Failure> {
    let mut stdout = io::stdout().lock();
    let mut text = if arguments.json {
        let mut line = serde_json::to_string(stats).map_err(|error| Failure::ours(&error))?;
        line.push('\n');
        line
    } else {
        describe(stats)
    };
    if arguments.watch && stdout.is_terminal() {
        text.insert_str(0, REDRAW);
    } else if arguments.watch && !arguments.json {
        text.push('\n');
    }
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::io("cannot write the status", &error)),
    }
}

fn describe(stats: &Stats) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // A string takes whatever is written into it.
        writeln!(text, "{name:<12} {value}").ok();
    };
    let taking = if stats.draining {
        "draining: takes no more jobs"
    } else {
        "takes jobs"
    };
    let uptime = uptime(Duration::from_millis(stats.uptime_ms));
    line(
        "supervisor",
        &format!("{}, up {uptime}, {taking}", output::visible(&stats.version)),
    );
    line(
        "jobs",
        &format!(
            "{} of at most {} running, {} ended, {} turned away",
            stats.running, stats.max_jobs, stats.ended, stats.busy
        ),
    );
    line("connections", &stats.connections.to_string());
    line(
        "sandboxes",
        &format!("{} alive, {} swept at start", stats.alive, stats.swept),
    );
    line("kills", &kills(&stats.kill));
    line(
        "ready",
        &format!(
            "{} of at most {} MiB",
            stats.pool_bytes >> 20,
            stats.pool_budget_bytes >> 20
        ),
    );
    if !stats.pools.is_empty() {
        text.push('\n');
        text.push_str(&table(&stats.pools));
    }
    text
}

fn uptime(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        ..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

fn kills(kill: &Kills) -> String {
    if kill.count == 0 {
        return "none".to_owned();
    }
    format!(
        "{}, p50 {:.1} ms, p99 {:.1} ms, at most {:.1} ms",
        kill.count, kill.p50_ms, kill.p99_ms, kill.max_ms
    )
}

const COLUMNS: [&str; 13] = [
    "image", "memory", "target", "ready", "frozen", "starting", "hits", "misses", "rate",
    "refills", "restored", "failed", "retired",
];

/// One line for each profile; `failed` are restores.
fn table(pools: &[PoolStats]) -> String {
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    rows.extend(pools.iter().map(row));
    let widths: [usize; COLUMNS.len()] = std::array::from_fn(|at| {
        rows.iter()
            .map(|row| row[at].chars().count())
            .max()
            .unwrap_or(0)
    });
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths).enumerate();
        let cells = cells.map(|(at, (cell, width))| {
            // Names to the left, numbers to the right.
            if at == 0 {
                format!("{cell:<width$}")
            } else {
                format!("{cell:>width$}")
            }
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn row(pool: &PoolStats) -> [String; COLUMNS.len()] {
    [
        output::visible(&pool.image),
        format!("{}m", pool.memory_bytes >> 20),
        pool.target.to_string(),
        pool.ready.to_string(),
        pool.frozen.to_string(),
        pool.starting.to_string(),
        pool.hits.to_string(),
        pool.misses.to_string(),
        hit_rate(pool),
        pool.refills.to_string(),
        pool.restored.to_string(),
        pool.restore_failures.to_string(),
        pool.retired.to_string(),
    ]
}

fn hit_rate(pool: &PoolStats) -> String {
    let jobs = pool.hits.saturating_add(pool.misses);
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let percent = pool.hits as f64 / jobs as f64 * 100.0;
    if jobs == 0 {
        "-".to_owned()
    } else {
        format!("{percent:.1} %")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_a_few_lines_and_a_table() {
        let stats = Stats {
            version: "0.1.0".to_owned(),
            uptime_ms: 3 * 3_600_000 + 125_000,
            running: 2,
            max_jobs: 8,
            ended: 1234,
            alive: 10,
            kill: Kills {
                count: 1234,
                p50_ms: 3.2,
                p99_ms: 8.0,
                max_ms: 12.05,
            },
            pool_budget_bytes: 2 << 30,
            pool_bytes: 120 << 20,
            pools: vec![
                PoolStats {
                    image: "python".to_owned(),
                    memory_bytes: 512 << 20,
                    target: 4,
                    ready: 4,
                    frozen: 2,
                    hits: 98,
                    misses: 2,
                    ..PoolStats::default()
                },
                PoolStats {
                    image: "da\x1bta".to_owned(),
                    memory_bytes: 64 << 20,
                    ..PoolStats::default()
                },
            ],
            ..Stats::default()
        };
        insta::assert_snapshot!(describe(&stats));
        let draining = Stats {
            draining: true,
            ..Stats::default()
        };
        insta::assert_snapshot!(describe(&draining));
    }

    #[test]
    fn a_time_is_told_in_the_two_units_that_matter() {
        let told = |seconds| uptime(Duration::from_secs(seconds));
        assert_eq!(told(59), "59 s");
        assert_eq!(told(3599), "59 min");
        assert_eq!(told(3600), "1 h 0 min");
        assert_eq!(told(90_000), "1 d 1 h");
    }
}
