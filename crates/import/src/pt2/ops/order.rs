//! Sorting, and what follows from an order.

use regraft_ir::{
    Scalar,
    ops::{ArgReduce, ArgReduceFn, BinaryFn, CompareFn, Gather, IndexPut, PutFn, ReduceFn, UnaryFn},
};
use regraft_tensor::{DType, Dim};

use crate::build::{first_sorted, sorted};
use crate::pt2::args::{Cx, Res, ValueId, unsupported, wrong};

pub(super) fn sort(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    let x = cx.tensor("self")?;
    let axis = cx.axis_arg("dim", Some(-1), cx.rank(x))?;
    let descending = cx.bool_or("descending", false)?;
    let (values, positions) = sorted(cx, x, axis, descending)?;
    Ok(vec![Some(values), Some(positions)])
}

pub(super) fn argsort(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    sort(cx)?.pop().flatten().map_or_else(|| wrong("expected positions"), Ok)
}

pub(super) fn msort(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    Ok(sorted(cx, x, 0, false)?.0)
}

pub(super) fn topk(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    let x = cx.tensor("self")?;
    let axis = cx.axis_arg("dim", Some(-1), cx.rank(x))?;
    let k = cx.dim("k")?;
    let descending = cx.bool_or("largest", true)?;
    if let Some(keep) = k.as_usize().filter(|_| cx.rank(x) > 0) {
        let (values, positions) = first_sorted(cx, x, axis, descending, Some(keep))?;
        return Ok(vec![Some(values), Some(positions)]);
    }
    let (values, positions) = sorted(cx, x, axis, descending)?;
    if cx.rank(x) == 0 {
        return Ok(vec![Some(values), Some(positions)]);
    }
    let cut = |cx: &mut Cx<'_, '_>, v| cx.slice(v, axis, Dim::new(0), k.clone());
    Ok(vec![Some(cut(cx, values)?), Some(cut(cx, positions)?)])
}

/// Element `k` of the order along an axis, and its position.
fn chosen(cx: &mut Cx<'_, '_>, x: ValueId, axis: usize, keep: bool, k: &Dim) -> Res<(ValueId, ValueId)> {
    let (values, positions) = sorted(cx, x, axis, false)?;
    if cx.rank(x) == 0 {
        return Ok((values, positions));
    }
    let end = k + &Dim::new(1);
    let pick = |cx: &mut Cx<'_, '_>, v| {
        let one = cx.slice(v, axis, k.clone(), end.clone())?;
        if keep { Ok(one) } else { cx.squeeze(one, axis) }
    };
    Ok((pick(cx, values)?, pick(cx, positions)?))
}

pub(super) fn kthvalue(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    let x = cx.tensor("self")?;
    let axis = cx.axis_arg("dim", Some(-1), cx.rank(x))?;
    let (k, keep) = (&cx.dim("k")? - &Dim::new(1), cx.bool_or("keepdim", false)?);
    let (value, position) = chosen(cx, x, axis, keep, &k)?;
    Ok(vec![Some(value), Some(position)])
}

/// The median along an axis, the lower of two; NaN, if there is one, unless `ignore` says to leave it out.
fn median_of(cx: &mut Cx<'_, '_>, x: ValueId, axis: usize, keep: bool, ignore: bool) -> Res<(ValueId, ValueId)> {
    let row = cx.with_axis(x)?;
    let dtype = cx.dtype_of(row);
    let (values, positions) = sorted(cx, row, axis, false)?;
    let Some(size) = cx.ty(row).shape.get(axis).cloned() else { return wrong("expected an axis") };
    let all = cx.dim_value(&size, DType::I64)?;
    let one = cx.literal(Scalar::Int(1), DType::I64)?;
    let (two, zero) = (cx.literal(Scalar::Int(2), DType::I64)?, cx.literal(Scalar::Int(0), DType::I64)?);
    let mut shape = cx.shape(row);
    if let Some(slot) = shape.get_mut(axis) {
        *slot = Dim::new(1);
    }
    let at = if dtype.is_float() {
        let nan = cx.is_nan(row)?;
        let nan = cx.cast(nan, DType::I64)?;
        let nans = cx.reduce(ReduceFn::Sum, nan, &[axis], true)?;
        let numbers = cx.binary(BinaryFn::Sub, all, nans)?;
        let before = cx.binary(BinaryFn::Sub, numbers, one)?;
        let middle = cx.binary(BinaryFn::TruncDiv, before, two)?;
        if ignore {
            cx.binary(BinaryFn::Max, middle, zero)?
        } else {
            // NaN stands behind all numbers: the first of them.
            let some = cx.compare(CompareFn::Gt, nans, zero)?;
            cx.select(some, numbers, middle)?
        }
    } else {
        let before = cx.binary(BinaryFn::Sub, all, one)?;
        let middle = cx.binary(BinaryFn::TruncDiv, before, two)?;
        cx.expand(middle, shape)?
    };
    let pick = |cx: &mut Cx<'_, '_>, v| {
        let one = cx.emit(Gather { axis }, &[v, at])?;
        if keep { Ok(one) } else { cx.squeeze(one, axis) }
    };
    let (value, position) = (pick(cx, values)?, pick(cx, positions)?);
    if keep && cx.rank(x) == 0 { Ok((cx.squeeze(value, 0)?, cx.squeeze(position, 0)?)) } else { Ok((value, position)) }
}

