//! Where files of jobs are kept when it is not the server's own directory: the key `artifact_store`, and the
//! variables that everything has which speaks S3.

use super::{ConfigError, problem};
use serde::Deserialize;
use std::ffi::OsString;
use std::fmt;

/// The variables that hold a key, or one that is lent for a while.
pub(super) const ACCESS_KEY_ID: &str = "AWS_ACCESS_KEY_ID";
const SECRET_ACCESS_KEY: &str = "AWS_SECRET_ACCESS_KEY";
const SESSION_TOKEN: &str = "AWS_SESSION_TOKEN";

/// The variables that stand in for `endpoint` and `region`.
pub(super) const ENDPOINT_URL: &str = "AWS_ENDPOINT_URL";
pub(super) const REGION: &str = "AWS_REGION";

/// The region where one that is no place has to be said.
const ANY_REGION: &str = "us-east-1";

/// The key of the store, as the environment of root's process has it. It is for the server, and for nothing
/// else that root starts.
pub fn artifact_store_key() -> impl Iterator<Item = (&'static str, OsString)> {
    let variables = [ACCESS_KEY_ID, SECRET_ACCESS_KEY, SESSION_TOKEN].into_iter();
    variables.filter_map(|name| Some((name, std::env::var_os(name)?)))
}

/// Text that is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(..)")
    }
}

/// A bucket of an S3-compatible store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArtifactStore {
    /// Its name.
    pub bucket: String,
    /// What all names begin with, without a slash at either end; may be empty.
    pub prefix: String,
    /// `https://HOST[:PORT]`; `None` for Amazon's of the region.
    pub endpoint: Option<String>,
    /// Where it is. Default with an endpoint: `us-east-1`, which most of them take.
    pub region: String,
    /// The endpoint may be one of `http://`. Default: false.
    pub allow_http: bool,
    access_key_id: Option<Secret>,
    secret_access_key: Option<Secret>,
    /// What goes with a key that is lent for a while.
    pub session_token: Option<Secret>,
}

impl ArtifactStore {
    /// The name of the key, and the key. Who reads the configuration for something else needs none.
    ///
    /// # Errors
    /// When one is not set.
    pub fn key(&self) -> Result<(&Secret, &Secret), ConfigError> {
        let missing = |name| {
            let why = format!("needs {name}: set it in the environment of the server");
            problem("artifact_store", why)
        };
        let id = self.access_key_id.as_ref();
        let key = self.secret_access_key.as_ref();
        Ok((
            id.ok_or_else(|| missing(ACCESS_KEY_ID))?,
            key.ok_or_else(|| missing(SECRET_ACCESS_KEY))?,
        ))
    }
}

/// The key as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Keys {
    url: String,
    endpoint: Option<String>,
    region: Option<String>,
    #[serde(default)]
    allow_http: bool,
}

impl Keys {
    pub(super) fn check(
        self,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<ArtifactStore, ConfigError> {
        let (bucket, prefix) = bucket(&self.url)?;
        let endpoint = self.endpoint.or_else(|| variable(ENDPOINT_URL));
        let endpoint = endpoint
            .map(|url| check_endpoint(&url, self.allow_http))
            .transpose()?;
        let region = self.region.or_else(|| variable(REGION));
        let region = region.or_else(|| endpoint.as_ref().map(|_| ANY_REGION.to_owned()));
        Ok(ArtifactStore {
            bucket,
            prefix,
            endpoint,
            region: check_region(region)?,
            allow_http: self.allow_http,
            access_key_id: variable(ACCESS_KEY_ID).map(Secret),
            secret_access_key: variable(SECRET_ACCESS_KEY).map(Secret),
            session_token: variable(SESSION_TOKEN).map(Secret),
        })
    }
}

/// The bucket, and the prefix without slashes around it.
fn bucket(url: &str) -> Result<(String, String), ConfigError> {
    let wrong = |what: &str| {
        let why = format!("is `{url}`: {what}, as in `s3://BUCKET/PREFIX`");
        problem("artifact_store.url", why)
    };
    let rest = url
        .strip_prefix("s3://")
        .ok_or_else(|| wrong("begin with `s3://`"))?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let is_in_bucket = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(is_in_bucket) {
        return Err(wrong(
            "name a bucket of 3 to 63 letters, digits, `-`, `.` and `_`",
        ));
    }
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    let is_part = |part: &str| {
        let is_in_part = |byte: u8| byte.is_ascii_alphanumeric() || b"-._!'()=".contains(&byte);
        !["", ".", ".."].contains(&part) && part.bytes().all(is_in_part)
    };
    if !prefix.is_empty() && !prefix.split('/').all(is_part) {
        return Err(wrong(
            "give a prefix of letters, digits and `-._!'()=`, with single slashes between",
        ));
    }
    Ok((bucket.to_owned(), prefix.to_owned()))
}

fn check_endpoint(url: &str, allow_http: bool) -> Result<String, ConfigError> {
    let key = "artifact_store.endpoint";
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let host = rest.strip_suffix('/').unwrap_or(rest);
    // Nothing of a user's is in it, so it can be shown.
    let is_in_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-.:[]".contains(&byte);
    if host.is_empty() || !host.bytes().all(is_in_host) || !["http", "https"].contains(&scheme) {
        let why =
            "is no `https://HOST` or `https://HOST:PORT`: give it so, without anything behind";
        return Err(problem(key, why));
    }
    if scheme == "http" && !allow_http {
        let why = format!(
            "is `{url}`, where whoever is on the way reads and changes the files of jobs: give an address of \
             `https://`, or set `artifact_store.allow_http: true`"
        );
        return Err(problem(key, why));
    }
    Ok(format!("{scheme}://{host}"))
}

fn check_region(region: Option<String>) -> Result<String, ConfigError> {
    let key = "artifact_store.region";
    let Some(region) = region else {
        let why = format!("is missing: give that of the bucket, or set {REGION}");
        return Err(problem(key, why));
    };
    let is_in_region = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    if region.is_empty() || !region.bytes().all(is_in_region) {
        return Err(problem(
            key,
            format!("is `{region}`: give a name such as `eu-central-1`"),
        ));
    }
    Ok(region)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [(&str, &str); 2] = [(ACCESS_KEY_ID, "id"), (SECRET_ACCESS_KEY, "key")];

    fn parse(text: &str, variables: &[(&str, &str)]) -> Result<ArtifactStore, String> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(other, _)| *other == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let keys: Keys = serde_yaml_ng::from_str(text).map_err(|error| error.to_string())?;
        keys.check(&variable).map_err(|error| error.to_string())
    }

