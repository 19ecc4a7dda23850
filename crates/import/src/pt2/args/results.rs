//! What the program says of the results of a node.

use regraft_ir::TensorType;
use regraft_tensor::{DType, Dim};

use super::{Cx, Res, ValueId, simpler};

impl Cx<'_, '_> {
    /// The program's type of result `i`.
    pub(crate) fn result(&self, i: usize) -> Option<&TensorType> {
        self.results.get(i).and_then(Option::as_ref)
    }

    /// The program's dtype of the first result.
    pub(crate) fn result_dtype(&self) -> Option<DType> {
        self.result(0).map(|t| t.dtype)
    }

    /// `shape`, with every size that the program spells in a simpler way taken from its type of result `i`.
    pub(crate) fn refine(&self, i: usize, shape: Vec<Dim>) -> Vec<Dim> {
        match self.result(i) {
            Some(t) if t.rank() == shape.len() => shape.iter().zip(&t.shape).map(|(a, b)| simpler(a, b)).collect(),
            _ => shape,
        }
    }

    /// What `handler` makes of half-precision tensors, computed in f32 and rounded once, as PyTorch's kernels do. A handler
    /// of several steps would round, and overflow, between them.
    pub(crate) fn in_f32<T>(&mut self, handler: impl FnOnce(&mut Self) -> Res<T>) -> Res<T> {
        let outer = std::mem::replace(&mut self.wide, true);
        let out = handler(self);
        self.wide = outer;
        out
    }

    /// The value, in f32 if it is to be read so.
    pub(super) fn widened(&mut self, v: ValueId) -> Res<ValueId> {
        match self.dtype_of(v) {
            DType::F16 | DType::BF16 if self.wide => self.cast(v, DType::F32),
            _ => Ok(v),
        }
    }

    /// Result `i` in the half-precision dtype that the program says it has.
    pub(crate) fn narrowed(&mut self, i: usize, v: ValueId) -> Res<ValueId> {
        match self.result(i).map(|t| t.dtype) {
            Some(dtype @ (DType::F16 | DType::BF16)) if self.dtype_of(v) == DType::F32 => self.cast(v, dtype),
            _ => Ok(v),
        }
    }
}
