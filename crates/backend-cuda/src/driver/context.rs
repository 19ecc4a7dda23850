//! The driver, its devices, and the context of one.

use std::{
    ffi::{CStr, c_char, c_int, c_uint},
    fmt, ptr,
    sync::Arc,
};

use super::ffi::{self, Cuda, Handle, Status, attribute};
use crate::{
    error::CudaError,
    library::{LibraryKind, Lookup, Version},
};

/// The driver of this machine.
#[derive(Clone)]
pub struct Driver {
    pub(super) api: Arc<Cuda>,
    version: Version,
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Driver({})", self.version)
    }
}

impl Driver {
    /// Opens and initializes the driver.
    ///
    /// # Errors
    /// When there is none, it is too old, or it cannot be initialized.
    pub fn open(lookup: &Lookup) -> Result<Driver, CudaError> {
        let (api, version) = Driver::found(lookup)?;
        api.opened.require(version)?;
        // SAFETY: the flags must be 0.
        check(&api, "cuInit", unsafe { (api.cuInit)(0) })?;
        Ok(Driver { api: Arc::new(api), version })
    }

    /// The library and its version, whatever it is.
    pub(crate) fn found(lookup: &Lookup) -> Result<(Cuda, Version), CudaError> {
        let api = Cuda::load(lookup.open(LibraryKind::Driver)?)?;
        let mut number: c_int = 0;
        // SAFETY: `number` is written; this call needs no initialization.
        check(&api, "cuDriverGetVersion", unsafe { (api.cuDriverGetVersion)(&raw mut number) })?;
        let number = u32::try_from(number).unwrap_or(0);
        Ok((api, Version([number / 1000, number % 1000 / 10, 0])))
    }

    /// The version of CUDA that the driver supports.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Number of devices.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn device_count(&self) -> Result<u32, CudaError> {
        let mut count: c_int = 0;
        // SAFETY: `count` is written.
        self.check("cuDeviceGetCount", unsafe { (self.api.cuDeviceGetCount)(&raw mut count) })?;
        Ok(u32::try_from(count).unwrap_or(0))
    }

    /// What is known of a device, without using it.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn info(&self, index: u32) -> Result<Info, CudaError> {
        let count = self.device_count()?;
        let ordinal = c_int::try_from(index).ok().filter(|_| index < count);
        let ordinal = ordinal.ok_or(CudaError::NoDevice { index, count })?;
        let mut device: c_int = 0;
        // SAFETY: `device` is written.
        self.check("cuDeviceGet", unsafe { (self.api.cuDeviceGet)(&raw mut device, ordinal) })?;
        let mut name = [0 as c_char; 128];
        // SAFETY: the buffer has the stated length, and the driver ends the name within it.
        let name = unsafe {
            self.check("cuDeviceGetName", (self.api.cuDeviceGetName)(name.as_mut_ptr(), 127, device))?;
            CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned()
        };
        let mut memory = 0usize;
        // SAFETY: `memory` is written.
        self.check("cuDeviceTotalMem", unsafe { (self.api.cuDeviceTotalMem_v2)(&raw mut memory, device) })?;
        let get = |which: c_int| {
            let mut value: c_int = 0;
            // SAFETY: `value` is written.
            let status = unsafe { (self.api.cuDeviceGetAttribute)(&raw mut value, which, device) };
            self.check("cuDeviceGetAttribute", status).map(|()| u32::try_from(value).unwrap_or(0))
        };
        Ok(Info {
            index,
            name,
            memory,
            capability: (get(attribute::MAJOR)?, get(attribute::MINOR)?),
            multiprocessors: get(attribute::MULTIPROCESSORS)?,
            l2_bytes: get(attribute::L2_BYTES)? as usize,
            shared_bytes: get(attribute::SHARED_PER_BLOCK_OPTIN)? as usize,
            pools: get(attribute::MEMORY_POOLS)? != 0,
        })
    }

    fn check(&self, call: &'static str, status: Status) -> Result<(), CudaError> {
        check(&self.api, call, status)
    }
}

