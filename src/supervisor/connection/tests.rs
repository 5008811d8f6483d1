//! A supervisor that is a script: what it reads is checked, what it answers is given.

use super::*;
use crate::job::{JobRequest, Phase, ResourceUsage, Start, Termination};
use crate::supervisor::wire::{Ended as How, FileDigest, RefusalCode, Times};
use jiff::Timestamp;
use tokio::io::AsyncReadExt;
use tokio::net::UnixListener;

const HELLO: fn() -> ToClient = || ToClient::Hello(Hello::ours());

const ACCEPTED: ToClient = ToClient::Accepted(Accepted {
    stdout_limit: 4,
    stderr_limit: 4,
});

fn end(files: &[(&str, &[u8])]) -> End {
    End {
        id: "tako-1".to_owned(),
        image: "python".to_owned(),
        runtime: "runsc".to_owned(),
        termination: How::Exited { code: 3 },
        exception: None,
        stdout_bytes: 6,
        stderr_bytes: 0,
        artifacts: files
            .iter()
            .map(|(name, bytes)| FileDigest {
                name: (*name).to_owned(),
                size: bytes.len() as u64,
                sha256: hex::encode(Sha256::digest(bytes)),
            })
            .collect(),
        artifacts_truncated: false,
        artifacts_skipped: Vec::new(),
        started_at: Timestamp::UNIX_EPOCH,
        ended_at: Timestamp::UNIX_EPOCH,
        timing: Times {
            start: Start::Warm,
            sandbox_ms: 0,
            startup_ms: Some(1),
            execution_ms: Some(2),
            total_ms: 3,
        },
        usage: ResourceUsage {
            max_rss_mb: 1.0,
            cpu_time_ms: 1,
            wall_time_ms: 3,
            oom_kills: 0,
        },
    }
}

fn fresh(stream: UnixStream) -> Idle {
    stream.set_nonblocking(true).unwrap();
    let greeted = false;
    Idle { stream, greeted }
}

fn frames(messages: &[ToClient]) -> Vec<u8> {
    messages.iter().flat_map(Message::to_frame).collect()
}

/// The whole way of a job, against a supervisor that reads as much as it takes and answers with this.
async fn run(
    request: &JobRequest,
    answer: Vec<u8>,
    events: Option<mpsc::Sender<Output>>,
) -> Result<(Outcome, Vec<Vec<u8>>), ConnectionError> {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let supervisor = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let (mut from, mut to) = stream.into_split();
        let mut first = [0];
        from.read_exact(&mut first).await.unwrap();
        to.write_all(&answer).await.unwrap();
        to.shutdown().await.unwrap();
        tokio::io::copy(&mut from, &mut tokio::io::sink())
            .await
            .ok();
    });
    let cancel = CancellationToken::new();
    let (run, parts) = Run::new("python", request, true);
    let connection = Connection::open(&socket).await?;
    let submitted = connection.submit(&run, &parts).await?;
    let ended = submitted.attend(events, &cancel).await?;
    let (outcome, _) = ended.collect(directory.path(), &cancel).await?;
    supervisor.await.unwrap();
    let read = |artifact: &crate::job::Artifact| std::fs::read(&artifact.path).unwrap();
    let files = outcome.artifacts.iter().map(read).collect();
    Ok((outcome, files))
}

async fn failure(answer: Vec<u8>) -> ConnectionError {
    run(&JobRequest::default(), answer, None).await.unwrap_err()
}

#[tokio::test]
async fn a_job_goes_over_and_its_end_comes_back_with_output_and_files() {
    let files: [(&str, &[u8]); 3] = [("a/b", b"12345"), ("empty", b""), ("c", b"678")];
    // Frames know nothing of files.
    let answer = frames(&[
        HELLO(),
        ACCEPTED,
        ToClient::Stdout(b"out".to_vec()),
        ToClient::Stderr(Vec::new()),
        ToClient::Stdout(b"put".to_vec()),
        ToClient::End(Box::new(end(&files))),
        ToClient::Data(b"12".to_vec()),
        ToClient::Data(b"34567".to_vec()),
        ToClient::Data(b"8".to_vec()),
    ]);
    let (events, mut received) = mpsc::channel(16);
    let request = JobRequest::default();
    let (outcome, bytes) = run(&request, answer, Some(events)).await.unwrap();
    assert_eq!(outcome.termination, Termination::Exited(3));
    assert_eq!(outcome.timing.phase_at_exit, Phase::Execution.name());
    assert_eq!(
        (outcome.stdout.text().as_str(), outcome.stdout.total),
        ("outp", 6)
    );
    assert_eq!(bytes, files.map(|(_, bytes)| bytes.to_vec()));
    let mut chunks = Vec::new();
    while let Some(output) = received.recv().await {
        chunks.push(output);
    }
    assert_eq!(chunks[0], Output::Stdout(b"out".to_vec()));
    assert_eq!(chunks[2], Output::Stdout(b"put".to_vec()));
}

