//! Rules on arithmetic with literals.

use regraft_ir::{
    Graph, IrError, Node, Op, ValueId,
    ops::{Binary, BinaryFn, Unary, UnaryFn},
};

use super::Context;
use crate::lower::pattern::{literal_f64, scaled};

/// `x^n` for the exponents that have a cheaper function.
pub(super) fn power(graph: &mut Graph, _: &Context, node: &Node) -> Result<Option<ValueId>, IrError> {
    let Op::Binary(Binary { f: BinaryFn::Pow }) = &node.op else { return Ok(None) };
    let x = node.input(0);
    let Some(exponent) = literal_f64(graph, node.input(1)) else { return Ok(None) };
    if graph.ty(x) != graph.ty(node.output()) || !graph.ty(x).dtype.is_float() {
        return Ok(None);
    }
    let times = Binary { f: BinaryFn::Mul };
    let unary = |graph: &mut Graph, f| graph.add1(Unary { f }, &[x], &node.scope).map(Some);
    match exponent {
        2.0 => graph.add1(times, &[x, x], &node.scope).map(Some),
        3.0 => {
            let square = graph.add1(times.clone(), &[x, x], &node.scope)?;
            graph.add1(times, &[square, x], &node.scope).map(Some)
        }
        0.5 => unary(graph, UnaryFn::Sqrt),
        -0.5 => unary(graph, UnaryFn::Rsqrt),
        -1.0 => unary(graph, UnaryFn::Reciprocal),
        1.0 => Ok(Some(x)),
        _ => Ok(None),
    }
}

/// `x·1` and `x/1` with a literal 1. (`x + 0` stays: it changes the sign of a negative zero.)
pub(super) fn times_one(graph: &mut Graph, _: &Context, node: &Node) -> Result<Option<ValueId>, IrError> {
    let Op::Binary(_) = &node.op else { return Ok(None) };
    Ok(scaled(graph, node.output()).filter(|&(_, factor)| factor == 1.0).map(|(x, _)| x))
}
