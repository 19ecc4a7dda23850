//! Reading and writing at computed positions.

use regraft_ir::{
    Scalar,
    ops::{BinaryFn, CompareFn, Embedding, Gather, Index, PutFn},
};
use regraft_tensor::{DType, Dim};

use crate::{
    build::{coordinates, put},
    onnx::args::{Cx, Res, ValueId, unsupported, wrong},
};

/// Positions as `i64`, with those from the end counted from the front.
fn from_the_front(cx: &mut Cx<'_, '_>, index: ValueId, size: &Dim) -> Res<ValueId> {
    let index = cx.cast(index, DType::I64)?;
    let zero = cx.literal(Scalar::Int(0), DType::I64)?;
    let negative = cx.compare(CompareFn::Lt, index, zero)?;
    let size = cx.dim_value(size, DType::I64)?;
    let moved = cx.binary(BinaryFn::Add, index, size)?;
    cx.select(negative, moved, index)
}

pub(super) fn gather(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, index) = (cx.input(0)?, cx.plain(1)?);
    let axis = cx.axis_attr("axis", 0, cx.rank(x))?;
    let size = cx.ty(x).shape.get(axis).cloned().unwrap_or(Dim::new(1));
    // One known position is a part of the tensor.
    if cx.rank(index) == 0
        && let Some(at) = cx.known(index).and_then(|k| k.dims()).and_then(|d| d.first().cloned())
    {
        let at = cx.clamp_index(&at, &size);
        if matches!((at.as_const(), size.as_const()), (Some(at), Some(size)) if at >= size) {
            return wrong(format!("position {at} of an axis of {size}"));
        }
        let end = &at + &Dim::new(1);
        let row = cx.slice(x, axis, at, end)?;
        return cx.squeeze(row, axis);
    }
    let index = cx.cast(index, DType::I64)?;
    if axis == 0 && cx.rank(x) == 2 && cx.is_constant(x) && !cx.is_constant(index) && cx.dtype_of(x).is_float() {
        return cx.emit(Embedding {}, &[x, index]);
    }
    cx.take(x, axis, index)
}

pub(super) fn gather_elements(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, index) = (cx.input(0)?, cx.plain(1)?);
    let axis = cx.axis_attr("axis", 0, cx.rank(x))?;
    let size = cx.ty(x).shape.get(axis).cloned().unwrap_or(Dim::new(1));
    let index = from_the_front(cx, index, &size)?;
    cx.emit(Gather { axis }, &[x, index])
}

/// The coordinates in the last axis of `index`, one tensor for each.
fn columns(cx: &mut Cx<'_, '_>, index: ValueId) -> Res<Vec<ValueId>> {
    let Some(last) = cx.rank(index).checked_sub(1) else { return wrong("expected positions with axes") };
    let count = cx.size(index, last)?;
    let index = cx.cast(index, DType::I64)?;
    let mut list = Vec::with_capacity(count);
    for i in 0..count {
        let column = cx.slice(index, last, Dim::from(i), Dim::from(i + 1))?;
        list.push(cx.squeeze(column, last)?);
    }
    Ok(list)
}

pub(super) fn gather_nd(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, index) = (cx.input(0)?, cx.plain(1)?);
    let batch = cx.natural("batch_dims", 0)?;
    let mut operands = vec![x];
    let rank = cx.rank(index).saturating_sub(1);
    if batch > rank || batch > cx.rank(x) {
        return wrong(format!("{batch} batch axes"));
    }
    // A batch axis is indexed by its own position.
    for axis in 0..batch {
        let len = cx.ty(x).shape.get(axis).cloned().unwrap_or(Dim::new(1));
        operands.push(cx.position(rank, axis, len)?);
    }
    operands.extend(columns(cx, index)?);
    cx.emit(Index { axis: 0 }, &operands)
}

