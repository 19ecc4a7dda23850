//! Streams: queues of work.

use std::{
    fmt, ptr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    context::{Context, Inner},
    event::Event,
    ffi::{self, Handle},
    graph::Graph,
    memory::{Pinned, Span},
};
use crate::error::CudaError;

/// How urgent a stream's kernels are when others wait as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// After everything else: refits in the background.
    Low,
    /// Before everything else: runs.
    High,
}

/// A queue of work that is done in order.
pub struct Stream {
    inner: Arc<Inner>,
    handle: Handle,
    owned: bool,
    /// Whether the last kernel is one of ours.
    behind_own: AtomicBool,
}

// SAFETY: the driver's functions may be called from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream({:p})", self.handle)
    }
}

impl Stream {
    /// A stream of its own.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn new(context: &Context, priority: Priority) -> Result<Stream, CudaError> {
        let inner = context.inner.clone();
        inner.bind()?;
        let level = match priority {
            Priority::Low => inner.priorities.0,
            Priority::High => inner.priorities.1,
        };
        let mut handle: Handle = ptr::null_mut();
        // SAFETY: `handle` is written.
        inner.check("cuStreamCreateWithPriority", unsafe {
            (inner.api.cuStreamCreateWithPriority)(&raw mut handle, ffi::STREAM_NON_BLOCKING, level)
        })?;
        Ok(Stream { inner, handle, owned: true, behind_own: AtomicBool::new(false) })
    }

    /// A stream that another library made, by its handle, such as PyTorch's current one.
    ///
    /// # Safety
    /// The handle is a stream of this context, and outlives what is made here.
    pub unsafe fn borrowed(context: &Context, handle: usize) -> Stream {
        Stream {
            inner: context.inner.clone(),
            handle: handle as Handle,
            owned: false,
            behind_own: AtomicBool::new(false),
        }
    }

    /// The handle, for libraries, which may launch kernels of theirs.
    pub(crate) fn raw(&self) -> Handle {
        self.behind_own.store(false, Ordering::Relaxed);
        self.handle
    }

    /// The handle, for a kernel of ours, and whether it comes right behind another one.
    pub(super) fn raw_for_own(&self) -> (Handle, bool) {
        (self.handle, self.behind_own.swap(true, Ordering::Relaxed))
    }

    /// The context that the stream belongs to.
    pub fn context(&self) -> Context {
        Context { inner: self.inner.clone() }
    }

    /// Waits for everything in the stream.
    ///
    /// # Errors
    /// When work failed.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.inner.bind()?;
        // SAFETY: the stream is alive.
        self.inner.check("cuStreamSynchronize", unsafe { (self.inner.api.cuStreamSynchronize)(self.handle) })
    }

    /// What comes after waits for `event` on the device.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn wait(&self, event: &Event) -> Result<(), CudaError> {
        self.inner.bind()?;
        // SAFETY: both are alive.
        self.inner
            .check("cuStreamWaitEvent", unsafe { (self.inner.api.cuStreamWaitEvent)(self.handle, event.raw(), 0) })
    }

    /// Marks the end of what is in the stream.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn record(&self, event: &Event) -> Result<(), CudaError> {
        self.inner.bind()?;
        // SAFETY: both are alive.
        self.inner.check("cuEventRecord", unsafe { (self.inner.api.cuEventRecord)(event.raw(), self.handle) })
    }

    /// Copies from page-locked memory, bytes `from..` of `host`, to all of `to`.
    ///
    /// # Errors
    /// When it is too short, or the driver fails.
    pub fn upload(&self, host: &Pinned, from: usize, to: impl Into<Span>) -> Result<(), CudaError> {
        let to = to.into();
        let source = host.get(from, to.len())?;
        self.inner.bind()?;
        // SAFETY: the range was checked. The caller keeps `host` until the copy is over, as the module says.
        self.inner.check("cuMemcpyHtoDAsync", unsafe {
            (self.inner.api.cuMemcpyHtoDAsync_v2)(to.address(), source.cast(), to.len(), self.handle)
        })
    }

    /// Copies from memory of the host that is not page-locked: returns when it has been read.
    ///
    /// # Errors
    /// When it is of another size than `to`, or the driver fails.
    pub fn upload_slice(&self, host: &[u8], to: impl Into<Span>) -> Result<(), CudaError> {
        let to = to.into();
        to.expect(host.len())?;
        self.inner.bind()?;
        // SAFETY: both have this length. The wait ends the borrow: memory that happens to be page-locked is read later.
        self.inner.check("cuMemcpyHtoDAsync", unsafe {
            (self.inner.api.cuMemcpyHtoDAsync_v2)(to.address(), host.as_ptr().cast(), host.len(), self.handle)
        })?;
        self.synchronize()
    }

    /// Copies from page-locked memory of the caller, who keeps it as it is until the copy is over.
    ///
    /// # Errors
    /// When it is of another size than `to`, or the driver fails.
    pub fn upload_locked(&self, host: &[u8], to: impl Into<Span>) -> Result<(), CudaError> {
        let to = to.into();
        to.expect(host.len())?;
        self.inner.bind()?;
        // SAFETY: both have this length. The caller keeps `host` until the copy is over, as the module says.
        self.inner.check("cuMemcpyHtoDAsync", unsafe {
            (self.inner.api.cuMemcpyHtoDAsync_v2)(to.address(), host.as_ptr().cast(), host.len(), self.handle)
        })
    }

    /// Copies to page-locked memory, bytes `at..` of `host`.
    ///
    /// # Errors
    /// When it is too short, or the driver fails.
    pub fn download(&self, from: impl Into<Span>, host: &Pinned, at: usize) -> Result<(), CudaError> {
        let from = from.into();
        let to = host.get(at, from.len())?;
        self.inner.bind()?;
        // SAFETY: the range was checked. The caller keeps `host` until the copy is over, as the module says.
        self.inner.check("cuMemcpyDtoHAsync", unsafe {
            (self.inner.api.cuMemcpyDtoHAsync_v2)(to.cast(), from.address(), from.len(), self.handle)
        })
    }

    /// Copies to memory of the host, and waits for it.
    ///
    /// # Errors
    /// When it is of another size than `from`, or the driver fails.
    pub fn download_slice(&self, from: impl Into<Span>, host: &mut [u8]) -> Result<(), CudaError> {
        let from = from.into();
        from.expect(host.len())?;
        self.inner.bind()?;
        // SAFETY: both have this length, and the wait below ends the borrow.
        self.inner.check("cuMemcpyDtoHAsync", unsafe {
            (self.inner.api.cuMemcpyDtoHAsync_v2)(host.as_mut_ptr().cast(), from.address(), host.len(), self.handle)
        })?;
        self.synchronize()
    }

    /// Copies on the device, or between devices.
    ///
    /// # Errors
    /// When the sizes differ, or the driver fails.
    pub fn copy(&self, from: impl Into<Span>, to: impl Into<Span>) -> Result<(), CudaError> {
        let from = from.into();
        let to = to.into();
        to.expect(from.len())?;
        self.inner.bind()?;
        // SAFETY: both have this length.
        self.inner.check("cuMemcpyAsync", unsafe {
            (self.inner.api.cuMemcpyAsync)(to.address(), from.address(), from.len(), self.handle)
        })
    }

    /// Sets every byte.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn fill(&self, region: impl Into<Span>, value: u8) -> Result<(), CudaError> {
        let region = region.into();
        self.inner.bind()?;
        // SAFETY: the region has this length.
        self.inner.check("cuMemsetD8Async", unsafe {
            (self.inner.api.cuMemsetD8Async)(region.address(), value, region.len(), self.handle)
        })
    }

    /// Captures what `work` puts into the stream as a graph, in place of doing it.
    ///
    /// # Errors
    /// What `work` returns, or when something cannot be captured.
    pub fn capture<E: From<CudaError>>(&self, work: impl FnOnce() -> Result<(), E>) -> Result<Graph, E> {
        self.inner.bind()?;
        // SAFETY: the stream is alive.
        self.inner.check("cuStreamBeginCapture", unsafe {
            (self.inner.api.cuStreamBeginCapture_v2)(self.handle, ffi::CAPTURE_THREAD_LOCAL)
        })?;
        let done = work();
        let mut graph: Handle = ptr::null_mut();
        // SAFETY: `graph` is written; the capture began above.
        let ended = self
            .inner
            .check("cuStreamEndCapture", unsafe { (self.inner.api.cuStreamEndCapture)(self.handle, &raw mut graph) });
        let graph = Graph::new(self.inner.clone(), graph);
        done?;
        ended?;
        Ok(graph)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.owned && self.inner.bind().is_ok() {
            // SAFETY: nobody else has the handle. The driver finishes what is in the stream.
            unsafe { (self.inner.api.cuStreamDestroy_v2)(self.handle) };
        }
    }
}
