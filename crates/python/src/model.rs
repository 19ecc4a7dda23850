//! Models: what runs, and what is refitted.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use pyo3::{
    prelude::*,
    types::{PyBytes, PyDict, PyList},
};
use regraft::{
    AlignedVec, DType, DeviceName, Engine, ForeignQueue, Input, KeepSources, Lent, Mode, ModelExt as _, RuntimeError,
    Tensor, Threads,
};

use crate::{
    array::Array,
    dlpack,
    error::{Class, IntoPyErr},
    exit::detached,
    lent,
    memory::{self, Elsewhere, tensors_of},
    program::SourceInfo,
    refit::{Adapter, Order, Staged, report_of},
};

/// An engine with a serving generation. It may be run and refitted from many threads at once: a run sees one generation from
/// start to end, a refit never blocks a run, and a run never blocks a refit.
#[pyclass(frozen, module = "regraft")]
pub(crate) struct Model(pub(crate) regraft::Model);

#[pymethods]
impl Model {
    /// Loads an engine file (`.rgf`) for a device: `cpu`, `cuda` or `cuda:N`. Weights are mapped; slots are made where the
    /// file has none.
    #[staticmethod]
    #[pyo3(signature = (path, threads=None, device="cpu"))]
    fn load(py: Python<'_>, path: PathBuf, threads: Option<usize>, device: &str) -> PyResult<Model> {
        let (threads, device) = (threads_of(threads)?, device_of(device)?);
        detached(py, || regraft::model(Engine::open(&path)?, regraft::device(device, threads)?))
            .map(Model)
            .map_err(IntoPyErr::into_py)
    }

    /// Reads an engine from the bytes of a file.
    #[staticmethod]
    #[pyo3(signature = (data, threads=None, device="cpu"))]
    fn from_bytes(py: Python<'_>, data: &[u8], threads: Option<usize>, device: &str) -> PyResult<Model> {
        let (threads, device) = (threads_of(threads)?, device_of(device)?);
        detached(py, || {
            let engine = Engine::from_bytes("engine", AlignedVec::copy_of(data).into())?;
            regraft::model(engine, regraft::device(device, threads)?)
        })
        .map(Model)
        .map_err(IntoPyErr::into_py)
    }

    /// Runs the program once, with fresh state. `wrap` turns each DLPack capsule into what is returned; without it outputs are
    /// arrays. Where an input is a tensor of PyTorch on the engine's GPU, outputs are such tensors.
    #[pyo3(signature = (inputs, wrap=None))]
    fn run<'py>(
        &self,
        py: Python<'py>,
        inputs: &Bound<'py, PyAny>,
        wrap: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyList>> {
        if let Some(index) = lent::gpu_of(&self.0)
            && let Some(outputs) = lent::run(py, index, inputs, self)?
        {
            return Ok(outputs);
        }
        let inputs = tensors_of(inputs, elsewhere(&self.0))?;
        let outputs = detached(py, || self.0.run(&inputs)).map_err(IntoPyErr::into_py)?;
        wrapped(py, outputs, wrap)
    }