#[tokio::test]
async fn a_small_job_is_one_write_and_a_large_one_keeps_its_bytes() {
    let written = async |request: JobRequest| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut theirs = tokio::net::UnixStream::from_std(theirs).unwrap();
        let (run, parts) = Run::new("python", &request, true);
        let connection = Connection::resume(fresh(ours)).unwrap();
        let submit = async { connection.submit(&run, &parts).await.map(drop) };
        let read = async {
            let (mut first, mut all) = (vec![0; 1 << 20], Vec::new());
            let count = theirs.read(&mut first).await.unwrap();
            all.extend_from_slice(&first[..count]);
            while !all.ends_with(b"#end") {
                let count = theirs.read(&mut first).await.unwrap();
                all.extend_from_slice(&first[..count]);
            }
            drop(theirs);
            (count, all)
        };
        let (submitted, (at_once, all)) = tokio::join!(submit, read);
        assert!(
            matches!(submitted, Err(ConnectionError::Lost)),
            "{submitted:?}"
        );
        (at_once, all)
    };
    let request = |code: String| JobRequest {
        code,
        ..JobRequest::default()
    };
    let (at_once, all) = written(request("print(1) #end".to_owned())).await;
    assert_eq!(at_once, all.len());
    let code = "x".repeat(3 * MAX_DATA + 5) + "#end";
    let (_, all) = written(request(code.clone())).await;
    let mut from = all.as_slice();
    let mut bytes = Vec::new();
    while let Some(message) = wire::read::<ToSupervisor>(&mut from).await.unwrap() {
        if let ToSupervisor::Data(data) = message {
            bytes.extend(data);
        }
    }
    assert_eq!(bytes, code.as_bytes());
}

#[tokio::test]
async fn a_refusal_reaches_also_a_client_that_is_still_writing() {
    let refusal = Refusal {
        code: RefusalCode::Invalid,
        message: "too much".to_owned(),
        problems: vec!["the program".to_owned()],
        retry_after_ms: None,
    };
    let request = JobRequest {
        code: "x".repeat(8 << 20),
        ..JobRequest::default()
    };
    for answer in [
        frames(&[HELLO(), ToClient::Refused(refusal.clone())]),
        // The first of all: this peer, or so many connections, are not for it.
        frames(&[ToClient::Refused(refusal.clone())]),
    ] {
        let error = run(&request, answer, None).await.unwrap_err();
        let ConnectionError::Refused { refusal: told } = error else {
            panic!("{error:?}");
        };
        assert_eq!(*told, refusal);
    }
}

#[tokio::test]
async fn what_does_not_belong_is_not_believed() {
    let ended = |end: End| frames(&[HELLO(), ACCEPTED, ToClient::End(Box::new(end))]);
    let is_protocol = |error: ConnectionError| {
        assert!(
            matches!(error, ConnectionError::Protocol { .. }),
            "{error:?}"
        );
    };
    is_protocol(failure(frames(&[ACCEPTED])).await);
    is_protocol(failure(frames(&[HELLO(), ToClient::Draining])).await);
    is_protocol(failure(frames(&[HELLO(), HELLO()])).await);
    is_protocol(failure(frames(&[HELLO(), ACCEPTED, ACCEPTED])).await);
    for name in ["../x", "/x", "a//b", ".x", "", "a\n"] {
        is_protocol(failure(ended(end(&[(name, b"")]))).await);
    }
    let many = vec![("x", b"".as_slice()); MAX_FILES + 1];
    is_protocol(failure(ended(end(&many))).await);
    let mut large = end(&[("x", b"")]);
    large.artifacts[0].size = u64::MAX;
    is_protocol(failure(ended(large)).await);
    let mut short = end(&[]);
    short.stdout_bytes = 1;
    let more = [
        HELLO(),
        ACCEPTED,
        ToClient::Stdout(vec![0; 2]),
        ToClient::End(Box::new(short)),
    ];
    is_protocol(failure(frames(&more)).await);
    let files = |bytes: &[u8]| {
        let mut answer = ended(end(&[("x", b"1234")]));
        answer.extend(ToClient::Data(bytes.to_vec()).to_frame());
        answer
    };
    is_protocol(failure(files(b"1235")).await);
    is_protocol(failure(files(b"12345")).await);
    assert!(matches!(
        failure(files(b"123")).await,
        ConnectionError::Lost
    ));
    assert!(matches!(
        failure(frames(&[HELLO(), ACCEPTED])).await,
        ConnectionError::Lost
    ));
    assert!(matches!(
        failure(vec![0; 5]).await,
        ConnectionError::Wire { .. }
    ));
    let other = Hello {
        protocol: PROTOCOL + 1,
        version: String::new(),
    };
    let error = failure(frames(&[ToClient::Hello(other)])).await;
    assert!(
        error.to_string().contains("install the same version"),
        "{error}"
    );
}

