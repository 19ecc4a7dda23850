//! Normalizations.

use regraft_ir::ops::{BatchNorm, BinaryFn, GroupNorm, LayerNorm, ReduceFn, RmsNorm, SpatialLayout, UnaryFn};
use regraft_tensor::{DType, Dim};

use crate::onnx::args::{Cx, Res, ValueId, unsupported, wrong};

pub(super) fn batch(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    let x = cx.input(0)?;
    let (scale, bias, mean, var) = (cx.input(1)?, cx.input(2)?, cx.input(3)?, cx.input(4)?);
    let momentum = cx.float_attr("momentum", 0.9)?;
    cx.ignore("spatial");
    let eps = cx.float_attr("epsilon", 1e-5)?;
    if cx.flag("training_mode", false)? {
        return batch_in_training(cx, x, [scale, bias, mean, var], eps, momentum);
    }
    let layout = SpatialLayout::Nchw;
    let out = cx.emit_opt(BatchNorm { eps, layout }, vec![Some(x), Some(mean), Some(var), Some(scale), Some(bias)])?;
    Ok(vec![Some(out)])
}

/// By the statistics of the batch, which move the running ones.
fn batch_in_training(
    cx: &mut Cx<'_, '_>,
    x: ValueId,
    [scale, bias, mean, var]: [ValueId; 4],
    eps: f64,
    momentum: f64,
) -> Res<Vec<Option<ValueId>>> {
    let axes: Vec<usize> = (0..cx.rank(x)).filter(|axis| *axis != 1).collect();
    let wide = if cx.dtype_of(x) == DType::F64 { x } else { cx.cast(x, DType::F32)? };
    let of_batch = cx.reduce(ReduceFn::Mean, wide, &axes, true)?;
    let apart = cx.binary(BinaryFn::Sub, wide, of_batch)?;
    let square = cx.binary(BinaryFn::Mul, apart, apart)?;
    let spread = cx.reduce(ReduceFn::Mean, square, &axes, false)?;
    let of_batch = cx.reduce(ReduceFn::Mean, wide, &axes, false)?;
    let mut moved = |old: ValueId, new: ValueId| -> Res<ValueId> {
        let new = cx.cast_like(new, old)?;
        let old = cx.with_literal(BinaryFn::Mul, old, momentum)?;
        let new = cx.with_literal(BinaryFn::Mul, new, 1.0 - momentum)?;
        cx.binary(BinaryFn::Add, old, new)
    };
    let (running_mean, running_var) = (moved(mean, of_batch)?, moved(var, spread)?);
    let layout = SpatialLayout::Nchw;
    let (of_batch, spread) = (cx.cast_like(of_batch, mean)?, cx.cast_like(spread, var)?);
    let inputs = [x, of_batch, spread, scale, bias].map(Some).to_vec();
    let out = cx.emit_opt(BatchNorm { eps, layout }, inputs)?;
    Ok(vec![Some(out), Some(running_mean), Some(running_var)])
}

pub(super) fn instance(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, scale, bias) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let eps = cx.float_attr("epsilon", 1e-5)?;
    let Some(groups) = cx.ty(x).shape.get(1).and_then(Dim::as_usize) else {
        return unsupported("a dynamic number of channels", "make it static");
    };
    let op = GroupNorm { groups, eps, layout: SpatialLayout::Nchw };
    cx.emit_opt(op, vec![Some(x), Some(scale), Some(bias)])
}

pub(super) fn group(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, scale, bias) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let eps = cx.float_attr("epsilon", 1e-5)?;
    let groups = cx.natural("num_groups", 0)?;
    cx.ignore("stash_type");
    let channels = cx.ty(x).shape.get(1).cloned().unwrap_or(Dim::new(1));
    let op = GroupNorm { groups, eps, layout: SpatialLayout::Nchw };
    if cx.version >= 21 || cx.ty(scale).shape.first() == Some(&channels) {
        return cx.emit_opt(op, vec![Some(x), Some(scale), Some(bias)]);
    }
    // Before opset 21 there is one scale for each group.
    let per = match channels.as_usize() {
        Some(channels) if groups > 0 && channels % groups == 0 => channels / groups,
        _ => return wrong(format!("{groups} groups of {channels} channels")),
    };
    let wide = |cx: &mut Cx<'_, '_>, v: ValueId| -> Res<ValueId> {
        let v = cx.unsqueeze(v, 1)?;
        let v = cx.expand(v, vec![Dim::from(groups), Dim::from(per)])?;
        cx.flat(v)
    };
    let (scale, bias) = (wide(cx, scale)?, wide(cx, bias)?);
    cx.emit_opt(op, vec![Some(x), Some(scale), Some(bias)])
}

/// A vector as the operator for it takes it, when it has the shape of the last `axes` axes.
fn fits(cx: &Cx<'_, '_>, v: Option<ValueId>, x: ValueId, axes: usize) -> bool {
    let shape = &cx.ty(x).shape;
    v.is_none_or(|v| Some(cx.ty(v).shape.as_slice()) == shape.get(shape.len().saturating_sub(axes)..))
}

