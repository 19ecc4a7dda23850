//! What a generation keeps of a source.

use std::{
    borrow::Cow,
    path::Path,
    sync::{Arc, OnceLock},
};

use regraft_backend::{Comparison, KeptSource, PackError, Packer};
use regraft_tensor::{DType, MappedFiles, Tensor};
use regraft_weights::Digest;

use super::Slot;

/// What a generation keeps of a source: the tensor, the slot that it can be read back from, its digest with or without a
/// file that contains it, or nothing.
///
/// The tensor may be a float of another width than the engine's source: it is kept as it was given, and its value
/// in the engine's dtype is what matters.
///
/// ```
/// # fn f(model: &regraft_runtime::Model) -> Result<(), Box<dyn std::error::Error>> {
/// let generation = model.generation().ok_or("no weights yet")?;
/// if let Some(tensor) = generation.sources[0].tensor()? {
///     println!("{}{:?}", tensor.dtype(), tensor.shape());
/// }
/// # Ok(())
/// # }
/// ```
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

/// The slot that a source is kept in, bit for bit: it was made by a recipe that loses nothing of it.
#[derive(Clone, Debug)]
pub(crate) struct InSlot {
    pub(crate) slot: Arc<Slot>,
    /// Number of the slot.
    pub(crate) index: usize,
    /// The source, by its index in the slot's recipe.
    pub(crate) source: usize,
    pub(crate) packer: Arc<dyn Packer>,
}

impl InSlot {
    pub(crate) fn kept(&self) -> KeptSource<'_> {
        KeptSource { slot: self.index, source: self.source, memory: self.slot.region() }
    }
}

impl SourceContent {
    /// A source of `dtype` whose tensor is kept, where there is one.
    pub fn new(dtype: DType, tensor: Option<Tensor>) -> Self {
        SourceContent::of(dtype, tensor.map_or(Kept::Nothing, Kept::Tensor))
    }

    /// A source of `dtype`, the engine's, that is kept in a slot.
    pub(crate) fn in_slot(dtype: DType, place: InSlot) -> Self {
        SourceContent::of(dtype, Kept::InSlot(place))
    }

    /// A source of `dtype` that is known by its digest, and kept in `file` where there is one.
    pub fn known(dtype: DType, digest: Option<Digest>, file: Option<Arc<Path>>) -> Self {
        let digest = digest.map_or_else(OnceLock::new, OnceLock::from);
        SourceContent { digest, file, ..SourceContent::of(dtype, Kept::Nothing) }
    }

    fn of(dtype: DType, kept: Kept) -> Self {
        SourceContent { kept, dtype, digest: OnceLock::new(), file: None }
    }

    /// The weight file that holds it, when the tensor is not available and is kept by reference.
    pub fn file(&self) -> Option<&Arc<Path>> {
        self.file.as_ref()
    }

    /// The tensor as it was given, unless it was released or never given. One that is kept in a slot is read back from there
    /// at each call: a pass over it, and a copy.
    ///
    /// # Errors
    /// When it cannot be read back from its slot.
    pub fn tensor(&self) -> Result<Option<Tensor>, PackError> {
        Ok(match &self.kept {
            Kept::Nothing => None,
            Kept::Tensor(tensor) => Some(tensor.clone()),
            Kept::InSlot(place) => place.packer.read_back(&[place.kept()])?.pop(),
        })
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
        self.place().map(|place| &place.slot)
    }

    pub(crate) fn place(&self) -> Option<&InSlot> {
        match &self.kept {
            Kept::InSlot(place) => Some(place),
            Kept::Nothing | Kept::Tensor(_) => None,
        }
    }

    /// Whether [`SourceContent::tensor`] gives one.
    pub fn is_resident(&self) -> bool {
        !matches!(self.kept, Kept::Nothing)
    }

    /// The tensor in the engine's dtype.
    ///
    /// # Errors
    /// As [`SourceContent::tensor`].
    pub fn converted(&self) -> Result<Option<Tensor>, PackError> {
        Ok(self.tensor()?.map(|tensor| tensor.cast(self.dtype)))
    }

