//! A server that speaks S3 on this host, which looks at signatures, and a bucket in it.

use axum::Router;
use axum::error_handling::HandleError;
use axum::http::StatusCode;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};
use tako_vm::store::files::{Files, S3};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

pub(crate) const BUCKET: &str = "jobs";
pub(crate) const PREFIX: &str = "some/where";
pub(crate) const ACCESS_KEY_ID: &str = "an-access-key-id";
pub(crate) const SECRET_ACCESS_KEY: &str = "a-secret-access-key";

pub(crate) struct Bucket {
    root: TempDir,
    address: SocketAddr,
    /// Of its own, so that its connections end with it; `None` while it is away.
    runtime: Option<Runtime>,
}

impl Bucket {
    pub(crate) fn start() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join(BUCKET)).unwrap();
        let mut bucket = Self {
            root,
            address: "127.0.0.1:0".parse().unwrap(),
            runtime: None,
        };
        bucket.come_back();
        bucket
    }

    /// Serves, at the same address as before.
    pub(crate) fn come_back(&mut self) {
        let mut service = S3ServiceBuilder::new(FileSystem::new(self.root.path()).unwrap());
        service.set_auth(SimpleAuth::from_single(ACCESS_KEY_ID, SECRET_ACCESS_KEY));
        let failed = |_| async { StatusCode::INTERNAL_SERVER_ERROR };
        let service = HandleError::new(service.build(), failed);
        let listener = std::net::TcpListener::bind(self.address).unwrap();
        listener.set_nonblocking(true).unwrap();
        self.address = listener.local_addr().unwrap();
        let runtime = Runtime::new().unwrap();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            axum::serve(listener, Router::new().fallback_service(service)).await
        });
        self.runtime = Some(runtime);
    }

    /// Is not reached any more.
    pub(crate) fn go_away(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
        while std::net::TcpStream::connect(self.address).is_ok() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn settings(&self) -> S3 {
        S3 {
            bucket: BUCKET.to_owned(),
            prefix: PREFIX.to_owned(),
            endpoint: Some(self.endpoint()),
            region: "us-east-1".to_owned(),
            allow_http: true,
            access_key_id: ACCESS_KEY_ID.to_owned(),
            secret_access_key: SECRET_ACCESS_KEY.to_owned(),
            session_token: None,
        }
    }

    /// A store of its own, as each server has one.
    pub(crate) fn files(&self) -> Files {
        Files::in_s3(&self.settings()).unwrap()
    }

    /// Where an object lies.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(BUCKET).join(name)
    }

    /// Where the bytes of this digest lie.
    pub(crate) fn path_of(&self, sha256: &str) -> PathBuf {
        self.path(&format!("{PREFIX}/sha256/{}/{sha256}", &sha256[..2]))
    }

    /// The names of all objects, in order.
    pub(crate) fn objects(&self) -> Vec<String> {
        fn below(directory: PathBuf, found: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    below(path, found);
                } else {
                    found.push(path);
                }
            }
        }
        let (bucket, mut found) = (self.path(""), Vec::new());
        below(bucket.clone(), &mut found);
        let names = found.iter().map(|path| path.strip_prefix(&bucket).unwrap());
        let mut names: Vec<_> = names.map(|name| name.display().to_string()).collect();
        names.sort();
        names
    }

    /// Uploads of several parts that are neither whole nor given up.
    pub(crate) fn unfinished(&self) -> usize {
        let entries = fs::read_dir(self.root.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with(".upload")).count()
    }
}

/// As if it had been written a week and a day ago.
pub(crate) fn make_old(path: &std::path::Path) {
    let file = fs::File::options().write(true).open(path).unwrap();
    let old = SystemTime::now() - Duration::from_hours(8 * 24);
    file.set_modified(old).unwrap();
}

impl Drop for Bucket {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Also from within another runtime.
            runtime.shutdown_background();
        }
    }
}