/// A device, as the driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Its number.
    pub index: u32,
    /// Its maker's name, such as `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Bytes of memory.
    pub memory: usize,
    /// Compute capability, such as 9.0.
    pub capability: (u32, u32),
    /// Number of multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of second-level cache.
    pub l2_bytes: usize,
    /// Most bytes of shared memory that a block may ask for.
    pub shared_bytes: usize,
    /// Whether it has stream-ordered memory pools.
    pub pools: bool,
}

impl Info {
    /// The architecture as compilers spell it, such as `sm_90`.
    pub fn arch(&self) -> String {
        format!("sm_{}{}", self.capability.0, self.capability.1)
    }
}

/// The primary context of a device, shared with every other library in the process, and a memory pool.
#[derive(Clone)]
pub struct Context {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) api: Arc<Cuda>,
    handle: Handle,
    device: c_int,
    pub(super) info: Info,
    pub(super) pool: Handle,
    /// The stream that memory is allocated and freed in the order of.
    pub(super) memory_stream: Handle,
    /// Lowest and highest priority of streams.
    pub(super) priorities: (c_int, c_int),
    process: u32,
}

// SAFETY: the driver's functions may be called from any thread; handles are only passed to them.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Context({})", self.inner.info.name)
    }
}

impl Context {
    /// Opens device `index`.
    ///
    /// # Errors
    /// When there is no such device, or it cannot be opened.
    pub fn open(driver: &Driver, index: u32) -> Result<Context, CudaError> {
        let info = driver.info(index)?;
        let api = driver.api.clone();
        let device = index as c_int;
        let mut handle: Handle = ptr::null_mut();
        // SAFETY: `handle` is written; the device exists.
        driver.check("cuDevicePrimaryCtxRetain", unsafe { (api.cuDevicePrimaryCtxRetain)(&raw mut handle, device) })?;
        let mut inner = Inner {
            api,
            handle,
            device,
            info,
            pool: ptr::null_mut(),
            memory_stream: ptr::null_mut(),
            priorities: (0, 0),
            process: std::process::id(),
        };
        inner.bind()?;
        inner.start()?;
        Ok(Context { inner: Arc::new(inner) })
    }

    /// What is known of the device.
    pub fn info(&self) -> &Info {
        &self.inner.info
    }

    /// Whether memory of the host is page-locked, all of it: the device reads it without a copy in between.
    pub fn is_page_locked(&self, bytes: &[u8]) -> bool {
        let is_host = |address: *const u8| {
            let mut kind: c_uint = 0;
            // SAFETY: an unsigned int is written for this attribute. The driver looks the address up, and reads nothing there.
            let status = unsafe {
                let to = (&raw mut kind).cast();
                (self.inner.api.cuPointerGetAttribute)(to, ffi::POINTER_MEMORY_TYPE, address as u64)
            };
            status == ffi::SUCCESS && kind == ffi::MEMORY_TYPE_HOST
        };
        self.inner.bind().is_ok()
            && bytes.first().is_some_and(|b| is_host(b))
            && bytes.last().is_some_and(|b| is_host(b))
    }

    /// Free and total bytes of the device.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn memory(&self) -> Result<(usize, usize), CudaError> {
        self.inner.bind()?;
        self.inner.memory()
    }

    /// Waits for all work of the context.
    ///
    /// # Errors
    /// When work failed.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.inner.bind()?;
        // SAFETY: the context is current.
        self.inner.check("cuCtxSynchronize", unsafe { (self.inner.api.cuCtxSynchronize)() })
    }

    /// Gives memory of the pool that nothing uses back to the device, but for `keep` bytes.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn trim(&self, keep: usize) -> Result<(), CudaError> {
        self.inner.bind()?;
        if self.inner.pool.is_null() {
            return Ok(());
        }
        // SAFETY: the pool is alive.
        self.inner.check("cuMemPoolTrimTo", unsafe { (self.inner.api.cuMemPoolTrimTo)(self.inner.pool, keep) })
    }

    /// Makes the context current on this thread, for libraries that work in the current one.
    ///
    /// # Errors
    /// [`CudaError::Forked`] in a child of the process that opened it.
    pub fn bind(&self) -> Result<(), CudaError> {
        self.inner.bind()
    }
}

