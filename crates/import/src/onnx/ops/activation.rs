//! Activations.

use regraft_ir::ops::{BinaryFn, CompareFn, UnaryFn};
use regraft_tensor::Dim;

use crate::onnx::args::{Cx, Res, ValueId, unsupported, wrong};

/// `x f value ? a : b`.
fn choose(cx: &mut Cx<'_, '_>, f: CompareFn, x: ValueId, value: f64, a: ValueId, b: ValueId) -> Res<ValueId> {
    let cond = cx.compare_with(f, x, value)?;
    cx.select(cond, a, b)
}

fn times(cx: &mut Cx<'_, '_>, x: ValueId, factor: f64) -> Res<ValueId> {
    if factor == 1.0 { Ok(x) } else { cx.with_literal(BinaryFn::Mul, x, factor) }
}

/// The function that attributes of a node name; `approximate` is `none` or `tanh`.
pub(super) fn gelu(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    match cx.text("approximate", "none")? {
        "none" => cx.unary(UnaryFn::Gelu, x),
        "tanh" => cx.unary(UnaryFn::GeluTanh, x),
        other => wrong(format!("`{other}` is not an approximation of gelu")),
    }
}

pub(super) fn leaky_relu(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    let alpha = cx.float_attr("alpha", 0.01)?;
    let below = times(cx, x, alpha)?;
    choose(cx, CompareFn::Lt, x, 0.0, below, x)
}

/// `x > 0 ? scale·x : scale·alpha·(e^(x·inner) - 1)`.
fn exponential(cx: &mut Cx<'_, '_>, alpha: f64, scale: f64, inner: f64) -> Res<ValueId> {
    let x = cx.input(0)?;
    let above = times(cx, x, scale)?;
    let x_inner = times(cx, x, inner)?;
    let power = cx.unary(UnaryFn::Expm1, x_inner)?;
    let below = times(cx, power, scale * alpha)?;
    choose(cx, CompareFn::Gt, x, 0.0, above, below)
}

pub(super) fn elu(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let alpha = cx.float_attr("alpha", 1.0)?;
    exponential(cx, alpha, 1.0, 1.0)
}

pub(super) fn selu(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let alpha = cx.float_attr("alpha", 1.673_263_192_176_818_8)?;
    let gamma = cx.float_attr("gamma", 1.050_701_022_148_132_3)?;
    exponential(cx, alpha, gamma, 1.0)
}

pub(super) fn celu(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let alpha = cx.float_attr("alpha", 1.0)?;
    exponential(cx, alpha, 1.0, 1.0 / alpha)
}

pub(super) fn thresholded_relu(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    let alpha = cx.float_attr("alpha", 1.0)?;
    let zero = cx.float_like(0.0, x)?;
    choose(cx, CompareFn::Gt, x, alpha, x, zero)
}

pub(super) fn hard_sigmoid(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    let (alpha, beta) = (cx.float_attr("alpha", 0.2)?, cx.float_attr("beta", 0.5)?);
    // As exporters write PyTorch's: one sixth in f32.
    if alpha == f64::from(1.0f32 / 6.0) && beta == 0.5 {
        return cx.unary(UnaryFn::Hardsigmoid, x);
    }
    let x = times(cx, x, alpha)?;
    let x = cx.with_literal(BinaryFn::Add, x, beta)?;
    let x = cx.with_literal(BinaryFn::Max, x, 0.0)?;
    cx.with_literal(BinaryFn::Min, x, 1.0)
}

pub(super) fn shrink(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    let (bias, lambda) = (cx.float_attr("bias", 0.0)?, cx.float_attr("lambd", 0.5)?);
    let zero = cx.float_like(0.0, x)?;
    let (above, below) = (cx.with_literal(BinaryFn::Sub, x, bias)?, cx.with_literal(BinaryFn::Add, x, bias)?);
    let inner = choose(cx, CompareFn::Gt, x, lambda, above, zero)?;
    choose(cx, CompareFn::Lt, x, -lambda, below, inner)
}

pub(super) fn softsign(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    let size = cx.unary(UnaryFn::Abs, x)?;
    let below = cx.with_literal(BinaryFn::Add, size, 1.0)?;
    cx.binary(BinaryFn::Div, x, below)
}

pub(super) fn mish(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    let soft = cx.unary(UnaryFn::Softplus, x)?;
    let gate = cx.unary(UnaryFn::Tanh, soft)?;
    cx.binary(BinaryFn::Mul, x, gate)
}

/// `x·σ(alpha·x)`.
pub(super) fn swish(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    let alpha = cx.float_attr("alpha", 1.0)?;
    if alpha == 1.0 {
        return cx.unary(UnaryFn::Silu, x);
    }
    let inner = times(cx, x, alpha)?;
    let gate = cx.unary(UnaryFn::Sigmoid, inner)?;
    cx.binary(BinaryFn::Mul, x, gate)
}

pub(super) fn prelu(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, slope) = (cx.input(0)?, cx.input(1)?);
    if cx.rank(slope) > cx.rank(x) {
        return unsupported("a slope with more axes than its operand", "reshape it");
    }
    let below = cx.binary(BinaryFn::Mul, x, slope)?;
    let zero = cx.literal_like(regraft_ir::Scalar::Int(0), x)?;
    let cond = cx.compare(CompareFn::Lt, x, zero)?;
    cx.select(cond, below, x)
}

/// One where an axis has its greatest value first, zero elsewhere.
pub(super) fn hardmax(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, axis, shape) = super::reduce::softmax_operand(cx)?;
    let at = cx.emit(regraft_ir::ops::ArgReduce { f: regraft_ir::ops::ArgReduceFn::Max, axis, keep: true }, &[x])?;
    let size = cx.ty(x).shape.get(axis).cloned().unwrap_or(Dim::new(1));
    let rank = cx.rank(x);
    let places = cx.position(rank, axis, size)?;
    let hit = cx.compare(CompareFn::Eq, places, at)?;
    let dtype = cx.dtype_of(x);
    let out = cx.cast(hit, dtype)?;
    cx.reshape(out, shape)
}
