//! What a store has said, once and in a line: `object_store` writes what lies below an error into its text
//! and gives it as its source as well, and S3 answers in XML.

use std::error::Error;

/// An error of a store of files.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct Said {
    text: String,
    /// What is wanted will not be done, however often it is said.
    is_refusal: bool,
}

impl Said {
    pub(super) fn is_refusal(&self) -> bool {
        self.is_refusal
    }
}

impl From<object_store::Error> for Said {
    fn from(error: object_store::Error) -> Self {
        use object_store::Error::{NotFound, PermissionDenied, Unauthenticated};
        let is_refusal = matches!(
            error,
            NotFound { .. } | PermissionDenied { .. } | Unauthenticated { .. }
        );
        let text = chain(&error);
        let text = answer(&text).unwrap_or(text);
        Self { text, is_refusal }
    }
}

impl From<std::io::Error> for Said {
    /// As what writes piece by piece has wrapped it.
    fn from(error: std::io::Error) -> Self {
        match error.downcast::<object_store::Error>() {
            Ok(error) => error.into(),
            Err(error) => Self {
                text: chain(&error),
                is_refusal: false,
            },
        }
    }
}

/// An error and what has caused it, but for what was said already.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

/// What S3 answers with a refusal, in its own words.
fn answer(text: &str) -> Option<String> {
    let between = |tag: &str| {
        let (_, rest) = text.split_once(&format!("<{tag}>"))?;
        rest.split_once(&format!("</{tag}>"))
            .map(|(found, _)| found)
    };
    let code = between("Code")?;
    Some(match between("Message") {
        Some(message) => format!("it answers `{code}`: {message}"),
        None => format!("it answers `{code}`"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_s3_is_told_in_its_own_words_and_anything_else_once() {
        let xml = "Error performing PUT http://h/b/k - 403 Forbidden: <?xml version=\"1.0\"?><Error>\
                   <Code>AccessDenied</Code><Message>No.</Message><StringToSign>AWS4</StringToSign></Error>";
        let refused = |source: &str| object_store::Error::PermissionDenied {
            path: "k".to_owned(),
            source: source.into(),
        };
        let said = Said::from(refused(xml));
        assert_eq!(said.to_string(), "it answers `AccessDenied`: No.");
        assert!(said.is_refusal());
        let wrapped = std::io::Error::from(refused(xml));
        assert!(Said::from(wrapped).is_refusal());
        let nowhere = object_store::Error::NotFound {
            path: "k".to_owned(),
            source: "<Error><Code>NoSuchBucket</Code></Error>".into(),
        };
        let said = Said::from(nowhere);
        assert_eq!(said.to_string(), "it answers `NoSuchBucket`");
        assert!(said.is_refusal());
        let away = object_store::Error::Generic {
            store: "S3",
            source: "nobody is there".into(),
        };
        let said = Said::from(away);
        assert_eq!(said.to_string(), "Generic S3 error: nobody is there");
        assert!(!said.is_refusal());
    }
}
