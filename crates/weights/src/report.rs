use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::Ignored;

/// A phase of a refit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Names are matched.
    Match,
    /// Shapes, dtypes, values by policy and guards are checked.
    Check,
    /// What really differs is found: given sources are compared with the ones of the serving generation.
    Compare,
    /// Recipes run into fresh buffers.
    Stage,
    /// The new generation becomes the serving one.
    Publish,
    /// Memory that only the generation before used goes back to the pool, unless a run still uses it.
    Retire,
}

/// A slot that a refit rebuilt.
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

/// An adapter that the new generation has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterReport {
    /// Its name.
    pub name: String,
    /// Its scale.
    pub scale: f64,
    /// Number of sources that it touches.
    pub layers: usize,
    /// Those of them that the program never reads, so that nothing comes of it.
    #[serde(default)]
    pub unread: usize,
    /// Its values that are infinite or not a number: what it touches has such values, too.
    #[serde(default)]
    pub non_finite: usize,
}

/// An adapter that became part of the weights when they were saved.
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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RefitReport {
    /// Sources that were given and differ from before.
    pub applied: Vec<String>,
    /// Sources that were given and are the same as before, bit for bit.
    pub unchanged: Vec<String>,
    /// Sources that were not given and kept (partial refit, or held by no state dict).
    pub kept: Vec<String>,
    /// How names of the file became names of sources, in words; empty where they are the same.
    #[serde(default)]
    pub naming: String,
    /// Names that were given and change nothing.
    #[serde(default)]
    pub ignored: Vec<Ignored>,
    /// Sources that were given in memory of a device and copied to the host, because what is made of them is made there.
    #[serde(default)]
    pub fetched: Vec<String>,
    /// Adapters of the new generation.
    pub adapters: Vec<AdapterReport>,
    /// Adapters that are part of the weights that the new generation has without those: they were there when these were saved.
    #[serde(default)]
    pub baked: Vec<BakedAdapter>,
    /// Sources that other adapters, or the same ones with other scales, are applied to than before.
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
            let of = |adapter: &AdapterReport| format!("{} at {}", adapter.name, adapter.scale);
            write!(f, ", adapters {}", self.adapters.iter().map(of).collect::<Vec<_>>().join(" and "))?;
        }
        let (slots, megabytes) = (self.recomputed_slots.len(), self.bytes as f64 / 1e6);
        write!(f, ", {slots} slots rebuilt, {megabytes:.1} MB in {:.1} ms", self.phases_ms.total())
    }
}

/// Milliseconds per phase.
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