pub(super) fn median(cx: &mut Cx<'_, '_>, ignore: bool) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let flat = cx.flat(x)?;
    if cx.ty(flat).numel().is(0) {
        return unsupported("the median of nothing", "give it elements");
    }
    Ok(median_of(cx, flat, 0, false, ignore)?.0)
}

pub(super) fn median_dim(cx: &mut Cx<'_, '_>, ignore: bool) -> Res<Vec<Option<ValueId>>> {
    let x = cx.tensor("self")?;
    let axis = cx.axis_arg("dim", None, cx.rank(x))?;
    let keep = cx.bool_or("keepdim", false)?;
    let (value, position) = median_of(cx, x, axis, keep, ignore)?;
    Ok(vec![Some(value), Some(position)])
}

/// Where each value would be inserted into a sorted row: how many of the row are less, or not greater.
fn insertion(cx: &mut Cx<'_, '_>, row: ValueId, values: ValueId, right: bool) -> Res<ValueId> {
    let Some(last) = cx.rank(row).checked_sub(1) else { return wrong("expected a sorted row") };
    let rank = cx.rank(values);
    let dtype = super::elementwise::promote(cx.dtype_of(row), cx.dtype_of(values));
    let (row, values) = (cx.cast(row, dtype)?, cx.cast(values, dtype)?);
    let column = cx.unsqueeze(values, rank)?;
    let row = if last == 0 {
        row
    } else {
        let before = cx.rank(row).saturating_sub(1);
        cx.unsqueeze(row, before)?
    };
    let f = if right { CompareFn::Le } else { CompareFn::Lt };
    let mut less = cx.compare(f, row, column)?;
    if dtype.is_float() {
        // NaN is above all numbers.
        let high = cx.is_nan(column)?;
        let above = cx.is_nan(row)?;
        let over = if right {
            high
        } else {
            let number = cx.unary(UnaryFn::Not, above)?;
            cx.binary(BinaryFn::And, high, number)?
        };
        less = cx.binary(BinaryFn::Or, less, over)?;
    }
    let less = cx.cast(less, DType::I64)?;
    cx.reduce(ReduceFn::Sum, less, &[rank], false)
}

fn insertion_arguments(cx: &mut Cx<'_, '_>, row: ValueId, values: ValueId) -> Res<ValueId> {
    let mut right = cx.bool_or("right", false)?;
    match cx.optional_text("side")? {
        None => {}
        Some("right") => right = true,
        Some("left") if !right => {}
        Some(other) => return wrong(format!("`{other}` is not a side, or another than the one given")),
    }
    let out = insertion(cx, row, values, right)?;
    let dtype = if cx.bool_or("out_int32", false)? { DType::I32 } else { DType::I64 };
    cx.cast(out, dtype)
}

pub(super) fn searchsorted(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let mut row = cx.tensor("sorted_sequence")?;
    let values = cx.operand("self")?;
    let values = super::elementwise::value_of(cx, &values)?;
    if let Some(sorter) = cx.optional_tensor("sorter")? {
        let axis = cx.rank(row).saturating_sub(1);
        row = cx.emit(Gather { axis }, &[row, sorter])?;
    }
    insertion_arguments(cx, row, values)
}

pub(super) fn bucketize(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let row = cx.tensor("boundaries")?;
    let values = cx.operand("self")?;
    let values = super::elementwise::value_of(cx, &values)?;
    insertion_arguments(cx, row, values)
}

