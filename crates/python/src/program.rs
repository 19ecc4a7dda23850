//! Imported programs.

use std::{io::Write as _, path::PathBuf};

use pyo3::prelude::*;
use regraft::import::{self, Imported};

use crate::{
    error::{Class, IntoPyErr, import_error},
    exit::detached,
};

/// A program on its way to an engine; one of PyTorch without the values of its weights.
#[pyclass(frozen, module = "regraft")]
pub(crate) struct Program(pub(crate) Imported);

/// A named tensor that a program or an engine reads.
#[pyclass(frozen, get_all, module = "regraft")]
pub(crate) struct SourceInfo {
    /// Fully qualified name, as `state_dict()` spells it.
    name: String,
    /// Its other names, where it is tied.
    aliases: Vec<String>,
    /// Element type.
    dtype: &'static str,
    /// Sizes.
    shape: Vec<usize>,
    /// `parameter`, `buffer`, `buffer_non_persistent` or `constant`.
    kind: &'static str,
}

#[pymethods]
impl SourceInfo {
    fn __repr__(&self) -> String {
        format!("{} : {}{:?} ({})", self.name, self.dtype, self.shape, self.kind)
    }
}

impl From<&regraft::SourceInfo> for SourceInfo {
    fn from(info: &regraft::SourceInfo) -> Self {
        SourceInfo {
            name: info.name.clone(),
            aliases: info.aliases.clone(),
            dtype: info.dtype.name(),
            shape: info.shape.clone(),
            kind: info.kind.name(),
        }
    }
}

impl Program {
    /// Whether it was read with values for all of its weights.
    pub(crate) fn has_weights(&self) -> bool {
        self.0.weights.iter().all(Option::is_some)
    }
}

#[pymethods]
impl Program {
    /// Reads an `.onnx` file, with its weights: [`compile`](crate::compile::compile) takes them from here.
    #[staticmethod]
    fn from_onnx(py: Python<'_>, path: PathBuf) -> PyResult<Program> {
        detached(py, || import::import_onnx(path)).map(Program).map_err(IntoPyErr::into_py)
    }

    /// Reads the program in the bytes of a `.pt2` file.
    #[staticmethod]
    fn from_bytes(py: Python<'_>, data: &[u8]) -> PyResult<Program> {
        let failed =
            |error: std::io::Error| Class::Compile.error(format!("a temporary file cannot be written: {error}"));
        let mut file = tempfile::NamedTempFile::new().map_err(failed)?;
        file.write_all(data).and_then(|()| file.flush()).map_err(failed)?;
        let imported = detached(py, || import::import_pt2_program(file.path()));
        // The file was made for the occasion: its name says nothing.
        imported.map(Program).map_err(|error| import_error(&error, error.kind().to_string()))
    }

    /// Weights that the program reads.
    #[getter]
    fn sources(&self) -> Vec<SourceInfo> {
        let graph = &self.0.graph;
        regraft::RefitMap::uses_of(graph).0.iter().map(SourceInfo::from).collect()
    }

    /// Names of the inputs, in order.
    #[getter]
    fn inputs(&self) -> Vec<String> {
        self.0.call.input_names.clone()
    }

    /// Names of the outputs, in order.
    #[getter]
    fn outputs(&self) -> Vec<String> {
        self.0.call.output_names.clone()
    }

    /// Whether it keeps state between runs.
    #[getter]
    fn has_state(&self) -> bool {
        !self.0.graph.states.is_empty()
    }

    fn __repr__(&self) -> String {
        let report = &self.0.report;
        format!("regraft.Program({} nodes, {} sources)", report.nodes, report.sources)
    }
}

/// Whether there is a translation of an operator, such as `torch.ops.aten.linear.default`.
#[pyfunction]
pub(crate) fn is_known(operator: &str) -> bool {
    import::is_known(operator)
}