fn reduction(cx: &Cx<'_, '_>) -> Res<PutFn> {
    Ok(match cx.text("reduction", "none")? {
        "none" => PutFn::Set,
        "add" => PutFn::Add,
        "mul" => PutFn::Mul,
        "max" => PutFn::Max,
        "min" => PutFn::Min,
        other => return wrong(format!("`{other}` is not a reduction")),
    })
}

pub(super) fn scatter_elements(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, index, updates) = (cx.input(0)?, cx.plain(1)?, cx.input(2)?);
    let axis = cx.axis_attr("axis", 0, cx.rank(x))?;
    let f = reduction(cx)?;
    let index = cx.cast(index, DType::I64)?;
    let at = coordinates(cx, index, axis)?;
    put(cx, f, x, updates, 0, &at)
}

pub(super) fn scatter_nd(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, index, updates) = (cx.input(0)?, cx.plain(1)?, cx.input(2)?);
    let f = reduction(cx)?;
    let at = columns(cx, index)?;
    if at.is_empty() {
        return unsupported("positions without coordinates", "give at least one");
    }
    put(cx, f, x, updates, 0, &at)
}

/// `values[1]` at positions along a new axis, `values[0]` elsewhere; negative ones count from the end.
pub(super) fn one_hot(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (index, values) = (cx.plain(0)?, cx.input(2)?);
    let depth = match cx.dims(1)?.as_slice() {
        [depth] => depth.clone(),
        _ => return wrong("expected one depth"),
    };
    let rank = cx.rank(index);
    let axis = cx.axis_attr("axis", -1, rank + 1)?;
    let index = from_the_front(cx, index, &depth)?;
    let index = cx.unsqueeze(index, axis)?;
    let places = cx.position(rank + 1, axis, depth)?;
    let hit = cx.compare(CompareFn::Eq, index, places)?;
    let value = |cx: &mut Cx<'_, '_>, i: i64| {
        let one = cx.slice(values, 0, Dim::new(i), Dim::new(i + 1))?;
        cx.squeeze(one, 0)
    };
    let (off, on) = (value(cx, 0)?, value(cx, 1)?);
    cx.select(hit, on, off)
}

/// Positions along an axis that a known condition keeps.
pub(super) fn compress(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let mut x = cx.input(0)?;
    let keep = cx.ints(1)?;
    let axis = match cx.optional_int_attr("axis")? {
        Some(axis) => cx.axis_of(axis, cx.rank(x))?,
        None => {
            x = cx.flat(x)?;
            0
        }
    };
    let places: Vec<Dim> = (0..).zip(keep).filter(|(_, keep)| *keep != 0).map(|(i, _)| Dim::new(i)).collect();
    let places = cx.int_vector(&places)?;
    cx.take(x, axis, places)
}

/// The first elements of each row in reverse, as many as `lengths` says.
pub(super) fn reverse_sequence(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, lengths) = (cx.input(0)?, cx.plain(1)?);
    let rank = cx.rank(x);
    let (time, batch) = (cx.axis_attr("time_axis", 0, rank)?, cx.axis_attr("batch_axis", 1, rank)?);
    if time == batch || time > 1 || batch > 1 {
        return wrong("expected time and batch as the first two axes");
    }
    let shape = cx.shape(x);
    let len = |axis: usize| shape.get(axis).cloned().unwrap_or(Dim::new(1));
    let at = cx.position(2, time, len(time))?;
    let lengths = cx.cast(lengths, DType::I64)?;
    let lengths = cx.along(lengths, 2, batch)?;
    let one = cx.literal(Scalar::Int(1), DType::I64)?;
    let last = cx.binary(BinaryFn::Sub, lengths, one)?;
    let back = cx.binary(BinaryFn::Sub, last, at)?;
    let inside = cx.compare(CompareFn::Lt, at, lengths)?;
    let at = cx.select(inside, back, at)?;
    let row = cx.position(2, batch, len(batch))?;
    let operands = if time == 0 { [x, at, row] } else { [x, row, at] };
    cx.emit(Index { axis: 0 }, &operands)
}
