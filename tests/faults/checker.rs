//! What must be true of every history: no accepted job is lost, none has two results, none is ended by
//! whom it was taken from.

use super::history::{Change, History, Row, Seen, Table};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// What may lie between two readings of the clock by one statement.
const SAME_MOMENT: i64 = 50_000;

/// A job as the changes of the database tell it.
#[derive(Default)]
struct Told {
    row: Option<Row>,
    /// Tokens of its attempts.
    tokens: Vec<Uuid>,
    /// Tokens of its results; none for one that came from no attempt.
    results: Vec<Option<Uuid>>,
}

impl Told {
    fn state(&self) -> &str {
        self.row.as_ref().map_or("nothing", state)
    }
}

fn state(row: &Row) -> &str {
    row.state.as_deref().unwrap_or_default()
}

fn is_end(state: &str) -> bool {
    ["succeeded", "failed", "timeout", "oom", "cancelled"].contains(&state)
}

/// Whether an attempt begins with it.
pub(crate) fn is_claim(change: &Change) -> bool {
    let runs = |row: &Option<Row>| row.as_ref().is_some_and(|row| state(row) == "running");
    change.table == Table::Jobs && runs(&change.to) && !runs(&change.from)
}

/// What is wrong with a history, in words.
pub(crate) fn violations(history: &History) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut jobs: BTreeMap<&str, Told> = BTreeMap::new();
    for change in &history.changes {
        let told = jobs.entry(&change.job).or_default();
        let found = match change.table {
            Table::Jobs => of_job(told, change, history.lease.as_micros()),
            Table::Records => of_result(told, change),
        };
        wrong.extend(found.map(|what| format!("{}: {what}", change.job)));
    }
    for (job, told) in &jobs {
        wrong.extend(of_end(told).map(|what| format!("{job}: {what}")));
    }
    wrong.extend(of_keys(history));
    wrong.extend(of_what_was_seen(history, &jobs));
    wrong
}

/// A change of a job's row.
fn of_job(told: &mut Told, change: &Change, lease: u128) -> Option<String> {
    let before = std::mem::replace(&mut told.row, change.to.clone());
    if before != change.from {
        return Some(format!(
            "changed unseen: {before:?} is not {:?}",
            change.from
        ));
    }
    let Some(to) = &change.to else {
        return Some("was removed".to_owned());
    };
    let from = before.unwrap_or_default();
    let attempts = (from.attempts.unwrap_or(0), to.attempts.unwrap_or(0));
    if is_claim(change) {
        let Some(token) = to.token else {
            return Some("was claimed without a token".to_owned());
        };
        let is_new = !told.tokens.contains(&token);
        told.tokens.push(token);
        if !is_new {
            return Some("was claimed with the token of an earlier attempt".to_owned());
        }
        return (is_end(state(&from)) || attempts.1 != attempts.0 + 1)
            .then(|| format!("was claimed from `{}`, {attempts:?}", state(&from)));
    }
    match (state(&from), state(to)) {
        ("", "queued") => (attempts.1 != 0).then(|| "began with attempts".to_owned()),
        ("queued", "queued" | "cancelled") | ("running", "running") => {
            let same = from.token == to.token && attempts.0 == attempts.1;
            let extended = extends_what_is_over(&from, to, lease);
            if extended {
                return Some("had a lease extended that was over".to_owned());
            }
            (!same).then(|| "had its attempt changed".to_owned())
        }
        ("running", "queued") => {
            let given_back = attempts.1 == attempts.0 || attempts.1 == attempts.0 - 1;
            (!given_back).then(|| format!("was given back with {attempts:?}"))
        }
        ("running", end) if is_end(end) => {
            let same = from.token == to.token && attempts.0 == attempts.1;
            (!same).then(|| "was ended as another attempt".to_owned())
        }
        (from, to) => Some(format!("went from `{from}` to `{to}`")),
    }
}

/// A lease counts from the moment it is given: that moment was after the end of the one before.
fn extends_what_is_over(from: &Row, to: &Row, lease: u128) -> bool {
    let (Some(before), Some(after)) = (from.lease_until, to.lease_until) else {
        return false;
    };
    let given = i128::from(after) - lease.cast_signed();
    before != after && given > i128::from(before + SAME_MOMENT)
}

fn of_result(told: &mut Told, change: &Change) -> Option<String> {
    match (&change.from, &change.to) {
        (None, Some(result)) => {
            told.results.push(result.token);
            (told.results.len() > 1).then(|| "has two results".to_owned())
        }
        _ => Some("had its result replaced or removed".to_owned()),
    }
}

/// How a job stands in the end.
fn of_end(told: &Told) -> Option<String> {
    let has_ended = is_end(told.state());
    let Some(result) = told.results.first() else {
        return has_ended.then(|| "has ended without a result".to_owned());
    };
    if !has_ended {
        return Some(format!("has a result and is `{}`", told.state()));
    }
    match result {
        Some(_) if *result == told.tokens.last().copied() => None,
        Some(_) => Some("has the result of an attempt that was not its last".to_owned()),
        None => (!["failed", "cancelled"].contains(&told.state()))
            .then(|| "has a result of no attempt".to_owned()),
    }
}

/// One key of an owner is one job.
fn of_keys(history: &History) -> Vec<String> {
    let mut jobs: BTreeMap<_, BTreeSet<&str>> = BTreeMap::new();
    for change in &history.changes {
        if let Some(key) = &change.key {
            jobs.entry(key).or_default().insert(&change.job);
        }
    }
    let several = jobs.iter().filter(|(_, jobs)| jobs.len() > 1);
    several
        .map(|(key, jobs)| format!("{key:?} has become {jobs:?}"))
        .collect()
}

fn of_what_was_seen(history: &History, jobs: &BTreeMap<&str, Told>) -> Vec<String> {
    let (nothing, mut counted) = (Told::default(), BTreeSet::new());
    let mut keys: BTreeMap<&str, &str> = BTreeMap::new();
    let wrong = history.seen.iter().filter_map(|seen| match seen {
        Seen::Accepted { job, key } => {
            let told = jobs.get(job.as_str()).unwrap_or(&nothing);
            if !is_end(told.state()) {
                return Some(format!(
                    "{job}: was accepted and lost: it is `{}`",
                    told.state()
                ));
            }
            let key = key.as_deref()?;
            let other = keys.insert(key, job).filter(|other| other != job)?;
            Some(format!("{job}: was accepted for the key of {other}"))
        }
        Seen::Claimed { job, token } => {
            let told = jobs.get(job.as_str()).unwrap_or(&nothing);
            (!told.tokens.contains(token))
                .then(|| format!("{job}: an attempt that was given is not there"))
        }
        Seen::Finished { counts: false, .. } => None,
        Seen::Finished { job, token, .. } => {
            let told = jobs.get(job.as_str()).unwrap_or(&nothing);
            if !counted.insert(job) {
                return Some(format!("{job}: two results were taken"));
            }
            (!told.results.contains(&Some(*token)))
                .then(|| format!("{job}: a result was taken that is not there"))
        }
        Seen::Read { job, state } => {
            let told = jobs.get(job.as_str()).unwrap_or(&nothing);
            (is_end(state) && told.state() != state).then(|| {
                format!(
                    "{job}: was read as `{state}`, and is `{}` in the end",
                    told.state()
                )
            })
        }
    });
    wrong.collect()
}
