//! Small questions that passes ask of a graph.

use regraft_ir::{Graph, Node, NodeId, Op, Scalar, ValueId};

/// The node that makes `value`.
pub fn producer(graph: &Graph, value: ValueId) -> Option<(NodeId, &Node)> {
    graph.producer(value).map(|id| (id, graph.node(id)))
}

/// The value of a scalar literal, also behind reshapes and expands.
pub fn literal(graph: &Graph, value: ValueId) -> Option<Scalar> {
    let (_, node) = producer(graph, value)?;
    match &node.op {
        Op::Full(op) => Some(op.value),
        Op::Reshape(_) | Op::Expand(_) => literal(graph, node.input(0)),
        Op::Cast(op) if op.dtype.is_float() => Some(Scalar::Float(literal(graph, node.input(0))?.as_f64())),
        _ => None,
    }
}

/// The literal as f64 when `value` is one.
pub fn literal_f64(graph: &Graph, value: ValueId) -> Option<f64> {
    literal(graph, value).map(Scalar::as_f64)
}

/// Whether two values surely have the same shape.
pub fn same_shape(graph: &Graph, a: ValueId, b: ValueId) -> bool {
    graph.ty(a).shape == graph.ty(b).shape
}
