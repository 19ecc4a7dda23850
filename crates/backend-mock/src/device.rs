use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
};

use regraft_backend::{
    BackendError, Codegen, Device, Kernel, KernelId, Memory, MemoryKind, NodeSpec, Operand, OutOfMemory, Packer, Queue,
    QueueClass, RegionMut, SlotLayout, Target,
};
use regraft_ir::Op;
use regraft_tensor::Buffer;
use regraft_weights::RefitMap;

use crate::{
    Violation,
    kernel::MockKernel,
    packer::MockPacker,
    queue::MockQueue,
    shared::{NAME, Order, Shared},
};

/// Which allocations fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failing {
    /// One of them.
    Once,
    /// All of them, until the device is [healed](MockDevice::heal).
    FromThenOn,
}

/// A device that runs what a host device runs, as a GPU would. See the [crate].
pub struct MockDevice {
    shared: Arc<Shared>,
}

impl MockDevice {
    /// A device with the kernels and packers of `inner`.
    ///
    /// # Panics
    /// When `inner` is not a device of the host.
    pub fn new(inner: Arc<dyn Device>) -> Self {
        assert!(inner.reads_host(), "its kernels are given memory of the host");
        MockDevice { shared: Arc::new(Shared::new(inner)) }
    }

    /// What was done that the contract forbids, since this was last asked.
    pub fn take_violations(&self) -> Vec<Violation> {
        self.shared.take_violations()
    }

    /// Panics when something was done that the contract forbids.
    ///
    /// # Panics
    /// See above.
    pub fn assert_clean(&self) {
        let violations = self.take_violations();
        let lines: Vec<String> = violations.iter().map(ToString::to_string).collect();
        assert!(violations.is_empty(), "the contract of devices was broken:\n  {}", lines.join("\n  "));
    }

    /// Holds all queues: no work begins until [`MockDevice::resume`].
    pub fn pause(&self) {
        self.shared.gate().close();
    }

    /// Lets queues run again.
    pub fn resume(&self) {
        self.shared.gate().open();
    }

    /// Makes allocations fail after `good` more that do not.
    pub fn fail_allocations(&self, failing: Failing, good: usize) {
        self.shared.set_failing(Some(failing), good);
    }

    /// Allocations go well again, as far as the limit allows.
    pub fn heal(&self) {
        self.shared.set_failing(None, 0);
    }

    /// What runs were put behind and in front of, since this was last asked.
    pub fn take_orders(&self) -> Vec<Order> {
        self.shared.take_orders()
    }

    /// Fences say from now on that their work takes whatever it reads, as those of kernels without indices do.
    pub fn refuse_nothing(&self) {
        self.shared.may_refuse.store(false, Ordering::SeqCst);
    }

    /// Sets the bytes of memory that the device has.
    pub fn set_byte_limit(&self, limit: Option<usize>) {
        self.shared.set_limit(limit);
    }

    /// Bytes of memory that are allocated.
    pub fn bytes_in_use(&self) -> usize {
        self.shared.in_use()
    }

    /// A kernel over memory of the host, as this device runs it.
    pub fn kernel(&self, inner: Box<dyn Kernel>) -> Box<dyn Kernel> {
        Box::new(MockKernel::new(self.shared.clone(), inner))
    }
}

impl Device for MockDevice {
    fn codegen(&self) -> &dyn Codegen {
        self.shared.inner.codegen()
    }

    fn name(&self) -> String {
        NAME.to_owned()
    }

    fn processor(&self) -> String {
        self.shared.inner.processor()
    }

    fn threads(&self) -> usize {
        self.shared.inner.threads()
    }

    fn runs(&self, target: &Target) -> bool {
        self.shared.inner.runs(target)
    }

    fn reads_host(&self) -> bool {
        false
    }

    fn alloc(&self, bytes: usize, kind: MemoryKind) -> Result<Box<dyn Memory>, OutOfMemory> {
        Ok(Box::new(self.shared.alloc(bytes, kind)?))
    }

    fn adopt(&self, contents: &Buffer) -> Result<Box<dyn Memory>, BackendError> {
        let mut memory = self.shared.alloc(contents.len(), MemoryKind::Slot)?;
        let queue = MockQueue::new(self.shared.clone(), QueueClass::Stage)?;
        queue.write(contents.bytes(), RegionMut::of(&mut memory).part(0..contents.len()));
        let failed =
            |error: regraft_backend::RunError| BackendError::Device { device: NAME.into(), why: error.to_string() };
        queue.fence().wait().map_err(failed)?;
        Ok(Box::new(memory))
    }

    fn queue(&self, class: QueueClass) -> Result<Arc<dyn Queue>, BackendError> {
        Ok(Arc::new(MockQueue::new(self.shared.clone(), class)?))
    }

    fn reads_strided(&self, kernel: &KernelId, op: &Op, index: usize, operand: &Operand<'_>) -> bool {
        self.shared.inner.reads_strided(kernel, op, index, operand)
    }

    fn prepare(&self, node: &NodeSpec<'_>) -> Result<Box<dyn Kernel>, BackendError> {
        Ok(self.kernel(self.shared.inner.prepare(node)?))
    }

    fn packer(&self, map: &RefitMap, layouts: &[SlotLayout]) -> Result<Arc<dyn Packer>, BackendError> {
        let inner = self.shared.inner.packer(map, layouts)?;
        let queue = MockQueue::new(self.shared.clone(), QueueClass::Stage)?;
        Ok(Arc::new(MockPacker::new(self.shared.clone(), inner, queue)))
    }
}

impl Drop for MockDevice {
    fn drop(&mut self) {
        // A queue that is held would never end.
        self.resume();
        if !std::thread::panicking() {
            self.assert_clean();
        }
    }
}

impl fmt::Debug for MockDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MockDevice({}, {} bytes in use)", self.shared.inner.name(), self.bytes_in_use())
    }
}
