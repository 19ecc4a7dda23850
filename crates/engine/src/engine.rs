use std::{fmt, path::Path, sync::Arc};

use regraft_backend::Target;
use regraft_tensor::{Buffer, Tensor};
use regraft_weights::{BakedAdapter, Digest, RefitMap};
use serde::{Deserialize, Serialize};

use crate::{EngineErrorKind, Plan, artifact::Unverified};

/// What an engine holds besides its plan, and so what can be done with it.
///
/// ```
/// use regraft_engine::Mode;
///
/// assert_eq!(Mode::default(), Mode::Refittable);
/// assert_eq!(Mode::Stripped.to_string(), "stripped");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Plan and packed slots, no recipes: ready on load, refit is refused.
    Frozen,
    /// Plan, recipes, and sources or slots or both (see [`KeepSources`]): ready on load, slots are rebuilt by each refit.
    #[default]
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

/// Where the sources of a refittable engine's slots are, for refits that do not bring all of them.
///
/// ```
/// use regraft_engine::KeepSources;
///
/// assert_eq!(KeepSources::default(), KeepSources::Embedded);
/// assert_eq!(KeepSources::ALL.map(KeepSources::name), ["embedded", "prepacked", "reference", "none"]);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeepSources {
    /// In the engine, which holds each source once. Slots are made when it is loaded.
    #[default]
    Embedded,
    /// In the engine, beside the packed slots: twice the size, loaded by mapping alone.
    Prepacked,
    /// In the weight files they were read from, by path and digest. The engine holds the packed slots.
    Reference,
    /// Nowhere: the engine holds the packed slots alone, and a refit must bring every source of a slot that it changes.
    None,
}

impl KeepSources {
    /// All ways.
    pub const ALL: [KeepSources; 4] =
        [KeepSources::Embedded, KeepSources::Prepacked, KeepSources::Reference, KeepSources::None];

    /// The word for it in text.
    pub fn name(self) -> &'static str {
        match self {
            KeepSources::Embedded => "embedded",
            KeepSources::Prepacked => "prepacked",
            KeepSources::Reference => "reference",
            KeepSources::None => "none",
        }
    }
}

/// The compiled artifact. What it holds of weights depends on its [`Mode`] and on [`KeepSources`].
///
/// ```
/// # use regraft_engine::{Engine, EngineError};
/// # fn f() -> Result<(), EngineError> {
/// let engine = Engine::read("model.rgf")?;
/// println!("{} for {}, {} slots", engine.mode, engine.target, engine.plan.slots.len());
/// let bytes = engine.stripped().write("plan.rgf")?;
/// # Ok(())
/// # }
/// ```
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
    /// Whether only weights with these digests are taken.
    pub identical: bool,
    /// The digest of each source, as far as it is known.
    pub digests: Vec<Option<Digest>>,
    /// One tensor per source of the refit map, where the engine holds it.
    pub sources: Vec<Option<Tensor>>,
    /// The weight file that each source is kept in, by reference.
    pub files: Vec<Option<Arc<Path>>>,
    /// The packed slots, where the engine holds them.
    pub slots: Option<Vec<Buffer>>,
    /// Adapters that are part of its weights.
    pub baked: Vec<BakedAdapter>,
    /// The file of these weights, until they were compared with their digests.
    pub unverified: Option<Unverified>,
}

impl Engine {
    /// A stripped engine.
    pub fn new(target: Target, plan: Plan, refit_map: RefitMap) -> Engine {
        let count = refit_map.sources.len();
        Engine {
            mode: Mode::Stripped,
            target,
            plan,
            refit_map,
            identical: false,
            digests: vec![None; count],
            sources: vec![None; count],
            files: vec![None; count],
            slots: None,
            baked: Vec::new(),
            unverified: None,
        }
    }

    /// Bytes of all slots.
    pub fn slot_bytes(&self) -> usize {
        self.plan.slots.iter().map(|slot| slot.bytes).sum()
    }

    /// Bytes of all sources.
    pub fn source_bytes(&self) -> usize {
        self.refit_map.sources.iter().map(regraft_weights::SourceInfo::byte_len).sum()
    }

    /// How sources are kept.
    pub fn keep_sources(&self) -> KeepSources {
        let used = self.refit_map.are_read();
        let held = |i: usize| self.sources[i].is_some() || !used[i];
        match (&self.slots, self.files.iter().any(Option::is_some)) {
            (None, _) => KeepSources::Embedded,
            (Some(_), true) => KeepSources::Reference,
            (Some(_), false) if (0..used.len()).all(held) => KeepSources::Prepacked,
            (Some(_), false) => KeepSources::None,
        }
    }

    /// The engine with these weights, one per source: refittable when all are there, otherwise stripped. An `identical`
    /// engine takes no others from now on.
    pub fn with_weights(mut self, mut weights: Vec<Option<Tensor>>, identical: bool) -> Engine {
        // Those of twins stand behind the ones that they are.
        weights.truncate(self.refit_map.sources.len());
        let complete = weights.iter().all(Option::is_some);
        self.identical = identical && complete;
        if self.identical {
            self.digests = weights.iter().map(|tensor| tensor.as_ref().map(Digest::of)).collect();
        }
        self.sources = weights;
        self.mode = Mode::Refittable;
        if complete { self } else { self.stripped() }
    }

    /// The engine without the weights that a state dict can bring. Digests stay: they tell which weights it was made from.
    pub fn stripped(mut self) -> Engine {
        for (info, tensor) in self.refit_map.sources.iter().zip(&mut self.sources) {
            if info.kind.in_state_dict() {
                *tensor = None;
            }
        }
        self.files.fill(None);
        self.slots = None;
        self.baked.clear();
        self.mode = Mode::Stripped;
        self
    }

    /// Whether the weights are there that the mode promises.
    pub(crate) fn check_weights(&self) -> Result<(), EngineErrorKind> {
        let lacks = |what: &str| Err(EngineErrorKind::Malformed(format!("a {} engine without {what}", self.mode)));
        if self.identical && self.digests.iter().any(Option::is_none) {
            return lacks("the digests of the weights it is bound to");
        }
        let embedded = |i: usize| self.sources[i].is_some();
        let used = self.refit_map.are_read();
        match (self.mode, &self.slots) {
            (Mode::Frozen, None) => lacks("slots"),
            // What no slot is made of may be absent.
            (Mode::Refittable, None) if !(0..used.len()).all(|i| !used[i] || embedded(i)) => {
                lacks("slots and sources to make them of")
            }
            (Mode::Stripped, Some(_)) => Err(EngineErrorKind::Malformed("a stripped engine with slots".into())),
            (Mode::Frozen | Mode::Refittable | Mode::Stripped, _) => Ok(()),
        }
    }
}