    /// As `run`, with the number of the generation that the run saw.
    fn run_with_generation<'py>(
        &self,
        py: Python<'py>,
        inputs: &Bound<'py, PyAny>,
    ) -> PyResult<(Bound<'py, PyList>, u64)> {
        let inputs = tensors_of(inputs, elsewhere(&self.0))?;
        let (outputs, generation) = detached(py, || self.0.run_with_generation(&inputs)).map_err(IntoPyErr::into_py)?;
        Ok((wrapped(py, outputs, None)?, generation.id))
    }

    /// The digest of all weights that serve, under their names and without adapters: the same in every process that serves
    /// the same weights, wherever they came from; `None` while it has none. Weights whose digests are not known yet are read.
    fn weights_digest(&self, py: Python<'_>) -> PyResult<Option<String>> {
        let digest = || {
            self.0.check_file()?;
            self.0.generation().map(|generation| self.0.weights_digest(&generation)).transpose()
        };
        detached(py, digest).map_err(IntoPyErr::into_py).map(|digest| digest.map(|d| d.to_string()))
    }

    /// A sequence of runs that keeps the program's state.
    fn session(&self) -> Session {
        Session { session: Mutex::new(self.0.session()), model: self.0.clone() }
    }

    /// Checks weights, adapters or both, computes the slots that they change and publishes them in one step: all or nothing.
    /// Returns a `RefitReport`.
    #[pyo3(signature = (weights=None, *, partial=false, ignore_unknown=false, constants=None, reject_non_finite=false, changed=None, adapters=None, verify=None, observer=None))]
    fn refit<'py>(
        &self,
        py: Python<'py>,
        weights: Option<&Bound<'_, PyAny>>,
        partial: bool,
        ignore_unknown: bool,
        constants: Option<&Bound<'_, PyAny>>,
        reject_non_finite: bool,
        changed: Option<&Bound<'_, PyAny>>,
        adapters: Option<&Bound<'_, PyAny>>,
        verify: Option<&Bound<'_, PyAny>>,
        observer: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let order = Order::new(
            weights,
            (partial, ignore_unknown, reject_non_finite),
            constants,
            changed,
            adapters,
            verify,
            observer,
        )?;
        report_of(py, detached(py, || order.run(&self.0))?)
    }

    /// As `refit`, without publishing.
    #[pyo3(signature = (weights=None, *, partial=false, ignore_unknown=false, constants=None, reject_non_finite=false, changed=None, adapters=None, verify=None, observer=None))]
    fn stage(
        &self,
        py: Python<'_>,
        weights: Option<&Bound<'_, PyAny>>,
        partial: bool,
        ignore_unknown: bool,
        constants: Option<&Bound<'_, PyAny>>,
        reject_non_finite: bool,
        changed: Option<&Bound<'_, PyAny>>,
        adapters: Option<&Bound<'_, PyAny>>,
        verify: Option<&Bound<'_, PyAny>>,
        observer: Option<Py<PyAny>>,
    ) -> PyResult<Staged> {
        let order = Order::new(
            weights,
            (partial, ignore_unknown, reject_non_finite),
            constants,
            changed,
            adapters,
            verify,
            observer,
        )?;
        detached(py, || order.stage(&self.0)).map(Staged::new)
    }

    /// An adapter for this engine: from a file or folder, or from tensors by the names that PEFT, diffusers or kohya's scripts
    /// give them; `config` is the text of PEFT's `adapter_config.json`, `alpha` the alpha of its training, where nothing else states it.
    /// Given a file or folder alone, the adapter is named after it.
    #[pyo3(signature = (name, weights=None, config=None, alpha=None))]
    fn adapter(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyAny>,
        weights: Option<&Bound<'_, PyAny>>,
        config: Option<&str>,
        alpha: Option<f64>,
    ) -> PyResult<Adapter> {
        let path: PathBuf = name.extract()?;
        let stem = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy();
        match weights {
            Some(weights) => Adapter::new(py, &[&self.0], &path.to_string_lossy(), weights, config, alpha),
            None => Adapter::new(py, &[&self.0], &stem, name, config, alpha),
        }
    }

    /// Another model that starts with the same generation and shares the engine and every slot that neither changes.
    fn fork(&self) -> Model {
        Model(self.0.fork())
    }

    /// Shares slots from now on with a model of another program over the same weights: what a refit would make, and the
    /// other has, is not made. Slots that both have now become one.
    fn share_slots_with(&self, py: Python<'_>, other: PyRef<'_, Model>) -> PyResult<()> {
        let other = other.0.clone();
        detached(py, || self.0.share_slots_with(&other)).map_err(IntoPyErr::into_py)
    }

    /// `refittable`, `stripped` or `frozen`: what the engine held when it was made.
    #[getter]
    fn mode(&self) -> String {
        self.0.mode().to_string()
    }

    /// Whether it has weights.
    #[getter]
    fn is_bound(&self) -> bool {
        self.0.generation().is_some()
    }

    /// Number of the serving generation.
    #[getter]
    fn generation(&self) -> Option<u64> {
        self.0.generation().map(|generation| generation.id)
    }

    /// `(name, type)` of each input.
    #[getter]
    fn inputs(&self) -> Vec<(String, String)> {
        let graph = &self.0.plan().graph;
        graph.inputs.iter().map(|input| (input.name.clone(), graph.ty(input.value).to_string())).collect()
    }

    /// `(name, type)` of each output.
    #[getter]
    fn outputs(&self) -> Vec<(String, String)> {
        let graph = &self.0.plan().graph;
        graph.outputs.iter().map(|output| (output.name.clone(), graph.ty(output.value).to_string())).collect()
    }

    /// The sources that a state dict must bring.
    #[getter]
    fn sources(&self) -> Vec<SourceInfo> {
        self.0.refit_map().sources.iter().map(SourceInfo::from).collect()
    }

    /// `(name, bytes, names of its sources)` of each slot; a frozen engine does not know the sources.
    #[getter]
    fn slots(&self) -> Vec<(String, usize, Vec<String>)> {
        let (plan, map) = (self.0.plan(), self.0.refit_map());
        let sources = |slot: usize| {
            let recipe = map.recipes.get(slot)?;
            Some(recipe.sources.iter().map(|&source| map.sources[source as usize].name.clone()).collect())
        };
        let slot = |i| (plan.slot_name(i).to_owned(), plan.slots[i].bytes, sources(i).unwrap_or_default());
        (0..plan.slots.len()).map(slot).collect()
    }

    /// A copy of a slot as the kernels read it: its bytes.
    fn slot_bytes(&self, name: &str) -> PyResult<Array> {
        let plan = self.0.plan();
        let at = (0..plan.slots.len()).find(|&slot| plan.slot_name(slot) == name);
        let at = at.ok_or_else(|| Class::Regraft.error(format!("there is no slot {name}")))?;
        self.0.check_file().map_err(IntoPyErr::into_py)?;
        let generation = self.0.generation().ok_or_else(|| Class::NotBound.error("the engine has no weights yet"))?;
        let bytes = generation.slots[at].read().map_err(IntoPyErr::into_py)?;
        Ok(Array(Tensor::from_slice(&[bytes.len()], bytes.bytes())))
    }

    /// Weights of the serving generation as they were given, without adapters; `None` where they were released.
    fn source(&self, name: &str) -> PyResult<Option<Array>> {
        let infos = &self.0.refit_map().sources;
        let at = infos.iter().position(|info| info.names().any(|other| other == name));
        let at = at.ok_or_else(|| Class::Weights.error(format!("there is no source {name}")))?;
        self.0.check_file().map_err(IntoPyErr::into_py)?;
        let generation = self.0.generation().ok_or_else(|| Class::NotBound.error("the engine has no weights yet"))?;
        let tensor = generation.sources[at].converted().map_err(|e| Class::Regraft.error(e.to_string()))?;
        Ok(tensor.map(Array))
    }

    /// `(name, scale)` of each adapter of the serving generation.
    #[getter]
    fn adapters(&self) -> Vec<(String, f64)> {
        self.0.adapters().active().into_iter().map(|(adapter, scale)| (adapter.name.clone(), scale)).collect()
    }

    /// Where it runs: `cpu`, `cuda:0`.
    #[getter]
    fn device(&self) -> String {
        self.0.device().name()
    }

    /// Instruction set and backend that it was built for.
    #[getter]
    fn target(&self) -> String {
        self.0.device().codegen().target().to_string()
    }

    /// Bytes of slots, as a dict: `slots` of this generation, of which `private` ones are shared with no fork; `in_use` of this
    /// model and all its forks together; `free` ones that wait for the next refit; `limit`, the most that they may take.
    fn memory<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (memory, facts) = (self.0.slot_memory(), PyDict::new(py));
        let generation = self.0.generation();
        let all: usize = generation.iter().flat_map(|g| &g.slots).map(|slot| slot.len()).sum();
        // The model's, and the one here.
        let private = generation.map_or(0, |generation| generation.own_bytes(2));
        facts.set_item("in_use", memory.in_use)?;
        facts.set_item("free", memory.free)?;
        facts.set_item("limit", memory.limit)?;
        facts.set_item("slots", all)?;
        facts.set_item("private", private)?;
        Ok(facts)
    }

    /// Sets the most bytes that slots may take, of this model and all its forks.
    #[pyo3(signature = (limit))]
    fn set_memory_limit(&self, limit: Option<usize>) {
        self.0.set_memory_limit(limit);
    }

    /// Gives memory that waits for the next refit back to the system.
    fn trim(&self) {
        self.0.trim();
    }

    /// Whether publishing keeps the previous generation, for `rollback`.
    fn keep_previous(&self, keep: bool) {
        self.0.set_keep_previous(keep);
    }

    /// Publishes the generation before the serving one again.
    fn rollback(&self) -> PyResult<()> {
        self.0.rollback().map_err(IntoPyErr::into_py)
    }

    /// Writes the engine with its serving weights to a file; returns its size in bytes.
    #[pyo3(signature = (path, mode="refittable", keep_sources="embedded"))]
    fn save(&self, py: Python<'_>, path: PathBuf, mode: &str, keep_sources: &str) -> PyResult<u64> {
        let (mode, keep) = (mode_of(mode)?, keep_of(keep_sources)?);
        detached(py, || self.0.save_as(&path, mode, keep)).map_err(IntoPyErr::into_py)
    }

    /// The engine with its serving weights as the bytes of an engine file.
    #[pyo3(signature = (mode="refittable", keep_sources="embedded"))]
    fn to_bytes<'py>(&self, py: Python<'py>, mode: &str, keep_sources: &str) -> PyResult<Bound<'py, PyBytes>> {
        let (mode, keep) = (mode_of(mode)?, keep_of(keep_sources)?);
        let bytes = detached(py, || -> Result<_, regraft::Error> { Ok(self.0.to_engine(mode, keep)?.to_bytes()?) });
        Ok(PyBytes::new(py, &bytes.map_err(IntoPyErr::into_py)?))
    }

    fn __repr__(&self) -> String {
        let (map, plan) = (self.0.refit_map(), self.0.plan());
        let bytes: usize = plan.slots.iter().map(|slot| slot.bytes).sum();
        let (mode, bound) = match (self.0.mode(), self.is_bound()) {
            (Mode::Stripped, true) => (Mode::Refittable, ""),
            (mode, true) => (mode, ""),
            (mode, false) => (mode, ", no weights yet"),
        };
        format!(
            "regraft.Model({mode}, {} sources, {} slots, {}, {}{bound})",
            map.sources.len(),
            plan.slots.len(),
            memory::size_text(bytes),
            self.target()
        )
    }
}

