//! Weights as first-class citizens: sources, recipes that make slots of them, and generations of slots.
//!
//! - [`SourceInfo`], [`RefitMap`], [`Recipe`]: which slot is computed from which sources, and how;
//! - [`GatherPlan`], [`VectorPlan`]: a recipe compiled to one pass over memory;
//! - [`PackFormat`]: the layout that a kernel wants a slot in;
//! - [`StateDict`]: named tensors from files or memory; [`files`]: the formats;
//! - [`match_names`], [`Names::check`]: everything that can be wrong with a refit, found before anything is computed;
//! - [`adapter`]: updates of sources that are applied on the way to the slots;
//! - [`Generation`]: an immutable set of slots that shares what did not change with others;
//! - [`InSlot`]: a source that is kept in the slot that was made of it;
//! - [`RefitReport`]: what a refit did, and where the time went.
#![forbid(unsafe_code)]

pub mod adapter;
mod digest;
mod error;
pub mod files;
mod format;
mod gather;
mod generation;
mod in_slot;
mod matching;
mod pool;
mod recipe;
mod refit_map;
mod report;
mod shared_threads;
mod state_dict;
mod vector;

pub use digest::{Digest, NoDigest};
pub use error::{Problem, WeightsError, WeightsErrorKind, misfit_summary};
pub use format::PackFormat;
pub use gather::{GatherPlan, Piece, Program};
pub use generation::{Generation, SourceContent};
pub use in_slot::InSlot;
pub use matching::{MatchOptions, Matched, Names, match_names};
pub use pool::{OverLimit, PoolMemory, Slot, SlotPool};
pub use recipe::Recipe;
pub use refit_map::{RefitMap, SourceInfo};
pub use report::{AdapterReport, Phase, PhaseTimes, RefitReport, SlotReport};
pub use shared_threads::on_shared_threads;
pub use state_dict::StateDict;
pub use vector::VectorPlan;
