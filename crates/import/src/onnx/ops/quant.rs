//! Quantized numbers, computed with as floats: what is quantized becomes a float and back.

use regraft_ir::ops::{BinaryFn, CompareFn, ReduceFn, UnaryFn};
use regraft_tensor::{DType, Dim};

use crate::{
    build::product,
    onnx::args::{Cx, Res, ValueId, unsupported, wrong},
};

/// The bounds of an integer dtype.
fn bounds(dtype: DType) -> Res<(f64, f64)> {
    Ok(match dtype {
        DType::U8 => (0.0, 255.0),
        DType::I8 => (-128.0, 127.0),
        DType::I16 => (-32768.0, 32767.0),
        other => return unsupported(format!("quantization to {other}"), "use uint8, int8 or int16"),
    })
}

/// A scale or zero point as it broadcasts to `x`: of all of it, of each index of an axis, or of blocks of an axis.
fn spread(cx: &mut Cx<'_, '_>, v: ValueId, x: ValueId) -> Res<ValueId> {
    let (rank, block) = (cx.rank(x), cx.natural("block_size", 0)?);
    let axis = cx.int_attr("axis", 1)?;
    if cx.rank(v) == 0 || cx.ty(v).numel().is(1) {
        return cx.reshape(v, vec![]);
    }
    let axis = cx.axis_of(axis, rank)?;
    if block == 0 {
        return match cx.rank(v) {
            1 => cx.along(v, rank, axis),
            n => wrong(format!("a scale with {n} axes")),
        };
    }
    let mut shape = cx.shape(v);
    let v = cx.unsqueeze(v, axis + 1)?;
    let mut wide = cx.shape(v);
    let (Some(slot), Some(joined)) = (wide.get_mut(axis + 1), shape.get_mut(axis)) else {
        return wrong("a scale for blocks with other axes");
    };
    *slot = Dim::from(block);
    *joined = &*joined * &Dim::from(block);
    let v = cx.expand(v, wide)?;
    let v = cx.reshape(v, shape)?;
    let size = cx.ty(x).shape.get(axis).cloned().unwrap_or(Dim::new(1));
    cx.slice(v, axis, Dim::new(0), size)
}

/// `x/scale + zero`, rounded to the nearest, ties to even, and kept within the dtype.
fn quantized(cx: &mut Cx<'_, '_>, x: ValueId, scale: ValueId, zero: Option<ValueId>, dtype: DType) -> Res<ValueId> {
    let (low, high) = bounds(dtype)?;
    let float = if cx.dtype_of(x).is_float() { cx.dtype_of(x) } else { DType::F32 };
    let (x, scale) = (cx.cast(x, float)?, cx.cast(scale, float)?);
    let x = cx.binary(BinaryFn::Div, x, scale)?;
    let mut x = cx.unary(UnaryFn::Round, x)?;
    if let Some(zero) = zero {
        let zero = cx.cast(zero, float)?;
        x = cx.binary(BinaryFn::Add, x, zero)?;
    }
    let x = cx.with_literal(BinaryFn::Max, x, low)?;
    let x = cx.with_literal(BinaryFn::Min, x, high)?;
    cx.cast(x, dtype)
}

/// `(x - zero)·scale`.
fn dequantized(cx: &mut Cx<'_, '_>, x: ValueId, scale: ValueId, zero: Option<ValueId>) -> Res<ValueId> {
    let float = cx.dtype_of(scale);
    let mut out = match (zero, cx.dtype_of(x)) {
        (None, _) => cx.cast(x, float)?,
        // Whole numbers of 32 bits are not f32.
        (Some(zero), DType::I32) => {
            let apart = cx.binary(BinaryFn::Sub, x, zero)?;
            cx.cast(apart, float)?
        }
        (Some(zero), _) => {
            let (x, zero) = (cx.cast(x, float)?, cx.cast(zero, float)?);
            cx.binary(BinaryFn::Sub, x, zero)?
        }
    };
    out = cx.binary(BinaryFn::Mul, out, scale)?;
    Ok(out)
}

pub(super) fn quantize(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, scale, zero) = (cx.input(0)?, cx.input(1)?, cx.optional(2)?);
    cx.ignore("saturate");
    cx.ignore("precision");
    let said = cx.dtype_attr("output_dtype")?;
    let dtype = zero.map(|z| cx.dtype_of(z)).or(said).unwrap_or(DType::U8);
    let scale = spread(cx, scale, x)?;
    let zero = zero.map(|z| spread(cx, z, x)).transpose()?;
    quantized(cx, x, scale, zero, dtype)
}