/// Bytes of the slots of several models, each slot counted once.
#[pyfunction]
pub(crate) fn slot_bytes_of(models: Vec<PyRef<'_, Model>>) -> usize {
    let generations: Vec<_> = models.iter().filter_map(|model| model.0.generation()).collect();
    let slots = generations.iter().flat_map(|generation| &generation.slots);
    let distinct: HashMap<_, usize> = slots.map(|slot| (Arc::as_ptr(slot), slot.len())).collect();
    distinct.values().sum()
}

/// A sequence of runs with its own state and scratch memory.
#[pyclass(frozen, module = "regraft")]
pub(crate) struct Session {
    session: Mutex<regraft::Session>,
    model: regraft::Model,
}

impl lent::Runs for Model {
    fn output_types(&self, inputs: &[Input]) -> Result<Vec<(DType, Vec<usize>)>, RuntimeError> {
        self.0.output_types(inputs)
    }

    fn run(&self, inputs: &[Input], outputs: &mut [Lent], queue: ForeignQueue) -> Result<(), RuntimeError> {
        self.0.run_lent(inputs, outputs, queue)
    }
}

impl lent::Runs for Session {
    fn output_types(&self, inputs: &[Input]) -> Result<Vec<(DType, Vec<usize>)>, RuntimeError> {
        self.model.output_types(inputs)
    }

