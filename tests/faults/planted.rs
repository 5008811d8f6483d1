//! The checker itself: histories that are as they should be, and such that are not.

use super::checker::violations;
use super::history::{Change, History, Row, Seen, Table};
use std::time::Duration;
use uuid::Uuid;

const LEASE: i64 = 3_000_000;

const FIRST: Uuid = Uuid::from_u128(1);
const SECOND: Uuid = Uuid::from_u128(2);

fn row(state: &str, token: Option<Uuid>, attempts: i16) -> Row {
    Row {
        state: Some(state.to_owned()),
        token,
        attempts: Some(attempts),
        lease_until: token.map(|_| 10 * LEASE),
    }
}

fn result(token: Option<Uuid>) -> Change {
    Change {
        table: Table::Records,
        key: None,
        worker: None,
        from: None,
        to: Some(Row {
            token,
            ..Row::default()
        }),
        ..job(None, None)
    }
}

fn job(from: Option<Row>, to: Option<Row>) -> Change {
    Change {
        table: Table::Jobs,
        job: "a".to_owned(),
        key: Some((String::new(), "key-of-a".to_owned())),
        worker: None,
        at: 0,
        from,
        to,
    }
}

/// Rows one after the other, each the end of one change and the beginning of the next.
fn rows(rows: &[Row]) -> Vec<Change> {
    let mut before = None;
    let mut changes = Vec::new();
    for row in rows {
        changes.push(job(before.replace(row.clone()), Some(row.clone())));
    }
    changes
}

fn history(changes: Vec<Change>) -> History {
    History {
        lease: Duration::from_micros(LEASE.unsigned_abs()),
        seen: vec![Seen::Accepted {
            job: "a".to_owned(),
            key: Some("key-of-a".to_owned()),
        }],
        changes,
    }
}

/// A job whose first attempt is lost, and whose second ends it.
fn lost_once() -> Vec<Row> {
    vec![
        row("queued", None, 0),
        row("running", Some(FIRST), 1),
        row("queued", Some(FIRST), 1),
        row("running", Some(SECOND), 2),
        row("succeeded", Some(SECOND), 2),
    ]
}

fn good() -> History {
    let mut changes = rows(&lost_once());
    changes.push(result(Some(SECOND)));
    let mut history = history(changes);
    for (token, counts) in [(FIRST, false), (SECOND, true), (SECOND, false)] {
        let job = "a".to_owned();
        history.seen.push(Seen::Claimed { job, token });
        let job = "a".to_owned();
        history.seen.push(Seen::Finished { job, token, counts });
    }
    for state in ["queued", "running", "succeeded"] {
        history.seen.push(Seen::Read {
            job: "a".to_owned(),
            state: state.to_owned(),
        });
    }
    history
}

#[test]
fn a_history_as_it_should_be_is_taken() {
    assert_eq!(violations(&good()), Vec::<String>::new());
    let mut cancelled = rows(&[row("queued", None, 0), row("cancelled", None, 0)]);
    cancelled.push(result(None));
    assert_eq!(violations(&history(cancelled)), Vec::<String>::new());
    let mut given_back = lost_once();
    given_back[2].attempts = Some(0);
    given_back[3].attempts = Some(1);
    given_back[4].attempts = Some(1);
    let mut given_back = rows(&given_back);
    given_back.push(result(Some(SECOND)));
    assert_eq!(violations(&history(given_back)), Vec::<String>::new());
}

/// Changes a good history, and looks for what must be said of it then.
#[track_caller]
fn refused(what: &str, change: impl FnOnce(&mut History)) {
    let mut bad = good();
    change(&mut bad);
    let found = violations(&bad);
    assert!(found.iter().any(|found| found.contains(what)), "{found:?}");
}

fn rewritten(history: &mut History, change: impl FnOnce(&mut Vec<Row>)) {
    let mut all = lost_once();
    change(&mut all);
    history.changes = rows(&all);
    history.changes.push(result(Some(SECOND)));
}

