//! DLPack's C exchange API: what a tensor is, told in one call that makes no objects of Python.
//!
//! A type offers it as `__dlpack_c_exchange_api__`; PyTorch does so from 2.10 on. See `dlpack.h`, version 1.3.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, c_int, c_void},
    slice,
};

use pyo3::{ffi, prelude::*, types::PyCapsule};
use regraft::DType;

use crate::dlpack::DlTensor;

const NAME: &CStr = c"dlpack_exchange_api";
/// The version of the table whose layout this is.
const MAJOR: u32 = 1;

type TensorFrom = unsafe extern "C" fn(*mut c_void, *mut DlTensor) -> c_int;

/// The first of the functions that a type offers.
#[repr(C)]
struct Api {
    version: [u32; 2],
    /// That of an earlier version, or null.
    earlier: *const Api,
    /// For tensors that are passed on.
    _others: [*const c_void; 3],
    tensor_from: Option<TensorFrom>,
}

/// What tells of tensors of one type.
pub(crate) struct Exchange(TensorFrom);

/// A dense tensor.
pub(crate) struct Seen {
    /// Type and number, as DLPack has them.
    pub(crate) device: (i32, i32),
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    pub(crate) address: usize,
}

impl Exchange {
    /// That of a type, where it offers one.
    pub(crate) fn of(class: &Bound<'_, PyAny>) -> Option<Exchange> {
        let capsule = class.getattr("__dlpack_c_exchange_api__").ok()?.cast_into::<PyCapsule>().ok()?;
        // SAFETY: a capsule of another name gives null and sets an exception, which is taken back.
        let mut api: *const Api = unsafe {
            let api = ffi::PyCapsule_GetPointer(capsule.as_ptr(), NAME.as_ptr());
            if api.is_null() {
                ffi::PyErr_Clear();
            }
            api.cast()
        };
        // SAFETY: tables live as long as the process. All versions begin with their number and the one before; a table of this
        // major version has this layout.
        unsafe {
            while !api.is_null() && (*api).version[0] > MAJOR {
                api = (*api).earlier;
            }
            if api.is_null() || (*api).version[0] != MAJOR { None } else { (*api).tensor_from.map(Exchange) }
        }
    }

    /// What an object of the type is; `None` where it is no dense tensor of a dtype that both sides know, or cannot be told: the
    /// longer way finds out why.
    pub(crate) fn look(&self, object: &Bound<'_, PyAny>) -> Option<Seen> {
        let mut tensor = DlTensor::unwritten();
        // SAFETY: the object is of the type, the interpreter is attached, and `tensor` is written. What fails sets an exception,
        // which is taken back.
        unsafe {
            if (self.0)(object.as_ptr().cast(), &raw mut tensor) != 0 {
                ffi::PyErr_Clear();
                return None;
            }
        }
        // SAFETY: sizes and strides are the object's, and stay while nothing else is done with it.
        let (sizes, strides) = unsafe { (axes(tensor.shape, tensor.ndim)?, axes(tensor.strides, tensor.ndim)?) };
        let shape = sizes.iter().map(|&size| usize::try_from(size).ok()).collect::<Option<Vec<usize>>>()?;
        let has_memory = !tensor.data.is_null() || shape.contains(&0);
        let address = tensor.data.expose_provenance().checked_add(usize::try_from(tensor.byte_offset).ok()?)?;
        let dtype = tensor.dtype.known()?;
        let device = (tensor.device.kind, tensor.device.id);
        (has_memory && is_dense(sizes, strides)).then_some(Seen { device, dtype, shape, address })
    }
}

/// # Safety
/// As many numbers lie there for as long as the result is used, unless it is null.
unsafe fn axes<'a>(first: *const i64, count: i32) -> Option<&'a [i64]> {
    match usize::try_from(count).ok()? {
        0 => Some(&[]),
        _ if first.is_null() => None,
        // SAFETY: the caller's promise.
        count => Some(unsafe { slice::from_raw_parts(first, count) }),
    }
}

/// Whether elements are neighbors in the order of their indices.
fn is_dense(sizes: &[i64], strides: &[i64]) -> bool {
    let follows = |step: i64, (&size, &stride): (&i64, &i64)| match size {
        1 => Some(step),
        _ => (stride == step).then(|| step.checked_mul(size)).flatten(),
    };
    sizes.contains(&0) || sizes.iter().zip(strides).rev().try_fold(1, follows).is_some()
}
