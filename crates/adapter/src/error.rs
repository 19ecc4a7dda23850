use std::{error::Error, path::PathBuf};

use crate::{AdapterProblem, problem};

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct AdapterError(Box<AdapterErrorKind>);

impl AdapterError {
    /// The kind of this error.
    pub fn kind(&self) -> &AdapterErrorKind {
        &self.0
    }
}

impl From<AdapterErrorKind> for AdapterError {
    fn from(kind: AdapterErrorKind) -> Self {
        AdapterError(Box::new(kind))
    }
}

/// The kinds of [`AdapterError`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterErrorKind {
    /// An adapter does not fit; nothing was changed.
    #[error("{}", problem::message(.adapter, .problems, *.keys))]
    Fit {
        /// Its name.
        adapter: String,
        /// Every reason.
        problems: Vec<AdapterProblem>,
        /// How many tensors it has.
        keys: usize,
    },
    /// Its configuration could not be read.
    #[error("{}: {why}", .path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// Its weight file could not be read.
    #[error(transparent)]
    Weights(Box<dyn Error + Send + Sync>),
}
