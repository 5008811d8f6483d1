//! Jobs on their way in: `POST /execute` and `POST /execute/async`.

use super::fields::{Fields, Letters};
use super::record::Executed;
use super::refusal::Refusal;
use super::{Api, Correlation};
use crate::config::DEFAULT_IMAGE;
use crate::dispatch::Waited;
use crate::job::{JobRequest, JobSpec, canonical};
use crate::store::queue::{Enqueued, Idempotency, State as JobState, Submission};
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{ConnectInfo, Extension, State};
use axum::http::StatusCode;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// Characters of a program at most.
const MAX_CODE: usize = 100_000;

/// Packages that may be asked for.
const MAX_REQUIREMENTS: usize = 50;

/// The only job type so far, and what one that is not known stands for.
pub(super) const DEFAULT_TYPE: &str = "default";

/// How much longer than its program may run a synchronous call waits for it.
const WAIT: Duration = Duration::from_secs(30);

const KEY: Letters = Letters {
    allowed: |letter| letter.is_ascii_alphanumeric() || "_-".contains(letter),
    pattern: "^[A-Za-z0-9_-]+$",
};

const JOB_TYPE: Letters = Letters {
    allowed: |letter| letter.is_ascii_alphanumeric() || "_-@.:".contains(letter),
    pattern: "^[A-Za-z0-9_-]+(@[A-Za-z0-9_.@:-]+)?$",
};

/// What of a request the API itself looks at, beside the job.
struct Wanted {
    job: Submission,
    /// Longest time from its start to its end.
    longest: Duration,
}

/// What every submission comes with.
pub(super) struct Sender {
    correlation_id: String,
    address: String,
}

impl Sender {
    fn new(correlation: Correlation, peer: SocketAddr) -> Self {
        Self {
            correlation_id: correlation.0,
            address: peer.ip().to_string(),
        }
    }
}

/// Runs a job and answers with what became of it.
pub(super) async fn execute(
    State(api): State<Arc<Api>>,
    Extension(correlation): Extension<Correlation>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Executed>, Refusal> {
    let sender = Sender::new(correlation, peer);
    let wanted = api.wanted("api-", &whole(body)?, sender)?;
    api.accepts()?;
    let most = Some(api.settings.max_queue_size);
    let waiter = api.dispatcher.waiter();
    let enqueued = api.dispatcher.submit_at_once(&wanted.job, most).await?;
    let is_here = matches!(enqueued, Enqueued::Claimed(_));
    let (id, _) = accepted(&wanted.job, enqueued)?;
    let patience = wanted.longest + WAIT;
    match waiter.wait(&id, is_here, patience).await? {
        // The job is the one that was sent.
        Waited::Ended(Some(end)) => Ok(Json(Executed::of(id, wanted.job.job_type, &end))),
        Waited::Ended(None) => {
            let entry = api.store.entry(&id).await?.ok_or_else(Refusal::no_job)?;
            Ok(Json(Executed::recorded(entry)))
        }
        Waited::InVain => Err(Refusal::unavailable(format!(
            "The job {id} has not ended within {patience:?}, and goes on: GET /jobs/{id}/result tells its end"
        ))),
    }
}

/// Takes a job in and answers at once.
pub(super) async fn execute_async(
    State(api): State<Arc<Api>>,
    Extension(correlation): Extension<Correlation>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, Refusal> {
    let sender = Sender::new(correlation, peer);
    let wanted = api.wanted("", &whole(body)?, sender)?;
    api.accepts()?;
    let most = Some(api.settings.max_queue_size);
    let enqueued = api.dispatcher.submit(&wanted.job, most).await?;
    let (job_id, state) = accepted(&wanted.job, enqueued)?;
    Ok(Json(json!({"job_id": job_id, "status": state.name()})))
}

fn whole(body: Result<Bytes, BytesRejection>) -> Result<Bytes, Refusal> {
    body.map_err(|rejection| {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            let what = "Request body too large: the limit is `api_max_payload_bytes`";
            return Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, what);
        }
        Refusal::new(StatusCode::BAD_REQUEST, "The request's body did not arrive")
    })
}

/// Which job a submission stands for, and where that stands.
fn accepted(job: &Submission, enqueued: Enqueued) -> Result<(String, JobState), Refusal> {
    match enqueued {
        Enqueued::Queued | Enqueued::Claimed(_) => Ok((job.id.clone(), JobState::Queued)),
        Enqueued::Known { id, state } => Ok((id, state)),
        Enqueued::KeyReused => Err(Refusal::new(
            StatusCode::CONFLICT,
            "The idempotency_key was used for another request: choose a new one",
        )),
        Enqueued::Full => Err(Refusal::unavailable(
            "The queue is full; the idempotency_key is still free: send the request again later",
        )),
    }
}

