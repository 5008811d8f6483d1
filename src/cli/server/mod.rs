//! `tako-vm server`: the job API and the queue, without privileges.

mod lead;

use super::{FAILED, Failure, absolute, full_runtime, supervisor, unprivileged};
use crate::api::{self, Api};
use crate::config::{self, Config, Overrides, Server};
use crate::dispatch::{self, Dispatcher};
use crate::job::one_line;
use crate::postgres::{Place, Postgres, PostgresError};
use crate::store::audit::OfServer;
use crate::store::files::{Files, S3};
use crate::store::{Database, Store, StoreError};
use crate::supervisor::connection::Connections;
use crate::sys::{notify, place, privilege};
use lead::Supervision;
use std::future;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::net::unix::pipe;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How long a database may stay away at the start.
const DATABASE: Duration = Duration::from_secs(30);

/// How long the store of files may take to say at the start that it refuses what is wanted of it.
const ARTIFACT_STORE: Duration = Duration::from_secs(5);

/// Longest pause before our own database is started once more.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How long answers may take to be taken in the end.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// How long the database may take to note that this server begins or ends.
const NOTE: Duration = Duration::from_secs(2);

/// How often what is old is forgotten, and how much of it at once.
const FORGET: Duration = Duration::from_hours(1);
const AT_ONCE: u32 = 1000;

/// Run the server: the HTTP API, the queue, and the history of jobs
///
/// Without a `database_url` it has a PostgreSQL of its own. Started as root it becomes the user `tako-vm`,
/// and where no supervisor listens, root's process is that. SIGTERM and SIGINT let running jobs end, for
/// `drain_seconds`; a second one gives them back to the queue.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The address to listen on [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS")]
    host: Option<String>,
    /// The port to listen on; 0 for any that is free [default: 8000]
    #[arg(long)]
    port: Option<u16>,
    /// Where its own database lies, files of jobs, and results that wait for a database
    #[arg(long, value_name = "DIR", env = config::DATA_DIR_VARIABLE)]
    data_dir: Option<PathBuf>,
    /// Where the supervisor listens
    #[arg(long, value_name = "PATH", env = config::SOCKET_VARIABLE,
          default_value = config::DEFAULT_SOCKET)]
    socket: PathBuf,
    /// Ends when standard input does: whoever holds the other end has ended
    #[arg(long, hide = true)]
    attended: bool,
}

impl Arguments {
    fn overrides(&self) -> Overrides {
        Overrides {
            host: self.host.clone(),
            port: self.port,
            data_dir: self.data_dir.clone(),
        }
    }
}

/// What tells a server to end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// Standard input, if its end is one.
    attendant: Option<pipe::Receiver>,
}

impl Signals {
    fn watch(attended: bool) -> io::Result<Self> {
        // Not tokio's own standard input: a read of that cannot be given up, and would keep the process.
        let input = || pipe::Receiver::from_owned_fd(io::stdin().as_fd().try_clone_to_owned()?);
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            attendant: attended.then(input).transpose()?,
        })
    }

    /// The next request to end.
    async fn next(&mut self) {
        let attendant = async {
            match &mut self.attendant {
                // Whatever comes is not for us; an error is an end as well.
                Some(input) => while input.read(&mut [0; 64]).await.is_ok_and(|count| count > 0) {},
                None => future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            () = attendant => self.attendant = None,
        }
    }
}

/// Runs the server, in this process or, where that is root's, in one that it starts.
pub(super) fn run(
    arguments: &Arguments,
    state_dir: Option<PathBuf>,
    file: Option<&Path>,
) -> Result<u8, Failure> {
    if privilege::require_none().is_ok() {
        full_runtime()?.block_on(serve(arguments, file))?;
        return Ok(0);
    }
    let state_dir = absolute(state_dir)?;
    let config = Config::load(file).map_err(|error| Failure::ours(&error))?;
    let supervision = if UnixStream::connect(&arguments.socket).is_ok() {
        Supervision::There
    } else {
        Supervision::Ours(supervisor::stage(&state_dir, &config))
    };
    full_runtime()?.block_on(lead::lead(
        arguments,
        &state_dir,
        (file, &config),
        supervision,
    ))
}