    fn run(&self, inputs: &[Input], outputs: &mut [Lent], queue: ForeignQueue) -> Result<(), RuntimeError> {
        self.lock().run_lent(inputs, outputs, queue)
    }
}

#[pymethods]
impl Session {
    /// Runs the program with the state that the run before left.
    #[pyo3(signature = (inputs, wrap=None))]
    fn run<'py>(
        &self,
        py: Python<'py>,
        inputs: &Bound<'py, PyAny>,
        wrap: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyList>> {
        if let Some(index) = lent::gpu_of(&self.model)
            && let Some(outputs) = lent::run(py, index, inputs, self)?
        {
            return Ok(outputs);
        }
        let inputs = tensors_of(inputs, elsewhere(&self.model))?;
        let outputs = detached(py, || self.lock().run(&inputs)).map_err(IntoPyErr::into_py)?;
        wrapped(py, outputs, wrap)
    }

    /// Forgets the state.
    fn reset(&self, py: Python<'_>) {
        detached(py, || self.lock().reset_state());
    }
}

impl Session {
    /// A session is whole after any panic: the state of a failed run is the one before.
    fn lock(&self) -> std::sync::MutexGuard<'_, regraft::Session> {
        self.session.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// What a model does with inputs on a GPU.
fn elsewhere(model: &regraft::Model) -> Elsewhere {
    if model.device().reads_host() { Elsewhere::Refused } else { Elsewhere::Copied }
}

fn wrapped<'py>(
    py: Python<'py>,
    outputs: Vec<Tensor>,
    wrap: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for output in outputs {
        match wrap {
            Some(wrap) => list.append(wrap.call1((dlpack::capsule(py, output)?,))?)?,
            None => list.append(Bound::new(py, Array(output))?)?,
        }
    }
    Ok(list)
}

