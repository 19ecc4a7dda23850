use std::{error::Error, path::PathBuf};

use regraft_tensor::Explanation;

use crate::{AdapterProblem, problem};

/// An error of this crate.
///
/// ```
/// use regraft_adapter::{AdapterErrorKind, read_config};
///
/// let error = read_config("missing/adapter_config.json").unwrap_err();
/// assert!(matches!(error.kind(), AdapterErrorKind::Config { .. }));
/// ```
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
///
/// ```
/// use regraft_adapter::{AdapterErrorKind, read_config};
///
/// let error = read_config("missing/adapter_config.json").unwrap_err();
/// match error.kind() {
///     AdapterErrorKind::Fit { problems, .. } => println!("{} of its keys do not fit", problems.len()),
///     kind => println!("{kind}"),
/// }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterErrorKind {
    /// An adapter does not fit; nothing was changed.
    #[error("{}", self.explained())]
    Fit {
        /// Its name.
        adapter: String,
        /// Every reason.
        problems: Vec<AdapterProblem>,
        /// How many tensors it has.
        keys: usize,
    },
    /// Its configuration could not be read.
    #[error("{}", self.explained())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
        /// What to do.
        help: &'static str,
    },
    /// Its weight file could not be read.
    #[error(transparent)]
    Weights(Box<dyn Error + Send + Sync>),
}

impl AdapterErrorKind {
    /// In parts. Advice depends on how an adapter is given, so the caller words it.
    pub fn explained(&self) -> Explanation {
        match self {
            AdapterErrorKind::Fit { adapter, problems, keys } => problem::explained(adapter, problems, *keys),
            AdapterErrorKind::Config { path, why, help } => Explanation::new(why).help(*help).about(path.display()),
            AdapterErrorKind::Weights(error) => Explanation::new(error.to_string()),
        }
    }
}
