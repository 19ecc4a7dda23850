use regraft_backend::FormatId;
use regraft_ir::{IrError, IrErrorKind};
use regraft_tensor::Explanation;

use crate::tune::TuneError;

/// An error of compilation. The program is valid when it comes here, so these are limits or faults of the compiler.
///
/// ```
/// # fn f(error: &regraft_compile::CompileError) {
/// println!("{}", error.explained());
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// A pass broke the program.
    #[error("pass `{pass}`: {error}")]
    Pass {
        /// Name of the pass.
        pass: &'static str,
        /// What it ran into.
        #[source]
        error: IrError,
    },
    /// The program is not well-formed, or a recipe could not be written.
    #[error(transparent)]
    Ir(#[from] IrError),
    /// Pinned tuning records do not fit.
    #[error(transparent)]
    Tune(#[from] TuneError),
    /// A kernel was chosen whose format the backend does not have.
    #[error("slot {slot}: the backend has no format {format}")]
    Format {
        /// Name of the slot.
        slot: String,
        /// The format.
        format: FormatId,
    },
    /// The backend has no kernels for weights of this form.
    #[error(
        "this device has no kernels for weights stored as {format}; leave them as they are, or compile for the CPU"
    )]
    Weights {
        /// The form.
        format: &'static str,
    },
    /// A slot or a source does not fit in memory.
    #[error("{what} is too large for memory")]
    TooLarge {
        /// What.
        what: String,
    },
}

impl CompileError {
    /// In parts.
    pub fn explained(&self) -> Explanation {
        match self {
            CompileError::Ir(error) => of_graph(error),
            CompileError::Pass { pass, error } => of_graph(error).about(format_args!("pass `{pass}`")),
            CompileError::Tune(_)
            | CompileError::Format { .. }
            | CompileError::Weights { .. }
            | CompileError::TooLarge { .. } => Explanation::new(self.to_string()),
        }
    }
}

/// A graph may have several faults.
fn of_graph(error: &IrError) -> Explanation {
    match error.kind() {
        IrErrorKind::Several { errors, more } => {
            let problems = errors.iter().map(|error| (error.to_string(), String::new()));
            Explanation::new(format!("the graph has {} faults", errors.len() + more)).problems(problems)
        }
        _ => Explanation::new(error.to_string()),
    }
}
