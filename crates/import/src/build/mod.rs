//! The graph that an importer builds: ways to add nodes, what is known of values, and what several operators are made of.
//! Both importers use these, each behind a context of its own that knows the arguments of a node.

mod deform;
mod determinant;
mod einsum;
mod grid;
mod known;
mod matrix;
mod nodes;
mod number;
mod positions;
mod problem;
mod product;
mod roi;
mod sizes;
mod uses;
mod values;
mod windows;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use regraft_ir::{Graph, Op};
use regraft_tensor::{Dim, Range, Tensor};

pub(crate) use self::{
    deform::{Deform, deform_conv},
    determinant::{LARGEST_BY_MINORS, determinant},
    einsum::einsum,
    grid::{Outside, Sampling, grid_sample, sampled},
    known::Known,
    matrix::{Lu, Triangle},
    number::{Number, Operand},
    positions::{coordinates, first_sorted, put, sorted},
    problem::{DECOMPOSE, Problem, Res, unsupported, wrong},
    product::{linear_op, matrices, product, transposed},
    roi::{Rois, roi_align},
    sizes::open_symbol,
    uses::tell_apart,
    values::{row_major, simpler},
    windows::{greatest, pool_taps, seen, taps, window_elements},
};
pub(crate) use regraft_ir::ValueId;

/// A graph that grows.
pub(crate) struct Builder {
    pub(crate) graph: Graph,
    /// The range of each symbol.
    pub(crate) ranges: Vec<Range>,
    /// The value that each symbol had in the example of the program, when there was one.
    pub(crate) examples: Option<Vec<i64>>,
    /// The module whose nodes are being added.
    pub(crate) scope: Arc<str>,
    /// Whether a value is computed from sources alone, by its id.
    constant: Vec<bool>,
    /// Values that are known while the program is built, see [`Builder::known`].
    known: HashMap<ValueId, Option<Known>>,
    /// The values of sources that may say something about the program itself, such as a shape.
    pub(crate) literals: HashMap<u32, Tensor>,
    /// The sources of which the program was built by their values.
    pub(crate) read: BTreeSet<u32>,
}

impl Builder {
    /// Goes on with `graph`, which has its symbols already.
    pub(crate) fn new(graph: Graph, examples: Option<Vec<i64>>) -> Self {
        let ranges = graph.symbols.iter().map(|s| s.range).collect();
        Builder {
            graph,
            ranges,
            examples,
            scope: "".into(),
            constant: Vec::new(),
            known: HashMap::new(),
            literals: HashMap::new(),
            read: BTreeSet::new(),
        }
    }

    /// Adds a node. Its results are constant when all that it reads is.
    pub(crate) fn add(&mut self, op: Op, inputs: Vec<Option<ValueId>>, scope: &Arc<str>) -> Res<Vec<ValueId>> {
        let constant =
            inputs.iter().flatten().next().is_some() && inputs.iter().flatten().all(|v| self.is_constant(*v));
        let outputs = self.graph.add(op, inputs, scope)?;
        for v in &outputs {
            self.mark(*v, constant);
        }
        Ok(outputs)
    }

    /// [`Builder::add`] for an op of one result.
    pub(crate) fn add_one(&mut self, op: Op, inputs: &[ValueId], scope: &Arc<str>) -> Res<ValueId> {
        let out = self.add(op, inputs.iter().map(|v| Some(*v)).collect(), scope)?;
        out.first().copied().map_or_else(|| wrong("the operator has no result"), Ok)
    }

    /// Says whether a value is computed from sources alone.
    pub(crate) fn mark(&mut self, value: ValueId, constant: bool) {
        let at = value.0 as usize;
        if self.constant.len() <= at {
            self.constant.resize(at + 1, false);
        }
        if let Some(slot) = self.constant.get_mut(at) {
            *slot = constant;
        }
    }

    /// Whether the value is computed from sources alone.
    pub(crate) fn is_constant(&self, value: ValueId) -> bool {
        self.constant.get(value.0 as usize).copied().unwrap_or(false)
    }

    /// The value that an expression had in the example of the program.
    pub(crate) fn example(&self, dim: &Dim) -> Option<i64> {
        dim.eval(self.examples.as_ref()?).ok()
    }
}