/// A supervisor that greets, accepts and then says nothing more, and what it is told.
async fn silent() -> (Submitted, tokio::net::UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let mut theirs = tokio::net::UnixStream::from_std(theirs).unwrap();
    theirs
        .write_all(&frames(&[HELLO(), ACCEPTED]))
        .await
        .unwrap();
    let request = JobRequest::default();
    let (run, parts) = Run::new("python", &request, true);
    let connection = Connection::resume(fresh(ours)).unwrap();
    let submitted = connection.submit(&run, &parts).await;
    (submitted.unwrap(), theirs)
}

#[tokio::test]
async fn a_cancel_is_sent_and_the_end_waited_for() {
    let (submitted, mut theirs) = silent().await;
    let cancel = CancellationToken::new();
    let attend = submitted.attend::<Output>(None, &cancel);
    let (ended, ()) = tokio::join!(attend, async {
        cancel.cancel();
        let mut told = Vec::new();
        while !told.ends_with(&ToSupervisor::Cancel.to_frame()) {
            told.push(theirs.read_u8().await.unwrap());
        }
        let mut cancelled = end(&[]);
        cancelled.termination = How::Cancelled;
        let answer = frames(&[ToClient::End(Box::new(cancelled))]);
        theirs.write_all(&answer).await.unwrap();
    });
    assert_eq!(ended.unwrap().end().termination, How::Cancelled);
}

#[tokio::test]
async fn after_a_cancel_nobody_has_to_read_the_output() {
    let (submitted, mut theirs) = silent().await;
    let mut answer = frames(&vec![ToClient::Stdout(b"x".to_vec()); 6]);
    answer.extend(ToClient::End(Box::new(end(&[]))).to_frame());
    theirs.write_all(&answer).await.unwrap();
    let cancel = CancellationToken::new();
    let (events, _unread) = mpsc::channel::<Output>(1);
    let attend = submitted.attend(Some(events), &cancel);
    let (ended, ()) = tokio::join!(attend, async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        cancel.cancel();
    });
    assert_eq!(ended.unwrap().end().id, "tako-1");
}

#[tokio::test]
async fn where_nobody_listens_the_error_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    for _ in 0..2 {
        let error = Connection::open(&socket).await.unwrap_err();
        assert!(
            error.to_string().contains("no supervisor answers at"),
            "{error}"
        );
        assert!(
            error.hint().unwrap().contains("tako-vm supervisor"),
            "{error}"
        );
        assert!(connect(&socket).is_err());
        // A socket that is left over is the same as none.
        drop(UnixListener::bind(&socket));
    }
}

#[tokio::test]
async fn numbers_and_the_end_are_asked_for_on_one_connection() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let mut theirs = tokio::net::UnixStream::from_std(theirs).unwrap();
    let stats = Stats {
        running: 3,
        ..Stats::default()
    };
    let refusal = Refusal {
        code: RefusalCode::Forbidden,
        message: "root alone may drain the supervisor".to_owned(),
        problems: Vec::new(),
        retry_after_ms: None,
    };
    let answer = frames(&[
        HELLO(),
        ToClient::Stats(Box::new(stats.clone())),
        ToClient::Refused(refusal),
        ToClient::Draining,
    ]);
    theirs.write_all(&answer).await.unwrap();
    let mut connection = Connection::resume(fresh(ours)).unwrap();
    assert_eq!(connection.stats().await.unwrap(), stats);
    let refused = connection.drain().await.unwrap_err();
    assert_eq!(refused.to_string(), "root alone may drain the supervisor");
    connection.drain().await.unwrap();
    drop(theirs);
    let lost = connection.stats().await;
    assert!(matches!(lost, Err(ConnectionError::Lost)), "{lost:?}");
}

#[test]
fn a_listener_whose_queue_is_full_is_not_waited_for_for_ever() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("socket");
    let patience = Duration::from_millis(100);
    let nobody = connect_within(&path, patience).unwrap_err();
    assert_eq!(nobody.kind(), io::ErrorKind::NotFound);
    let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
    let listener = rustix::net::socket(family, kind, None).unwrap();
    let address = SocketAddrUnix::new(&path).unwrap();
    rustix::net::bind(&listener, &address).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let first = connect_within(&path, patience).unwrap();
    assert_eq!(first.write_timeout().unwrap(), None);
    let begun = std::time::Instant::now();
    let error = connect_within(&path, patience).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
    assert!(begun.elapsed() >= patience);
}
