//! Chooses a kernel for each node of the plan.

use regraft_backend::{Candidate, Codegen, FormatId, KernelId, OperandType};
use regraft_ir::{Graph, Node, Op};

use super::split::Split;
use crate::tune::{TuneError, Tuner};

/// How a slot is made from a known value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Layout {
    /// Ops appended to the recipe.
    pub(crate) prepare: Vec<Op>,
    /// The format.
    pub(crate) format: FormatId,
}

impl Layout {
    /// The value as it is, row-major.
    pub(crate) fn plain() -> Self {
        Layout { prepare: Vec::new(), format: FormatId::PLAIN }
    }
}

/// The kernel of a node, with the layouts of its weights.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    /// The kernel.
    pub(crate) kernel: KernelId,
    weights: Vec<(usize, Layout)>,
}

impl Choice {
    /// The layout of operand `index`.
    pub(crate) fn layout(&self, index: usize) -> Layout {
        self.weights.iter().find(|(i, _)| *i == index).map_or_else(Layout::plain, |(_, layout)| layout.clone())
    }
}

impl From<Candidate> for Choice {
    fn from(candidate: Candidate) -> Self {
        let layout = |w: regraft_backend::WeightLayout| (w.operand, Layout { prepare: w.prepare, format: w.format });
        Choice { kernel: candidate.kernel, weights: candidate.weights.into_iter().map(layout).collect() }
    }
}

/// One choice per node of the plan: the backend's candidate that the tuner takes, or the reference evaluator.
pub(crate) fn select(split: &Split, codegen: &dyn Codegen, tuner: &mut Tuner<'_>) -> Result<Vec<Choice>, TuneError> {
    let graph = &split.graph;
    let offered: Vec<_> = graph.nodes().iter().map(|node| offered(graph, node, codegen)).collect();
    tuner.expect(graph, graph.nodes().iter().zip(&offered));
    let chosen = graph.nodes().iter().zip(offered).map(|(node, offered)| {
        let best = if node.op.is_view() { offered.into_iter().next() } else { tuner.choose(graph, node, offered)? };
        Ok(best.unwrap_or_else(|| Candidate::plain(KernelId::REFERENCE)).into())
    });
    chosen.collect()
}

/// What the backend offers for a node, best first.
fn offered(graph: &Graph, node: &Node, codegen: &dyn Codegen) -> Vec<Candidate> {
    if node.op.is_view() {
        return vec![Candidate::plain(KernelId::VIEW)];
    }
    let operand = |v| OperandType { ty: graph.ty(v), known: graph.source_of(v).is_some() };
    let inputs: Vec<_> = node.inputs.iter().map(|v| v.map(operand)).collect();
    let outputs: Vec<_> = node.outputs.iter().map(|&v| graph.ty(v)).collect();
    codegen.candidates(&node.op, &inputs, &outputs)
}
