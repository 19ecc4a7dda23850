//! The one place where borrowed memory is read.
#![allow(unsafe_code)]

use std::{any::Any, fmt, ops::Range, ptr::NonNull, sync::Arc};

/// Bytes in memory of another owner, who may write to it again later.
///
/// They are read while a call lasts and not kept: what stays is copied, see
/// [`Tensor::to_owned_memory`](crate::Tensor::to_owned_memory).
///
/// ```
/// use std::{ptr::NonNull, sync::Arc};
///
/// use regraft_tensor::BorrowedBytes;
///
/// let owner = Arc::new(vec![1u8, 2, 3]);
/// // SAFETY: the vector lives as long as `owner`, and nobody writes to it.
/// let bytes = unsafe { BorrowedBytes::new(NonNull::from(&owner[0]), owner.len(), owner.clone()) };
/// assert_eq!(bytes.bytes(), [1, 2, 3]);
/// ```
#[derive(Clone)]
pub struct BorrowedBytes {
    start: NonNull<u8>,
    len: usize,
    owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the bytes are only read, and the caller of `new` promised that any thread may read them while `owner` lives.
unsafe impl Send for BorrowedBytes {}
// SAFETY: as above.
unsafe impl Sync for BorrowedBytes {}

impl BorrowedBytes {
    /// `len` bytes at `start`, which are there as long as `owner` is.
    ///
    /// # Safety
    /// Until the last clone of `owner` is dropped, the bytes are initialized and may be read from any thread. Nobody writes to
    /// them during a call that these bytes, a [`Buffer`](crate::Buffer) or a [`Tensor`](crate::Tensor) of them are given to,
    /// nor while a reference to them that [`bytes`](Self::bytes) gave is in use.
    pub unsafe fn new(start: NonNull<u8>, len: usize, owner: Arc<dyn Any + Send + Sync>) -> Self {
        BorrowedBytes { start, len, owner }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: valid for reads while `owner` lives, which `self` holds, and not written meanwhile: see `new`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// A part of them, or `None` when it reaches outside.
    pub(crate) fn slice(&self, range: Range<usize>) -> Option<BorrowedBytes> {
        let part = self.bytes().get(range)?;
        Some(BorrowedBytes { start: NonNull::from(part).cast(), len: part.len(), owner: self.owner.clone() })
    }
}

impl fmt::Debug for BorrowedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BorrowedBytes({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Buffer, DType, Tensor};

    fn lent(values: &[f32]) -> (Tensor, Arc<Vec<f32>>) {
        let owner = Arc::new(values.to_vec());
        let bytes: &[u8] = bytemuck::cast_slice(&owner);
        // SAFETY: the vector lives as long as `owner` and nobody writes to it.
        let bytes = unsafe { BorrowedBytes::new(NonNull::from(bytes).cast(), bytes.len(), owner.clone()) };
        (Tensor::new(DType::F32, vec![values.len()], Buffer::Borrowed(bytes)).expect("as many bytes"), owner)
    }

    #[test]
    fn memory_is_shared_until_it_is_copied() {
        let (tensor, owner) = lent(&[1.0, 2.0, 3.0]);
        assert!(tensor.is_borrowed() && tensor.aligned().is_borrowed());
        assert_eq!(tensor.bytes().as_ptr(), owner.as_ptr().cast());
        let part = tensor.buffer().slice(4..12).expect("inside");
        assert!(part.is_borrowed());
        assert_eq!(part.bytes().as_ptr(), owner[1..].as_ptr().cast());
        assert!(tensor.buffer().slice(4..13).is_none());
        let kept = tensor.to_owned_memory().expect("memory of three floats");
        assert!(!kept.is_borrowed() && kept.bit_equal(&tensor));
        let again = kept.to_owned_memory().expect("no memory is needed");
        assert!(again.buffer().same_memory(kept.buffer()), "what is owned is not copied again");
    }

    #[test]
    fn the_owner_lives_as_long_as_the_last_part() {
        let (tensor, owner) = lent(&[1.0, 2.0]);
        let part = tensor.buffer().slice(4..8).expect("inside");
        drop(tensor);
        assert_eq!(Arc::strong_count(&owner), 2);
        drop(part);
        assert_eq!(Arc::strong_count(&owner), 1);
    }
}
