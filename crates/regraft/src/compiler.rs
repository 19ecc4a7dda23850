//! From a program's file to an engine.

use std::{fmt, path::Path, sync::Arc, time::Instant};

use regraft_backend::Device;
use regraft_compile::{
    lower::Precision,
    pipeline::{self, Backend, Observer, Unobserved},
};
use regraft_engine::{Engine, KeepSources, Mode, cache::EngineCache};
use regraft_import::Imported;
use regraft_ir::ops::WeightFormat;
use regraft_runtime::Model;
use regraft_tensor::DType;

use crate::{
    DeviceName, Error, Threads, Tune, Tuned,
    cached::{self, CacheUse},
    device, model, tune,
};

/// Compiles programs to engines.
///
/// ```
/// use regraft::{Compiler, DType, Mode, Tensor};
///
/// # let path = "../conformance/fixtures/mlp_gelu.pt2";
/// let compiled = Compiler::new().mode(Mode::Refittable).dtype(DType::BF16).compile(path)?;
/// println!("{} nodes in {:.1} s", compiled.nodes, compiled.build_seconds);
///
/// let model = compiled.into_model()?;
/// let outputs = model.run(&[Tensor::zeros(DType::F32, &[3, 10])?])?;
/// assert_eq!(outputs[0].dtype(), DType::F32);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Compiler {
    mode: Mode,
    keep_sources: KeepSources,
    identical: bool,
    pub(crate) dtype: Option<DType>,
    pub(crate) weights: Option<WeightFormat>,
    device: DeviceName,
    threads: Threads,
    pub(crate) tune: Tune,
    cache: Option<Arc<dyn EngineCache>>,
}

impl Compiler {
    /// A compiler of refittable engines that hold their sources, for the CPU, without tuning and without a cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the engine holds.
    #[must_use]
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// How a refittable engine keeps its sources.
    #[must_use]
    pub fn keep_sources(mut self, keep: KeepSources) -> Self {
        self.keep_sources = keep;
        self
    }

    /// Whether the engine is bound to the weights it is built with: then it takes no others.
    #[must_use]
    pub fn identical(mut self, identical: bool) -> Self {
        self.identical = identical;
        self
    }

    /// The float, f16 or bf16, that a program of f32 is computed in, as autocast does; its weights and interface stay f32.
    #[must_use]
    pub fn dtype(mut self, dtype: impl Into<Option<DType>>) -> Self {
        self.dtype = dtype.into();
        self
    }

    /// The small integers that weights of linear layers are stored as. They are rounded as slots are made, so that refits and
    /// adapters work from checkpoints in full precision.
    #[must_use]
    pub fn weights(mut self, format: impl Into<Option<WeightFormat>>) -> Self {
        self.weights = format.into();
        self
    }

    /// The device that the engine is for. It is opened to choose kernels, and to make slots where the engine holds them.
    #[must_use]
    pub fn device(mut self, device: DeviceName) -> Self {
        self.device = device;
        self
    }

    /// Threads that make the slots of an engine that holds them, and of the runs that tuning measures.
    #[must_use]
    pub fn threads(mut self, threads: Threads) -> Self {
        self.threads = threads;
        self
    }

    /// How to choose between kernels: a [`TuneMode`](crate::TuneMode), [`Records`](crate::Records) that pin the choices, or a
    /// whole [`Tune`].
    #[must_use]
    pub fn tune(mut self, tune: impl Into<Tune>) -> Self {
        self.tune = tune.into();
        self
    }

    /// Where to look for an engine of the same program, whatever its names and weights, and to store one that was built.
    #[must_use]
    pub fn cache(mut self, cache: Arc<dyn EngineCache>) -> Self {
        self.cache = Some(cache);
        self
    }

    /// Compiles a program: a `.pt2` file as `torch.export.save` writes it, or an ONNX model.
    ///
    /// # Errors
    /// When the file is not a valid program, uses ops that are not supported (all are listed), or weights that it should hold
    /// are missing for the mode asked for. A cache that fails is not an error: what happened is in [`Compiled::cache`].
    pub fn compile(&self, program: impl AsRef<Path>) -> Result<Compiled, Error> {
        self.compile_observed(program, &mut Unobserved)
    }

