//! Normalisations.

use regraft_ir::ops::{BatchNorm, BinaryFn, GroupNorm, LayerNorm, ReduceFn, RmsNorm, SpatialLayout, UnaryFn};
use regraft_tensor::{DType, Dim};

use super::reduce;
use crate::pt2::args::{Cx, Res, ValueId, unsupported, wrong};

fn batch(cx: &mut Cx<'_, '_>, training: bool) -> Res<ValueId> {
    if training {
        return unsupported("batch normalisation in training mode", "call model.eval() before exporting");
    }
    let x = cx.tensor("input")?;
    let (mean, var) = (cx.tensor("running_mean")?, cx.tensor("running_var")?);
    let (weight, bias) = (cx.optional_tensor("weight")?, cx.optional_tensor("bias")?);
    let eps = cx.float_or("eps", 1e-5)?;
    cx.emit_opt(BatchNorm { eps, layout: SpatialLayout::Nchw }, vec![Some(x), Some(mean), Some(var), weight, bias])
}

pub(super) fn batch_norm(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    // Without running statistics those of the batch are used in any mode, and nothing is written. So weights are
    // standardised: as a recipe.
    if !cx.has("running_mean") && !cx.has("running_var") {
        let out = cx.in_f32(by_own_statistics)?;
        return cx.narrowed(0, out);
    }
    let training = cx.bool_or("training", false)?;
    batch(cx, training)
}

/// Each channel normalised by its mean and variance over everything else.
fn by_own_statistics(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("input")?;
    let rank = cx.rank(x);
    if rank < 2 {
        return wrong(format!("a normalisation of channels of a tensor with {rank} axes"));
    }
    let axes: Vec<usize> = (0..rank).filter(|axis| *axis != 1).collect();
    let (mean, rstd) = statistics(cx, x, &axes)?;
    let apart = cx.binary(BinaryFn::Sub, x, mean)?;
    let mut out = cx.binary(BinaryFn::Mul, apart, rstd)?;
    for (f, name) in [(BinaryFn::Mul, "weight"), (BinaryFn::Add, "bias")] {
        if let Some(v) = cx.optional_tensor(name)? {
            let v = cx.along(v, rank, 1)?;
            out = cx.binary(f, out, v)?;
        }
    }
    Ok(out)
}

pub(super) fn native_batch_norm(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    let training = cx.bool_or("training", false)?;
    Ok(vec![Some(batch(cx, training)?), None, None])
}

/// Normalisation by the statistics of the input; what `instance_norm` decomposes into has one batch of `n·c` channels.
pub(super) fn batch_norm_no_stats(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    let x = cx.tensor("input")?;
    if !cx.ty(x).shape.first().is_some_and(|d| d.is(1)) {
        return unsupported("batch normalisation by the statistics of the batch", "call model.eval() before exporting");
    }
    Ok(vec![Some(instance(cx, x)?), None, None])
}

/// Each channel of each batch normalised over its spatial axes.
fn instance(cx: &mut Cx<'_, '_>, x: ValueId) -> Res<ValueId> {
    let Some(spatial) = cx.rank(x).checked_sub(2).filter(|s| *s > 0) else {
        return wrong("a normalisation of a tensor without spatial axes");
    };
    let eps = cx.float_or("eps", 1e-5)?;
    let mut out = cx.emit_opt(LayerNorm { axes: spatial, eps }, vec![Some(x)])?;
    for (f, name) in [(BinaryFn::Mul, "weight"), (BinaryFn::Add, "bias")] {
        if let Some(v) = cx.optional_tensor(name)? {
            let mut shape = cx.shape(v);
            shape.extend(vec![Dim::new(1); spatial]);
            let v = cx.reshape(v, shape)?;
            out = cx.binary(f, out, v)?;
        }
    }
    Ok(out)
}

pub(super) fn instance_norm(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    if !cx.bool_or("use_input_stats", true)? {
        return batch(cx, false);
    }
    let x = cx.tensor("input")?;
    match cx.ty(x).shape.get(1).and_then(Dim::as_usize) {
        Some(groups) => group(cx, groups),
        None => instance(cx, x),
    }
}

