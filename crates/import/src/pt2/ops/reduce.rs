//! Reductions.

use regraft_ir::ops::{
    ArgReduce, ArgReduceFn, BinaryFn, CompareFn, Cumsum, Cumulate, CumulateFn, Gather, ReduceFn, SizeOf, UnaryFn,
};
use regraft_tensor::{DType, Dim};

use super::elementwise::to_float;
use crate::pt2::args::{Cx, Res, ValueId, unsupported, wrong};

/// Input, axes and `keepdim` of a reduction.
pub(super) fn arguments(cx: &mut Cx<'_, '_>) -> Res<(ValueId, Vec<usize>, bool)> {
    let x = cx.tensor("self")?;
    Ok((x, cx.axes("dim", cx.rank(x))?, cx.bool_or("keepdim", false)?))
}

/// Sums of integers and conditions are `i64` unless a dtype is given.
fn whole(cx: &Cx<'_, '_>, x: ValueId) -> Res<DType> {
    let dtype = cx.dtype_of(x);
    Ok(cx.dtype("dtype")?.unwrap_or(if dtype.is_float() { dtype } else { DType::I64 }))
}

pub(super) fn sum(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, axes, keep) = arguments(cx)?;
    let dtype = whole(cx, x)?;
    let x = cx.cast(x, dtype)?;
    cx.reduce(ReduceFn::Sum, x, &axes, keep)
}

pub(super) fn prod(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, axes, keep) = arguments(cx)?;
    let dtype = whole(cx, x)?;
    let x = cx.cast(x, dtype)?;
    if dtype == DType::Bool {
        return cx.reduce(ReduceFn::All, x, &axes, keep);
    }
    cx.reduce(ReduceFn::Prod, x, &axes, keep)
}

pub(super) fn mean(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, axes, keep) = arguments(cx)?;
    let dtype = cx.dtype("dtype")?.unwrap_or_else(|| to_float(cx.dtype_of(x)));
    let x = cx.cast(x, dtype)?;
    cx.reduce(ReduceFn::Mean, x, &axes, keep)
}

pub(super) fn extreme(cx: &mut Cx<'_, '_>, f: ReduceFn) -> Res<ValueId> {
    let (x, axes, keep) = arguments(cx)?;
    cx.reduce(f, x, &axes, keep)
}

fn position(cx: &mut Cx<'_, '_>, f: ReduceFn, x: ValueId, axis: usize, keep: bool) -> Res<ValueId> {
    let f = match f {
        ReduceFn::Max => ArgReduceFn::Max,
        ReduceFn::Min => ArgReduceFn::Min,
        _ => return wrong("expected a maximum or minimum"),
    };
    // Conditions have an order, but no kernel needs to know it.
    let x = if cx.dtype_of(x) == DType::Bool { cx.cast(x, DType::U8)? } else { x };
    if cx.rank(x) == 0 {
        let row = cx.unsqueeze(x, 0)?;
        return cx.emit(ArgReduce { f, axis: 0, keep: false }, &[row]);
    }
    cx.emit(ArgReduce { f, axis, keep }, &[x])
}

pub(super) fn extreme_with_index(cx: &mut Cx<'_, '_>, f: ReduceFn) -> Res<Vec<Option<ValueId>>> {
    let x = cx.tensor("self")?;
    let rank = cx.rank(x);
    let axis = cx.axis_arg("dim", None, rank)?;
    let keep = cx.bool_or("keepdim", false)?;
    let axes: Vec<usize> = [axis].into_iter().filter(|a| *a < rank).collect();
    Ok(vec![Some(cx.reduce(f, x, &axes, keep)?), Some(position(cx, f, x, axis, keep)?)])
}

pub(super) fn aminmax(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    let (x, axes, keep) = arguments(cx)?;
    Ok(vec![Some(cx.reduce(ReduceFn::Min, x, &axes, keep)?), Some(cx.reduce(ReduceFn::Max, x, &axes, keep)?)])
}

