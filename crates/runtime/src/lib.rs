//! Runs engines and changes their weights. No compiler inside.
//!
//! - [`Model`]: an engine with a serving generation;
//! - [`Session`]: the scratch memory and the state of one sequence of runs;
//! - `bind/`: the plan at known sizes: kernels, views, memory;
//! - `refit/`: match, check, compare, stage, publish.
#![forbid(unsafe_code)]

mod bind;
mod error;
mod model;
mod refit;
mod session;

pub use error::{RuntimeError, RuntimeErrorKind};
pub use model::Model;
pub use refit::{RefitOptions, Staged};
pub use session::Session;
