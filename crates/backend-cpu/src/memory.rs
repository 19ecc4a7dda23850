//! Memory of the CPU as a [`Memory`]: of our own, or a buffer that is mapped from a file.
#![allow(unsafe_code)]

use std::fmt;

use regraft_backend::Memory;
use regraft_tensor::{AlignedVec, Buffer};

/// Memory of our own.
pub(crate) struct OwnMemory {
    address: u64,
    len: usize,
    /// Keeps the bytes; they are reached through `address` alone.
    _data: AlignedVec,
}

impl OwnMemory {
    pub(crate) fn new(mut data: AlignedVec) -> Self {
        let address = data.bytes_mut().as_mut_ptr() as u64;
        OwnMemory { address, len: data.len(), _data: data }
    }
}

// SAFETY: the vector keeps `len` initialized bytes at `address`, on a 64-byte boundary, until it is dropped; nothing else
// reaches them, since it is private and not used.
unsafe impl Memory for OwnMemory {
    fn address(&self) -> u64 {
        self.address
    }

    fn len(&self) -> usize {
        self.len
    }

    fn is_host(&self) -> bool {
        true
    }
}

impl fmt::Debug for OwnMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OwnMemory({} bytes)", self.len)
    }
}

/// Shared bytes, such as a part of a mapped file. Never written.
#[derive(Debug)]
pub(crate) struct SharedMemory(Buffer);

impl SharedMemory {
    /// `None` when the buffer is not aligned as slots are, or its memory is someone else's.
    pub(crate) fn new(buffer: &Buffer) -> Option<Self> {
        let aligned = (buffer.bytes().as_ptr() as usize).is_multiple_of(64);
        (aligned && !buffer.is_borrowed()).then(|| SharedMemory(buffer.clone()))
    }
}

// SAFETY: an owned or mapped buffer keeps its initialized bytes in place until it is dropped, and `new` has checked where
// they start. They are shared, and nobody may write them.
unsafe impl Memory for SharedMemory {
    fn address(&self) -> u64 {
        self.0.bytes().as_ptr() as u64
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn is_host(&self) -> bool {
        true
    }

    fn is_writable(&self) -> bool {
        false
    }
}
