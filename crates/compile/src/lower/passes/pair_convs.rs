//! A convolution of single pixels and the depthwise one that alone reads it become one, so that a large image between them need not be
//! written and read again.

use regraft_backend::Lowering;
use regraft_ir::{
    Graph, IrError, Node, Op, ValueId,
    ops::{Conv, ConvPair, SpatialLayout},
};
use regraft_tensor::Dim;

use crate::lower::{Pass, known::known_values, pattern::producer};

/// See the module's documentation.
pub const PASS: Pass = Pass { name: "pair_convs", run };

fn run(graph: &mut Graph, lowering: &dyn Lowering) -> Result<(), IrError> {
    let known = known_values(graph);
    let is_known = |value: ValueId| known[value.0 as usize];
    let uses = graph.use_counts();
    for id in graph.node_ids() {
        let second = graph.node(id).clone();
        let Some(depthwise) = convolution(&second).filter(|op| is_depthwise(graph, &second, op)) else { continue };
        let between = second.input(0);
        let Some((_, first)) = producer(graph, between) else { continue };
        let Some(pointwise) = convolution(first).filter(|op| is_pointwise(graph, first, op)) else { continue };
        let weights_are_known = is_known(first.input(1)) && is_known(second.input(1));
        if uses[between.0 as usize] != 1 || !weights_are_known || !lowering.pairs_convs(graph.ty(between)) {
            continue;
        }
        let op = ConvPair {
            inner_act: pointwise.act,
            stride: depthwise.stride.clone(),
            padding: depthwise.padding.clone(),
            dilation: depthwise.dilation.clone(),
            act: depthwise.act,
        };
        let [x, v, c] = [0, 1, 2].map(|i| first.optional_input(i));
        let mut inputs = vec![x, v, c, second.optional_input(1), second.optional_input(2)];
        while inputs.last() == Some(&None) {
            inputs.pop();
        }
        let new = graph.add(op, inputs, &second.scope)?[0];
        graph.replace_uses(second.output(), new);
    }
    Ok(())
}

/// The convolution of a node, over channels-last images and with nothing added to its result.
fn convolution(node: &Node) -> Option<&Conv> {
    match &node.op {
        Op::Conv(op) if op.layout == SpatialLayout::Nhwc && node.optional_input(3).is_none() => Some(op),
        _ => None,
    }
}

fn is_depthwise(graph: &Graph, node: &Node, op: &Conv) -> bool {
    let weight = &graph.ty(node.input(1)).shape;
    weight[1] == Dim::from(1usize) && weight[0] == Dim::from(op.groups)
}

fn is_pointwise(graph: &Graph, node: &Node, op: &Conv) -> bool {
    let in_place = op.stride.iter().all(|s| *s == 1) && op.padding.iter().all(|p| *p == 0);
    op.groups == 1 && in_place && graph.ty(node.input(1)).shape[2..].iter().all(|size| *size == Dim::from(1usize))
}
