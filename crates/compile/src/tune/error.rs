use std::path::PathBuf;

use regraft_backend::Target;

use super::CandidateName;

/// An error of a build about its tuning.
#[derive(Debug, thiserror::Error)]
pub enum TuneError {
    /// There is nothing to measure on.
    #[error("tuning for {0} needs a device of that kind; compile without tuning, or with pinned records")]
    NoDevice(Target),
    /// Pinned records were made for another target.
    #[error("the pinned tuning records are for {found}, this build is for {expected}; tune on such a machine")]
    PinnedTarget {
        /// The target of the build.
        expected: Box<Target>,
        /// That of the records.
        found: Box<Target>,
    },
    /// Pinned records choose what this version does not offer.
    #[error(
        "the pinned tuning records choose `{found}` for {problem}, which is not offered; expected one of {}; tune again",
        list(offered)
    )]
    PinnedCandidate {
        /// The problem.
        problem: String,
        /// What the records choose.
        found: CandidateName,
        /// What there is.
        offered: Vec<CandidateName>,
    },
}

fn list(names: &[CandidateName]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// An error of a file of tuning records.
///
/// ```
/// let error = regraft_compile::tune::Records::open("missing.json").unwrap_err();
/// assert!(error.to_string().contains("missing.json"));
/// ```
#[derive(Debug, thiserror::Error)]
#[error("{}: {kind}", path.display())]
pub struct RecordsError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    #[source]
    pub kind: RecordsErrorKind,
}

/// The kinds of [`RecordsError`].
///
/// ```
/// use regraft_compile::tune::{Records, RecordsErrorKind};
///
/// let error = Records::open("missing.json").unwrap_err();
/// assert!(matches!(error.kind, RecordsErrorKind::Read(_)));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordsErrorKind {
    /// The file cannot be read.
    #[error("could not read the tuning records: {0}")]
    Read(#[source] std::io::Error),
    /// There is more than records can be.
    #[error("expected tuning records of at most {limit} bytes, found more")]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// The text is not a JSON of the form that records have.
    #[error("expected tuning records, found at line {line}, column {column}: {what}")]
    Malformed {
        /// Where: the line, from 1.
        line: usize,
        /// Where: the column, from 1.
        column: usize,
        /// What was found there, and what was expected.
        what: String,
    },
    /// Another version of the format.
    #[error("expected tuning records of format version {expected}, found version {found}; tune again")]
    Version {
        /// The version that this Regraft reads.
        expected: u64,
        /// The version found.
        found: u64,
    },
    /// A problem has two records.
    #[error("expected one record for each problem, found two for {problem}")]
    Twice {
        /// The problem.
        problem: String,
    },
    /// The records are for another target.
    #[error("expected tuning records for {expected}, found some for {found}")]
    Target {
        /// The target wanted.
        expected: Box<Target>,
        /// The target found.
        found: Box<Target>,
    },
    /// The records were made on another machine, or by another version of Regraft.
    #[error("expected tuning records of {expected}, found some of {found}")]
    Machine {
        /// What was wanted.
        expected: String,
        /// What was found.
        found: String,
    },
}
