//! Tensors as C sees them: in from the caller's memory, out as views of what a run returned.

use std::{
    ffi::{CString, c_char, c_void},
    ptr::NonNull,
    sync::Arc,
};

use regraft::{BorrowedBytes, Buffer, DType, StateDict, Tensor};

use crate::{
    failure::{Failure, RegraftStatus, guarded, quiet},
    pointers::{Place, elements, free, text},
};

/// A dense tensor, row by row. One that is given to a function stays the caller's: it is read during the call, and nothing of it is
/// kept. What regraft_outputs_get writes belongs to the outputs, and is valid until they are freed.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RegraftTensor {
    /// The name of an input, an output or a weight. The names of all inputs may be NULL: then they are in the program's order.
    pub name: *const c_char,
    /// The type of the elements: "f64", "f32", "f16", "bf16", "i64", "i32", "i16", "i8", "u64", "u32", "u16", "u8" or "bool" (one
    /// byte, 0 or 1).
    pub dtype: *const c_char,
    /// The sizes, as many as `rank`; may be NULL for a rank of 0.
    pub shape: *const usize,
    /// The number of sizes.
    pub rank: usize,
    /// The elements; may be NULL when there are none.
    pub data: *const c_void,
    /// The number of bytes at `data`, which is compared with the shape.
    pub byte_count: usize,
}

/// The outputs of a run. They do not change, and may be read from several threads.
pub struct RegraftOutputs(Vec<Output>);

struct Output {
    name: CString,
    dtype: CString,
    tensor: Tensor,
}

impl RegraftOutputs {
    pub(crate) fn new(outputs: Vec<Tensor>, names: &[CString]) -> Self {
        let output = |(tensor, name): (Tensor, &CString)| {
            let dtype = CString::new(tensor.dtype().name()).expect("names of dtypes contain no zero");
            Output { name: name.clone(), dtype, tensor }
        };
        RegraftOutputs(outputs.into_iter().zip(names).map(output).collect())
    }
}

/// The number of outputs; 0 for NULL.
///
/// # Safety
/// `outputs` is NULL, or comes from regraft_model_run and was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regraft_outputs_count(outputs: *const RegraftOutputs) -> usize {
    // SAFETY: the caller's promise.
    quiet(0, || unsafe { outputs.as_ref() }.map_or(0, |outputs| outputs.0.len()))
}

/// Writes a view of output number `index` to `tensor`. It is valid until the outputs are freed.
///
/// # Safety
/// `outputs` is as for regraft_outputs_count; `tensor` is NULL or can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regraft_outputs_get(
    outputs: *const RegraftOutputs,
    index: usize,
    tensor: *mut RegraftTensor,
) -> RegraftStatus {
    guarded(|| {
        // SAFETY: the caller's promise.
        let place = unsafe { Place::new(tensor, "tensor") }?;
        // SAFETY: the caller's promise.
        let outputs = unsafe { outputs.as_ref() }.ok_or_else(|| Failure::null("outputs"))?;
        let count = outputs.0.len();
        let output = outputs.0.get(index);
        let output = output.ok_or_else(|| {
            Failure::argument(format!("there is no output {index}: there are {count}, counted from 0"))
        })?;
        place.write(RegraftTensor {
            name: output.name.as_ptr(),
            dtype: output.dtype.as_ptr(),
            shape: output.tensor.shape().as_ptr(),
            rank: output.tensor.shape().len(),
            data: output.tensor.bytes().as_ptr().cast(),
            byte_count: output.tensor.byte_count(),
        });
        Ok(())
    })
}

/// Frees outputs, with all views of them; does nothing for NULL.
///
/// # Safety
/// `outputs` is as for regraft_outputs_count, and neither it nor its views are used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regraft_outputs_free(outputs: *mut RegraftOutputs) {
    // SAFETY: the caller's promise.
    quiet((), || unsafe { free(outputs) });
}

/// Tensors that are given, each with its name if it has one. They read the caller's memory.
///
/// # Safety
/// `tensors` is NULL, or valid for `count` of them, whose pointers are NULL or valid for what they state. Nobody writes to any of it
/// before the results are dropped, which is before the call returns.
pub(crate) unsafe fn read_all<'a>(
    tensors: *const RegraftTensor,
    count: usize,
    what: &str,
) -> Result<Vec<(Option<&'a str>, Tensor)>, Failure> {
    // SAFETY: the caller's promise.
    let given: &'a [RegraftTensor] = unsafe { elements(tensors, count, what) }?;
    // SAFETY: the caller's promise.
    let one = |(index, tensor)| unsafe { read(tensor, &format!("{what}[{index}]")) };
    given.iter().enumerate().map(one).collect()
}

/// # Safety
/// As [`read_all`].
unsafe fn read<'a>(given: &'a RegraftTensor, what: &str) -> Result<(Option<&'a str>, Tensor), Failure> {
    let name = if given.name.is_null() {
        None
    } else {
        // SAFETY: the caller's promise.
        Some(unsafe { text(given.name, &format!("{what}.name")) }?)
    };
    // SAFETY: the caller's promise.
    let dtype = unsafe { text(given.dtype, &format!("{what}.dtype")) }?;
    let unknown = || Failure::argument(format!("{what}.dtype: there is no dtype `{dtype}` (\"f32\" is one)"));
    let dtype = DType::from_name(dtype).ok_or_else(unknown)?;
    // SAFETY: the caller's promise.
    let shape = unsafe { elements(given.shape, given.rank, &format!("{what}.shape")) }?;
    let refused = |error: regraft::TensorError| Failure::argument(format!("{what}: {error}"));
    let expected = Tensor::byte_len(dtype, shape).map_err(refused)?;
    if expected != given.byte_count {
        let found = given.byte_count;
        return Err(Failure::argument(format!("{what}: {dtype}{shape:?} takes {expected} bytes, found {found}")));
    }
    // SAFETY: the caller's promise.
    let bytes: &[u8] = unsafe { elements(given.data.cast(), given.byte_count, &format!("{what}.data")) }?;
    if dtype == DType::Bool && bytes.iter().any(|byte| *byte > 1) {
        return Err(Failure::argument(format!("{what}.data: an element of a bool tensor is neither 0 nor 1")));
    }
    // SAFETY: the bytes are there until the call returns, and nobody writes to them before. Nothing keeps them: runs copy their
    // inputs, and a refit copies what stays.
    let bytes = unsafe { BorrowedBytes::new(NonNull::from(bytes).cast(), bytes.len(), Arc::new(())) };
    Ok((name, Tensor::new(dtype, shape.to_vec(), Buffer::Borrowed(bytes)).map_err(refused)?))
}

/// Weights by name, from memory.
///
/// # Safety
/// As [`read_all`].
pub(crate) unsafe fn state_dict(tensors: *const RegraftTensor, count: usize) -> Result<StateDict, Failure> {
    let mut weights = StateDict::new();
    // SAFETY: the caller's promise.
    for (index, (name, tensor)) in unsafe { read_all(tensors, count, "weights") }?.into_iter().enumerate() {
        let name = name.ok_or_else(|| Failure::null(&format!("weights[{index}].name")))?;
        if weights.get(name).is_some() {
            return Err(Failure::argument(format!("two weights are called `{name}`")));
        }
        weights.insert(name, tensor);
    }
    Ok(weights)
}
