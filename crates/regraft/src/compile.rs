//! From a program's file to an engine.

use std::{path::Path, sync::Arc, time::Instant};

use regraft_backend::Device;
use regraft_compile::{
    lower::Precision,
    pipeline::{self, Backend, Observer},
};
use regraft_engine::{Engine, KeepSources, Mode, cache::EngineCache};
use regraft_import::Imported;
use regraft_ir::ops::WeightFormat;
use regraft_tensor::DType;

use crate::{
    DeviceName, Error, Threads, Tune, Tuned,
    cached::{self, CacheUse},
    device, model, tune,
};

/// What to compile to.
#[derive(Clone, Debug)]
pub struct CompileOptions {
    /// What the engine holds.
    pub mode: Mode,
    /// How a refittable engine keeps its sources.
    pub keep_sources: KeepSources,
    /// Bind the engine to the weights it is built with: it takes no others.
    pub identical: bool,
    /// The float, f16 or bf16, that a program of f32 is computed in, as autocast does; its weights and interface stay f32.
    pub dtype: Option<DType>,
    /// The small integers that weights of linear layers are stored as. They are rounded as slots are made, so that refits and
    /// adapters work from checkpoints in full precision.
    pub weights: Option<WeightFormat>,
    /// The device that the engine is for; it is opened to choose kernels, and to make slots where the engine holds them.
    pub device: DeviceName,
    /// Threads that make the slots of an engine that holds them, and of the runs that tuning measures.
    pub threads: Threads,
    /// How to choose between kernels.
    pub tune: Tune,
    /// Where to look for an engine of the same program, whatever its names and weights, and to store one that was built.
    pub cache: Option<Arc<dyn EngineCache>>,
}

impl Default for CompileOptions {
    fn default() -> Self {
        CompileOptions {
            mode: Mode::Refittable,
            keep_sources: KeepSources::Embedded,
            identical: false,
            dtype: None,
            weights: None,
            device: DeviceName::Cpu,
            threads: Threads::Auto,
            tune: Tune::default(),
            cache: None,
        }
    }
}

/// A compiled program, with what compiling found out.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The engine. Stripped, whatever was asked for, when the program's file holds no weights.
    pub engine: Engine,
    /// Nodes of the imported program.
    pub nodes: usize,
    /// Seconds of the import, where it was part of compiling.
    pub import_seconds: f64,
    /// Seconds of lowering and building, or of taking the engine from the cache.
    pub build_seconds: f64,
    /// What the cache did.
    pub cache: CacheUse,
    /// How kernels were chosen; `None` when the engine came from the cache.
    pub tuned: Option<Tuned>,
}

/// Compiles a program, a `.pt2` file as `torch.export.save` writes it or an ONNX model, for a device of this machine. `observer` sees the program
/// between the stages, unless the engine comes from the cache; `&mut ()` looks away.
///
/// # Errors
/// When the file is no valid program, uses ops that are not supported (all are listed), or weights that it should hold
/// are missing for the mode asked for. A cache that fails is no error: what happened is in [`Compiled::cache`].
pub fn compile(program: &Path, options: &CompileOptions, observer: &mut dyn Observer) -> Result<Compiled, Error> {
    let start = Instant::now();
    let imported = regraft_import::import(program)?;
    let import_seconds = start.elapsed().as_secs_f64();
    Ok(Compiled { import_seconds, ..compile_imported(imported, options, observer)? })
}

/// [`compile`] from a program that was imported already; its weights may be absent.
///
/// # Errors
/// As [`compile`], of a program that was read.
pub fn compile_imported(
    imported: Imported,
    options: &CompileOptions,
    observer: &mut dyn Observer,
) -> Result<Compiled, Error> {
    let start = Instant::now();
    let nodes = imported.graph.nodes().len();
    let device = device(options.device, options.threads)?;
    let (engine, tuned, cache) = match &options.cache {
        Some(cache) => cached::build(cache, imported, options, &*device, observer)?,
        None => {
            let (engine, tuned) = build(imported, options, &*device, observer)?;
            (engine, Some(tuned), CacheUse::Off)
        }
    };
    let engine = match options.mode {
        _ if engine.mode == Mode::Stripped => engine,
        Mode::Stripped => engine.stripped(),
        Mode::Refittable if options.keep_sources == KeepSources::Embedded => engine,
        Mode::Frozen | Mode::Refittable => model(engine, device)?.to_engine(options.mode, options.keep_sources)?,
    };
    let build_seconds = start.elapsed().as_secs_f64();
    Ok(Compiled { engine, nodes, import_seconds: 0.0, build_seconds, cache, tuned })
}

/// Builds the engine with the weights of the program.
pub(crate) fn build(
    imported: Imported,
    options: &CompileOptions,
    device: &dyn Device,
    observer: &mut dyn Observer,
) -> Result<(Engine, Tuned), Error> {
    Ok(tune::tuned(&options.tune, device, |tuning| {
        let precision = Precision { dtype: options.dtype, weights: options.weights };
        let build = pipeline::Options { identical: options.identical, precision, tuning };
        pipeline::compile(imported.graph, &imported.weights, Backend::of(device), build, observer)
    })?)
}
