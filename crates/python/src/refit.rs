//! Refits: what is asked for, adapters, and staged generations.

use std::{
    borrow::Cow,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use pyo3::{
    exceptions::PyKeyError,
    prelude::*,
    types::{IntoPyDict as _, PyDict, PyString, PyTuple},
};
use regraft::{
    Changed, Phase, Refit, RefitMap, RefitObserver, RefitOptions, RefitReport, RuntimeError, RuntimeErrorKind,
    StateDict, Tensor,
    adapter::{self, AdapterConfig, AdapterOptions},
};

use crate::{
    error::{Class, IntoPyErr},
    exit::detached,
    memory::{Elsewhere, tensors_of},
    model::Model,
    names::constants_of,
    weights::state_dict_of,
};

/// An adapter that is matched to the sources of an engine. For a program of several engines it has a part for each of them.
#[pyclass(frozen, module = "regraft")]
pub(crate) struct Adapter(Vec<Arc<adapter::Adapter>>);

impl Adapter {
    pub(crate) fn new(
        py: Python<'_>,
        models: &[&regraft::Model],
        name: &str,
        weights: &Bound<'_, PyAny>,
        config: Option<&str>,
        alpha: Option<f64>,
    ) -> PyResult<Adapter> {
        let maps: Vec<&RefitMap> = models.iter().map(|model| model.refit_map()).collect();
        let map = match maps.as_slice() {
            [map] => Cow::Borrowed(*map),
            several => Cow::Owned(adapter::together(several)),
        };
        let map = &*map;
        let config = config.map(serde_json::from_str).transpose();
        let config: Option<AdapterConfig> = config.map_err(|error| {
            Class::Weights.error(format!("{name}: not a valid configuration of an adapter: {error}"))
        })?;
        if alpha.is_some_and(|alpha| !alpha.is_finite()) {
            return Err(Class::Weights.error(format!("{name}: alpha must be a finite number")));
        }
        let options = AdapterOptions::new().config(config).alpha(alpha);
        let is_path = weights.is_instance_of::<PyString>() || weights.hasattr("__fspath__")?;
        let adapter = if is_path {
            let path: PathBuf = weights.extract()?;
            detached(py, || regraft::open_adapter(&path, &options, map)).map(|mut found| {
                found.name = name.into();
                found
            })
        } else {
            // The adapter keeps its factors, and the caller may change his.
            let weights: StateDict = state_dict_of(weights)?
                .iter()
                .map(|(key, tensor)| Ok((key.to_owned(), tensor.to_owned_memory()?)))
                .collect::<Result<_, regraft::TensorError>>()
                .map_err(|error| Class::Weights.error(format!("{name}: {error}")))?;
            detached(py, || Ok(adapter::Adapter::from_state_dict(name, &weights, options, map)?))
        };
        let adapter = adapter.map_err(IntoPyErr::into_py)?;
        let parts = if maps.len() == 1 { vec![adapter] } else { adapter.parts(&maps).map_err(IntoPyErr::into_py)? };
        Ok(Adapter(parts.into_iter().map(Arc::new).collect()))
    }

    /// The adapter of a module of one engine.
    fn whole(&self) -> PyResult<Arc<adapter::Adapter>> {
        match self.0.as_slice() {
            [whole] => Ok(whole.clone()),
            parts => {
                Err(Class::Weights
                    .error(format!("it was made for a module of {} engines, not for this one", parts.len())))
            }
        }
    }
}

/// Reads an adapter for engines that run one program together; `adapter.part(i)` is for the i-th of them.
#[pyfunction]
#[pyo3(signature = (models, name, weights, config=None, alpha=None))]
pub(crate) fn adapter_for(
    py: Python<'_>,
    models: Vec<PyRef<'_, Model>>,
    name: &str,
    weights: &Bound<'_, PyAny>,
    config: Option<&str>,
    alpha: Option<f64>,
) -> PyResult<Adapter> {
    let models: Vec<&regraft::Model> = models.iter().map(|model| &model.0).collect();
    Adapter::new(py, &models, name, weights, config, alpha)
}

#[pymethods]
impl Adapter {
    /// Its name in reports.
    #[getter]
    fn name(&self) -> &str {
        self.0.first().map_or("", |part| part.name.as_str())
    }

    /// Number of sources that it changes.
    #[getter]
    fn layers(&self) -> usize {
        self.0.iter().map(|part| part.layers.len()).sum()
    }

    /// Names of the sources that it changes.
    #[getter]
    fn sources(&self) -> Vec<String> {
        self.0.iter().flat_map(|part| part.sources()).map(str::to_owned).collect()
    }

    /// How many of its values are infinite or not a number.
    #[getter]
    fn non_finite(&self) -> usize {
        self.0.iter().map(|part| part.non_finite().0).sum()
    }

    /// The part for one engine of an adapter for several.
    fn part(&self, index: usize) -> PyResult<Adapter> {
        let part = self.0.get(index).cloned();
        part.map(|part| Adapter(vec![part])).ok_or_else(|| Class::Weights.error("it was made for another module"))
    }

    /// Keys of its file for other models of a pipeline, such as a text encoder.
    #[getter]
    fn foreign_keys(&self) -> Vec<String> {
        self.0.first().map(|part| part.foreign_keys.clone()).unwrap_or_default()
    }

    fn __repr__(&self) -> String {
        format!("regraft.Adapter('{}', {} layers)", self.name(), self.layers())
    }
}

/// What a refit is asked to do.
pub(crate) struct Order {
    weights: Option<StateDict>,
    options: RefitOptions,
    adapters: Option<Vec<(Arc<adapter::Adapter>, f64)>>,
    samples: Option<Vec<Vec<Tensor>>>,
    observer: Option<Observer>,
}

impl Order {
    pub(crate) fn new(
        weights: Option<&Bound<'_, PyAny>>,
        (partial, ignore_unknown, reject_non_finite): (bool, bool, bool),
        constants: Option<&Bound<'_, PyAny>>,
        changed: Option<&Bound<'_, PyAny>>,
        adapters: Option<&Bound<'_, PyAny>>,
        verify: Option<&Bound<'_, PyAny>>,
        observer: Option<Py<PyAny>>,
    ) -> PyResult<Order> {
        let changed = match changed {
            None => Changed::Detect,
            Some(all) if all.is_instance_of::<PyString>() => match all.extract::<String>()?.as_str() {
                "all" => Changed::All,
                other => return Err(Class::Weights.error(format!("changed: expected 'all' or names, found '{other}'"))),
            },
            Some(names) => Changed::Keys(names.try_iter()?.map(|name| name?.extract()).collect::<PyResult<_>>()?),
        };
        let adapter = |item: PyResult<Bound<'_, PyAny>>| {
            let (adapter, scale): (PyRef<'_, Adapter>, f64) = item?.extract()?;
            Ok((adapter.whole()?, scale))
        };
        let adapters = adapters.map(|list| list.try_iter()?.map(adapter).collect::<PyResult<_>>()).transpose()?;
        // One sample: the inputs of one run.
        let samples = verify.map(|inputs| Ok::<_, PyErr>(vec![tensors_of(inputs, Elsewhere::Copied)?])).transpose()?;
        Ok(Order {
            weights: weights.map(state_dict_of).transpose()?,
            options: RefitOptions::new()
                .partial(partial)
                .ignore_unknown(ignore_unknown)
                .reject_non_finite(reject_non_finite)
                .constants(constants_of(constants)?)
                .changed(changed),
            adapters,
            samples,
            observer: observer.map(Observer),
        })
    }

    /// Computes the new generation, and verifies it where that is asked for.
    pub(crate) fn stage(&self, model: &regraft::Model) -> PyResult<regraft::Staged> {
        let staged = self.refit().and_then(|refit| refit.stage(model)).map_err(IntoPyErr::into_py)?;
        if let Some(samples) = &self.samples {
            staged.verify(samples).map_err(IntoPyErr::into_py)?;
        }
        Ok(staged)
    }

    /// Stages and publishes; when another refit comes first, again on top of it.
    pub(crate) fn run(&self, model: &regraft::Model) -> PyResult<RefitReport> {
        loop {
            match self.stage(model)?.publish() {
                Err(error) if matches!(error.kind(), RuntimeErrorKind::Stale) => {}
                outcome => return outcome.map_err(IntoPyErr::into_py),
            }
        }
    }

    fn refit(&self) -> Result<Refit<'_>, RuntimeError> {
        let mut refit = Refit::new().reject_non_finite(self.options.reject_non_finite);
        if let Some(weights) = &self.weights {
            refit = refit.weights(weights, &self.options);
        }
        if let Some(adapters) = &self.adapters {
            refit = refit.adapters(adapters)?;
        }
        Ok(match &self.observer {
            Some(observer) => refit.observe(observer),
            None => refit,
        })
    }
}

