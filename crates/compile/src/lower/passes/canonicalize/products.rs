//! Rules on matrix products and attention.

use regraft_ir::{
    Graph, IrError, Node, NodeId, Op, ValueId,
    ops::{Activation, Attention, BinaryFn, Linear, Matmul, SpatialLayout},
};
use regraft_tensor::Dim;

use super::{Context, movement::repeated_matrix};
use crate::lower::{
    axes::{split_groups, swap_last},
    pattern::{permute, producer, reshape, scaled},
};

/// A product with a known matrix, also one that is repeated along leading axes, is a linear.
pub(super) fn matmul_to_linear(graph: &mut Graph, context: &Context, node: &Node) -> Result<Option<ValueId>, IrError> {
    let Op::Matmul(op) = &node.op else { return Ok(None) };
    let x = node.input(0);
    let Some(w) = repeated_matrix(graph, node.input(1)) else { return Ok(None) };
    let (lead, out) = (&graph.ty(x).shape, &graph.ty(node.output()).shape);
    let same_lead = lead.len() == out.len() && lead[..lead.len() - 1] == out[..out.len() - 1];
    if !context.is_known(w) || context.is_known(x) || !same_lead || !graph.ty(x).dtype.is_float() {
        return Ok(None);
    }
    let shape = &graph.ty(w).shape;
    let matrix = shape[shape.len() - 2..].to_vec();
    let w = reshape(graph, w, matrix, &node.scope)?;
    let w = if op.transpose_b { w } else { permute(graph, w, vec![1, 0], &node.scope)? };
    graph.add1(Linear { act: Activation::None, act_first: false }, &[x, w], &node.scope).map(Some)
}

/// A known value per feature, added to a linear or a convolution that has no bias yet, is its bias.
pub(super) fn fold_bias(graph: &mut Graph, context: &Context, node: &Node) -> Result<Option<ValueId>, IrError> {
    let Op::Binary(op) = &node.op else { return Ok(None) };
    if op.f != BinaryFn::Add {
        return Ok(None);
    }
    for (y, bias) in [(node.input(0), node.input(1)), (node.input(1), node.input(0))] {
        let Some((_, made)) = producer(graph, y) else { continue };
        let Some((axis, plain)) = bias_axis(made, graph.ty(y).rank()) else { continue };
        let bare = plain && made.optional_input(2).is_none() && made.optional_input(3).is_none();
        let fits = bare
            && context.used_once(y)
            && context.is_known(bias)
            && graph.ty(bias).dtype == graph.ty(y).dtype
            && graph.ty(node.output()).shape == graph.ty(y).shape
            && lies_along(&graph.ty(bias).shape, &graph.ty(y).shape, axis);
        if fits {
            let (op, x, w, scope) = (made.op.clone(), made.input(0), made.input(1), made.scope.clone());
            let size = graph.ty(y).shape[axis].clone();
            let bias = reshape(graph, bias, vec![size], &node.scope)?;
            return graph.add1(op, &[x, w, bias], &scope).map(Some);
        }
    }
    Ok(None)
}

/// The axis that a bias of `node` lies along, and whether there is no activation after it.
fn bias_axis(node: &Node, rank: usize) -> Option<(usize, bool)> {
    match &node.op {
        Op::Linear(op) => Some((rank - 1, op.act == Activation::None)),
        Op::Conv(op) => Some((op.layout.channel_axis(rank), op.act == Activation::None)),
        Op::ConvTranspose(_) => Some((SpatialLayout::Nchw.channel_axis(rank), true)),
        _ => None,
    }
}

/// Whether `bias` broadcasts to `shape` as one value per index of `axis`.
fn lies_along(bias: &[Dim], shape: &[Dim], axis: usize) -> bool {
    let Some(missing) = shape.len().checked_sub(bias.len()) else { return false };
    axis >= missing
        && bias.iter().enumerate().all(|(i, d)| if i + missing == axis { *d == shape[axis] } else { d.is(1) })
}

/// A reshape that splits leading axes of a linear's result goes in front of it, where it cancels one that merged them.
pub(super) fn raise_through_linear(
    graph: &mut Graph,
    context: &Context,
    node: &Node,
) -> Result<Option<ValueId>, IrError> {
    let Op::Reshape(to) = &node.op else { return Ok(None) };
    let y = node.input(0);
    let Some((_, linear)) = producer(graph, y) else { return Ok(None) };
    let from = &graph.ty(y).shape;
    let splits = split_groups(from, &to.shape).is_some() && from.last() == to.shape.last();
    let fits = matches!(linear.op, Op::Linear(_)) && splits && context.used_once(y);
    if !fits || linear.optional_input(3).is_some() {
        return Ok(None);
    }
    let (op, mut inputs, scope) = (linear.op.clone(), linear.inputs.clone(), linear.scope.clone());
    let x = linear.input(0);
    let mut shape = to.shape.clone();
    shape.pop();
    shape.extend(graph.ty(x).shape.last().cloned());
    inputs[0] = Some(reshape(graph, x, shape, &node.scope)?);
    Ok(Some(graph.add(op, inputs, &scope)?[0]))
}

