//! Faults that need no sandbox: replies that are lost, and what comes at the same time.

use super::cluster;
use super::hands::{self, Hand, keyed};
use super::history::{Log, Seen, Watch};
use super::jobs;
use super::way::Way;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tako_vm::job::Termination;
use tako_vm::store::audit::Actor;
use tako_vm::store::queue::{Cancelled, Held, tokens};
use tako_vm::store::{Database, Store};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

const LEASE: Duration = Duration::from_secs(1);

pub(crate) async fn store(url: &str, connections: u32) -> Store {
    let database = Database::from_url(url).unwrap();
    Store::open(&database, connections).await.unwrap()
}

/// A way to the database of a test, and how it is named there.
pub(crate) async fn way() -> (Way, String, String) {
    let direct = cluster::database().await;
    let way = Way::to(cluster::directory());
    let sockets = cluster::directory().display().to_string();
    let through = direct.replace(&sockets, &way.directory().display().to_string());
    (way, format!("{through}&sslmode=disable"), direct)
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_that_are_lost_after_the_commit_lose_no_job_and_double_none() {
    let (way, through, direct) = way().await;
    let (store, careful) = (store(&through, 8).await, store(&direct, 2).await);
    let watch = Watch::begin(&direct, LEASE).await;
    let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
    way.lose(60);
    for name in ["one", "other", "third"] {
        let hand = Hand::new(store.clone(), watch.log.clone(), name, LEASE);
        let stop = stop.clone();
        tasks.spawn(async move { hand.work(&stop).await });
    }
    let (looks, until) = (careful.clone(), stop.clone());
    tasks.spawn(async move { hands::rescue(&looks, &until).await });
    let jobs = crate::size("TAKO_VM_SOAK_REPLIES", 300);
    let mut sent_twice = 0;
    for number in 0..jobs {
        let job = keyed(&format!("job-{number}"));
        let sent = hands::send(&store, &watch.log, &job).await;
        sent_twice += u32::from(sent.was_known && sent.tries > 1);
    }
    // Each reply that is lost holds a worker up, and jobs are sent faster than that.
    let limit = Duration::from_mins(1) + Duration::from_millis(jobs as u64) * 50;
    watch.all_ended_within(limit).await;
    stop.cancel();
    tasks.join_all().await;
    let history = watch.assert_holds().await;
    assert_eq!(history.ended("succeeded"), jobs);
    // It was not in vain: each kind of reply has been lost, and was missed.
    let heard: BTreeSet<_> = history.seen.iter().filter_map(token_of).collect();
    let claimed = history.changes.iter().filter(|change| {
        super::checker::is_claim(change)
            && !heard.contains(&change.to.as_ref().unwrap().token.unwrap())
    });
    let unheard_claims = claimed.count();
    let counted = history
        .seen
        .iter()
        .filter(|seen| matches!(seen, Seen::Finished { counts: true, .. }));
    let unheard_results = jobs - counted.count();
    eprintln!(
        "{jobs} jobs, {} lost replies: {sent_twice} of a submission, {unheard_claims} of a claim, \
         {unheard_results} of a result",
        way.lost()
    );
    assert!(sent_twice > 0 && unheard_claims > 0 && unheard_results > 0);
}

fn token_of(seen: &Seen) -> Option<uuid::Uuid> {
    match seen {
        Seen::Claimed { token, .. } => Some(*token),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_and_an_end_at_once_are_one_end() {
    let direct = cluster::database().await;
    let store = store(&direct, 8).await;
    let watch = Watch::begin(&direct, LEASE).await;
    let hand = Hand::new(
        store.clone(),
        watch.log.clone(),
        "w",
        Duration::from_mins(1),
    );
    let rounds = crate::size("TAKO_VM_SOAK_CANCELS", 300);
    let stop = CancellationToken::new();
    let (mut now, mut asked, mut too_late) = (0, 0, 0);
    // As the last one took, so that machines of any speed meet every order.
    let mut run_takes = Duration::from_millis(2);
    for round in 0..rounds {
        let job = keyed(&format!("job-{round}"));
        hands::send(&store, &watch.log, &job).await;
        let most = run_takes * 3 / 2;
        let pause = rand::random_range(Duration::ZERO..most);
        let (before_cancel, before_run) = match round % 4 {
            0 => (Duration::ZERO, pause),
            _ => (pause, Duration::ZERO),
        };
        let cancel = async {
            sleep(before_cancel).await;
            store.cancel(&job.id, Actor::default()).await.unwrap()
        };
        let run = async {
            sleep(before_run).await;
            let begun = Instant::now();
            let claims = store.claim(&hand.worker, &tokens(1)).await.unwrap();
            for claim in &claims {
                hand.finish(claim, &stop).await;
            }
            if !claims.is_empty() {
                run_takes = begun.elapsed();
            }
        };
        match tokio::join!(cancel, run).0 {
            Cancelled::Now => now += 1,
            Cancelled::Asked => asked += 1,
            Cancelled::TooLate(_) => too_late += 1,
            Cancelled::Unknown => panic!("{} is unknown", job.id),
        }
        let state = store.standing(&job.id).await.unwrap().unwrap().state;
        watch.log.add(Seen::Read {
            job: job.id,
            state: state.name().to_owned(),
        });
    }
    let history = watch.assert_holds().await;
    assert_eq!(history.ended("cancelled"), now);
    eprintln!("{rounds} rounds: {now} before the claim, {asked} meanwhile, {too_late} too late");
    assert!(now > 0 && asked > 0 && too_late > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_equal_submissions_at_once_are_one_job() {
    let direct = cluster::database().await;
    let stores = [store(&direct, 16).await, store(&direct, 16).await];
    let watch = Watch::begin(&direct, LEASE).await;
    let mut tasks = JoinSet::new();
    for number in 0..64 {
        let (store, log) = (stores[number % 2].clone(), watch.log.clone());
        let mut job = keyed("same");
        job.id = format!("job-{number}");
        tasks.spawn(async move { hands::send(&store, &log, &job).await.was_known });
    }
    let known = tasks.join_all().await;
    assert_eq!(known.iter().filter(|known| !**known).count(), 1);
    let stop = CancellationToken::new();
    let hand = Hand::new(stores[0].clone(), watch.log.clone(), "w", LEASE);
    let ended = async {
        watch.all_ended_within(Duration::from_secs(20)).await;
        stop.cancel();
    };
    tokio::join!(hand.work(&stop), ended);
    let history = watch.assert_holds().await;
    assert_eq!(history.ended("succeeded"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_says_after_its_lease_counts_for_nothing() {
    let direct = cluster::database().await;
    let store = store(&direct, 4).await;
    let watch = Watch::begin(&direct, LEASE).await;
    let slow = Hand::new(store.clone(), watch.log.clone(), "slow", LEASE);
    let quick = Hand::new(store.clone(), watch.log.clone(), "quick", LEASE);
    let stop = CancellationToken::new();
    for (number, first_is_late_twice) in [(0, false), (1, true)] {
        hands::send(&store, &watch.log, &keyed(&format!("job-{number}"))).await;
        let late = store
            .claim(&slow.worker, &tokens(1))
            .await
            .unwrap()
            .remove(0);
        sleep(LEASE + Duration::from_millis(100)).await;
        // It is heard of again, and that is too late.
        let mut pulse = store.pulse().await.unwrap();
        let beats = pulse.beat(&slow.worker, std::slice::from_ref(&late.held));
        assert!(!beats.await.unwrap()[0].holds);
        assert_eq!(store.rescue().await.unwrap().len(), 1);
        if first_is_late_twice {
            // Before the next attempt has begun.
            assert_stale(&store, &watch.log, &late.held).await;
        }
        let next = store
            .claim(&quick.worker, &tokens(1))
            .await
            .unwrap()
            .remove(0);
        assert_eq!(next.attempt, 2);
        // While it runs, and after it.
        assert_stale(&store, &watch.log, &late.held).await;
        quick.finish(&next, &stop).await;
        assert_stale(&store, &watch.log, &late.held).await;
    }
    let history = watch.assert_holds().await;
    assert_eq!(history.ended("succeeded"), 2);
}

async fn assert_stale(store: &Store, log: &Log, held: &Held) {
    let outcome = jobs::outcome(Termination::Exited(1));
    let end = store.finish(held, jobs::ended(&outcome)).await.unwrap();
    log.add(Seen::Finished {
        job: held.id.clone(),
        token: held.token,
        counts: end.is_some(),
    });
    assert_eq!(end, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_nobody_answers_do_not_use_up_the_connections() {
    let (way, through, direct) = way().await;
    let store = store(&through, 3).await;
    hands::send(&store, &Log::default(), &keyed("a")).await;
    let mut keeps = cluster::connect(&direct).await;
    sqlx::raw_sql("BEGIN; SELECT FROM jobs FOR UPDATE")
        .execute(&mut keeps)
        .await
        .unwrap();
    let calls: JoinSet<_> = (0..3)
        .map(|_| {
            let store = store.clone();
            // It waits for the row when the way dies, and is given up.
            async move { timeout(Duration::from_secs(1), store.cancel("a", Actor::default())).await }
        })
        .collect();
    sleep(Duration::from_millis(500)).await;
    way.stall();
    let calls = calls.join_all().await;
    assert!(calls.iter().all(Result::is_err), "{calls:?}");
    way.mend();
    // Those of before are dead for ever.
    timeout(Duration::from_secs(10), store.ping())
        .await
        .unwrap()
        .unwrap();
}
