use std::{
    path::Path,
    sync::{Arc, OnceLock},
};

use regraft_tensor::{DType, Tensor};

use crate::{Digest, Slot, adapter::AdapterSet};

/// An immutable set of slots, with what they were made of. Cloning shares everything.
#[derive(Clone, Debug)]
pub struct Generation {
    /// Number of this generation: counts up with each refit of a model.
    pub id: u64,
    /// One buffer per slot.
    pub slots: Vec<Arc<Slot>>,
    /// The pristine sources: adapters are not in them.
    pub sources: Vec<Arc<SourceContent>>,
    /// The adapters that were applied to the sources on the way to the slots.
    pub adapters: Arc<AdapterSet>,
}

/// What a generation knows of a source: the tensor, its digest with or without a file that holds it, or nothing.
///
/// The tensor may be a float of another width than the engine's source: it is kept as it was given, and what counts is its
/// value in the engine's dtype.
#[derive(Debug)]
pub struct SourceContent {
    tensor: Option<Tensor>,
    dtype: DType,
    digest: OnceLock<Digest>,
    file: Option<Arc<Path>>,
}

impl SourceContent {
    /// A source of `dtype` whose tensor is kept, where there is one.
    pub fn new(dtype: DType, tensor: Option<Tensor>) -> Self {
        SourceContent { tensor, dtype, digest: OnceLock::new(), file: None }
    }

    /// A source of `dtype` that is known by its digest, and kept in `file` where there is one.
    pub fn known(dtype: DType, digest: Option<Digest>, file: Option<Arc<Path>>) -> Self {
        SourceContent { tensor: None, dtype, digest: digest.map_or_else(OnceLock::new, OnceLock::from), file }
    }

    /// The weight file that holds it, when the tensor is not at hand and is kept by reference.
    pub fn file(&self) -> Option<&Arc<Path>> {
        self.file.as_ref()
    }

    /// The tensor as it was given, unless it was released or never given.
    pub fn tensor(&self) -> Option<&Tensor> {
        self.tensor.as_ref()
    }

    /// The tensor in the engine's dtype.
    pub fn converted(&self) -> Option<Tensor> {
        self.tensor.as_ref().map(|tensor| tensor.cast(self.dtype))
    }

    /// The digest of the content: computed when it is first asked for. `None` when nothing is known, or the file that the
    /// tensor was mapped from has changed since.
    pub fn digest(&self) -> Option<Digest> {
        if let Some(digest) = self.digest.get() {
            return Some(*digest);
        }
        self.intact()?;
        let tensor = self.converted()?;
        Some(*self.digest.get_or_init(|| Digest::of(&tensor)))
    }

    /// Whether `given` is this content, bit for bit in the engine's dtype. A tensor that is at hand is compared, which ends
    /// at the first difference; otherwise digests are.
    pub fn is(&self, given: &Tensor) -> bool {
        if self.tensor.is_none() {
            return self.digest.get().is_some_and(|digest| *digest == Digest::of(&given.cast(self.dtype)));
        }
        match self.intact() {
            Some(tensor) if tensor.dtype() == given.dtype() => tensor.bit_equal(given),
            Some(tensor) => tensor.cast(self.dtype).bit_equal(&given.cast(self.dtype)),
            None => false,
        }
    }

    /// The same content, with no more than its digest kept.
    pub fn released(&self) -> SourceContent {
        SourceContent::known(self.dtype, self.digest(), None)
    }

    /// The tensor, unless its file has changed.
    fn intact(&self) -> Option<&Tensor> {
        self.tensor.as_ref().filter(|tensor| tensor.buffer().changed_file().is_none())
    }
}
