//! DLPack: how the memory of a tensor is given away, as <https://dmlc.github.io/dlpack/latest/> lays it out.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, c_void},
    ptr,
};

use pyo3::{ffi, prelude::*};
use regraft::{AlignedVec, DType, Tensor};

/// Device type and number of the CPU.
pub(crate) const CPU: (i32, i32) = (1, 0);
/// Device type of GPUs of NVIDIA.
pub(crate) const CUDA: i32 = 2;

const NAME: &CStr = c"dltensor";
const NAME_VERSIONED: &CStr = c"dltensor_versioned";

#[repr(C)]
pub(crate) struct Device {
    pub(crate) kind: i32,
    pub(crate) id: i32,
}

#[repr(C)]
pub(crate) struct DataType {
    code: u8,
    bits: u8,
    lanes: u16,
}

#[repr(C)]
pub(crate) struct DlTensor {
    pub(crate) data: *mut c_void,
    pub(crate) device: Device,
    pub(crate) ndim: i32,
    pub(crate) dtype: DataType,
    pub(crate) shape: *mut i64,
    pub(crate) strides: *mut i64,
    pub(crate) byte_offset: u64,
}

impl DlTensor {
    /// One that is to be written.
    pub(crate) fn unwritten() -> DlTensor {
        DlTensor {
            data: ptr::null_mut(),
            device: Device { kind: 0, id: 0 },
            ndim: 0,
            dtype: DataType { code: 0, bits: 0, lanes: 0 },
            shape: ptr::null_mut(),
            strides: ptr::null_mut(),
            byte_offset: 0,
        }
    }
}

impl DataType {
    /// The dtype, where it is told without doubt: integers of a byte may hold several of fewer bits.
    pub(crate) fn known(&self) -> Option<DType> {
        if self.lanes != 1 {
            return None;
        }
        Some(match (self.code, self.bits) {
            (2, 16) => DType::F16,
            (2, 32) => DType::F32,
            (2, 64) => DType::F64,
            (4, 16) => DType::BF16,
            (0, 16) => DType::I16,
            (0, 32) => DType::I32,
            (0, 64) => DType::I64,
            (1, 16) => DType::U16,
            (1, 32) => DType::U32,
            (1, 64) => DType::U64,
            (6, 8) => DType::Bool,
            _ => return None,
        })
    }
}

#[repr(C)]
struct Managed {
    tensor: DlTensor,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Managed)>,
}

#[repr(C)]
struct ManagedVersioned {
    version: [u32; 2],
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut ManagedVersioned)>,
    flags: u64,
    tensor: DlTensor,
}

/// What a managed tensor points to.
struct Context {
    /// Owns the bytes.
    _data: AlignedVec,
    shape: Vec<i64>,
    strides: Vec<i64>,
}

/// A capsule `dltensor` that owns the bytes of `tensor`. Who takes it over may write to them.
pub(crate) fn capsule(py: Python<'_>, tensor: Tensor) -> PyResult<Bound<'_, PyAny>> {
    let (context, tensor) = export(tensor);
    let managed = Box::new(Managed { tensor, context: Box::into_raw(context).cast(), deleter: Some(delete) });
    // SAFETY: the name is static, and the destructor frees what nobody took over.
    unsafe { new_capsule(py, Box::into_raw(managed).cast(), NAME, drop_capsule) }
}

/// A capsule `dltensor_versioned`, as [`capsule`] otherwise.
pub(crate) fn versioned_capsule(py: Python<'_>, tensor: Tensor) -> PyResult<Bound<'_, PyAny>> {
    let (context, tensor) = export(tensor);
    let context = Box::into_raw(context).cast();
    let managed =
        Box::new(ManagedVersioned { version: [1, 0], context, deleter: Some(delete_versioned), flags: 0, tensor });
    // SAFETY: as above.
    unsafe { new_capsule(py, Box::into_raw(managed).cast(), NAME_VERSIONED, drop_versioned_capsule) }
}

/// # Safety
/// `destructor` frees `managed`, which is of the type that `name` stands for, unless it was taken over.
unsafe fn new_capsule<'py>(
    py: Python<'py>,
    managed: *mut c_void,
    name: &'static CStr,
    destructor: unsafe extern "C" fn(*mut ffi::PyObject),
) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: the interpreter is attached; the result is a new reference or null with an exception set.
    unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyCapsule_New(managed, name.as_ptr(), Some(destructor))) }
}

fn export(tensor: Tensor) -> (Box<Context>, DlTensor) {
    let dtype = data_type(tensor.dtype());
    let shape: Vec<i64> = tensor.shape().iter().map(|&size| size as i64).collect();
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis].max(1);
    }
    let mut data = tensor.into_owned();
    // Where there are no bytes there is no memory to point to.
    let start = if data.is_empty() { ptr::null_mut() } else { data.bytes_mut().as_mut_ptr().cast() };
    let mut context = Box::new(Context { _data: data, shape, strides });
    let tensor = DlTensor {
        data: start,
        device: Device { kind: CPU.0, id: CPU.1 },
        ndim: context.shape.len() as i32,
        dtype,
        shape: context.shape.as_mut_ptr(),
        strides: context.strides.as_mut_ptr(),
        byte_offset: 0,
    };
    (context, tensor)
}

fn data_type(dtype: DType) -> DataType {
    let code = match dtype {
        DType::I8 | DType::I16 | DType::I32 | DType::I64 => 0,
        DType::U8 | DType::U16 | DType::U32 | DType::U64 => 1,
        DType::F16 | DType::F32 | DType::F64 => 2,
        DType::BF16 => 4,
        DType::Bool => 6,
    };
    DataType { code, bits: dtype.size() as u8 * 8, lanes: 1 }
}

/// # Safety
/// `managed` is one of ours that nobody uses any more.
unsafe extern "C" fn delete(managed: *mut Managed) {
    // SAFETY: both boxes were leaked by `capsule`, and this is called once.
    unsafe {
        let managed = Box::from_raw(managed);
        drop(Box::from_raw(managed.context.cast::<Context>()));
    }
}

/// # Safety
/// As [`delete`].
unsafe extern "C" fn delete_versioned(managed: *mut ManagedVersioned) {
    // SAFETY: as in `delete`.
    unsafe {
        let managed = Box::from_raw(managed);
        drop(Box::from_raw(managed.context.cast::<Context>()));
    }
}

/// # Safety
/// Called by the interpreter for a capsule of [`capsule`].
unsafe extern "C" fn drop_capsule(capsule: *mut ffi::PyObject) {
    // SAFETY: a consumer renames the capsule that it takes over; one that still has its name holds what we put into it.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, NAME.as_ptr()) == 1 {
            delete(ffi::PyCapsule_GetPointer(capsule, NAME.as_ptr()).cast());
        }
    }
}

/// # Safety
/// Called by the interpreter for a capsule of [`versioned_capsule`].
unsafe extern "C" fn drop_versioned_capsule(capsule: *mut ffi::PyObject) {
    // SAFETY: as in `drop_capsule`.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, NAME_VERSIONED.as_ptr()) == 1 {
            delete_versioned(ffi::PyCapsule_GetPointer(capsule, NAME_VERSIONED.as_ptr()).cast());
        }
    }
}
