//! Typed access to the arguments of a node, with the defaults of its schema, and the ways to add nodes to the graph.

mod arguments;
mod results;

use std::ops::{Deref, DerefMut};

use regraft_ir::TensorType;

use super::{import::Translator, schema::Node};

pub(crate) use crate::build::{
    Builder, DECOMPOSE, Number, Operand, Problem, Res, ValueId, row_major, simpler, unsupported, wrong,
};

/// What a handler sees: one node, its arguments, and the graph that grows.
pub(crate) struct Cx<'t, 'p> {
    pub(crate) t: &'t mut Translator<'p>,
    pub(crate) node: &'p Node,
    /// The program's types of the node's results, as far as they can be read.
    pub(crate) results: Vec<Option<TensorType>>,
    /// Whether half-precision tensors are read as f32, see [`Cx::in_f32`].
    pub(crate) wide: bool,
    /// Which part complex tensors are read as, 0 the real and 1 the imaginary one; as pairs otherwise.
    pub(crate) part: Option<i64>,
    /// Whether sizes that the program counts are read as large as they may be.
    pub(crate) at_most: bool,
}

impl Deref for Cx<'_, '_> {
    type Target = Builder;

    fn deref(&self) -> &Builder {
        &self.t.b
    }
}

impl DerefMut for Cx<'_, '_> {
    fn deref_mut(&mut self) -> &mut Builder {
        &mut self.t.b
    }
}
