//! The compiled artifact: plan, refit map and weights, and the `.rgf` file that holds them.
#![forbid(unsafe_code)]

mod artifact;
pub mod atomic_file;
pub mod cache;
pub mod container;
mod engine;
mod error;
mod plan;

pub use engine::{Engine, Mode};
pub use error::{EngineError, EngineErrorKind};
pub use plan::Plan;
