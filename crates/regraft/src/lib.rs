//! Compile a trained network once, and replace its weights without compiling again.
//!
//! ```
//! use regraft::{Compiler, ModelExt as _, RefitOptions, Tensor};
//!
//! # let folder = tempfile::tempdir()?;
//! # let (program, weights) = ("../conformance/fixtures/mlp_gelu.pt2", "../conformance/fixtures/mlp_gelu.pt2");
//! # let path = folder.path().join("tuned.rgf");
//! let model = Compiler::new().compile(program)?.into_model()?;
//! let x = Tensor::from_slice(&[3, 10], &[0.5f32; 30]);
//! let before = model.run(&[x.clone()])?;
//!
//! let report = model.refit(&regraft::open_weights(weights)?, &RefitOptions::new())?;
//! println!("{report}");
//! let after = model.run(&[x])?;
//! model.save(path)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The names of this crate are the stable API of Regraft. Types that are only reached through them, such as the nodes of a
//! [`Plan`], are in [`crates`], and may change with every minor version.
#![forbid(unsafe_code)]

mod cached;
mod compiler;
mod deltas;
mod devices;
mod doctor;
mod error;
#[cfg(doctest)]
mod guides;
mod model_ext;
mod profile;
mod samples;
mod tune;

use std::path::Path;

#[doc(inline)]
pub use regraft_adapter::{Adapter, AdapterError, AdapterErrorKind, AdapterOptions, AdapterSet};
#[doc(inline)]
pub use regraft_backend::{BackendError, Device, ForeignQueue, Lent, OutOfMemory, Pace, RunErrorKind};
#[doc(inline)]
pub use regraft_checkpoint::{CheckpointError, CheckpointErrorKind, OpenOptions};
#[doc(inline)]
pub use regraft_compile::{
    CompileError,
    pipeline::Observer,
    tune::{Records, RecordsError, RecordsErrorKind, TuneMode, TuneReport},
};
#[doc(inline)]
pub use regraft_engine::{
    Checked, Engine, EngineError, EngineErrorKind, Evaluated, KeepSources, Kept, ManifestEntry, Mode, Plan,
    atomic_file::{AtomicFile, WriteError},
    cache,
};
#[doc(inline)]
pub use regraft_ir::ops::WeightFormat;
#[cfg(feature = "object-cache")]
#[doc(inline)]
pub use regraft_object_cache::ObjectCache;
#[doc(inline)]
pub use regraft_runtime::{
    Adapters, Changed, Difference, Generation, Input, Model, PoolMemory, Refit, RefitObserver, RefitOptions,
    ReserveError, RuntimeError, RuntimeErrorKind, Session, Slot, SlotCopier, SourceContent, Staged, StepTime,
    VariantMemory, Variants, Verification, WeightReader, publish_together,
};
#[doc(inline)]
pub use regraft_tensor::{
    AlignedVec, BorrowedBytes, Buffer, DType, Element, ErrorKind as TensorErrorKind, Explanation, RemoteBytes, Symbol,
    Tensor, TensorError,
};
#[doc(inline)]
pub use regraft_weights::{
    AdapterReport, BakedAdapter, Cause, Constants, Digest, Ignored, MatchOptions, Misfit, NameRule, Phase, PhaseTimes,
    Problem, Recipe, RefitMap, RefitReport, Rename, SlotReport, SourceInfo, StateDict, Unknown, WeightsError,
    WeightsErrorKind, match_sources,
};
pub use {regraft_adapter as adapter, regraft_delta as delta, regraft_import as import, regraft_ir as ir};

pub use self::{
    cached::{CacheUse, SizeError, cache_folder, cache_limit, disk_cache, parse_size},
    compiler::{Compiled, Compiler},
    deltas::apply_delta,
    devices::{DeviceError, DeviceName, UnknownDevice, cpu, device},
    doctor::{Doctor, Folder, Gpu, Library, Processor, doctor},
    error::Error,
    model_ext::{InputsError, ModelExt, Outputs, model},
    profile::{NodeProfile, Profile, Roof, profile},
    samples::{InputSizeError, random_inputs},
    tune::{Tune, Tuned},
};

