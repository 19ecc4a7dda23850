//! Outputs: memory of Regraft's that Python owns.

use pyo3::{prelude::*, types::PyDict};
use regraft::{DType, Tensor};

use crate::{dlpack, error::Class};

/// A dense array in memory of its own. NumPy, PyTorch and everything else that supports DLPack take it over without a copy:
/// `numpy.from_dlpack(array)`.
#[pyclass(frozen, module = "regraft")]
pub(crate) struct Array(pub(crate) Tensor);

#[pymethods]
impl Array {
    /// Element type: `f32`, `f16`, `bf16`, `f64`, `i64`, `i32`, `i16`, `i8`, `u8`, `u16`, `u32`, `u64` or `bool`.
    #[getter]
    fn dtype(&self) -> &'static str {
        self.0.dtype().name()
    }

    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, pyo3::types::PyTuple>> {
        pyo3::types::PyTuple::new(py, self.0.shape())
    }

    #[getter]
    fn nbytes(&self) -> usize {
        self.0.bytes().len()
    }

    /// The same memory as an array of bytes: for values of a type that NumPy does not have.
    fn as_bytes(&self) -> PyResult<Array> {
        let buffer = self.0.buffer().clone();
        let tensor = Tensor::new(DType::U8, vec![buffer.len()], buffer);
        tensor.map(Array).map_err(|error| Class::Regraft.error(error.to_string()))
    }

    #[pyo3(signature = (**options))]
    fn __dlpack__<'py>(&self, py: Python<'py>, options: Option<&Bound<'py, PyDict>>) -> PyResult<Bound<'py, PyAny>> {
        let version = options.map(|o| o.get_item("max_version")).transpose()?.flatten();
        let version: Option<(u32, u32)> = version.map(|v| v.extract()).transpose()?.flatten();
        match version {
            Some((major, _)) if major >= 1 => dlpack::versioned_capsule(py, self.0.clone()),
            _ => dlpack::capsule(py, self.0.clone()),
        }
    }

    /// What `numpy.asarray` takes: the same memory, unless another dtype or a copy is asked for.
    #[pyo3(signature = (dtype=None, copy=None))]
    fn __array__<'py>(
        slf: &Bound<'py, Self>,
        dtype: Option<&Bound<'py, PyAny>>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let numpy = slf.py().import("numpy")?;
        let array = numpy.call_method1("from_dlpack", (slf,)).map_err(|error| {
            Class::Regraft.error(format!("NumPy has no type for {}: {error}", slf.get().0.dtype().name()))
        })?;
        let array = match dtype {
            Some(dtype) => array.call_method1("astype", (dtype,))?,
            None => array,
        };
        if copy == Some(true) { array.call_method0("copy") } else { Ok(array) }
    }

    /// The CPU.
    fn __dlpack_device__(&self) -> (i32, i32) {
        dlpack::CPU
    }

    fn __repr__(&self) -> String {
        format!("regraft.Array({}{:?})", self.0.dtype(), self.0.shape())
    }
}
