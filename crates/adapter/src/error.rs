use regraft_weights::{WeightsError, WeightsErrorKind};

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

impl<K: Into<AdapterErrorKind>> From<K> for AdapterError {
    fn from(kind: K) -> Self {
        AdapterError(Box::new(kind.into()))
    }
}

/// The kinds of [`AdapterError`].
#[derive(Debug, thiserror::Error)]
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
    /// Its file could not be read.
    #[error(transparent)]
    File(#[from] WeightsError),
}

impl From<WeightsErrorKind> for AdapterErrorKind {
    fn from(kind: WeightsErrorKind) -> Self {
        AdapterErrorKind::File(kind.into())
    }
}
