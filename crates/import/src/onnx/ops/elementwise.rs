//! Functions of each element, and conversions.

use regraft_ir::{
    Scalar,
    ops::{BinaryFn, CompareFn, UnaryFn},
};
use regraft_tensor::DType;

use crate::onnx::args::{Cx, Res, ValueId, unsupported, wrong};

pub(super) fn unary(cx: &mut Cx<'_, '_>, f: UnaryFn) -> Res<ValueId> {
    let x = cx.input(0)?;
    cx.unary(f, x)
}

pub(super) fn binary(cx: &mut Cx<'_, '_>, f: BinaryFn) -> Res<ValueId> {
    let (a, b) = (cx.input(0)?, cx.input(1)?);
    cx.binary(f, a, b)
}

pub(super) fn compare(cx: &mut Cx<'_, '_>, f: CompareFn) -> Res<ValueId> {
    let (a, b) = (cx.input(0)?, cx.input(1)?);
    cx.compare(f, a, b)
}

/// A function that rounds, which leaves whole numbers alone.
pub(super) fn rounding(cx: &mut Cx<'_, '_>, f: UnaryFn) -> Res<ValueId> {
    let x = cx.input(0)?;
    if cx.dtype_of(x).is_float() { cx.unary(f, x) } else { Ok(x) }
}

pub(super) fn div(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b) = (cx.input(0)?, cx.input(1)?);
    let f = if cx.dtype_of(a).is_float() { BinaryFn::Div } else { BinaryFn::TruncDiv };
    cx.binary(f, a, b)
}

pub(super) fn pow(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b) = (cx.input(0)?, cx.input(1)?);
    let (base, exponent) = (cx.dtype_of(a), cx.dtype_of(b));
    if base.is_float() || !exponent.is_float() {
        let b = cx.cast(b, base)?;
        return cx.binary(BinaryFn::Pow, a, b);
    }
    let (a, b) = (cx.cast(a, DType::F64)?, cx.cast(b, DType::F64)?);
    let power = cx.binary(BinaryFn::Pow, a, b)?;
    cx.cast(power, base)
}

pub(super) fn modulo(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let f = if cx.flag("fmod", false)? { BinaryFn::Fmod } else { BinaryFn::Rem };
    binary(cx, f)
}

pub(super) fn bit_shift(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    match cx.text("direction", "")? {
        "LEFT" => binary(cx, BinaryFn::Shl),
        "RIGHT" => binary(cx, BinaryFn::Shr),
        other => wrong(format!("`{other}` is not a direction of a shift")),
    }
}

/// A function of any number of operands, two at a time.
pub(super) fn each(cx: &mut Cx<'_, '_>, f: BinaryFn) -> Res<ValueId> {
    let list = cx.inputs()?;
    let mut rest = list.into_iter();
    let Some(mut out) = rest.next() else { return wrong("expected operands") };
    for next in rest {
        out = cx.binary(f, out, next)?;
    }
    Ok(out)
}

pub(super) fn mean(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let sum = each(cx, BinaryFn::Add)?;
    let count = cx.count();
    cx.with_literal(BinaryFn::Div, sum, count as f64)
}

pub(super) fn where_(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (cond, a, b) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    cx.select(cond, a, b)
}

pub(super) fn is_nan(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    cx.is_nan(x)
}

pub(super) fn is_inf(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    let (positive, negative) = (cx.flag("detect_positive", true)?, cx.flag("detect_negative", true)?);
    match (positive, negative) {
        (true, false) => cx.compare_with(CompareFn::Eq, x, f64::INFINITY),
        (false, true) => cx.compare_with(CompareFn::Eq, x, f64::NEG_INFINITY),
        (true, true) => {
            let size = cx.unary(UnaryFn::Abs, x)?;
            cx.compare_with(CompareFn::Eq, size, f64::INFINITY)
        }
        (false, false) => cx.compare(CompareFn::Lt, x, x),
    }
}

pub(super) fn cast(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    // Of 8-bit floats, which are refused.
    cx.ignore("saturate");
    cx.ignore("round_mode");
    match cx.dtype_attr("to")? {
        Some(dtype) => cx.cast(x, dtype),
        None => wrong("expected a dtype as `to`"),
    }
}

pub(super) fn cast_like(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    cx.ignore("saturate");
    cx.ignore("round_mode");
    let (x, like) = (cx.input(0)?, cx.input(1)?);
    let dtype = cx.dtype_of(like);
    cx.cast(x, dtype)
}

/// In inference nothing is dropped, and the mask says so.
pub(super) fn dropout(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    let x = cx.input(0)?;
    for name in ["ratio", "seed", "is_test"] {
        cx.ignore(name);
    }
    let ratio = if cx.has(1) { cx.plain(1)? } else { x };
    if cx.has(2) && cx.ints(2)? != [0] {
        // Without a ratio, nothing is dropped in training either.
        let none = cx.has(1) && cx.known(ratio).and_then(|k| k.tensor()).is_some_and(|t| t.to_f64_vec() == [0.0]);
        if !none {
            return unsupported("dropout in training mode", "export the model in evaluation mode");
        }
    }
    let mask = if cx.wants(1) {
        let kept = cx.literal(Scalar::Int(1), DType::Bool)?;
        let shape = cx.shape(x);
        Some(cx.expand(kept, shape)?)
    } else {
        None
    };
    Ok(vec![Some(x), mask])
}

/// Bounds as attributes before opset 11, then as inputs.
pub(super) fn clip(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let mut x = cx.input(0)?;
    for (i, name, f) in [(1, "min", BinaryFn::Max), (2, "max", BinaryFn::Min)] {
        if let Some(bound) = cx.optional_float_attr(name)? {
            x = cx.with_literal(f, x, bound)?;
        } else if let Some(bound) = cx.optional(i)? {
            x = cx.binary(f, x, bound)?;
        }
    }
    Ok(x)
}
