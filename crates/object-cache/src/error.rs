use std::{error::Error, time::Duration};

use crate::MAX_ENTRY;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("{}", with_causes(.0))]
    Store(#[from] object_store::Error),
    #[error("no answer within {} seconds", .0.as_secs())]
    Late(Duration),
    #[error("expected an entry of at most {MAX_ENTRY} bytes, found {0}")]
    TooLarge(u64),
    #[error("the request failed unexpectedly; this is a bug")]
    Panicked,
}

impl RequestError {
    /// Whether the object is not there, and all else is well.
    pub(crate) fn is_missing_object(&self) -> bool {
        // Without the bucket no object is found either, which must not pass for a cache that is empty. The codes are those of
        // S3 and Google, and of Azure.
        let no_bucket = |text: &str| text.contains("NoSuchBucket") || text.contains("ContainerNotFound");
        match self {
            RequestError::Store(object_store::Error::NotFound { source, .. }) => !no_bucket(&source.to_string()),
            _ => false,
        }
    }
}

/// An error and what caused it in one line. "Error sending request" alone does not help: that the connection was refused
/// stands a few causes deeper.
fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Many errors repeat their cause.
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
