//! Activations that are not a function of the IR by themselves.

use regraft_ir::ops::{BinaryFn, Compare, CompareFn, Select, UnaryFn};
use regraft_tensor::Dim;

use super::elementwise::float_arg;
use crate::pt2::args::{Cx, Number, Res, ValueId, unsupported, wrong};

/// `x f value`, as a condition.
fn test(cx: &mut Cx<'_, '_>, f: CompareFn, x: ValueId, value: f64) -> Res<ValueId> {
    let value = cx.float_like(value, x)?;
    cx.emit(Compare { f }, &[x, value])
}

fn times(cx: &mut Cx<'_, '_>, x: ValueId, factor: f64) -> Res<ValueId> {
    if factor == 1.0 { Ok(x) } else { cx.with_literal(BinaryFn::Mul, x, factor) }
}

pub(super) fn hardtanh(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let (min, max) = (cx.float_or("min_val", -1.0)?, cx.float_or("max_val", 1.0)?);
    if (min, max) == (0.0, 6.0) && cx.dtype_of(x).is_float() {
        return cx.unary(UnaryFn::Relu6, x);
    }
    let low = cx.with_literal(BinaryFn::Max, x, min)?;
    cx.with_literal(BinaryFn::Min, low, max)
}

/// Integers stay integers.
pub(super) fn relu6(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    if cx.dtype_of(x).is_float() {
        return cx.unary(UnaryFn::Relu6, x);
    }
    let (low, high) = (cx.number_like(&Number::Int(0), x)?, cx.number_like(&Number::Int(6), x)?);
    let x = cx.binary(BinaryFn::Max, x, low)?;
    cx.binary(BinaryFn::Min, x, high)
}

pub(super) fn gelu(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    match cx.optional_text("approximate")?.unwrap_or("none") {
        "none" => cx.unary(UnaryFn::Gelu, x),
        "tanh" => cx.unary(UnaryFn::GeluTanh, x),
        other => wrong(format!("`{other}` is not an approximation of gelu")),
    }
}

fn leaky(cx: &mut Cx<'_, '_>, x: ValueId, slope: f64) -> Res<ValueId> {
    let positive = test(cx, CompareFn::Gt, x, 0.0)?;
    let scaled = times(cx, x, slope)?;
    cx.emit(Select {}, &[positive, x, scaled])
}

pub(super) fn leaky_relu(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let slope = cx.float_or("negative_slope", 0.01)?;
    leaky(cx, x, slope)
}

pub(super) fn rrelu(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    if cx.bool_or("training", false)? {
        return unsupported("rrelu in training mode", "call model.eval() before exporting");
    }
    let x = cx.tensor("self")?;
    let (lower, upper) = (cx.float_or("lower", 0.125)?, cx.float_or("upper", 1.0 / 3.0)?);
    leaky(cx, x, (lower + upper) / 2.0)
}

/// `x > 0 ? x·scale : (e^(x·input_scale) - 1)·alpha·scale`.
fn elu_of(cx: &mut Cx<'_, '_>, x: ValueId, alpha: f64, scale: f64, input_scale: f64) -> Res<ValueId> {
    let positive = test(cx, CompareFn::Gt, x, 0.0)?;
    let right = times(cx, x, scale)?;
    let inner = times(cx, x, input_scale)?;
    let power = cx.unary(UnaryFn::Expm1, inner)?;
    let left = times(cx, power, alpha * scale)?;
    cx.emit(Select {}, &[positive, right, left])
}

pub(super) fn elu(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let (alpha, scale, input) =
        (cx.float_or("alpha", 1.0)?, cx.float_or("scale", 1.0)?, cx.float_or("input_scale", 1.0)?);
    elu_of(cx, x, alpha, scale, input)
}

pub(super) fn selu(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    elu_of(cx, x, 1.673_263_242_354_377_2, 1.050_700_987_355_480_5, 1.0)
}

pub(super) fn celu(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let alpha = cx.float_or("alpha", 1.0)?;
    elu_of(cx, x, alpha, 1.0, 1.0 / alpha)
}

pub(super) fn mish(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let soft = cx.unary(UnaryFn::Softplus, x)?;
    let gate = cx.unary(UnaryFn::Tanh, soft)?;
    cx.binary(BinaryFn::Mul, x, gate)
}

