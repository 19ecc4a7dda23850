//! Runs over tensors of PyTorch on the engine's GPU: nothing is copied through the host, and nothing waits.
//!
//! Results are PyTorch's own tensors, so that memory of both sides is freed in the order of PyTorch's streams.
#![allow(unsafe_code)]

use pyo3::{
    prelude::*,
    types::{PyDict, PyList, PyTuple},
};
use regraft::{DType, DeviceName, ForeignQueue, Input, Lent, RuntimeError, Tensor};

use crate::{
    error::{Class, IntoPyErr},
    exit::detached,
    memory::{Dense, Elsewhere, Torch, tensor_of},
};

/// Runs of a program: what they give, and how they are done.
pub(crate) trait Runs: Sync {
    /// Types of the outputs for these inputs.
    fn output_types(&self, inputs: &[Input]) -> Result<Vec<(DType, Vec<usize>)>, RuntimeError>;

    /// One run.
    fn run(&self, inputs: &[Input], outputs: &mut [Lent], queue: ForeignQueue) -> Result<(), RuntimeError>;
}

/// The GPU that a model runs on.
pub(crate) fn gpu_of(model: &regraft::Model) -> Option<u32> {
    match model.device().name().parse() {
        Ok(DeviceName::Cuda(index)) => Some(index),
        _ => None,
    }
}

/// The outputs of a run on GPU `index` as tensors of PyTorch there; `None` when no input is a tensor of PyTorch on a GPU.
pub(crate) fn run<'py>(
    py: Python<'py>,
    index: u32,
    inputs: &Bound<'py, PyAny>,
    runs: &impl Runs,
) -> PyResult<Option<Bound<'py, PyList>>> {
    let Some(torch) = Torch::loaded(py)? else { return Ok(None) };
    // What can be gone through once only is the caller's to go through.
    if !inputs.is_instance_of::<PyList>() && !inputs.is_instance_of::<PyTuple>() {
        return Ok(None);
    }
    let objects = inputs.try_iter()?.collect::<PyResult<Vec<_>>>()?;
    let mut on_gpu = false;
    for object in &objects {
        on_gpu = on_gpu || torch.is_on_gpu(object)?;
    }
    if !on_gpu {
        return Ok(None);
    }
    let place = PyDict::new(py);
    place.set_item("device", torch.gpu(py, index)?)?;
    // Held until the run was put behind the work on PyTorch's stream; from there on that stream's order keeps them.
    let mut held = Vec::new();
    let mut given = Vec::new();
    for object in &objects {
        if torch.is_on_gpu(object)? {
            let here = object.call_method("to", (), Some(&place))?;
            let dense = torch.dense(&here)?;
            // SAFETY: PyTorch says that a dense tensor of this type begins there on this GPU. It is held while the call lasts,
            // and PyTorch's stream, in whose order its memory is used again, waits for the run.
            given.push(unsafe { lent(&dense)? });
            held.push(dense.object);
        } else {
            given.push(Input::Host(tensor_of(object, Elsewhere::Refused)?));
        }
    }
    let types = runs.output_types(&given).map_err(IntoPyErr::into_py)?;
    let outputs = PyList::empty(py);
    let mut memory = Vec::new();
    for (dtype, shape) in types {
        let tensor = torch.empty(py, dtype, shape, &place)?;
        let dense = torch.dense(&tensor)?;
        let len = byte_len(&dense)?;
        // SAFETY: as above; it was made just now, on the stream that waits for the run.
        memory.push(unsafe { Lent::new(dense.address as u64, len) });
        outputs.append(tensor)?;
    }
    // SAFETY: PyTorch's current stream on this GPU, which this thread keeps for the call.
    let queue = unsafe { ForeignQueue::new(torch.current_stream(py, index)?) };
    detached(py, || runs.run(&given, &mut memory, queue)).map_err(IntoPyErr::into_py)?;
    drop(held);
    Ok(Some(outputs))
}

/// # Safety
/// As [`Lent::new`], of the memory of the tensor.
unsafe fn lent(dense: &Dense<'_>) -> PyResult<Input> {
    let len = byte_len(dense)?;
    // SAFETY: the caller's promise.
    let memory = unsafe { Lent::new(dense.address as u64, len) };
    Ok(Input::Lent { dtype: dense.dtype, shape: dense.shape.clone(), memory })
}

fn byte_len(dense: &Dense<'_>) -> PyResult<usize> {
    Tensor::byte_len(dense.dtype, &dense.shape).map_err(|error| Class::Input.error(error.to_string()))
}
