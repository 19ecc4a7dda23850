//! Inputs: the memory of tensors of PyTorch, NumPy and others, read where it is.
#![allow(unsafe_code)]

use std::{
    ptr::{self, NonNull},
    sync::Arc,
};

use pyo3::{
    prelude::*,
    sync::PyOnceLock,
    types::{PyDict, PyString, PyTuple},
};
use regraft::{BorrowedBytes, Buffer, DType, DeviceName, RemoteBytes, Tensor};

use crate::{
    array::Array,
    dlpack,
    error::Class,
    exchange::{Exchange, Seen},
};

/// What becomes of tensors of PyTorch in memory of a GPU.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Elsewhere {
    /// They are an error that says so: a call of an engine on the CPU would copy them each time.
    Refused,
    /// They are copied to the host; arrays of NumPy in the other order of bytes are copied, too.
    Copied,
}

/// A tensor over the memory of a `torch.Tensor`, a `numpy.ndarray` or anything with `__dlpack__`, which it keeps alive. What
/// is not dense is made dense first. Nobody may write to it while a call uses it; see [`borrow`].
pub(crate) fn tensor_of(object: &Bound<'_, PyAny>, elsewhere: Elsewhere) -> PyResult<Tensor> {
    if let Some(torch) = Torch::loaded(object.py())?
        && object.is_instance(torch.tensor.bind(object.py()))?
    {
        return torch.tensor_of(object, elsewhere);
    }
    if let Ok(array) = object.cast::<Array>() {
        return Ok(array.get().0.clone());
    }
    let numpy = Numpy::get(object.py())?;
    if object.is_instance(numpy.array.bind(object.py()))? {
        return numpy.tensor_of(object, elsewhere);
    }
    if object.hasattr(pyo3::intern!(object.py(), "__dlpack__"))? {
        return numpy.tensor_of(&numpy.from_dlpack.bind(object.py()).call1((object,))?, elsewhere);
    }
    if object.hasattr(pyo3::intern!(object.py(), "__float__"))? {
        return numpy.tensor_of(&numpy.as_array.bind(object.py()).call1((object,))?, elsewhere);
    }
    let found = object.get_type().qualname()?;
    Err(Class::Input.error(format!("expected a tensor (PyTorch, NumPy or DLPack), found {found}")))
}

/// GPUs of PyTorch's whose tensors were taken where they are: what makes these is to be waited for.
#[derive(Default)]
pub(crate) struct Gpus(Vec<(u32, Arc<str>)>);

impl Gpus {
    /// As [`tensor_of`], of a weight: one in memory of a GPU stays there until it is read on the host. Nothing of it may be read
    /// before [`Gpus::wait`]. Complex numbers are read as pairs.
    pub(crate) fn weight_of(&mut self, object: &Bound<'_, PyAny>) -> PyResult<Tensor> {
        let Some(torch) = Torch::loaded(object.py())? else { return tensor_of(object, Elsewhere::Copied) };
        let seen = torch.look(object)?;
        // What can be told in one call is not complex.
        let pairs = if seen.is_some() { None } else { torch.pairs_of(object)? };
        let object = pairs.as_ref().unwrap_or(object);
        match torch.remote(object, seen)? {
            Some((index, dense)) => remote(self.named(index), dense),
            None => tensor_of(object, Elsewhere::Copied),
        }
    }

    /// The name of a GPU, which is to be waited for.
    fn named(&mut self, index: u32) -> Arc<str> {
        if let Some((_, name)) = self.0.iter().find(|(known, _)| *known == index) {
            return name.clone();
        }
        let name: Arc<str> = DeviceName::Cuda(index).to_string().into();
        self.0.push((index, name.clone()));
        name
    }

    /// Waits for what makes the tensors: the current streams.
    pub(crate) fn wait(self, py: Python<'_>) -> PyResult<()> {
        for (index, _) in self.0 {
            let stream = py.import("torch.cuda")?.call_method1("current_stream", (index,))?;
            stream.call_method0("synchronize")?;
        }
        Ok(())
    }
}

