use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use regraft_tensor::Explanation;

use crate::atomic_file::{WriteError, advice};

/// Why a container could not be read or written; names the file.
#[derive(Debug)]
pub struct ContainerError {
    path: PathBuf,
    kind: Box<ContainerErrorKind>,
}

/// The kinds of [`ContainerError`].
#[derive(Debug, thiserror::Error)]
#[error("{}", self.explained())]
#[non_exhaustive]
pub enum ContainerErrorKind {
    /// The file is something else.
    NotAnEngine {
        /// What it seems to be, such as `a zip archive`.
        looks_like: &'static str,
        /// What to do.
        help: &'static str,
    },
    /// The file was written by another version of Regraft.
    Version {
        /// Version of the file.
        found: u32,
        /// Versions that are read here, oldest first.
        supported: Vec<u32>,
    },
    /// The file is shorter than it was when it was written.
    Truncated {
        /// Length that the file should have (at least, when its header is cut too).
        expected: u64,
        /// Length that it has.
        found: u64,
    },
    /// The bytes are not those that were written.
    Corrupt {
        /// Where, such as ``section `weights` ``, `header`, `section table`, `length` or `padding`.
        section: String,
        /// What was expected and what was found.
        what: String,
    },
    /// The file is sound but lacks a section.
    MissingSection {
        /// Name of the section.
        section: &'static str,
    },
    /// The system refused to read or write.
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

    /// In parts.
    pub fn explained(&self) -> Explanation {
        self.kind.explained().about(self.path.display())
    }
}

impl ContainerErrorKind {
    /// In parts, without the file's name.
    pub fn explained(&self) -> Explanation {
        match self {
            ContainerErrorKind::NotAnEngine { looks_like, help } => {
                Explanation::new(format!("expected an engine file, found {looks_like}")).help(*help)
            }
            ContainerErrorKind::Version { found, supported } => {
                Explanation::new(format!("expected format version {}, found {found}", one_of(supported)))
                    .help(version_help(*found, supported))
            }
            ContainerErrorKind::Truncated { expected, found } => {
                let what = format!("the file is cut short: expected {expected} bytes, found {found}");
                Explanation::new(what).help(COPY_AGAIN)
            }
            ContainerErrorKind::Corrupt { section, what } => {
                Explanation::new(format!("the file is damaged in its {section}: {what}")).help(COPY_AGAIN)
            }
            ContainerErrorKind::MissingSection { section } => {
                Explanation::new(format!("expected a section `{section}`, found none"))
                    .help("this engine was made without it; compile it again")
            }
            ContainerErrorKind::Io { doing, writing, cause } => {
                let help = if *writing { advice(cause) } else { None };
                Explanation { help: help.map(str::to_owned), ..Explanation::new(format!("could not {doing}: {cause}")) }
            }
        }
    }

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
        self.explained().fmt(f)
    }
}

impl std::error::Error for ContainerError {}