/// The names of a report: strings of Python once they are looked at.
#[pyclass(frozen, module = "regraft")]
pub(crate) struct ReportNames(RefitReport);

#[pymethods]
impl ReportNames {
    /// Those of a field of `RefitReport`.
    fn of<'py>(&self, py: Python<'py>, field: &str) -> PyResult<Bound<'py, PyTuple>> {
        let report = &self.0;
        let list = match field {
            "applied" => &report.applied,
            "unchanged" => &report.unchanged,
            "kept" => &report.kept,
            "adapted" => &report.adapted,
            "shared_slots" => &report.shared_slots,
            "fetched" => &report.fetched,
            "recomputed_slots" => {
                return PyTuple::new(py, report.recomputed_slots.iter().map(|slot| &slot.name));
            }
            other => return Err(PyKeyError::new_err(other.to_owned())),
        };
        PyTuple::new(py, list)
    }
}

/// The `regraft.RefitReport` of a refit.
pub(crate) fn report_of(py: Python<'_>, report: RefitReport) -> PyResult<Bound<'_, PyAny>> {
    let facts = PyDict::new(py);
    facts.set_item("adapters", PyTuple::new(py, report.adapters.iter().map(|one| (&one.name, one.scale)))?)?;
    facts.set_item("baked", PyTuple::new(py, report.baked.iter().map(|one| (&one.name, one.scale)))?)?;
    let non_finite = report.adapters.iter().map(|one| (&one.name, one.non_finite));
    facts.set_item("non_finite", PyTuple::new(py, non_finite)?)?;
    facts.set_item("bytes", report.bytes)?;
    facts.set_item("naming", &report.naming)?;
    facts.set_item("ignored", PyTuple::new(py, report.ignored.iter().map(|one| (one.name(), one.kind())))?)?;
    facts.set_item("phases", report.phases_ms.named().into_py_dict(py)?)?;
    let module = py.import(pyo3::intern!(py, "regraft.report"))?;
    module.call_method1(pyo3::intern!(py, "report_of"), (ReportNames(report), facts))
}

/// A generation that is ready to serve and does not yet.
#[pyclass(frozen, module = "regraft")]
pub(crate) struct Staged(Mutex<Option<regraft::Staged>>);

impl Staged {
    pub(crate) fn new(staged: regraft::Staged) -> Staged {
        Staged(Mutex::new(Some(staged)))
    }

    fn take(&self) -> PyResult<regraft::Staged> {
        let staged = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        staged.ok_or_else(published_already)
    }

    fn with<T>(&self, look: impl FnOnce(&regraft::Staged) -> PyResult<T>) -> PyResult<T> {
        let staged = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        staged.as_ref().ok_or_else(published_already).and_then(look)
    }
}

fn published_already() -> PyErr {
    Class::Stale.error("it was published already: stage it again")
}

#[pymethods]
impl Staged {
    /// Its number: the one that `Model.run_with_generation` tells once it serves.
    #[getter]
    fn generation(&self) -> PyResult<u64> {
        self.with(|staged| Ok(staged.generation().id))
    }

    /// The digest of its weights, see `Model.weights_digest`.
    fn weights_digest(&self, py: Python<'_>) -> PyResult<String> {
        detached(py, || {
            self.with(|staged| {
                let digest = staged.model().weights_digest(staged.generation());
                digest.map(|digest| digest.to_string()).map_err(IntoPyErr::into_py)
            })
        })
    }

    /// Makes it the serving generation, in one atomic step. Returns a `RefitReport`.
    fn publish<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let staged = self.take()?;
        let report = detached(py, || staged.publish()).map_err(IntoPyErr::into_py)?;
        report_of(py, report)
    }
}

