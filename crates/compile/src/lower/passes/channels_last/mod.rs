//! Images get their channels last, `[n, spatial..., c]`, where the backend's kernels want that.
//!
//! One sweep in program order: a convolution is rewritten to the other layout and its result remembered together with the
//! permute back; other ops follow when their operands are there in that layout or come cheaply. Permutes that no op
//! needed are dead afterwards. Weights stay as PyTorch has them: a kernel's recipe arranges them.

mod follow;

use std::{collections::HashMap, sync::Arc};

use regraft_backend::Lowering;
use regraft_ir::{
    Graph, IrError, Node, Op, ValueId,
    ops::{AdaptiveAvgPool, AvgPool, BatchNorm, Conv, GroupNorm, MaxPool, Resize, SpatialLayout},
};

use crate::lower::{Pass, known::known_values, pattern::permute};

/// See the module's documentation.
pub const PASS: Pass = Pass { name: "channels_last", run };

fn run(graph: &mut Graph, lowering: &dyn Lowering) -> Result<(), IrError> {
    let mut layouts = Layouts { known: known_values(graph), twins: HashMap::new() };
    for id in graph.node_ids() {
        let node = graph.node(id).clone();
        if node.outputs.len() != 1 || layouts.is_known(node.output()) {
            continue;
        }
        let new = match rewritten(graph, &layouts, lowering, &node) {
            // A convolution is worth a permute of its operand; the others are not.
            Some(op) if matches!(op, Op::Conv(_)) || layouts.twins.contains_key(&node.input(0)) => {
                Some(layouts.spatial(graph, &node, op)?)
            }
            Some(_) => None,
            None => follow::follow(graph, &mut layouts, &node)?,
        };
        if let Some(last) = new {
            layouts.replace(graph, &node, last)?;
        }
    }
    Ok(())
}

/// `[n, c, spatial...]` to `[n, spatial..., c]`.
fn to_last(rank: usize) -> Vec<usize> {
    std::iter::once(0).chain(2..rank).chain([1]).collect()
}

/// `[n, spatial..., c]` to `[n, c, spatial...]`; also the axis in the first of each axis of the second.
fn to_first(rank: usize) -> Vec<usize> {
    [0, rank - 1].into_iter().chain(1..rank - 1).collect()
}

/// A value with channels last.
#[derive(Clone, Copy)]
struct Twin {
    value: ValueId,
    /// Whether it was computed so; otherwise it was permuted from a value with channels first.
    native: bool,
}

/// What is known so far, by the value with channels first.
struct Layouts {
    known: Vec<bool>,
    twins: HashMap<ValueId, Twin>,
}

impl Layouts {
    fn is_known(&self, value: ValueId) -> bool {
        self.known.get(value.0 as usize) == Some(&true)
    }

    /// `value` with channels last when it is computed so.
    fn native(&self, value: ValueId) -> Option<ValueId> {
        self.twins.get(&value).filter(|t| t.native).map(|t| t.value)
    }

    /// `value` with channels last, permuted if need be.
    fn last(&mut self, graph: &mut Graph, value: ValueId, scope: &Arc<str>) -> Result<ValueId, IrError> {
        if let Some(twin) = self.twins.get(&value) {
            return Ok(twin.value);
        }
        let last = permute(graph, value, to_last(graph.ty(value).rank()), scope)?;
        self.twins.insert(value, Twin { value: last, native: false });
        Ok(last)
    }

    fn spatial(&mut self, graph: &mut Graph, node: &Node, op: Op) -> Result<ValueId, IrError> {
        let mut inputs = node.inputs.clone();
        let images = if matches!(op, Op::Conv(_)) { &[0, 3][..] } else { &[0] };
        for &i in images {
            if let Some(image) = node.optional_input(i) {
                inputs[i] = Some(self.last(graph, image, &node.scope)?);
            }
        }
        Ok(graph.add(op, inputs, &node.scope)?[0])
    }

    /// Puts `last`, permuted back, in the place of the node's result.
    fn replace(&mut self, graph: &mut Graph, node: &Node, last: ValueId) -> Result<(), IrError> {
        let first = permute(graph, last, to_first(graph.ty(last).rank()), &node.scope)?;
        graph.replace_uses(node.output(), first);
        self.twins.insert(first, Twin { value: last, native: true });
        Ok(())
    }
}

/// The op with channels last, when it is a spatial one with channels first on images that the backend wants so. A weight that is
/// computed cannot be arranged for it ahead, so its convolution stays.
fn rewritten(graph: &Graph, layouts: &Layouts, lowering: &dyn Lowering, node: &Node) -> Option<Op> {
    use SpatialLayout::{Nchw, Nhwc};
    let op: Op = match &node.op {
        Op::Conv(op) if op.layout == Nchw && layouts.is_known(node.input(1)) => {
            Conv { layout: Nhwc, ..op.clone() }.into()
        }
        Op::MaxPool(op) if op.layout == Nchw => MaxPool { layout: Nhwc, ..op.clone() }.into(),
        Op::AvgPool(op) if op.layout == Nchw => AvgPool { layout: Nhwc, ..op.clone() }.into(),
        Op::AdaptiveAvgPool(op) if op.layout == Nchw => AdaptiveAvgPool { layout: Nhwc, ..op.clone() }.into(),
        Op::BatchNorm(op) if op.layout == Nchw => BatchNorm { layout: Nhwc, ..op.clone() }.into(),
        Op::GroupNorm(op) if op.layout == Nchw => GroupNorm { layout: Nhwc, ..op.clone() }.into(),
        Op::Resize(op) if op.layout == Nchw => Resize { layout: Nhwc, ..op.clone() }.into(),
        _ => return None,
    };
    let x = graph.ty(node.input(0));
    (lowering.image_layout(x.dtype) == Nhwc && (3..=5).contains(&x.rank())).then_some(op)
}
