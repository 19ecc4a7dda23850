use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::Ignored;

/// A phase of a refit.
///
/// ```
/// use regraft_weights::Phase;
///
/// assert!(Phase::Compare < Phase::Stage, "phases are in order");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Names are matched.
    Match,
    /// Shapes, dtypes, values by policy and guards are checked.
    Check,
    /// Given sources are compared with those of the serving generation, to find what differs.
    Compare,
    /// Recipes run into fresh buffers.
    Stage,
    /// The new generation becomes the serving one.
    Publish,
    /// Memory that only the generation before used goes back to the pool, unless a run still uses it.
    Retire,
}

/// A slot that a refit rebuilt.
///
/// ```
/// # fn f(report: &regraft_weights::RefitReport) {
/// let slow = report.recomputed_slots.iter().filter(|slot| !slot.one_pass);
/// println!("{} slots were made by the reference evaluator", slow.count());
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotReport {
    /// Name of the slot.
    pub name: String,
    /// Names of its sources.
    pub sources: Vec<String>,
    /// Bytes written.
    pub bytes: usize,
    /// Whether its recipe ran as one pass over memory; otherwise the reference evaluator ran it, node by node.
    pub one_pass: bool,
}

/// One line: the slot, its size, and what it is made from.
impl fmt::Display for SlotReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:.1} MB from {}", self.name, self.bytes as f64 / 1e6, self.sources.join(", "))
    }
}

/// An adapter that the new generation has.
///
/// ```
/// # fn f(report: &regraft_weights::RefitReport) {
/// for adapter in report.adapters.iter().filter(|adapter| adapter.unread > 0) {
///     println!("{adapter}: the program never reads {} of its {} layers", adapter.unread, adapter.layers);
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterReport {
    /// Its name.
    pub name: String,
    /// Its scale.
    pub scale: f64,
    /// Number of sources that it touches.
    pub layers: usize,
    /// How many of them the program never reads, so that they have no effect.
    #[serde(default)]
    pub unread: usize,
    /// How many of its values are infinite or not a number: the weights that it touches have such values, too.
    #[serde(default)]
    pub non_finite: usize,
}

/// Its name and scale.
impl fmt::Display for AdapterReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.name, self.scale)
    }
}

/// An adapter that became part of the weights when they were saved.
///
/// ```
/// # fn f(report: &regraft_weights::RefitReport) {
/// for baked in &report.baked {
///     println!("{} at {} is part of {}", baked.name, baked.scale, baked.sources.join(", "));
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BakedAdapter {
    /// Its name.
    pub name: String,
    /// Its scale.
    pub scale: f64,
    /// The sources that it is part of.
    pub sources: Vec<String>,
}

/// What a refit did, and where the time went.
///
/// ```
/// # fn f(report: &regraft_weights::RefitReport) {
/// println!("{report}"); // 62 of 62 sources changed, 21 slots rebuilt, 46.7 MB in 3.9 ms
/// for slot in &report.recomputed_slots {
///     println!("{slot}");
/// }
/// println!("{}", report.phases_ms);
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RefitReport {
    /// Sources that were given and differ from before.
    pub applied: Vec<String>,
    /// Sources that were given and are the same as before, bit for bit.
    pub unchanged: Vec<String>,
    /// Sources that were not given and kept (partial refit, or held by no state dict).
    pub kept: Vec<String>,
    /// The rule that matched names of the file to sources, as text; empty where they are the same.
    #[serde(default)]
    pub naming: String,
    /// Names that were given and change nothing.
    #[serde(default)]
    pub ignored: Vec<Ignored>,
    /// Sources that were given in memory of a device and copied to the host, because their slots are made there.
    #[serde(default)]
    pub fetched: Vec<String>,
    /// Adapters of the new generation.
    pub adapters: Vec<AdapterReport>,
    /// Adapters that were merged into the weights when these were saved.
    #[serde(default)]
    pub baked: Vec<BakedAdapter>,
    /// Sources whose adapters, or their scales, differ from before.
    pub adapted: Vec<String>,
    /// Slots that were rebuilt.
    pub recomputed_slots: Vec<SlotReport>,
    /// Slots shared with the generation before.
    pub shared_slots: Vec<String>,
    /// Bytes of slots written.
    pub bytes: usize,
    /// Milliseconds per phase, in order.
    pub phases_ms: PhaseTimes,
}

/// One line: how many sources and slots, how many bytes, how long.
impl fmt::Display for RefitReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let given = self.applied.len() + self.unchanged.len();
        write!(f, "{} of {given} sources changed", self.applied.len())?;
        if !self.adapters.is_empty() {
            let adapters: Vec<String> = self.adapters.iter().map(ToString::to_string).collect();
            write!(f, ", adapters {}", adapters.join(" and "))?;
        }
        let (slots, megabytes) = (self.recomputed_slots.len(), self.bytes as f64 / 1e6);
        write!(f, ", {slots} slots rebuilt, {megabytes:.1} MB in {:.1} ms", self.phases_ms.total())
    }
}

/// Milliseconds per phase.
///
/// ```
/// use std::time::Duration;
///
/// use regraft_weights::{Phase, PhaseTimes};
///
/// let mut times = PhaseTimes::default();
/// times.add(Phase::Stage, Duration::from_millis(3));
/// assert_eq!(times.total(), 3.0);
/// println!("{times}"); // match 0.0 ms, check 0.0 ms, compare 0.0 ms, stage 3.0 ms, ...
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PhaseTimes {
    /// [`Phase::Match`]
    #[serde(rename = "match")]
    pub matching: f64,
    /// [`Phase::Check`]
    pub check: f64,
    /// [`Phase::Compare`]
    pub compare: f64,
    /// [`Phase::Stage`]
    pub stage: f64,
    /// [`Phase::Publish`]
    pub publish: f64,
    /// [`Phase::Retire`]
    pub retire: f64,
}

impl PhaseTimes {
    /// Adds to the time of a phase.
    pub fn add(&mut self, phase: Phase, time: Duration) {
        let ms = time.as_secs_f64() * 1e3;
        match phase {
            Phase::Match => self.matching += ms,
            Phase::Check => self.check += ms,
            Phase::Compare => self.compare += ms,
            Phase::Stage => self.stage += ms,
            Phase::Publish => self.publish += ms,
            Phase::Retire => self.retire += ms,
        }
    }

    /// The phases in their order, by name.
    pub fn named(&self) -> [(&'static str, f64); 6] {
        [
            ("match", self.matching),
            ("check", self.check),
            ("compare", self.compare),
            ("stage", self.stage),
            ("publish", self.publish),
            ("retire", self.retire),
        ]
    }

    /// All phases together.
    pub fn total(&self) -> f64 {
        self.named().iter().map(|(_, ms)| ms).sum()
    }
}

/// One line: each phase with its milliseconds.
impl fmt::Display for PhaseTimes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let phases: Vec<String> = self.named().iter().map(|(name, ms)| format!("{name} {ms:.1} ms")).collect();
        f.write_str(&phases.join(", "))
    }
}