/// Serves until it is told to end.
async fn serve(arguments: &Arguments, file: Option<&Path>) -> Result<(), Failure> {
    privilege::require_none().map_err(|error| Failure::ours(&error))?;
    let config =
        Server::load(file, arguments.overrides()).map_err(|error| Failure::usage(&error))?;
    log(config.log_level);
    let signals = Signals::watch(arguments.attended)
        .map_err(|error| Failure::io("cannot watch signals", &error))?;
    let data = data_dir(&config)?;
    let listener = TcpListener::bind((config.host, config.port)).await;
    let listener = listener.map_err(|error| {
        let address = format!("{}:{}", config.host, config.port);
        Failure::io(&format!("cannot listen on {address}"), &error)
    })?;
    // From here on there are things to end.
    let database = Keeper::start(&config, &data)?;
    let served = with_database(&config, arguments, (listener, &data), &database, signals).await;
    let ended = database.end().await;
    served.and(ended)
}

/// The server's own tree.
fn data_dir(config: &Server) -> Result<PathBuf, Failure> {
    let data = unprivileged::data_dir(config)?;
    for directory in [&data, &data.join("files"), &data.join("jobs")] {
        place::directory(directory).map_err(|error| Failure::ours(&error))?;
    }
    Ok(data)
}

/// Lines for people, on standard error.
fn log(level: &str) {
    let level = level.parse().unwrap_or(tracing::Level::INFO);
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .with_ansi(false)
        .with_writer(io::stderr);
    // Whoever embeds us may have one already.
    drop(subscriber.try_init());
}

async fn with_database(
    config: &Server,
    arguments: &Arguments,
    (listener, data): (TcpListener, &Path),
    keeper: &Keeper,
    mut signals: Signals,
) -> Result<(), Failure> {
    let connections = u32::from(config.max_workers) * 2 + 8;
    let store = tokio::select! {
        store = open(&keeper.database, connections) => store.map_err(|error| Failure::ours(&error))?,
        () = signals.next() => return Ok(()),
    };
    let files = files(config, data).await?;
    // Unlike that of any other process, whatever hosts are called and numbers processes have.
    let worker = format!("{}-{}", host_name(), Uuid::new_v4().simple());
    let settings = dispatch::Settings {
        worker: worker.clone(),
        lease: config.lease,
        slots: config.max_workers,
        retry_base_delay: config.retry_base_delay,
        directory: data.join("jobs"),
        artifact_storage_bytes: config.max_artifact_storage_bytes,
    };
    let supervisor = Connections::new(arguments.socket.clone());
    let dispatcher = Dispatcher::start(store.clone(), files.clone(), supervisor, settings).await;
    let dispatcher = Arc::new(dispatcher.map_err(|error| Failure::ours(&error))?);
    let api = Api {
        store: store.clone(),
        dispatcher: Arc::clone(&dispatcher),
        settings: api::Settings {
            max_payload_bytes: config.max_payload_bytes,
            max_queue_size: config.max_queue_size,
            max_workers: config.max_workers,
            max_attempts: config.max_attempts,
            production_mode: config.production_mode,
            maxima: config.maxima.clone(),
        },
    };
    announce(&listener)?;
    let stop = CancellationToken::new();
    let serving = tokio::spawn(api::serve(listener, api, stop.clone()));
    let start = OfServer::Start {
        version: env!("CARGO_PKG_VERSION"),
    };
    note(&store, &worker, start).await;
    let forgetting = tokio::spawn(forget(store.clone(), files, config.clone(), worker.clone()));
    let auditor = (&store, &*worker);
    let ended = until_the_end(
        &dispatcher,
        auditor,
        (serving, stop),
        (config.drain, signals),
    )
    .await;
    forgetting.abort();
    drop(timeout(LAST_ANSWERS, store.close()).await);
    ended
}

/// Serves until somebody or something ends that, and lets what runs end.
async fn until_the_end(
    dispatcher: &Dispatcher,
    auditor: (&Store, &str),
    (mut serving, stop): (JoinHandle<io::Result<()>>, CancellationToken),
    (patience, mut signals): (Duration, Signals),
) -> Result<(), Failure> {
    let (ended, patience) = tokio::select! {
        ended = &mut serving => (Some(served(ended)), patience),
        () = dispatcher.broken() => (Some(Err(broken())), Duration::ZERO),
        () = signals.next() => (None, patience),
    };
    drain(dispatcher, auditor, patience, signals).await;
    stop.cancel();
    let ended = match ended {
        Some(ended) => ended,
        None => (timeout(LAST_ANSWERS, &mut serving).await).map_or(Ok(()), served),
    };
    serving.abort();
    ended
}