pub(super) fn dequantize(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, scale, zero) = (cx.input(0)?, cx.input(1)?, cx.optional(2)?);
    let dtype = cx.dtype_attr("output_dtype")?;
    let scale = spread(cx, scale, x)?;
    let zero = zero.map(|z| spread(cx, z, x)).transpose()?;
    let out = dequantized(cx, x, scale, zero)?;
    match dtype {
        Some(dtype) => cx.cast(out, dtype),
        None => Ok(out),
    }
}

/// Quantization to uint8 by the extremes of the values.
pub(super) fn dynamic(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    let x = cx.input(0)?;
    let axes: Vec<usize> = (0..cx.rank(x)).collect();
    let low = cx.reduce(ReduceFn::Min, x, &axes, false)?;
    let low = cx.with_literal(BinaryFn::Min, low, 0.0)?;
    let high = cx.reduce(ReduceFn::Max, x, &axes, false)?;
    let high = cx.with_literal(BinaryFn::Max, high, 0.0)?;
    let span = cx.binary(BinaryFn::Sub, high, low)?;
    let scale = cx.with_literal(BinaryFn::Div, span, 255.0)?;
    // Nothing but zeros has no scale.
    let none = cx.compare_with(CompareFn::Eq, scale, 0.0)?;
    let one = cx.float_like(1.0, x)?;
    let scale = cx.select(none, one, scale)?;
    let zero = cx.binary(BinaryFn::Div, low, scale)?;
    let zero = cx.unary(UnaryFn::Neg, zero)?;
    let zero = cx.unary(UnaryFn::Round, zero)?;
    let zero = cx.with_literal(BinaryFn::Max, zero, 0.0)?;
    let zero = cx.with_literal(BinaryFn::Min, zero, 255.0)?;
    let zero = cx.cast(zero, DType::U8)?;
    let y = quantized(cx, x, scale, Some(zero), DType::U8)?;
    Ok(vec![Some(y), Some(scale), Some(zero)])
}

/// An operand of a quantized product at inputs `i` to `i + 2`, as floats; one scale for each index of `axis`, if any.
fn operand(cx: &mut Cx<'_, '_>, i: usize, axis: impl Fn(usize) -> usize) -> Res<ValueId> {
    let (x, scale, zero) = (cx.input(i)?, cx.input(i + 1)?, cx.input(i + 2)?);
    let rank = cx.rank(x);
    let wide = |cx: &mut Cx<'_, '_>, v: ValueId| match cx.rank(v) {
        1 if cx.ty(v).numel().is(1) => cx.reshape(v, vec![]),
        1 => cx.along(v, rank, axis(rank)),
        _ => Ok(v),
    };
    let (scale, zero) = (wide(cx, scale)?, wide(cx, zero)?);
    dequantized(cx, x, scale, Some(zero))
}

fn result(cx: &mut Cx<'_, '_>, out: ValueId, i: usize) -> Res<ValueId> {
    let (scale, zero) = (cx.input(i)?, cx.input(i + 1)?);
    let dtype = cx.dtype_of(zero);
    quantized(cx, out, scale, Some(zero), dtype)
}

pub(super) fn matmul(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let a = operand(cx, 0, |rank| rank.saturating_sub(2))?;
    let b = operand(cx, 3, |rank| rank.saturating_sub(1))?;
    let out = product(cx, a, b)?;
    result(cx, out, 6)
}

pub(super) fn conv(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = operand(cx, 0, |_| 1)?;
    let weight = operand(cx, 3, |_| 0)?;
    let bias = match cx.optional(8)? {
        None => None,
        Some(bias) => {
            // Its scale is that of the operand times that of the weight.
            let (a, b) = (cx.input(1)?, cx.input(4)?);
            let a = cx.reshape(a, vec![])?;
            let scale = cx.binary(BinaryFn::Mul, a, b)?;
            let bias = cx.cast(bias, DType::F32)?;
            Some(cx.binary(BinaryFn::Mul, bias, scale)?)
        }
    };
    let out = super::window::conv_of(cx, x, weight, bias)?;
    result(cx, out, 6)
}
