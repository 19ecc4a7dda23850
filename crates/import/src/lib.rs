//! Importers: from files of other tools to the IR.
//!
//! [`import()`] reads any of them; its content tells what a file is.
//!
//! [`onnx`] reads ONNX models. [`pt2`] reads the archives that `torch.export.save` writes. [`pt2::Pt2Archive`] is such an archive, checked and
//! typed: the program, its symbols, the names of its inputs and outputs, and its weights, mapped from the file.
//! [`import_pt2`] translates it into a graph of the IR with the value of each source; [`read_pt2_weights`] reads the state
//! dict alone.
//!
//! Every byte of such a file is hostile until checked: nothing is unpickled or executed, sizes are bounded before
//! anything is allocated, and an [`ImportError`] says what is wrong, where, and what to do about it.
//!
//! ```
//! let imported = regraft_import::import("../conformance/fixtures/mlp_gelu.pt2")?;
//! for source in &imported.graph.sources {
//!     println!("{}", source.name);
//! }
//! # Ok::<(), regraft_import::ImportError>(())
//! ```
#![forbid(unsafe_code)]

mod build;
mod error;
mod imported;
pub mod onnx;
pub mod pt2;

pub use error::{At, ImportError, ImportErrorKind, ProgramProblem, UnknownOp, WeightProblem};
pub use imported::{ImportReport, Imported};
pub use onnx::{import_onnx, import_onnx_program};
pub use pt2::{
    import::{import_program, import_pt2, import_pt2_program, is_known},
    read_pt2_weights,
};

use std::path::Path;

/// Reads a program, a `.pt2` file or an ONNX model, and translates it.
///
/// # Errors
/// When the file is damaged or malformed, or the program does something that has no translation.
pub fn import(path: impl AsRef<Path>) -> Result<Imported, ImportError> {
    if onnx::is_onnx(path.as_ref()) { import_onnx(path) } else { import_pt2(path) }
}

/// [`import()`] without the values of the weights: of [`Imported::weights`] only what belongs to an ONNX model is there.
///
/// # Errors
/// As [`import()`].
pub fn import_bare(path: impl AsRef<Path>) -> Result<Imported, ImportError> {
    if onnx::is_onnx(path.as_ref()) { import_onnx_program(path) } else { import_pt2_program(path) }
}
