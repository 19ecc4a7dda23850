//! Values as strided views of memory.

use regraft_ir::Op;
use regraft_tensor::{DType, contiguous_strides};

use super::{Home, Use};

/// A strided view of the memory at a home.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct View {
    pub(crate) home: Home,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    /// In elements.
    pub(crate) strides: Vec<usize>,
    /// First element.
    offset: usize,
}

impl View {
    pub(crate) fn contiguous(home: Home, dtype: DType, shape: Vec<usize>) -> View {
        let strides = contiguous_strides(&shape);
        View { home, dtype, shape, strides, offset: 0 }
    }

    /// The bytes from the first element to the last one.
    pub(crate) fn extent(&self) -> Use {
        let last: usize =
            self.shape.iter().zip(&self.strides).map(|(&size, &stride)| size.saturating_sub(1) * stride).sum();
        let elements = if self.shape.contains(&0) { 0 } else { last + 1 };
        let size = self.dtype.size();
        Use { home: self.home, start: self.offset * size, len: elements * size }
    }

    /// Whether the elements lie row-major; strides of axes of size 1 do not matter.
    pub(crate) fn is_contiguous(&self) -> bool {
        self.shape.contains(&0)
            || (self.shape.iter().zip(&self.strides).zip(contiguous_strides(&self.shape)))
                .all(|((&size, &stride), expected)| size == 1 || stride == expected)
    }

    /// The result of a view op with the sizes `shape`, or `None` when strides cannot express it.
    pub(crate) fn apply(&self, op: &Op, shape: &[usize]) -> Option<View> {
        let mut view = self.clone();
        view.shape = shape.to_vec();
        match op {
            Op::Reshape(_) => view.strides = self.reshaped(shape)?,
            Op::Permute(op) => view.strides = op.perm.iter().map(|&i| self.strides[i]).collect(),
            Op::Expand(_) => {
                let new = shape.len() - self.shape.len();
                let old = self.shape.iter().zip(&self.strides).zip(&shape[new..]);
                view.strides = vec![0; new];
                view.strides.extend(old.map(|((&from, &stride), &to)| if from == to { stride } else { 0 }));
            }
            Op::Slice(op) => {
                view.offset += op.start.as_usize()? * self.strides[op.axis];
                view.strides[op.axis] *= op.step;
            }
            _ => return None,
        }
        // An empty view reads nothing; its offset must not point outside.
        if shape.contains(&0) {
            view.offset = 0;
        }
        Some(view)
    }

    /// Strides under another shape: each new axis must lie within old axes that step through memory as one.
    fn reshaped(&self, shape: &[usize]) -> Option<Vec<usize>> {
        if self.is_contiguous() {
            return Some(contiguous_strides(shape));
        }
        // Old axes merged where they can be, innermost last.
        let mut merged: Vec<(usize, usize)> = Vec::new();
        for (&size, &stride) in self.shape.iter().zip(&self.strides).filter(|(size, _)| **size != 1) {
            match merged.last_mut() {
                Some(last) if last.1 == stride * size => *last = (last.0 * size, stride),
                _ => merged.push((size, stride)),
            }
        }
        let mut strides = vec![0; shape.len()];
        let mut left = merged.pop().unwrap_or((1, 1));
        for axis in (0..shape.len()).rev() {
            if shape[axis] == 1 {
                continue;
            }
            if left.0 == 1 {
                left = merged.pop()?;
            }
            if !left.0.is_multiple_of(shape[axis]) {
                return None;
            }
            strides[axis] = left.1;
            left = (left.0 / shape[axis], left.1 * shape[axis]);
        }
        Some(strides)
    }
}

#[cfg(test)]
mod tests {
    use regraft_ir::ops::{Permute, Reshape, Slice};
    use regraft_tensor::Dim;

    use super::*;

    fn dims(shape: &[usize]) -> Vec<Dim> {
        shape.iter().map(|&d| Dim::from(d)).collect()
    }

    fn value(shape: &[usize]) -> View {
        View::contiguous(Home::Buffer(0), DType::F32, shape.to_vec())
    }

    #[test]
    fn heads_are_split_from_a_slice_without_a_copy() {
        let qkv = value(&[2, 8, 96]);
        let slice = Slice { axis: 2, start: Dim::new(32), end: Dim::new(64), step: 1 };
        let k = qkv.apply(&slice.into(), &[2, 8, 32]).expect("a view");
        let heads = k.apply(&Reshape { shape: dims(&[2, 8, 4, 8]) }.into(), &[2, 8, 4, 8]).expect("a view");
        let heads = heads.apply(&Permute { perm: vec![0, 2, 1, 3] }.into(), &[2, 4, 8, 8]).expect("a view");
        assert_eq!((heads.strides.as_slice(), heads.offset), (&[768, 8, 96, 1][..], 32));
    }

    #[test]
    fn a_reshape_across_a_permute_needs_a_copy() {
        let x = value(&[2, 3]).apply(&Permute { perm: vec![1, 0] }.into(), &[3, 2]).expect("a view");
        assert_eq!(x.apply(&Reshape { shape: dims(&[6]) }.into(), &[6]), None);
    }
}
