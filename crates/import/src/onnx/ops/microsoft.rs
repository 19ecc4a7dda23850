//! What ONNX Runtime's optimizers write: several operators in one.

use regraft_ir::ops::{BinaryFn, UnaryFn};
use regraft_tensor::{DType, Dim};

use super::{norm, window};
use crate::{
    build::{product, transposed},
    onnx::args::{Cx, Res, ValueId, unsupported, wrong},
};

/// A function of the first operand plus a bias, if there is one.
pub(super) fn biased(cx: &mut Cx<'_, '_>, f: UnaryFn) -> Res<ValueId> {
    let mut x = cx.input(0)?;
    if let Some(bias) = cx.optional(1)? {
        x = cx.binary(BinaryFn::Add, x, bias)?;
    }
    cx.unary(f, x)
}

/// `x·σ(alpha·x)`.
pub(super) fn quick_gelu(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    let alpha = cx.float_attr("alpha", 1.702)?;
    let inner = cx.with_literal(BinaryFn::Mul, x, alpha)?;
    let gate = cx.unary(UnaryFn::Sigmoid, inner)?;
    cx.binary(BinaryFn::Mul, x, gate)
}

pub(super) fn matmul(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (mut a, mut b) = (cx.input(0)?, cx.input(1)?);
    let alpha = cx.float_attr("alpha", 1.0)?;
    if cx.flag("transBatchA", false)? || cx.flag("transBatchB", false)? {
        return unsupported("a product with transposed batches", "export the model without this fusion");
    }
    if cx.flag("transA", false)? {
        a = transposed(cx, a)?;
    }
    if cx.flag("transB", false)? {
        b = transposed(cx, b)?;
    }
    let out = product(cx, a, b)?;
    if alpha == 1.0 { Ok(out) } else { cx.with_literal(BinaryFn::Mul, out, alpha) }
}

/// A convolution, plus the fourth operand, then an activation.
pub(super) fn conv(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let mut out = window::conv(cx)?;
    if let Some(other) = cx.optional(3)? {
        out = cx.binary(BinaryFn::Add, out, other)?;
    }
    let params = cx.optional_floats_attr("activation_params")?.unwrap_or_default();
    match (cx.text("activation", "")?, params.as_slice()) {
        ("", _) => Ok(out),
        ("Relu", _) => cx.unary(UnaryFn::Relu, out),
        ("Sigmoid", _) => cx.unary(UnaryFn::Sigmoid, out),
        ("Tanh", _) => cx.unary(UnaryFn::Tanh, out),
        ("Clip", [low, high]) => {
            let out = cx.with_literal(BinaryFn::Max, out, *low)?;
            cx.with_literal(BinaryFn::Min, out, *high)
        }
        ("LeakyRelu", [alpha]) => {
            let below = cx.with_literal(BinaryFn::Mul, out, *alpha)?;
            let cond = cx.compare_with(regraft_ir::ops::CompareFn::Lt, out, 0.0)?;
            cx.select(cond, below, out)
        }
        (other, _) => unsupported(format!("the activation `{other}`"), "export the model without this fusion"),
    }
}

/// The sum of the operands and of a bias.
fn sum(cx: &mut Cx<'_, '_>, bias: usize) -> Res<ValueId> {
    let (x, skip) = (cx.input(0)?, cx.input(1)?);
    let out = cx.binary(BinaryFn::Add, x, skip)?;
    match cx.optional(bias)? {
        Some(bias) => cx.binary(BinaryFn::Add, out, bias),
        None => Ok(out),
    }
}

pub(super) fn skip_layer_norm(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    let x = sum(cx, 4)?;
    let (scale, bias) = (cx.optional(2)?, cx.optional(3)?);
    let eps = cx.float_attr("epsilon", 1e-12)?;
    let out = norm::layer_of(cx, x, scale, bias, 1, eps)?;
    Ok(vec![Some(out), None, None, Some(x)])
}

pub(super) fn skip_rms_norm(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    let x = sum(cx, 3)?;
    let scale = cx.optional(2)?;
    let eps = cx.float_attr("epsilon", 1e-6)?;
    let out = norm::rms_of(cx, x, scale, 1, eps)?;
    Ok(vec![Some(out), None, None, Some(x)])
}

/// Words, positions and segments looked up, summed and normalized.
pub(super) fn embed_layer_norm(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    let ids = cx.plain(0)?;
    let (words, positions) = (cx.input(2)?, cx.input(3)?);
    let row = |cx: &mut Cx<'_, '_>, table: ValueId, ids: ValueId| {
        let ids = cx.cast(ids, DType::I64)?;
        cx.emit(regraft_ir::ops::Embedding {}, &[table, ids])
    };
    let mut x = row(cx, words, ids)?;
    let at = if cx.has(8) {
        cx.plain(8)?
    } else {
        let length = cx.ty(ids).shape.get(1).cloned().unwrap_or(Dim::new(1));
        cx.position(2, 1, length)?
    };
    let place = row(cx, positions, at)?;
    x = cx.binary(BinaryFn::Add, x, place)?;
    if cx.has(1) && cx.has(4) {
        let (segments, table) = (cx.plain(1)?, cx.input(4)?);
        let segment = row(cx, table, segments)?;
        x = cx.binary(BinaryFn::Add, x, segment)?;
    }
    let (scale, bias) = (cx.optional(5)?, cx.optional(6)?);
    let eps = cx.float_attr("epsilon", 1e-12)?;
    cx.ignore("mask_index_type");
    let out = norm::layer_of(cx, x, scale, bias, 1, eps)?;
    // How many words each example has.
    let lengths = match cx.has(7) {
        true => {
            let mask = cx.plain(7)?;
            let mask = cx.cast(mask, DType::I32)?;
            Some(cx.reduce(regraft_ir::ops::ReduceFn::Sum, mask, &[1], false)?)
        }
        false => None,
    };
    Ok(vec![Some(out), lengths, Some(x)])
}

/// As `RMSNormalization`, under its older name.
pub(super) fn rms_norm(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    if cx.wants(1) {
        return wrong("the deviation is not computed");
    }
    Ok(vec![Some(norm::rms(cx)?)])
}
