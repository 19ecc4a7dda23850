//! Memory of the device, as the contract has it.

use std::sync::Arc;

use regraft_backend::Memory;

use crate::{
    CudaError,
    driver::{Buffer, Context, Span},
};

/// Memory of a GPU.
#[derive(Debug)]
pub(super) struct CudaMemory(Arc<Buffer>);

impl CudaMemory {
    pub(super) fn new(context: &Context, bytes: usize) -> Result<CudaMemory, CudaError> {
        Ok(CudaMemory(Buffer::new(context, bytes)?))
    }

    pub(super) fn span(&self) -> Span {
        self.0.region().span()
    }
}

// SAFETY: the buffer is this memory's own until it is dropped, and is not of the host.
unsafe impl Memory for CudaMemory {
    fn address(&self) -> u64 {
        self.0.address()
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn is_host(&self) -> bool {
        false
    }
}
