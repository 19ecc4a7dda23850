use std::{
    fmt::{self, Write as _},
    path::{Path, PathBuf},
};

use regraft_tensor::TensorError;

/// Why a file could not be imported; names the file.
#[derive(Debug)]
pub struct ImportError {
    path: PathBuf,
    kind: Box<ImportErrorKind>,
}

/// The kinds of [`ImportError`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportErrorKind {
    /// The file could not be opened or mapped.
    #[error("{0}")]
    File(#[from] TensorError),
    /// The container is damaged, or is not what it should be.
    #[error("{}{problem}\n  help: {help}", place(entry))]
    Archive {
        /// Entry of the archive, empty for the archive as a whole.
        entry: String,
        /// What was expected and what was found.
        problem: String,
        /// What to do.
        help: String,
    },
    /// A part of the program is not as its schema says.
    #[error("{}{}{problem}\n  help: {help}", place(entry), place(at))]
    Schema {
        /// Entry of the archive.
        entry: String,
        /// Where in the entry: a JSON path or the name of a node or value.
        at: String,
        /// What was expected and what was found.
        problem: String,
        /// What to do.
        help: String,
    },
    /// A symbolic size could not be understood.
    #[error("{}`{expr}` {problem}\n  help: {help}", place(at))]
    Symbol {
        /// Where the expression stands: the name of the value, or of the range constraint.
        at: String,
        /// The expression.
        expr: String,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        help: String,
    },
    /// Weights that are missing, damaged, or not what the program expects; all of them.
    #[error("{}", weight_list(.0))]
    Weights(Vec<WeightProblem>),
    /// Something that is well formed but that Regraft does not do.
    #[error("{}{what} is not supported\n  help: {help}", place(at))]
    Unsupported {
        /// Where it stands.
        at: String,
        /// What it is.
        what: String,
        /// What to do.
        help: String,
    },
    /// Parts of the program that cannot be translated; all that were found.
    #[error("{}", problem_list(.0))]
    Problems(Vec<ProgramProblem>),
    /// Operators without a translation; all of them.
    #[error("{}", op_list(.0))]
    UnknownOps(Vec<UnknownOp>),
}

/// A weight of a file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightProblem {
    /// Fully qualified name.
    pub name: String,
    /// What was expected and what was found.
    pub problem: String,
}

/// A part of a program that cannot be translated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProgramProblem {
    /// The node, input or output.
    pub at: String,
    /// What was expected and what was found, or what is not supported.
    pub what: String,
    /// What to do.
    pub help: String,
}

/// An operator that has no translation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownOp {
    /// The operator, such as `torch.ops.aten.linear.default`.
    pub target: String,
    /// How often the program uses it.
    pub count: usize,
    /// Module of its first use, such as `encoder.layer.0.attention.self.query`; may be empty.
    pub module_path: String,
}

impl ImportError {
    /// An error about the file at `path`.
    pub fn new(path: impl Into<PathBuf>, kind: ImportErrorKind) -> Self {
        ImportError { path: path.into(), kind: Box::new(kind) }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is wrong with it.
    pub fn kind(&self) -> &ImportErrorKind {
        &self.kind
    }
}

impl fmt::Display for ImportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.kind {
            // It names the file itself.
            ImportErrorKind::File(error) => error.fmt(f),
            kind => write!(f, "{}: {kind}", self.path.display()),
        }
    }
}

impl std::error::Error for ImportError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&*self.kind)
    }
}

fn place(at: &str) -> String {
    if at.is_empty() { String::new() } else { format!("{at}: ") }
}

fn weight_list(problems: &[WeightProblem]) -> String {
    let mut text = match problems.len() {
        1 => "1 weight cannot be used".to_owned(),
        n => format!("{n} weights cannot be used"),
    };
    let width = problems.iter().map(|p| p.name.len()).max().unwrap_or(0).min(60);
    for WeightProblem { name, problem } in problems {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n  {name:<width$}  {problem}");
    }
    text + "\n  help: export and save the program again, or copy the file again if it was transferred"
}

fn problem_list(problems: &[ProgramProblem]) -> String {
    let mut text = match problems {
        [ProgramProblem { at, what, help }] => return format!("{at}: {what}\n  help: {help}"),
        problems => format!("{} parts of the program cannot be translated", problems.len()),
    };
    for ProgramProblem { at, what, help } in problems {
        let _ = write!(text, "\n  {at}: {what}\n    help: {help}");
    }
    text
}

fn op_list(ops: &[UnknownOp]) -> String {
    let mut text = match ops.len() {
        1 => "1 operator has no translation".to_owned(),
        n => format!("{n} operators have no translation"),
    };
    let width = ops.iter().map(|op| op.target.len()).max().unwrap_or(0).min(60);
    for UnknownOp { target, count, module_path } in ops {
        let _ = write!(text, "\n  {target:<width$}  {count}×");
        if !module_path.is_empty() {
            let _ = write!(text, ", first in {module_path}");
        }
    }
    let of_torch = ops.iter().any(|op| op.target.starts_with("torch.") || op.target.starts_with('_'));
    text + match of_torch {
        true => "\n  help: run_decompositions() before saving may express them with operators that are known",
        false => {
            "\n  help: another opset_version, or an exporter without fusions, may express them with operators that are known"
        }
    }
}
