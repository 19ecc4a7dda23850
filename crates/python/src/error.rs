//! From errors of Regraft to the exceptions of `regraft.errors`.

use pyo3::{prelude::*, types::PyTuple};
use regraft::{
    AdapterErrorKind, CheckpointErrorKind, Error, Problem, RuntimeErrorKind, WeightsErrorKind,
    adapter::AdapterProblem,
    import::{At, ImportError, ImportErrorKind},
};
use serde_json::{Value, json};

/// A class of `regraft.errors`.
#[derive(Clone, Copy)]
pub(crate) enum Class {
    Compile,
    Weights,
    Input,
    NotBound,
    Frozen,
    EngineFile,
    Verification,
    Stale,
    Regraft,
}

impl Class {
    fn name(self) -> &'static str {
        match self {
            Class::Compile => "CompileError",
            Class::Weights => "WeightsError",
            Class::Input => "InputError",
            Class::NotBound => "NotBoundError",
            Class::Frozen => "FrozenError",
            Class::EngineFile => "EngineFileError",
            Class::Verification => "VerificationError",
            Class::Stale => "StaleError",
            Class::Regraft => "RegraftError",
        }
    }

    /// An exception of this class.
    pub(crate) fn error(self, message: impl Into<String>) -> PyErr {
        let message = message.into();
        Python::attach(|py| self.build(py, (message,)).unwrap_or_else(|failed| failed))
    }

    fn build<'py>(self, py: Python<'py>, args: impl pyo3::call::PyCallArgs<'py>) -> PyResult<PyErr> {
        let class = py.import("regraft.errors")?.getattr(self.name())?;
        Ok(PyErr::from_value(class.call1(args)?))
    }
}

/// What any error of Regraft is in Python.
pub(crate) trait IntoPyErr {
    /// The exception.
    fn into_py(self) -> PyErr;
}

/// With the way that Python has to give an engine weights.
const NOT_BOUND: &str = "the engine is stripped: it has no weights yet\n  help: give it all of them with refit(), as a state dict or a file";

impl<E: Into<Error>> IntoPyErr for E {
    fn into_py(self) -> PyErr {
        let error = self.into();
        if let Some(error) = weights_error(&error) {
            return error;
        }
        match &error {
            Error::Import(error) => import_error(error, error.to_string()),
            Error::Compile(_) | Error::Records(_) => Class::Compile.error(error.to_string()),
            Error::Adapter(_) | Error::Weights(_) | Error::Checkpoint(_) => Class::Weights.error(error.to_string()),
            Error::Engine(_) | Error::Write(_) => Class::EngineFile.error(error.to_string()),
            Error::Runtime(runtime) if matches!(runtime.kind(), RuntimeErrorKind::NotBound) => {
                Class::NotBound.error(NOT_BOUND)
            }
            Error::Runtime(runtime) => class_of(runtime.kind()).error(error.to_string()),
            _ => Class::Regraft.error(error.to_string()),
        }
    }
}

fn class_of(kind: &RuntimeErrorKind) -> Class {
    match kind {
        RuntimeErrorKind::Input(_) | RuntimeErrorKind::Node { .. } | RuntimeErrorKind::Sizes { .. } => Class::Input,
        RuntimeErrorKind::Weights(_)
        | RuntimeErrorKind::Adapter(_)
        | RuntimeErrorKind::Source { .. }
        | RuntimeErrorKind::AdapterTwice(_) => Class::Weights,
        RuntimeErrorKind::Engine(_) | RuntimeErrorKind::DamagedFile(_) => Class::EngineFile,
        RuntimeErrorKind::NotBound => Class::NotBound,
        RuntimeErrorKind::Frozen => Class::Frozen,
        RuntimeErrorKind::Differs(_) => Class::Verification,
        RuntimeErrorKind::Stale => Class::Stale,
        _ => Class::Regraft,
    }
}

/// `WeightsError(message, facts)`, where the facts are JSON: problems, and what advice depends on. Advice is worded in Python.
fn weights_error(error: &Error) -> Option<PyErr> {
    let facts = match error {
        Error::Weights(error) => facts_of_weights(error.kind())?,
        Error::Adapter(error) => facts_of_adapter(error.kind())?,
        Error::Checkpoint(error) => match error.kind() {
            CheckpointErrorKind::Several { keys } => json!({"cause": {"cause": "several", "keys": keys}}),
            CheckpointErrorKind::NoKey { keys, .. } => json!({"cause": {"cause": "no_key", "keys": keys}}),
            _ => return None,
        },
        Error::Runtime(error) => match error.kind() {
            RuntimeErrorKind::Weights(kind) => facts_of_weights(kind)?,
            RuntimeErrorKind::Adapter(kind) => facts_of_adapter(kind)?,
            _ => return None,
        },
        _ => return None,
    };
    let args = (error.to_string(), facts.to_string());
    Some(Python::attach(|py| Class::Weights.build(py, args)).unwrap_or_else(|failed| failed))
}

fn facts_of_weights(kind: &WeightsErrorKind) -> Option<Value> {
    let WeightsErrorKind::Fit(misfit) = kind else { return None };
    let problem = |p: &Problem| problem(p.name(), p.what(), serde_json::to_value(p));
    Some(json!({"problems": misfit.problems.iter().map(problem).collect::<Vec<_>>(), "cause": misfit.cause}))
}

fn facts_of_adapter(kind: &AdapterErrorKind) -> Option<Value> {
    let AdapterErrorKind::Fit { problems, .. } = kind else { return None };
    let has_no_scale = problems.iter().any(|p| matches!(p, AdapterProblem::NoScale { .. }));
    let problem = |p: &AdapterProblem| problem(p.key(), p.what(), serde_json::to_value(p));
    Some(json!({
        "problems": problems.iter().map(problem).collect::<Vec<_>>(),
        "cause": {"cause": if has_no_scale { "no_scale" } else { "other" }},
    }))
}

fn problem(name: &str, what: String, details: serde_json::Result<Value>) -> Value {
    json!({"name": name, "what": what, "details": details.unwrap_or_default()})
}

/// `CompileError(message, unsupported)`, where `unsupported` lists `(node, operator, reason)`: the node is empty where all
/// nodes of the operator are meant, the operator where the node is meant whatever it is.
pub(crate) fn import_error(error: &ImportError, message: String) -> PyErr {
    let of = |at: &At, reason: String| (at.name.clone(), at.op.clone(), reason);
    let unsupported: Vec<(String, String, String)> = match error.kind() {
        ImportErrorKind::UnknownOps(ops) => {
            ops.iter().map(|op| (String::new(), op.target.clone(), "the operator has no translation".into())).collect()
        }
        ImportErrorKind::Unsupported { at, what, .. } => vec![of(at, format!("{what} is not supported"))],
        ImportErrorKind::Schema { at, problem, .. } => vec![of(at, problem.clone())],
        ImportErrorKind::Symbol { at, expr, problem, .. } => vec![of(at, format!("`{expr}` {problem}"))],
        _ => Vec::new(),
    };
    Python::attach(|py| {
        let list = PyTuple::new(py, unsupported)?;
        Class::Compile.build(py, (message, list))
    })
    .unwrap_or_else(|failed| failed)
}
