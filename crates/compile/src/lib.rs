//! From an imported program to an engine: `lower` (passes), then `build` (split by binding time, choose kernels, write
//! recipes).
//!
//! See [`pipeline::compile`] for the stages in order.
#![forbid(unsafe_code)]

pub mod build;
pub mod canonical;
mod error;
pub mod lower;
pub mod pipeline;

pub use error::CompileError;
