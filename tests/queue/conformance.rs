//! The real queue does what the model does, whatever happens to it in whatever order.

use super::cluster;
use super::jobs;
use super::model::{ALL, ATTEMPTS, Action, JOBS, ONCE, State, WORKERS, World, actions};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use sqlx::{PgConnection, Row};
use tako_vm::job::Termination;
use tako_vm::store::Store;
use tako_vm::store::audit::Actor;
use tako_vm::store::queue::{Held, Pulse, Release, tokens};
use uuid::Uuid;

/// Walks, and steps of each.
const WALKS: u64 = 60;
const STEPS: usize = 25;

/// The real thing, and what its workers believe.
struct Queue {
    store: Store,
    connection: PgConnection,
    pulse: Pulse,
    walk: u64,
    workers: [Option<Held>; WORKERS],
    unheard: [Option<Uuid>; WORKERS],
    incarnation: u32,
}

impl Queue {
    fn id(&self, job: usize) -> String {
        format!("walk-{}-{job}", self.walk)
    }

    fn worker(&self, number: usize) -> tako_vm::store::queue::Worker {
        jobs::worker(&format!("worker-{number}-{}", self.incarnation))
    }

    async fn act(&mut self, action: Action) {
        match action {
            Action::Claim(number) => {
                let claims = self
                    .store
                    .claim(&self.worker(number), &tokens(1))
                    .await
                    .unwrap();
                self.workers[number] = claims.into_iter().next().map(|claim| claim.held);
            }
            Action::ClaimUnheard(number) => {
                self.unheard[number] = Some(self.claim_unheard(number).await);
            }
            Action::GiveBack(number) => {
                let token = self.unheard[number].take().unwrap();
                self.store.give_back(&[token]).await.unwrap();
            }
            Action::Beat(number) => {
                let held = self.workers[number].clone().unwrap();
                let worker = self.worker(number);
                let beats = self.pulse.beat(&worker, &[held]).await.unwrap();
                if beats.first().is_none_or(|beat| !beat.holds) {
                    self.workers[number] = None;
                }
            }
            Action::Finish(number) => {
                self.finish(number).await;
                self.workers[number] = None;
            }
            Action::FinishUnheard(number) => self.finish(number).await,
            Action::Release(number) => {
                let held = self.workers[number].take().unwrap();
                let release = Release::Failed {
                    reason: "its sandbox was lost",
                    retry_in: std::time::Duration::ZERO,
                };
                self.store.release(&held, release).await.unwrap();
            }
            Action::Crash(number) => {
                self.workers[number] = None;
                self.unheard[number] = None;
                self.incarnation += 1;
            }
            Action::Expire(job) => {
                sqlx::query("UPDATE jobs SET lease_until = clock_timestamp() - interval '1 s' WHERE id = $1")
                    .bind(self.id(job))
                    .execute(&mut self.connection)
                    .await
                    .unwrap();
            }
            Action::Rescue => drop(self.store.rescue().await.unwrap()),
            Action::Cancel(job) => drop(
                self.store
                    .cancel(&self.id(job), Actor::default())
                    .await
                    .unwrap(),
            ),
        }
    }

    async fn claim_unheard(&mut self, number: usize) -> Uuid {
        let token = Uuid::new_v4();
        // Asked for, and not there yet.
        assert_eq!(self.store.give_back(&[token]).await.unwrap(), []);
        let worker = self.worker(number);
        self.store.claim(&worker, &[token]).await.unwrap();
        token
    }

    async fn finish(&mut self, number: usize) {
        let held = self.workers[number].clone().unwrap();
        let outcome = jobs::outcome(Termination::Exited(0));
        self.store
            .finish(&held, jobs::ended(&outcome))
            .await
            .unwrap();
    }

    /// The rows as the model would have them.
    async fn rows(&mut self) -> Vec<(String, i16, bool, bool, i64)> {
        let rows = sqlx::query(
            "SELECT state, attempts, state = 'running' AND lease_until <= clock_timestamp() AS over,
                cancel_asked_at IS NOT NULL AS asked,
                (SELECT count(*) FROM records WHERE job_id = jobs.id) AS results
            FROM jobs WHERE id LIKE $1 ORDER BY number",
        )
        .bind(format!("walk-{}-%", self.walk))
        .fetch_all(&mut self.connection)
        .await
        .unwrap();
        let fields = rows
            .iter()
            .map(|row| (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4)));
        fields.collect()
    }
}

fn expected(world: &World) -> Vec<(String, i16, bool, bool, i64)> {
    let jobs = world.jobs.iter().map(|job| {
        let state = match job.state {
            State::Queued => "queued",
            State::Running => "running",
            State::Succeeded => "succeeded",
            State::Cancelled => "cancelled",
            State::Failed => "failed",
        };
        (
            state.to_owned(),
            i16::from(job.attempts),
            job.state == State::Running && job.lease_is_over,
            job.cancel_asked,
            i64::from(job.results),
        )
    });
    jobs.collect()
}

#[tokio::test]
async fn the_queue_does_what_the_model_does_on_any_way_through_it() {
    let (store, url) = cluster::store().await;
    let mut queue = Queue {
        pulse: store.pulse().await.unwrap(),
        store,
        connection: cluster::connect(&url).await,
        walk: 0,
        workers: [None, None],
        unheard: [None, None],
        incarnation: 0,
    };
    let mut ended = 0;
    for walk in 0..WALKS {
        queue.walk = walk;
        queue.workers = [None, None];
        queue.unheard = [None, None];
        for number in 0..JOBS {
            let mut job = jobs::job(&queue.id(number));
            job.max_attempts = i16::from(ATTEMPTS);
            job.network = number == ONCE;
            queue.store.enqueue(&job, None, None).await.unwrap();
        }
        let (mut world, mut way) = (World::new(), Vec::new());
        let mut random = StdRng::seed_from_u64(walk);
        for _ in 0..STEPS {
            let possible: Vec<_> = actions()
                .into_iter()
                .filter_map(|action| Some((action, world.after(action, ALL)?)))
                .collect();
            let Some((action, next)) = possible.choose(&mut random) else {
                break;
            };
            way.push(*action);
            queue.act(*action).await;
            world = *next;
            assert_eq!(queue.rows().await, expected(&world), "{way:?}");
            let believes: Vec<_> = queue.workers.iter().map(Option::is_some).collect();
            let should: Vec<_> = world.workers.iter().map(Option::is_some).collect();
            assert_eq!(believes, should, "{way:?}");
        }
        ended += world.jobs.iter().filter(|job| job.state.is_end()).count();
        // Nothing of this walk is left for the next.
        for job in 0..JOBS {
            queue
                .store
                .cancel(&queue.id(job), Actor::default())
                .await
                .unwrap();
            queue.act(Action::Expire(job)).await;
        }
        queue.store.rescue().await.unwrap();
    }
    assert!(ended > 0, "the walks end somewhere");
}
