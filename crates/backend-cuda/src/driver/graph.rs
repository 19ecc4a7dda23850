//! CUDA graphs: captured work that one call launches.

use std::{ptr, sync::Arc};

use super::{
    context::Inner,
    ffi::{self, Handle},
    stream::Stream,
};
use crate::error::CudaError;

/// Captured work.
pub struct Graph {
    inner: Arc<Inner>,
    handle: Handle,
}

// SAFETY: a graph is only read after its capture, and moved between threads as a whole.
unsafe impl Send for Graph {}

impl Graph {
    pub(super) fn new(inner: Arc<Inner>, handle: Handle) -> Graph {
        Graph { inner, handle }
    }

    /// Makes it ready to be launched.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn instantiate(&self) -> Result<Executable, CudaError> {
        self.inner.bind()?;
        let mut handle: Handle = ptr::null_mut();
        // SAFETY: `handle` is written; the graph is alive.
        self.inner.check("cuGraphInstantiate", unsafe {
            (self.inner.api.cuGraphInstantiateWithFlags)(&raw mut handle, self.handle, 0)
        })?;
        Ok(Executable { inner: self.inner.clone(), handle })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if !self.handle.is_null() && self.inner.bind().is_ok() {
            // SAFETY: nobody else has the handle; executables do not need it.
            unsafe { (self.inner.api.cuGraphDestroy)(self.handle) };
        }
    }
}

/// How an update of an executable ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Updated {
    /// The next launch does the new work.
    Done,
    /// The graphs differ in more than arguments: instantiate the new one. The executable is as it was.
    Differs,
}

/// A graph ready to be launched. One executable never runs beside itself.
pub struct Executable {
    inner: Arc<Inner>,
    handle: Handle,
}

// SAFETY: the driver allows use from any thread, one at a time, which `&mut` in `update` and the caller's order ensure.
unsafe impl Send for Executable {}
// SAFETY: launches from several threads are ordered by the driver.
unsafe impl Sync for Executable {}

impl Executable {
    /// Puts the work of `graph` in place of what is there; launches that run keep the old.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn update(&mut self, graph: &Graph) -> Result<Updated, CudaError> {
        self.inner.bind()?;
        let mut info = ffi::UpdateInfo { result: 0, error_node: ptr::null_mut(), error_from_node: ptr::null_mut() };
        // SAFETY: `info` is written; both are alive.
        let status = unsafe { (self.inner.api.cuGraphExecUpdate_v2)(self.handle, graph.handle, &raw mut info) };
        // CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE
        if status == 910 {
            return Ok(Updated::Differs);
        }
        self.inner.check("cuGraphExecUpdate", status)?;
        Ok(Updated::Done)
    }

    /// Moves what launches need to the device ahead of the first one.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn upload(&self, stream: &Stream) -> Result<(), CudaError> {
        self.inner.bind()?;
        // SAFETY: both are alive.
        self.inner.check("cuGraphUpload", unsafe { (self.inner.api.cuGraphUpload)(self.handle, stream.raw()) })
    }

    /// Puts all of the work into the stream.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn launch(&self, stream: &Stream) -> Result<(), CudaError> {
        self.inner.bind()?;
        // SAFETY: both are alive.
        self.inner.check("cuGraphLaunch", unsafe { (self.inner.api.cuGraphLaunch)(self.handle, stream.raw()) })
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        if self.inner.bind().is_ok() {
            // SAFETY: nobody else has the handle; the driver keeps what runs until it is over.
            unsafe { (self.inner.api.cuGraphExecDestroy)(self.handle) };
        }
    }
}
