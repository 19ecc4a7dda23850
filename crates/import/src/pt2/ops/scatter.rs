//! Writing elements at computed positions.

use regraft_ir::{
    Scalar,
    ops::{BinaryFn, CompareFn, Cumsum, PutFn, ReduceFn},
};
use regraft_tensor::{DType, Dim};

use crate::build::{coordinates, put};
use crate::pt2::args::{Cx, Number, Operand, Res, ValueId, unsupported, wrong};

/// The part of `src` that `index` has positions for.
fn cut_to(cx: &mut Cx<'_, '_>, src: ValueId, index: ValueId) -> Res<ValueId> {
    let mut out = src;
    for (axis, len) in cx.shape(index).into_iter().enumerate() {
        out = cx.slice(out, axis, Dim::new(0), len)?;
    }
    Ok(out)
}

/// What `scatter` and its kind write, in the dtype of `self`, and the axis and positions, numbers as vectors.
struct Written {
    x: ValueId,
    values: ValueId,
    axis: usize,
    index: ValueId,
    scalar: bool,
}

fn written(cx: &mut Cx<'_, '_>) -> Res<Written> {
    let (x, index) = (cx.tensor("self")?, cx.tensor("index")?);
    let axis = cx.axis_arg("dim", None, cx.rank(x))?;
    let source = cx.operand(if cx.has("src") { "src" } else { "value" })?;
    let dtype = cx.dtype_of(x);
    let scalar = cx.rank(x) == 0;
    let x = cx.with_axis(x)?;
    let index = cx.with_axis(index)?;
    let index = cx.cast(index, DType::I64)?;
    let values = match source {
        Operand::Tensor(v) if cx.rank(v) > 0 || scalar => {
            let v = cx.with_axis(v)?;
            let v = cx.cast(v, dtype)?;
            cut_to(cx, v, index)?
        }
        Operand::Tensor(v) => cx.cast(v, dtype)?,
        Operand::Number(n) => cx.number_value(&n, dtype)?,
    };
    if cx.rank(index) != cx.rank(x) {
        return wrong("expected an index with as many axes as the tensor");
    }
    Ok(Written { x, values, axis, index, scalar })
}

/// Whether there are no positions, of which the index may then have any shape.
fn nowhere(cx: &mut Cx<'_, '_>) -> Res<bool> {
    let index = cx.tensor("index")?;
    Ok(cx.ty(index).numel().is(0))
}

fn scattered(cx: &mut Cx<'_, '_>, f: PutFn) -> Res<ValueId> {
    if nowhere(cx)? {
        return cx.tensor("self");
    }
    let w = written(cx)?;
    let at = coordinates(cx, w.index, w.axis)?;
    let out = put(cx, f, w.x, w.values, 0, &at)?;
    if w.scalar { cx.squeeze(out, 0) } else { Ok(out) }
}

pub(super) fn scatter(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let f = match cx.optional_text("reduce")? {
        None => PutFn::Set,
        Some("add") => PutFn::Add,
        Some("multiply") => PutFn::Mul,
        Some(other) => return wrong(format!("`{other}` is not a way to scatter")),
    };
    scattered(cx, f)
}

pub(super) fn scatter_add(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    scattered(cx, PutFn::Add)
}

/// The function that joins, its neutral element for a dtype, and whether a mean is taken of the sums.
fn joining(reduce: &str, dtype: DType) -> Res<(PutFn, Scalar, bool)> {
    let bounds = match dtype {
        DType::Bool => (Scalar::Int(0), Scalar::Int(1)),
        d if d.is_float() => (Scalar::Float(f64::NEG_INFINITY), Scalar::Float(f64::INFINITY)),
        DType::U8 => (Scalar::Int(0), Scalar::Int(255)),
        DType::I8 => (Scalar::Int(i64::from(i8::MIN)), Scalar::Int(i64::from(i8::MAX))),
        DType::I16 => (Scalar::Int(i64::from(i16::MIN)), Scalar::Int(i64::from(i16::MAX))),
        DType::I32 => (Scalar::Int(i64::from(i32::MIN)), Scalar::Int(i64::from(i32::MAX))),
        _ => (Scalar::Int(i64::MIN), Scalar::Int(i64::MAX)),
    };
    Ok(match reduce {
        "sum" => (PutFn::Add, Scalar::Int(0), false),
        "prod" => (PutFn::Mul, Scalar::Int(1), false),
        "mean" => (PutFn::Add, Scalar::Int(0), true),
        "amax" => (PutFn::Max, bounds.0, false),
        "amin" => (PutFn::Min, bounds.1, false),
        other => return wrong(format!("`{other}` is not a reduction")),
    })
}

