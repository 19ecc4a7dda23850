/// Any error of Regraft. Its text says what happened, where, and what to do about it.
///
/// ```
/// use regraft::{Error, Model, ModelExt as _};
///
/// let error = Model::load("missing.rgf").unwrap_err();
/// assert!(matches!(error, Error::Engine(_)));
/// assert!(error.to_string().contains("missing.rgf"));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A device cannot be used.
    #[error(transparent)]
    Device(#[from] crate::DeviceError),
    /// The program could not be imported.
    #[error(transparent)]
    Import(#[from] regraft_import::ImportError),
    /// The program could not be compiled.
    #[error(transparent)]
    Compile(#[from] regraft_compile::CompileError),
    /// An engine file could not be read or written.
    #[error(transparent)]
    Engine(#[from] regraft_engine::EngineError),
    /// A weight file could not be read.
    #[error(transparent)]
    Checkpoint(#[from] regraft_checkpoint::CheckpointError),
    /// A delta of weights could not be read, written or applied.
    #[error(transparent)]
    Delta(#[from] regraft_delta::DeltaError),
    /// The weights do not fit.
    #[error(transparent)]
    Weights(#[from] regraft_weights::WeightsError),
    /// An adapter could not be read, or does not fit.
    #[error(transparent)]
    Adapter(#[from] regraft_adapter::AdapterError),
    /// Inputs that are given by name are not the ones that the program takes.
    #[error(transparent)]
    Inputs(#[from] crate::InputsError),
    /// A run or a refit failed.
    #[error(transparent)]
    Runtime(#[from] regraft_runtime::RuntimeError),
    /// A file of tuning records could not be read.
    #[error(transparent)]
    Records(#[from] regraft_compile::tune::RecordsError),
    /// A file could not be written.
    #[error(transparent)]
    Write(#[from] regraft_engine::atomic_file::WriteError),
}
