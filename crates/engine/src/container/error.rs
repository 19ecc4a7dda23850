use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use crate::atomic_file::{WriteError, advice};

/// Why a container could not be read or written; names the file.
#[derive(Debug)]
pub struct ContainerError {
    path: PathBuf,
    kind: Box<ContainerErrorKind>,
}

/// The kinds of [`ContainerError`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContainerErrorKind {
    /// The file is something else.
    #[error("expected an engine file, found {looks_like}\n  help: {help}")]
    NotAnEngine {
        /// What it seems to be, such as `a zip archive`.
        looks_like: &'static str,
        /// What to do.
        help: &'static str,
    },
    /// The file was written by another version of Regraft.
    #[error("expected format version {}, found {found}\n  help: {}", one_of(supported), version_help(*found, supported))]
    Version {
        /// Version of the file.
        found: u32,
        /// Versions that are read here, oldest first.
        supported: Vec<u32>,
    },
    /// The file is shorter than it was when it was written.
    #[error("the file is cut short: expected {expected} bytes, found {found}\n  help: {COPY_AGAIN}")]
    Truncated {
        /// Length that the file should have (at least, when its header is cut too).
        expected: u64,
        /// Length that it has.
        found: u64,
    },
    /// The bytes are not those that were written.
    #[error("the file is damaged in its {section}: {what}\n  help: {COPY_AGAIN}")]
    Corrupt {
        /// Where, such as ``section `weights` ``, `header`, `section table`, `length` or `padding`.
        section: String,
        /// What was expected and what was found.
        what: String,
    },
    /// The file is sound but lacks a section.
    #[error("expected a section `{section}`, found none\n  help: this engine was made without it; compile it again")]
    MissingSection {
        /// Name of the section.
        section: &'static str,
    },
    /// The system refused to read or write.
    #[error("could not {doing}: {cause}{}", if *.writing { advice(cause) } else { "" })]
    Io {
        /// What was tried, such as `write section `weights``.
        doing: String,
        /// Whether it was part of writing a file; nothing of that file is left then.
        writing: bool,
        /// The error of the system.
        cause: io::Error,
    },
}

const COPY_AGAIN: &str = "copy the file again; if the original is damaged too, compile the model again";

fn one_of(versions: &[u32]) -> String {
    versions.iter().map(u32::to_string).collect::<Vec<_>>().join(" or ")
}

fn version_help(found: u32, supported: &[u32]) -> &'static str {
    if supported.iter().all(|&version| found > version) {
        "a newer Regraft wrote the file; upgrade this one, or compile the model again with it"
    } else {
        "an older Regraft wrote the file; compile the model again with this one"
    }
}

impl ContainerError {
    /// An error about the file at `path`.
    pub(super) fn new(path: impl Into<PathBuf>, kind: ContainerErrorKind) -> Self {
        ContainerError { path: path.into(), kind: Box::new(kind) }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is wrong with it.
    pub fn kind(&self) -> &ContainerErrorKind {
        &self.kind
    }
}

impl ContainerErrorKind {
    pub(super) fn corrupt(section: impl Into<String>, what: impl Into<String>) -> Self {
        ContainerErrorKind::Corrupt { section: section.into(), what: what.into() }
    }

    pub(super) fn reading(cause: io::Error) -> Self {
        ContainerErrorKind::Io { doing: "open the file".to_owned(), writing: false, cause }
    }

    pub(super) fn writing(doing: impl Into<String>, cause: io::Error) -> Self {
        ContainerErrorKind::Io { doing: doing.into(), writing: true, cause }
    }
}

impl From<WriteError> for ContainerError {
    fn from(error: WriteError) -> Self {
        let path = error.path().to_path_buf();
        ContainerError::new(path, ContainerErrorKind::writing("write the file", error.into_io_error()))
    }
}

impl fmt::Display for ContainerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.kind)
    }
}

impl std::error::Error for ContainerError {}
