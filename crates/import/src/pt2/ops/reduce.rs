//! Reductions.

use regraft_ir::ops::{
    ArgReduce, ArgReduceFn, BinaryFn, Compare, CompareFn, Cumsum, Reduce, ReduceFn, SizeOf, UnaryFn,
};
use regraft_tensor::{DType, Dim};

use super::elementwise::to_float;
use crate::pt2::args::{Cx, Res, ValueId, wrong};

fn reduce(cx: &mut Cx<'_, '_>, f: ReduceFn, x: ValueId, axes: &[usize], keep: bool) -> Res<ValueId> {
    // A number is its own sum, maximum and so on.
    if axes.is_empty() {
        return if matches!(f, ReduceFn::Any | ReduceFn::All) { cx.cast(x, DType::Bool) } else { Ok(x) };
    }
    cx.emit(Reduce { f, axes: axes.to_vec(), keep }, &[x])
}

/// Input, axes and `keepdim` of a reduction.
fn arguments(cx: &mut Cx<'_, '_>) -> Res<(ValueId, Vec<usize>, bool)> {
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
    let x = cx.cast(x, whole(cx, x)?)?;
    reduce(cx, ReduceFn::Sum, x, &axes, keep)
}

pub(super) fn prod(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, axes, keep) = arguments(cx)?;
    let x = cx.cast(x, whole(cx, x)?)?;
    reduce(cx, ReduceFn::Prod, x, &axes, keep)
}

pub(super) fn mean(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, axes, keep) = arguments(cx)?;
    let dtype = cx.dtype("dtype")?.unwrap_or_else(|| to_float(cx.dtype_of(x)));
    let x = cx.cast(x, dtype)?;
    reduce(cx, ReduceFn::Mean, x, &axes, keep)
}

pub(super) fn extreme(cx: &mut Cx<'_, '_>, f: ReduceFn) -> Res<ValueId> {
    let (x, axes, keep) = arguments(cx)?;
    reduce(cx, f, x, &axes, keep)
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
    Ok(vec![Some(reduce(cx, f, x, &axes, keep)?), Some(position(cx, f, x, axis, keep)?)])
}

pub(super) fn aminmax(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    let (x, axes, keep) = arguments(cx)?;
    Ok(vec![Some(reduce(cx, ReduceFn::Min, x, &axes, keep)?), Some(reduce(cx, ReduceFn::Max, x, &axes, keep)?)])
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
    let out = reduce(cx, f, x, &axes, keep)?;
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
    let count = axes.iter().filter_map(|a| shape.get(*a)).fold(Dim::new(1), |n, d| &n * d);
    let mean = reduce(cx, ReduceFn::Mean, x, &axes, true)?;
    let centred = cx.binary(BinaryFn::Sub, x, mean)?;
    let squares = cx.binary(BinaryFn::Mul, centred, centred)?;
    let var = if correction == 0.0 {
        reduce(cx, ReduceFn::Mean, squares, &axes, keep)?
    } else {
        let total = reduce(cx, ReduceFn::Sum, squares, &axes, keep)?;
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
    let mean = if keep { mean } else { reduce(cx, ReduceFn::Mean, x, &axes, false)? };
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
    let sum = reduce(cx, ReduceFn::Sum, squares, axes, keep)?;
    cx.unary(UnaryFn::Sqrt, sum)
}

/// `(Σ |x|^p)^(1/p)`.
pub(super) fn vector_norm(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (mut x, axes, keep) = arguments(cx)?;
    let order = if cx.has("ord") { "ord" } else { "p" };
    let p = cx.float_or(order, 2.0)?;
    if let Some(dtype) = cx.dtype("dtype")? {
        x = cx.cast(x, dtype)?;
    }
    let dtype = to_float(cx.dtype_of(x));
    x = cx.cast(x, dtype)?;
    if p == 2.0 {
        return euclidean(cx, x, &axes, keep);
    }
    let size = cx.unary(UnaryFn::Abs, x)?;
    if p == 1.0 {
        reduce(cx, ReduceFn::Sum, size, &axes, keep)
    } else if p == f64::INFINITY {
        reduce(cx, ReduceFn::Max, size, &axes, keep)
    } else if p == f64::NEG_INFINITY {
        reduce(cx, ReduceFn::Min, size, &axes, keep)
    } else if p == 0.0 {
        let zero = cx.float(0.0, dtype)?;
        let there = cx.emit(Compare { f: CompareFn::Ne }, &[size, zero])?;
        let there = cx.cast(there, dtype)?;
        reduce(cx, ReduceFn::Sum, there, &axes, keep)
    } else {
        let powers = cx.with_literal(BinaryFn::Pow, size, p)?;
        let sum = reduce(cx, ReduceFn::Sum, powers, &axes, keep)?;
        cx.with_literal(BinaryFn::Pow, sum, 1.0 / p)
    }
}

pub(super) fn cumsum(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let axis = cx.axis_arg("dim", None, cx.rank(x))?;
    let x = cx.cast(x, whole(cx, x)?)?;
    if cx.rank(x) == 0 { Ok(x) } else { cx.emit(Cumsum { axis }, &[x]) }
}
