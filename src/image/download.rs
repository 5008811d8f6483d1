//! Fetches an archive over HTTP, going on where the last attempt broke off.
//!
//! Nothing here is believed: the caller compares the digest of what has arrived. `If-Range` only saves
//! going on with a file that the server has replaced meanwhile, which would be found out at the end.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use ureq::http::{Response, StatusCode, header};
use ureq::{Agent, Body};

/// How often in a row an attempt may end without a single new byte.
const FRUITLESS_ATTEMPTS: u32 = 3;

/// The pause before trying again, long enough for a server that restarts.
const PAUSE: Duration = Duration::from_secs(1);

/// How long the server may stay silent before the attempt counts as broken.
const SILENCE: Duration = Duration::from_secs(30);

/// How often the progress of long work is told.
const TELL_EVERY: Duration = Duration::from_secs(2);

/// Why the archive has not arrived.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
pub enum DownloadError {
    #[error("cannot request `{url}`")]
    Request {
        url: String,
        source: Box<ureq::Error>,
    },
    #[error("the server answers {status} for `{url}`")]
    Status { url: String, status: StatusCode },
    #[error("the connection to `{url}` broke after {received} bytes")]
    Broken {
        url: String,
        received: u64,
        source: io::Error,
    },
    #[error("cannot write `{}`", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Where the server says which version of the file the partial one is of.
pub(super) fn validator_path(partial: &Path) -> PathBuf {
    partial.with_extension("validator")
}

/// Fetches `url` into `partial`, which may hold the beginning already and then is continued.
///
/// What has arrived stays there when it fails, for the next attempt.
///
/// # Errors
/// The last failure, once several attempts in a row have brought nothing.
pub fn fetch(
    url: &str,
    partial: &Path,
    progress: &mut dyn FnMut(&str),
) -> Result<(), DownloadError> {
    let agent: Agent = Agent::config_builder()
        .http_status_as_error(false)
        // A compressed body has other offsets than the file.
        .accept_encoding("identity")
        .timeout_connect(Some(SILENCE))
        .timeout_recv_response(Some(SILENCE))
        .timeout_per_read(Some(SILENCE))
        .build()
        .into();
    let mut fruitless = 0;
    loop {
        let before = size(partial);
        let error = match attempt(&agent, url, partial, progress) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        fruitless = if size(partial) > before {
            0
        } else {
            fruitless + 1
        };
        let hopeless = matches!(&error, DownloadError::Write { .. })
            || matches!(&error, DownloadError::Status { status, .. } if status.is_client_error());
        if hopeless || fruitless == FRUITLESS_ATTEMPTS {
            return Err(error);
        }
        let cause = error.source().map(|cause| format!(": {cause}"));
        progress(&format!(
            "trying again, since {error}{}",
            cause.unwrap_or_default()
        ));
        std::thread::sleep(PAUSE);
    }
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

fn attempt(
    agent: &Agent,
    url: &str,
    partial: &Path,
    progress: &mut dyn FnMut(&str),
) -> Result<(), DownloadError> {
    let written = |source| DownloadError::Write {
        path: partial.to_owned(),
        source,
    };
    let have = size(partial);
    let response = request(agent, url, have, partial)?;
    let mut file = File::options()
        .create(true)
        .append(true)
        .open(partial)
        .map_err(written)?;
    match response.status() {
        StatusCode::PARTIAL_CONTENT if starts_at(&response, have) => {
            progress(&format!("going on after {} MB", have / 1_000_000));
        }
        StatusCode::OK => {
            file.set_len(0).map_err(written)?;
            keep_validator(&response, partial).map_err(written)?;
        }
        // What we have is not the beginning of what the server has: start over.
        StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::PARTIAL_CONTENT if have > 0 => {
            file.set_len(0).map_err(written)?;
            return attempt(agent, url, partial, progress);
        }
        status => {
            return Err(DownloadError::Status {
                url: url.to_owned(),
                status,
            });
        }
    }
    receive(response, url, &mut file, progress)?.map_err(written)
}

fn request(
    agent: &Agent,
    url: &str,
    have: u64,
    partial: &Path,
) -> Result<Response<Body>, DownloadError> {
    let mut request = agent.get(url);
    if have > 0 {
        request = request.header(header::RANGE, format!("bytes={have}-"));
        if let Ok(validator) = fs::read_to_string(validator_path(partial)) {
            request = request.header(header::IF_RANGE, validator);
        }
    }
    request.call().map_err(|source| DownloadError::Request {
        url: url.to_owned(),
        source: Box::new(source),
    })
}

/// Whether a partial answer begins where our file ends (`Content-Range: bytes START-END/SIZE`).
fn starts_at(response: &Response<Body>, have: u64) -> bool {
    response
        .headers()
        .get(header::CONTENT_RANGE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.starts_with(&format!("bytes {have}-")))
}

/// Remembers what `If-Range` can be asked with: a strong entity tag, or else a date (RFC 9110, 13.1.5).
fn keep_validator(response: &Response<Body>, partial: &Path) -> io::Result<()> {
    let text = |name| response.headers().get(name)?.to_str().ok();
    let tag = text(header::ETAG).filter(|tag| !tag.starts_with("W/"));
    let path = validator_path(partial);
    match tag.or_else(|| text(header::LAST_MODIFIED)) {
        Some(validator) => fs::write(path, validator),
        None if path.exists() => fs::remove_file(path),
        None => Ok(()),
    }
}

/// Appends the body to the file. The inner failure is that of writing.
fn receive(
    response: Response<Body>,
    url: &str,
    file: &mut File,
    progress: &mut dyn FnMut(&str),
) -> Result<io::Result<()>, DownloadError> {
    let mut body = response.into_body().into_reader();
    let mut buffer = vec![0; 1 << 16];
    let (mut received, mut told) = (0, Instant::now());
    loop {
        let length = match body.read(&mut buffer) {
            Ok(0) => return Ok(file.sync_all()),
            Ok(length) => length,
            Err(source) => {
                return Err(DownloadError::Broken {
                    url: url.to_owned(),
                    received,
                    source,
                });
            }
        };
        if let Err(error) = file.write_all(&buffer[..length]) {
            return Ok(Err(error));
        }
        received += length as u64;
        if told.elapsed() > TELL_EVERY {
            told = Instant::now();
            progress(&format!("{} MB received", received / 1_000_000));
        }
    }
}
