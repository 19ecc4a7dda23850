//! From a program and its weights to a model.

use std::sync::Arc;

use pyo3::{
    prelude::*,
    types::{PyDict, PyTuple},
};
use regraft::{
    CacheUse, Changed, Compiler, DType, Device, Engine, Evaluated, KeepSources, Mode, Observer, RefitOptions,
    RuntimeError, RuntimeErrorKind, Tune, TuneMode, WeightFormat,
};

use crate::{
    cache::cache_of,
    error::{Class, IntoPyErr},
    exit::detached,
    model::{self, Model},
    program::Program,
    weights::state_dict_of,
};

/// Compiles a program for a device of this machine and gives it weights, where there are any: one for each source of the
/// program, or those that it was read with. Returns the model, and what compiling found out. `observer` is called with
/// `(number, count, seconds left)` for each problem that is measured. `siblings` are models of other programs over the same
/// weights, to share slots with.
#[pyfunction]
#[pyo3(signature = (program, weights, *, mode="refittable", identical=false, dtype=None, weight_format=None, threads=None, tune="off", cache=None, observer=None, device="cpu", siblings=Vec::new()))]
pub(crate) fn compile<'py>(
    py: Python<'py>,
    program: &Program,
    weights: Option<&Bound<'py, PyAny>>,
    mode: &str,
    identical: bool,
    dtype: Option<&str>,
    weight_format: Option<&str>,
    threads: Option<usize>,
    tune: &str,
    cache: Option<&Bound<'py, PyAny>>,
    observer: Option<Py<PyAny>>,
    device: &str,
    siblings: Vec<PyRef<'py, Model>>,
) -> PyResult<Bound<'py, PyTuple>> {
    let siblings: Vec<regraft::Model> = siblings.iter().map(|sibling| sibling.0.clone()).collect();
    let mode = model::mode_of(mode)?;
    let weights = weights.map(state_dict_of).transpose()?;
    let (threads, device) = (model::threads_of(threads)?, model::device_of(device)?);
    let cache_dir = regraft::cache_folder().filter(|_| cache.is_some()).map(|folder| folder.join("tuning"));
    // Weights of a file come with its program; others by a refit.
    let compiled_mode = if weights.is_none() && program.has_weights() { mode } else { Mode::Stripped };
    let mut compiler = Compiler::new()
        .mode(compiled_mode)
        .identical(identical)
        .device(device)
        .dtype(dtype.map(dtype_of).transpose()?)
        .weights(weight_format.map(format_of).transpose()?)
        .threads(threads)
        .tune(Tune::from(tune_of(tune)?).cache_dir(cache_dir));
    if let Some(cache) = cache {
        compiler = compiler.cache(cache_of(cache));
    }
    let imported = program.0.clone();
    let (model, compiled) = detached(py, || -> Result<_, regraft::Error> {
        let compiled = compiler.compile_imported_observed(imported, &mut Tuning(observer))?;
        let engine = compiled.engine.clone();
        let device = regraft::device(device, threads)?;
        let model = match &weights {
            Some(weights) => bound(engine, weights, mode, identical, device, &siblings)?,
            None => regraft::model(engine, device)?,
        };
        Ok((model, compiled))
    })
    .map_err(IntoPyErr::into_py)?;
    let facts = PyDict::new(py);
    facts.set_item("nodes", compiled.nodes)?;
    facts.set_item("build_seconds", compiled.build_seconds)?;
    let mut warnings = compiled.tuned.map_or_else(Vec::new, |tuned| tuned.warnings);
    let (cache, key) = match compiled.cache {
        CacheUse::Off => ("off", None),
        CacheUse::Hit { key } => ("hit", Some(key.to_string())),
        CacheUse::Built { key, warnings: of_cache, .. } => {
            warnings.extend(of_cache);
            ("built", Some(key.to_string()))
        }
    };
    facts.set_item("cache", cache)?;
    facts.set_item("key", key)?;
    facts.set_item("warnings", warnings)?;
    facts.set_item("evaluated", evaluated(model.plan().evaluated()))?;
    PyTuple::new(py, [Bound::new(py, Model(model))?.into_any(), facts.into_any()])
}

/// Who is told how tuning advances.
struct Tuning(Option<Py<PyAny>>);

impl Observer for Tuning {
    fn measuring(&mut self, number: usize, count: usize, seconds: f64) {
        let Some(observer) = &self.0 else { return };
        Python::attach(|py| {
            if let Err(error) = observer.call1(py, (number, count, seconds)) {
                // Watching must not decide what happens.
                error.write_unraisable(py, Some(observer.bind(py)));
            }
        });
    }
}

/// The model of an engine with weights. They come by a refit, which keeps no memory of others.
fn bound(
    engine: Engine,
    weights: &regraft::StateDict,
    mode: Mode,
    identical: bool,
    device: Arc<dyn Device>,
    siblings: &[regraft::Model],
) -> Result<regraft::Model, regraft::Error> {
    let infos = &engine.refit_map.sources;
    let of_source = |info: &regraft::SourceInfo| info.names().find_map(|name| weights.get(name).cloned());
    let values = infos.iter().map(|info| {
        let Some(tensor) = of_source(info) else { return Ok(None) };
        // No state dict brings these again: the engine holds them.
        if info.kind.in_state_dict() {
            Ok(Some(tensor))
        } else {
            tensor.to_owned_memory().map(Some).map_err(|error| {
                RuntimeError::from(RuntimeErrorKind::Source { name: info.name.clone(), why: error.to_string() })
            })
        }
    });
    let values = values.collect::<Result<_, _>>()?;
    let names: Vec<String> =
        infos.iter().filter(|i| i.kind.in_state_dict()).flat_map(|i| i.names().map(String::from)).collect();
    let given = names.into_iter().filter_map(|name| Some((name.clone(), weights.get(&name)?.clone()))).collect();
    let engine = engine.with_weights(values, identical).stripped();
    let model = regraft::model(engine, device.clone())?;
    siblings.iter().try_for_each(|sibling| model.share_slots_with(sibling))?;
    if mode == Mode::Stripped {
        return Ok(model);
    }
    model.refit(&given, &RefitOptions::new().changed(Changed::All))?;
    match mode {
        Mode::Frozen => regraft::model(model.to_engine(Mode::Frozen, KeepSources::None)?, device),
        _ => Ok(model),
    }
}

/// `(operator, dtype, nodes, modules, bytes)` for what no kernel runs: the evaluator does, far slower.
fn evaluated(groups: Vec<Evaluated>) -> Vec<(&'static str, &'static str, usize, Vec<String>, u64)> {
    groups.into_iter().map(|g| (g.op, g.dtype.name(), g.nodes, g.modules, g.bytes)).collect()
}

fn dtype_of(name: &str) -> PyResult<DType> {
    match name {
        "bf16" => Ok(DType::BF16),
        "f16" => Ok(DType::F16),
        other => Err(Class::Compile.error(format!("dtype: expected 'bf16' or 'f16', found '{other}'"))),
    }
}

fn format_of(name: &str) -> PyResult<WeightFormat> {
    let refuse = || Class::Compile.error(format!("weights: expected 'int8' or 'int4', found '{name}'"));
    WeightFormat::from_name(name).ok_or_else(refuse)
}

fn tune_of(name: &str) -> PyResult<TuneMode> {
    match name {
        "off" => Ok(TuneMode::Off),
        "fast" => Ok(TuneMode::Fast),
        "full" => Ok(TuneMode::Full),
        other => Err(Class::Compile.error(format!("tune: expected 'off', 'fast' or 'full', found '{other}'"))),
    }
}
