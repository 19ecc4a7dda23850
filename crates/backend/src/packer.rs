//! From sources to slots, and back.

use std::fmt;

use regraft_tensor::Tensor;

use crate::{OutOfMemory, Region, RegionMut, adapter::Overlay};

/// How much of the device a stage may use beside runs.
///
/// ```
/// assert_eq!(regraft_backend::Pace::default(), regraft_backend::Pace::Fast);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Pace {
    /// As fast as the device can.
    #[default]
    Fast,
    /// Slowly enough that runs beside it are hardly slowed down.
    Background,
}

/// A source of a recipe, as it was given: perhaps a float of another width than the program's.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// The pristine tensor.
    pub tensor: &'a Tensor,
    /// What adapters do to it.
    pub overlay: Option<&'a Overlay>,
}

/// A slot to be made.
#[derive(Debug)]
pub struct PackJob<'a> {
    /// The slot.
    pub slot: usize,
    /// One for each source of its recipe.
    pub given: Vec<Given<'a>>,
    /// Its memory.
    pub out: RegionMut<'a>,
}

/// Where a source lies bit for bit: in a slot that was made of it.
#[derive(Clone, Copy, Debug)]
pub struct KeptSource<'a> {
    /// The slot.
    pub slot: usize,
    /// The source, by its index in the slot's recipe.
    pub source: usize,
    /// Memory of the slot.
    pub memory: Region<'a>,
}

/// Two contents that may be the same.
#[derive(Clone, Copy, Debug)]
pub enum Comparison<'a> {
    /// Two tensors.
    Tensors(&'a Tensor, &'a Tensor),
    /// What a slot keeps, and a tensor of the program's dtype.
    Kept(KeptSource<'a>, &'a Tensor),
}

/// A slot or a tensor that cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// A recipe does not fit what it was given.
    #[error("{why}")]
    Recipe {
        /// The slot.
        slot: usize,
        /// What does not fit.
        why: String,
    },
    /// An adapter cannot be applied.
    #[error("cannot apply adapters: {0}")]
    Merge(String),
    /// There is not enough memory.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    /// The device failed.
    #[error("{device} failed: {why}")]
    Device {
        /// The device.
        device: String,
        /// What it says.
        why: String,
    },
}

/// Watches the progress of a stage.
pub trait StageObserver: Sync {
    /// So many bytes of slots are made, of all in this stage. May be called from any thread.
    fn staged(&self, _bytes: usize, _of: usize) {}

    /// All slots are on their way, and until they are made the thread that packs, which calls this, has nothing to do.
    fn waits(&self) {}
}

impl StageObserver for () {}

/// Makes the slots of one program. A slot has the same bits whatever is made beside it.
pub trait Packer: fmt::Debug + Send + Sync {
    /// Makes all of these slots, and waits until they are made.
    ///
    /// # Errors
    /// The first one that cannot be made; contents of all are unspecified then.
    fn pack(&self, jobs: Vec<PackJob<'_>>, pace: Pace, observer: &dyn StageObserver) -> Result<(), PackError>;

    /// Runs `work` where the threads that make slots are available: what it does in parallel, and what it asks of the packer, then
    /// wakes no others.
    fn on_threads(&self, work: &mut (dyn FnMut() + Send)) {
        work();
    }

    /// Whether [`Packer::pack`] makes the slot in one pass over memory.
    fn is_one_pass(&self, slot: usize, given: &[Given<'_>]) -> bool;

    /// Whether slot `slot` keeps all of source `source` of its recipe bit for bit, when it is made of a tensor of the program's
    /// dtype without adapters.
    fn keeps(&self, slot: usize, source: usize) -> bool;

    /// Whether source `source` of slot `slot` is read where it is, when it is given in memory of this device, in the program's
    /// dtype and without adapters.
    fn reads_remote(&self, _slot: usize, _source: usize) -> bool {
        false
    }

    /// Reads sources back from slots.
    ///
    /// # Errors
    /// When there is not enough memory, or the device failed.
    fn read_back(&self, kept: &[KeptSource<'_>]) -> Result<Vec<Tensor>, PackError>;

    /// For each pair whether there is a difference.
    ///
    /// # Errors
    /// When the device failed.
    fn differ(&self, pairs: &[Comparison<'_>]) -> Result<Vec<bool>, PackError>;

    /// `source`, of the overlay's dtype, with `overlay` applied.
    ///
    /// # Errors
    /// When the source is of no float type or another size, or there is not enough memory.
    fn merge(&self, overlay: &Overlay, source: &Tensor) -> Result<Tensor, PackError>;

    /// Fills in the factors of the overlay's terms that have norms, from `source`.
    ///
    /// # Errors
    /// When the source is of no float type or another size.
    fn fill_norms(&self, overlay: &mut Overlay, source: &Tensor) -> Result<(), PackError>;
}