impl Api {
    /// Not while it comes to its end: what it still took would wait for another server.
    fn accepts(&self) -> Result<(), Refusal> {
        if self.dispatcher.is_draining() {
            return Err(Refusal::unavailable("The server is about to end"));
        }
        Ok(())
    }

    fn wanted(&self, prefix: &str, body: &[u8], sender: Sender) -> Result<Wanted, Refusal> {
        let mut fields = Fields::of(body)?;
        let code = fields.required_text("code", MAX_CODE);
        let input = fields.object("input_data");
        let timeout = fields.integer("timeout", 1..=86_400);
        let startup_timeout = fields.integer("startup_timeout", 10..=600);
        let job_type = fields.text("job_type", 1..=128, Some(&JOB_TYPE));
        let key = fields.text("idempotency_key", 8..=255, Some(&KEY));
        let requirements = fields.texts("requirements", MAX_REQUIREMENTS);
        fields.done()?;
        let asked = Asked {
            code: code.unwrap_or_default(),
            input: input.map_or("{}", |input| input.get()).to_owned(),
            timeout,
            startup_timeout,
            requirements: requirements.unwrap_or_default(),
        };
        self.check_type(job_type.as_deref())?;
        if !asked.requirements.is_empty() {
            let what = "requirements: this server installs no packages; use an image that has them";
            return Err(Refusal::unprocessable(what));
        }
        self.submission(format!("{prefix}{}", Uuid::new_v4()), asked, key, sender)
    }

    /// Outside of production an unknown type is the default one, as Tako VM has it.
    fn check_type(&self, job_type: Option<&str>) -> Result<(), Refusal> {
        let named = job_type.and_then(|name| name.split('@').next());
        match named {
            Some(name) if name != DEFAULT_TYPE && self.settings.production_mode => Err(
                Refusal::unprocessable(format!("job_type: there is no job type `{name}`")),
            ),
            _ => Ok(()),
        }
    }

    fn submission(
        &self,
        id: String,
        asked: Asked,
        key: Option<String>,
        sender: Sender,
    ) -> Result<Wanted, Refusal> {
        let (code_sha256, input_sha256) = (
            Sha256::digest(&asked.code),
            Sha256::digest(canonical(&asked.input)),
        );
        let idempotency = key.map(|key| Idempotency {
            key,
            fingerprint: asked.fingerprint(&code_sha256, &input_sha256),
        });
        let request = asked.into_request();
        let job = JobSpec::check(request.clone(), &self.settings.maxima);
        let limits = job
            .map_err(|error| Refusal::unprocessable(error.problems.join("; ")))?
            .limits;
        // What applies is kept, and not that nothing was said: it runs the same way when it is repeated.
        let request = JobRequest {
            memory_bytes: Some(limits.memory_bytes),
            millicpus: Some(limits.millicpus),
            timeout: Some(limits.execution),
            startup_timeout: Some(limits.startup),
            ..request
        };
        let job = Submission {
            id,
            owner: String::new(),
            priority: 0,
            job_type: DEFAULT_TYPE.to_owned(),
            idempotency,
            correlation_id: Some(sender.correlation_id),
            client_address: Some(sender.address),
            parent: None,
            max_attempts: self.settings.max_attempts,
            image: DEFAULT_IMAGE.to_owned(),
            request,
            code_sha256: code_sha256.into(),
            input_sha256: input_sha256.into(),
            requirements: Vec::new(),
            network: false,
            repeatable: false,
        };
        Ok(Wanted {
            job,
            longest: limits.startup + limits.execution,
        })
    }
}

/// What a request asks for.
struct Asked {
    code: String,
    /// JSON text.
    input: String,
    /// Seconds.
    timeout: Option<u64>,
    startup_timeout: Option<u64>,
    requirements: Vec<String>,
}

impl Asked {
    /// As Tako VM makes it: SHA-256 of canonical JSON.
    fn fingerprint(&self, code_sha256: &[u8], input_sha256: &[u8]) -> [u8; 32] {
        let whole = json!({
            "code_hash": hex::encode(code_sha256),
            "input_hash": hex::encode(input_sha256),
            "job_type": DEFAULT_TYPE,
            "timeout": self.timeout,
            "startup_timeout": self.startup_timeout,
            "requirements": self.requirements,
        });
        Sha256::digest(canonical(&whole.to_string())).into()
    }

    fn into_request(self) -> JobRequest {
        JobRequest {
            code: self.code,
            input: Some(self.input),
            timeout: self.timeout.map(Duration::from_secs),
            startup_timeout: self.startup_timeout.map(Duration::from_secs),
            ..JobRequest::default()
        }
    }
}