#[test]
fn what_is_lost_is_found() {
    refused("accepted and lost: it is `nothing`", |bad| {
        bad.changes.clear();
    });
    refused("accepted and lost: it is `running`", |bad| {
        bad.changes.truncate(4);
    });
    refused("without a result", |bad| bad.changes.truncate(5));
    refused("was removed", |bad| {
        let last = lost_once().pop();
        bad.changes.push(job(last, None));
    });
    refused("an attempt that was given is not there", |bad| {
        bad.seen.push(Seen::Claimed {
            job: "a".to_owned(),
            token: Uuid::from_u128(3),
        });
    });
    refused("a result was taken that is not there", |bad| {
        bad.changes.pop();
    });
}

#[test]
fn what_is_there_twice_is_found() {
    refused("has two results", |bad| {
        bad.changes.push(result(Some(SECOND)));
    });
    refused("result replaced", |bad| {
        let mut replaced = result(Some(SECOND));
        replaced.from = replaced.to.clone();
        bad.changes.push(replaced);
    });
    refused("went from `succeeded` to `failed`", |bad| {
        rewritten(bad, |rows| rows.push(row("failed", Some(SECOND), 2)));
    });
    refused("claimed from `succeeded`", |bad| {
        rewritten(bad, |rows| {
            rows.push(row("running", Some(Uuid::from_u128(3)), 3));
        });
    });
    refused("two results were taken", |bad| {
        bad.seen.push(Seen::Finished {
            job: "a".to_owned(),
            token: SECOND,
            counts: true,
        });
    });
    refused("has become", |bad| {
        let mut other = rows(&[row("queued", None, 0)]);
        other[0].job = "b".to_owned();
        bad.changes.extend(other);
    });
    refused("accepted for the key of a", |bad| {
        let mut other = rows(&[row("queued", None, 0), row("cancelled", None, 0)]);
        other.push(result(None));
        for change in &mut other {
            change.job = "b".to_owned();
            change.key = None;
        }
        bad.changes.extend(other);
        bad.seen.push(Seen::Accepted {
            job: "b".to_owned(),
            key: Some("key-of-a".to_owned()),
        });
    });
}

#[test]
fn what_comes_from_whom_a_job_was_taken_is_found() {
    refused("not its last", |bad| {
        bad.changes.pop();
        bad.changes.push(result(Some(FIRST)));
    });
    refused("ended as another attempt", |bad| {
        rewritten(bad, |rows| rows[4].token = Some(FIRST));
    });
    refused("token of an earlier attempt", |bad| {
        rewritten(bad, |rows| {
            rows[3].token = Some(FIRST);
            rows[4].token = Some(FIRST);
        });
    });
    refused("extended that was over", |bad| {
        rewritten(bad, |rows| {
            let mut later = rows[3].clone();
            later.lease_until = Some(12 * LEASE);
            rows.insert(4, later.clone());
            rows[5].lease_until = later.lease_until;
        });
    });
    refused("had its attempt changed", |bad| {
        rewritten(bad, |rows| {
            let mut other = rows[1].clone();
            other.token = Some(SECOND);
            rows.insert(2, other);
        });
    });
    refused("claimed from `queued`, (1, 1)", |bad| {
        rewritten(bad, |rows| rows[3].attempts = Some(1));
    });
    refused("was given back with (1, 2)", |bad| {
        rewritten(bad, |rows| rows[2].attempts = Some(2));
    });
    refused("has a result of no attempt", |bad| {
        bad.changes.pop();
        bad.changes.push(result(None));
    });
    refused("has a result and is `running`", |bad| {
        bad.changes.remove(4);
    });
    refused("changed unseen", |bad| {
        bad.changes.remove(2);
    });
    refused("was read as `failed`", |bad| {
        bad.seen.push(Seen::Read {
            job: "a".to_owned(),
            state: "failed".to_owned(),
        });
    });
}
