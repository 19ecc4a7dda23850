//! What was measured and chosen, and its file.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{Read, Write},
    path::Path,
};

use regraft_backend::{Candidate, Target};
use regraft_engine::atomic_file::{AtomicFile, WriteError};
use regraft_weights::Digest;
use serde::{Deserialize, Serialize};

use super::{RecordsError, RecordsErrorKind, TuneMode, check_target};
use crate::pipeline::Backend;

/// The version of the format.
const VERSION: u64 = 1;

/// Most bytes of a file; a program has some dozens of problems, each of which takes about a kilobyte.
const LIMIT: u64 = 64 << 20;

/// The version of Regraft: times are those of its kernels.
const PRODUCT: &str = env!("CARGO_PKG_VERSION");

/// What tells a candidate from the others of its problem: the kernel and the format of each weight, written
/// `linear.panels(1: panels_f32<n32>)`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CandidateName(pub String);

impl CandidateName {
    /// The name of a candidate.
    pub fn of(candidate: &Candidate) -> Self {
        let weight = |w: &regraft_backend::WeightLayout| format!("{}: {}", w.operand, w.format);
        let weights: Vec<String> = candidate.weights.iter().map(weight).collect();
        CandidateName(format!("{}({})", candidate.kernel, weights.join(", ")))
    }
}

impl fmt::Display for CandidateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Its processor.
    pub processor: String,
    /// Threads of a run.
    pub threads: usize,
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} threads", self.processor, self.threads)
    }
}

/// How fast a candidate was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurement {
    /// The candidate.
    pub candidate: CandidateName,
    /// Median time of a run, in nanoseconds.
    pub median_ns: u64,
    /// The fastest, in nanoseconds.
    pub fastest_ns: u64,
    /// Runs measured.
    pub runs: u64,
}

/// What is known of a problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// How thoroughly it was measured.
    pub mode: TuneMode,
    /// The candidate that was chosen.
    pub choice: CandidateName,
    /// What was measured, in the order of the backend; nothing when the choice is its first.
    pub measured: Vec<Measurement>,
}

/// Records of problems, sorted by problem.
///
/// ```
/// use regraft_compile::tune::Records;
///
/// # fn f() -> Result<(), Box<dyn std::error::Error>> {
/// let mut records = Records::open("records.json")?;
/// records.merge(&Records::open("more.json")?)?;
/// for (problem, record) in records.iter() {
///     println!("{problem}: {:?}", record.choice);
/// }
/// records.save("records.json")?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Records {
    product: String,
    target: Target,
    machine: Machine,
    records: BTreeMap<String, Record>,
}

/// How records lie in a file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File1 {
    format: u64,
    product: String,
    target: Target,
    machine: Machine,
    records: Vec<Record1>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record1 {
    problem: String,
    mode: TuneMode,
    choice: CandidateName,
    measured: Vec<Measurement>,
}

/// What every version of the format has.
#[derive(Deserialize)]
struct AnyVersion {
    format: u64,
}

impl Records {
    /// No records, to be made with `backend`.
    pub fn of(backend: Backend<'_>) -> Self {
        let machine = match backend.device {
            Some(device) => Machine { processor: device.processor(), threads: device.threads() },
            None => Machine { processor: "none".to_owned(), threads: 0 },
        };
        Records { product: PRODUCT.to_owned(), target: backend.codegen.target(), machine, records: BTreeMap::new() }
    }

    /// No records, of the same target, machine and version.
    pub(super) fn none(&self) -> Self {
        let (product, target, machine) = (self.product.clone(), self.target.clone(), self.machine.clone());
        Records { product, target, machine, records: BTreeMap::new() }
    }

    /// The version of Regraft that made them.
    pub fn product(&self) -> &str {
        &self.product
    }

    /// The target whose candidates they choose from.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The machine that they were made on.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The record of a problem, by its text.
    pub fn get(&self, problem: &str) -> Option<&Record> {
        self.records.get(problem)
    }

