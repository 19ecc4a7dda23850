//! The CPU as a [`Device`].

use std::{io, sync::Arc};

use regraft_backend::{
    BackendError, Codegen, Device, Kernel, KernelId, Memory, MemoryKind, NodeSpec, Operand, OutOfMemory, Packer, Queue,
    QueueClass, SlotLayout, Target,
};
use regraft_ir::Op;
use regraft_tensor::{AlignedVec, Buffer};
use regraft_weights::RefitMap;

use crate::{
    CpuCodegen, Isa, Threads,
    kernels::{self, Cx},
    memory::{OwnMemory, SharedMemory},
    packer::CpuPacker,
    queue::CpuQueue,
};

/// The CPU of this machine: an instruction set, threads for runs, and threads of their own for refits.
#[derive(Debug)]
pub struct CpuDevice {
    codegen: CpuCodegen,
    cx: Cx,
    staging: Threads,
}

impl CpuDevice {
    /// The best instruction set of this machine, with `threads` threads for runs and as many for refits; `None` for one per
    /// core.
    pub fn new(threads: Option<usize>) -> Self {
        CpuDevice::with_isa(Isa::detect(), threads)
    }

    /// An instruction set that this machine has, which need not be its best.
    ///
    /// # Panics
    /// When this machine does not have `isa`.
    pub fn with_isa(isa: Isa, threads: Option<usize>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        // A machine that cannot start threads still runs, on the calling one.
        let started = |threads: io::Result<Threads>| threads.unwrap_or_else(|_| Threads::single());
        let count = threads.unwrap_or(cores);
        let cx = Cx { isa: isa.verified(), threads: started(Threads::new(count)) };
        CpuDevice { codegen: CpuCodegen::new(isa), cx, staging: started(Threads::of_pool(count)) }
    }
}

impl Device for CpuDevice {
    fn codegen(&self) -> &dyn Codegen {
        &self.codegen
    }

    fn name(&self) -> String {
        "cpu".to_owned()
    }

    fn processor(&self) -> String {
        let name = processor().unwrap_or_else(|| std::env::consts::ARCH.to_owned());
        // Measured times of one are not those of the other, and a system may refuse tiles to a process.
        if self.cx.isa == Isa::Amx { name + " with AMX" } else { name }
    }

    fn threads(&self) -> usize {
        self.cx.threads.count()
    }

    fn runs(&self, target: &Target) -> bool {
        let own = self.codegen.target();
        // A lower level would run too, but by other kernels than its slots are packed for.
        let level = (&target.backend, &target.arch, &target.level) == (&own.backend, &own.arch, &own.level);
        level && target.missing_on(&own).is_empty()
    }

    fn reads_host(&self) -> bool {
        true
    }

    fn alloc(&self, bytes: usize, kind: MemoryKind) -> Result<Box<dyn Memory>, OutOfMemory> {
        // Slots and arenas stay. Pages are found by the thread that first writes them.
        let data = AlignedVec::try_to_stay(bytes.max(1));
        let refused = |_| OutOfMemory { device: self.name(), bytes, kind, free: None };
        Ok(Box::new(OwnMemory::new(data.map_err(refused)?)))
    }

    fn adopt(&self, contents: &Buffer) -> Result<Box<dyn Memory>, BackendError> {
        if let Some(shared) = SharedMemory::new(contents) {
            return Ok(Box::new(shared));
        }
        let (bytes, kind) = (contents.len(), MemoryKind::Slot);
        let refused = |_| OutOfMemory { device: self.name(), bytes, kind, free: None };
        let mut data = AlignedVec::try_to_stay(bytes.max(1)).map_err(refused)?;
        data.bytes_mut()[..bytes].copy_from_slice(contents.bytes());
        Ok(Box::new(OwnMemory::new(data)))
    }

    fn queue(&self, class: QueueClass) -> Result<Arc<dyn Queue>, BackendError> {
        let threads = match class {
            QueueClass::Run => &self.cx.threads,
            QueueClass::Stage => &self.staging,
        };
        Ok(Arc::new(CpuQueue::new(threads.clone())))
    }

    fn reads_strided(&self, kernel: &KernelId, op: &Op, index: usize, operand: &Operand<'_>) -> bool {
        kernels::reads_strided(kernel, op, index, operand)
    }

    fn prepare(&self, node: &NodeSpec<'_>) -> Result<Box<dyn Kernel>, BackendError> {
        kernels::prepare(&self.cx, node)
    }

    fn packer(&self, map: &RefitMap, layouts: &[SlotLayout]) -> Result<Arc<dyn Packer>, BackendError> {
        Ok(Arc::new(CpuPacker::new(self.cx.isa, self.staging.clone(), map, layouts)?))
    }
}

/// The name of the first processor, where the system tells it.
fn processor() -> Option<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
