//! Tuning: which candidate runs a problem fastest is measured, and written down.
//!
//! A [`Records`] says for each problem which candidate was chosen and why. A build takes its choices from records that are
//! pinned, from records made before on this machine, by measuring, or from the order in which the backend lists its
//! candidates. With the same pinned records a build is the same byte for byte, wherever and whenever it runs.
//!
//! - [`Tuner`]: makes the choices of one build;
//! - [`Records`]: what was measured and chosen, and its file;
//! - [`TuneCache`]: the records of a machine, shared by all builds on it.

mod cache;
mod error;
mod measure;
mod problem;
mod records;

use std::{collections::BTreeSet, fmt, time::Instant};

use regraft_backend::{Candidate, Target};
use regraft_ir::{Graph, Node};
use serde::{Deserialize, Serialize};

pub use self::{
    cache::{CacheError, TuneCache},
    error::{RecordsError, RecordsErrorKind, TuneError},
    records::{CandidateName, Machine, Measurement, Record, Records},
};
use self::{measure::Bench, problem::NodeProblem};
use crate::pipeline::{Backend, Observer};

/// How thoroughly candidates are measured.
///
/// ```
/// assert_eq!(regraft_compile::tune::TuneMode::default(), regraft_compile::tune::TuneMode::Off);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TuneMode {
    /// Not at all: the backend's first candidate runs.
    #[default]
    Off,
    /// About 0.1 seconds for each problem: the first candidate of each kernel, then the others of the fastest kernel. What is clearly slower
    /// is given up early.
    Fast,
    /// About 3 seconds for each problem, all candidates to the end.
    Full,
}

impl TuneMode {
    /// About how many seconds a problem takes.
    fn seconds(self) -> f64 {
        match self {
            TuneMode::Off => 0.0,
            TuneMode::Fast => 0.1,
            TuneMode::Full => 3.0,
        }
    }
}

/// Where the choices of a build come from.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tuning<'a> {
    /// How to measure what is in no records.
    pub mode: TuneMode,
    /// Records that decide alone: nothing is measured, and what they do not hold takes the backend's first candidate.
    pub pinned: Option<&'a Records>,
    /// Records of this machine: what they hold, measured as thoroughly as `mode` asks, is not measured again.
    pub known: Option<&'a Records>,
}

/// What tuning did. Problems that occur in several places of a program count once, and those that have one candidate not
/// at all.
///
/// ```
/// let report = regraft_compile::tune::TuneReport::default();
/// assert_eq!(report.to_string(), "0 problems measured in 0.0 s, 0 reused, 0 pinned");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct TuneReport {
    /// Problems that were measured.
    pub measured: usize,
    /// Problems that were chosen by records known before.
    pub reused: usize,
    /// Problems that were chosen by pinned records.
    pub pinned: usize,
    /// Problems that pinned records do not hold.
    pub unpinned_missing: usize,
    /// Seconds spent measuring.
    pub seconds: f64,
}

impl fmt::Display for TuneReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TuneReport { measured, reused, pinned, unpinned_missing, seconds } = self;
        write!(f, "{measured} problems measured in {seconds:.1} s, {reused} reused, {pinned} pinned")?;
        match unpinned_missing {
            0 => Ok(()),
            missing => write!(f, ", {missing} not in the records"),
        }
    }
}

/// Makes the choices of one build.
pub struct Tuner<'a> {
    tuning: Tuning<'a>,
    bench: Option<Bench<'a>>,
    report: TuneReport,
    used: Records,
    observer: &'a mut dyn Observer,
    /// Problems that will be measured.
    expected: usize,
}

impl<'a> Tuner<'a> {
    /// A tuner for one build, whose measurements `observer` sees.
    ///
    /// # Errors
    /// When the pinned records are of another target than `backend`, or measuring is asked for without a device.
    pub fn new(backend: Backend<'a>, tuning: Tuning<'a>, observer: &'a mut dyn Observer) -> Result<Self, TuneError> {
        let target = backend.codegen.target();
        let other = |records: &&Records| *records.target() != target;
        if let Some(pinned) = tuning.pinned.filter(other) {
            let found = Box::new(pinned.target().clone());
            return Err(TuneError::PinnedTarget { expected: Box::new(target), found });
        }
        if backend.device.is_none() && tuning.pinned.is_none() && tuning.mode != TuneMode::Off {
            return Err(TuneError::NoDevice(target));
        }
        let known = tuning.known.filter(|records| !other(records));
        let tuning = Tuning { known, ..tuning };
        let used = tuning.pinned.map_or_else(|| Records::of(backend), Records::none);
        let bench = backend.device.map(Bench::new);
        Ok(Tuner { tuning, bench, report: TuneReport::default(), used, observer, expected: 0 })
    }

