//! Descriptors of the backend interface.

use std::{ffi::c_void, ptr, sync::Arc};

use super::{
    Inner,
    ffi::{Handle, ty},
};
use crate::error::CudaError;

/// A descriptor, with those that it was made from.
pub(super) struct Descriptor {
    library: Arc<Inner>,
    pub(super) handle: Handle,
}

// SAFETY: descriptors may be used from any thread, one at a time; shared ones are only read.
unsafe impl Send for Descriptor {}
// SAFETY: as above.
unsafe impl Sync for Descriptor {}

impl Descriptor {
    pub(super) fn new(library: &Arc<Inner>, kind: i32) -> Result<Descriptor, CudaError> {
        let mut handle: Handle = ptr::null_mut();
        // SAFETY: `handle` is written.
        library.check("cudnnBackendCreateDescriptor", unsafe {
            (library.api.cudnnBackendCreateDescriptor)(kind, &raw mut handle)
        })?;
        Ok(Descriptor { library: library.clone(), handle })
    }

    fn set<T>(&self, name: i32, ty: i32, values: &[T]) -> Result<(), CudaError> {
        // SAFETY: callers below pair the type's number with the type of the values.
        self.library.check("cudnnBackendSetAttribute", unsafe {
            (self.library.api.cudnnBackendSetAttribute)(
                self.handle,
                name,
                ty,
                values.len() as i64,
                values.as_ptr().cast::<c_void>(),
            )
        })
    }

    pub(super) fn numbers(&self, name: i32, values: &[i64]) -> Result<(), CudaError> {
        self.set(name, ty::INT64, values)
    }

    /// A value of one of the library's enumerations, whose number is `ty`.
    pub(super) fn choice(&self, name: i32, ty: i32, value: i32) -> Result<(), CudaError> {
        self.set(name, ty, &[value])
    }

    pub(super) fn boolean(&self, name: i32, value: bool) -> Result<(), CudaError> {
        self.set(name, ty::BOOLEAN, &[u8::from(value)])
    }

    pub(super) fn float(&self, name: i32, value: f32) -> Result<(), CudaError> {
        self.set(name, ty::FLOAT, &[value])
    }

    pub(super) fn double(&self, name: i32, value: f64) -> Result<(), CudaError> {
        self.set(name, ty::DOUBLE, &[value])
    }

    pub(super) fn library_handle(&self, name: i32, value: Handle) -> Result<(), CudaError> {
        self.set(name, ty::HANDLE, &[value])
    }

    pub(super) fn pointers(&self, name: i32, values: &[u64]) -> Result<(), CudaError> {
        self.set(name, ty::VOID_PTR, values)
    }

    pub(super) fn descriptors(&self, name: i32, values: &[&Descriptor]) -> Result<(), CudaError> {
        let handles: Vec<Handle> = values.iter().map(|d| d.handle).collect();
        self.set(name, ty::DESCRIPTOR, &handles)
    }

    pub(super) fn finalize(&self) -> Result<(), CudaError> {
        // SAFETY: the descriptor is alive.
        self.library.check("cudnnBackendFinalize", unsafe { (self.library.api.cudnnBackendFinalize)(self.handle) })
    }

    fn get<T>(&self, name: i32, ty: i32, values: &mut [T]) -> Result<usize, CudaError> {
        let mut count = 0i64;
        // SAFETY: the array has room for what is asked for; callers below pair types and numbers.
        self.library.check("cudnnBackendGetAttribute", unsafe {
            (self.library.api.cudnnBackendGetAttribute)(
                self.handle,
                name,
                ty,
                values.len() as i64,
                &raw mut count,
                values.as_mut_ptr().cast::<c_void>(),
            )
        })?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    pub(super) fn number(&self, name: i32) -> Result<i64, CudaError> {
        let mut value = [0i64];
        self.get(name, ty::INT64, &mut value)?;
        Ok(value[0])
    }

    pub(super) fn choices(&self, name: i32, ty: i32) -> Result<Vec<i32>, CudaError> {
        let mut values = vec![0i32; 32];
        let count = self.get(name, ty, &mut values)?;
        values.truncate(count);
        Ok(values)
    }

    /// Fills `into` with descriptors of the attribute; the number that there are.
    pub(super) fn fill(&self, name: i32, into: &[Descriptor]) -> Result<usize, CudaError> {
        let mut handles: Vec<Handle> = into.iter().map(|d| d.handle).collect();
        self.get(name, ty::DESCRIPTOR, &mut handles)
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: nobody else has the handle.
        unsafe { (self.library.api.cudnnBackendDestroyDescriptor)(self.handle) };
    }
}
