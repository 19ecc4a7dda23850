//! Rules on ops that move elements and compute nothing.

use std::ops::Range;

use regraft_ir::{
    Graph, IrError, Node, Op, ValueId,
    ops::{Expand, Slice},
};
use regraft_tensor::Dim;

use super::Context;
use crate::lower::{
    axes::{compose, inverse, is_identity, moves_only_units, split_groups},
    pattern::{permute, producer, reshape},
};

/// A move that leaves everything as it is.
pub(super) fn drop_no_op(graph: &mut Graph, _: &Context, node: &Node) -> Result<Option<ValueId>, IrError> {
    let Some(&Some(x)) = node.inputs.first() else { return Ok(None) };
    let (from, to) = (graph.ty(x), graph.ty(node.output()));
    let same = match &node.op {
        Op::Reshape(_) | Op::Expand(_) => from.shape == to.shape,
        Op::Permute(op) => is_identity(&op.perm),
        Op::Cast(op) => op.dtype == from.dtype,
        Op::Slice(op) => op.step == 1 && op.start.is(0) && op.end == from.shape[op.axis],
        Op::Concat(_) => node.inputs.len() == 1,
        Op::Pad(op) => op.before.iter().chain(&op.after).all(|&p| p == 0),
        Op::Flip(op) => op.axes.iter().all(|&a| from.shape[a].is(1)),
        _ => false,
    };
    Ok(same.then_some(x))
}

/// Two moves of one kind in a row.
pub(super) fn merge_chain(graph: &mut Graph, _: &Context, node: &Node) -> Result<Option<ValueId>, IrError> {
    let Some(&Some(x)) = node.inputs.first() else { return Ok(None) };
    let Some((_, first)) = producer(graph, x) else { return Ok(None) };
    let merged = match (&first.op, &node.op) {
        (Op::Reshape(_), Op::Reshape(_)) | (Op::Expand(_), Op::Expand(_)) => node.op.clone(),
        (Op::Permute(a), Op::Permute(b)) => {
            let (x, perm) = (first.input(0), compose(&b.perm, &a.perm));
            return permute(graph, x, perm, &node.scope).map(Some);
        }
        (Op::Slice(a), Op::Slice(b)) if a.axis == b.axis && a.step == 1 => {
            Slice { start: &a.start + &b.start, end: &a.start + &b.end, ..b.clone() }.into()
        }
        // An expand that only adds axes of size 1 in front is a reshape, which is what the rest looks for.
        (_, Op::Expand(op)) if adds_units(&graph.ty(x).shape, &op.shape) => {
            let shape = op.shape.clone();
            return reshape(graph, x, shape, &node.scope).map(Some);
        }
        _ => return Ok(None),
    };
    let x = first.input(0);
    graph.add1(merged, &[x], &node.scope).map(Some)
}

fn adds_units(from: &[Dim], to: &[Dim]) -> bool {
    to.len() > from.len() && to.ends_with(from) && to[..to.len() - from.len()].iter().all(|d| d.is(1))
}

/// A permute that moves nothing but axes of size 1 is a reshape.
pub(super) fn permute_of_units(graph: &mut Graph, _: &Context, node: &Node) -> Result<Option<ValueId>, IrError> {
    let Op::Permute(op) = &node.op else { return Ok(None) };
    let x = node.input(0);
    if is_identity(&op.perm) || !moves_only_units(&graph.ty(x).shape, &op.perm) {
        return Ok(None);
    }
    let shape = graph.ty(node.output()).shape.clone();
    reshape(graph, x, shape, &node.scope).map(Some)
}

/// A reshape that only splits axes (or adds and drops axes of size 1) goes in front of a permute.
pub(super) fn raise_split(graph: &mut Graph, _: &Context, node: &Node) -> Result<Option<ValueId>, IrError> {
    let Op::Reshape(op) = &node.op else { return Ok(None) };
    let Some((_, inner)) = producer(graph, node.input(0)) else { return Ok(None) };
    let Op::Permute(order) = &inner.op else { return Ok(None) };
    let Some(groups) = split_groups(&graph.ty(node.input(0)).shape, &op.shape) else { return Ok(None) };
    let (perm, x) = (&order.perm, inner.input(0));
    let mut shape = Vec::with_capacity(op.shape.len());
    let mut position = vec![0; op.shape.len()];
    for &at in &inverse(perm) {
        for i in groups[at].clone() {
            position[i] = shape.len();
            shape.push(op.shape[i].clone());
        }
    }
    let split = reshape(graph, x, shape, &node.scope)?;
    permute(graph, split, position, &node.scope).map(Some)
}

