//! What a model serves: slots, what they were made of, and their memory.

mod in_slot;
mod pool;

use std::{
    path::Path,
    sync::{Arc, OnceLock},
};

use regraft_adapter::AdapterSet;
use regraft_tensor::{DType, Tensor};
use regraft_weights::Digest;

pub use self::{
    in_slot::InSlot,
    pool::{OverLimit, PoolMemory, Slot, SlotPool},
};

/// An immutable set of slots, with what they were made of. Cloning shares everything.
#[derive(Clone, Debug)]
pub struct Generation {
    /// Number of this generation: counts up with each refit of a model.
    pub id: u64,
    /// One buffer per slot.
    pub slots: Vec<Arc<Slot>>,
    /// The pristine sources: adapters are not in them. No memory of theirs is borrowed.
    pub sources: Vec<Arc<SourceContent>>,
    /// The adapters that were applied to the sources on the way to the slots.
    pub adapters: Arc<AdapterSet>,
}

impl Generation {
    /// Bytes of slots that no other generation shares; none at all where this very generation is held by more than `holders`,
    /// as forks do that were not refitted. A moment's answer: runs hold generations, too.
    pub fn own_bytes(self: &Arc<Self>, holders: usize) -> usize {
        if Arc::strong_count(self) > holders {
            return 0;
        }
        // Sources that are kept in a slot hold it as well, and are shared where it is.
        let own = |slot: &&Arc<Slot>| {
            let sources =
                self.sources.iter().filter(|source| source.slot().is_some_and(|other| Arc::ptr_eq(other, slot)));
            Arc::strong_count(slot) == 1 + sources.count()
        };
        self.slots.iter().filter(own).map(|slot| slot.bytes().len()).sum()
    }
}

/// What a generation knows of a source: the tensor, the slot that it can be read back from, its digest with or without a
/// file that holds it, or nothing.
///
/// The tensor may be a float of another width than the engine's source: it is kept as it was given, and what counts is its
/// value in the engine's dtype.
#[derive(Debug)]
pub struct SourceContent {
    kept: Kept,
    dtype: DType,
    digest: OnceLock<Digest>,
    file: Option<Arc<Path>>,
}

#[derive(Debug)]
enum Kept {
    Nothing,
    Tensor(Tensor),
    InSlot(InSlot),
}

impl SourceContent {
    /// A source of `dtype` whose tensor is kept, where there is one.
    pub fn new(dtype: DType, tensor: Option<Tensor>) -> Self {
        SourceContent::of(dtype, tensor.map_or(Kept::Nothing, Kept::Tensor))
    }

    /// A source that is kept in a slot, in the engine's dtype.
    pub fn in_slot(place: InSlot) -> Self {
        SourceContent::of(place.dtype(), Kept::InSlot(place))
    }

    /// A source of `dtype` that is known by its digest, and kept in `file` where there is one.
    pub fn known(dtype: DType, digest: Option<Digest>, file: Option<Arc<Path>>) -> Self {
        let digest = digest.map_or_else(OnceLock::new, OnceLock::from);
        SourceContent { digest, file, ..SourceContent::of(dtype, Kept::Nothing) }
    }

    fn of(dtype: DType, kept: Kept) -> Self {
        SourceContent { kept, dtype, digest: OnceLock::new(), file: None }
    }

    /// The weight file that holds it, when the tensor is not at hand and is kept by reference.
    pub fn file(&self) -> Option<&Arc<Path>> {
        self.file.as_ref()
    }

    /// The tensor as it was given, unless it was released or never given. One that is kept in a slot is read back from there
    /// at each call: a pass over it, and a copy.
    pub fn tensor(&self) -> Option<Tensor> {
        match &self.kept {
            Kept::Nothing => None,
            Kept::Tensor(tensor) => Some(tensor.clone()),
            Kept::InSlot(place) => Some(place.tensor()),
        }
    }

    /// The tensor as it was given, when it is kept as such.
    pub fn held(&self) -> Option<&Tensor> {
        match &self.kept {
            Kept::Tensor(tensor) => Some(tensor),
            Kept::Nothing | Kept::InSlot(_) => None,
        }
    }

    /// The slot that it is kept in, where it is.
    pub fn slot(&self) -> Option<&Arc<Slot>> {
        match &self.kept {
            Kept::InSlot(place) => Some(place.slot()),
            Kept::Nothing | Kept::Tensor(_) => None,
        }
    }

    /// Whether [`SourceContent::tensor`] gives one.
    pub fn is_at_hand(&self) -> bool {
        !matches!(self.kept, Kept::Nothing)
    }

    /// The tensor in the engine's dtype.
    pub fn converted(&self) -> Option<Tensor> {
        self.tensor().map(|tensor| tensor.cast(self.dtype))
    }

    /// The digest of the content: computed when it is first asked for. `None` when nothing is known, or the file that the
    /// tensor was mapped from has changed since.
    pub fn digest(&self) -> Option<Digest> {
        if let Some(digest) = self.digest.get() {
            return Some(*digest);
        }
        if self.changed_file().is_some() {
            return None;
        }
        let tensor = self.converted()?;
        Some(*self.digest.get_or_init(|| Digest::of(&tensor)))
    }

    /// Whether `given` is this content, bit for bit in the engine's dtype. A tensor that is at hand is compared, which ends
    /// at the first difference; otherwise digests are.
    pub fn is(&self, given: &Tensor) -> bool {
        let in_engines_dtype = || given.cast(self.dtype);
        match &self.kept {
            Kept::Nothing => self.digest.get().is_some_and(|digest| *digest == Digest::of(&in_engines_dtype())),
            Kept::InSlot(place) => place.is(&in_engines_dtype()),
            Kept::Tensor(tensor) if tensor.buffer().changed_file().is_some() => false,
            Kept::Tensor(tensor) if tensor.dtype() == given.dtype() => tensor.bit_equal(given),
            Kept::Tensor(tensor) => tensor.cast(self.dtype).bit_equal(&in_engines_dtype()),
        }
    }

    /// The same content, with no more than its digest kept.
    pub fn released(&self) -> SourceContent {
        SourceContent::known(self.dtype, self.digest(), None)
    }

    /// The file that the tensor is mapped from, when it was changed since.
    pub fn changed_file(&self) -> Option<&Path> {
        self.held()?.buffer().changed_file()
    }
}
