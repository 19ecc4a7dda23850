//! Memory of the device, and page-locked memory of the host.

use std::{ffi::c_void, fmt, ptr, sync::Arc};

use super::{
    context::{Context, Inner},
    ffi::{self, DevicePtr},
};
use crate::error::CudaError;

/// Memory of the device. Dropping it frees it behind what the context's memory stream holds; work that reads it must be
/// over by then.
pub struct Buffer {
    owner: Owner,
    address: DevicePtr,
    len: usize,
}

enum Owner {
    /// Freed into the context's pool.
    Pool(Arc<Inner>),
    /// Another owner's, kept alive by what is held here.
    Borrowed(#[expect(dead_code, reason = "held for its drop")] Box<dyn Send + Sync>),
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({:#x}, {} bytes)", self.address, self.len)
    }
}

impl Buffer {
    /// `len` bytes from the context's pool, ready for any stream; contents unspecified.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`], or when the driver fails.
    pub fn new(context: &Context, len: usize) -> Result<Arc<Buffer>, CudaError> {
        let inner = context.inner.clone();
        inner.bind()?;
        let bytes = len.max(1);
        let mut address: DevicePtr = 0;
        // SAFETY: `address` is written. The wait makes the memory usable from every stream: it is ordered behind the frees
        // of the memory stream only.
        let status = unsafe {
            if inner.pool.is_null() {
                (inner.api.cuMemAlloc_v2)(&raw mut address, bytes)
            } else {
                let (pool, stream) = (inner.pool, inner.memory_stream);
                let status = (inner.api.cuMemAllocFromPoolAsync)(&raw mut address, bytes, pool, stream);
                if status == ffi::SUCCESS { (inner.api.cuStreamSynchronize)(stream) } else { status }
            }
        };
        if status == ffi::ERROR_OUT_OF_MEMORY {
            let (free, total) = inner.memory().unwrap_or((0, inner.info.memory));
            return Err(CudaError::OutOfMemory { bytes: len, free, total });
        }
        inner.check("cuMemAllocFromPoolAsync", status)?;
        Ok(Arc::new(Buffer { owner: Owner::Pool(inner), address, len }))
    }

    /// Memory of another owner, such as a tensor of PyTorch.
    ///
    /// # Safety
    /// `address` is device memory of `len` bytes for as long as `keep` lives.
    pub unsafe fn borrowed(address: u64, len: usize, keep: Box<dyn Send + Sync>) -> Arc<Buffer> {
        Arc::new(Buffer { owner: Owner::Borrowed(keep), address, len })
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address on the device.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// All of it.
    pub fn region(self: &Arc<Self>) -> Region {
        Region { buffer: self.clone(), offset: 0, len: self.len }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Owner::Pool(inner) = &self.owner else { return };
        if inner.bind().is_ok() {
            // SAFETY: the memory is ours, and nobody else has it.
            unsafe {
                if inner.pool.is_null() {
                    (inner.api.cuMemFree_v2)(self.address);
                } else {
                    (inner.api.cuMemFreeAsync)(self.address, inner.memory_stream);
                }
            }
        }
    }
}

/// An address with a length, which its maker keeps valid while work uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    address: DevicePtr,
    len: usize,
}

impl Span {
    /// Bytes `offset..offset + len` of this span.
    ///
    /// # Errors
    /// [`CudaError::Region`] when it ends earlier.
    pub fn part(self, offset: usize, len: usize) -> Result<Span, CudaError> {
        let needed = offset.saturating_add(len);
        if needed > self.len {
            return Err(CudaError::Region { found: self.len, needed });
        }
        Ok(Span { address: self.address + offset as u64, len })
    }

    /// The address of its first byte.
    pub fn address(self) -> u64 {
        self.address
    }

    /// Number of bytes.
    pub fn len(self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// An error unless it has exactly these bytes.
    pub(crate) fn expect(self, len: usize) -> Result<(), CudaError> {
        if self.len == len { Ok(()) } else { Err(CudaError::Region { found: self.len, needed: len }) }
    }
}

impl From<&Region> for Span {
    fn from(region: &Region) -> Span {
        region.span()
    }
}

// The contract's regions borrow from memory of the device that they are given to.
impl From<regraft_backend::Region<'_>> for Span {
    fn from(region: regraft_backend::Region<'_>) -> Span {
        Span { address: region.address(), len: region.len() }
    }
}

impl From<&regraft_backend::RegionMut<'_>> for Span {
    fn from(region: &regraft_backend::RegionMut<'_>) -> Span {
        Span { address: region.address(), len: region.len() }
    }
}

/// A part of a [`Buffer`].
#[derive(Clone, Debug)]
pub struct Region {
    buffer: Arc<Buffer>,
    offset: usize,
    len: usize,
}

impl Region {
    /// Bytes `offset..offset + len` of this region.
    ///
    /// # Errors
    /// [`CudaError::Region`] when it ends earlier.
    pub fn part(&self, offset: usize, len: usize) -> Result<Region, CudaError> {
        let needed = offset.saturating_add(len);
        if needed > self.len {
            return Err(CudaError::Region { found: self.len, needed });
        }
        Ok(Region { buffer: self.buffer.clone(), offset: self.offset + offset, len })
    }

    /// The address of its first byte.
    pub fn address(&self) -> u64 {
        self.buffer.address + self.offset as u64
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its address and length, while it lives.
    pub fn span(&self) -> Span {
        Span { address: self.address(), len: self.len }
    }
}

/// Page-locked memory of the host, which the device copies from and to at full speed.
pub struct Pinned {
    inner: Arc<Inner>,
    data: *mut u8,
    len: usize,
}

// SAFETY: memory of this owner alone; shared access only reads, except by the device, whose copies the caller orders.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// `len` bytes of zeros. Slow: allocate once, and use it as a ring.
    ///
    /// # Errors
    /// When there is no such memory.
    pub fn new(context: &Context, len: usize) -> Result<Pinned, CudaError> {
        let inner = context.inner.clone();
        inner.bind()?;
        let mut data: *mut c_void = ptr::null_mut();
        // SAFETY: `data` is written with a block of `len` bytes, which are then zeroed so that they are initialized.
        unsafe {
            inner.check("cuMemHostAlloc", (inner.api.cuMemHostAlloc)(&raw mut data, len.max(1), 0))?;
            ptr::write_bytes(data.cast::<u8>(), 0, len.max(1));
        }
        Ok(Pinned { inner, data: data.cast(), len })
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes; no copy of the device writes to them at this time.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the block has this length and is initialized.
        unsafe { std::slice::from_raw_parts(self.data, self.len) }
    }

    /// The bytes, to be written; no copy of the device reads them at this time.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.data, self.len) }
    }

    /// The address of `len` bytes at `offset`.
    pub(super) fn get(&self, offset: usize, len: usize) -> Result<*mut u8, CudaError> {
        match offset.checked_add(len) {
            // SAFETY: inside of the block.
            Some(end) if end <= self.len => Ok(unsafe { self.data.add(offset) }),
            end => Err(CudaError::Region { found: self.len, needed: end.unwrap_or(usize::MAX) }),
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.inner.bind().is_ok() {
            // SAFETY: nobody else has it.
            unsafe { (self.inner.api.cuMemFreeHost)(self.data.cast()) };
        }
    }
}
