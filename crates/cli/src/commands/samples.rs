//! Inputs of sample runs from `.npz` files.

use std::path::Path;

use regraft::{Tensor, ir::Graph};

use super::{inputs, run::fits};
use crate::{failure::Failure, npy};

/// The inputs of a run, in the program's order: by name, or, where `numpy.savez` numbered them, in the order it did.
pub(super) fn read(path: &Path, graph: &Graph) -> Result<Vec<Tensor>, Failure> {
    let mut arrays = npy::read_npz(path)?;
    let mut tensors = Vec::with_capacity(graph.inputs.len());
    let mut problems = Vec::new();
    for (index, (name, ty)) in inputs(graph).enumerate() {
        let numbered = format!("arr_{index}");
        let Some(at) = arrays.iter().position(|(n, _)| *n == name || *n == numbered) else {
            problems.push((name, "missing".to_owned()));
            continue;
        };
        let tensor = npy::as_dtype(arrays.swap_remove(at).1, ty.dtype);
        if !fits(&tensor, &ty) {
            problems.push((name, format!("expected {ty}, found {}{:?}", tensor.dtype(), tensor.shape())));
        }
        tensors.push(tensor);
    }
    problems.extend(arrays.into_iter().map(|(name, _)| (name, "unknown".to_owned())));
    if problems.is_empty() {
        return Ok(tensors);
    }
    let failure = Failure::new("the sample inputs do not fit the program").about(path);
    let failure = problems.into_iter().fold(failure, |f, (name, what)| f.problem(name, what));
    Err(failure.help("save one array per input: numpy.savez(\"inputs.npz\", x=x)"))
}
