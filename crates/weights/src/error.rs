use std::{collections::BTreeSet, path::PathBuf};

use serde::{Deserialize, Serialize};

/// One reason why given weights do not fit an engine. Written as a line of a list: the source's name, then what is
/// wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "problem", rename_all = "snake_case")]
pub enum Problem {
    /// A source that a full refit needs was not given.
    Missing {
        /// Name of the source.
        name: String,
    },
    /// The engine has no source of this name.
    Unknown {
        /// The name that was given.
        name: String,
        /// A source of the engine with a similar name.
        suggestion: Option<String>,
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
    /// An identical engine takes only the weights it was built with.
    NotIdentical {
        /// Name of the source.
        name: String,
    },
    /// A slot needs this source too, and neither the engine nor the call has it.
    SiblingMissing {
        /// Name of the source.
        name: String,
        /// The slot that needs it.
        slot: String,
    },
    /// Named as changed, and not among what was given.
    NotGiven {
        /// The name.
        name: String,
    },
    /// The tensor was let go, and a file is to hold it.
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
    /// The engine keeps this source in a weight file, by reference, and it cannot be had from there; the refit does not
    /// bring it.
    NotInFile {
        /// Name of the source.
        name: String,
        /// The file.
        path: PathBuf,
        /// Why it cannot be had.
        why: String,
    },
}

impl Problem {
    /// The source or name it is about.
    pub fn name(&self) -> &str {
        match self {
            Problem::Missing { name }
            | Problem::Unknown { name, .. }
            | Problem::Mismatch { name, .. }
            | Problem::NonFinite { name, .. }
            | Problem::TiedDiffer { name, .. }
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
            Problem::Missing { .. } => "missing".into(),
            Problem::Unknown { suggestion: Some(s), .. } => format!("unknown; did you mean {s}?"),
            Problem::Unknown { suggestion: None, .. } => "unknown".into(),
            Problem::Mismatch { expected, found, .. } => format!("expected {expected}, found {found}"),
            Problem::NonFinite { count, .. } => format!("{count} values are infinite or not a number"),
            Problem::TiedDiffer { alias, .. } => format!("differs from {alias}, which is the same tensor in the model"),
            Problem::NotIdentical { .. } => "differs from the weights that the engine was built with".into(),
            Problem::SiblingMissing { slot, .. } => {
                format!("needed for slot {slot}, and the engine keeps no copy of it")
            }
            Problem::NotGiven { .. } => "named as changed, but not given, or no source of the engine".into(),
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

/// An error of this crate.
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
#[derive(Debug, thiserror::Error)]
pub enum WeightsErrorKind {
    /// Given weights do not fit; nothing was changed.
    #[error("{}", fit_message(.problems, *.sources))]
    Fit {
        /// Every reason.
        problems: Vec<Problem>,
        /// How many sources the engine has.
        sources: usize,
    },
}

/// How many sources of how many do not fit, and how many names are unknown, in words.
pub fn misfit_summary(problems: &[Problem], sources: usize) -> String {
    let is_unknown = |p: &&Problem| matches!(p, Problem::Unknown { .. });
    let unknown = problems.iter().filter(is_unknown).count();
    let known = problems.iter().filter(|p| !is_unknown(p)).map(Problem::name).collect::<BTreeSet<_>>().len();
    let known_text = format!("{known} of {sources} sources {} not fit", if known == 1 { "does" } else { "do" });
    let unknown_text = format!("{unknown} {} unknown", if unknown == 1 { "name is" } else { "names are" });
    match (known, unknown) {
        (_, 0) => known_text,
        (0, _) => unknown_text,
        _ => format!("{known_text}, {unknown_text}"),
    }
}

fn fit_message(problems: &[Problem], sources: usize) -> String {
    let mut text = format!("{}; nothing was changed", misfit_summary(problems, sources));
    let width = problems.iter().map(|p| p.name().len()).max().unwrap_or(0).min(60);
    for problem in problems {
        text.push_str(&format!("\n  {:width$}  {}", problem.name(), problem.what()));
    }
    text
}
