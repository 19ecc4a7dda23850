//! What is known of values and sizes.

use regraft_ir::TensorType;
use regraft_tensor::{DType, Dim, Range};

use super::{Builder, Res, ValueId, unsupported};

/// `INT64_MAX` and its like: what slices use for "to the end".
const FAR: i64 = i64::MAX / 4;

impl Builder {
    pub(crate) fn ty(&self, v: ValueId) -> &TensorType {
        self.graph.ty(v)
    }

    pub(crate) fn shape(&self, v: ValueId) -> Vec<Dim> {
        self.ty(v).shape.clone()
    }

    pub(crate) fn rank(&self, v: ValueId) -> usize {
        self.ty(v).rank()
    }

    pub(crate) fn dtype_of(&self, v: ValueId) -> DType {
        self.ty(v).dtype
    }

    /// The size of an axis, when it is known.
    pub(crate) fn size(&self, v: ValueId, axis: usize) -> Res<usize> {
        let dim = self.ty(v).shape.get(axis).cloned().unwrap_or(Dim::new(1));
        dim.as_usize().map_or_else(
            || unsupported(format!("a dynamic size {dim} of axis {axis}"), "export this dimension as a static one"),
            Ok,
        )
    }

    pub(crate) fn bounds(&self, dim: &Dim) -> Range {
        dim.bounds(&self.ranges)
    }

    /// Whether `a ≤ b` for all sizes that the program allows.
    pub(crate) fn surely_le(&self, a: &Dim, b: &Dim) -> bool {
        self.bounds(&(b - a)).min >= 0
    }

    /// An index as Python takes it (negative from the end, anything beyond is the end), within `0..=size`.
    pub(crate) fn clamp_index(&self, index: &Dim, size: &Dim) -> Dim {
        if index.as_const().is_some_and(|v| v >= FAR) {
            return size.clone();
        }
        let range = self.bounds(index);
        // An index whose sign depends on sizes is taken as what it was when the program was exported.
        let index = if range.max < 0 || (range.min < 0 && self.example(index).is_some_and(|v| v < 0)) {
            let sum = index + size;
            if self.bounds(&sum).min >= 0 { sum } else { sum.max_of(&Dim::new(0)) }
        } else {
            index.clone()
        };
        if self.surely_le(&index, size) {
            index
        } else if self.surely_le(size, &index) {
            size.clone()
        } else {
            index.min_of(size)
        }
    }
}

/// The simpler of two spellings of one size.
pub(crate) fn simpler(a: &Dim, b: &Dim) -> Dim {
    let weight = |d: &Dim| match (d.as_const(), d.as_symbol()) {
        (Some(_), _) => 0,
        (_, Some(_)) => 1,
        _ => 1 + d.to_string().len(),
    };
    if a == b || weight(a) <= weight(b) { a.clone() } else { b.clone() }
}

/// Whether these are the strides of a dense row-major tensor; those of axes of size 1 say nothing.
pub(crate) fn row_major(sizes: &[Dim], strides: &[Dim]) -> bool {
    let mut expected = Dim::new(1);
    sizes.len() == strides.len()
        && sizes.iter().zip(strides).rev().all(|(size, stride)| {
            let fits = size.is(1) || *stride == expected;
            expected = &expected * size;
            fits
        })
}
