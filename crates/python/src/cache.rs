//! Engine caches: the disk cache, and objects of Python.

use std::{fmt, path::PathBuf, sync::Arc};

use pyo3::{prelude::*, types::PyBytes};
use regraft::{
    AlignedVec,
    cache::{CacheError, CacheKey, Claim, EngineCache, Put},
};

use crate::error::Class;

/// Engines as files of a folder, shared by all processes of the machine. Without a path: the folder that the command
/// `regraft` uses (`REGRAFT_CACHE_DIR`, otherwise `regraft` in the user's cache folder).
#[pyclass(frozen, module = "regraft")]
pub(crate) struct DiskCache(pub(crate) regraft::cache::DiskCache);

#[pymethods]
impl DiskCache {
    #[new]
    #[pyo3(signature = (path=None, limit=None))]
    fn new(path: Option<PathBuf>, limit: Option<u64>) -> PyResult<DiskCache> {
        let none =
            || Class::Regraft.error("no folder for the engine cache is known: set REGRAFT_CACHE_DIR, or give a path");
        let limit =
            limit.map_or_else(regraft::cache_limit, Ok).map_err(|error| Class::Regraft.error(error.to_string()))?;
        let folder = path.or_else(regraft::cache_folder).ok_or_else(none)?;
        Ok(DiskCache(regraft::disk_cache(folder, limit)))
    }

    fn __repr__(&self) -> String {
        format!("regraft.{:?}", self.0)
    }
}

/// A cache of Python: an object with `get(key)`, `put(key, entry)` and `remove(key)`.
struct PythonCache(Py<PyAny>);

impl fmt::Debug for PythonCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PythonCache({})", self.0)
    }
}

impl PythonCache {
    fn with<T>(&self, call: impl for<'py> FnOnce(&Bound<'py, PyAny>) -> PyResult<T>) -> Result<T, CacheError> {
        Python::attach(|py| call(self.0.bind(py)).map_err(|error| CacheError::new(&self.0, error.to_string())))
    }
}

impl EngineCache for PythonCache {
    fn get(&self, key: &CacheKey) -> Result<Option<regraft::Buffer>, CacheError> {
        self.with(|cache| {
            let entry = cache.call_method1("get", (key.to_string(),))?;
            if entry.is_none() {
                return Ok(None);
            }
            Ok(Some(AlignedVec::copy_of(entry.cast::<PyBytes>()?.as_bytes()).into()))
        })
    }

    fn put(&self, key: &CacheKey, entry: &[u8]) -> Result<Put, CacheError> {
        self.with(|cache| {
            cache.call_method1("put", (key.to_string(), PyBytes::new(cache.py(), entry)))?;
            Ok(Put::Stored)
        })
    }

    fn remove(&self, key: &CacheKey) -> Result<(), CacheError> {
        self.with(|cache| cache.call_method1("remove", (key.to_string(),)).map(drop))
    }

    fn claim(&self, _key: &CacheKey) -> Result<Claim, CacheError> {
        Ok(Claim::none())
    }
}

/// The cache that `object` is.
pub(crate) fn cache_of(object: &Bound<'_, PyAny>) -> Arc<dyn EngineCache> {
    match object.cast::<DiskCache>() {
        Ok(cache) => Arc::new(cache.get().0.clone()),
        Err(_) => Arc::new(PythonCache(object.clone().unbind())),
    }
}