/// Counts of values in equal bins: between the bounds, or between the least and the greatest value where these are equal.
pub(super) fn histc(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let dtype = cx.dtype_of(x);
    let bins = cx.int_or("bins", 100)?;
    let (min, max) = (cx.float_or("min", 0.0)?, cx.float_or("max", 0.0)?);
    if !(1..=1 << 20).contains(&bins) || min > max {
        return wrong(format!("{bins} bins from {min} to {max}"));
    }
    let x = cx.flat(x)?;
    let wide = cx.cast(x, DType::F64)?;
    let (low, high) = if min < max || cx.ty(x).numel().is(0) {
        (cx.float(min, DType::F64)?, cx.float(if min < max { max } else { min + 1.0 }, DType::F64)?)
    } else {
        let (low, high) = (cx.reduce(ReduceFn::Min, wide, &[0], false)?, cx.reduce(ReduceFn::Max, wide, &[0], false)?);
        // One value alone stands in the middle.
        let same = cx.compare(CompareFn::Eq, low, high)?;
        let same = cx.cast(same, DType::F64)?;
        (cx.binary(BinaryFn::Sub, low, same)?, cx.binary(BinaryFn::Add, high, same)?)
    };
    let moved = cx.binary(BinaryFn::Sub, wide, low)?;
    let scaled = cx.with_literal(BinaryFn::Mul, moved, bins as f64)?;
    let span = cx.binary(BinaryFn::Sub, high, low)?;
    let place = cx.binary(BinaryFn::Div, scaled, span)?;
    let place = cx.unary(UnaryFn::Floor, place)?;
    // The last bin has both of its ends.
    let place = cx.with_literal(BinaryFn::Min, place, (bins - 1) as f64)?;
    let above = cx.compare(CompareFn::Ge, wide, low)?;
    let below = cx.compare(CompareFn::Le, wide, high)?;
    let inside = cx.binary(BinaryFn::And, above, below)?;
    let zero = cx.float(0.0, DType::F64)?;
    let place = cx.select(inside, place, zero)?;
    let place = cx.cast(place, DType::I64)?;
    let counted = cx.cast(inside, DType::I64)?;
    let none = cx.literal(Scalar::Int(0), DType::I64)?;
    let none = cx.expand(none, vec![Dim::new(bins)])?;
    let counts = cx.emit(IndexPut { axis: 0, f: PutFn::Add }, &[none, counted, place])?;
    cx.cast(counts, dtype)
}

/// The most frequent element along an axis, the least of several, and where one of them stands.
pub(super) fn mode(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    const MOST: usize = 4096;
    let x = cx.tensor("self")?;
    let axis = cx.axis_arg("dim", Some(-1), cx.rank(x))?;
    let keep = cx.bool_or("keepdim", false)?;
    let (values, places) = sorted(cx, x, axis, false)?;
    if cx.rank(x) == 0 {
        return Ok(vec![Some(values), Some(places)]);
    }
    let size = cx.size(x, axis)?;
    if size > MOST {
        return unsupported(format!("mode() of {size} elements"), format!("use at most {MOST}"));
    }
    let (column, row) = (cx.unsqueeze(values, axis + 1)?, cx.unsqueeze(values, axis)?);
    let same = cx.compare(CompareFn::Eq, column, row)?;
    let same = cx.cast(same, DType::I64)?;
    let counts = cx.reduce(ReduceFn::Sum, same, &[axis + 1], false)?;
    let which = cx.emit(ArgReduce { f: ArgReduceFn::Max, axis, keep: true }, &[counts])?;
    let mut out = Vec::new();
    for v in [values, places] {
        let one = cx.emit(Gather { axis }, &[v, which])?;
        out.push(Some(if keep { one } else { cx.squeeze(one, axis)? }));
    }
    Ok(out)
}

pub(super) fn quantile(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    quantiles(cx, false)
}

/// Of the numbers alone, which stand in front of all NaN.
pub(super) fn nanquantile(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    quantiles(cx, true)
}