fn group(cx: &mut Cx<'_, '_>, groups: usize) -> Res<ValueId> {
    let x = cx.tensor("input")?;
    let (weight, bias) = (cx.optional_tensor("weight")?, cx.optional_tensor("bias")?);
    let eps = cx.float_or("eps", 1e-5)?;
    let op = GroupNorm { groups, eps, layout: SpatialLayout::Nchw };
    cx.emit_opt(op, vec![Some(x), weight, bias])
}

pub(super) fn group_norm(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let groups = cx.int("num_groups")?;
    match usize::try_from(groups) {
        Ok(groups) => group(cx, groups),
        Err(_) => wrong(format!("{groups} groups")),
    }
}

/// The mean, and one over the deviation, over some axes, which stay.
fn statistics(cx: &mut Cx<'_, '_>, x: ValueId, axes: &[usize]) -> Res<(ValueId, ValueId)> {
    let mean = cx.reduce(ReduceFn::Mean, x, axes, true)?;
    let apart = cx.binary(BinaryFn::Sub, x, mean)?;
    let square = cx.binary(BinaryFn::Mul, apart, apart)?;
    let var = cx.reduce(ReduceFn::Mean, square, axes, true)?;
    let eps = cx.float_or("eps", 1e-5)?;
    let var = cx.with_literal(BinaryFn::Add, var, eps)?;
    Ok((mean, cx.unary(UnaryFn::Rsqrt, var)?))
}

/// With the statistics that it normalises by. Nodes for what is not read go.
pub(super) fn native_layer_norm(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    let out = layer_norm(cx)?;
    let x = cx.tensor("input")?;
    let rank = cx.rank(x);
    let Some(first) = rank.checked_sub(cx.dims("normalized_shape")?.len()) else { return wrong("too many axes") };
    let (mean, rstd) = statistics(cx, x, &(first..rank).collect::<Vec<_>>())?;
    Ok(vec![Some(out), Some(mean), Some(rstd)])
}

pub(super) fn native_group_norm(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    let groups = cx.int("group")?;
    let Some(count) = usize::try_from(groups).ok().filter(|g| *g > 0) else { return wrong(format!("{groups} groups")) };
    let out = group(cx, count)?;
    let x = cx.tensor("input")?;
    let shape = cx.shape(x);
    let Some((batch, rest)) = shape.split_first() else { return wrong("expected channels") };
    let elements = rest.iter().fold(Dim::new(1), |n, d| &n * d);
    let flat = vec![batch.clone(), Dim::from(count), elements.floor_div(&Dim::from(count))];
    let x = cx.reshape(x, flat)?;
    let (mean, rstd) = statistics(cx, x, &[2])?;
    Ok(vec![Some(out), Some(cx.squeeze(mean, 2)?), Some(cx.squeeze(rstd, 2)?)])
}

pub(super) fn layer_norm(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("input")?;
    let (weight, bias) = (cx.optional_tensor("weight")?, cx.optional_tensor("bias")?);
    let axes = cx.dims("normalized_shape")?.len();
    let eps = cx.float_or("eps", 1e-5)?;
    cx.emit_opt(LayerNorm { axes, eps }, vec![Some(x), weight, bias])
}

pub(super) fn rms_norm(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, weight) = (cx.tensor("input")?, cx.optional_tensor("weight")?);
    let axes = cx.dims("normalized_shape")?.len();
    // By default the distance of 1 to the next number.
    let default = match cx.dtype_of(x) {
        DType::F64 => f64::EPSILON,
        // PyTorch computes on halves in f32.
        _ => f64::from(f32::EPSILON),
    };
    let eps = cx.float_or("eps", default)?;
    cx.emit_opt(RmsNorm { axes, eps }, vec![Some(x), weight])
}

/// `v · g / ‖v‖`: a weight by its direction and its length, which is one for each index of an axis or, for -1, of all.
pub(super) fn weight_norm(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (v, g) = (cx.tensor("v")?, cx.tensor("g")?);
    let rank = cx.rank(v);
    let kept = match cx.int_or("dim", 0)? {
        -1 => None,
        dim => Some(cx.axis(dim, rank)?),
    };
    let axes: Vec<usize> = (0..rank).filter(|axis| Some(*axis) != kept).collect();
    let norms = reduce::euclidean(cx, v, &axes, true)?;
    let factors = cx.binary(BinaryFn::Div, g, norms)?;
    cx.binary(BinaryFn::Mul, v, factors)
}
