use std::fmt;

use regraft_backend::Target;
use regraft_tensor::{Buffer, Tensor};
use regraft_weights::{Digest, RefitMap};
use serde::{Deserialize, Serialize};

use crate::Plan;

/// What an engine holds besides its plan, and so what can be done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Plan and packed slots, no recipes: ready on load, refit is refused.
    Frozen,
    /// Plan, recipes and sources: slots are made on load, and made anew by each refit.
    Refittable,
    /// Plan and recipes: runs once weights are bound.
    Stripped,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Frozen => "frozen",
            Mode::Refittable => "refittable",
            Mode::Stripped => "stripped",
        })
    }
}

/// The compiled artifact. What it holds of weights depends on its [`Mode`].
#[derive(Clone, Debug)]
pub struct Engine {
    /// What the engine holds.
    pub mode: Mode,
    /// The machine it was built for.
    pub target: Target,
    /// What a run executes.
    pub plan: Plan,
    /// The recipes; their list is empty in a frozen engine.
    pub refit_map: RefitMap,
    /// Identical engines: a digest per source, and only these weights are taken. `None` for sources that no state dict
    /// holds.
    pub identical: Option<Vec<Digest>>,
    /// One tensor per source of the refit map, where the engine holds it: all in a refittable engine, in a stripped one
    /// only those that no state dict holds, none in a frozen one.
    pub sources: Vec<Option<Tensor>>,
    /// The packed slots of a frozen engine.
    pub slots: Option<Vec<Buffer>>,
}

impl Engine {
    /// Bytes of all slots.
    pub fn slot_bytes(&self) -> usize {
        (0..self.plan.slots.len()).map(|i| self.plan.slot_bytes(i)).sum()
    }

    /// Bytes of all sources.
    pub fn source_bytes(&self) -> usize {
        self.refit_map.sources.iter().map(regraft_weights::SourceInfo::byte_len).sum()
    }

    /// The engine without the weights that a state dict can bring.
    pub fn stripped(mut self) -> Engine {
        for (info, tensor) in self.refit_map.sources.iter().zip(&mut self.sources) {
            if info.kind.in_state_dict() {
                *tensor = None;
            }
        }
        self.mode = Mode::Stripped;
        self
    }
}
