//! What the compiler and the runtime ask of a device; no implementation.
//!
//! A backend has two halves. [`Codegen`] needs no device: the compiler asks it what may be fused, how a node can run, and in
//! which [`SlotFormat`] each weight is wanted. [`Device`] owns memory, queues and kernels: the runtime asks it for a [`Kernel`]
//! once sizes are known, launches a [`Sequence`] of them on a [`Queue`], and waits for a [`Fence`]; its [`Packer`] makes slots
//! from sources.
//!
//! Nothing here says where memory is. A kernel is given [`Region`]s, launches without waiting, and touches nothing of the
//! host. On the CPU a launch has run when it returns and every fence is done.
#![deny(unsafe_op_in_unsafe_fn)]
#![deny(unsafe_code)]

mod codegen;
mod device;
mod error;
mod format;
mod kernel;
pub mod memory;
mod packer;
mod queue;
mod sequence;
mod target;

pub use regraft_adapter as adapter;
pub use regraft_weights::{FormatId, SlotLayout};

pub use self::{
    codegen::{Candidate, Codegen, Lowering, OperandType, WeightLayout},
    device::{Device, Recording},
    error::{BackendError, DataError, OutOfMemory, RunError, RunErrorKind},
    format::{Plain, SlotFormat},
    kernel::{Kernel, Launch, NodeSpec, Operand, ResultType},
    memory::{Lent, Memory, MemoryKind, Region, RegionMut},
    packer::{Comparison, Given, KeptSource, Pace, PackError, PackJob, Packer, StageObserver},
    queue::{Extent, Fence, ForeignQueue, PendingFence, Queue, QueueClass},
    sequence::{Bindings, Location, Place, Sequence, SequenceError, Sizes, Step},
    target::{KernelId, Target},
};