/// Values joined at positions: sums, products, extremes and means, with what is there or without it.
fn joined(cx: &mut Cx<'_, '_>, x: ValueId, values: ValueId, axis: usize, at: &[ValueId]) -> Res<ValueId> {
    let dtype = cx.dtype_of(x);
    let Some(reduce) = cx.optional_text("reduce")? else { return wrong("expected a reduction") };
    let (f, neutral, mean) = joining(reduce, dtype)?;
    let with_self = cx.bool_or("include_self", true)?;
    let start = if with_self {
        x
    } else {
        // What is there does not count where something is written.
        let neutral = cx.literal(neutral, dtype)?;
        put(cx, PutFn::Set, x, neutral, axis, at)?
    };
    let sum = put(cx, f, start, values, axis, at)?;
    if !mean {
        return Ok(sum);
    }
    let (one, zero) = (cx.literal(Scalar::Int(1), dtype)?, cx.literal(Scalar::Int(0), dtype)?);
    let shape = cx.shape(x);
    let count = cx.expand(if with_self { one } else { zero }, shape)?;
    let wide = {
        let shape = cx.shape(values);
        cx.expand(one, shape)?
    };
    let count = put(cx, PutFn::Add, count, wide, axis, at)?;
    let count = cx.binary(BinaryFn::Max, count, one)?;
    let f = if dtype.is_float() { BinaryFn::Div } else { BinaryFn::FloorDiv };
    cx.binary(f, sum, count)
}

pub(super) fn scatter_reduce(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    if nowhere(cx)? {
        return cx.tensor("self");
    }
    let w = written(cx)?;
    let at = coordinates(cx, w.index, w.axis)?;
    let out = joined(cx, w.x, w.values, 0, &at)?;
    if w.scalar { cx.squeeze(out, 0) } else { Ok(out) }
}

/// The value with the axes of a slice in front of and behind `axis`, for an index of one axis.
fn rows(cx: &mut Cx<'_, '_>, name: &str) -> Res<(ValueId, ValueId, usize, ValueId, bool)> {
    let x = cx.tensor("self")?;
    let axis = cx.axis_arg("dim", None, cx.rank(x))?;
    let (index, source) = (cx.tensor("index")?, cx.operand(name)?);
    let scalar = cx.rank(x) == 0;
    let dtype = cx.dtype_of(x);
    let x = cx.with_axis(x)?;
    let index = cx.with_axis(index)?;
    let index = cx.cast(index, DType::I64)?;
    let values = match source {
        Operand::Tensor(v) => {
            let v = cx.cast(v, dtype)?;
            // A number stands for a slice of one element.
            if cx.rank(v) == 0 && name != "value" { cx.unsqueeze(v, 0)? } else { v }
        }
        Operand::Number(n) => cx.number_value(&n, dtype)?,
    };
    Ok((x, values, axis, index, scalar))
}

pub(super) fn index_copy(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, values, axis, index, scalar) = rows(cx, "source")?;
    let out = put(cx, PutFn::Set, x, values, axis, &[index])?;
    if scalar { cx.squeeze(out, 0) } else { Ok(out) }
}

pub(super) fn index_add(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, mut values, axis, index, scalar) = rows(cx, "source")?;
    let alpha = cx.number_or("alpha", Number::Int(1))?;
    if !alpha.is(1.0) {
        let alpha = cx.number_like(&alpha, x)?;
        let f = if cx.dtype_of(x) == DType::Bool { BinaryFn::And } else { BinaryFn::Mul };
        values = cx.binary(f, values, alpha)?;
    }
    let out = put(cx, PutFn::Add, x, values, axis, &[index])?;
    if scalar { cx.squeeze(out, 0) } else { Ok(out) }
}

pub(super) fn index_fill(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, value, axis, index, scalar) = rows(cx, "value")?;
    let out = put(cx, PutFn::Set, x, value, axis, &[index])?;
    if scalar { cx.squeeze(out, 0) } else { Ok(out) }
}

pub(super) fn index_reduce(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, values, axis, index, scalar) = rows(cx, "source")?;
    let out = joined(cx, x, values, axis, &[index])?;
    if scalar { cx.squeeze(out, 0) } else { Ok(out) }
}