/// With the mean and one over the deviation of each row, when they are wanted.
pub(super) fn layer(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    let (x, scale, bias) = (cx.input(0)?, cx.optional(1)?, cx.optional(2)?);
    let rank = cx.rank(x);
    let axis = cx.axis_attr("axis", -1, rank)?;
    let eps = cx.float_attr("epsilon", 1e-5)?;
    cx.ignore("stash_type");
    let axes = rank - axis;
    let out = layer_of(cx, x, scale, bias, axes, eps)?;
    if !cx.wants(1) && !cx.wants(2) {
        return Ok(vec![Some(out)]);
    }
    let x = cx.cast(x, DType::F32)?;
    let all: Vec<usize> = (axis..rank).collect();
    let mean = cx.reduce(ReduceFn::Mean, x, &all, true)?;
    let apart = cx.binary(BinaryFn::Sub, x, mean)?;
    let square = cx.binary(BinaryFn::Mul, apart, apart)?;
    let var = cx.reduce(ReduceFn::Mean, square, &all, true)?;
    let var = cx.with_literal(BinaryFn::Add, var, eps)?;
    let rstd = cx.unary(UnaryFn::Rsqrt, var)?;
    Ok(vec![Some(out), Some(mean), Some(rstd)])
}

/// Layer normalization with a scale and a bias of any shape that broadcasts.
pub(super) fn layer_of(
    cx: &mut Cx<'_, '_>,
    x: ValueId,
    scale: Option<ValueId>,
    bias: Option<ValueId>,
    axes: usize,
    eps: f64,
) -> Res<ValueId> {
    if fits(cx, scale, x, axes) && fits(cx, bias, x, axes) {
        return cx.emit_opt(LayerNorm { axes, eps }, vec![Some(x), scale, bias]);
    }
    let mut out = cx.emit(LayerNorm { axes, eps }, &[x])?;
    if let Some(scale) = scale {
        out = cx.binary(BinaryFn::Mul, out, scale)?;
    }
    match bias {
        Some(bias) => cx.binary(BinaryFn::Add, out, bias),
        None => Ok(out),
    }
}

pub(super) fn rms_of(cx: &mut Cx<'_, '_>, x: ValueId, scale: Option<ValueId>, axes: usize, eps: f64) -> Res<ValueId> {
    if fits(cx, scale, x, axes) {
        return cx.emit_opt(RmsNorm { axes, eps }, vec![Some(x), scale]);
    }
    let out = cx.emit(RmsNorm { axes, eps }, &[x])?;
    match scale {
        Some(scale) => cx.binary(BinaryFn::Mul, out, scale),
        None => Ok(out),
    }
}

pub(super) fn rms(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, scale) = (cx.input(0)?, cx.optional(1)?);
    let rank = cx.rank(x);
    let axis = cx.axis_attr("axis", -1, rank)?;
    let eps = cx.float_attr("epsilon", 1e-5)?;
    cx.ignore("stash_type");
    rms_of(cx, x, scale, rank - axis, eps)
}

/// Each element over a power of the mean square of the channels around it.
pub(super) fn local_response(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    let (alpha, beta) = (cx.float_attr("alpha", 1e-4)?, cx.float_attr("beta", 0.75)?);
    let (bias, size) = (cx.float_attr("bias", 1.0)?, cx.natural("size", 0)?);
    let shape = cx.shape(x);
    let Some(channels) = shape.get(1).cloned().filter(|_| (1..=1024).contains(&size)) else {
        return wrong(format!("normalization over {size} channels"));
    };
    let square = cx.binary(BinaryFn::Mul, x, x)?;
    let (before, after) = ((size - 1) / 2, size / 2);
    let mut wide = vec![0i64; shape.len()];
    let mut pads = (wide.clone(), std::mem::take(&mut wide));
    if let (Some(b), Some(a)) = (pads.0.get_mut(1), pads.1.get_mut(1)) {
        (*b, *a) = (before as i64, after as i64);
    }
    let square = super::shape::padded(cx, square, pads.0, pads.1)?;
    let mut sum: Option<ValueId> = None;
    for i in 0..size {
        let part = cx.slice(square, 1, Dim::from(i), &channels + &Dim::from(i))?;
        sum = Some(match sum {
            Some(sum) => cx.binary(BinaryFn::Add, sum, part)?,
            None => part,
        });
    }
    let Some(sum) = sum else { return wrong("expected channels") };
    let scaled = cx.with_literal(BinaryFn::Mul, sum, alpha / size as f64)?;
    let base = cx.with_literal(BinaryFn::Add, scaled, bias)?;
    let below = cx.with_literal(BinaryFn::Pow, base, beta)?;
    cx.binary(BinaryFn::Div, x, below)
}

/// `(x - mean)/deviation` over some axes.
pub(super) fn mean_variance(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    let rank = cx.rank(x);
    let axes = cx.optional_ints_attr("axes")?.unwrap_or(vec![0, 2, 3]);
    let axes = axes.into_iter().map(|a| cx.axis_of(a, rank)).collect::<Res<Vec<_>>>()?;
    let mean = cx.reduce(ReduceFn::Mean, x, &axes, true)?;
    let apart = cx.binary(BinaryFn::Sub, x, mean)?;
    let square = cx.binary(BinaryFn::Mul, apart, apart)?;
    let var = cx.reduce(ReduceFn::Mean, square, &axes, true)?;
    let deviation = cx.unary(UnaryFn::Sqrt, var)?;
    let deviation = cx.with_literal(BinaryFn::Add, deviation, 1e-9)?;
    cx.binary(BinaryFn::Div, apart, deviation)
}
