//! Typed access to the arguments of a node, with the defaults of its schema, and the ways to add nodes to the graph.

mod arguments;
mod nodes;
mod number;
mod problem;
mod values;

use std::sync::Arc;

use regraft_ir::TensorType;

use super::{import::Translator, schema::Node};

pub(crate) use number::{Number, Operand};
pub(crate) use problem::{DECOMPOSE, Problem, Res, unsupported, wrong};
pub(crate) use regraft_ir::ValueId;
pub(crate) use values::{row_major, simpler};

/// What a handler sees: one node, its arguments, and the graph that grows.
pub(crate) struct Cx<'t, 'p> {
    pub(crate) t: &'t mut Translator<'p>,
    pub(crate) node: &'p Node,
    /// The program's types of the node's results, as far as they can be read.
    pub(crate) results: Vec<Option<TensorType>>,
    pub(crate) scope: Arc<str>,
    /// Whether half-precision tensors are read as f32, see [`Cx::in_f32`].
    pub(crate) wide: bool,
    /// Which part complex tensors are read as, 0 the real and 1 the imaginary one; as pairs otherwise.
    pub(crate) part: Option<i64>,
}