/// `x[i, j] = values` and `x[mask] = number`.
pub(super) fn index_put(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, values) = (cx.tensor("self")?, cx.tensor("values")?);
    let f = if cx.bool_or("accumulate", false)? { PutFn::Add } else { PutFn::Set };
    let indices = cx.optional_tensors("indices")?;
    let count = cx.count_of("values")?;
    put_indexed(cx, f, x, values, indices, count)
}

/// `x[indices] += values` where a mask is true; indices outside are taken for the nearest inside.
pub(super) fn masked_put(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, mask, values) = (cx.tensor("self")?, cx.tensor("mask")?, cx.tensor("values")?);
    let indices = cx.optional_tensors("indices")?;
    let indices = super::index::clamped(cx, x, indices, true)?;
    let mask = cx.cast(mask, DType::Bool)?;
    let zero = cx.literal_like(Scalar::Int(0), values)?;
    let values = cx.select(mask, values, zero)?;
    put_indexed(cx, PutFn::Add, x, values, indices, None)
}

/// `x` with its elements under a view by any strides taken from another tensor.
pub(super) fn strided_scatter(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, source) = (cx.tensor("self")?, cx.tensor("src")?);
    let shape = cx.shape(x);
    let at = super::forms::strided_places(cx)?;
    let source = cx.cast_like(source, x)?;
    let flat = cx.flat(x)?;
    let out = put(cx, PutFn::Set, flat, source, 0, &[at])?;
    cx.reshape(out, shape)
}

fn put_indexed(
    cx: &mut Cx<'_, '_>,
    f: PutFn,
    x: ValueId,
    values: ValueId,
    indices: Vec<Option<ValueId>>,
    count: Option<ValueId>,
) -> Res<ValueId> {
    let axes: Vec<usize> = (0..indices.len()).filter(|&i| indices.get(i).is_some_and(Option::is_some)).collect();
    let given: Vec<ValueId> = indices.into_iter().flatten().collect();
    let values = cx.cast_like(values, x)?;
    if let [mask] = given.as_slice()
        && matches!(cx.dtype_of(*mask), DType::Bool | DType::U8)
    {
        return put_where(cx, x, *mask, values, axes.first().copied().unwrap_or(0), f, count);
    }
    let mut at = Vec::new();
    for v in given {
        if matches!(cx.dtype_of(v), DType::Bool | DType::U8) {
            return unsupported(
                "writing by a condition together with other indices",
                "use where() with a condition for all axes",
            );
        }
        at.push(cx.cast(v, DType::I64)?);
    }
    let (Some(&first), Some(&last)) = (axes.first(), axes.last()) else { return wrong("expected indices") };
    if last >= cx.rank(x) {
        return wrong("more indices than axes");
    }
    if last - first + 1 == axes.len() {
        return put(cx, f, x, values, first, &at);
    }
    // Indices that are apart move to the front, and so does what is written.
    let mut perm = axes.clone();
    perm.extend((0..cx.rank(x)).filter(|i| !axes.contains(i)));
    let moved = cx.permute(x, perm.clone())?;
    let out = put(cx, f, moved, values, 0, &at)?;
    let mut back = vec![0; perm.len()];
    for (i, axis) in perm.into_iter().enumerate() {
        if let Some(slot) = back.get_mut(axis) {
            *slot = i;
        }
    }
    cx.permute(out, back)
}

/// `x[mask] = values`: one value for all elements, one for each, or of a row of values each element its own, in order.
/// `count`: how many rows there are, where that is counted.
fn put_where(
    cx: &mut Cx<'_, '_>,
    x: ValueId,
    mask: ValueId,
    values: ValueId,
    axis: usize,
    f: PutFn,
    count: Option<ValueId>,
) -> Res<ValueId> {
    let mask = cx.cast(mask, DType::Bool)?;
    let Some(behind) = cx.rank(x).checked_sub(axis + cx.rank(mask)) else { return wrong("a mask of more axes than x") };
    let mut shape = vec![Dim::new(1); axis];
    shape.extend(cx.shape(mask));
    shape.extend(vec![Dim::new(1); behind]);
    let of_x = cx.reshape(mask, shape)?;
    let given = cx.shape(values);
    // The axis of rows in values; where it is not there, or of size 1, they are the same for all.
    let row = cx.rank(values).checked_sub(behind + 1);
    let value = match row.and_then(|row| given.get(row)) {
        _ if cx.ty(values).numel().is(1) => cx.reshape(values, vec![])?,
        None => values,
        Some(rows) if axis == 0 && row == Some(0) => chosen_rows(cx, x, mask, values, rows, count)?,
        Some(_) => {
            return unsupported(
                "writing several values by a condition on other axes than the first ones",
                "move these axes to the front, or use where()",
            );
        }
    };
    let value = match f {
        PutFn::Set => value,
        _ if cx.dtype_of(x) == DType::Bool => cx.binary(BinaryFn::Or, x, value)?,
        _ => cx.binary(BinaryFn::Add, x, value)?,
    };
    cx.select(of_x, value, x)
}