fn broken() -> Failure {
    Failure {
        line: "a task of the server has failed, which is a defect: the lines above say more"
            .to_owned(),
        hint: Some("start it again: no job is lost".to_owned()),
        status: FAILED,
    }
}

/// How serving ended.
fn served(ended: Result<io::Result<()>, JoinError>) -> Result<(), Failure> {
    match ended {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Failure::io("cannot accept connections", &error)),
        Err(error) => Err(Failure::ours(&error)),
    }
}

/// Lets running jobs end; the next signal gives them back.
async fn drain(
    dispatcher: &Dispatcher,
    (store, worker): (&Store, &str),
    patience: Duration,
    mut signals: Signals,
) {
    tracing::info!("the server ends when its jobs have, at most {patience:?} from now");
    // Without a service manager there is nobody to tell.
    drop(notify::stopping("waiting for running jobs"));
    let ended = async {
        tokio::select! {
            () = dispatcher.drain(patience) => false,
            () = signals.next() => {
                dispatcher.drain(Duration::ZERO).await;
                true
            }
        }
    };
    let told = note(store, worker, OfServer::Drain { patience });
    let ((), at_once) = tokio::join!(told, ended);
    note(store, worker, OfServer::Stop { at_once }).await;
}

/// Notes what this server does, if the database takes it now: it begins and ends all the same.
async fn note(store: &Store, worker: &str, act: OfServer) {
    let noted = timeout(NOTE, store.note(worker, act)).await;
    let noted = noted.unwrap_or_else(|_| Err(StoreError::late("note what a server does")));
    if let Err(error) = noted {
        tracing::warn!("{}", one_line(&error));
    }
}