    /// As [`Compiler::compile`]; `observer` sees the program between the stages, unless the engine comes from the cache.
    ///
    /// # Errors
    /// As [`Compiler::compile`].
    pub fn compile_observed(&self, program: impl AsRef<Path>, observer: &mut dyn Observer) -> Result<Compiled, Error> {
        let start = Instant::now();
        let imported = regraft_import::import(program.as_ref())?;
        let import_seconds = start.elapsed().as_secs_f64();
        Ok(Compiled { import_seconds, ..self.compile_imported_observed(imported, observer)? })
    }

    /// As [`Compiler::compile`], from a program that was imported already; its weights may be absent.
    ///
    /// ```
    /// # use regraft::{Compiler, import};
    /// let imported = import::import("../conformance/fixtures/mlp_gelu.pt2")?;
    /// println!("{} sources", imported.graph.sources.len());
    /// let engine = Compiler::new().compile_imported(imported)?.engine;
    /// # Ok::<(), regraft::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Compiler::compile`], of a program that was read.
    pub fn compile_imported(&self, imported: Imported) -> Result<Compiled, Error> {
        self.compile_imported_observed(imported, &mut Unobserved)
    }

    /// As [`Compiler::compile_imported`]; `observer` sees the program between the stages, unless the engine comes from the cache.
    ///
    /// # Errors
    /// As [`Compiler::compile_imported`].
    pub fn compile_imported_observed(
        &self,
        imported: Imported,
        observer: &mut dyn Observer,
    ) -> Result<Compiled, Error> {
        let start = Instant::now();
        let nodes = imported.graph.nodes().len();
        let device = device(self.device, self.threads)?;
        let (engine, tuned, cache) = match &self.cache {
            Some(cache) => cached::build(cache, imported, self, &*device, observer)?,
            None => {
                let (engine, tuned) = self.build(imported, &*device, observer)?;
                (engine, Some(tuned), CacheUse::Off)
            }
        };
        let engine = match self.mode {
            _ if engine.mode == Mode::Stripped => engine,
            Mode::Stripped => engine.stripped(),
            Mode::Refittable if self.keep_sources == KeepSources::Embedded => engine,
            Mode::Frozen | Mode::Refittable => model(engine, device)?.to_engine(self.mode, self.keep_sources)?,
        };
        let build_seconds = start.elapsed().as_secs_f64();
        let (device, threads) = (self.device, self.threads);
        Ok(Compiled { engine, nodes, import_seconds: 0.0, build_seconds, cache, tuned, device, threads })
    }

    /// Whether engines are bound to the weights they are built with.
    pub(crate) fn is_identical(&self) -> bool {
        self.identical
    }

    /// Builds the engine with the weights of the program.
    pub(crate) fn build(
        &self,
        imported: Imported,
        device: &dyn Device,
        observer: &mut dyn Observer,
    ) -> Result<(Engine, Tuned), Error> {
        Ok(tune::tuned(&self.tune, device, |tuning| {
            let precision = Precision { dtype: self.dtype, weights: self.weights };
            let build = pipeline::Options { identical: self.identical, precision, tuning };
            pipeline::compile(imported.graph, &imported.weights, Backend::of(device), build, observer)
        })?)
    }
}

/// A compiled program, with what compiling found out.
///
/// ```
/// # let path = "../conformance/fixtures/mlp_gelu.pt2";
/// let compiled = regraft::Compiler::new().compile(path)?;
/// println!("{compiled}"); // 5 nodes, refittable for x86_64 avx2+fma, in 0.0 s
/// let model = compiled.into_model()?;
/// # Ok::<(), regraft::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
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
    device: DeviceName,
    threads: Threads,
}

/// One line: how large the program is, how long building took, and for which device.
impl fmt::Display for Compiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mode, target, seconds) = (self.engine.mode, &self.engine.target, self.build_seconds);
        write!(f, "{} nodes, {mode} for {target}, in {seconds:.1} s", self.nodes)
    }
}

impl Compiled {
    /// A model of the engine, on the device that it was compiled for.
    ///
    /// # Errors
    /// When the device cannot be opened, or slots cannot be made.
    pub fn into_model(self) -> Result<Model, Error> {
        model(self.engine, device(self.device, self.threads)?)
    }
}