/// Tensors of a sequence, of a `.npy` or of the arrays of a `.npz`, in their order.
pub(crate) fn tensors_of(objects: &Bound<'_, PyAny>, elsewhere: Elsewhere) -> PyResult<Vec<Tensor>> {
    if is_path(objects)? {
        let loaded = loaded(objects)?;
        return match loaded.call_method0("values") {
            Ok(arrays) => arrays.try_iter()?.map(|array| tensor_of(&array?, elsewhere)).collect(),
            Err(_) => Ok(vec![tensor_of(&loaded, elsewhere)?]),
        };
    }
    objects.try_iter()?.map(|object| tensor_of(&object?, elsewhere)).collect()
}

/// Whether an object says where a file is.
pub(crate) fn is_path(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(object.is_instance_of::<PyString>() || object.hasattr(pyo3::intern!(object.py(), "__fspath__"))?)
}

/// What a file of NumPy's holds. Nothing in it is executed.
fn loaded<'py>(path: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = path.py();
    let options = PyDict::new(py);
    options.set_item("allow_pickle", false)?;
    py.import("numpy")?
        .call_method("load", (path,), Some(&options))
        .map_err(|error| Class::Input.error(format!("{path}: expected a .npy or .npz file: {}", error.value(py))))
}

/// A number of bytes with its unit.
pub(crate) fn size_text(bytes: usize) -> String {
    let bytes = bytes as f64;
    let units = [(1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    units
        .into_iter()
        .find(|(limit, _)| bytes >= *limit)
        .map_or_else(|| format!("{bytes} bytes"), |(limit, unit)| format!("{:.1} {unit}", bytes / limit))
}

/// What this module needs of PyTorch, once it has been imported.
pub(crate) struct Torch {
    tensor: Py<PyAny>,
    view_as_real: Py<PyAny>,
    parameter: Option<Py<PyAny>>,
    /// What tells of tensors in one call, where this PyTorch has it.
    exchange: Option<Exchange>,
    is_neg: Py<PyAny>,
    empty: Py<PyAny>,
    device: Py<PyAny>,
    /// Of a GPU by its number, where this PyTorch knows GPUs.
    current_stream: Option<Py<PyAny>>,
    strided: Py<PyAny>,
    dispatch: Py<PyAny>,
    dtypes: Vec<(Py<PyAny>, DType)>,
}

impl Torch {
    pub(crate) fn loaded(py: Python<'_>) -> PyResult<Option<&'static Torch>> {
        static TORCH: PyOnceLock<Torch> = PyOnceLock::new();
        if let Some(torch) = TORCH.get(py) {
            return Ok(Some(torch));
        }
        let modules = py.import("sys")?.getattr("modules")?.cast_into::<PyDict>()?;
        let Some(module) = modules.get_item("torch")? else { return Ok(None) };
        // Half-way through being imported it has no tensors yet, and nobody can have made one.
        if !module.hasattr("Tensor")? || !module.hasattr("strided")? {
            return Ok(None);
        }
        TORCH.get_or_try_init(py, || Torch::new(&module)).map(Some)
    }

    fn new(module: &Bound<'_, PyAny>) -> PyResult<Torch> {
        let names = [
            ("float32", DType::F32),
            ("int64", DType::I64),
            ("bool", DType::Bool),
            ("float16", DType::F16),
            ("bfloat16", DType::BF16),
            ("float64", DType::F64),
            ("int32", DType::I32),
            ("int16", DType::I16),
            ("int8", DType::I8),
            ("uint8", DType::U8),
            ("uint16", DType::U16),
            ("uint32", DType::U32),
            ("uint64", DType::U64),
        ];
        let dtypes = names.into_iter().map(|(name, dtype)| Ok((module.getattr(name)?.unbind(), dtype)));
        let tensor = module.getattr("Tensor")?;
        let internal = module.getattr("_C")?;
        Ok(Torch {
            empty: module.getattr("empty")?.unbind(),
            device: module.getattr("device")?.unbind(),
            current_stream: internal.getattr("_cuda_getCurrentRawStream").ok().map(Bound::unbind),
            dispatch: tensor.getattr("__torch_dispatch__")?.unbind(),
            parameter: module.getattr("nn").and_then(|nn| nn.getattr("Parameter")).ok().map(Bound::unbind),
            exchange: Exchange::of(&tensor),
            is_neg: tensor.getattr("is_neg")?.unbind(),
            tensor: tensor.unbind(),
            view_as_real: module.getattr("view_as_real")?.unbind(),
            strided: module.getattr("strided")?.unbind(),
            dtypes: dtypes.collect::<PyResult<_>>()?,
        })
    }

    fn tensor_of(&self, object: &Bound<'_, PyAny>, elsewhere: Elsewhere) -> PyResult<Tensor> {
        let py = object.py();
        if let Some(Seen { device: dlpack::CPU, dtype, shape, address }) = self.look(object)? {
            // SAFETY: as below.
            return unsafe { borrow(dtype, shape, address, object) };
        }
        self.check_plain(object)?;
        if !object.getattr(pyo3::intern!(py, "is_cpu"))?.is_truthy()? {
            if elsewhere == Elsewhere::Copied && object.getattr(pyo3::intern!(py, "is_cuda"))?.is_truthy()? {
                // PyTorch copies behind the work that makes the tensor, and waits.
                let copy = object.call_method0(pyo3::intern!(py, "detach"))?.call_method0(pyo3::intern!(py, "cpu"))?;
                return self.tensor_of(&copy, Elsewhere::Refused);
            }
            let device = object.getattr(pyo3::intern!(py, "device"))?;
            return Err(
                Class::Input.error(format!("expected a tensor on the CPU, found one on {device}: move it (.cpu())"))
            );
        }
        let dense = self.dense(object)?;
        // SAFETY: PyTorch says that a dense CPU tensor of this dtype and shape begins there, and it is kept alive.
        unsafe { borrow(dense.dtype, dense.shape, dense.address, &dense.object) }
    }

    /// Whether an object is a tensor in memory of a GPU.
    pub(crate) fn is_on_gpu(&self, object: &Bound<'_, PyAny>) -> PyResult<bool> {
        let py = object.py();
        Ok(object.is_instance(self.tensor.bind(py))? && object.getattr(pyo3::intern!(py, "is_cuda"))?.is_truthy()?)
    }

    /// A tensor of complex numbers as one of real and imaginary parts along a last axis, in its memory; `None` for other objects.
    fn pairs_of<'py>(&self, object: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let py = object.py();
        if !object.is_instance(self.tensor.bind(py))?
            || !object.call_method0(pyo3::intern!(py, "is_complex"))?.is_truthy()?
        {
            return Ok(None);
        }
        self.check_plain(object)?;
        let plain = object.call_method0(pyo3::intern!(py, "detach"))?;
        let plain = plain.call_method0(pyo3::intern!(py, "resolve_conj"))?;
        self.view_as_real.bind(py).call1((plain,)).map(Some)
    }

    /// A tensor on a GPU as it is there, and the GPU; `None` for what is elsewhere. `seen` is what [`Torch::look`] tells.
    fn remote<'py>(&self, object: &Bound<'py, PyAny>, seen: Option<Seen>) -> PyResult<Option<(u32, Dense<'py>)>> {
        let py = object.py();
        if let Some(Seen { device, dtype, shape, address }) = seen {
            let index = u32::try_from(device.1).ok().filter(|_| device.0 == dlpack::CUDA);
            return Ok(index.map(|index| (index, Dense { object: object.clone(), dtype, shape, address })));
        }
        if !self.is_on_gpu(object)? {
            return Ok(None);
        }
        let dense = self.dense(object)?;
        let device = object.getattr(pyo3::intern!(py, "device"))?;
        let index: u32 = device.getattr(pyo3::intern!(py, "index"))?.extract()?;
        Ok(Some((index, dense)))
    }

    /// What a plain tensor is, in one call; `None` where that does not tell, or it is not dense.
    fn look(&self, object: &Bound<'_, PyAny>) -> PyResult<Option<Seen>> {
        let Some(exchange) = &self.exchange else { return Ok(None) };
        let (py, class) = (object.py(), object.get_type());
        // Other classes may be none of memory.
        let is_plain = class.is(&self.tensor) || self.parameter.as_ref().is_some_and(|parameter| class.is(parameter));
        let Some(seen) = is_plain.then(|| exchange.look(object)).flatten() else { return Ok(None) };
        // The only thing that it does not tell: what is there may stand for its negative.
        let is_negated = self.is_neg.bind(py).call1((object,))?.is_truthy()?;
        Ok((!is_negated).then_some(seen))
    }

    /// The GPU with this number, as PyTorch names it.
    pub(crate) fn gpu<'py>(&self, py: Python<'py>, index: u32) -> PyResult<Bound<'py, PyAny>> {
        self.device.bind(py).call1((pyo3::intern!(py, "cuda"), index))
    }

    /// The handle of the current stream of a GPU.
    pub(crate) fn current_stream(&self, py: Python<'_>, index: u32) -> PyResult<u64> {
        let none = || Class::Input.error("this PyTorch was built without CUDA");
        self.current_stream.as_ref().ok_or_else(none)?.bind(py).call1((index,))?.extract()
    }

    /// A new tensor; `place` holds where.
    pub(crate) fn empty<'py>(
        &self,
        py: Python<'py>,
        dtype: DType,
        shape: Vec<usize>,
        place: &Bound<'py, PyDict>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let known = self.dtypes.iter().find(|(_, known)| *known == dtype).map(|(name, _)| name);
        let options = place.copy()?;
        options.set_item("dtype", known.ok_or_else(|| Class::Regraft.error(format!("PyTorch has no {dtype}")))?)?;
        self.empty.bind(py).call((shape,), Some(&options))
    }

    /// What a tensor is, made dense where it is not.
    pub(crate) fn dense<'py>(&self, object: &Bound<'py, PyAny>) -> PyResult<Dense<'py>> {
        let py = object.py();
        self.check_plain(object)?;
        if !object.getattr(pyo3::intern!(py, "layout"))?.is(&self.strided) {
            let layout = object.getattr(pyo3::intern!(py, "layout"))?;
            return Err(Class::Input.error(format!("expected a dense tensor, found one of {layout}: make it dense")));
        }
        let dtype = object.getattr(pyo3::intern!(py, "dtype"))?;
        let Some((_, dtype)) = self.dtypes.iter().find(|(known, _)| dtype.is(known)) else {
            return Err(Class::Input.error(format!("tensors of {dtype} are not supported: convert it")));
        };
        let is_dense = object.call_method0(pyo3::intern!(py, "is_contiguous"))?.is_truthy()?;
        let is_negated = object.call_method0(pyo3::intern!(py, "is_neg"))?.is_truthy()?;
        let object = match (is_dense, is_negated) {
            (true, false) => object.clone(),
            // Without a record for gradients.
            _ => (object.call_method0(pyo3::intern!(py, "detach"))?.call_method0(pyo3::intern!(py, "resolve_neg"))?)
                .call_method0(pyo3::intern!(py, "contiguous"))?,
        };
        let shape: Vec<usize> = object.getattr(pyo3::intern!(py, "shape"))?.cast::<PyTuple>()?.extract()?;
        let address: usize = object.call_method0(pyo3::intern!(py, "data_ptr"))?.extract()?;
        Ok(Dense { object, dtype: *dtype, shape, address })
    }

    /// A subclass that intercepts operators, such as a fake or a distributed tensor, has no memory that means anything.
    fn check_plain(&self, object: &Bound<'_, PyAny>) -> PyResult<()> {
        let class = object.get_type();
        let dispatch = pyo3::intern!(object.py(), "__torch_dispatch__");
        if !class.is(&self.tensor) && !class.getattr(dispatch)?.is(&self.dispatch) {
            let found = class.qualname()?;
            return Err(Class::Input.error(format!("expected a plain tensor, found a {found}: give its values")));
        }
        Ok(())
    }
}

