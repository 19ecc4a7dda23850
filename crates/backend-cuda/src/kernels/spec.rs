//! A kernel and its launch as plain data.

use std::fmt::Write;

use super::PRELUDE;
use crate::{driver::Launch, nvrtc::Source};

/// Why a kernel does not take a problem.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Why(pub String);

impl Why {
    pub(crate) fn new(why: impl Into<String>) -> Why {
        Why(why.into())
    }
}

/// One argument of a launch.
#[derive(Clone, Debug, PartialEq)]
pub enum Param {
    /// The address of an operand, so many bytes into it.
    In(usize, usize),
    /// The address of a result, so many bytes into it.
    Out(usize, usize),
    /// An address in the scratch memory of the node.
    Scratch(usize),
    /// Where an index out of range is reported.
    Report,
    /// No address.
    Null,
    /// A number or a structure.
    Bytes(Vec<u8>),
}

impl Param {
    /// A 32-bit integer.
    pub fn i32(value: i32) -> Param {
        Param::Bytes(value.to_ne_bytes().to_vec())
    }

    /// A 64-bit integer.
    pub fn size(value: usize) -> Param {
        Param::Bytes((value as i64).to_ne_bytes().to_vec())
    }

    /// A 64-bit integer.
    pub fn i64(value: i64) -> Param {
        Param::Bytes(value.to_ne_bytes().to_vec())
    }

    /// A float.
    pub fn f32(value: f32) -> Param {
        Param::Bytes(value.to_ne_bytes().to_vec())
    }
}

/// The fields of a structure argument, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fields(Vec<u8>);

impl Fields {
    pub(crate) fn sizes(mut self, values: &[usize]) -> Fields {
        values.iter().for_each(|&v| self.0.extend((v as i64).to_ne_bytes()));
        self
    }

    pub(crate) fn i32(mut self, value: i32) -> Fields {
        self.0.extend(value.to_ne_bytes());
        self
    }

    pub(crate) fn f32(mut self, value: f32) -> Fields {
        self.0.extend(value.to_ne_bytes());
        self
    }

    /// The argument. Structures with 64-bit fields end at a multiple of 8.
    pub(crate) fn param(mut self) -> Param {
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        Param::Bytes(self.0)
    }
}

/// A kernel with one launch of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// The source.
    pub source: Source,
    /// The name of the function in it.
    pub entry: &'static str,
    /// The shape of the launch.
    pub launch: Launch,
    /// The arguments.
    pub params: Vec<Param>,
    /// Bytes of scratch memory that the launches of the node share.
    pub scratch: usize,
}

/// Definitions in front of a source.
#[derive(Clone, Debug, Default)]
pub(crate) struct Defines(String);

impl Defines {
    pub(crate) fn ty(mut self, name: &str, ty: &str) -> Defines {
        // A type definition and not a macro, so that a wrong name is one clear error.
        writeln!(self.0, "typedef {ty} {name};").expect("writing to a string");
        self
    }

    pub(crate) fn set(mut self, name: &str, value: impl std::fmt::Display) -> Defines {
        writeln!(self.0, "#define {name} {value}").expect("writing to a string");
        self
    }

    pub(crate) fn flag(self, name: &str, value: bool) -> Defines {
        self.set(name, u8::from(value))
    }

    /// The complete source.
    pub(crate) fn source(self, name: &str, body: &str) -> Source {
        Source { name: name.to_owned(), text: format!("{PRELUDE}\n{}\n{body}", self.0) }
    }
}

/// Blocks of 256 threads for `count` elements, one thread each.
pub(crate) fn threads_for(count: usize) -> Result<Launch, Why> {
    grid([count.div_ceil(256), 1, 1], 256, 0)
}

/// Blocks of 256 threads that step over `count` pieces of work.
pub(crate) fn stepping(count: usize) -> Launch {
    // Enough for every multiprocessor of any device several times over; more only adds blocks that wait.
    Launch { grid: [count.div_ceil(256).min(132 * 16) as u32, 1, 1], block: 256, shared: 0 }
}

/// The type that counts so many elements: 32 bits, which are divided many times faster, where they are enough.
pub(crate) fn index_type(count: usize) -> &'static str {
    if count < 1 << 31 { "u32" } else { "u64" }
}

/// A launch of this many blocks.
pub(crate) fn grid(blocks: [usize; 3], block: usize, shared: usize) -> Result<Launch, Why> {
    let most = [(1usize << 31) - 1, 65_535, 65_535];
    if blocks.iter().zip(most).any(|(b, most)| *b > most) {
        return Err(Why::new(format!("{blocks:?} blocks are more than a launch may have")));
    }
    Ok(Launch { grid: blocks.map(|b| b as u32), block: block as u32, shared: shared as u32 })
}