impl Inner {
    /// Makes the context current on this thread.
    pub(super) fn bind(&self) -> Result<(), CudaError> {
        if std::process::id() != self.process {
            return Err(CudaError::Forked);
        }
        // SAFETY: the context is retained until `self` is dropped.
        self.check("cuCtxSetCurrent", unsafe { (self.api.cuCtxSetCurrent)(self.handle) })
    }

    pub(super) fn check(&self, call: &'static str, status: Status) -> Result<(), CudaError> {
        check(&self.api, call, status)
    }

    pub(super) fn memory(&self) -> Result<(usize, usize), CudaError> {
        let (mut free, mut total) = (0usize, 0usize);
        // SAFETY: both are written; the context is current.
        self.check("cuMemGetInfo", unsafe { (self.api.cuMemGetInfo_v2)(&raw mut free, &raw mut total) })?;
        Ok((free, total))
    }

    /// Makes the memory pool and its stream. The context is current.
    fn start(&mut self) -> Result<(), CudaError> {
        let (mut least, mut greatest) = (0, 0);
        // SAFETY: both are written.
        self.check("cuCtxGetStreamPriorityRange", unsafe {
            (self.api.cuCtxGetStreamPriorityRange)(&raw mut least, &raw mut greatest)
        })?;
        self.priorities = (least, greatest);
        let mut stream: Handle = ptr::null_mut();
        // SAFETY: `stream` is written.
        self.check("cuStreamCreateWithPriority", unsafe {
            (self.api.cuStreamCreateWithPriority)(&raw mut stream, ffi::STREAM_NON_BLOCKING, least)
        })?;
        self.memory_stream = stream;
        if !self.info.pools {
            return Ok(());
        }
        let props = ffi::PoolProps {
            alloc_type: 1,
            handle_types: 0,
            location_type: 1,
            location_id: self.device,
            security: ptr::null_mut(),
            max_size: 0,
            usage: 0,
            reserved: [0; 54],
        };
        let mut pool: Handle = ptr::null_mut();
        // SAFETY: `props` describes pinned memory of this device, as the driver's header lays it out.
        self.check("cuMemPoolCreate", unsafe { (self.api.cuMemPoolCreate)(&raw mut pool, &raw const props) })?;
        self.pool = pool;
        // Memory stays in the pool: giving it back waits for running work.
        let mut threshold = u64::MAX;
        // SAFETY: the attribute is a 64-bit number.
        self.check("cuMemPoolSetAttribute", unsafe {
            (self.api.cuMemPoolSetAttribute)(pool, ffi::POOL_RELEASE_THRESHOLD, (&raw mut threshold).cast())
        })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.bind().is_err() {
            return;
        }
        // SAFETY: all that was made in the context holds it, so nothing uses these any more.
        unsafe {
            if !self.memory_stream.is_null() {
                (self.api.cuStreamSynchronize)(self.memory_stream);
            }
            if !self.pool.is_null() {
                (self.api.cuMemPoolDestroy)(self.pool);
            }
            if !self.memory_stream.is_null() {
                (self.api.cuStreamDestroy_v2)(self.memory_stream);
            }
            (self.api.cuDevicePrimaryCtxRelease_v2)(self.device);
        }
    }
}

/// The error of a status that is not success.
fn check(api: &Cuda, call: &'static str, code: Status) -> Result<(), CudaError> {
    if code == ffi::SUCCESS {
        return Ok(());
    }
    let text = |get: unsafe extern "C" fn(Status, *mut *const c_char) -> Status| {
        let mut text: *const c_char = ptr::null();
        // SAFETY: the driver writes a pointer to a static string, or null for a code that it does not know.
        unsafe {
            get(code, &raw mut text);
            if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
        }
    };
    Err(CudaError::Driver { call, code, name: text(api.cuGetErrorName), text: text(api.cuGetErrorString) })
}
