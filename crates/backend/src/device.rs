//! The run-time half of a backend.

use std::sync::Arc;

use regraft_tensor::Buffer;
use regraft_weights::{RefitMap, SlotLayout};

use crate::{
    BackendError, Codegen, Kernel, KernelId, Memory, MemoryKind, NodeSpec, Operand, OutOfMemory, Packer, Queue,
    QueueClass, Target,
};
use regraft_ir::Op;

/// A machine that runs kernels and packs weights.
///
/// ```
/// # fn f(device: &dyn regraft_backend::Device) {
/// println!("{}: {}, engines for {}", device.name(), device.processor(), device.codegen().target());
/// # }
/// ```
pub trait Device: Send + Sync {
    /// The compile-time half for engines that run here.
    fn codegen(&self) -> &dyn Codegen;

    /// What messages call it: `cpu`, `cuda:0`.
    fn name(&self) -> String;

    /// The processor, as its maker calls it: what times of kernels depend on besides the target.
    fn processor(&self) -> String;

    /// Threads of a run, where runs have threads.
    fn threads(&self) -> usize {
        1
    }

    /// Whether an engine built for `target` runs here.
    fn runs(&self, target: &Target) -> bool;

    /// Whether kernels can be given [bytes of the host](crate::Region::of_host).
    fn reads_host(&self) -> bool;

    /// Memory of at least one byte. Contents are unspecified.
    ///
    /// # Errors
    /// When there is not enough.
    fn alloc(&self, bytes: usize, kind: MemoryKind) -> Result<Box<dyn Memory>, OutOfMemory>;

    /// Memory with these contents, never to be written: the buffer itself where kernels can be given that.
    ///
    /// # Errors
    /// When there is not enough memory for a copy, or the device failed.
    fn adopt(&self, contents: &Buffer) -> Result<Box<dyn Memory>, BackendError>;

    /// A queue with nothing on it.
    ///
    /// # Errors
    /// When the device failed.
    fn queue(&self, class: QueueClass) -> Result<Arc<dyn Queue>, BackendError>;

    /// Whether a kernel can read operand `index` with these strides; otherwise it is copied to row-major first.
    fn reads_strided(&self, kernel: &KernelId, op: &Op, index: usize, operand: &Operand<'_>) -> bool;

    /// The kernel for a node at known sizes. All sizes are checked here, so that a launch cannot go wrong. Every device has
    /// [`KernelId::COPY`], whose op is not looked at: it makes one strided operand row-major.
    ///
    /// # Errors
    /// When the kernel is unknown or does not take the node.
    fn prepare(&self, node: &NodeSpec<'_>) -> Result<Box<dyn Kernel>, BackendError>;

    /// Makes the slots of a program; `layouts[i]` is that of recipe `i`.
    ///
    /// # Errors
    /// When a layout is not of this target.
    fn packer(&self, map: &RefitMap, layouts: &[SlotLayout]) -> Result<Arc<dyn Packer>, BackendError>;

    /// Records the launches of `work`, which gets a queue of this device, to be launched many times at the cost of one.
    /// `None` where the device records nothing.
    ///
    /// # Errors
    /// When the device failed.
    fn record(&self, _work: &mut dyn FnMut(&dyn Queue)) -> Result<Option<Box<dyn Recording>>, BackendError> {
        Ok(None)
    }
}

/// Launches that were recorded, with the memory that they were given then.
pub trait Recording: Send + Sync {
    /// Records the same launches with other memory. A launch that is still going on keeps the memory it had.
    ///
    /// # Errors
    /// When the launches are others, or the device failed.
    fn update(&mut self, work: &mut dyn FnMut(&dyn Queue)) -> Result<(), BackendError>;

    /// Puts all of it on a queue.
    fn launch(&mut self, queue: &dyn Queue);
}