/// In the shape of `x`, for each true element of a mask over its first axes the next row of values; anything for the others.
fn chosen_rows(
    cx: &mut Cx<'_, '_>,
    x: ValueId,
    mask: ValueId,
    values: ValueId,
    rows: &Dim,
    count: Option<ValueId>,
) -> Res<ValueId> {
    let (shape, masked) = (cx.shape(x), cx.rank(mask));
    let (front, behind) = shape.split_at(masked.min(shape.len()));
    if rows.is(0) {
        return Ok(x);
    }
    if count.is_none() && rows.is(1) {
        let row = cx.expand(values, [&[Dim::new(1)], behind].concat())?;
        return cx.reshape(row, [&vec![Dim::new(1); masked][..], behind].concat());
    }
    let flat = cx.flat(mask)?;
    let ones = cx.cast(flat, DType::I64)?;
    let upto = cx.emit(Cumsum { axis: 0 }, &[ones])?;
    let which = cx.binary(BinaryFn::Sub, upto, ones)?;
    let unused = cx.literal(Scalar::Int(0), DType::I64)?;
    let which = cx.select(flat, which, unused)?;
    // Another number of rows than of true elements is an error, as in PyTorch: there is no row behind the last.
    let found = cx.reduce(ReduceFn::Sum, ones, &[0], false)?;
    let end = cx.dim_value(rows, DType::I64)?;
    let there = count.unwrap_or(end);
    let fits = cx.compare(CompareFn::Eq, found, there)?;
    let which = cx.select(fits, which, end)?;
    let values = cx.expand(values, [std::slice::from_ref(rows), behind].concat())?;
    let new = cx.take(values, 0, which)?;
    cx.reshape(new, [front, behind].concat())
}

/// `x[index] = values` over the elements in row-major order.
pub(super) fn put_flat(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, index, source) = (cx.tensor("self")?, cx.tensor("index")?, cx.tensor("source")?);
    let f = if cx.bool_or("accumulate", false)? { PutFn::Add } else { PutFn::Set };
    let shape = cx.shape(x);
    let source = cx.cast_like(source, x)?;
    let (x, index, source) = (cx.flat(x)?, cx.flat(index)?, cx.flat(source)?);
    let index = cx.cast(index, DType::I64)?;
    let out = put(cx, f, x, source, 0, &[index])?;
    cx.reshape(out, shape)
}

/// The elements at positions of the row-major order.
pub(super) fn take(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, index) = (cx.tensor("self")?, cx.tensor("index")?);
    let x = cx.flat(x)?;
    let index = cx.cast(index, DType::I64)?;
    cx.take(x, 0, index)
}

/// `x` with the elements under the mask taken from `source` in order.
pub(super) fn masked_scatter(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, mask, source) = (cx.tensor("self")?, cx.tensor("mask")?, cx.tensor("source")?);
    let shapes = [cx.ty(x).clone(), cx.ty(mask).clone()];
    let shape =
        regraft_ir::ops::broadcast_types(shapes.iter()).map_err(|e| crate::pt2::args::Problem::Wrong(e.to_string()))?;
    let mask = cx.cast(mask, DType::Bool)?;
    let (x, mask) = (cx.expand(x, shape.clone())?, cx.expand(mask, shape.clone())?);
    let source = cx.flat(source)?;
    let Some(count) = cx.ty(source).shape.first().cloned() else { return wrong("expected a source") };
    if count.is(0) {
        return Ok(x);
    }
    // How many are true up to an element says which one of the source it takes; others take any.
    let flat = cx.flat(mask)?;
    let ones = cx.cast(flat, DType::I64)?;
    let upto = cx.emit(Cumsum { axis: 0 }, &[ones])?;
    let which = cx.binary(BinaryFn::Sub, upto, ones)?;
    // A source that is too short is an error where it is read, as in PyTorch.
    let unused = cx.literal(Scalar::Int(0), DType::I64)?;
    let which = cx.select(flat, which, unused)?;
    let new = cx.take(source, 0, which)?;
    let new = cx.reshape(new, shape)?;
    cx.select(mask, new, x)
}

