//! Why a node has no translation.

use regraft_ir::IrError;

use crate::ImportError;

pub(crate) type Res<T> = Result<T, Problem>;

/// The advice for what is written in place.
pub(crate) const DECOMPOSE: &str = "call run_decompositions() on the exported program before saving it";

/// Why a node has no translation.
#[derive(Debug)]
pub(crate) enum Problem {
    /// It is well formed, but not supported.
    Unsupported {
        /// What is not supported.
        what: String,
        /// What to do.
        help: String,
    },
    /// Its arguments are not as its schema says.
    Wrong(String),
    /// An error that already says where it is.
    Import(ImportError),
}

impl From<IrError> for Problem {
    fn from(error: IrError) -> Self {
        Problem::Wrong(error.to_string())
    }
}

impl From<ImportError> for Problem {
    fn from(error: ImportError) -> Self {
        Problem::Import(error)
    }
}

pub(crate) fn unsupported<T>(what: impl Into<String>, help: impl Into<String>) -> Res<T> {
    Err(Problem::Unsupported { what: what.into(), help: help.into() })
}

pub(crate) fn wrong<T>(why: impl Into<String>) -> Res<T> {
    Err(Problem::Wrong(why.into()))
}
