//! Resampling that reads neighbors of each position along one axis after the other: nearest by middles, and with antialiasing.

use regraft_ir::ops::{BinaryFn, CompareFn, Matmul, ReduceFn, UnaryFn};
use regraft_tensor::{DType, Dim};

use crate::pt2::args::{Cx, Res, ValueId, unsupported, wrong};

/// How an axis is resampled: its sizes, and what a step of the result is in the image.
struct Scaled {
    from: usize,
    to: usize,
    step: f64,
}

/// The image, and the resampling of each of its spatial axes.
fn arguments(cx: &mut Cx<'_, '_>, corners: bool) -> Res<(ValueId, Vec<Scaled>)> {
    let x = cx.tensor(if cx.has("input") { "input" } else { "self" })?;
    let Some(spatial) = cx.rank(x).checked_sub(2).filter(|s| (1..=3).contains(s)) else {
        return wrong(format!("a tensor with {} axes", cx.rank(x)));
    };
    let mut scales = cx.floats("scale_factors")?;
    for name in ["scales", "scales_d", "scales_h", "scales_w"] {
        scales.extend(cx.optional_float(name)?);
    }
    let Some(result) = cx.result(0).cloned().filter(|t| t.rank() == spatial + 2) else {
        return wrong("expected an image as its result");
    };
    let mut axes = Vec::new();
    for i in 0..spatial {
        let from = cx.size(x, 2 + i)?;
        let Some(to) = result.shape.get(2 + i).and_then(Dim::as_usize) else {
            return unsupported("resampling to a dynamic size", "export this dimension as a static one");
        };
        let scale = if scales.len() == spatial { scales.get(i).copied() } else { None };
        let step = match scale {
            _ if corners => {
                if to > 1 {
                    from.saturating_sub(1) as f64 / (to - 1) as f64
                } else {
                    0.0
                }
            }
            Some(scale) if scale > 0.0 => 1.0 / scale,
            _ => from as f64 / to.max(1) as f64,
        };
        axes.push(Scaled { from, to, step: f64::from(step as f32) });
    }
    Ok((x, axes))
}

/// Positions as whole numbers kept within the axis.
fn clamped(cx: &mut Cx<'_, '_>, at: ValueId, size: usize) -> Res<ValueId> {
    let at = cx.with_literal(BinaryFn::Max, at, 0.0)?;
    let at = cx.with_literal(BinaryFn::Min, at, size.saturating_sub(1) as f64)?;
    cx.cast(at, DType::I64)
}

pub(super) fn nearest_exact(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, axes) = arguments(cx, false)?;
    let mut out = x;
    for (i, axis) in axes.into_iter().enumerate() {
        let at = cx.iota(Dim::from(axis.to), 0, 1)?;
        let at = cx.cast(at, DType::F32)?;
        let at = cx.with_literal(BinaryFn::Add, at, 0.5)?;
        let at = cx.with_literal(BinaryFn::Mul, at, axis.step)?;
        let at = cx.unary(UnaryFn::Floor, at)?;
        let at = clamped(cx, at, axis.from)?;
        out = cx.take(out, 2 + i, at)?;
    }
    Ok(out)
}

/// Bilinear with the triangle of each output widened to what it covers where the image becomes smaller: `antialias=True`. Weights
/// are computed here, as PyTorch does on the CPU: an axis is a product with a matrix of them.
pub(super) fn bilinear_antialiased(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    const MOST: usize = 1 << 22;
    let corners = cx.bool_or("align_corners", false)?;
    let (x, axes) = arguments(cx, corners)?;
    let (rank, dtype) = (cx.rank(x), cx.dtype_of(x));
    let mut out = x;
    for (i, axis) in axes.into_iter().enumerate() {
        let Scaled { from, to, step } = axis;
        if from.saturating_mul(to) > MOST {
            return unsupported(
                format!("resampling of {from} to {to} elements with antialiasing"),
                "resize smaller images",
            );
        }
        let support = step.max(1.0);
        let middle = cx.iota(Dim::from(to), 0, 1)?;
        let middle = cx.cast(middle, DType::F64)?;
        let middle = cx.with_literal(BinaryFn::Add, middle, 0.5)?;
        let middle = cx.with_literal(BinaryFn::Mul, middle, step)?;
        let middle = cx.unsqueeze(middle, 1)?;
        let tap = cx.iota(Dim::from(from), 0, 1)?;
        let tap = cx.cast(tap, DType::F64)?;
        // Only taps from the rounded start to the rounded end count.
        let bound = |cx: &mut Cx<'_, '_>, by: f64| {
            let at = cx.with_literal(BinaryFn::Add, middle, by + 0.5)?;
            cx.unary(UnaryFn::Floor, at)
        };
        let (start, end) = (bound(cx, -support)?, bound(cx, support)?);
        let after = cx.compare(CompareFn::Ge, tap, start)?;
        let before = cx.compare(CompareFn::Lt, tap, end)?;
        let counts = cx.binary(BinaryFn::And, after, before)?;
        let place = cx.with_literal(BinaryFn::Add, tap, 0.5)?;
        let apart = cx.binary(BinaryFn::Sub, place, middle)?;
        let apart = cx.with_literal(BinaryFn::Div, apart, support)?;
        let apart = cx.unary(UnaryFn::Abs, apart)?;
        let one = cx.float(1.0, DType::F64)?;
        let height = cx.binary(BinaryFn::Sub, one, apart)?;
        let height = cx.with_literal(BinaryFn::Max, height, 0.0)?;
        let zero = cx.float(0.0, DType::F64)?;
        let weights = cx.select(counts, height, zero)?;
        let total = cx.reduce(ReduceFn::Sum, weights, &[1], true)?;
        let weights = cx.binary(BinaryFn::Div, weights, total)?;
        let weights = cx.cast(weights, dtype)?;
        // The axis goes last for the product, and back.
        let mut perm: Vec<usize> = (0..rank).collect();
        perm.swap(2 + i, rank - 1);
        let moved = cx.permute(out, perm.clone())?;
        let product = cx.emit(Matmul { transpose_b: true }, &[moved, weights])?;
        out = cx.permute(product, perm)?;
    }
    Ok(out)
}
