//! Compile a trained network once, and let its weights change for ever after.
//!
//! ```no_run
//! use regraft::{CompileOptions, Mode, Model, RefitOptions, StateDict, Threads};
//!
//! let compiled = regraft::compile("model.pt2".as_ref(), &CompileOptions::default(), &mut ())?;
//! let model = Model::new(compiled.engine, regraft::cpu(Threads::Auto))?;
//! # let x = regraft::Tensor::from_slice(&[1], &[0f32]);
//! let before = model.run(&[x.clone()])?;
//! let report = model.refit(&StateDict::open("tuned.safetensors".as_ref())?, &RefitOptions::default())?;
//! println!("{} slots in {:.1} ms", report.recomputed_slots.len(), report.phases_ms.total());
//! let after = model.run(&[x])?;
//! regraft::save(&model, Mode::Refittable, "tuned.rgf".as_ref())?;
//! # Ok::<(), regraft::Error>(())
//! ```
//!
//! This crate is the stable face of Regraft; the crates below it may change with every version.
#![forbid(unsafe_code)]

mod error;
mod tune;

use std::{path::Path, sync::Arc, time::Instant};

use regraft_backend_cpu::CpuBackend;
pub use regraft_compile::{
    pipeline::Observer,
    tune::{Records, RecordsError, TuneMode, TuneReport},
};
pub use regraft_engine::{
    Engine, Mode, Plan,
    atomic_file::{AtomicFile, WriteError},
};
pub use regraft_ir as ir;
pub use regraft_runtime::{
    Adapters, Changed, Model, Refit, RefitObserver, RefitOptions, RuntimeError, RuntimeErrorKind, Session, Staged,
    VariantMemory, Variants, publish_together,
};
pub use regraft_tensor::{DType, Tensor};
pub use regraft_weights::{
    AdapterReport, Digest, Generation, Phase, PhaseTimes, PoolMemory, Problem, Recipe, RefitMap, RefitReport, Slot,
    SlotReport, SourceContent, SourceInfo, StateDict, WeightsError, WeightsErrorKind,
    adapter::{self, Adapter, AdapterSet},
};

pub use self::{error::Error, tune::Tune};

/// How many threads a run may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Threads {
    /// One per core.
    #[default]
    Auto,
    /// This many, at least one.
    Count(usize),
}

/// What to compile to.
#[derive(Clone, Debug)]
pub struct CompileOptions {
    /// What the engine holds.
    pub mode: Mode,
    /// Bind the engine to the weights it is built with: it takes no others.
    pub identical: bool,
    /// Threads that make the slots of a frozen engine, and of the runs that tuning measures.
    pub threads: Threads,
    /// How to choose between kernels.
    pub tune: Tune,
}

impl Default for CompileOptions {
    fn default() -> Self {
        CompileOptions { mode: Mode::Refittable, identical: false, threads: Threads::Auto, tune: Tune::default() }
    }
}

/// A compiled program, with what compiling found out.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The engine. Stripped, whatever was asked for, when the program's file holds no weights.
    pub engine: Engine,
    /// Nodes of the imported program.
    pub nodes: usize,
    /// Seconds of the import.
    pub import_seconds: f64,
    /// Seconds of lowering and building.
    pub build_seconds: f64,
    /// The choices between kernels; pinned, they give the same engine again.
    pub records: Records,
    /// How the choices were made.
    pub tune_report: TuneReport,
    /// What was wrong with the tuning cache. It is no error: the engine is as good, but was or will be measured again.
    pub tune_warnings: Vec<String>,
}

/// The CPU of this machine.
pub fn cpu(threads: Threads) -> Arc<dyn regraft_backend::Backend> {
    Arc::new(match threads {
        Threads::Auto => CpuBackend::new(None),
        Threads::Count(n) => CpuBackend::new(Some(n)),
    })
}

/// Compiles a `.pt2` program, as `torch.export.save` writes it, for the CPU of this machine. `observer` sees the program
/// between the stages; `&mut ()` looks away.
///
/// # Errors
/// When the file is no valid program, uses ops that are not supported (all are listed), or weights that it should hold
/// are missing for the mode asked for.
pub fn compile(program: &Path, options: &CompileOptions, observer: &mut dyn Observer) -> Result<Compiled, Error> {
    let start = Instant::now();
    let imported = regraft_import::import_pt2(program)?;
    let import_seconds = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let nodes = imported.graph.nodes().len();
    let backend = cpu(options.threads);
    let (output, tune_warnings) = tune::tuned(&options.tune, &*backend, |tuning| {
        let build = regraft_compile::pipeline::Options { identical: options.identical, tuning };
        regraft_compile::pipeline::compile(imported.graph, &imported.weights, &*backend, build, observer)
    })?;
    let engine = output.engine;
    let engine = match options.mode {
        _ if engine.mode == Mode::Stripped => engine,
        Mode::Refittable => engine,
        Mode::Stripped => engine.stripped(),
        Mode::Frozen => Model::new(engine, backend)?.to_engine(Mode::Frozen)?,
    };
    let build_seconds = start.elapsed().as_secs_f64();
    let (records, tune_report) = (output.records, output.tune_report);
    Ok(Compiled { engine, nodes, import_seconds, build_seconds, records, tune_report, tune_warnings })
}

/// Reads weights from a file, whose content tells the format:
///
/// - `.safetensors`;
/// - a state dict of `torch.save` (`.pt`, `.pth`, `.bin`), or a checkpoint that has one under `state_dict`,
///   `model_state_dict` or `model`; nothing in it is executed;
/// - the state dict of an exported program (`.pt2`), whatever the program does;
/// - the initialisers of an `.onnx`;
/// - the `.index.json` that names the shards of a model, beside it.
///
/// # Errors
/// When the file cannot be read, is of no such format, is damaged or holds a dtype that Regraft does not know.
pub fn open_weights(path: &Path) -> Result<StateDict, Error> {
    if regraft_weights::files::is_exported_program(path) {
        return Ok(regraft_import::read_pt2_weights(path)?);
    }
    Ok(StateDict::open(path)?)
}

/// Loads an engine file for the CPU of this machine.
///
/// # Errors
/// When the file is damaged, of another version, or built for another machine.
pub fn load(engine: &Path, threads: Threads) -> Result<Model, Error> {
    Ok(Model::new(Engine::read(engine)?, cpu(threads))?)
}

/// Saves a model's engine with its serving weights. Returns the bytes written.
///
/// # Errors
/// When there are no weights yet, the mode does not fit, or the file cannot be written; what was there is kept then.
pub fn save(model: &Model, mode: Mode, path: &Path) -> Result<u64, Error> {
    Ok(model.to_engine(mode)?.write(path)?)
}
