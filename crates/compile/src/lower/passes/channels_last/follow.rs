//! Ops that have no layout of their own and take that of their operands.

use regraft_ir::{
    Graph, IrError, Node, Op, ValueId,
    ops::{Concat, Cumsum, Expand, Flip, Pad, Reduce, Reshape, Slice, Softmax},
};
use regraft_tensor::Dim;

use super::{Layouts, to_first, to_last};
use crate::lower::{
    axes::{inverse, is_identity, moves_only_units, split_groups},
    pattern::{permute, producer, reshape},
};

/// The result with channels last, if the node follows. What ends the layout (a reduction of spatial axes, a linear) is
/// replaced here.
pub(super) fn follow(graph: &mut Graph, layouts: &mut Layouts, node: &Node) -> Result<Option<ValueId>, IrError> {
    match &node.op {
        Op::Unary(_) | Op::Binary(_) | Op::Compare(_) | Op::Select(_) | Op::Cast(_) | Op::Fused(_) => {
            elementwise(graph, layouts, node)
        }
        Op::Concat(op) => concat(graph, layouts, node, op),
        Op::Linear(_) => linear(graph, layouts, node).map(|()| None),
        op => {
            let Some(last) = node.inputs.first().copied().flatten().and_then(|x| layouts.native(x)) else {
                return Ok(None);
            };
            if let Op::Reduce(op) = op
                && !op.keep
            {
                return reduce(graph, node, op, last).map(|()| None);
            }
            match moved(graph, node, op) {
                Some(op) => graph.add1(op, &[last], &node.scope).map(Some),
                None => Ok(None),
            }
        }
    }
}

/// An op of one operand on the same axes in another order.
fn moved(graph: &Graph, node: &Node, op: &Op) -> Option<Op> {
    let from = &graph.ty(node.input(0)).shape;
    let at = to_first(from.len());
    let spread = |values: &[i64]| {
        let mut out = vec![0; values.len()];
        values.iter().enumerate().for_each(|(i, &v)| out[at[i]] = v);
        out
    };
    let all = |axes: &[usize]| {
        let mut axes: Vec<usize> = axes.iter().map(|&a| at[a]).collect();
        axes.sort_unstable();
        axes
    };
    Some(match op {
        Op::Pad(op) => Pad { before: spread(&op.before), after: spread(&op.after), ..op.clone() }.into(),
        Op::Slice(op) => Slice { axis: at[op.axis], ..op.clone() }.into(),
        Op::Softmax(op) => Softmax { axis: at[op.axis], ..op.clone() }.into(),
        Op::Cumsum(op) => Cumsum { axis: at[op.axis] }.into(),
        Op::Flip(op) => Flip { axes: all(&op.axes) }.into(),
        Op::Reduce(op) if op.keep => Reduce { axes: all(&op.axes), ..op.clone() }.into(),
        Op::Expand(op) if op.shape.len() == from.len() => Expand { shape: channels_last(&op.shape) }.into(),
        // Spatial axes split or merged among themselves.
        Op::Reshape(op) if op.shape.len() >= 3 && op.shape[..2] == from[..2] => {
            Reshape { shape: channels_last(&op.shape) }.into()
        }
        _ => return None,
    })
}

fn channels_last(shape: &[Dim]) -> Vec<Dim> {
    to_last(shape.len()).into_iter().map(|i| shape[i].clone()).collect()
}

/// Operands that are there with channels last must not be fewer than those that have to be permuted for it.
fn elementwise(graph: &mut Graph, layouts: &mut Layouts, node: &Node) -> Result<Option<ValueId>, IrError> {
    let rank = graph.ty(node.output()).rank();
    if rank < 3 {
        return Ok(None);
    }
    let (mut natives, mut permutes) = (0, 0);
    for &x in node.inputs.iter().flatten() {
        if layouts.native(x).is_some() && graph.ty(x).rank() == rank {
            natives += 1;
        } else if !layouts.twins.contains_key(&x) && !is_cheap(graph, layouts, x, rank) {
            permutes += 1;
        }
    }
    if natives == 0 || permutes > natives {
        return Ok(None);
    }
    let mut inputs = node.inputs.clone();
    for x in inputs.iter_mut().flatten() {
        let shape = &graph.ty(*x).shape;
        if shape.iter().all(|d| d.is(1)) && shape.len() < rank {
            continue;
        }
        if shape.len() == rank {
            *x = layouts.last(graph, *x, &node.scope)?;
        } else {
            let full = with_rank(shape, rank);
            let wide = reshape(graph, *x, full, &node.scope)?;
            *x = permute(graph, wide, to_last(rank), &node.scope)?;
        }
    }
    Ok(Some(graph.add(node.op.clone(), inputs, &node.scope)?[0]))
}

