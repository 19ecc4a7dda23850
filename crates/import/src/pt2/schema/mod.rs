//! The JSON of an exported program, as far as Regraft needs it: schema version 8 of `torch.export`.
//!
//! Fields that are not listed here are ignored, and a tagged union with an unknown tag becomes `Unknown(tag)`: newer
//! minor versions of the schema may have both, and only what a program uses must be understood.

mod argument;
mod graph;
mod json;
mod meta;
mod number;
mod payload;
mod program;
mod signature;
mod symbolic;
mod union;

pub use argument::*;
pub use graph::*;
pub(crate) use json::from_json;
pub use meta::*;
pub use payload::*;
pub use program::*;
pub use signature::*;
pub use symbolic::*;

#[cfg(test)]
mod tests;