pub(super) fn softplus(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let (beta, threshold) = (cx.float_or("beta", 1.0)?, cx.float_or("threshold", 20.0)?);
    let inner = times(cx, x, beta)?;
    // Softplus of the IR has threshold 20; beyond a lower one the function is the identity.
    let soft = cx.unary(UnaryFn::Softplus, inner)?;
    let soft = times(cx, soft, 1.0 / beta)?;
    if threshold >= 20.0 {
        return Ok(soft);
    }
    let beyond = test(cx, CompareFn::Gt, inner, threshold)?;
    cx.emit(Select {}, &[beyond, x, soft])
}

/// `-log(1 + e^-x)`, by the greater of 0 and -x, which overflows nowhere.
pub(super) fn log_sigmoid(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let low = cx.with_literal(BinaryFn::Min, x, 0.0)?;
    let size = cx.unary(UnaryFn::Abs, x)?;
    let size = cx.unary(UnaryFn::Neg, size)?;
    let power = cx.unary(UnaryFn::Exp, size)?;
    let rest = cx.unary(UnaryFn::Log1p, power)?;
    cx.binary(BinaryFn::Sub, low, rest)
}

pub(super) fn prelu(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, weight) = (cx.tensor("self")?, cx.tensor("weight")?);
    let rank = cx.rank(x);
    // One slope, or one per channel (axis 1); the decomposed form has the shape already.
    let weight = if cx.rank(weight) == 1 && rank > 1 {
        let mut shape = vec![Dim::new(1); rank];
        if let (Some(slot), Some(size)) = (shape.get_mut(1), cx.ty(weight).shape.first()) {
            *slot = size.clone();
        }
        cx.reshape(weight, shape)?
    } else {
        weight
    };
    let positive = test(cx, CompareFn::Gt, x, 0.0)?;
    let scaled = cx.binary(BinaryFn::Mul, x, weight)?;
    cx.emit(Select {}, &[positive, x, scaled])
}

pub(super) fn glu(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let axis = cx.axis_arg("dim", Some(-1), cx.rank(x))?;
    let Some(size) = cx.ty(x).shape.get(axis).cloned() else { return wrong("expected a tensor with axes") };
    let half = size.floor_div(&Dim::new(2));
    let a = cx.slice(x, axis, Dim::new(0), half.clone())?;
    let b = cx.slice(x, axis, half, size)?;
    let gate = cx.unary(UnaryFn::Sigmoid, b)?;
    cx.binary(BinaryFn::Mul, a, gate)
}

pub(super) fn threshold(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let (threshold, value) = (cx.float_or("threshold", 0.0)?, cx.float_or("value", 0.0)?);
    let below = test(cx, CompareFn::Le, x, threshold)?;
    let value = cx.float_like(value, x)?;
    cx.emit(Select {}, &[below, value, x])
}

pub(super) fn hardshrink(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let lambda = cx.float_or("lambd", 0.5)?;
    let size = float_arg(cx, "self")?;
    let size = cx.unary(UnaryFn::Abs, size)?;
    let inside = test(cx, CompareFn::Le, size, lambda)?;
    let zero = cx.float_like(0.0, x)?;
    cx.emit(Select {}, &[inside, zero, x])
}

pub(super) fn softshrink(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let lambda = cx.float_or("lambd", 0.5)?;
    let zero = cx.float_like(0.0, x)?;
    let (above, below) = (test(cx, CompareFn::Gt, x, lambda)?, test(cx, CompareFn::Lt, x, -lambda)?);
    let (minus, plus) = (cx.with_literal(BinaryFn::Sub, x, lambda)?, cx.with_literal(BinaryFn::Add, x, lambda)?);
    let low = cx.emit(Select {}, &[below, plus, zero])?;
    cx.emit(Select {}, &[above, minus, low])
}

pub(super) fn tanhshrink(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let tanh = cx.unary(UnaryFn::Tanh, x)?;
    cx.binary(BinaryFn::Sub, x, tanh)
}

pub(super) fn softsign(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let size = cx.unary(UnaryFn::Abs, x)?;
    let size = cx.with_literal(BinaryFn::Add, size, 1.0)?;
    cx.binary(BinaryFn::Div, x, size)
}
