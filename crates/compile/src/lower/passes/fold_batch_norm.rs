//! Batch normalization by given statistics becomes a scale and a shift per channel; behind a convolution or a linear
//! these move into its weight and bias.
//!
//! Nothing is evaluated: the scaled weight `W·s` with `s = gamma/sqrt(var + eps)` and the bias `beta + (b - mean)·s` are
//! nodes over sources, so they end up in recipes and every one of the five tensors stays replaceable. Of a half precision
//! program they are computed in f32; what is folded is rounded once, at the end.

use std::sync::Arc;

use regraft_backend::Lowering;
use regraft_ir::{
    Graph, IrError, Node, Op, Scalar, ValueId,
    ops::{Activation, Binary, BinaryFn, Cast, Full, Reshape, SpatialLayout, Unary, UnaryFn},
};
use regraft_tensor::{DType, Dim};

use crate::lower::{Pass, known::known_values, pattern::producer};

/// See the module's documentation.
pub const PASS: Pass = Pass { name: "fold_batch_norm", run };

fn run(graph: &mut Graph, _: &dyn Lowering) -> Result<(), IrError> {
    let known = known_values(graph);
    let uses = graph.use_counts();
    for id in graph.node_ids() {
        let node = graph.node(id).clone();
        let Op::BatchNorm(op) = &node.op else { continue };
        let (scale, shift) = scale_and_shift(graph, &node, op.eps)?;
        let folded = match foldable(graph, node.input(0), &known, &uses) {
            Some(producer) => fold(graph, &producer, scale, shift)?,
            None => apply(graph, &node, op.layout, scale, shift)?,
        };
        graph.replace_uses(node.output(), folded);
    }
    Ok(())
}

fn binary(graph: &mut Graph, f: BinaryFn, a: ValueId, b: ValueId, scope: &Arc<str>) -> Result<ValueId, IrError> {
    graph.add1(Binary { f }, &[a, b], scope)
}

/// A value in what weights are folded in: halves in f32.
fn wide(graph: &mut Graph, value: ValueId, scope: &Arc<str>) -> Result<ValueId, IrError> {
    match graph.ty(value).dtype {
        DType::F16 | DType::BF16 => graph.add1(Cast { dtype: DType::F32 }, &[value], scope),
        _ => Ok(value),
    }
}

/// A value in the dtype of the program.
fn rounded(graph: &mut Graph, value: ValueId, dtype: DType, scope: &Arc<str>) -> Result<ValueId, IrError> {
    if graph.ty(value).dtype == dtype { Ok(value) } else { graph.add1(Cast { dtype }, &[value], scope) }
}

/// `gamma/sqrt(var + eps)` and `beta - mean·scale`, each of shape `[c]`, in what weights are folded in.
fn scale_and_shift(graph: &mut Graph, node: &Node, eps: f64) -> Result<(ValueId, ValueId), IrError> {
    let scope = &node.scope;
    let (mean, var) = (wide(graph, node.input(1), scope)?, wide(graph, node.input(2), scope)?);
    let dtype: DType = graph.ty(var).dtype;
    let eps = graph.add1(Full { value: Scalar::Float(eps), dtype, shape: vec![] }, &[], scope)?;
    let sum = binary(graph, BinaryFn::Add, var, eps, scope)?;
    let mut scale = graph.add1(Unary { f: UnaryFn::Rsqrt }, &[sum], scope)?;
    if let Some(gamma) = node.optional_input(3) {
        let gamma = wide(graph, gamma, scope)?;
        scale = binary(graph, BinaryFn::Mul, gamma, scale, scope)?;
    }
    let moved = binary(graph, BinaryFn::Mul, mean, scale, scope)?;
    let shift = match node.optional_input(4) {
        Some(beta) => {
            let beta = wide(graph, beta, scope)?;
            binary(graph, BinaryFn::Sub, beta, moved, scope)?
        }
        None => graph.add1(Unary { f: UnaryFn::Neg }, &[moved], scope)?,
    };
    Ok((scale, shift))
}

/// The convolution or linear behind a batch norm, when nothing else uses its result and its weights are known.
fn foldable(graph: &Graph, x: ValueId, known: &[bool], uses: &[u32]) -> Option<Node> {
    let (_, node) = producer(graph, x)?;
    let plain = match &node.op {
        Op::Conv(op) => op.act == Activation::None,
        Op::Linear(op) => op.act == Activation::None && graph.ty(x).rank() == 2,
        _ => false,
    };
    let is_known = |i: usize| node.optional_input(i).is_none_or(|v| known.get(v.0 as usize) == Some(&true));
    let fits = plain && node.optional_input(3).is_none() && is_known(1) && is_known(2);
    (fits && uses[x.0 as usize] == 1).then(|| node.clone())
}

fn fold(graph: &mut Graph, node: &Node, scale: ValueId, shift: ValueId) -> Result<ValueId, IrError> {
    let scope = &node.scope;
    let weight = node.input(1);
    let mut shape = vec![Dim::new(1); graph.ty(weight).rank()];
    shape[0] = graph.ty(scale).shape[0].clone();
    let per_row = graph.add1(Reshape { shape }, &[scale], scope)?;
    let dtype = graph.ty(weight).dtype;
    let weight = wide(graph, weight, scope)?;
    let weight = binary(graph, BinaryFn::Mul, weight, per_row, scope)?;
    let weight = rounded(graph, weight, dtype, scope)?;
    let bias = match node.optional_input(2) {
        Some(bias) => {
            let bias = wide(graph, bias, scope)?;
            let scaled = binary(graph, BinaryFn::Mul, bias, scale, scope)?;
            binary(graph, BinaryFn::Add, scaled, shift, scope)?
        }
        None => shift,
    };
    let bias = rounded(graph, bias, dtype, scope)?;
    graph.add1(node.op.clone(), &[node.input(0), weight, bias], scope)
}

/// Without a convolution to fold into: `x·scale + shift`. Halves are rounded at the end only: where the two terms nearly cancel, a
/// rounded shift would leave few digits.
fn apply(
    graph: &mut Graph,
    node: &Node,
    layout: SpatialLayout,
    scale: ValueId,
    shift: ValueId,
) -> Result<ValueId, IrError> {
    let scope = &node.scope;
    let dtype = graph.ty(node.input(0)).dtype;
    let x = wide(graph, node.input(0), scope)?;
    let rank = graph.ty(node.input(0)).rank();
    let mut shape = vec![Dim::new(1); rank];
    shape[layout.channel_axis(rank)] = graph.ty(scale).shape[0].clone();
    let scale = graph.add1(Reshape { shape: shape.clone() }, &[scale], scope)?;
    let shift = graph.add1(Reshape { shape }, &[shift], scope)?;
    let scaled = binary(graph, BinaryFn::Mul, x, scale, scope)?;
    let sum = binary(graph, BinaryFn::Add, scaled, shift, scope)?;
    rounded(graph, sum, dtype, scope)
}
