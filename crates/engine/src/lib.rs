//! The compiled artifact: plan, refit map and weights, and the `.rgf` file that holds them.
#![forbid(unsafe_code)]

mod artifact;
pub mod atomic_file;
pub mod cache;
pub mod container;
mod engine;
mod error;
mod manifest;
mod plan;

pub use artifact::Unverified;
pub use engine::{Engine, KeepSources, Mode};
pub use error::{EngineError, EngineErrorKind};
pub use manifest::{Checked, Kept, ManifestEntry};
pub use plan::{Evaluated, Plan};
