//! cuDNN: convolutions with bias, residual and activation as one operation graph.

mod conv;
mod descriptor;
mod ffi;

use std::{
    ffi::{CStr, c_char},
    path::Path,
    ptr,
    sync::{Arc, Mutex, PoisonError},
};

pub use self::conv::{ConvPlan, ConvProblem};
use self::ffi::Handle;
use crate::{
    driver::{Context, Priority, Stream},
    error::CudaError,
    library::{LibraryKind, Lookup, Version},
};

/// cuDNN with a handle.
#[derive(Clone)]
pub struct Dnn {
    inner: Arc<Inner>,
}

struct Inner {
    api: ffi::Cudnn,
    /// The handle has a stream, so that one thread uses it at a time.
    handle: Mutex<HandleCell>,
    /// The handle's stream while nobody uses it.
    idle: Stream,
    version: Version,
    context: Context,
}

struct HandleCell(Handle);

// SAFETY: the handle may be used from any thread, one at a time, which the lock ensures.
unsafe impl Send for HandleCell {}

impl Dnn {
    /// The library and its version, whatever it is.
    pub(crate) fn found(lookup: &Lookup) -> Result<(ffi::Cudnn, Version), CudaError> {
        let api = ffi::Cudnn::load(lookup.open(LibraryKind::Cudnn)?)?;
        // SAFETY: the function takes nothing.
        let number = u32::try_from(unsafe { (api.cudnnGetVersion)() }).unwrap_or(0);
        Ok((api, Version([number / 10_000, number % 10_000 / 100, number % 100])))
    }

    /// Opens cuDNN for a device.
    ///
    /// # Errors
    /// When it is missing, too old, or cannot start.
    pub fn open(lookup: &Lookup, context: &Context) -> Result<Dnn, CudaError> {
        context.bind()?;
        let (api, version) = Dnn::found(lookup)?;
        api.opened.require(version)?;
        let mut handle: Handle = ptr::null_mut();
        // SAFETY: `handle` is written; a context is current.
        let code = unsafe { (api.cudnnCreate)(&raw mut handle) };
        if code != 0 {
            return Err(CudaError::Status { library: "cuDNN", call: "cudnnCreate", code });
        }
        let handle = Mutex::new(HandleCell(handle));
        let idle = Stream::new(context, Priority::High)?;
        Ok(Dnn { inner: Arc::new(Inner { api, handle, idle, version, context: context.clone() }) })
    }

    /// The library's version.
    pub fn version(&self) -> Version {
        self.inner.version
    }

    /// Where it was found.
    pub fn path(&self) -> &Path {
        self.inner.api.opened.path()
    }
}

impl Inner {
    fn check(&self, call: &'static str, code: i32) -> Result<(), CudaError> {
        if code == 0 {
            return Ok(());
        }
        let mut text = [0 as c_char; 512];
        // SAFETY: the buffer has this size, and the library ends the text within it.
        let text = unsafe {
            (self.api.cudnnGetLastErrorString)(text.as_mut_ptr(), 511);
            CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned()
        };
        tracing::debug!(call, code, text, "cuDNN refused");
        Err(CudaError::Status { library: "cuDNN", call, code })
    }

    /// Calls `work` with the handle set to `stream`.
    ///
    /// The handle goes back to its idle stream: it has an event, which the library records in every stream that it is set to.
    /// Left in a stream that is being captured, the event would be a part of that capture, and the driver crashes when another
    /// thread records the event while the capture ends.
    fn with_handle<T>(
        &self,
        stream: Option<&Stream>,
        work: impl FnOnce(Handle) -> Result<T, CudaError>,
    ) -> Result<T, CudaError> {
        self.context.bind()?;
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(stream) = stream else { return work(handle.0) };
        // SAFETY: the handle and both streams are alive.
        let set = |to: &Stream| self.check("cudnnSetStream", unsafe { (self.api.cudnnSetStream)(handle.0, to.raw()) });
        let worked = set(stream).and_then(|()| work(handle.0));
        set(&self.idle).and(worked)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
            // SAFETY: nobody else has the handle.
            unsafe { (self.api.cudnnDestroy)(handle.0) };
        }
    }
}
