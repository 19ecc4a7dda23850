use std::{collections::BTreeSet, fmt};

use regraft_tensor::Explanation;
use serde::{Deserialize, Serialize};

/// One reason why an adapter does not fit an engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "problem", rename_all = "snake_case")]
#[non_exhaustive]
pub enum AdapterProblem {
    /// The engine has no source for the key, or the key has no known form.
    Unmatched {
        /// The key.
        key: String,
        /// A source of the engine with a similar name and a size that fits.
        suggestion: Option<String>,
        /// Why it has no place.
        why: String,
    },
    /// The key needs another one beside it.
    Incomplete {
        /// The key.
        key: String,
        /// The missing key.
        missing: String,
    },
    /// The size of the tensor does not fit the source or the rest of the layer.
    Shape {
        /// The key.
        key: String,
        /// The shape that would fit.
        expected: String,
        /// The shape that was given.
        found: String,
    },
    /// A known kind of adapter that Regraft cannot apply.
    Unsupported {
        /// The key.
        key: String,
        /// What it is, and what to do.
        why: String,
    },
    /// Two updates of one source.
    Twice {
        /// The key.
        key: String,
        /// A key of the other update.
        other: String,
    },
    /// The key fits several sources.
    Ambiguous {
        /// The key.
        key: String,
        /// The modules that it may mean.
        candidates: Vec<String>,
    },
    /// The adapter's configuration asks for something that Regraft cannot apply.
    Config {
        /// The field.
        field: String,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// The scale of the factors is not stated, and it is not 1 by default in the tool that wrote them.
    NoScale {
        /// The first key that is scaled.
        key: String,
    },
    /// There are no tensors.
    Empty,
}

impl AdapterProblem {
    /// The key or the field of the configuration that it is about; empty when it is about the whole adapter.
    pub fn key(&self) -> &str {
        match self {
            AdapterProblem::Unmatched { key, .. }
            | AdapterProblem::Incomplete { key, .. }
            | AdapterProblem::Shape { key, .. }
            | AdapterProblem::Unsupported { key, .. }
            | AdapterProblem::Twice { key, .. }
            | AdapterProblem::NoScale { key }
            | AdapterProblem::Ambiguous { key, .. } => key,
            AdapterProblem::Config { field, .. } => field,
            AdapterProblem::Empty => "",
        }
    }

    /// What is wrong, in words.
    pub fn what(&self) -> String {
        match self {
            AdapterProblem::Unmatched { suggestion: Some(s), .. } => format!("matches no source; did you mean {s}?"),
            AdapterProblem::Unmatched { suggestion: None, why, .. } => format!("matches no source: {why}"),
            AdapterProblem::Incomplete { missing, .. } => format!("has no {missing} beside it"),
            AdapterProblem::Shape { expected, found, .. } => format!("expected {expected}, found {found}"),
            AdapterProblem::Unsupported { why, .. } | AdapterProblem::Config { why, .. } => why.clone(),
            AdapterProblem::Twice { other, .. } => format!("updates the same source as {other}"),
            AdapterProblem::Ambiguous { candidates, .. } => format!("may mean {}", candidates.join(" or ")),
            AdapterProblem::NoScale { .. } => {
                "nothing says its scale: neither its file nor an adapter_config.json beside it has an alpha; \
                 state the alpha it was trained with, or give its configuration"
                    .into()
            }
            AdapterProblem::Empty => "there are no tensors in it".into(),
        }
    }
}

/// As a line of a list: the adapter's key, then what is wrong with it.
impl fmt::Display for AdapterProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key() {
            "" => f.write_str(&self.what()),
            key => write!(f, "{key}: {}", self.what()),
        }
    }
}

/// An adapter with these problems, `keys` of it in all.
pub(crate) fn explained(adapter: &str, problems: &[AdapterProblem], keys: usize) -> Explanation {
    let about_keys = problems.iter().filter(|p| !matches!(p, AdapterProblem::Config { .. } | AdapterProblem::Empty));
    let count = about_keys.map(AdapterProblem::key).collect::<BTreeSet<_>>().len();
    let what = match count {
        0 => format!("{adapter}: cannot be applied; nothing was changed"),
        1 => format!("{adapter}: 1 of {keys} keys does not fit; nothing was changed"),
        _ => format!("{adapter}: {count} of {keys} keys do not fit; nothing was changed"),
    };
    Explanation::new(what).problems(problems.iter().map(|problem| (problem.key().to_owned(), problem.what())))
}