pub(super) fn arg_extreme(cx: &mut Cx<'_, '_>, f: ReduceFn) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let keep = cx.bool_or("keepdim", false)?;
    match cx.optional_int("dim")? {
        Some(dim) => {
            let axis = cx.axis(dim, cx.rank(x))?;
            position(cx, f, x, axis, keep)
        }
        None => {
            let (rank, n) = (cx.rank(x), cx.ty(x).numel());
            let flat = cx.reshape(x, vec![n])?;
            let out = position(cx, f, flat, 0, false)?;
            if keep { cx.reshape(out, vec![Dim::new(1); rank]) } else { Ok(out) }
        }
    }
}

pub(super) fn truth(cx: &mut Cx<'_, '_>, f: ReduceFn) -> Res<ValueId> {
    let (x, axes, keep) = arguments(cx)?;
    let x = cx.cast(x, DType::Bool)?;
    let out = cx.reduce(f, x, &axes, keep)?;
    // Of bytes PyTorch gives bytes.
    match cx.result_dtype() {
        Some(DType::U8) => cx.cast(out, DType::U8),
        _ => Ok(out),
    }
}

/// Variance and mean over some axes.
fn moments(cx: &mut Cx<'_, '_>) -> Res<(ValueId, ValueId)> {
    let (x, axes, keep) = arguments(cx)?;
    let dtype = to_float(cx.dtype_of(x));
    let x = cx.cast(x, dtype)?;
    let correction = match cx.optional_float("correction")? {
        Some(correction) => correction,
        None => f64::from(u8::from(cx.bool_or("unbiased", true)?)),
    };
    let shape = cx.shape(x);
    let count = axes.iter().filter_map(|a| shape.get(*a)).product::<Dim>();
    let mean = cx.reduce(ReduceFn::Mean, x, &axes, true)?;
    let centered = cx.binary(BinaryFn::Sub, x, mean)?;
    let squares = cx.binary(BinaryFn::Mul, centered, centered)?;
    let var = if correction == 0.0 {
        cx.reduce(ReduceFn::Mean, squares, &axes, keep)?
    } else {
        let total = cx.reduce(ReduceFn::Sum, squares, &axes, keep)?;
        // PyTorch never divides by less than zero.
        let divisor = match count.as_const() {
            Some(n) => cx.float((n as f64 - correction).max(0.0), dtype)?,
            None => {
                let n = cx.emit(SizeOf { value: count }, &[])?;
                let n = cx.cast(n, dtype)?;
                let n = cx.with_literal(BinaryFn::Sub, n, correction)?;
                cx.with_literal(BinaryFn::Max, n, 0.0)?
            }
        };
        cx.binary(BinaryFn::Div, total, divisor)?
    };
    let mean = if keep { mean } else { cx.reduce(ReduceFn::Mean, x, &axes, false)? };
    Ok((var, mean))
}

pub(super) fn var(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    moments(cx).map(|(var, _)| var)
}

pub(super) fn std(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (var, _) = moments(cx)?;
    cx.unary(UnaryFn::Sqrt, var)
}

pub(super) fn var_mean(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    let (var, mean) = moments(cx)?;
    Ok(vec![Some(var), Some(mean)])
}

pub(super) fn std_mean(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    let (var, mean) = moments(cx)?;
    Ok(vec![Some(cx.unary(UnaryFn::Sqrt, var)?), Some(mean)])
}

/// `√Σ x²`.
pub(super) fn euclidean(cx: &mut Cx<'_, '_>, x: ValueId, axes: &[usize], keep: bool) -> Res<ValueId> {
    let squares = cx.binary(BinaryFn::Mul, x, x)?;
    let sum = cx.reduce(ReduceFn::Sum, squares, axes, keep)?;
    cx.unary(UnaryFn::Sqrt, sum)
}

