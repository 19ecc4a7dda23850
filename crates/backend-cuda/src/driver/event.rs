//! Events: marks in a stream that can be waited for.

use std::{ffi::c_uint, ptr, sync::Arc};

use super::{
    context::{Context, Inner},
    ffi::{self, Handle},
};
use crate::error::CudaError;

/// A mark in a stream.
pub struct Event {
    inner: Arc<Inner>,
    handle: Handle,
}

// SAFETY: the driver's functions may be called from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// An event; done until it is recorded.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn new(context: &Context) -> Result<Event, CudaError> {
        Event::with(context, ffi::EVENT_DISABLE_TIMING)
    }

    /// An event that takes the time as well.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn timed(context: &Context) -> Result<Event, CudaError> {
        Event::with(context, 0)
    }

    fn with(context: &Context, flags: c_uint) -> Result<Event, CudaError> {
        let inner = context.inner.clone();
        inner.bind()?;
        let mut handle: Handle = ptr::null_mut();
        // SAFETY: `handle` is written.
        inner.check("cuEventCreate", unsafe { (inner.api.cuEventCreate)(&raw mut handle, flags) })?;
        Ok(Event { inner, handle })
    }

    pub(super) fn raw(&self) -> Handle {
        self.handle
    }

    /// Whether all work before it is done.
    ///
    /// # Errors
    /// When that work failed.
    pub fn is_done(&self) -> Result<bool, CudaError> {
        self.inner.bind()?;
        // SAFETY: the event is alive.
        match unsafe { (self.inner.api.cuEventQuery)(self.handle) } {
            ffi::ERROR_NOT_READY => Ok(false),
            status => self.inner.check("cuEventQuery", status).map(|()| true),
        }
    }

    /// Waits until all work before it is done.
    ///
    /// # Errors
    /// When that work failed.
    pub fn wait(&self) -> Result<(), CudaError> {
        self.inner.bind()?;
        // SAFETY: the event is alive.
        self.inner.check("cuEventSynchronize", unsafe { (self.inner.api.cuEventSynchronize)(self.handle) })
    }

    /// Milliseconds from `start` to this event; both are timed and done.
    ///
    /// # Errors
    /// When they are not.
    pub fn milliseconds_since(&self, start: &Event) -> Result<f32, CudaError> {
        self.inner.bind()?;
        let mut time = 0.0f32;
        // SAFETY: `time` is written; both events are alive.
        self.inner.check("cuEventElapsedTime", unsafe {
            (self.inner.api.cuEventElapsedTime)(&raw mut time, start.handle, self.handle)
        })?;
        Ok(time)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.inner.bind().is_ok() {
            // SAFETY: nobody else has the handle.
            unsafe { (self.inner.api.cuEventDestroy_v2)(self.handle) };
        }
    }
}
