//! From an imported program to an engine: `lower` (passes), then `build` (split by binding time, choose kernels, write
//! recipes). Between kernels that can run the same node, `tune` chooses.
//!
//! See [`pipeline::compile`] for the stages in order.
#![forbid(unsafe_code)]

pub mod build;
pub mod canonical;
mod error;
pub mod lower;
pub mod pipeline;
pub mod tune;

pub use error::CompileError;
