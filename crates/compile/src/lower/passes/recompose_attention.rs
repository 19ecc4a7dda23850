//! Attention that a program spells as `softmax(q·kᵀ·scale + mask)·v` becomes one op, with or without the guard that
//! PyTorch's decomposition puts around the softmax for rows that the mask leaves nothing of.
//!
//! A mask of zeros and negative infinities that is chosen by a condition gives way to the condition. Without the guard, a
//! row that the mask leaves nothing of is NaN in PyTorch and zero here.

use std::sync::Arc;

use regraft_backend::Lowering;
use regraft_ir::{
    Graph, IrError, Node, NodeId, Op, ValueId,
    ops::{Attention, BinaryFn, CompareFn, HeadsLayout, Matmul, ReduceFn, Unary, UnaryFn},
};
use regraft_tensor::Dim;

use crate::lower::{
    Pass,
    axes::swap_last,
    known::known_values,
    pattern::{binary, literal_f64, permute, producer, reshape, scaled},
};

/// See the module's documentation.
pub const PASS: Pass = Pass { name: "recompose_attention", run };

fn run(graph: &mut Graph, _: &dyn Lowering) -> Result<(), IrError> {
    let known = known_values(graph);
    let uses = graph.use_counts();
    for id in graph.node_ids() {
        if let Some(found) = recognise(graph, &known, id)
            // Weights that are wanted for themselves are computed in any case.
            && uses[graph.node(id).input(0).0 as usize] == 1
        {
            let node = graph.node(id).clone();
            let new = build(graph, &node, &found)?;
            graph.replace_uses(node.output(), new);
        }
    }
    for id in graph.node_ids() {
        share_heads(graph, id)?;
    }
    Ok(())
}

/// What stands on top of the scores.
#[derive(Clone, Copy)]
enum Mask {
    /// Added.
    Add(ValueId),
    /// Keeps where true.
    Keep(ValueId),
    /// Hides where true.
    Hide(ValueId),
}

/// The parts of an attention.
struct Found {
    q: ValueId,
    /// `[.., t, d]` when `transposed`, otherwise `[.., d, t]`.
    k: ValueId,
    transposed: bool,
    v: ValueId,
    scale: f64,
    mask: Option<Mask>,
}

fn recognise(graph: &Graph, known: &[bool], id: NodeId) -> Option<Found> {
    let node = graph.node(id);
    let Op::Matmul(Matmul { transpose_b: false }) = &node.op else { return None };
    let (weights, v) = (unguarded(graph, node.input(0)), node.input(1));
    let (_, Node { op: Op::Softmax(softmax), inputs, .. }) = producer(graph, weights)? else { return None };
    let scores = inputs[0]?;
    let shape = &graph.ty(scores).shape;
    let rank = shape.len();
    if softmax.log || softmax.axis + 1 != rank || !(3..=4).contains(&rank) {
        return None;
    }
    let (product, scale, mask) = masked(graph, scores)?;
    let (_, Node { op: Op::Matmul(op), inputs, .. }) = producer(graph, product)? else { return None };
    let (q, q_scale) = unscaled(graph, inputs[0]?);
    let (k, k_scale) = unscaled(graph, inputs[1]?);
    let found = Found { q, k, transposed: op.transpose_b, v, scale: scale * q_scale * k_scale, mask };
    let same_batch =
        [q, k, v].iter().all(|&x| graph.ty(x).rank() == rank && graph.ty(x).shape[..rank - 2] == shape[..rank - 2]);
    // A float mask is added in its own dtype; scores that the mask makes larger are no scores.
    let mask_fits = match mask {
        Some(Mask::Add(m)) => graph.ty(m).dtype == graph.ty(scores).dtype && broadcasts(&graph.ty(m).shape, shape),
        Some(Mask::Keep(m) | Mask::Hide(m)) => broadcasts(&graph.ty(m).shape, shape),
        None => true,
    };
    let is_fixed = known.get(node.output().0 as usize) == Some(&true);
    (same_batch && mask_fits && graph.ty(product).shape == *shape && !is_fixed).then_some(found)
}

