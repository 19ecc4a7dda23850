//! Runs engines and changes their weights. No compiler inside.
//!
//! - [`Model`]: an engine with a serving generation;
//! - [`Session`]: the scratch memory and the state of one sequence of runs;
//! - [`Generation`]: an immutable set of slots that shares what did not change with others;
//! - `bind/`: the plan at known sizes: kernels, views, memory;
//! - `refit/`: match, check, compare, stage;
//! - `serving`: publish, roll back, retire, checked under a model checker;
//! - [`Adapters`], [`Variants`]: what serves besides the plain weights;
//! - `watch`: what each step of a run takes;
//! - `siblings`: models of other programs over the same weights, with which slots are shared.
#![forbid(unsafe_code)]

mod adapters;
mod bind;
mod error;
mod file_check;
mod generation;
mod lent;
mod model;
mod program;
mod recordings;
mod refit;
mod save;
mod serving;
mod session;
mod siblings;
mod slot_copier;
mod sync;
mod variants;
mod verify;
mod watch;

pub use adapters::Adapters;
pub use error::{RuntimeError, RuntimeErrorKind};
pub use generation::{Generation, PoolMemory, ReserveError, Slot, SourceContent};
pub use lent::Input;
pub use model::Model;
pub use program::WeightReader;
pub use refit::{Changed, Refit, RefitObserver, RefitOptions, Staged, publish_together};
pub use session::Session;
pub use slot_copier::SlotCopier;
pub use variants::{VariantMemory, Variants};
pub use verify::{Difference, Verification};
pub use watch::StepTime;