/// `x` with a range of an axis, by a step, replaced.
pub(super) fn put_range(
    cx: &mut Cx<'_, '_>,
    x: ValueId,
    src: ValueId,
    axis: usize,
    start: &Dim,
    step: i64,
) -> Res<ValueId> {
    let Some(len) = cx.ty(src).shape.get(axis).cloned() else { return wrong("expected a tensor with axes") };
    let Some(start) = start.as_const() else {
        return unsupported("a write with a step from a dynamic position", "export this dimension as a static one");
    };
    let at = cx.iota(len, start, step)?;
    let src = cx.cast_like(src, x)?;
    put(cx, PutFn::Set, x, src, axis, &[at])
}

/// `x` with the diagonal replaced.
pub(super) fn diagonal_scatter(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, src) = (cx.tensor("self")?, cx.tensor("src")?);
    let (perm, offset) = super::diagonal::axes_of(cx, x)?;
    let moved = cx.permute(x, perm.clone())?;
    let (rows, columns) = super::diagonal::positions(cx, moved, offset)?;
    let rank = cx.rank(src);
    let mut front: Vec<usize> = (0..rank).collect();
    front.rotate_right(1);
    let src = cx.permute(src, front)?;
    let src = cx.cast_like(src, x)?;
    let out = put(cx, PutFn::Set, moved, src, 0, &[rows, columns])?;
    let mut back = vec![0; perm.len()];
    for (i, axis) in perm.into_iter().enumerate() {
        if let Some(slot) = back.get_mut(axis) {
            *slot = i;
        }
    }
    cx.permute(out, back)
}

/// Whether `x` is among the elements of another tensor.
pub(super) fn isin(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, list) = (cx.operand("elements")?, cx.operand("test_elements")?);
    let dtype = super::elementwise::result_type(cx, &[&x, &list])?;
    let (x, list) = (super::elementwise::value(cx, &x, dtype)?, super::elementwise::value(cx, &list, dtype)?);
    let list = cx.flat(list)?;
    let rank = cx.rank(x);
    let column = cx.unsqueeze(x, rank)?;
    let same = cx.compare(CompareFn::Eq, column, list)?;
    let found = cx.reduce(ReduceFn::Any, same, &[rank], false)?;
    if cx.bool_or("invert", false)? { cx.unary(regraft_ir::ops::UnaryFn::Not, found) } else { Ok(found) }
}

/// The positions of the elements that are not zero, `size` of them: the first ones, or `fill` behind the last.
pub(super) fn nonzero_static(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let (size, fill) = (cx.int("size")?, cx.int_or("fill_value", -1)?);
    if !(0..=1 << 30).contains(&size) {
        return wrong(format!("{size} positions"));
    }
    let (shape, count) = (cx.shape(x), cx.ty(x).numel());
    let mask = cx.cast(x, DType::Bool)?;
    let mask = cx.flat(mask)?;
    let ones = cx.cast(mask, DType::I64)?;
    let upto = cx.emit(Cumsum { axis: 0 }, &[ones])?;
    let place = cx.binary(BinaryFn::Sub, upto, ones)?;
    // What has no place of its own goes to one behind the last, which is cut off.
    let end = cx.literal(Scalar::Int(size), DType::I64)?;
    let place = cx.select(mask, place, end)?;
    let place = cx.binary(BinaryFn::Min, place, end)?;
    let mut at = cx.iota(count, 0, 1)?;
    let mut columns = Vec::new();
    for dim in shape.iter().rev() {
        let n = cx.dim_value(dim, DType::I64)?;
        columns.push(cx.binary(BinaryFn::Rem, at, n)?);
        at = cx.binary(BinaryFn::FloorDiv, at, n)?;
    }
    columns.reverse();
    let fill = cx.literal(Scalar::Int(fill), DType::I64)?;
    let empty = cx.expand(fill, vec![Dim::new(size + 1)])?;
    let mut out = Vec::new();
    for column in columns {
        let row = put(cx, PutFn::Set, empty, column, 0, &[place])?;
        let row = cx.slice(row, 0, Dim::new(0), Dim::new(size))?;
        out.push(cx.unsqueeze(row, 1)?);
    }
    if out.is_empty() {
        return cx.expand(fill, vec![Dim::new(size), Dim::new(0)]);
    }
    cx.concat(&out, 1)
}