    /// Counts the problems among these nodes that will be measured.
    pub(crate) fn expect<'n>(&mut self, graph: &Graph, nodes: impl Iterator<Item = (&'n Node, &'n Vec<Candidate>)>) {
        if self.tuning.mode == TuneMode::Off || self.tuning.pinned.is_some() {
            return;
        }
        let problems = nodes.filter(|(_, candidates)| candidates.len() > 1).filter_map(|(node, candidates)| {
            let key = NodeProblem::new(graph, node)?.to_string();
            self.known(&key, candidates).is_none().then_some(key)
        });
        self.expected = problems.collect::<BTreeSet<_>>().len();
    }

    /// The record of this machine for a problem, if it was measured as thoroughly as is asked for.
    fn known(&self, key: &str, candidates: &[Candidate]) -> Option<(&'a Record, usize)> {
        let record = self.tuning.known?.get(key).filter(|record| record.mode >= self.tuning.mode)?;
        Some((record, find(candidates, &record.choice)?))
    }

    fn tell_observer(&mut self) {
        let done = self.report.measured;
        let each = if done == 0 { self.tuning.mode.seconds() } else { self.report.seconds / done as f64 };
        let count = self.expected.max(done + 1);
        self.observer.measuring(done + 1, count, each * (count - done) as f64);
    }

    /// One of the `candidates` for a node of `graph`, which are the backend's, best first; `None` when there are none.
    ///
    /// # Errors
    /// When the pinned records want a candidate that is not there.
    pub(crate) fn choose(
        &mut self,
        graph: &Graph,
        node: &Node,
        candidates: Vec<Candidate>,
    ) -> Result<Option<Candidate>, TuneError> {
        let problem = if candidates.len() > 1 { NodeProblem::new(graph, node) } else { None };
        let Some(problem) = problem else { return Ok(candidates.into_iter().next()) };
        let key = problem.to_string();
        let choice = match self.used.get(&key) {
            Some(record) => find(&candidates, &record.choice),
            None => {
                let (record, choice) = self.decide(&key, &problem, &candidates)?;
                self.used.insert(key, record);
                Some(choice)
            }
        };
        // The same problem may be offered less elsewhere, where fewer sizes are known: then the first is right.
        Ok(candidates.into_iter().nth(choice.unwrap_or(0)))
    }

    /// The record of a problem that was not met before, and the candidate that it chooses.
    fn decide(
        &mut self,
        key: &str,
        problem: &NodeProblem,
        candidates: &[Candidate],
    ) -> Result<(Record, usize), TuneError> {
        let first = || Record { mode: TuneMode::Off, choice: CandidateName::of(&candidates[0]), measured: Vec::new() };
        if let Some(pinned) = self.tuning.pinned {
            let Some(record) = pinned.get(key) else {
                self.report.unpinned_missing += 1;
                return Ok((first(), 0));
            };
            let choice = find(candidates, &record.choice).ok_or_else(|| TuneError::PinnedCandidate {
                problem: key.to_owned(),
                found: record.choice.clone(),
                offered: candidates.iter().map(CandidateName::of).collect(),
            })?;
            self.report.pinned += 1;
            return Ok((record.clone(), choice));
        }
        if self.tuning.mode == TuneMode::Off {
            return Ok((first(), 0));
        }
        if let Some((record, choice)) = self.known(key, candidates) {
            self.report.reused += 1;
            return Ok((record.clone(), choice));
        }
        self.tell_observer();
        let start = Instant::now();
        let bench = self.bench.as_mut();
        let measured = bench.and_then(|bench| bench.measure(problem, candidates, self.tuning.mode));
        self.report.seconds += start.elapsed().as_secs_f64();
        let Some(measured) = measured else { return Ok((first(), 0)) };
        self.report.measured += 1;
        let choice = measure::fastest(&measured);
        let named = candidates.iter().map(CandidateName::of).zip(measured);
        let measured = named.filter_map(|(candidate, timing)| {
            let measure::Timing { median_ns, fastest_ns, runs } = timing?;
            Some(Measurement { candidate, median_ns, fastest_ns, runs })
        });
        let choice_name = CandidateName::of(&candidates[choice]);
        Ok((Record { mode: self.tuning.mode, choice: choice_name, measured: measured.collect() }, choice))
    }

    /// The records of the problems met, and what was done for them.
    pub fn finish(self) -> (Records, TuneReport) {
        (self.used, self.report)
    }
}

fn find(candidates: &[Candidate], name: &CandidateName) -> Option<usize> {
    candidates.iter().position(|c| CandidateName::of(c) == *name)
}

/// Whether records of `found` choose for `expected`.
fn check_target(expected: &Target, found: &Target) -> Result<(), RecordsErrorKind> {
    if expected == found {
        return Ok(());
    }
    Err(RecordsErrorKind::Target { expected: Box::new(expected.clone()), found: Box::new(found.clone()) })
}

#[cfg(test)]
mod tests;
