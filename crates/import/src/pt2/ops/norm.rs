//! Normalizations.

use regraft_ir::ops::{BatchNorm, BinaryFn, GroupNorm, LayerNorm, ReduceFn, RmsNorm, SpatialLayout, UnaryFn};
use regraft_tensor::{DType, Dim};

use super::reduce;
use crate::pt2::args::{Cx, Res, ValueId, wrong};

/// Normalization by given statistics.
fn batch(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("input")?;
    let (mean, var) = (cx.tensor("running_mean")?, cx.tensor("running_var")?);
    let (weight, bias) = (cx.optional_tensor("weight")?, cx.optional_tensor("bias")?);
    let eps = cx.float_or("eps", 1e-5)?;
    cx.emit_opt(BatchNorm { eps, layout: SpatialLayout::Nchw }, vec![Some(x), Some(mean), Some(var), weight, bias])
}

pub(super) fn batch_norm(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    // Without running statistics those of the batch are used in any mode, and nothing is written. So weights are
    // standardized: as a recipe.
    if !cx.has("running_mean") && !cx.has("running_var") {
        let out = cx.in_f32(by_own_statistics)?;
        return cx.narrowed(0, out);
    }
    if cx.bool_or("training", false)? {
        let trained = cx.in_f32(by_batch)?;
        write_statistics(cx, [trained.running_mean, trained.running_var])?;
        return cx.narrowed(0, trained.out);
    }
    batch(cx)
}

/// What normalizing by the statistics of the batch gives, in f32 for halves.
struct Trained {
    out: ValueId,
    mean: ValueId,
    rstd: ValueId,
    /// The running mean and variance after this batch, where there are any.
    running_mean: Option<ValueId>,
    running_var: Option<ValueId>,
}

/// Each channel normalized by its mean and variance in this batch.
fn by_batch(cx: &mut Cx<'_, '_>) -> Res<Trained> {
    let out = by_own_statistics(cx)?;
    let x = cx.tensor("input")?;
    let (axes, count) = beside_channels(cx, x)?;
    let (mean, rstd) = statistics(cx, x, &axes)?;
    let var = unbiased(cx, x, mean, &axes, &count)?;
    let Some(channels) = cx.ty(x).shape.get(1).cloned() else { return wrong("expected channels") };
    let (mean, rstd) = (cx.reshape(mean, vec![channels.clone()])?, cx.reshape(rstd, vec![channels])?);
    let [running_mean, running_var] = running(cx, mean, var)?;
    Ok(Trained { out, mean, rstd, running_mean, running_var })
}

/// The variance over some axes, which go: that of a sample, as running variances are.
fn unbiased(cx: &mut Cx<'_, '_>, x: ValueId, mean: ValueId, axes: &[usize], count: &Dim) -> Res<ValueId> {
    let apart = cx.binary(BinaryFn::Sub, x, mean)?;
    let square = cx.binary(BinaryFn::Mul, apart, apart)?;
    let var = cx.reduce(ReduceFn::Sum, square, axes, false)?;
    let less = cx.dim_like(&(count - &Dim::new(1)), var)?;
    cx.binary(BinaryFn::Div, var, less)
}

/// The running mean and variance, where there are any, after one of these was seen.
fn running(cx: &mut Cx<'_, '_>, mean: ValueId, var: ValueId) -> Res<[Option<ValueId>; 2]> {
    let momentum = cx.float_or("momentum", 0.1)?;
    let mut running = [None, None];
    for (slot, (name, new)) in running.iter_mut().zip([("running_mean", mean), ("running_var", var)]) {
        if let Some(old) = cx.optional_tensor(name)? {
            let new = cx.cast_like(new, old)?;
            let (kept, added) =
                (cx.with_literal(BinaryFn::Mul, old, 1.0 - momentum)?, cx.with_literal(BinaryFn::Mul, new, momentum)?);
            *slot = Some(cx.binary(BinaryFn::Add, kept, added)?);
        }
    }
    Ok(running)
}

/// All axes but that of channels, and how many elements a channel has.
fn beside_channels(cx: &Cx<'_, '_>, x: ValueId) -> Res<(Vec<usize>, Dim)> {
    let rank = cx.rank(x);
    if rank < 2 {
        return wrong(format!("a normalization of channels of a tensor with {rank} axes"));
    }
    let axes: Vec<usize> = (0..rank).filter(|axis| *axis != 1).collect();
    let shape = cx.shape(x);
    let count = axes.iter().filter_map(|a| shape.get(*a)).product::<Dim>();
    Ok((axes, count))
}

/// Writes the running statistics of training mode.
fn write_statistics(cx: &mut Cx<'_, '_>, [mean, var]: [Option<ValueId>; 2]) -> Res<()> {
    for (name, value) in [("running_mean", mean), ("running_var", var)] {
        if let Some(value) = value {
            cx.write_argument(name, value)?;
        }
    }
    Ok(())
}

