use std::{
    fmt,
    path::{Path, PathBuf},
};

use regraft_tensor::Explanation;

use crate::ArchiveError;

/// A weight file that could not be read.
///
/// ```
/// use std::path::Path;
///
/// use regraft_checkpoint::CheckpointErrorKind;
///
/// let error = regraft_checkpoint::open(Path::new("missing.safetensors")).unwrap_err();
/// assert_eq!(error.path(), Path::new("missing.safetensors"));
/// assert!(matches!(error.kind(), CheckpointErrorKind::Io(_)));
/// ```
#[derive(Debug, thiserror::Error)]
#[error("{}: {kind}", .path.display())]
pub struct CheckpointError {
    path: PathBuf,
    kind: Box<CheckpointErrorKind>,
}

impl CheckpointError {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is wrong with it.
    pub fn kind(&self) -> &CheckpointErrorKind {
        &self.kind
    }

    /// In parts.
    pub fn explained(&self) -> Explanation {
        self.kind.explained().about(self.path.display())
    }
}

/// The kinds of [`CheckpointError`].
///
/// ```
/// use std::path::Path;
///
/// use regraft_checkpoint::CheckpointErrorKind;
///
/// let error = regraft_checkpoint::open(Path::new("missing.ckpt")).unwrap_err();
/// match error.kind() {
///     CheckpointErrorKind::Several { keys } => println!("choose a set of weights: one of {keys:?}"),
///     kind => println!("{kind}"),
/// }
/// ```
#[derive(Debug, thiserror::Error)]
#[error("{}", self.explained())]
#[non_exhaustive]
pub enum CheckpointErrorKind {
    /// The system does not give the file.
    Io(String),
    /// It holds several sets of weights.
    Several {
        /// Under which keys.
        keys: Vec<String>,
    },
    /// It holds no weights under the key that was given.
    NoKey {
        /// The key.
        key: String,
        /// Those under which there are weights.
        keys: Vec<String>,
    },
    /// It is not a weight file of a known format, or damaged.
    Unreadable {
        /// What was expected and what was found.
        what: String,
        /// What to do.
        help: String,
    },
}

fn list(keys: &[String]) -> String {
    let quoted: Vec<String> = keys.iter().map(|key| format!("`{key}`")).collect();
    quoted.join(", ")
}

/// What is wrong with a file whose name is not known here.
pub(crate) type FileProblem = CheckpointErrorKind;

impl CheckpointErrorKind {
    /// In parts, without the file's name.
    pub fn explained(&self) -> Explanation {
        match self {
            CheckpointErrorKind::Io(why) => Explanation::new(why),
            CheckpointErrorKind::Several { keys } => {
                Explanation::new(format!("it holds several sets of weights: {}", list(keys)))
            }
            CheckpointErrorKind::NoKey { key, keys } if keys.is_empty() => {
                Explanation::new(format!("it holds no weights under `{key}`"))
            }
            CheckpointErrorKind::NoKey { key, keys } => {
                Explanation::new(format!("it holds no weights under `{key}`; there are {}", list(keys)))
            }
            CheckpointErrorKind::Unreadable { what, help } => Explanation::new(what).help(help),
        }
    }

    pub(crate) fn new(what: impl Into<String>, help: &str) -> Self {
        CheckpointErrorKind::Unreadable { what: what.into(), help: help.to_owned() }
    }

    /// A problem of the tensor called `name`.
    pub(crate) fn tensor(name: &str, what: impl fmt::Display) -> Self {
        FileProblem::new(format!("`{name}`: {what}"), "the file is damaged: copy it or save it again")
    }

    /// The tensor called `name` has a dtype that Regraft has not.
    pub(crate) fn dtype(name: &str, dtype: &str) -> Self {
        FileProblem::new(
            format!("`{name}` has dtype {dtype}, which is not supported"),
            "convert it to f64, f32, f16, bf16, an integer of at most 64 bits, u8 or bool",
        )
    }

    /// The same, about the tensor called `name`.
    pub(crate) fn about(self, name: &str) -> Self {
        match self {
            CheckpointErrorKind::Unreadable { what, help } => {
                CheckpointErrorKind::Unreadable { what: format!("`{name}`: {what}"), help }
            }
            other => other,
        }
    }

    pub(crate) fn of_file(self, path: &Path) -> CheckpointError {
        CheckpointError { path: path.to_path_buf(), kind: Box::new(self) }
    }
}

impl From<ArchiveError> for CheckpointErrorKind {
    fn from(e: ArchiveError) -> Self {
        let what = if e.entry.is_empty() { e.problem } else { format!("{}: {}", e.entry, e.problem) };
        CheckpointErrorKind::Unreadable { what, help: e.help }
    }
}
