//! A GPU as the contract of `regraft-backend` has it.

mod codegen;
mod kernel;
mod lane;
mod memory;
mod packer;
mod prepare;
mod product;
mod queue;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use regraft_backend::{
    BackendError, Codegen, Device, Kernel, KernelId, Memory, MemoryKind, NodeSpec, Operand, OutOfMemory, Packer, Queue,
    QueueClass, Recording, RunErrorKind, SlotLayout, Target,
};
use regraft_backend_cpu::CpuDevice;
use regraft_ir::Op;
use regraft_tensor::Buffer;
use regraft_weights::RefitMap;

pub use self::codegen::CudaCodegen;
use self::{lane::Lane, memory::CudaMemory, packer::CudaPacker, queue::CudaQueue};
use crate::{
    CudaError, Kernels,
    cudnn::Dnn,
    driver::{Context, Driver, Info, Priority},
    gemm::Blas,
    library::{LibraryError, Lookup},
    nvrtc::{Compiler, CubinCache},
};

/// How a GPU is used.
#[derive(Clone, Debug, Default)]
pub struct CudaOptions {
    /// Where libraries are looked for.
    pub lookup: Lookup,
    /// The folder of compiled kernels; `None` to keep none.
    pub cubins: Option<PathBuf>,
    /// Whether products and convolutions of f32 may round their operands to TF32.
    pub tf32: bool,
    /// Threads of the host that make slots which the device does not make itself.
    pub threads: Option<usize>,
}

/// What kernels are prepared with.
#[derive(Clone)]
pub(crate) struct Cx {
    pub(crate) name: Arc<str>,
    pub(crate) context: Context,
    pub(crate) kernels: Kernels,
    pub(crate) blas: Blas,
    pub(crate) dnn: Option<Dnn>,
    pub(crate) tf32: bool,
}

/// An NVIDIA GPU.
pub struct CudaDevice {
    cx: Cx,
    codegen: CudaCodegen,
    /// Makes slots on the host where the device does not.
    host: CpuDevice,
    /// Carries what is uploaded ahead of runs, and what refits copy.
    lane: Arc<Mutex<Lane>>,
}

impl CudaDevice {
    /// Opens GPU `index` of this machine.
    ///
    /// # Errors
    /// When there is no such device, or a library is missing or too old. Without cuDNN kernels of our own stand in.
    pub fn open(index: u32, options: &CudaOptions) -> Result<CudaDevice, CudaError> {
        let driver = Driver::open(&options.lookup)?;
        let context = Context::open(&driver, index)?;
        let cache = options.cubins.as_ref().map_or_else(CubinCache::none, CubinCache::new);
        let kernels = Kernels::new(&context, Compiler::open(&options.lookup)?, cache);
        let blas = Blas::open(&options.lookup, &context)?;
        let dnn = match Dnn::open(&options.lookup, &context) {
            Ok(dnn) => Some(dnn),
            Err(error @ CudaError::Library(LibraryError::TooOld { .. } | LibraryError::Missing { .. })) => {
                tracing::warn!(%error, "convolutions run on kernels of our own");
                None
            }
            Err(error) => return Err(error),
        };
        let lane = Arc::new(Mutex::new(Lane::new(&context)?));
        let codegen = CudaCodegen::new(context.info().arch());
        let cx = Cx { name: format!("cuda:{index}").into(), context, kernels, blas, dnn, tf32: options.tf32 };
        Ok(CudaDevice { cx, codegen, host: CpuDevice::new(options.threads), lane })
    }

    /// What the driver says about the device.
    pub fn info(&self) -> &Info {
        self.cx.context.info()
    }
}

impl Cx {
    /// What of the contract an error says, where it is that memory was refused.
    pub(crate) fn refused(&self, error: &CudaError) -> Option<OutOfMemory> {
        let CudaError::OutOfMemory { bytes, free, .. } = *error else { return None };
        Some(OutOfMemory { device: self.name.to_string(), bytes, kind: MemoryKind::Slot, free: Some(free) })
    }

    pub(crate) fn failed(&self, error: CudaError) -> BackendError {
        match self.refused(&error) {
            Some(refused) => BackendError::Memory(refused),
            None => BackendError::Device { device: self.name.to_string(), why: error.to_string() },
        }
    }

    pub(crate) fn run_failed(&self, error: &CudaError) -> RunErrorKind {
        RunErrorKind::Device { device: self.name.to_string(), why: error.to_string() }
    }
}

impl Device for CudaDevice {
    fn codegen(&self) -> &dyn Codegen {
        &self.codegen
    }

    fn name(&self) -> String {
        self.cx.name.to_string()
    }

    fn processor(&self) -> String {
        self.info().name.clone()
    }

    fn runs(&self, target: &Target) -> bool {
        *target == self.codegen.target()
    }

    fn reads_host(&self) -> bool {
        false
    }

    fn alloc(&self, bytes: usize, kind: MemoryKind) -> Result<Box<dyn Memory>, OutOfMemory> {
        let refused = |error| {
            let free = if let CudaError::OutOfMemory { free, .. } = error { Some(free) } else { None };
            OutOfMemory { device: self.name(), bytes, kind, free }
        };
        Ok(Box::new(CudaMemory::new(&self.cx.context, bytes).map_err(refused)?))
    }

    fn adopt(&self, contents: &Buffer) -> Result<Box<dyn Memory>, BackendError> {
        let memory = CudaMemory::new(&self.cx.context, contents.len()).map_err(|e| self.cx.failed(e))?;
        let mut lane = self.lane.lock().unwrap_or_else(PoisonError::into_inner);
        lane.send_all(contents.bytes(), memory.span()).map_err(|e| self.cx.failed(e))?;
        Ok(Box::new(memory))
    }

    fn queue(&self, class: QueueClass) -> Result<Arc<dyn Queue>, BackendError> {
        let priority = match class {
            QueueClass::Run => Priority::High,
            QueueClass::Stage => Priority::Low,
        };
        Ok(Arc::new(CudaQueue::new(&self.cx, priority).map_err(|e| self.cx.failed(e))?))
    }

    fn reads_strided(&self, kernel: &KernelId, op: &Op, index: usize, operand: &Operand<'_>) -> bool {
        prepare::reads_strided(kernel, op, index, operand)
    }

    fn prepare(&self, node: &NodeSpec<'_>) -> Result<Box<dyn Kernel>, BackendError> {
        prepare::prepare(&self.cx, node)
    }

    fn packer(&self, map: &RefitMap, layouts: &[SlotLayout]) -> Result<Arc<dyn Packer>, BackendError> {
        let host = self.host.packer(map, layouts)?;
        let packer = CudaPacker::new(&self.cx, &self.lane, host, map, layouts).map_err(|e| self.cx.failed(e))?;
        Ok(Arc::new(packer))
    }

    fn record(&self, work: &mut dyn FnMut(&dyn Queue)) -> Result<Option<Box<dyn Recording>>, BackendError> {
        queue::record(&self.cx, work)
    }
}