/// Training mode with its statistics: result, mean and one over the deviation, in the dtypes that the program says. What follows is
/// `reserve`, and the running statistics where the form is functional.
fn trained(cx: &mut Cx<'_, '_>, functional: bool) -> Res<Vec<Option<ValueId>>> {
    let trained = cx.in_f32(by_batch)?;
    let mut results = Vec::new();
    for (i, v) in [trained.out, trained.mean, trained.rstd].into_iter().enumerate() {
        results.push(Some(cx.narrowed(i, v)?));
    }
    if !functional {
        write_statistics(cx, [trained.running_mean, trained.running_var])?;
        return Ok(results);
    }
    results.extend([trained.running_mean, trained.running_var]);
    Ok(results)
}

/// Result `i`, if the program says that it is an empty vector: what there is of statistics that are not computed.
fn nothing(cx: &mut Cx<'_, '_>, i: usize) -> Res<Option<ValueId>> {
    let Some(ty) = cx.result(i).cloned().filter(|t| matches!(t.shape.as_slice(), [n] if n.is(0))) else {
        return Ok(None);
    };
    let zero = cx.float(0.0, ty.dtype)?;
    cx.expand(zero, ty.shape).map(Some)
}

/// Forms that always train; `_batch_norm_with_update` has an empty tensor of bytes behind the statistics.
pub(super) fn batch_norm_with_update(cx: &mut Cx<'_, '_>, functional: bool) -> Res<Vec<Option<ValueId>>> {
    let mut results = trained(cx, functional)?;
    let none = cx.literal(regraft_ir::Scalar::Int(0), DType::U8)?;
    let reserve = cx.expand(none, vec![Dim::new(0)])?;
    results.insert(3, Some(reserve));
    Ok(results)
}

/// `_native_batch_norm_legit_functional`: the running statistics are results.
pub(super) fn functional_batch_norm(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    if cx.bool_or("training", false)? {
        return trained(cx, true);
    }
    let out = batch(cx)?;
    let (mean, var) = (cx.tensor("running_mean")?, cx.tensor("running_var")?);
    Ok(vec![Some(out), None, None, Some(mean), Some(var)])
}

/// Each channel normalized by its mean and variance over everything else.
fn by_own_statistics(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("input")?;
    let rank = cx.rank(x);
    let (axes, _) = beside_channels(cx, x)?;
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
    if cx.bool_or("training", false)? {
        return trained(cx, false);
    }
    Ok(vec![Some(batch(cx)?), nothing(cx, 1)?, nothing(cx, 2)?])
}

/// Normalization by the statistics of the input; what `instance_norm` decomposes into has one batch of `n·c` channels.
pub(super) fn batch_norm_no_stats(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    let x = cx.tensor("input")?;
    if !cx.ty(x).shape.first().is_some_and(|d| d.is(1)) || cx.rank(x) < 3 {
        return trained(cx, false);
    }
    let (axes, _) = beside_channels(cx, x)?;
    let (mean, rstd) = statistics(cx, x, &axes)?;
    let (mean, rstd) = (cx.flat(mean)?, cx.flat(rstd)?);
    Ok(vec![Some(instance(cx, x)?), Some(mean), Some(rstd)])
}

/// Each channel of each batch normalized over its spatial axes.
fn instance(cx: &mut Cx<'_, '_>, x: ValueId) -> Res<ValueId> {
    let Some(spatial) = cx.rank(x).checked_sub(2).filter(|s| *s > 0) else {
        return wrong("a normalization of a tensor without spatial axes");
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
        return batch(cx);
    }
    let x = cx.tensor("input")?;
    let out = match cx.ty(x).shape.get(1).and_then(Dim::as_usize) {
        Some(groups) => group(cx, groups)?,
        None => instance(cx, x)?,
    };
    // PyTorch writes the running statistics although its schema does not say so.
    if cx.has("running_mean") || cx.has("running_var") {
        let running = cx.in_f32(by_instance)?;
        write_statistics(cx, running)?;
    }
    Ok(out)
}

/// The running statistics after the mean over the batch of those of each example.
fn by_instance(cx: &mut Cx<'_, '_>) -> Res<[Option<ValueId>; 2]> {
    let x = cx.tensor("input")?;
    let axes: Vec<usize> = (2..cx.rank(x)).collect();
    let count = cx.shape(x).iter().skip(2).product::<Dim>();
    let (mean, _) = statistics(cx, x, &axes)?;
    let var = unbiased(cx, x, mean, &axes, &count)?;
    let mean = cx.reduce(ReduceFn::Mean, mean, &[0], false)?;
    let channels = cx.shape(var).into_iter().skip(1).collect();
    let mean = cx.reshape(mean, channels)?;
    let var = cx.reduce(ReduceFn::Mean, var, &[0], false)?;
    running(cx, mean, var)
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

/// With the statistics that it normalizes by. Nodes for what is not read go.
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
    let elements = rest.iter().product::<Dim>();
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
