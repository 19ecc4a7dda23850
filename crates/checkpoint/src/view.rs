use std::ops::Range;

use regraft_tensor::{AlignedVec, Buffer, DType, Tensor, contiguous_strides, gather_strided, numel};

/// Memory that tensors may take beside four times the length of the file that they come from.
const FREE_MEMORY: u64 = 1 << 28;

/// A tensor as a file describes it: elements of a storage, not checked yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct View {
    /// Element type.
    pub dtype: DType,
    /// Shape.
    pub shape: Vec<usize>,
    /// Strides in elements; of no meaning where the shape has one element or none.
    pub strides: Vec<usize>,
    /// First element.
    pub offset: usize,
}

impl View {
    /// A whole storage, row-major.
    pub fn dense(dtype: DType, shape: Vec<usize>) -> View {
        View { dtype, strides: contiguous_strides(&shape), shape, offset: 0 }
    }

    /// Bytes of memory that the tensor takes, where it is not just a part of the storage.
    pub fn memory(&self, storage: &Buffer) -> u64 {
        let copied = match (self.place(storage.len()), storage) {
            (Ok(Some(range)), Buffer::Mapped(..) | Buffer::Borrowed(_)) => {
                !self.is_aligned(storage.bytes().get(range).unwrap_or_default())
            }
            (Ok(Some(range)), Buffer::Owned(_) | Buffer::Remote(_)) => range != (0..storage.len()),
            (Ok(None), _) => true,
            // Refused before anything is allocated.
            (Err(_), _) => false,
        };
        let bytes = Tensor::byte_len(self.dtype, &self.shape).map_or(0, |n| n as u64);
        if copied { bytes } else { 0 }
    }

    /// The tensor: a part of `storage` where its elements are in order, a copy otherwise.
    ///
    /// # Errors
    /// When it reaches outside of the storage, is too large for memory, or a bool is neither 0 nor 1.
    pub fn tensor(&self, storage: &Buffer) -> Result<Tensor, String> {
        let buffer = match self.place(storage.len())? {
            Some(range) if range == (0..storage.len()) => storage.clone(),
            Some(range) => storage.slice(range).ok_or_else(|| self.outside(storage.len()))?,
            None => gather_strided(storage.bytes(), self.dtype.size(), &self.shape, &self.strides, self.offset)
                .and_then(|bytes| AlignedVec::try_copy_of(&bytes))
                .map_err(|e| e.to_string())?
                .into(),
        };
        if self.dtype == DType::Bool
            && let Some(byte) = buffer.bytes().iter().find(|b| **b > 1)
        {
            return Err(format!("a bool is 0 or 1, found the byte {byte}"));
        }
        let tensor = Tensor::new(self.dtype, self.shape.clone(), buffer).map_err(|e| e.to_string())?;
        Ok(tensor.aligned())
    }

    /// The bytes of a storage of `has` bytes that hold the elements in order; `None` when they stand in another one.
    fn place(&self, has: usize) -> Result<Option<Range<usize>>, String> {
        let len = Tensor::byte_len(self.dtype, &self.shape).map_err(|e| e.to_string())?;
        if !self.is_contiguous() {
            return Ok(None);
        }
        let start = if len == 0 { Some(0) } else { self.offset.checked_mul(self.dtype.size()) };
        let range = start.and_then(|start| Some(start..start.checked_add(len)?));
        range.filter(|range| range.end <= has).map(Some).ok_or_else(|| self.outside(has))
    }

    fn outside(&self, has: usize) -> String {
        let View { dtype, shape, offset, .. } = self;
        let len = numel(shape).map_or(0, |n| n.saturating_mul(dtype.size()));
        format!("{dtype}{shape:?} at element {offset} needs {len} bytes from there, its entry has {has} in all")
    }

    fn is_aligned(&self, bytes: &[u8]) -> bool {
        bytes.as_ptr().align_offset(self.dtype.size()) == 0
    }

    fn is_contiguous(&self) -> bool {
        let mut expected = 1usize;
        self.shape.contains(&0)
            || self.shape.len() == self.strides.len()
                && self.shape.iter().zip(&self.strides).rev().all(|(&size, &stride)| {
                    let fits = size == 1 || stride == expected;
                    expected = expected.saturating_mul(size);
                    fits
                })
    }
}

/// Refuses tensors that take `needed` bytes of memory, when that is out of proportion to the file they come from.
///
/// # Errors
/// When it is, in words.
pub fn check_memory(needed: u64, file_len: u64) -> Result<(), String> {
    let allowed = file_len.saturating_mul(4).saturating_add(FREE_MEMORY);
    if needed <= allowed {
        return Ok(());
    }
    Err(format!("its weights unfold to {needed} bytes, more than the {allowed} that a file of this size may need"))
}
