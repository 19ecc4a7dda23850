use std::path::{Path, PathBuf};

use regraft_backend::Target;

use crate::container::ContainerError;

/// An error of an engine file.
#[derive(Debug, thiserror::Error)]
#[error("{}", text(path, kind))]
pub struct EngineError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub kind: EngineErrorKind,
}

/// The kinds of [`EngineError`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineErrorKind {
    /// The file as such is broken or foreign.
    #[error(transparent)]
    Container(Box<ContainerError>),
    /// The contents do not fit together.
    #[error("the engine is malformed: {0}; compile the model again")]
    Malformed(String),
    /// Another version of Regraft wrote the engine.
    #[error(
        "the engine was written by Regraft {found}, this is {expected}, whose kernels may be others; compile the model again"
    )]
    Product {
        /// This version.
        expected: &'static str,
        /// The version that wrote it.
        found: String,
    },
    /// The engine was built for another machine.
    #[error(
        "the engine was built for {expected}, this machine offers {found}{}; compile the model for this machine",
        lacking(expected, found)
    )]
    Target {
        /// What the engine needs.
        expected: Box<Target>,
        /// What is here.
        found: Box<Target>,
    },
    /// A weight file that sources are kept in by reference has a path that an engine file cannot hold.
    #[error("{}: a path in an engine file must be Unicode; rename it, or embed the sources", path.display())]
    ReferencePath {
        /// The weight file.
        path: PathBuf,
    },
}

/// `, without avx512bw, avx512vl`, or nothing.
fn lacking(expected: &Target, found: &Target) -> String {
    let missing = expected.missing_on(found);
    if missing.is_empty() { String::new() } else { format!(", without {}", missing.join(", ")) }
}

fn text(path: &Path, kind: &EngineErrorKind) -> String {
    match kind {
        // Names the file itself.
        EngineErrorKind::Container(error) => error.to_string(),
        EngineErrorKind::Malformed(_)
        | EngineErrorKind::Product { .. }
        | EngineErrorKind::Target { .. }
        | EngineErrorKind::ReferencePath { .. } => {
            format!("{}: {kind}", path.display())
        }
    }
}

impl From<ContainerError> for EngineErrorKind {
    fn from(error: ContainerError) -> Self {
        EngineErrorKind::Container(Box::new(error))
    }
}
