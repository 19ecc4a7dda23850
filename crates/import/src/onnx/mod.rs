//! ONNX models.
//!
//! `proto` reads the messages of a file, `import` translates its graph, and `ops` has the operators. Initializers are sources
//! under their names; those that say something about the program itself, such as a shape, belong to the program.

mod args;
mod import;
mod ops;
mod proto;

use std::path::Path;

use regraft_checkpoint::{CheckpointErrorKind, onnx::read_model};
use regraft_tensor::MappedFile;

use crate::{ImportError, ImportErrorKind, Imported};

/// Opsets of ONNX that are read.
pub const OPSETS: std::ops::RangeInclusive<i64> = 7..=24;

const SAVE_AGAIN: &str = "copy the file again, or save the model again with onnx.save";

/// Reads the `.onnx` file at `path`, with the files beside it that hold its weights, and translates its graph.
///
/// # Errors
/// When a file is damaged or malformed, or the model does something that has no translation.
pub fn import_onnx(path: impl AsRef<Path>) -> Result<Imported, ImportError> {
    let path = path.as_ref();
    let file = MappedFile::open(path).map_err(|e| ImportError::new(path, ImportErrorKind::File(e)))?;
    let model = proto::Model::read(file.bytes()).map_err(|problem| damaged(path, "", problem))?;
    let tensors = read_model(&file).map_err(|kind| {
        let (problem, help) = match kind {
            CheckpointErrorKind::Unreadable { what, help } => (what, help),
            other => (other.to_string(), SAVE_AGAIN.to_owned()),
        };
        ImportError::new(path, ImportErrorKind::Archive { entry: String::new(), problem, help })
    })?;
    import::translate(path, &model, &tensors)
}

/// [`import_onnx`] without the values of the weights: of [`Imported::weights`] only what belongs to the program is there.
///
/// # Errors
/// As [`import_onnx`].
pub fn import_onnx_program(path: impl AsRef<Path>) -> Result<Imported, ImportError> {
    let mut imported = import_onnx(path)?;
    for (weight, source) in imported.weights.iter_mut().zip(&imported.graph.sources) {
        if source.kind.in_state_dict() && weight.as_ref().is_some_and(|w| w.numel() > 0) {
            *weight = None;
        }
    }
    Ok(imported)
}

/// Whether the file at `path` begins as an ONNX model does: with the version of the format.
pub fn is_onnx(path: &Path) -> bool {
    use std::io::Read as _;
    let mut first = [0u8];
    std::fs::File::open(path).and_then(|mut f| f.read_exact(&mut first)).is_ok() && first == [8]
}

/// Whether there is a translation of an operator of a domain, which is empty for ONNX itself.
pub fn is_known(domain: &str, operator: &str) -> bool {
    ops::find(domain, operator).is_some()
}

/// Why an operator is always refused, if it is one of which that is known.
pub fn refusal(domain: &str, operator: &str) -> Option<&'static str> {
    match ops::find(domain, operator) {
        Some(ops::Handler::Refuse(why, _)) => Some(why),
        _ => None,
    }
}

fn damaged(path: &Path, at: &str, problem: String) -> ImportError {
    let kind = ImportErrorKind::Schema {
        entry: String::new(),
        at: at.into(),
        problem: format!("no valid ONNX model: {problem}"),
        help: SAVE_AGAIN.to_owned(),
    };
    ImportError::new(path, kind)
}
