//! A store that speaks S3, for servers on several hosts.

use super::{Files, FilesError};
use object_store::aws::AmazonS3Builder;
use object_store::path::Path as ObjectPath;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientOptions, RetryConfig};
use std::sync::Arc;
use std::time::Duration;

/// How long a connection may take: a host that is gone says nothing.
const CONNECT: Duration = Duration::from_secs(3);

/// How long a request may take, its bytes included: some megabytes at a few megabits a second.
const REQUEST: Duration = Duration::from_secs(30);

/// How often a request is said again that was not answered, or with a failure of the store's own, and until
/// when after the first. Few and short: a store that is away longer is waited for by whoever claims jobs.
const RETRIES: usize = 2;
const RETRY_FOR: Duration = Duration::from_secs(10);

/// Between two tries, in seconds: it doubles.
const PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How a store is reached. Not shown: it holds what it is opened with.
#[derive(Clone)]
pub struct S3 {
    /// It exists.
    pub bucket: String,
    /// What all names of ours begin with, without a slash at either end; may be empty.
    pub prefix: String,
    /// `https://HOST:PORT`; without one, that of Amazon's for the region.
    pub endpoint: Option<String>,
    /// Where the bucket is.
    pub region: String,
    /// The endpoint may be one of `http://`.
    pub allow_http: bool,
    /// The name of a key,
    pub access_key_id: String,
    /// the key itself,
    pub secret_access_key: String,
    /// and what goes with one that is lent for a while.
    pub session_token: Option<String>,
}

impl Files {
    /// Those below a prefix in a bucket. Nothing is asked for yet.
    ///
    /// # Errors
    /// [`FilesError::Open`].
    pub fn in_s3(s3: &S3) -> Result<Self, FilesError> {
        // For TLS. Whoever embeds us may have chosen another.
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
        let is_plain = s3
            .endpoint
            .as_ref()
            .is_some_and(|url| url.starts_with("http:"));
        let client = ClientOptions::new()
            .with_allow_http(s3.allow_http)
            // They are looked for at once, and a host may have none.
            .with_no_system_certificates(is_plain)
            .with_connect_timeout(CONNECT)
            .with_timeout(REQUEST);
        let retry = RetryConfig {
            backoff: BackoffConfig {
                init_backoff: PAUSE,
                max_backoff: LONGEST_PAUSE,
                base: 2.0,
            },
            max_retries: RETRIES,
            retry_timeout: RETRY_FOR,
        };
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&s3.bucket)
            .with_region(&s3.region)
            .with_access_key_id(&s3.access_key_id)
            .with_secret_access_key(&s3.secret_access_key)
            .with_client_options(client)
            .with_retry(retry);
        if let Some(endpoint) = &s3.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        if let Some(token) = &s3.session_token {
            builder = builder.with_token(token);
        }
        let open = |source: object_store::Error| FilesError::Open {
            source: source.into(),
        };
        let prefix = ObjectPath::parse(&s3.prefix).map_err(|error| open(error.into()))?;
        let store = builder.build().map_err(open)?;
        Ok(Self(Arc::new(PrefixStore::new(store, prefix))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    async fn listener() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        (listener, address)
    }

    fn files(endpoint: String) -> Files {
        let s3 = S3 {
            bucket: "jobs".to_owned(),
            prefix: String::new(),
            allow_http: endpoint.starts_with("http:"),
            endpoint: Some(endpoint),
            region: "us-east-1".to_owned(),
            access_key_id: "id".to_owned(),
            secret_access_key: "key".to_owned(),
            session_token: None,
        };
        Files::in_s3(&s3).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_never_answers_is_given_up() {
        let (listener, address) = listener().await;
        let held = Arc::new(Mutex::new(Vec::new()));
        let holding = Arc::clone(&held);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                holding.lock().unwrap().push(stream);
            }
        });
        let files = files(format!("http://{address}"));
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("collected");
        std::fs::write(&file, "bytes").unwrap();
        let begun = Instant::now();
        let kept = files.keep(&file, &"ab".repeat(32)).await;
        assert!(kept.is_err_and(|error| !error.is_refusal()));
        // Time passes as soon as there is nothing else to do; when a retry is too late, another clock says.
        let tries = u32::try_from(RETRIES).unwrap() + 1;
        let late = REQUEST * tries + LONGEST_PAUSE * tries;
        assert!(begun.elapsed() <= late, "{:?}", begun.elapsed());
        assert!(!held.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_is_said_to_an_address_of_https_begins_with_a_handshake() {
        let (listener, address) = listener().await;
        let files = files(format!("https://{address}"));
        let reading = tokio::spawn(async move { files.read("ab").await });
        let (mut stream, _) = listener.accept().await.unwrap();
        // RFC 8446, 5.1: a record of the kind `handshake`.
        assert_eq!(stream.read_u8().await.unwrap(), 22);
        reading.abort();
    }
}