/// Whether a mask of this shape can stand on scores of shape `to`.
fn broadcasts(from: &[Dim], to: &[Dim]) -> bool {
    (2..=to.len()).contains(&from.len()) && from.iter().rev().zip(to.iter().rev()).all(|(f, t)| f.is(1) || f == t)
}

/// The product behind the scores, the literal factor on it and the mask on top.
fn masked(graph: &Graph, scores: ValueId) -> Option<(ValueId, f64, Option<Mask>)> {
    if let Some((product, scale)) = plain(graph, scores) {
        return Some((product, scale, None));
    }
    if let Some((a, b)) = binary(graph, scores, BinaryFn::Add) {
        let (product, scale, mask) = match plain(graph, a) {
            Some((product, scale)) => (product, scale, b),
            None => plain(graph, b).map(|(product, scale)| (product, scale, a))?,
        };
        return Some((product, scale, Some(condition(graph, mask).unwrap_or(Mask::Add(mask)))));
    }
    let (cond, yes, no) = select(graph, scores)?;
    if is_hidden(graph, yes) {
        return plain(graph, no).map(|(product, scale)| (product, scale, Some(Mask::Hide(cond))));
    }
    let (product, scale) = plain(graph, yes).filter(|_| is_hidden(graph, no))?;
    Some((product, scale, Some(Mask::Keep(cond))))
}

/// `c·(a·b)`: the product and the factor.
fn plain(graph: &Graph, scores: ValueId) -> Option<(ValueId, f64)> {
    let (product, scale) = unscaled(graph, scores);
    matches!(producer(graph, product)?.1.op, Op::Matmul(_)).then_some((product, scale))
}

/// Strips literal factors.
fn unscaled(graph: &Graph, mut x: ValueId) -> (ValueId, f64) {
    let mut scale = 1.0;
    while let Some((inner, factor)) = scaled(graph, x) {
        (x, scale) = (inner, scale * factor);
    }
    (x, scale)
}

fn select(graph: &Graph, value: ValueId) -> Option<(ValueId, ValueId, ValueId)> {
    match producer(graph, value)?.1 {
        Node { op: Op::Select(_), inputs, .. } => Some((inputs[0]?, inputs[1]?, inputs[2]?)),
        _ => None,
    }
}

fn is_hidden(graph: &Graph, value: ValueId) -> bool {
    literal_f64(graph, value) == Some(f64::NEG_INFINITY)
}

/// The condition behind a mask of zeros and negative infinities.
fn condition(graph: &Graph, mask: ValueId) -> Option<Mask> {
    let (cond, yes, no) = select(graph, mask)?;
    let is_zero = |v: ValueId| literal_f64(graph, v) == Some(0.0);
    let same_shape = graph.ty(cond).shape == graph.ty(mask).shape;
    if same_shape && is_zero(yes) && is_hidden(graph, no) {
        return Some(Mask::Keep(cond));
    }
    (same_shape && is_hidden(graph, yes) && is_zero(no)).then_some(Mask::Hide(cond))
}

/// The softmax inside of `select(all scores of the row are -inf, 0, softmax(scores))`; other values as they are.
fn unguarded(graph: &Graph, weights: ValueId) -> ValueId {
    let inside = || {
        let (cond, zero, weights) = select(graph, weights)?;
        let (_, Node { op: Op::Softmax(_), inputs, .. }) = producer(graph, weights)? else { return None };
        let fits = literal_f64(graph, zero) == Some(0.0) && hidden_row(graph, cond)? == inputs[0]?;
        fits.then_some(weights)
    };
    inside().unwrap_or(weights)
}

/// The scores when `cond` says of each row whether all of them are negative infinities: `not(any(not(s == -inf)))` or
/// `all(s == -inf)` over the last axis.
fn hidden_row(graph: &Graph, cond: ValueId) -> Option<ValueId> {
    let (inner, negated) = match not(graph, cond) {
        Some(inner) => (inner, true),
        None => (cond, false),
    };
    let (_, Node { op: Op::Reduce(op), inputs, .. }) = producer(graph, inner)? else { return None };
    let over = inputs[0]?;
    let f = if negated { ReduceFn::Any } else { ReduceFn::All };
    if op.f != f || !op.keep || op.axes != [graph.ty(over).rank() - 1] {
        return None;
    }
    let (equal, wanted) = match (negated, not(graph, over)) {
        (true, Some(equal)) => (equal, CompareFn::Eq),
        (true, None) => (over, CompareFn::Ne),
        (false, _) => (over, CompareFn::Eq),
    };
    match producer(graph, equal)?.1 {
        Node { op: Op::Compare(op), inputs, .. } if op.f == wanted && is_hidden(graph, inputs[1]?) => inputs[0],
        _ => None,
    }
}

