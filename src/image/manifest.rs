//! What is known of an executor image besides its bytes, and how images are named.

use crate::sys::digest::{Digest, NotADigest};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Longest name of an image, in bytes.
const MAX_NAME: usize = 64;

/// What is known of an executor image.
///
/// Unknown fields are passed over, so that the manifest of a later version is refused for its
/// `protocol`, with the command that mends it, and not for its form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// What the image is called here.
    pub name: ImageName,
    /// SHA-256 of the EROFS file.
    pub digest: Digest,
    /// Bytes of the EROFS file.
    pub size_bytes: u64,
    /// Bytes of the files in it.
    pub tree_bytes: u64,
    /// Version of the interpreter, as in `3.11.2`.
    pub python: String,
    /// Modules that an interpreter which is held ready has imported before it gets its program.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub preload: Vec<String>,
    /// Debian packages that it was made of, sorted by name.
    pub packages: Vec<Package>,
    /// SHA-256 of everything that decides what the packages become.
    pub recipe_digest: Digest,
    /// SHA-256 of what is added to them: `tako-init`, the interpreter's hook, and how.
    pub init_digest: Digest,
    /// Version of the guest protocol that its `tako-init` speaks.
    pub protocol: u16,
    /// When it was built, in UTC.
    pub created_at: Timestamp,
}

/// A Debian package in an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The architecture it was built for, or `all`.
    pub architecture: String,
    /// SHA-256 of the `.deb` file, which apt checked against the signed index.
    pub sha256: Digest,
}

/// The name of an image: 1 to 64 characters of `a-z`, `0-9`, `.`, `_`, `-`, the first a letter or digit.
///
/// It becomes part of a path, so nothing else is let through.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageName(String);

impl ImageName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for ImageName {
    type Err = NotAReference;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let starts = text
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        let plain =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
        if starts && text.len() <= MAX_NAME && text.bytes().all(plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NotAReference::Name {
                name: text.to_owned(),
            })
        }
    }
}

impl TryFrom<String> for ImageName {
    type Error = NotAReference;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ImageName> for String {
    fn from(name: ImageName) -> Self {
        name.0
    }
}

/// Why a text names no image.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
pub enum NotAReference {
    #[error(
        "`{}` is not the name of an image (1 to 64 characters of `a-z`, `0-9`, `.`, `_`, `-`; the first a letter or digit)",
        name.escape_debug()
    )]
    Name { name: String },
    #[error("`{}` is not `NAME@sha256:HEX`", reference.escape_debug())]
    Digest {
        reference: String,
        source: NotADigest,
    },
    #[error("`{}` is not `NAME@sha256:HEX`", reference.escape_debug())]
    Algorithm { reference: String },
}

/// Which image is meant: by its name, or by name and digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The name.
    pub name: ImageName,
    /// The digest that it must have.
    pub digest: Option<Digest>,
}

impl FromStr for Reference {
    type Err = NotAReference;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some((name, digest)) = text.split_once('@') else {
            return Ok(Self {
                name: text.parse()?,
                digest: None,
            });
        };
        let digits = digest.strip_prefix("sha256:");
        let digits = digits.ok_or_else(|| NotAReference::Algorithm {
            reference: text.to_owned(),
        })?;
        let digest = digits.parse().map_err(|source| NotAReference::Digest {
            reference: text.to_owned(),
            source,
        })?;
        Ok(Self {
            name: name.parse()?,
            digest: Some(digest),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_holds_nothing_that_means_something_in_a_path() {
        for good in ["python", "3", "python-3.11_x", &"a".repeat(64)] {
            assert_eq!(good.parse::<ImageName>().unwrap().as_str(), good);
        }
        let long = "a".repeat(65);
        for bad in [
            "", ".", "..", ".a", "-a", "_a", "A", "a/b", "../a", "a b", "a\n", "ä", "a:b", &long,
        ] {
            bad.parse::<ImageName>().unwrap_err();
        }
    }

    #[test]
    fn a_reference_is_a_name_alone_or_with_a_digest() {
        let digest = Digest::of(b"abc");
        let parsed: Reference = format!("python@sha256:{digest}").parse().unwrap();
        assert_eq!(parsed.name.as_str(), "python");
        assert_eq!(parsed.digest, Some(digest));
        assert_eq!("python".parse::<Reference>().unwrap().digest, None);
        for bad in [
            "python@",
            "python@sha256:",
            "python@sha256:00",
            "@sha256:00",
            &format!("python@md5:{digest}"),
            &format!("python@sha256:{digest}@x"),
        ] {
            bad.parse::<Reference>().unwrap_err();
        }
    }

    #[test]
    fn a_manifest_with_a_name_out_of_its_directory_is_refused() {
        let error = serde_json::from_str::<ImageName>("\"../python\"").unwrap_err();
        assert!(error.to_string().contains("not the name"), "{error}");
    }

    proptest! {
        #[test]
        fn a_text_that_is_a_name_is_one_plain_component_of_a_path(text in "[./a-z0-9_@:-]{0,70}|.*") {
            if let Ok(name) = text.parse::<ImageName>() {
                let file = format!("{name}.json");
                let components: Vec<_> = std::path::Path::new(&file).components().collect();
                prop_assert!(matches!(components[..], [std::path::Component::Normal(_)]));
                prop_assert!(name.as_str() == text && text.len() <= MAX_NAME);
            }
            // Whatever it refers to.
            drop(text.parse::<Reference>());
        }
    }
}
