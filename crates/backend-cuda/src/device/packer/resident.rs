//! Sources that adapters are merged into, and factors of adapters, kept on the device: the next merge needs no copy of them.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use regraft_tensor::{AlignedVec, Buffer, MappedFiles, Tensor};

use crate::driver;

/// Copies of tensors, by the address of their memory.
#[derive(Debug)]
pub(super) struct Resident {
    copies: HashMap<(usize, usize), (Guard, driver::Region)>,
    /// Each file is asked once for all tensors of a stage.
    files: MappedFiles,
    /// Most bytes that are kept.
    limit: usize,
}

/// What makes sure that an address still holds what was copied from there.
#[derive(Debug)]
enum Guard {
    /// Memory with this one owner never changes while it is alive.
    Owned(Weak<AlignedVec>),
    /// A mapping stays at its address while it is held; its file tells when it was changed.
    Mapped(Buffer),
}

impl Guard {
    /// `None` for memory of someone else.
    fn new(buffer: &Buffer) -> Option<Guard> {
        match buffer {
            Buffer::Owned(memory) => Some(Guard::Owned(Arc::downgrade(memory))),
            Buffer::Mapped(..) => Some(Guard::Mapped(buffer.clone())),
            Buffer::Borrowed(_) | Buffer::Remote(_) => None,
        }
    }

    fn holds(&self, files: &mut MappedFiles) -> bool {
        match self {
            Guard::Owned(memory) => memory.strong_count() > 0,
            Guard::Mapped(buffer) => !files.have_changed(buffer),
        }
    }
}

impl Resident {
    pub(super) fn new(limit: usize) -> Resident {
        Resident { copies: HashMap::new(), files: MappedFiles::default(), limit }
    }

    /// The copy of a tensor.
    pub(super) fn get(&mut self, tensor: &Tensor) -> Option<driver::Region> {
        // Memory of someone else may lie where memory that was copied lay before.
        if tensor.is_borrowed() {
            return None;
        }
        let (guard, copy) = self.copies.get(&key(tensor))?;
        guard.holds(&mut self.files).then(|| copy.clone())
    }

    /// Whether a copy of a tensor of its size would be kept, besides `others` bytes that are to be kept as well.
    pub(super) fn keeps(&self, tensor: &Tensor, others: usize) -> bool {
        let bytes: usize = self.copies.values().map(|(_, copy)| copy.len()).sum();
        !tensor.is_borrowed() && bytes + others + tensor.byte_count() <= self.limit
    }

    /// Keeps a copy of a tensor.
    pub(super) fn keep(&mut self, tensor: &Tensor, copy: driver::Region) {
        if let Some(guard) = Guard::new(tensor.buffer()) {
            self.copies.insert(key(tensor), (guard, copy));
        }
    }

    /// A stage begins: files may have changed since the last one.
    pub(super) fn begin(&mut self) {
        self.files = MappedFiles::default();
    }

    /// Lets go of copies whose tensors are gone.
    pub(super) fn settle(&mut self) {
        self.copies.retain(|_, (guard, _)| guard.holds(&mut self.files));
    }
}

fn key(tensor: &Tensor) -> (usize, usize) {
    (tensor.bytes().as_ptr() as usize, tensor.bytes().len())
}