    /// The digest of the content: computed when it is first asked for. `None` when nothing is known, or the file that the
    /// tensor was mapped from has changed since.
    ///
    /// # Errors
    /// As [`SourceContent::tensor`].
    pub fn digest(&self) -> Result<Option<Digest>, PackError> {
        if let Some(digest) = self.digest.get() {
            return Ok(Some(*digest));
        }
        if self.changed_file().is_some() {
            return Ok(None);
        }
        let tensor = self.converted()?;
        Ok(tensor.map(|tensor| *self.digest.get_or_init(|| Digest::of(&tensor))))
    }

    /// Whether one of `pairs`, a content and a tensor, is not the same bit for bit in the engine's dtype. Contents that are
    /// available are compared, which ends at the first difference; of others digests are.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn differ(packer: &dyn Packer, pairs: &[(&SourceContent, &Tensor)]) -> Result<Vec<bool>, PackError> {
        let mut files = MappedFiles::default();
        let compared: Vec<Compared<'_>> =
            pairs.iter().map(|(content, given)| content.compared(given, &mut files)).collect();
        let comparisons: Vec<Comparison<'_>> = compared.iter().zip(pairs).filter_map(|(c, (s, _))| c.pair(s)).collect();
        let mut differs = packer.differ(&comparisons)?.into_iter();
        let answer = |compared: &Compared<'_>| match compared {
            Compared::Known(differs) => *differs,
            Compared::Given(_) | Compared::Both(..) => differs.next().expect("one answer for each comparison"),
        };
        Ok(compared.iter().map(answer).collect())
    }

    /// Whether `given` is this content, bit for bit in the engine's dtype.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn is(&self, packer: &dyn Packer, given: &Tensor) -> Result<bool, PackError> {
        Ok(!SourceContent::differ(packer, &[(self, given)])?[0])
    }

    /// How `given` is compared with this content.
    fn compared<'a>(&self, given: &'a Tensor, files: &mut MappedFiles) -> Compared<'a> {
        let in_engines_dtype = || match given.dtype() == self.dtype {
            true => Cow::Borrowed(given),
            false => Cow::Owned(given.cast(self.dtype)),
        };
        match &self.kept {
            Kept::Nothing => {
                Compared::Known(self.digest.get().is_none_or(|digest| *digest != Digest::of(&in_engines_dtype())))
            }
            Kept::InSlot(_) => Compared::Given(in_engines_dtype()),
            Kept::Tensor(tensor) if files.have_changed(tensor.buffer()) => Compared::Known(true),
            Kept::Tensor(tensor) if tensor.dtype() == given.dtype() => Compared::Given(Cow::Borrowed(given)),
            Kept::Tensor(tensor) => Compared::Both(tensor.cast(self.dtype), in_engines_dtype()),
        }
    }

    /// The same content, with no more than its digest kept.
    ///
    /// # Errors
    /// As [`SourceContent::tensor`].
    pub fn released(&self) -> Result<SourceContent, PackError> {
        Ok(SourceContent::known(self.dtype, self.digest()?, None))
    }

    /// The file that the tensor is mapped from, when it was changed since.
    pub fn changed_file(&self) -> Option<&Path> {
        self.held()?.buffer().changed_file()
    }
}

/// Tensors to be compared, in the dtype that they are compared in.
enum Compared<'a> {
    /// Nothing is to be compared: whether they differ.
    Known(bool),
    /// With what is kept.
    Given(Cow<'a, Tensor>),
    /// With each other.
    Both(Tensor, Cow<'a, Tensor>),
}

impl Compared<'_> {
    fn pair<'a>(&'a self, content: &'a SourceContent) -> Option<Comparison<'a>> {
        match (self, &content.kept) {
            (Compared::Both(kept, given), _) => Some(Comparison::Tensors(kept, given)),
            (Compared::Given(given), Kept::Tensor(kept)) => Some(Comparison::Tensors(kept, given)),
            (Compared::Given(given), Kept::InSlot(place)) => Some(Comparison::Kept(place.kept(), given)),
            (Compared::Known(_) | Compared::Given(_), _) => None,
        }
    }
}