/// A reshape that merges axes behind a permute: the permute keeps only what brings merged axes together, the order of
/// the merged axes (but for the last) comes after.
pub(super) fn order_merged(graph: &mut Graph, _: &Context, node: &Node) -> Result<Option<ValueId>, IrError> {
    let Op::Reshape(op) = &node.op else { return Ok(None) };
    let Some((_, inner)) = producer(graph, node.input(0)) else { return Ok(None) };
    let Op::Permute(order) = &inner.op else { return Ok(None) };
    let Some(groups) = split_groups(&op.shape, &graph.ty(node.input(0)).shape) else { return Ok(None) };
    if groups.iter().any(Range::is_empty) {
        return Ok(None);
    }
    let (perm, x) = (&order.perm, inner.input(0));
    let Some((last, front)) = groups.split_last() else { return Ok(None) };
    let mut sorted: Vec<usize> = (0..front.len()).collect();
    sorted.sort_by_key(|&g| perm[front[g].start]);
    sorted.push(front.len());
    if is_identity(&sorted) {
        return Ok(None);
    }
    let group = |g: usize| if g < front.len() { front[g].clone() } else { last.clone() };
    let together: Vec<usize> = sorted.iter().flat_map(|&g| perm[group(g)].to_vec()).collect();
    let merged = sorted.iter().map(|&g| op.shape[g].clone()).collect();
    let x = permute(graph, x, together, &node.scope)?;
    let x = reshape(graph, x, merged, &node.scope)?;
    permute(graph, x, inverse(&sorted), &node.scope).map(Some)
}

/// A slice goes in front of permutes and of reshapes that split the axis it cuts.
pub(super) fn raise_slice(graph: &mut Graph, _: &Context, node: &Node) -> Result<Option<ValueId>, IrError> {
    let Op::Slice(op) = &node.op else { return Ok(None) };
    let y = node.input(0);
    let Some((_, inner)) = producer(graph, y) else { return Ok(None) };
    match &inner.op {
        Op::Permute(order) => {
            let (x, perm) = (inner.input(0), order.perm.clone());
            let cut = graph.add1(Slice { axis: perm[op.axis], ..op.clone() }, &[x], &node.scope)?;
            permute(graph, cut, perm, &node.scope).map(Some)
        }
        Op::Reshape(_) => {
            let (x, shape) = (inner.input(0), graph.ty(y).shape.clone());
            let Some(groups) = split_groups(&graph.ty(x).shape, &shape) else { return Ok(None) };
            let Some(axis) = groups.iter().position(|g| g.contains(&op.axis)) else { return Ok(None) };
            let group = groups[axis].clone();
            let leads = shape[group.start..op.axis].iter().all(|d| d.is(1));
            let block = shape[op.axis + 1..group.end].iter().fold(Dim::new(1), |n, d| &n * d);
            if !leads || (op.step != 1 && !block.is(1)) {
                return Ok(None);
            }
            let (start, end) = (&op.start * &block, &op.end * &block);
            let cut = graph.add1(Slice { axis, start, end, step: op.step }, &[x], &node.scope)?;
            let shape = graph.ty(node.output()).shape.clone();
            reshape(graph, cut, shape, &node.scope).map(Some)
        }
        _ => Ok(None),
    }
}

/// The value of which `value` is a repetition along leading axes, when it is one: of rank 2 or with ones in front.
pub(super) fn repeated_matrix(graph: &Graph, value: ValueId) -> Option<ValueId> {
    let shape = &graph.ty(value).shape;
    let (lead, matrix) = shape.split_at_checked(shape.len().checked_sub(2)?)?;
    if lead.iter().all(|d| d.is(1)) {
        return Some(value);
    }
    let (_, node) = producer(graph, value)?;
    let Op::Expand(Expand { .. }) = &node.op else { return None };
    let x = node.input(0);
    graph.ty(x).shape.ends_with(matrix).then(|| repeated_matrix(graph, x)).flatten()
}
