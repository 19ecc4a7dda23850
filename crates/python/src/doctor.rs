//! What the machine has.

use pyo3::prelude::*;

use crate::{error::Class, exit::detached};

/// What Regraft finds on this machine: as text, and as JSON.
#[pyfunction]
pub(crate) fn doctor(py: Python<'_>) -> PyResult<(String, String)> {
    let found = detached(py, regraft::doctor);
    let facts = serde_json::to_string(&found).map_err(|error| Class::Regraft.error(error.to_string()))?;
    Ok((found.to_string(), facts))
}
