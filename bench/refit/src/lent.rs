//! Weights as a caller of another language lends them: memory that is read during a refit and kept by nothing.
#![allow(unsafe_code)]

use std::{ptr::NonNull, sync::Arc};

use regraft::{BorrowedBytes, Buffer, StateDict, Tensor};

use crate::Result;

/// The same tensors in memory that counts as someone else's.
pub(crate) fn lent(weights: &StateDict) -> Result<StateDict> {
    let lend = |(name, tensor): (&str, &Tensor)| {
        let owner = Arc::new(tensor.clone());
        let bytes = owner.bytes();
        // SAFETY: the owner keeps the memory of the tensor, which nobody writes to.
        let bytes = unsafe { BorrowedBytes::new(NonNull::from(bytes).cast(), bytes.len(), owner.clone()) };
        let tensor = Tensor::new(tensor.dtype(), tensor.shape().to_vec(), Buffer::Borrowed(bytes))?;
        Ok((name.to_owned(), tensor))
    };
    weights.iter().map(lend).collect()
}
