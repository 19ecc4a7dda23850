//! Layouts of slots in memory.

use std::fmt;

use regraft_tensor::{AlignedVec, DType, Tensor, numel};

/// The layout of a slot that a kernel wants. [`SlotFormat::place`] defines it: packing writes each element there, and
/// unpacking reads it from there.
pub trait SlotFormat: fmt::Debug + Send + Sync {
    /// Bytes of a slot of this dtype and logical shape; `None` on overflow, or when the format does not take it. Padding is
    /// bounded: an engine file could otherwise ask for any amount of memory.
    fn byte_len(&self, dtype: DType, shape: &[usize]) -> Option<usize>;

    /// The byte that element `index`, row-major, of a slot of `shape` starts at.
    fn place(&self, dtype: DType, shape: &[usize], index: usize) -> usize;

    /// The row-major value of a slot; `None` when the bytes are not a slot of this dtype and shape, or memory is refused.
    fn unpack(&self, dtype: DType, shape: &[usize], bytes: &[u8]) -> Option<Tensor> {
        if self.byte_len(dtype, shape)? != bytes.len() {
            return None;
        }
        let size = dtype.size();
        let mut data = AlignedVec::try_zeroed(numel(shape)?.checked_mul(size)?).ok()?;
        for (index, element) in data.bytes_mut().chunks_exact_mut(size).enumerate() {
            let at = self.place(dtype, shape, index);
            element.copy_from_slice(bytes.get(at..at + size)?);
        }
        Tensor::new(dtype, shape.to_vec(), data.into()).ok()
    }
}

/// Row-major elements: the format that every target has.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl SlotFormat for Plain {
    fn byte_len(&self, dtype: DType, shape: &[usize]) -> Option<usize> {
        numel(shape)?.checked_mul(dtype.size())
    }

    fn place(&self, dtype: DType, _: &[usize], index: usize) -> usize {
        index * dtype.size()
    }
}