fn host_name() -> String {
    let name = nix::unistd::gethostname().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// Where it is reached: for whoever started it on standard output, and for systemd.
fn announce(listener: &TcpListener) -> Result<(), Failure> {
    let address = listener.local_addr();
    let address =
        address.map_err(|error| Failure::io("cannot find out where it listens", &error))?;
    let line = format!("tako-vm server listens on http://{address}");
    // Nobody need read it.
    drop(writeln!(io::stdout(), "{line}").and_then(|()| io::stdout().flush()));
    notify::ready(&line).map_err(|error| Failure::io("cannot tell the service manager", &error))?;
    if let Some(interval) = notify::watchdog_interval() {
        tokio::spawn(async move {
            while notify::alive().is_ok() {
                sleep(interval).await;
            }
        });
    }
    Ok(())
}

/// Connects, also to a database that is about to start, or whose schema is being changed.
async fn open(database: &Database, connections: u32) -> Result<Store, StoreError> {
    let late = Instant::now() + DATABASE;
    loop {
        match Store::open(database, connections).await {
            Err(error) if error.is_about_the_connection() && Instant::now() < late => {
                tracing::warn!("{}: trying again", one_line(&error));
                sleep(Duration::from_secs(1)).await;
            }
            // It has been waited for, and somebody has to end what is in the way.
            Err(error @ StoreError::Locked { .. }) => {
                tracing::warn!("{}: waiting", one_line(&error));
            }
            opened => return opened,
        }
    }
}

/// Where the files of jobs are kept.
///
/// A store that refuses what a server needs of it, a bucket that is not there or a wrong key, is an error now,
/// when somebody looks at it. One that is away is none: it is waited for as it is when it goes away later, so
/// that a server which is started meanwhile takes jobs in, tells of those that have ended, and is not ready.
async fn files(config: &Server, data: &Path) -> Result<Files, Failure> {
    let Some(store) = &config.artifact_store else {
        let files = Files::in_directory(&data.join("files"));
        return files.map_err(|error| Failure::ours(&error));
    };
    let (id, key) = store.key().map_err(|error| Failure::usage(&error))?;
    let token = store.session_token.as_ref();
    let files = Files::in_s3(&S3 {
        bucket: store.bucket.clone(),
        prefix: store.prefix.clone(),
        endpoint: store.endpoint.clone(),
        region: store.region.clone(),
        allow_http: store.allow_http,
        access_key_id: id.as_str().to_owned(),
        secret_access_key: key.as_str().to_owned(),
        session_token: token.map(|token| token.as_str().to_owned()),
    });
    let files = files.map_err(|error| Failure::ours(&error))?;
    match timeout(ARTIFACT_STORE, files.try_to_keep(vec![0])).await {
        Ok(Err(error)) if error.is_refusal() => Err(Failure {
            hint: Some(
                "`artifact_store` says where it is, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY with which key"
                    .to_owned(),
            ),
            ..Failure::usage(&error)
        }),
        // Whoever dispatches jobs tries it too, and says what is wrong with it.
        _ => Ok(files),
    }
}

/// Forgets what is older than the configuration says, for as long as the server lives.
async fn forget(store: Store, files: Files, config: Server, worker: String) {
    loop {
        if let Err(error) = forget_once(&store, &config, &worker).await {
            tracing::warn!("cannot forget old jobs: {}", one_line(&error));
        } else if let Err(error) = files.sweep(&store).await {
            tracing::warn!("cannot remove files of old jobs: {}", one_line(&error));
        }
        sleep(FORGET).await;
    }
}

async fn forget_once(store: &Store, config: &Server, worker: &str) -> Result<(), StoreError> {
    let most = u64::from(AT_ONCE);
    while store.forget(config.keep_records, AT_ONCE, worker).await? >= most {}
    let keep = config.keep_dead_letters;
    while store.forget_dead_letters(keep, AT_ONCE, worker).await? >= most {}
    // The last: the others are acts as well.
    while store.forget_acts(config.keep_acts, AT_ONCE, worker).await? >= most {}
    Ok(())
}

/// The database: the operator's, or our own, which is started again when it ends.
struct Keeper {
    database: Database,
    own: Option<(CancellationToken, JoinHandle<Option<Postgres>>)>,
}

impl Keeper {
    fn start(config: &Server, data: &Path) -> Result<Self, Failure> {
        let (url, own) = if let Some(url) = &config.database_url {
            (url.as_str().to_owned(), None)
        } else {
            let place = own_place(data)?;
            let started = start_own(&place);
            let postgres = started.map_err(|error| Failure::ours(&error))?;
            let url = postgres.url();
            let stop = CancellationToken::new();
            let kept = tokio::spawn(keep(postgres, place, stop.clone()));
            (url, Some((stop, kept)))
        };
        let database = Database::from_url(&url).map_err(|error| Failure::usage(&error))?;
        Ok(Self { database, own })
    }

    /// Ends our own.
    async fn end(self) -> Result<(), Failure> {
        let Some((stop, kept)) = self.own else {
            return Ok(());
        };
        stop.cancel();
        let Ok(Some(postgres)) = kept.await else {
            return Ok(());
        };
        tokio::task::block_in_place(|| postgres.stop()).map_err(|error| Failure::ours(&error))
    }
}

/// Where our own database lies; its socket where systemd says, or whoever started us, or beside it.
fn own_place(data: &Path) -> Result<Place, Failure> {
    let run = config::runtime_directory();
    let place = Place {
        directory: data.join("postgres"),
        sockets: run.unwrap_or_else(|| data.join("run")),
    };
    place::directory(&place.sockets).map_err(|error| Failure::ours(&error))?;
    Ok(place)
}

fn start_own(place: &Place) -> Result<Postgres, PostgresError> {
    tokio::task::block_in_place(|| Postgres::start(place.clone()))
}

/// Starts our own database again whenever it ends, until `stop`.
async fn keep(postgres: Postgres, place: Place, stop: CancellationToken) -> Option<Postgres> {
    let mut running = Some(postgres);
    let mut pause = Duration::from_secs(1);
    while let Some(postgres) = running.take() {
        let begun = Instant::now();
        let Some(why) = stop.run_until_cancelled(postgres.ended()).await else {
            return Some(postgres);
        };
        drop(postgres);
        tracing::error!("PostgreSQL has ended ({why}): starting it again");
        if begun.elapsed() > LONGEST_PAUSE {
            pause = Duration::from_secs(1);
        }
        while running.is_none() {
            match start_own(&place) {
                Ok(postgres) => running = Some(postgres),
                Err(error) => tracing::error!("{}", one_line(&error)),
            }
            if stop.run_until_cancelled(sleep(pause)).await.is_none() {
                return running;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
    None
}
