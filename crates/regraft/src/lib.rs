//! Compile a trained network once, and let its weights change for ever after.
//!
//! ```no_run
//! use regraft::{CompileOptions, KeepSources, Mode, RefitOptions, Threads};
//!
//! let compiled = regraft::compile("model.pt2".as_ref(), &CompileOptions::default(), &mut ())?;
//! let model = regraft::model(compiled.engine, regraft::cpu(Threads::Auto))?;
//! # let x = regraft::Tensor::from_slice(&[1], &[0f32]);
//! let before = model.run(&[x.clone()])?;
//! let report = model.refit(&regraft::open_weights("tuned.safetensors".as_ref())?, &RefitOptions::default())?;
//! println!("{} slots in {:.1} ms", report.recomputed_slots.len(), report.phases_ms.total());
//! let after = model.run(&[x])?;
//! regraft::save(&model, Mode::Refittable, KeepSources::Embedded, "tuned.rgf".as_ref())?;
//! # Ok::<(), regraft::Error>(())
//! ```
//!
//! This crate is the stable face of Regraft; the crates below it may change with every version.
#![forbid(unsafe_code)]

mod cached;
mod compile;
mod deltas;
mod devices;
mod doctor;
mod error;
mod samples;
mod tune;

use std::{path::Path, sync::Arc};

pub use regraft_adapter::{self as adapter, Adapter, AdapterError, AdapterErrorKind, AdapterOptions, AdapterSet};
pub use regraft_backend::{Device, ForeignQueue, Lent, RunErrorKind};
pub use regraft_checkpoint::{CheckpointError, CheckpointErrorKind, OpenOptions};
pub use regraft_compile::{
    pipeline::Observer,
    tune::{Records, RecordsError, TuneMode, TuneReport},
};
pub use regraft_delta as delta;
pub use regraft_engine::{
    Checked, Engine, EngineErrorKind, Evaluated, KeepSources, Kept, ManifestEntry, Mode, Plan,
    atomic_file::{AtomicFile, WriteError},
    cache,
};
pub use regraft_import as import;
pub use regraft_ir::{self as ir, ops::WeightFormat};
#[cfg(feature = "object-cache")]
pub use regraft_object_cache::ObjectCache;
pub use regraft_runtime::{
    Adapters, Changed, Generation, Input, Model, PoolMemory, Refit, RefitObserver, RefitOptions, ReserveError,
    RuntimeError, RuntimeErrorKind, Session, Slot, SlotCopier, SourceContent, Staged, VariantMemory, Variants,
    publish_together,
};
pub use regraft_tensor::{AlignedVec, BorrowedBytes, Buffer, DType, RemoteBytes, Symbol, Tensor, TensorError};
pub use regraft_weights::{
    AdapterReport, BakedAdapter, Cause, Constants, Digest, Ignored, MatchOptions, Misfit, NameRule, Phase, PhaseTimes,
    Problem, Recipe, RefitMap, RefitReport, Rename, SlotReport, SourceInfo, StateDict, Unknown, WeightsError,
    WeightsErrorKind, match_sources,
};

pub use self::{
    cached::{CacheUse, cache_folder, cache_limit, disk_cache, parse_size},
    compile::{CompileOptions, Compiled, compile, compile_imported},
    deltas::apply_delta,
    devices::{DeviceError, DeviceName, UnknownDevice, cpu, device},
    doctor::{Doctor, doctor},
    error::Error,
    samples::random_inputs,
    tune::{Tune, Tuned},
};

/// How many threads a run may use.
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
/// - the initialisers of an `.onnx`;
/// - the `.index.json` that names the shards of a model, beside it;
/// - a folder as `save_pretrained` of Hugging Face writes it.
///
/// # Errors
/// When the file cannot be read, is of no such format, is damaged or holds a dtype that Regraft does not know.
pub fn open_weights(path: &Path) -> Result<StateDict, Error> {
    open_weights_with(path, &OpenOptions::default())
}

/// As [`open_weights`], of which part the options say.
///
/// # Errors
/// As [`open_weights`]; also when the part is not there.
pub fn open_weights_with(path: &Path, options: &OpenOptions) -> Result<StateDict, Error> {
    if regraft_checkpoint::is_exported_program(path) {
        let weights = regraft_import::read_pt2_weights(path)?;
        return Ok(regraft_checkpoint::part_of(weights, path, options)?);
    }
    Ok(regraft_checkpoint::open_with(path, options)?)
}

/// Reads an adapter for the engine of `map` from a file or a folder; `options` hold what is said of it besides. See
/// [`Adapter::open`].
///
/// # Errors
/// When a file cannot be read, or everything that does not fit.
pub fn open_adapter(path: &Path, options: &AdapterOptions, map: &RefitMap) -> Result<Adapter, Error> {
    Ok(Adapter::open(path, options, map, open_weights)?)
}

/// Loads an engine file for the CPU of this machine. Weights are mapped; that they are undamaged is found out beside
/// everything else, and the first run or refit waits for it (see [`Model::check_file`]).
///
/// # Errors
/// When the file is damaged, of another version, or built for another machine.
pub fn load(engine: &Path, threads: Threads) -> Result<Model, Error> {
    model(Engine::open(engine)?, cpu(threads))
}

/// A model of `engine` that finds sources kept by reference in every weight file that [`open_weights`] reads.
///
/// # Errors
/// When the engine was built for another machine or is malformed.
pub fn model(engine: Engine, device: Arc<dyn Device>) -> Result<Model, Error> {
    Ok(Model::new(engine, device, Arc::new(|path: &Path| Ok(open_weights(path)?)))?)
}

/// Saves a model's engine with its serving weights; `keep` says how a refittable engine keeps its sources. Returns the
/// bytes written.
///
/// # Errors
/// When there are no weights yet, the mode does not fit, or the file cannot be written; what was there is kept then.
pub fn save(model: &Model, mode: Mode, keep: KeepSources, path: &Path) -> Result<u64, Error> {
    Ok(model.to_engine(mode, keep)?.write(path)?)
}