/// A tensor in memory of the GPU of this name.
fn remote(device: Arc<str>, dense: Dense<'_>) -> PyResult<Tensor> {
    let failed = |error: regraft::TensorError| Class::Input.error(error.to_string());
    let len = Tensor::byte_len(dense.dtype, &dense.shape).map_err(failed)?;
    let held = dense.object.unbind();
    let fetch = move || {
        Python::attach(|py| {
            let here = tensor_of(held.bind(py), Elsewhere::Copied).map_err(|error| error.to_string())?;
            Ok(here.into_owned())
        })
    };
    // SAFETY: PyTorch says that a dense tensor of this type begins there on this GPU, and it is held; what makes it is
    // waited for before it is read. As on the host, who writes to it during a call makes its results meaningless.
    let bytes = unsafe { RemoteBytes::new(device, dense.address as u64, len, Box::new(fetch)) };
    Tensor::new(dense.dtype, dense.shape, Buffer::Remote(bytes)).map_err(failed)
}

/// A dense tensor of PyTorch.
pub(crate) struct Dense<'py> {
    /// What holds the memory.
    pub(crate) object: Bound<'py, PyAny>,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    pub(crate) address: usize,
}

/// What this module needs of NumPy.
struct Numpy {
    array: Py<PyAny>,
    from_dlpack: Py<PyAny>,
    as_array: Py<PyAny>,
    make_dense: Py<PyAny>,
}

