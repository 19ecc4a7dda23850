use std::{
    fmt,
    path::{Path, PathBuf},
};

use regraft_tensor::{Explanation, TensorError};

/// Why a file could not be imported; names the file.
#[derive(Debug)]
pub struct ImportError {
    path: PathBuf,
    kind: Box<ImportErrorKind>,
}

/// The kinds of [`ImportError`].
#[derive(Debug, thiserror::Error)]
#[error("{}", self.explained())]
#[non_exhaustive]
pub enum ImportErrorKind {
    /// The file could not be opened or mapped.
    File(#[from] TensorError),
    /// The container is damaged, or is not what it should be.
    Archive {
        /// Entry of the archive, empty for the archive as a whole.
        entry: String,
        /// What was expected and what was found.
        problem: String,
        /// What to do.
        help: String,
    },
    /// A part of the program is not as its schema says.
    Schema {
        /// Entry of the archive.
        entry: String,
        /// Where in the entry.
        at: At,
        /// What was expected and what was found.
        problem: String,
        /// What to do.
        help: String,
    },
    /// A symbolic size could not be understood.
    Symbol {
        /// Where the expression stands: the value, or the range constraint.
        at: At,
        /// The expression.
        expr: String,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        help: String,
    },
    /// Weights that are missing, damaged, or not what the program expects; all of them.
    Weights(Vec<WeightProblem>),
    /// Something that is well formed but that Regraft does not do.
    Unsupported {
        /// Where it stands.
        at: At,
        /// What it is.
        what: String,
        /// What to do.
        help: String,
    },
    /// Parts of the program that cannot be translated; all that were found.
    Problems(Vec<ProgramProblem>),
    /// Operators without a translation; all of them.
    UnknownOps(Vec<UnknownOp>),
}

/// Where in a program something is; as text `name`, or `name (op in module)`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct At {
    /// A node, value, constraint or JSON path; empty for the program as a whole.
    pub name: String,
    /// The operator, where it is a node: `aten.linear.default`.
    pub op: String,
    /// The module that a node is in; may be empty.
    pub module: String,
}

impl<S: Into<String>> From<S> for At {
    fn from(name: S) -> Self {
        At { name: name.into(), ..At::default() }
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.op.as_str(), self.module.as_str()) {
            ("", _) => f.write_str(&self.name),
            (op, "") => write!(f, "{} ({op})", self.name),
            (op, module) => write!(f, "{} ({op} in {module})", self.name),
        }
    }
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

    /// In parts.
    pub fn explained(&self) -> Explanation {
        match &*self.kind {
            // It names the file itself.
            kind @ ImportErrorKind::File(_) => kind.explained(),
            kind => kind.explained().about(self.path.display()),
        }
    }
}

impl fmt::Display for ImportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.explained().fmt(f)
    }
}

impl ImportErrorKind {
    /// In parts, without the file's name where it is not part of the error.
    pub fn explained(&self) -> Explanation {
        match self {
            ImportErrorKind::File(error) => Explanation::new(error.to_string()),
            ImportErrorKind::Archive { entry, problem, help } => {
                Explanation::new(format!("{}{problem}", before(entry))).help(help)
            }
            ImportErrorKind::Schema { entry, at, problem, help } => {
                Explanation::new(format!("{}{}{problem}", before(entry), before(at))).help(help)
            }
            ImportErrorKind::Symbol { at, expr, problem, help } => {
                Explanation::new(format!("{}`{expr}` {problem}", before(at))).help(help)
            }
            ImportErrorKind::Weights(problems) => of_weights(problems),
            ImportErrorKind::Unsupported { at, what, help } => {
                Explanation::new(format!("{}{what} is not supported", before(at))).help(help)
            }
            ImportErrorKind::Problems(problems) => of_problems(problems),
            ImportErrorKind::UnknownOps(ops) => of_ops(ops),
        }
    }
}

impl std::error::Error for ImportError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&*self.kind)
    }
}

fn before(at: &impl ToString) -> String {
    let at = at.to_string();
    if at.is_empty() { at } else { at + ": " }
}

fn of_weights(problems: &[WeightProblem]) -> Explanation {
    let what = match problems.len() {
        1 => "1 weight cannot be used".to_owned(),
        n => format!("{n} weights cannot be used"),
    };
    Explanation::new(what)
        .problems(problems.iter().map(|p| (p.name.clone(), p.problem.clone())))
        .help("export and save the program again, or copy the file again if it was transferred")
}

fn of_problems(problems: &[ProgramProblem]) -> Explanation {
    let advised = |explanation: Explanation, help: &str| match help {
        "" => explanation,
        help => explanation.help(help),
    };
    match problems {
        [ProgramProblem { at, what, help }] => advised(Explanation::new(format!("{at}: {what}")), help),
        [first, others @ ..] if others.iter().all(|other| other.help == first.help) => {
            advised(several(problems, |problem| problem.what.clone()), &first.help)
        }
        // Each has advice of its own.
        problems => several(problems, |ProgramProblem { what, help, .. }| match help.as_str() {
            "" => what.clone(),
            help => format!("{what}; {help}"),
        }),
    }
}

fn several(problems: &[ProgramProblem], what: impl Fn(&ProgramProblem) -> String) -> Explanation {
    Explanation::new(format!("{} parts of the program cannot be translated", problems.len()))
        .problems(problems.iter().map(|problem| (problem.at.clone(), what(problem))))
}

fn of_ops(ops: &[UnknownOp]) -> Explanation {
    let what = match ops.len() {
        1 => "1 operator has no translation".to_owned(),
        n => format!("{n} operators have no translation"),
    };
    let problem = |UnknownOp { target, count, module_path }: &UnknownOp| {
        let first = if module_path.is_empty() { String::new() } else { format!(", first in {module_path}") };
        (target.clone(), format!("{count}×{first}"))
    };
    let of_torch = ops.iter().any(|op| op.target.starts_with("torch.") || op.target.starts_with('_'));
    Explanation::new(what).problems(ops.iter().map(problem)).help(match of_torch {
        true => "run_decompositions() before saving may express them with operators that are known",
        false => {
            "another opset_version, or an exporter without fusions, may express them with operators that are known"
        }
    })
}