/// The positions of quantiles among the numbers of each row, in the shape that rows and quantiles have together.
fn places_of_numbers(cx: &mut Cx<'_, '_>, row: ValueId, q: ValueId) -> Res<ValueId> {
    let last = cx.rank(row).saturating_sub(1);
    let number = cx.compare(CompareFn::Eq, row, row)?;
    let number = cx.cast_like(number, q)?;
    let count = cx.reduce(ReduceFn::Sum, number, &[last], true)?;
    let end = cx.with_literal(BinaryFn::Sub, count, 1.0)?;
    let end = cx.with_literal(BinaryFn::Max, end, 0.0)?;
    cx.binary(BinaryFn::Mul, end, q)
}

/// Quantiles by interpolation between neighbors of the order.
fn quantiles(cx: &mut Cx<'_, '_>, ignore: bool) -> Res<ValueId> {
    let mut x = cx.tensor("self")?;
    let q = cx.operand("q")?;
    let q = super::elementwise::value(cx, &q, cx.dtype_of(x))?;
    let keep = cx.bool_or("keepdim", false)?;
    let rank = cx.rank(x);
    let axis = match cx.optional_int("dim")? {
        Some(dim) => cx.axis(dim, rank)?,
        None => {
            x = cx.flat(x)?;
            0
        }
    };
    let flattened = !cx.has("dim");
    let row = cx.with_axis(x)?;
    let last = cx.rank(row).saturating_sub(1);
    let mut perm: Vec<usize> = (0..=last).filter(|i| *i != axis).collect();
    perm.push(axis);
    let row = cx.permute(row, perm)?;
    let Some(size) = cx.ty(row).shape.last().cloned() else { return wrong("expected an axis") };
    let (values, _) = sorted(cx, row, last, false)?;
    let end = cx.dim_like(&(&size - &Dim::new(1)), x)?;
    let place = if ignore { places_of_numbers(cx, row, q)? } else { cx.binary(BinaryFn::Mul, q, end)? };
    let (low, high) = (cx.unary(UnaryFn::Floor, place)?, cx.unary(UnaryFn::Ceil, place)?);
    let weight = match cx.optional_text("interpolation")?.unwrap_or("linear") {
        "linear" => cx.binary(BinaryFn::Sub, place, low)?,
        "lower" => cx.with_literal(BinaryFn::Mul, low, 0.0)?,
        "higher" => cx.binary(BinaryFn::Sub, high, low)?,
        "midpoint" => {
            let apart = cx.binary(BinaryFn::Sub, high, low)?;
            cx.with_literal(BinaryFn::Mul, apart, 0.5)?
        }
        "nearest" => {
            let near = cx.unary(UnaryFn::Round, place)?;
            cx.binary(BinaryFn::Sub, near, low)?
        }
        other => return wrong(format!("`{other}` is not an interpolation")),
    };
    let (low, high) = (cx.cast(low, DType::I64)?, cx.cast(high, DType::I64)?);
    let (a, b) = if ignore {
        let neighbor = |cx: &mut Cx<'_, '_>, at| cx.emit(Gather { axis: last }, &[values, at]);
        (neighbor(cx, low)?, neighbor(cx, high)?)
    } else {
        (cx.take(values, last, low)?, cx.take(values, last, high)?)
    };
    let span = cx.binary(BinaryFn::Sub, b, a)?;
    let part = cx.binary(BinaryFn::Mul, span, weight)?;
    let mut out = cx.binary(BinaryFn::Add, a, part)?;
    if ignore {
        // Rows with quantiles as their last axis, of which one alone goes.
        out = if cx.rank(q) == 1 { out } else { cx.squeeze(out, last)? };
    } else {
        // A row with NaN gives NaN.
        let nan = cx.is_nan(row)?;
        let some = cx.reduce(ReduceFn::Any, nan, &[last], false)?;
        let none = cx.float_like(f64::NAN, x)?;
        let some = if cx.rank(q) == 1 { cx.unsqueeze(some, last)? } else { some };
        out = cx.select(some, none, out)?;
    }
    // Quantiles are the first axis, the others stand in order.
    let mut shape_rank = last;
    if cx.rank(q) == 1 {
        let mut perm: Vec<usize> = (0..=last).collect();
        perm.rotate_right(1);
        out = cx.permute(out, perm)?;
        shape_rank += 1;
    }
    if keep {
        let at = usize::from(cx.rank(q) == 1);
        if flattened {
            for _ in 0..rank {
                out = cx.unsqueeze(out, at)?;
            }
        } else if rank > 0 {
            out = cx.unsqueeze(out, (axis + at).min(shape_rank))?;
        }
    }
    Ok(out)
}
