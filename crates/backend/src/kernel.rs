//! Kernels: what runs one node.

use regraft_ir::Op;
use regraft_tensor::DType;
use regraft_weights::SlotLayout;

use crate::{KernelId, Queue, Region, RegionMut};

/// An operand with known sizes.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    /// Element type.
    pub dtype: DType,
    /// Sizes, as the op sees them.
    pub shape: &'a [usize],
    /// Strides in elements. Row-major for slots, whose memory is in their layout.
    pub strides: &'a [usize],
    /// The layout, when the operand is a slot.
    pub slot: Option<&'a SlotLayout>,
}

/// A result with known sizes; its memory is row-major.
#[derive(Clone, Copy, Debug)]
pub struct ResultType<'a> {
    /// Element type.
    pub dtype: DType,
    /// Sizes.
    pub shape: &'a [usize],
}

/// A node with known sizes, to be prepared.
#[derive(Clone, Copy, Debug)]
pub struct NodeSpec<'a> {
    /// The kernel chosen at build time.
    pub kernel: &'a KernelId,
    /// The op; no symbols are left in its attributes.
    pub op: &'a Op,
    /// Operands.
    pub inputs: &'a [Option<Operand<'a>>],
    /// Results.
    pub outputs: &'a [ResultType<'a>],
}

/// What a kernel works on: lists that last for `'l`, of memory that lasts for `'m`.
#[derive(Debug)]
pub struct Launch<'l, 'm> {
    /// Number of the node, for errors.
    pub node: usize,
    /// `inputs[i]` starts at the first element of operand `i` and reaches at least to its last one. `None` for an operand
    /// that is not there, and for the one that is [in place](Kernel::in_place).
    pub inputs: &'l [Option<Region<'m>>],
    /// `outputs[i]` has exactly the bytes of result `i`; contents are unspecified before, but for the operand in place.
    pub outputs: &'l mut [RegionMut<'m>],
    /// As many bytes as [`Kernel::scratch`] says; contents are unspecified.
    pub scratch: RegionMut<'m>,
}

/// A kernel ready to run one node at one set of sizes. May be launched from several threads at once.
pub trait Kernel: Send + Sync {
    /// Bytes of memory that a launch needs besides operands and results.
    fn scratch(&self) -> usize {
        0
    }

    /// The operand whose memory may be that of result 0, which then holds it when the kernel is launched: a launch reads each
    /// element before it writes it. Such an operand has exactly the bytes of the result.
    fn in_place(&self) -> Option<usize> {
        None
    }

    /// Whether a launch works on the host: it waits for what is on the queue, and cannot be recorded.
    fn is_host_step(&self) -> bool {
        false
    }

    /// Puts the work on the queue, and does not wait for it. What goes wrong is [reported](Queue::report) there.
    fn launch(&self, queue: &dyn Queue, launch: Launch<'_, '_>);
}