fn with_rank(shape: &[Dim], rank: usize) -> Vec<Dim> {
    let mut full = vec![Dim::new(1); rank - shape.len()];
    full.extend_from_slice(shape);
    full
}

/// Whether `x` comes with channels last for nothing: in a recipe, or because no element moves.
fn is_cheap(graph: &Graph, layouts: &Layouts, x: ValueId, rank: usize) -> bool {
    layouts.is_known(x) || moves_only_units(&with_rank(&graph.ty(x).shape, rank), &to_last(rank))
}

fn concat(graph: &mut Graph, layouts: &mut Layouts, node: &Node, op: &Concat) -> Result<Option<ValueId>, IrError> {
    let rank = graph.ty(node.output()).rank();
    let natives = node.inputs.iter().flatten().filter(|&&x| layouts.native(x).is_some()).count();
    if natives == 0 {
        return Ok(None);
    }
    let there = |x: ValueId| layouts.twins.contains_key(&x) || is_cheap(graph, layouts, x, rank);
    let permutes = node.inputs.iter().flatten().filter(|&&x| !there(x)).count();
    if permutes > natives {
        return Ok(None);
    }
    let mut inputs = node.inputs.clone();
    for x in inputs.iter_mut().flatten() {
        *x = layouts.last(graph, *x, &node.scope)?;
    }
    let op = Concat { axis: to_first(rank)[op.axis] };
    Ok(Some(graph.add(op, inputs, &node.scope)?[0]))
}

/// A reduction that drops axes: what is left is small and permuted if it needs to be.
fn reduce(graph: &mut Graph, node: &Node, op: &Reduce, last: ValueId) -> Result<(), IrError> {
    let rank = graph.ty(last).rank();
    let at = to_first(rank);
    let mut axes: Vec<usize> = op.axes.iter().map(|&a| at[a]).collect();
    axes.sort_unstable();
    let left: Vec<usize> = (0..rank).filter(|i| !op.axes.contains(i)).map(|i| at[i]).collect();
    let position = |axis: usize| left.iter().filter(|&&other| other < axis).count();
    let perm: Vec<usize> = left.iter().map(|&axis| position(axis)).collect();
    let reduced = graph.add1(Reduce { axes, ..op.clone() }, &[last], &node.scope)?;
    let new = permute(graph, reduced, perm, &node.scope)?;
    graph.replace_uses(node.output(), new);
    Ok(())
}

/// A linear of flattened images: its weight takes the features in the order of the other layout.
fn linear(graph: &mut Graph, layouts: &Layouts, node: &Node) -> Result<(), IrError> {
    let (x, w) = (node.input(0), node.input(1));
    let Some((_, Node { op: Op::Reshape(flat), inputs, .. })) = producer(graph, x) else { return Ok(()) };
    let Some((image, last)) = inputs[0].and_then(|image| Some((image, layouts.native(image)?))) else { return Ok(()) };
    let from = graph.ty(image).shape.clone();
    let flattens = flat.shape.len() == 2 && split_groups(&flat.shape, &from).is_some_and(|g| g[0] == (0..1));
    let order = to_last(from.len());
    let fixed = from[1..].iter().all(|d| d.as_const().is_some());
    if !flattens || !fixed || moves_only_units(&from, &order) || is_identity(&order) || !layouts.is_known(w) {
        return Ok(());
    }
    debug_assert_eq!(inverse(&order), to_first(from.len()));
    let (rows, features, flat) = (graph.ty(w).shape[0].clone(), graph.ty(w).shape[1].clone(), flat.shape.clone());
    let mut by_image = from;
    by_image[0] = rows.clone();
    let split = reshape(graph, w, by_image, &node.scope)?;
    let ordered = permute(graph, split, order, &node.scope)?;
    let mut inputs = node.inputs.clone();
    inputs[1] = Some(reshape(graph, ordered, vec![rows, features], &node.scope)?);
    inputs[0] = Some(reshape(graph, last, flat, &node.scope)?);
    let new = graph.add(node.op.clone(), inputs, &node.scope)?[0];
    graph.replace_uses(node.output(), new);
    Ok(())
}
