//! Importers: from files of other tools to the IR.
//!
//! [`pt2`] reads the archives that `torch.export.save` writes. [`pt2::Pt2Archive`] is such an archive, checked and
//! typed: the program, its symbols, the names of its inputs and outputs, and its weights, mapped from the file.
//! [`import_pt2`] translates it into a graph of the IR with the value of each source; [`read_pt2_weights`] reads the state
//! dict alone.
//!
//! Every byte of such a file is hostile until checked: nothing is unpickled or executed, sizes are bounded before
//! anything is allocated, and an [`ImportError`] says what is wrong, where, and what to do about it.
#![forbid(unsafe_code)]

mod error;
pub mod pt2;

pub use error::{ImportError, ImportErrorKind, UnknownOp, WeightProblem};
pub use pt2::{
    import::{ImportReport, Imported, import_program, import_pt2, import_pt2_program, is_known},
    read_pt2_weights,
};
