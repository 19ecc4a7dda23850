use std::{io, path::PathBuf};

use regraft_tensor::Explanation;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct DeltaError(Box<DeltaErrorKind>);

impl DeltaError {
    /// The kind of this error.
    pub fn kind(&self) -> &DeltaErrorKind {
        &self.0
    }

    /// In parts.
    pub fn explained(&self) -> Explanation {
        match self.kind() {
            DeltaErrorKind::Base(problems) => of_base(problems),
            kind => Explanation::new(kind.to_string()),
        }
    }
}

impl From<DeltaErrorKind> for DeltaError {
    fn from(kind: DeltaErrorKind) -> Self {
        DeltaError(Box::new(kind))
    }
}

/// The kinds of [`DeltaError`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeltaErrorKind {
    /// The file cannot be read.
    #[error("{}: {why}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        why: String,
    },
    /// The file cannot be written.
    #[error("the delta cannot be written: {0}")]
    Write(#[from] io::Error),
    /// It is not a delta, or damaged.
    #[error("{}: not a delta of weights, or a damaged one: {why}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The weights are not those that it was made from.
    #[error("{}", of_base(.0))]
    Base(Vec<DeltaProblem>),
    /// The second checkpoint lacks tensors that the first one has.
    #[error("{} tensors of the first weights are not in the second, such as {}; a delta is between complete weights", .0.len(), .0.first().map_or("", String::as_str))]
    Missing(Vec<String>),
    /// The programs that the weights are of differ in what stands in their nodes.
    #[error("the programs of the two files differ in {} constants, such as {}, which a delta does not hold; give the second file itself", .0.len(), .0.first().map_or("", String::as_str))]
    Constants(Vec<String>),
    /// There is not enough memory.
    #[error("there is not enough memory for `{0}`")]
    Memory(String),
    /// The base cannot be read.
    #[error("`{name}` cannot be read: {why}")]
    Unreadable {
        /// The tensor.
        name: String,
        /// Why.
        why: String,
    },
}

/// Why a tensor of the given weights is not that of the base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeltaProblem {
    /// Its name.
    pub name: String,
    /// What is wrong.
    pub what: String,
}

fn of_base(problems: &[DeltaProblem]) -> Explanation {
    let what = format!("the delta was made from other weights; {} of its tensors do not fit", problems.len());
    Explanation::new(what).problems(problems.iter().map(|problem| (problem.name.clone(), problem.what.clone())))
}