/// `(Σ |x|^p)^(1/p)`.
pub(super) fn vector_norm(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (mut x, axes, keep) = arguments(cx)?;
    let order = if cx.has("ord") { "ord" } else { "p" };
    let p = cx.float_or(order, 2.0)?;
    if let Some(dtype) = cx.dtype("dtype")? {
        // Halves are joined in f32, whichever of them is asked for.
        x = cx.cast(x, if dtype == DType::F64 { dtype } else { DType::F32 })?;
    }
    let dtype = to_float(cx.dtype_of(x));
    x = cx.cast(x, dtype)?;
    norm(cx, x, p, &axes, keep)
}

/// The norm of order `p` of a float over some axes.
pub(super) fn norm(cx: &mut Cx<'_, '_>, x: ValueId, p: f64, axes: &[usize], keep: bool) -> Res<ValueId> {
    if p == 2.0 {
        return euclidean(cx, x, axes, keep);
    }
    let size = cx.unary(UnaryFn::Abs, x)?;
    if p == 1.0 {
        cx.reduce(ReduceFn::Sum, size, axes, keep)
    } else if p == f64::INFINITY {
        cx.reduce(ReduceFn::Max, size, axes, keep)
    } else if p == f64::NEG_INFINITY {
        cx.reduce(ReduceFn::Min, size, axes, keep)
    } else if p == 0.0 {
        let there = cx.compare_with(CompareFn::Ne, size, 0.0)?;
        let there = cx.cast_like(there, size)?;
        cx.reduce(ReduceFn::Sum, there, axes, keep)
    } else {
        let powers = cx.with_literal(BinaryFn::Pow, size, p)?;
        let sum = cx.reduce(ReduceFn::Sum, powers, axes, keep)?;
        cx.with_literal(BinaryFn::Pow, sum, 1.0 / p)
    }
}

/// How many elements are not zero.
pub(super) fn count_nonzero(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, axes, keep) = arguments(cx)?;
    let there = cx.cast(x, DType::Bool)?;
    let ones = cx.cast(there, DType::I64)?;
    cx.reduce(ReduceFn::Sum, ones, &axes, keep)
}

/// `x` with 0 in place of NaN, and how many numbers there are.
fn numbers(cx: &mut Cx<'_, '_>, x: ValueId) -> Res<(ValueId, ValueId)> {
    let dtype = cx.dtype_of(x);
    let number = cx.compare(CompareFn::Eq, x, x)?;
    let zero = cx.float(0.0, dtype)?;
    Ok((cx.select(number, x, zero)?, cx.cast(number, dtype)?))
}

pub(super) fn nansum(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, axes, keep) = arguments(cx)?;
    let dtype = whole(cx, x)?;
    let x = cx.cast(x, dtype)?;
    let x = if cx.dtype_of(x).is_float() { numbers(cx, x)?.0 } else { x };
    cx.reduce(ReduceFn::Sum, x, &axes, keep)
}

pub(super) fn nanmean(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, axes, keep) = arguments(cx)?;
    let (x, ones) = numbers(cx, x)?;
    let sum = cx.reduce(ReduceFn::Sum, x, &axes, keep)?;
    let count = cx.reduce(ReduceFn::Sum, ones, &axes, keep)?;
    cx.binary(BinaryFn::Div, sum, count)
}

/// The sum over what broadcasting to the shape of `self` has repeated.
pub(super) fn sum_to_size(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let shape = cx.dims("size")?;
    let Some(new) = cx.rank(x).checked_sub(shape.len()) else { return wrong("a sum to more axes") };
    let from = cx.shape(x);
    let repeated =
        |i: &usize| *i < new || (shape.get(i - new).is_some_and(|d| d.is(1)) && !from.get(*i).is_some_and(|d| d.is(1)));
    let axes: Vec<usize> = (0..cx.rank(x)).filter(repeated).collect();
    // Where nothing is summed the tensor is given back as it is.
    if from == shape {
        let dtype = cx.result_dtype().unwrap_or(cx.dtype_of(x));
        return cx.cast(x, dtype);
    }
    let dtype = whole(cx, x)?;
    let x = cx.cast(x, dtype)?;
    let sum = cx.reduce(ReduceFn::Sum, x, &axes, false)?;
    cx.reshape(sum, shape)
}

