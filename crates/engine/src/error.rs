use std::path::PathBuf;

use regraft_backend::Target;
use regraft_tensor::Explanation;

use crate::container::ContainerError;

/// An error of an engine file.
///
/// ```
/// # use regraft_engine::{Engine, EngineErrorKind};
/// let error = Engine::read("missing.rgf").unwrap_err();
/// assert!(error.to_string().contains("missing.rgf"));
/// ```
#[derive(Debug, thiserror::Error)]
#[error("{}", self.explained())]
pub struct EngineError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub kind: EngineErrorKind,
}

/// The kinds of [`EngineError`].
///
/// ```
/// # use regraft_engine::{Engine, EngineErrorKind};
/// let error = Engine::read("missing.rgf").unwrap_err();
/// match error.kind {
///     EngineErrorKind::Target { expected, .. } => println!("built for {expected}: compile it again here"),
///     kind => println!("{kind}"),
/// }
/// ```
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

impl EngineError {
    /// In parts.
    pub fn explained(&self) -> Explanation {
        match &self.kind {
            // Names the file itself.
            kind @ EngineErrorKind::Container(_) => kind.explained(),
            kind => kind.explained().about(self.path.display()),
        }
    }
}

impl EngineErrorKind {
    /// In parts, without the file's name where it is not part of the error.
    pub fn explained(&self) -> Explanation {
        match self {
            EngineErrorKind::Container(error) => error.explained(),
            EngineErrorKind::Malformed(_)
            | EngineErrorKind::Product { .. }
            | EngineErrorKind::Target { .. }
            | EngineErrorKind::ReferencePath { .. } => Explanation::new(self.to_string()),
        }
    }
}

impl From<ContainerError> for EngineErrorKind {
    fn from(error: ContainerError) -> Self {
        EngineErrorKind::Container(Box::new(error))
    }
}