    #[test]
    fn every_key_is_taken_and_variables_stand_in_for_what_is_missing() {
        let text = "{url: s3://jobs/a/b/, endpoint: 'http://127.0.0.1:9000/', region: eu-1, allow_http: true}";
        let variables = [KEY[0], KEY[1], (REGION, "other"), (ENDPOINT_URL, "no")];
        let store = parse(text, &variables).unwrap();
        assert_eq!((&store.bucket[..], &store.prefix[..]), ("jobs", "a/b"));
        assert_eq!(store.endpoint.as_deref(), Some("http://127.0.0.1:9000"));
        assert_eq!((&store.region[..], store.allow_http), ("eu-1", true));
        let (id, key) = store.key().unwrap();
        assert_eq!((id.as_str(), key.as_str()), ("id", "key"));
        assert!(store.session_token.is_none());

        let variables = [
            KEY[0],
            KEY[1],
            (SESSION_TOKEN, "lent"),
            (ENDPOINT_URL, "https://store.example"),
        ];
        let store = parse("{url: s3://jobs}", &variables).unwrap();
        assert_eq!(store.prefix, "");
        assert_eq!(store.endpoint.as_deref(), Some("https://store.example"));
        assert_eq!(store.region, ANY_REGION);
        assert_eq!(store.session_token.as_ref().unwrap().as_str(), "lent");
        let shown = format!("{store:?}");
        assert!(
            !shown.contains("lent") && !shown.contains("\"key\""),
            "{shown}"
        );
    }

    #[test]
    fn what_is_wrong_is_refused_and_named_with_what_to_do() {
        for (text, expected) in [
            (
                "{url: jobs}",
                "`artifact_store.url` is `jobs`: begin with `s3://`",
            ),
            ("{url: 's3://j/p'}", "name a bucket of 3 to 63"),
            ("{url: 's3://jobs/a/../b'}", "give a prefix of letters"),
            ("{url: 's3://jobs//a'}", "give a prefix of letters"),
            ("{url: s3://jobs}", "`artifact_store.region` is missing"),
            (
                "{url: s3://jobs, region: 'a b'}",
                "`artifact_store.region` is `a b`",
            ),
            (
                "{url: s3://jobs, endpoint: 'http://h:1'}",
                "set `artifact_store.allow_http: true`",
            ),
            (
                "{url: s3://jobs, endpoint: 'https://u:p@h'}",
                "is no `https://HOST`",
            ),
            (
                "{url: s3://jobs, endpoint: 'ftp://h'}",
                "is no `https://HOST`",
            ),
            ("{url: s3://jobs, bucket: b}", "unknown field `bucket`"),
            ("{endpoint: 'https://h'}", "missing field `url`"),
        ] {
            let error = parse(text, &KEY).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
            assert!(!error.contains("u:p"), "{error}");
        }
        let store = parse("{url: s3://jobs, region: a}", &KEY[..1]).unwrap();
        let error = store.key().unwrap_err().to_string();
        assert!(error.contains("needs AWS_SECRET_ACCESS_KEY"), "{error}");
    }
}
