//! Rules on arithmetic with literals.

use regraft_ir::{
    Graph, IrError, Node, Op, ValueId,
    ops::{Binary, BinaryFn, Unary, UnaryFn},
};
use regraft_tensor::DType;

use super::Context;
use crate::lower::pattern::literal_f64;

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

/// `x·1` and `x/1` with a literal 1; for integers also `x + 0` and `x - 0`, for booleans `x and true`. (`x + 0` of floats
/// stays: it changes the sign of a negative zero.)
pub(super) fn neutral(graph: &mut Graph, _: &Context, node: &Node) -> Result<Option<ValueId>, IrError> {
    let Op::Binary(op) = &node.op else { return Ok(None) };
    let y = node.output();
    let is = |v: ValueId, c: f64| literal_f64(graph, v) == Some(c);
    let is_float = graph.ty(y).dtype.is_float();
    let is_bool = graph.ty(y).dtype == DType::Bool;
    for (x, c, swapped) in [(node.input(0), node.input(1), false), (node.input(1), node.input(0), true)] {
        let drops = match op.f {
            BinaryFn::Mul => is(c, 1.0),
            BinaryFn::Div => is(c, 1.0) && !swapped,
            BinaryFn::Add => !is_float && is(c, 0.0),
            BinaryFn::Sub => !is_float && is(c, 0.0) && !swapped,
            BinaryFn::And => is_bool && literal_f64(graph, c).is_some_and(|c| c != 0.0),
            _ => false,
        };
        if drops && graph.ty(x) == graph.ty(y) {
            return Ok(Some(x));
        }
    }
    Ok(None)
}