/// The crates below this one, for types that are reached through the names here. They may change with every minor version.
pub mod crates {
    pub use regraft_adapter as adapter;
    pub use regraft_backend as backend;
    pub use regraft_checkpoint as checkpoint;
    pub use regraft_compile as compile;
    pub use regraft_delta as delta;
    pub use regraft_engine as engine;
    pub use regraft_import as import;
    pub use regraft_ir as ir;
    pub use regraft_runtime as runtime;
    pub use regraft_tensor as tensor;
    pub use regraft_weights as weights;
}

/// How many threads a run may use.
///
/// ```
/// # use regraft::Threads;
/// let device = regraft::cpu(Threads::Count(2));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Threads {
    /// One per core.
    #[default]
    Auto,
    /// This many, at least one.
    Count(usize),
}

/// Reads weights from a file, whose content tells the format:
///
/// - `.safetensors`;
/// - a state dict of `torch.save` (`.pt`, `.pth`, `.bin`, `.ckpt`), of any version of PyTorch, or a checkpoint that has one
///   inside; nothing in it is executed, and objects beside the tensors are left out (see [`StateDict::skipped`]);
/// - the state dict of an exported program (`.pt2`), whatever the program does;
/// - the initializers of an `.onnx`, with what stands in its nodes beside them ([`StateDict::constants`]);
/// - the `.index.json` that names the shards of a model, beside it;
/// - a folder as `save_pretrained` of Hugging Face writes it.
///
/// ```
/// let weights = regraft::open_weights("../conformance/fixtures/mlp_gelu.pt2")?;
/// for (name, tensor) in &weights {
///     println!("{name}: {}{:?}", tensor.dtype(), tensor.shape());
/// }
/// assert!(weights.get("0.weight").is_some());
/// # Ok::<(), regraft::Error>(())
/// ```
///
/// # Errors
/// When the file cannot be read, is of no such format, is damaged or holds a dtype that Regraft does not know.
pub fn open_weights(path: impl AsRef<Path>) -> Result<StateDict, Error> {
    open_weights_with(path, &OpenOptions::default())
}

/// As [`open_weights`]; the options say which part of the file is read.
///
/// ```
/// # use regraft::OpenOptions;
/// # let path = "../conformance/fixtures/mlp_gelu.pt2";
/// let first = regraft::open_weights_with(path, &OpenOptions::new().key("0".to_owned()))?;
/// assert!(first.get("weight").is_some() && first.get("bias").is_some());
/// # Ok::<(), regraft::Error>(())
/// ```
///
/// # Errors
/// As [`open_weights`]; also when the part is not there.
pub fn open_weights_with(path: impl AsRef<Path>, options: &OpenOptions) -> Result<StateDict, Error> {
    let path = path.as_ref();
    if regraft_checkpoint::is_exported_program(path) {
        let weights = regraft_import::read_pt2_weights(path)?;
        return Ok(regraft_checkpoint::part_of(weights, path, options)?);
    }
    Ok(regraft_checkpoint::open_with(path, options)?)
}

/// Reads an adapter for the engine of `map` from a file or a folder. See [`Adapter::open`].
///
/// ```no_run
/// use std::sync::Arc;
///
/// use regraft::{AdapterOptions, Model, ModelExt as _};
///
/// let model = Model::load("model.rgf")?;
/// let style = regraft::open_adapter("style.safetensors", &AdapterOptions::new().alpha(16.0), model.refit_map())?;
/// model.adapters().set(&[(Arc::new(style), 0.8)])?;
/// # Ok::<(), regraft::Error>(())
/// ```
///
/// # Errors
/// When a file cannot be read, or everything that does not fit.
pub fn open_adapter(path: impl AsRef<Path>, options: &AdapterOptions, map: &RefitMap) -> Result<Adapter, Error> {
    Ok(Adapter::open(path.as_ref(), options, map, |file: &Path| open_weights(file))?)
}