impl Numpy {
    fn get(py: Python<'_>) -> PyResult<&'static Numpy> {
        static NUMPY: PyOnceLock<Numpy> = PyOnceLock::new();
        NUMPY.get_or_try_init(py, || {
            let module = py.import("numpy")?;
            Ok(Numpy {
                array: module.getattr("ndarray")?.unbind(),
                from_dlpack: module.getattr("from_dlpack")?.unbind(),
                as_array: module.getattr("asarray")?.unbind(),
                make_dense: module.getattr("ascontiguousarray")?.unbind(),
            })
        })
    }

    fn tensor_of(&self, object: &Bound<'_, PyAny>, elsewhere: Elsewhere) -> PyResult<Tensor> {
        let py = object.py();
        let interface = || Ok::<_, PyErr>(object.getattr("__array_interface__")?.cast_into::<PyDict>()?);
        let found = interface()?;
        let dtype_name: String = object.getattr("dtype")?.getattr("name")?.extract()?;
        let is_native: bool = object.getattr("dtype")?.getattr("isnative")?.extract()?;
        let known = dtype_of_numpy(&dtype_name);
        if known.is_some() && !is_native && elsewhere == Elsewhere::Copied {
            return self.tensor_of(&object.call_method1("astype", (dtype_name,))?, elsewhere);
        }
        let Some(dtype) = known.filter(|_| is_native) else {
            let order = if is_native { "" } else { " in the other order of bytes" };
            return Err(Class::Input.error(format!("arrays of {dtype_name}{order} are not supported: convert it")));
        };
        // Dense arrays have no strides in their interface.
        if found.get_item("strides")?.is_some_and(|strides| !strides.is_none()) {
            let shape = object.getattr("shape")?;
            let dense = self.make_dense.bind(py).call1((object,))?;
            // An array without axes becomes one of one axis there.
            return self.tensor_of(&dense.call_method1("reshape", (shape,))?, elsewhere);
        }
        let shape: Vec<usize> = object.getattr("shape")?.extract()?;
        let (address, _): (usize, bool) =
            found.get_item("data")?.ok_or_else(|| Class::Input.error("an array without data"))?.extract()?;
        // SAFETY: NumPy says that a dense array of this dtype and shape begins there, and it is kept alive.
        unsafe { borrow(dtype, shape, address, object) }
    }
}

fn dtype_of_numpy(name: &str) -> Option<DType> {
    Some(match name {
        "float32" => DType::F32,
        "int64" => DType::I64,
        "bool" => DType::Bool,
        "float16" => DType::F16,
        "bfloat16" => DType::BF16,
        "float64" => DType::F64,
        "int32" => DType::I32,
        "int16" => DType::I16,
        "int8" => DType::I8,
        "uint8" => DType::U8,
        "uint16" => DType::U16,
        "uint32" => DType::U32,
        "uint64" => DType::U64,
        _ => return None,
    })
}

/// # Safety
/// A dense array of `dtype` and `shape` begins at `address` and lives as long as `owner`. Calls that are given the tensor
/// read it without the interpreter's lock: as with PyTorch's own operators, a thread that writes to it meanwhile makes
/// their results meaningless.
unsafe fn borrow(dtype: DType, shape: Vec<usize>, address: usize, owner: &Bound<'_, PyAny>) -> PyResult<Tensor> {
    let failed = |error: regraft::TensorError| Class::Input.error(error.to_string());
    let len = Tensor::byte_len(dtype, &shape).map_err(failed)?;
    if len == 0 {
        return Tensor::zeros(dtype, &shape).map_err(failed);
    }
    let null = || Class::Input.error("a tensor without memory");
    let start = NonNull::new(ptr::with_exposed_provenance_mut(address)).ok_or_else(null)?;
    // SAFETY: the caller's promise; the owner is held.
    let bytes = unsafe { BorrowedBytes::new(start, len, Arc::new(owner.clone().unbind())) };
    Tensor::new(dtype, shape, Buffer::Borrowed(bytes)).map_err(failed)
}
