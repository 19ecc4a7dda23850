//! Weights: sources, and recipes that make slots from them.
//!
//! - [`SourceInfo`], [`RefitMap`], [`Recipe`]: which slot is computed from which sources, and how;
//! - [`GatherPlan`], [`VectorPlan`]: a recipe compiled to one pass over memory;
//! - [`FormatId`], [`SlotLayout`]: the layout that a kernel wants a slot in;
//! - [`StateDict`]: named tensors from files or memory;
//! - [`match_names`], [`Names::check`]: everything that can be wrong with a refit, found before anything is computed;
//! - [`RefitReport`]: what a refit did, and where the time went.
#![forbid(unsafe_code)]

mod constants;
mod digest;
mod error;
mod format;
mod gather;
mod matching;
mod misfit;
mod naming;
mod options;
mod recipe;
mod refit_map;
mod report;
mod shared_threads;
mod state_dict;
mod stored;
mod vector;

pub use constants::folded_value;
pub use digest::{Digest, NoDigest};
pub use error::{Ignored, Problem, Unknown, WeightsError, WeightsErrorKind};
pub use format::{FormatId, SlotLayout};
pub use gather::{Computation, GatherPlan, Move, MoveAxis, MovePlan, Piece};
pub use matching::{Matched, Names, match_names, match_sources, non_finite, suggestion};
pub use misfit::{Cause, Misfit};
pub use naming::NameRule;
pub use options::{Constants, MatchOptions, Rename};
pub use recipe::Recipe;
pub use refit_map::{RefitMap, SlotsBySource, SourceInfo, Twin};
pub use report::{AdapterReport, BakedAdapter, Phase, PhaseTimes, RefitReport, SlotReport};
pub use shared_threads::on_shared_threads;
pub use state_dict::StateDict;
pub use vector::VectorPlan;