fn not(graph: &Graph, value: ValueId) -> Option<ValueId> {
    match producer(graph, value)?.1 {
        Node { op: Op::Unary(Unary { f: UnaryFn::Not }), inputs, .. } => inputs[0],
        _ => None,
    }
}

fn build(graph: &mut Graph, node: &Node, found: &Found) -> Result<ValueId, IrError> {
    let scope = &node.scope;
    let rank = graph.ty(found.q).rank();
    let k = match found.transposed {
        true => found.k,
        false => permute(graph, found.k, swap_last(rank), scope)?,
    };
    let mask = match found.mask {
        None => None,
        Some(Mask::Add(m) | Mask::Keep(m)) => Some(m),
        Some(Mask::Hide(m)) => Some(graph.add1(Unary { f: UnaryFn::Not }, &[m], scope)?),
    };
    // A rank of 3 is a batch of single heads.
    let mask = match mask {
        Some(m) if rank == 3 => Some(with_heads(graph, m, scope)?),
        mask => mask,
    };
    let mut operands = vec![];
    for x in [found.q, k, found.v] {
        operands.push(Some(if rank == 3 { with_heads(graph, x, scope)? } else { x }));
    }
    operands.extend(mask.map(Some));
    let op = Attention { scale: found.scale, causal: false, out: HeadsLayout::Bhsd };
    let out = graph.add(op, operands, scope)?[0];
    let shape = graph.ty(node.output()).shape.clone();
    if rank == 3 { reshape(graph, out, shape, scope) } else { Ok(out) }
}

/// `[b, s, d]` as `[b, 1, s, d]`; a mask of rank 2 broadcasts as it is.
fn with_heads(graph: &mut Graph, x: ValueId, scope: &Arc<str>) -> Result<ValueId, IrError> {
    let mut shape = graph.ty(x).shape.clone();
    if shape.len() == 3 {
        shape.insert(1, Dim::new(1));
    }
    reshape(graph, x, shape, scope)
}

/// Key and value heads that are repeated for several query heads are read where they are.
fn share_heads(graph: &mut Graph, id: NodeId) -> Result<(), IrError> {
    let node = graph.node(id).clone();
    if !matches!(node.op, Op::Attention(_)) {
        return Ok(());
    }
    let (Some(k), Some(v)) = (repeated_heads(graph, node.input(1)), repeated_heads(graph, node.input(2))) else {
        return Ok(());
    };
    if graph.ty(k).shape[1] != graph.ty(v).shape[1] || graph.ty(k).shape[1].as_const().is_none() {
        return Ok(());
    }
    for (i, x) in [(1, k), (2, v)] {
        let mut shape = graph.ty(x).shape.clone();
        shape.remove(2);
        let x = reshape(graph, x, shape, &node.scope)?;
        graph.node_mut(id).inputs[i] = Some(x);
    }
    Ok(())
}

/// The value of shape `[b, hk, 1, t, d]` behind `reshape(expand(x, [b, hk, r, t, d]), [b, hk·r, t, d])`.
fn repeated_heads(graph: &Graph, x: ValueId) -> Option<ValueId> {
    let (_, Node { op: Op::Reshape(merged), inputs, .. }) = producer(graph, x)? else { return None };
    let (_, Node { op: Op::Expand(wide), inputs, .. }) = producer(graph, inputs[0]?)? else { return None };
    let x = inputs[0]?;
    let [b, heads, one, t, d] = graph.ty(x).shape.as_slice() else { return None };
    let [wide_b, wide_heads, repeats, wide_t, wide_d] = wide.shape.as_slice() else { return None };
    let fits = one.is(1)
        && [wide_b, wide_heads, wide_t, wide_d] == [b, heads, t, d]
        && merged.shape == [b.clone(), heads * repeats, t.clone(), d.clone()];
    fits.then_some(x)
}