/// Publishes what was staged on several models: on all of them, or on none. Returns a `RefitReport` for each.
#[pyfunction]
pub(crate) fn publish_together<'py>(
    py: Python<'py>,
    staged: Vec<PyRef<'py, Staged>>,
) -> PyResult<Vec<Bound<'py, PyAny>>> {
    let staged = staged.iter().map(|staged| staged.take()).collect::<PyResult<Vec<_>>>()?;
    let reports = detached(py, || regraft::publish_together(staged)).map_err(IntoPyErr::into_py)?;
    reports.into_iter().map(|report| report_of(py, report)).collect()
}

/// A callable `(phase, done, total)` of Python; bytes are zero where a phase begins.
struct Observer(Py<PyAny>);

impl Observer {
    fn tell(&self, phase: &str, done: usize, total: usize) {
        Python::attach(|py| {
            if let Err(error) = self.0.call1(py, (phase, done, total)) {
                // Watching must not decide what happens.
                error.write_unraisable(py, Some(self.0.bind(py)));
            }
        });
    }
}

impl RefitObserver for Observer {
    fn phase(&self, phase: Phase) {
        let name = match phase {
            Phase::Match => "match",
            Phase::Check => "check",
            Phase::Compare => "compare",
            Phase::Stage => "stage",
            Phase::Publish => "publish",
            Phase::Retire => "retire",
        };
        self.tell(name, 0, 0);
    }

    fn staged(&self, done: usize, total: usize) {
        self.tell("stage", done, total);
    }
}
