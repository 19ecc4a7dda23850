use regraft_adapter::AdapterErrorKind;
use regraft_runtime::RuntimeErrorKind;
use regraft_tensor::Explanation;

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

impl Error {
    /// In parts: what happened, what is wrong with each thing, and what to do. Its text is these, laid out.
    pub fn explained(&self) -> Explanation {
        match self {
            Error::Import(error) => error.explained(),
            Error::Compile(error) => error.explained(),
            Error::Engine(error) => error.explained(),
            Error::Checkpoint(error) => error.explained(),
            Error::Delta(error) => error.explained(),
            Error::Weights(error) => error.kind().explained(),
            Error::Adapter(error) => of_adapter(error.kind()),
            Error::Runtime(error) => match error.kind() {
                RuntimeErrorKind::Adapter(kind) => of_adapter(kind),
                kind => kind.explained(),
            },
            Error::Write(error) => error.explained(),
            Error::Device(_) | Error::Inputs(_) | Error::Records(_) => Explanation::new(self.to_string()),
        }
    }
}

fn of_adapter(kind: &AdapterErrorKind) -> Explanation {
    match kind {
        // [`crate::open_adapter`] reads with a function of this crate.
        AdapterErrorKind::Weights(error) => match error.downcast_ref::<Error>() {
            Some(error) => error.explained(),
            None => kind.explained(),
        },
        _ => kind.explained(),
    }
}

#[cfg(test)]
mod tests {
    use regraft_adapter::{Adapter, AdapterOptions};
    use regraft_weights::RefitMap;

    use super::*;

    fn of(error: Error) -> Explanation {
        let explanation = error.explained();
        assert_eq!(explanation.to_string(), error.to_string(), "the text is the parts, laid out");
        explanation
    }

    #[test]
    fn errors_come_in_parts() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str, content: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).expect("a file");
            path
        };
        let text = path("notes.txt", "no weights");
        let found = of(crate::open_weights(&text).expect_err("no weights"));
        assert!(found.what.starts_with(&text.display().to_string()), "{found}");
        assert!(found.help.is_some_and(|help| help.contains(".safetensors")));
        let found = of(regraft_engine::Engine::open(&text).expect_err("no engine").into());
        assert!(found.what.contains("expected an engine file") && found.help.is_some());
        let found = of(crate::Compiler::new().compile(&text).expect_err("no program"));
        assert!(found.what.starts_with(&text.display().to_string()) && !found.what.contains('\n'), "{found}");
        // An adapter whose file is not a weight file says what is wrong with the file.
        let map = RefitMap { sources: vec![], twins: vec![], recipes: vec![] };
        let found = of(crate::open_adapter(&text, &AdapterOptions::default(), &map).expect_err("no adapter"));
        assert!(found.help.is_some() && !found.what.contains('\n'), "{found}");
        let config = path("adapter_config.json", "[");
        let found = of(regraft_adapter::read_config(&config).expect_err("no configuration").into());
        assert_eq!(found.help.as_deref(), Some("save the adapter again"));
        let empty = Adapter::from_state_dict("style", &crate::StateDict::new(), AdapterOptions::default(), &map);
        let found = of(empty.expect_err("no tensors").into());
        assert_eq!(found.problems, [(String::new(), "there are no tensors in it".to_owned())]);
    }
}