fn cumulate(cx: &mut Cx<'_, '_>, f: CumulateFn, x: ValueId) -> Res<ValueId> {
    let axis = cx.axis_arg("dim", None, cx.rank(x))?;
    let row = cx.with_axis(x)?;
    let out = cx.emit(Cumulate { f, axis }, &[row])?;
    if cx.rank(x) == 0 { cx.squeeze(out, 0) } else { Ok(out) }
}

pub(super) fn cumprod(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let dtype = whole(cx, x)?;
    let x = cx.cast(x, dtype)?;
    cumulate(cx, CumulateFn::Prod, x)
}

pub(super) fn logcumsumexp(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    cumulate(cx, CumulateFn::LogSumExp, x)
}

/// Running extremes and their positions.
pub(super) fn running_extreme(cx: &mut Cx<'_, '_>, f: CumulateFn) -> Res<Vec<Option<ValueId>>> {
    let x = cx.tensor("self")?;
    let positions = cumulate(cx, f, x)?;
    if cx.rank(x) == 0 {
        return Ok(vec![Some(x), Some(positions)]);
    }
    let axis = cx.axis_arg("dim", None, cx.rank(x))?;
    Ok(vec![Some(cx.emit(Gather { axis }, &[x, positions])?), Some(positions)])
}

/// The area under a row of values by the trapezoidal rule, as a sum or as all sums on the way.
pub(super) fn trapezoid(cx: &mut Cx<'_, '_>, running: bool) -> Res<ValueId> {
    let y = cx.tensor("y")?;
    let rank = cx.rank(y);
    let axis = cx.axis_arg("dim", Some(-1), rank)?;
    let dtype = to_float(cx.dtype_of(y));
    let y = cx.cast(y, dtype)?;
    let neighbors = |cx: &mut Cx<'_, '_>, v: ValueId, axis: usize| {
        let Some(size) = cx.ty(v).shape.get(axis).cloned() else { return wrong("expected an axis") };
        let before = cx.slice(v, axis, Dim::new(0), &size - &Dim::new(1))?;
        Ok((before, cx.slice(v, axis, Dim::new(1), size)?))
    };
    if cx.ty(y).shape.get(axis).is_some_and(|d| d.is(0)) {
        return unsupported("an area under nothing", "give it values");
    }
    let (before, after) = neighbors(cx, y, axis)?;
    let sum = cx.binary(BinaryFn::Add, before, after)?;
    let area = if let Some(x) = cx.optional_tensor("x")? {
        let x = cx.cast(x, dtype)?;
        let alone = cx.rank(x) == 1;
        let (before, after) = neighbors(cx, x, if alone { 0 } else { axis })?;
        let width = cx.binary(BinaryFn::Sub, after, before)?;
        let width = if alone { cx.along(width, rank, axis)? } else { width };
        cx.binary(BinaryFn::Mul, sum, width)?
    } else {
        let dx = cx.float_or("dx", 1.0)?;
        cx.with_literal(BinaryFn::Mul, sum, dx)?
    };
    let area = cx.with_literal(BinaryFn::Mul, area, 0.5)?;
    if running { cx.emit(Cumsum { axis }, &[area]) } else { cx.reduce(ReduceFn::Sum, area, &[axis], false) }
}

pub(super) fn cumsum(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let axis = cx.axis_arg("dim", None, cx.rank(x))?;
    let dtype = whole(cx, x)?;
    let x = cx.cast(x, dtype)?;
    if cx.rank(x) == 0 { Ok(x) } else { cx.emit(Cumsum { axis }, &[x]) }
}
