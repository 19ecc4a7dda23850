//! Compiled kernels and how they are launched.

use std::{
    ffi::{CString, c_int, c_void},
    fmt, ptr,
    sync::Arc,
};

use super::{
    context::{Context, Inner},
    ffi::{self, Handle},
    memory::Span,
    stream::Stream,
};
use crate::error::CudaError;

/// A loaded cubin.
#[derive(Clone)]
pub struct Module {
    inner: Arc<Loaded>,
}

struct Loaded {
    context: Arc<Inner>,
    handle: Handle,
}

// SAFETY: the driver's functions may be called from any thread.
unsafe impl Send for Loaded {}
// SAFETY: as above.
unsafe impl Sync for Loaded {}

impl Module {
    /// Loads a cubin that the compiler made.
    ///
    /// # Errors
    /// When it does not fit the device.
    pub fn load(context: &Context, cubin: &[u8]) -> Result<Module, CudaError> {
        let inner = context.inner.clone();
        inner.bind()?;
        let mut handle: Handle = ptr::null_mut();
        // SAFETY: the image holds its own length, and comes from the compiler or from a cache that compares its digest.
        inner.check("cuModuleLoadData", unsafe {
            (inner.api.cuModuleLoadData)(&raw mut handle, cubin.as_ptr().cast())
        })?;
        Ok(Module { inner: Arc::new(Loaded { context: inner, handle }) })
    }

    /// A kernel of the module, allowed to use `shared` bytes of dynamic shared memory.
    ///
    /// # Errors
    /// When there is none of this name, or the device has less shared memory.
    pub fn function(&self, name: &str, shared: usize) -> Result<Function, CudaError> {
        let context = &self.inner.context;
        context.bind()?;
        let c_name = CString::new(name).unwrap_or_default();
        let mut handle: Handle = ptr::null_mut();
        // SAFETY: `handle` is written; the module is alive.
        context.check("cuModuleGetFunction", unsafe {
            (context.api.cuModuleGetFunction)(&raw mut handle, self.inner.handle, c_name.as_ptr())
        })?;
        if shared > 48 << 10 {
            let shared = c_int::try_from(shared).unwrap_or(c_int::MAX);
            // SAFETY: the function is alive.
            context.check("cuFuncSetAttribute", unsafe {
                (context.api.cuFuncSetAttribute)(handle, ffi::FUNC_MAX_DYNAMIC_SHARED, shared)
            })?;
        }
        Ok(Function { module: self.inner.clone(), handle, name: name.into() })
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: every function holds the module, so none is left.
            unsafe { (self.context.api.cuModuleUnload)(self.handle) };
        }
    }
}

/// A kernel.
#[derive(Clone)]
pub struct Function {
    module: Arc<Loaded>,
    handle: Handle,
    name: Arc<str>,
}

// SAFETY: the driver's functions may be called from any thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Function({})", self.name)
    }
}

/// From this compute capability on a kernel behind one of ours is launched while that still runs: each waits for those before
/// itself, which is what `AWAIT` of the sources does. Behind a library's kernel, large ones mostly, blocks that wait take room that
/// it needs: BERT takes 5 % longer then.
const OVERLAPS_FROM: (u32, u32) = (9, 0);

/// The shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

/// The arguments of a launch, in the order of the kernel's parameters.
#[derive(Clone, Debug, Default)]
pub struct Args {
    bytes: Vec<u8>,
    offsets: Vec<usize>,
}

impl Args {
    /// No arguments.
    pub fn new() -> Args {
        Args::default()
    }

    /// The address of a region.
    pub fn region(&mut self, region: impl Into<Span>) -> &mut Args {
        self.raw(&region.into().address().to_ne_bytes())
    }

    /// A null address.
    pub fn null(&mut self) -> &mut Args {
        self.raw(&0u64.to_ne_bytes())
    }

    /// A 32-bit integer.
    pub fn i32(&mut self, value: i32) -> &mut Args {
        self.raw(&value.to_ne_bytes())
    }

    /// A 64-bit integer.
    pub fn i64(&mut self, value: i64) -> &mut Args {
        self.raw(&value.to_ne_bytes())
    }

    /// A float.
    pub fn f32(&mut self, value: f32) -> &mut Args {
        self.raw(&value.to_ne_bytes())
    }

    /// A structure of the kernel's source, as its bytes.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Args {
        // The driver reads each argument at its address by the size that the kernel declares: keep them aligned.
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        self.offsets.push(self.bytes.len());
        self.bytes.extend_from_slice(bytes);
        self
    }
}

impl Function {
    /// Puts a launch into the stream.
    ///
    /// The kernel reads and writes what its arguments point to; they are built beside the source of the kernel, from regions
    /// whose sizes were checked there.
    ///
    /// # Errors
    /// When the launch does not fit the device.
    pub fn launch(&self, stream: &Stream, launch: Launch, args: &mut Args) -> Result<(), CudaError> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        let context = &self.module.context;
        context.bind()?;
        let base = args.bytes.as_mut_ptr();
        // SAFETY: every offset is inside of `bytes`, which is not changed until the call is over.
        let mut pointers: Vec<*mut c_void> = args.offsets.iter().map(|&o| unsafe { base.add(o) }.cast()).collect();
        let (stream, is_behind_own) = stream.raw_for_own();
        let behind =
            ffi::LaunchAttribute { id: ffi::PROGRAMMATIC_STREAM_SERIALIZATION, pad: 0, value: 1, rest: [0; 15] };
        let config = ffi::LaunchConfig {
            grid: launch.grid,
            block: [launch.block, 1, 1],
            shared: launch.shared,
            stream,
            attributes: &raw const behind,
            attribute_count: u32::from(is_behind_own && context.info.capability >= OVERLAPS_FROM),
        };
        // SAFETY: the arguments are those of the kernel's parameters; the driver copies them, and what the configuration points
        // to, before it returns.
        context.check("cuLaunchKernelEx", unsafe {
            (context.api.cuLaunchKernelEx)(&raw const config, self.handle, pointers.as_mut_ptr(), ptr::null_mut())
        })
    }
}