pub(crate) fn threads_of(threads: Option<usize>) -> PyResult<Threads> {
    match threads {
        None => Ok(Threads::Auto),
        Some(0) => Err(Class::Regraft.error("threads: expected at least 1, found 0")),
        Some(n) => Ok(Threads::Count(n)),
    }
}

/// The device of a name; `cuda` is the first one.
pub(crate) fn device_of(name: &str) -> PyResult<DeviceName> {
    name.parse().map_err(|error: regraft::UnknownDevice| Class::Regraft.error(format!("device: {error}")))
}

pub(crate) fn mode_of(name: &str) -> PyResult<Mode> {
    match name {
        "refittable" => Ok(Mode::Refittable),
        "stripped" => Ok(Mode::Stripped),
        "frozen" => Ok(Mode::Frozen),
        other => {
            Err(Class::Regraft.error(format!("mode: expected 'refittable', 'stripped' or 'frozen', found '{other}'")))
        }
    }
}

fn keep_of(name: &str) -> PyResult<KeepSources> {
    match name {
        "embedded" => Ok(KeepSources::Embedded),
        "prepacked" => Ok(KeepSources::Prepacked),
        "reference" => Ok(KeepSources::Reference),
        "none" => Ok(KeepSources::None),
        other => Err(Class::Regraft
            .error(format!("keep_sources: expected 'embedded', 'prepacked', 'reference' or 'none', found '{other}'"))),
    }
}
