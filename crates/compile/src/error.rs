use regraft_backend::FormatId;
use regraft_ir::IrError;

use crate::tune::TuneError;

/// An error of compilation. The program is valid when it comes here, so these are limits or faults of the compiler.
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
        "this device has no kernels for weights stored as {format}\n  help: leave --weights out, or compile for the CPU"
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
