//! Small questions that passes ask of a graph.

use std::sync::Arc;

use regraft_ir::{
    Graph, IrError, Node, NodeId, Op, Scalar, ValueId,
    ops::{BinaryFn, Permute, Reshape},
};
use regraft_tensor::Dim;

use super::axes::is_identity;

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

/// The operands when `value` is made by the binary function `f`.
pub fn binary(graph: &Graph, value: ValueId, f: BinaryFn) -> Option<(ValueId, ValueId)> {
    match producer(graph, value)?.1 {
        Node { op: Op::Binary(op), inputs, .. } if op.f == f => Some((inputs[0]?, inputs[1]?)),
        _ => None,
    }
}

/// When `value` is `x·c` or `x/c` for a literal `c`, in the shape of `x`: `x` and the factor.
pub fn scaled(graph: &Graph, value: ValueId) -> Option<(ValueId, f64)> {
    let (x, factor) = if let Some((a, b)) = binary(graph, value, BinaryFn::Mul) {
        match literal_f64(graph, b) {
            Some(c) => (a, c),
            None => (b, literal_f64(graph, a)?),
        }
    } else {
        let (a, b) = binary(graph, value, BinaryFn::Div)?;
        (a, 1.0 / literal_f64(graph, b)?)
    };
    (graph.ty(x).dtype.is_float() && graph.ty(x) == graph.ty(value)).then_some((x, factor))
}

/// `x` under another shape; `x` itself when it has that shape.
pub fn reshape(graph: &mut Graph, x: ValueId, shape: Vec<Dim>, scope: &Arc<str>) -> Result<ValueId, IrError> {
    if graph.ty(x).shape == shape { Ok(x) } else { graph.add1(Reshape { shape }, &[x], scope) }
}

/// `x` with its axes in another order; `x` itself when that is the order they have.
pub fn permute(graph: &mut Graph, x: ValueId, perm: Vec<usize>, scope: &Arc<str>) -> Result<ValueId, IrError> {
    if is_identity(&perm) { Ok(x) } else { graph.add1(Permute { perm }, &[x], scope) }
}