/// A reshape that splits the batch axes of a product's result goes in front of it.
pub(super) fn raise_through_matmul(
    graph: &mut Graph,
    context: &Context,
    node: &Node,
) -> Result<Option<ValueId>, IrError> {
    let Op::Reshape(to) = &node.op else { return Ok(None) };
    let y = node.input(0);
    let Some((_, Node { op: Op::Matmul(op), inputs, scope, .. })) = producer(graph, y) else { return Ok(None) };
    let (Some(a), Some(b), op, scope) = (inputs[0], inputs[1], op.clone(), scope.clone()) else { return Ok(None) };
    let rank = graph.ty(y).rank();
    let (from, to) = (&graph.ty(y).shape, &to.shape);
    let batch = |v: ValueId| graph.ty(v).shape.get(..rank - 2).filter(|_| graph.ty(v).rank() == rank);
    let keeps = to.len() >= rank && rank > 2 && to[to.len() - 2..] == from[rank - 2..];
    if !keeps || batch(a) != Some(&from[..rank - 2]) || batch(a) != batch(b) || !context.used_once(y) {
        return Ok(None);
    }
    let lead = to[..to.len() - 2].to_vec();
    if split_groups(&from[..rank - 2], &lead).is_none() {
        return Ok(None);
    }
    let mut operand = |v: ValueId| {
        let mut shape = lead.clone();
        shape.extend_from_slice(&graph.ty(v).shape[rank - 2..]);
        reshape(graph, v, shape, &scope)
    };
    let (a, b) = (operand(a)?, operand(b)?);
    graph.add1(op, &[a, b], &scope).map(Some)
}

/// A permute of leading axes in front of a linear goes behind it when another permute follows, to become one with it.
pub(super) fn sink_permute(graph: &mut Graph, context: &Context, node: &Node) -> Result<Option<ValueId>, IrError> {
    let Op::Linear(_) = &node.op else { return Ok(None) };
    let Some((_, before)) = producer(graph, node.input(0)) else { return Ok(None) };
    let Op::Permute(order) = &before.op else { return Ok(None) };
    let (x, perm) = (before.input(0), order.perm.clone());
    let leading = perm.last() == Some(&(perm.len() - 1));
    if !leading || node.optional_input(3).is_some() || !meets_permute(graph, context, node.output(), 8) {
        return Ok(None);
    }
    let mut inputs = node.inputs.clone();
    inputs[0] = Some(x);
    let y = graph.add(node.op.clone(), inputs, &node.scope)?[0];
    permute(graph, y, perm, &node.scope).map(Some)
}

/// Whether every use of `value` is a permute, at most behind reshapes and slices.
fn meets_permute(graph: &Graph, context: &Context, value: ValueId, depth: usize) -> bool {
    let users = context.users(value);
    // Uses by outputs and states are not among the users.
    let all_are_nodes = context.uses.get(value.0 as usize) == Some(&(users.len() as u32));
    let meets = |&user: &NodeId| {
        let node = graph.node(user);
        match &node.op {
            Op::Permute(_) => true,
            Op::Reshape(_) | Op::Slice(_) => depth > 0 && meets_permute(graph, context, node.output(), depth - 1),
            _ => false,
        }
    };
    !users.is_empty() && all_are_nodes && users.iter().all(meets)
}

/// A product with a transposed right side says so; a literal factor on query or key is part of attention's scale.
pub(super) fn absorb_operand(graph: &mut Graph, _: &Context, node: &Node) -> Result<Option<ValueId>, IrError> {
    match &node.op {
        Op::Attention(op) => {
            for i in [0, 1] {
                if let Some((x, factor)) = scaled(graph, node.input(i)) {
                    let mut inputs = node.inputs.clone();
                    inputs[i] = Some(x);
                    let op = Attention { scale: op.scale * factor, ..op.clone() };
                    return Ok(Some(graph.add(op, inputs, &node.scope)?[0]));
                }
            }
            Ok(None)
        }
        Op::Matmul(Matmul { transpose_b: false }) => {
            let b = node.input(1);
            let Some((_, Node { op: Op::Permute(order), inputs, .. })) = producer(graph, b) else { return Ok(None) };
            let (Some(x), true) = (inputs[0], order.perm == swap_last(order.perm.len())) else { return Ok(None) };
            graph.add1(Matmul { transpose_b: true }, &[node.input(0), x], &node.scope).map(Some)
        }
        _ => Ok(None),
    }
}
