//! Compile a trained network once, and replace its weights without compiling again.
//!
//! ```no_run
//! use regraft::{Compiler, ModelExt as _, RefitOptions};
//!
//! let model = Compiler::new().compile("model.pt2")?.into_model()?;
//! # let x = regraft::Tensor::from_slice(&[1], &[0f32]);
//! let before = model.run(&[x.clone()])?;
//! let report = model.refit(&regraft::open_weights("tuned.safetensors")?, &RefitOptions::default())?;
//! println!("{report}");
//! let after = model.run(&[x])?;
//! model.save("tuned.rgf")?;
//! # Ok::<(), regraft::Error>(())
//! ```
//!
//! This crate is the stable face of Regraft; the crates below it may change with every version.
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
    RuntimeError, RuntimeErrorKind, Session, Slot, SlotCopier, SourceContent, Staged, StepTime, VariantMemory,
    Variants, publish_together,
};
pub use regraft_tensor::{
    AlignedVec, BorrowedBytes, Buffer, DType, Explanation, RemoteBytes, Symbol, Tensor, TensorError,
};
pub use regraft_weights::{
    AdapterReport, BakedAdapter, Cause, Constants, Digest, Ignored, MatchOptions, Misfit, NameRule, Phase, PhaseTimes,
    Problem, Recipe, RefitMap, RefitReport, Rename, SlotReport, SourceInfo, StateDict, Unknown, WeightsError,
    WeightsErrorKind, match_sources,
};

pub use self::{
    cached::{CacheUse, cache_folder, cache_limit, disk_cache, parse_size},
    compiler::{Compiled, Compiler},
    deltas::apply_delta,
    devices::{DeviceError, DeviceName, UnknownDevice, cpu, device},
    doctor::{Doctor, doctor},
    error::Error,
    model_ext::{InputsError, ModelExt, Outputs, model},
    profile::{NodeProfile, Profile, Roof, profile},
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
/// - the initializers of an `.onnx`;
/// - the `.index.json` that names the shards of a model, beside it;
/// - a folder as `save_pretrained` of Hugging Face writes it.
///
/// # Errors
/// When the file cannot be read, is of no such format, is damaged or holds a dtype that Regraft does not know.
pub fn open_weights(path: impl AsRef<Path>) -> Result<StateDict, Error> {
    open_weights_with(path, &OpenOptions::default())
}

/// As [`open_weights`], of which part the options say.
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

/// Reads an adapter for the engine of `map` from a file or a folder; `options` hold what is said of it besides. See
/// [`Adapter::open`].
///
/// # Errors
/// When a file cannot be read, or everything that does not fit.
pub fn open_adapter(path: impl AsRef<Path>, options: &AdapterOptions, map: &RefitMap) -> Result<Adapter, Error> {
    Ok(Adapter::open(path.as_ref(), options, map, |file: &Path| open_weights(file))?)
}
