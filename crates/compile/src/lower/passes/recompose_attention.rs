//! Attention that a program spells as `softmax(q·kᵀ·scale + mask)·v` becomes one op, with or without the guard that
//! PyTorch's decomposition puts around the softmax for rows that the mask leaves nothing of.
//!
//! A mask of zeros and negative infinities that is chosen by a condition gives way to the condition. Without the guard, a
//! row that the mask leaves nothing of is NaN in PyTorch and zero here.

use std::sync::Arc;

use regraft_backend::Lowering;
use regraft_ir::{
    Graph, IrError, Node, NodeId, Op, ValueId,
    ops::{Attention, CompareFn, HeadsLayout, ReduceFn, Unary, UnaryFn},
};
use regraft_tensor::Dim;

use crate::lower::{
    Pass,
    axes::swap_last,
    known::known_values,
    matcher::{Pattern, add, any, literal, matmul, node, one_of, select, softmax, unary, with_scale},
    pattern::{permute, producer, reshape},
};

/// See the module's documentation.
pub const PASS: Pass = Pass { name: "recompose_attention", run };

fn run(graph: &mut Graph, _: &dyn Lowering) -> Result<(), IrError> {
    let (known, pattern) = (known_values(graph), pattern());
    let uses = graph.use_counts();
    for id in graph.node_ids() {
        if let Some(found) = recognize(graph, &pattern, &known, id)
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

/// `softmax(scores)·v` over `q`, `k`, `v` and a mask, with everything that programs put around them.
fn pattern() -> Pattern {
    let scores = || masked().named("scores");
    // PyTorch's guard: rows that the mask leaves nothing of are zero.
    let guarded = select(hidden_row(any("scores")), literal(0.0), softmax(scores()));
    matmul(false, one_of([softmax(scores()), guarded]), any("v"))
}

/// The scores: a product with a literal factor on it, and a mask on top. A mask of zeros and negative infinities that is chosen
/// by a condition gives way to the condition.
fn masked() -> Pattern {
    let hidden = || literal(f64::NEG_INFINITY);
    let of_condition = |yes, no| select(any("condition"), yes, no).filter(condition_has_its_shape);
    let mask = one_of([
        of_condition(literal(0.0), hidden()).flag("keep"),
        of_condition(hidden(), literal(0.0)).flag("hide"),
        any("mask"),
    ]);
    one_of([
        scaled_product(),
        add(scaled_product(), mask),
        select(any("condition"), hidden(), scaled_product()).flag("hide"),
        select(any("condition"), scaled_product(), hidden()).flag("keep"),
    ])
}

/// `c·(a·q)·(b·k)`, the key transposed or not.
fn scaled_product() -> Pattern {
    let operand = |name| with_scale("scale", any(name));
    let product = |transposed| matmul(transposed, operand("q"), operand("k")).named("product");
    with_scale("scale", one_of([product(true).flag("transposed"), product(false)]))
}

/// Says of each row whether all of its scores are negative infinities: `not(any(not(s == -inf)))` or `all(s == -inf)` over the
/// last axis.
fn hidden_row(scores: Pattern) -> Pattern {
    fn reduces(graph: &Graph, node: &Node, wanted: ReduceFn) -> bool {
        match (&node.op, node.inputs[0]) {
            (Op::Reduce(op), Some(x)) => op.f == wanted && op.keep && op.axes == [graph.ty(x).rank() - 1],
            _ => false,
        }
    }
    fn compares(node: &Node, wanted: CompareFn) -> bool {
        matches!(&node.op, Op::Compare(op) if op.f == wanted)
    }
    let not = |x| unary(UnaryFn::Not, x);
    let hidden = || literal(f64::NEG_INFINITY);
    let equal = || node(|_, node| compares(node, CompareFn::Eq), [scores.clone(), hidden()]);
    let differs = node(|_, node| compares(node, CompareFn::Ne), [scores.clone(), hidden()]);
    let any_of = |x| node(|graph, node| reduces(graph, node, ReduceFn::Any), [x]);
    let all_of = |x| node(|graph, node| reduces(graph, node, ReduceFn::All), [x]);
    one_of([not(any_of(not(equal()))), not(any_of(differs)), all_of(equal())])
}

/// Of a mask that a condition chooses.
fn condition_has_its_shape(graph: &Graph, mask: ValueId) -> bool {
    let condition = producer(graph, mask).and_then(|(_, node)| node.inputs[0]);
    condition.is_some_and(|condition| graph.ty(condition).shape == graph.ty(mask).shape)
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
struct Parts {
    q: ValueId,
    /// `[.., t, d]` when `transposed`, otherwise `[.., d, t]`.
    k: ValueId,
    transposed: bool,
    v: ValueId,
    scale: f64,
    mask: Option<Mask>,
}

fn recognize(graph: &Graph, pattern: &Pattern, known: &[bool], id: NodeId) -> Option<Parts> {
    let node = graph.node(id);
    let Op::Matmul(_) = &node.op else { return None };
    let found = pattern.find(graph, node.output())?;
    let (scores, product) = (found.value("scores"), found.value("product"));
    let (q, k, v) = (found.value("q"), found.value("k"), found.value("v"));
    let shape = &graph.ty(scores).shape;
    let rank = shape.len();
    let mask = match (found.get("condition"), found.get("mask")) {
        (Some(condition), _) if found.has("keep") => Some(Mask::Keep(condition)),
        (Some(condition), _) => Some(Mask::Hide(condition)),
        (None, mask) => mask.map(Mask::Add),
    };
    let same_batch =
        [q, k, v].iter().all(|&x| graph.ty(x).rank() == rank && graph.ty(x).shape[..rank - 2] == shape[..rank - 2]);
    // A float mask is added in its own dtype; scores that the mask makes larger are not scores.
    let mask_fits = match mask {
        Some(Mask::Add(m)) => graph.ty(m).dtype == graph.ty(scores).dtype && broadcasts(&graph.ty(m).shape, shape),
        Some(Mask::Keep(m) | Mask::Hide(m)) => broadcasts(&graph.ty(m).shape, shape),
        None => true,
    };
    let is_fixed = known.get(node.output().0 as usize) == Some(&true);
    let fits = (3..=4).contains(&rank) && same_batch && mask_fits && graph.ty(product).shape == *shape && !is_fixed;
    let (transposed, scale) = (found.has("transposed"), found.number("scale"));
    fits.then_some(Parts { q, k, transposed, v, scale, mask })
}

/// Whether a mask of this shape can stand on scores of shape `to`.
fn broadcasts(from: &[Dim], to: &[Dim]) -> bool {
    (2..=to.len()).contains(&from.len()) && from.iter().rev().zip(to.iter().rev()).all(|(f, t)| f.is(1) || f == t)
}

fn build(graph: &mut Graph, node: &Node, found: &Parts) -> Result<ValueId, IrError> {
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