    /// Sets the record of a problem.
    pub fn insert(&mut self, problem: impl Into<String>, record: Record) {
        self.records.insert(problem.into(), record);
    }

    /// All records, sorted by problem.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Record)> {
        self.records.iter().map(|(problem, record)| (problem.as_str(), record))
    }

    /// Number of problems.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Takes in the records of `other`. Where both have a problem, the one that was measured more thoroughly stays, and
    /// `other`'s of two alike.
    ///
    /// # Errors
    /// When `other` is for another target; nothing is taken in then.
    pub fn merge(&mut self, other: &Records) -> Result<(), RecordsErrorKind> {
        check_target(&self.target, &other.target)?;
        for (problem, record) in &other.records {
            if self.records.get(problem).is_none_or(|own| own.mode <= record.mode) {
                self.records.insert(problem.clone(), record.clone());
            }
        }
        Ok(())
    }

    /// A digest of what decides the choices of a build: target, problems and choices. Times do not count.
    pub fn digest(&self) -> Digest {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        let target = serde_json::to_string(&self.target).expect("names can be written as JSON");
        let records = self.records.iter().flat_map(|(problem, record)| [problem, &record.choice.0]);
        for text in std::iter::once(&target).chain(records) {
            bytes.extend((text.len() as u64).to_le_bytes());
            bytes.extend(text.as_bytes());
        }
        Digest::of_bytes(&bytes)
    }

    /// The records as JSON, sorted by problem.
    pub fn to_json(&self) -> String {
        let record = |(problem, record): (&String, &Record)| {
            let Record { mode, choice, measured } = record.clone();
            Record1 { problem: problem.clone(), mode, choice, measured }
        };
        let file = File1 {
            format: VERSION,
            product: self.product.clone(),
            target: self.target.clone(),
            machine: self.machine.clone(),
            records: self.records.iter().map(record).collect(),
        };
        let mut text = serde_json::to_string_pretty(&file).expect("names and numbers can be written as JSON");
        text.push('\n');
        text
    }

    /// Reads what [`Records::to_json`] wrote.
    ///
    /// # Errors
    /// When the text is too large, is not a JSON of that form, or is of another version.
    pub fn from_json(json: &[u8]) -> Result<Self, RecordsErrorKind> {
        if json.len() as u64 > LIMIT {
            return Err(RecordsErrorKind::TooLarge { limit: LIMIT });
        }
        let AnyVersion { format } = serde_json::from_slice(json).map_err(malformed)?;
        if format != VERSION {
            return Err(RecordsErrorKind::Version { expected: VERSION, found: format });
        }
        let File1 { format: _, product, target, machine, records: list } =
            serde_json::from_slice(json).map_err(malformed)?;
        let mut records = BTreeMap::new();
        for Record1 { problem, mode, choice, measured } in list {
            if records.contains_key(&problem) {
                return Err(RecordsErrorKind::Twice { problem });
            }
            records.insert(problem, Record { mode, choice, measured });
        }
        Ok(Records { product, target, machine, records })
    }

    /// Reads a file of records.
    ///
    /// # Errors
    /// When it cannot be read, or as [`Records::from_json`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, RecordsError> {
        let path = path.as_ref();
        let read = || {
            let mut json = Vec::new();
            File::open(path)?.take(LIMIT + 1).read_to_end(&mut json)?;
            Ok(json)
        };
        let parsed = read().map_err(RecordsErrorKind::Read).and_then(|json| Records::from_json(&json));
        parsed.map_err(|kind| RecordsError { path: path.to_owned(), kind })
    }

    /// Writes a file of records, which replaces what was there in one step.
    ///
    /// # Errors
    /// When the file cannot be written; what was there is kept then.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), WriteError> {
        AtomicFile::write(path.as_ref(), |file| file.write_all(self.to_json().as_bytes()))
    }
}

fn malformed(error: serde_json::Error) -> RecordsErrorKind {
    let (line, column) = (error.line(), error.column());
    let text = error.to_string();
    let what = text.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&text).to_owned();
    RecordsErrorKind::Malformed { line, column, what }
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;
