use std::{collections::BTreeSet, path::Path};

use regraft_weights::StateDict;

use crate::{CheckpointError, error::FileProblem};

/// What of a weight file is read.
///
/// ```
/// # use regraft_checkpoint::OpenOptions;
/// assert_eq!(OpenOptions::new().key("ema".to_owned()).key.as_deref(), Some("ema"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OpenOptions {
    /// The key of a checkpoint that the weights are under, such as `ema`, or what their names begin with; keys inside of keys
    /// are joined by dots. Otherwise there must be one set of weights.
    pub key: Option<String>,
}

impl OpenOptions {
    /// All of a file.
    pub fn new() -> Self {
        OpenOptions::default()
    }

    /// Sets [`OpenOptions::key`].
    #[must_use]
    pub fn key(mut self, key: impl Into<Option<String>>) -> Self {
        self.key = key.into();
        self
    }
}

/// The part of `weights` that the options choose: tensors whose names begin with the key, without it. `path` is the file that
/// they are of.
///
/// # Errors
/// When there are none.
pub fn part_of(weights: StateDict, path: &Path, options: &OpenOptions) -> Result<StateDict, CheckpointError> {
    let Some(key) = &options.key else { return Ok(weights) };
    let part = weights.renamed(|name| without_prefix(name, key).map(str::to_owned));
    if part.is_empty() {
        let keys = prefixes(weights.iter().map(|(name, _)| name));
        return Err(FileProblem::NoKey { key: key.clone(), keys }.of_file(path));
    }
    Ok(part)
}

/// The rest of a name that begins with `prefix` and a dot.
pub(crate) fn without_prefix<'n>(name: &'n str, prefix: &str) -> Option<&'n str> {
    name.strip_prefix(prefix)?.strip_prefix('.')
}

/// What names begin with, as far as there are few such.
pub(crate) fn prefixes<'n>(names: impl Iterator<Item = &'n str>) -> Vec<String> {
    let prefixes: BTreeSet<&str> = names.filter_map(|name| Some(name.split_once('.')?.0)).collect();
    if prefixes.len() > 8 { Vec::new() } else { prefixes.into_iter().map(str::to_owned).collect() }
}
