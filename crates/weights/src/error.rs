use std::{fmt, path::PathBuf};

use regraft_tensor::Explanation;
use serde::{Deserialize, Serialize};

use crate::Misfit;

/// One reason why given weights do not fit an engine.
///
/// ```
/// use regraft_weights::Problem;
///
/// let problem = Problem::Mismatch { name: "fc.bias".into(), expected: "f32[10]".into(), found: "f32[12]".into() };
/// assert!(problem.to_string().contains("fc.bias"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "problem", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Problem {
    /// A source that a full refit needs was not given.
    Missing {
        /// Name of the source.
        name: String,
        /// What the file has instead, in a form that is not read.
        found: Option<String>,
    },
    /// The engine has no source of this name.
    Unknown {
        /// The name that was given.
        name: String,
        /// A source of the engine with a similar name and the same shape.
        suggestion: Option<String>,
        /// Why it has no place.
        why: Unknown,
    },
    /// Two rules for the names fit, and mean different tensors.
    Ambiguous {
        /// The rules in words.
        rules: [String; 2],
    },
    /// None of the given names is that of a source.
    NoneKnown {
        /// How many were given.
        names: usize,
    },
    /// No name begins with what was to be renamed.
    RenameUnused {
        /// What names were to begin with.
        name: String,
    },
    /// Two names are the same after renaming.
    Twice {
        /// A name that was given.
        name: String,
        /// The other one.
        other: String,
    },
    /// Shape or dtype class differ.
    Mismatch {
        /// Name of the source.
        name: String,
        /// Its type in the engine.
        expected: String,
        /// The type that was given.
        found: String,
    },
    /// A value is infinite or not a number, and the policy refuses such.
    NonFinite {
        /// Name of the source.
        name: String,
        /// How many values are.
        count: usize,
    },
    /// Two names of one tied tensor were given different values.
    TiedDiffer {
        /// Name of the source.
        name: String,
        /// Its other name.
        alias: String,
    },
    /// A part of the program has another value in the file.
    Folded {
        /// Name of the source.
        name: String,
        /// Its value in the engine.
        expected: String,
        /// The value that was given.
        found: String,
    },
    /// An identical engine takes only the weights it was built with.
    NotIdentical {
        /// Name of the source.
        name: String,
    },
    /// A slot also needs this source, and neither the engine nor the call has it.
    SiblingMissing {
        /// Name of the source.
        name: String,
        /// The slot that needs it.
        slot: String,
    },
    /// Named as changed, but not given.
    NotGiven {
        /// The name.
        name: String,
    },
    /// The tensor was released, and a file is to hold it.
    Released {
        /// Name of the source.
        name: String,
    },
    /// The file that the engine took this source from was changed in place, and the refit does not bring it.
    FileChanged {
        /// Name of the source.
        name: String,
        /// The file.
        path: PathBuf,
    },
    /// The engine keeps this source in a weight file, by reference, and it cannot be read from there; the refit does not
    /// bring it.
    NotInFile {
        /// Name of the source.
        name: String,
        /// The file.
        path: PathBuf,
        /// Why it cannot be read.
        why: String,
    },
}

impl Problem {
    /// The source or name it is about.
    pub fn name(&self) -> &str {
        match self {
            Problem::Ambiguous { .. } | Problem::NoneKnown { .. } => "names",
            Problem::Missing { name, .. }
            | Problem::RenameUnused { name }
            | Problem::Twice { name, .. }
            | Problem::Unknown { name, .. }
            | Problem::Mismatch { name, .. }
            | Problem::NonFinite { name, .. }
            | Problem::TiedDiffer { name, .. }
            | Problem::Folded { name, .. }
            | Problem::NotIdentical { name }
            | Problem::SiblingMissing { name, .. }
            | Problem::NotGiven { name }
            | Problem::Released { name }
            | Problem::FileChanged { name, .. }
            | Problem::NotInFile { name, .. } => name,
        }
    }

    /// What is wrong, in words.
    pub fn what(&self) -> String {
        match self {
            Problem::Missing { found: None, .. } => "missing".into(),
            Problem::Missing { found: Some(found), .. } => {
                format!("missing: in its place is {found}, which is not read")
            }
            Problem::Unknown { suggestion: Some(s), .. } => format!("unknown; did you mean {s}?"),
            Problem::Unknown { suggestion: None, why, .. } => format!("unknown: {why}"),
            Problem::Ambiguous { rules: [one, other] } => {
                format!("match {one} and {other}, and mean different tensors")
            }
            Problem::NoneKnown { names } => format!("none of the {names} given is the name of a source of the engine"),
            Problem::RenameUnused { .. } => "no name begins with this prefix, which was to be renamed".into(),
            Problem::Twice { other, .. } => format!("has the same name as {other} after renaming"),
            Problem::Mismatch { expected, found, .. } => format!("expected {expected}, found {found}"),
            Problem::NonFinite { count, .. } => format!("{count} values are infinite or not a number"),
            Problem::TiedDiffer { alias, .. } => format!("differs from {alias}, which is the same tensor in the model"),
            Problem::Folded { expected, found, .. } => {
                format!("expected {expected}, found {found}: it was compiled into the program and cannot be refitted")
            }
            Problem::NotIdentical { .. } => "differs from the weights that the engine was built with".into(),
            Problem::SiblingMissing { slot, .. } => {
                format!("needed for slot {slot}, and the engine keeps no copy of it")
            }
            Problem::NotGiven { .. } => "named as changed, but not given or not a source of the engine".into(),
            Problem::Released { .. } => "was released: the model keeps its digest only".into(),
            Problem::FileChanged { path, .. } => {
                format!("was read from {}, which has changed since; give this source too", path.display())
            }
            Problem::NotInFile { path, why, .. } => {
                format!("is kept in {}, which {why}; give this source too", path.display())
            }
        }
    }
}

