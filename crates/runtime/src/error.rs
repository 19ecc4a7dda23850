use regraft_adapter::AdapterErrorKind;
use regraft_backend::{BackendError, OutOfMemory, PackError, RunErrorKind, SequenceError};
use regraft_engine::EngineErrorKind;
use regraft_ir::EvalError;
use regraft_tensor::Explanation;
use regraft_weights::{Misfit, Problem, WeightsErrorKind};

use crate::{Difference, ReserveError};

/// An error of a model or a run.
///
/// ```
/// # use regraft_runtime::{Model, RefitOptions, RuntimeErrorKind};
/// # use regraft_weights::StateDict;
/// # fn f(model: &Model, weights: &StateDict) {
/// if let Err(error) = model.refit(weights, &RefitOptions::new())
///     && let RuntimeErrorKind::OutOfMemory(refused) = error.kind()
/// {
///     println!("{} bytes are missing on {}", refused.bytes, refused.device);
/// }
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct RuntimeError(Box<RuntimeErrorKind>);

impl RuntimeError {
    /// The kind of this error.
    pub fn kind(&self) -> &RuntimeErrorKind {
        &self.0
    }
}

impl<K: Into<RuntimeErrorKind>> From<K> for RuntimeError {
    fn from(kind: K) -> Self {
        RuntimeError(Box::new(kind.into()))
    }
}

/// The kinds of [`RuntimeError`].
///
/// ```
/// # use regraft_runtime::{Model, RuntimeErrorKind};
/// # use regraft_tensor::Tensor;
/// # fn f(model: &Model, inputs: &[Tensor]) {
/// match model.run(inputs) {
///     Ok(outputs) => println!("{} outputs", outputs.len()),
///     Err(error) => match error.kind() {
///         RuntimeErrorKind::Input(wrong) => println!("give other inputs: {wrong}"),
///         kind => println!("{kind}"),
///     },
/// }
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeErrorKind {
    /// An input does not have the declared type.
    #[error("input {0}")]
    Input(EvalError),
    /// A node failed.
    #[error("{op} at `{scope}`: {error}")]
    Node {
        /// Name of the op.
        op: &'static str,
        /// Module path in the original model.
        scope: String,
        /// What happened.
        #[source]
        error: RunErrorKind,
    },
    /// A run failed at an unknown node.
    #[error("the run failed: {0}")]
    Run(RunErrorKind),
    /// A run failed after it had changed the session's state.
    #[error("a run failed after it had changed the state of the session; start again from the weights (reset_state)")]
    StateLost,
    /// The device refuses something.
    #[error(transparent)]
    Device(#[from] BackendError),
    /// The device, or the system, does not have the memory; nothing was computed.
    #[error("{0}; free memory there, run smaller batches, or trim models that are not in use")]
    OutOfMemory(#[from] OutOfMemory),
    /// A plan at known sizes contradicts itself.
    #[error(transparent)]
    Sequence(SequenceError),
    /// Sources cannot be read back, compared or merged.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// A node cannot be prepared.
    #[error("at `{scope}`: {error}")]
    Prepare {
        /// Module path in the original model.
        scope: String,
        /// What does not fit.
        #[source]
        error: BackendError,
    },
    /// The sizes of the inputs do not work out for a node.
    #[error("{op} at `{scope}` does not take these sizes: {why}")]
    Sizes {
        /// Name of the op.
        op: &'static str,
        /// Module path in the original model.
        scope: String,
        /// What does not work out.
        why: String,
    },
    /// The weights do not fit.
    #[error(transparent)]
    Weights(#[from] WeightsErrorKind),
    /// An adapter does not fit.
    #[error(transparent)]
    Adapter(#[from] AdapterErrorKind),
    /// A recipe failed.
    #[error("slot {slot}: {why}")]
    Recipe {
        /// Name of the slot.
        slot: String,
        /// What happened.
        why: String,
    },
    /// The engine is malformed, or was built for another machine.
    #[error(transparent)]
    Engine(#[from] EngineErrorKind),
    /// The weights in the engine's file are not those that were written; nothing was computed from them.
    #[error("{0}")]
    DamagedFile(Explanation),
    /// A stripped engine was run.
    #[error("the engine is stripped: it has no weights yet; bind it to a weights file first (regraft bind)")]
    NotBound,
    /// A frozen engine was given new weights.
    #[error("the engine is frozen: it holds no recipes, so its weights cannot change; compile with --mode refittable")]
    Frozen,
    /// A source cannot be read or adapted.
    #[error("source {name}: {why}")]
    Source {
        /// Its name.
        name: String,
        /// What happened.
        why: String,
    },
    /// New slots do not fit into the memory limit, or the device does not have their memory; nothing was computed.
    #[error(
        "new slots do not fit into memory: {0}; free memory or raise the limit, remove variants, or refit exclusively"
    )]
    Memory(ReserveError),
    /// A run started while the weights were being changed in place.
    #[error("the weights are being changed in place; run again when that is done")]
    ChangingInPlace,
    /// There is no generation to go back to.
    #[error("there is no generation to go back to; keep the previous one from the next refit on (set_keep_previous)")]
    NoPrevious,
    /// A staged generation differs from the reference evaluator.
    #[error("verification failed, nothing was published: {0}")]
    Differs(Difference),
    /// Two adapters of one name were given.
    #[error("two adapters are called `{0}`; give each its own name")]
    AdapterTwice(String),
    /// A variant is of another engine.
    #[error("`{0}` is of another engine: a variant must be a fork of its model")]
    ForeignVariant(String),
    /// A staged generation was made from one that no longer serves.
    #[error("the generation was not staged from the one that serves now; stage it again on this model")]
    Stale,
    /// A result is too large for memory.
    #[error("{what} is too large for memory")]
    TooLarge {
        /// What.
        what: String,
    },
}

impl RuntimeErrorKind {
    /// In parts.
    pub fn explained(&self) -> Explanation {
        match self {
            RuntimeErrorKind::Weights(kind) => kind.explained(),
            RuntimeErrorKind::Adapter(kind) => kind.explained(),
            RuntimeErrorKind::Engine(kind) => kind.explained(),
            RuntimeErrorKind::DamagedFile(explanation) => explanation.clone(),
            _ => Explanation::new(self.to_string()),
        }
    }

    pub(crate) fn no_host_memory(bytes: usize, what: &str) -> Self {
        RuntimeErrorKind::TooLarge { what: format!("{what} of {bytes} bytes") }
    }

    pub(crate) fn fit(problems: Vec<Problem>, sources: usize) -> Self {
        WeightsErrorKind::Fit(Misfit::new(problems, sources)).into()
    }
}
