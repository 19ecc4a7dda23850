//! Named tensors: mappings of Python, and weight files.

use std::{collections::BTreeMap, path::PathBuf};

use pyo3::prelude::*;
use regraft::{DType, OpenOptions, Tensor};

use crate::{
    error::{Class, IntoPyErr},
    exit::detached,
    memory,
};

/// Weights read from a file, mapped where they are stored as they are: `.safetensors`, a state dict that `torch.save` wrote
/// (`.pt`, `.pth`, `.bin`; nothing in it is executed), `.pt2`, the initializers of an `.onnx`, or the `.index.json` of shards.
#[pyclass(frozen, module = "regraft")]
pub(crate) struct StateDict(pub(crate) regraft::StateDict);

#[pymethods]
impl StateDict {
    /// Reads a weight file, or the part of it that is under `key`.
    #[staticmethod]
    #[pyo3(signature = (path, key=None))]
    fn open(py: Python<'_>, path: PathBuf, key: Option<String>) -> PyResult<StateDict> {
        let options = OpenOptions::new().key(key);
        detached(py, || regraft::open_weights_with(&path, &options)).map(StateDict).map_err(IntoPyErr::into_py)
    }

    /// Tensors that lie in the memory of arrays of bytes: `(name, dtype, shape, which array, place of the first byte there)` of each.
    /// The memory is kept, read where it is, and must not change while it is read.
    #[staticmethod]
    fn from_buffers(
        buckets: Vec<Bound<'_, PyAny>>,
        tensors: Vec<(String, String, Vec<usize>, usize, usize)>,
    ) -> PyResult<StateDict> {
        let buckets = buckets.iter().map(|bucket| memory::tensor_of(bucket, memory::Elsewhere::Refused));
        let buckets = buckets.collect::<PyResult<Vec<_>>>()?;
        let mut weights = regraft::StateDict::new();
        for (name, dtype, shape, bucket, start) in tensors {
            let place = part_of(&buckets, &dtype, shape, bucket, start);
            let tensor = place.map_err(|why| Class::Weights.error(format!("{name}: {why}")))?;
            if weights.get(&name).is_some() {
                return Err(Class::Weights.error(format!("{name}: is there twice")));
            }
            weights.insert(name, tensor);
        }
        Ok(StateDict(weights))
    }

    /// What the file holds besides and was not read: a description for each place.
    #[getter]
    fn skipped(&self) -> BTreeMap<String, String> {
        self.0.skipped().clone()
    }

    /// The tensors under other names; those without one are left out.
    fn renamed(&self, names: BTreeMap<String, String>) -> StateDict {
        StateDict(self.0.renamed(|name| names.get(name).cloned()))
    }

    /// Names, in their order.
    fn keys(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name).collect()
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }

    fn __contains__(&self, name: &str) -> bool {
        self.0.get(name).is_some()
    }

    fn __getitem__(&self, name: &str) -> PyResult<crate::array::Array> {
        let tensor = self.0.get(name).ok_or_else(|| pyo3::exceptions::PyKeyError::new_err(name.to_owned()))?;
        Ok(crate::array::Array(tensor.clone()))
    }

    /// The tensors called `names`; those that are not there are left out.
    fn only(&self, names: Vec<String>) -> StateDict {
        let tensors = names.into_iter().filter_map(|name| self.0.get(&name).cloned().map(|tensor| (name, tensor)));
        StateDict(tensors.collect())
    }

    fn __repr__(&self) -> String {
        format!("regraft.StateDict({} tensors, {})", self.0.len(), memory::size_text(self.0.byte_len()))
    }
}

/// A tensor at `start` in one of the `buckets`; or what is wrong with that.
fn part_of(buckets: &[Tensor], dtype: &str, shape: Vec<usize>, bucket: usize, start: usize) -> Result<Tensor, String> {
    let known = DType::from_name(dtype).ok_or_else(|| format!("`{dtype}` is not a type of elements"))?;
    if !start.is_multiple_of(known.size()) {
        return Err(format!("begins at byte {start}, where no {dtype} can"));
    }
    let len = Tensor::byte_len(known, &shape).map_err(|error| error.to_string())?;
    let whole = buckets.get(bucket).ok_or_else(|| format!("lies in bucket {bucket} of {}", buckets.len()))?.buffer();
    let part = start.checked_add(len).and_then(|end| whole.slice(start..end));
    let part = part.ok_or_else(|| {
        let (end, all) = (start.saturating_add(len), whole.len());
        format!("lies at bytes {start} to {end} of a bucket of {all}")
    })?;
    Tensor::new(known, shape, part).map_err(|error| error.to_string())
}

/// The tensors of a `StateDict`, of a mapping from names to tensors, or of a weight file.
pub(crate) fn state_dict_of(object: &Bound<'_, PyAny>) -> PyResult<regraft::StateDict> {
    if let Ok(dict) = object.cast::<StateDict>() {
        return Ok(dict.get().0.clone());
    }
    if memory::is_path(object)? {
        return StateDict::open(object.py(), object.extract()?, None).map(|dict| dict.0);
    }
    if !object.hasattr("items")? {
        let found = object.get_type().qualname()?;
        return Err(Class::Weights.error(format!("expected a state dict or the path of a weight file, found {found}")));
    }
    let mut gpus = memory::Gpus::default();
    let named = |item: PyResult<Bound<'_, PyAny>>| {
        let (name, value): (String, Bound<'_, PyAny>) = item?.extract()?;
        let tensor = gpus.weight_of(&value);
        let tensor = tensor.map_err(|error| Class::Weights.error(format!("{name}: {}", error.value(object.py()))))?;
        Ok::<_, PyErr>((name, tensor))
    };
    let weights = object.call_method0("items")?.try_iter()?.map(named).collect::<PyResult<regraft::StateDict>>()?;
    gpus.wait(object.py())?;
    Ok(weights)
}