/// As a line of a list: the source's name, then what is wrong with it.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name(), self.what())
    }
}

/// Why a name has no place in an engine.
///
/// ```
/// assert_eq!(regraft_weights::Unknown::NoSource.to_string(), "the engine has no such source");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Unknown {
    /// No source has this name.
    NoSource,
    /// It lacks the prefix that all names of sources have.
    OutsideOf {
        /// The prefix.
        prefix: String,
    },
    /// An exporter of ONNX made it, for a weight that it folded or transposed.
    MadeByExporter,
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unknown::NoSource => f.write_str("the engine has no such source"),
            Unknown::OutsideOf { prefix } => write!(f, "not under `{prefix}.`, where the engine's sources are"),
            Unknown::MadeByExporter => f.write_str("an exporter's name for a weight that it folded or transposed"),
        }
    }
}

/// A name that was given and changes nothing.
///
/// ```
/// let ignored = regraft_weights::Ignored::Counter { name: "bn.num_batches_tracked".into() };
/// assert_eq!((ignored.name(), ignored.why()), ("bn.num_batches_tracked", "the counter of a batch norm"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Ignored {
    /// A non-persistent buffer or a constant of the program, which no state dict holds.
    Constant {
        /// The name that was given.
        name: String,
    },
    /// A source of the program that it never reads.
    Unread {
        /// The name that was given.
        name: String,
    },
    /// The counter of a batch norm.
    Counter {
        /// The name that was given.
        name: String,
    },
    /// The engine has no such source, and such names are ignored.
    Unknown {
        /// The name that was given.
        name: String,
    },
}

impl Ignored {
    /// The name that was given.
    pub fn name(&self) -> &str {
        match self {
            Ignored::Constant { name }
            | Ignored::Unread { name }
            | Ignored::Counter { name }
            | Ignored::Unknown { name } => name,
        }
    }

    /// Why it changes nothing, in one word.
    pub fn kind(&self) -> &'static str {
        match self {
            Ignored::Constant { .. } => "constant",
            Ignored::Unread { .. } => "unread",
            Ignored::Counter { .. } => "counter",
            Ignored::Unknown { .. } => "unknown",
        }
    }

    /// Why it changes nothing, in words.
    pub fn why(&self) -> &'static str {
        match self {
            Ignored::Constant { .. } => "a constant of the program, which no state dict holds",
            Ignored::Unread { .. } => "the program never reads it",
            Ignored::Counter { .. } => "the counter of a batch norm",
            Ignored::Unknown { .. } => "the engine has no such source",
        }
    }
}

/// An error of this crate.
///
/// ```
/// use regraft_weights::{WeightsError, WeightsErrorKind};
///
/// fn problems(error: &WeightsError) -> usize {
///     match error.kind() {
///         WeightsErrorKind::Fit(misfit) => misfit.problems.len(),
///         _ => 0,
///     }
/// }
/// ```
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct WeightsError(Box<WeightsErrorKind>);

impl WeightsError {
    /// The kind of this error.
    pub fn kind(&self) -> &WeightsErrorKind {
        &self.0
    }
}

impl From<WeightsErrorKind> for WeightsError {
    fn from(kind: WeightsErrorKind) -> Self {
        WeightsError(Box::new(kind))
    }
}

/// The kinds of [`WeightsError`].
///
/// ```
/// use regraft_weights::{WeightsError, WeightsErrorKind};
///
/// fn print(error: &WeightsError) {
///     match error.kind() {
///         WeightsErrorKind::Fit(misfit) => misfit.problems.iter().for_each(|problem| println!("{problem}")),
///         kind => println!("{kind}"),
///     }
/// }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsErrorKind {
    /// Given weights do not fit; nothing was changed.
    #[error("{0}")]
    Fit(Misfit),
}

impl WeightsErrorKind {
    /// In parts.
    pub fn explained(&self) -> Explanation {
        let WeightsErrorKind::Fit(misfit) = self;
        misfit.explained()
    }
}
