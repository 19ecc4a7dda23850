//! Parts of tensors, and tensors joined.

use regraft_ir::ops::{Concat, Slice};
use regraft_tensor::Dim;

use super::{elementwise, shape::size};
use crate::pt2::args::{Cx, Operand, Res, ValueId, simpler, wrong};

/// `x[start:end:step]` along an axis, with bounds as Python takes them.
fn part(cx: &mut Cx<'_, '_>, x: ValueId, axis: usize, start: &Dim, end: &Dim, step: i64) -> Res<ValueId> {
    let size = size(cx, x, axis);
    let Some(step) = usize::try_from(step).ok().filter(|s| *s > 0) else {
        return wrong(format!("a slice with step {step}"));
    };
    let start = cx.clamp_index(start, &size);
    let mut end = cx.clamp_index(end, &size);
    if !cx.surely_le(&start, &end) {
        end = if cx.surely_le(&end, &start) { start.clone() } else { end.max_of(&start) };
    }
    // The program may know the length in a simpler way than bounds show.
    if step == 1
        && let Some(len) = cx.result(0).and_then(|t| t.shape.get(axis)).cloned()
    {
        let mine = &end - &start;
        if simpler(&mine, &len) != mine {
            end = &start + &len;
        }
    }
    if start.is(0) && end == size && step == 1 {
        return Ok(x);
    }
    cx.emit(Slice { axis, start, end, step }, &[x])
}

pub(super) fn slice(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let axis = cx.axis_arg("dim", Some(0), cx.rank(x))?;
    let start = cx.optional_dim("start")?.unwrap_or(Dim::new(0));
    let end = cx.optional_dim("end")?.unwrap_or(Dim::new(i64::MAX));
    let step = cx.int_or("step", 1)?;
    part(cx, x, axis, &start, &end, step)
}

pub(super) fn narrow(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let axis = cx.axis_arg("dim", None, cx.rank(x))?;
    let start = cx.dim("start")?;
    let start = cx.clamp_index(&start, &size(cx, x, axis));
    let end = &start + &cx.dim("length")?;
    part(cx, x, axis, &start, &end, 1)
}

/// Element `index` of an axis, which goes.
fn pick(cx: &mut Cx<'_, '_>, x: ValueId, axis: usize, index: &Dim) -> Res<ValueId> {
    let size = size(cx, x, axis);
    let index = cx.clamp_index(index, &size);
    let end = &index + &Dim::new(1);
    let row = cx.slice(x, axis, index, end)?;
    cx.squeeze(row, axis)
}

pub(super) fn select(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let axis = cx.axis_arg("dim", None, cx.rank(x))?;
    let index = cx.dim("index")?;
    pick(cx, x, axis, &index)
}

pub(super) fn unbind(cx: &mut Cx<'_, '_>) -> Res<Vec<ValueId>> {
    let x = cx.tensor("self")?;
    let axis = cx.axis_arg("dim", Some(0), cx.rank(x))?;
    let count = cx.size(x, axis)?;
    if count != cx.results.len() {
        return wrong(format!("it unbinds {count} elements, {} are expected", cx.results.len()));
    }
    (0..count).map(|i| pick(cx, x, axis, &Dim::from(i))).collect()
}

/// Consecutive parts of these lengths.
fn parts(cx: &mut Cx<'_, '_>, x: ValueId, axis: usize, lengths: &[Dim]) -> Res<Vec<ValueId>> {
    let mut start = Dim::new(0);
    let mut out = Vec::new();
    for (i, length) in lengths.iter().enumerate() {
        let length = match cx.result(i).and_then(|t| t.shape.get(axis)) {
            Some(known) => simpler(length, known),
            None => length.clone(),
        };
        let end = &start + &length;
        out.push(cx.slice(x, axis, start, end.clone())?);
        start = end;
    }
    Ok(out)
}

/// Parts of `per` elements, the last with what is left.
fn equal_parts(cx: &mut Cx<'_, '_>, x: ValueId, axis: usize, per: &Dim) -> Res<Vec<ValueId>> {
    let (size, count) = (size(cx, x, axis), cx.results.len());
    if count == 0 || per.as_const().is_some_and(|p| p < 0) {
        return wrong(format!("a split into parts of {per}"));
    }
    let mut lengths = vec![per.clone(); count - 1];
    lengths.push(&size - &(per * &Dim::from(count - 1)));
    parts(cx, x, axis, &lengths)
}

pub(super) fn split(cx: &mut Cx<'_, '_>) -> Res<Vec<ValueId>> {
    let x = cx.tensor("self")?;
    let axis = cx.axis_arg("dim", Some(0), cx.rank(x))?;
    if cx.has("split_sizes") {
        let lengths = cx.dims("split_sizes")?;
        return parts(cx, x, axis, &lengths);
    }
    let per = cx.dims("split_size")?;
    match per.as_slice() {
        [per] if cx.node.target.contains("split.Tensor") || cx.node.target.contains("_copy") => {
            equal_parts(cx, x, axis, per)
        }
        lengths => parts(cx, x, axis, lengths),
    }
}

/// As many parts as there are results; the first have one element more, where it does not divide.
pub(super) fn sections(cx: &mut Cx<'_, '_>, x: ValueId, axis: usize) -> Res<Vec<ValueId>> {
    let (size, n) = (cx.size(x, axis)?, cx.results.len());
    if n == 0 {
        return wrong("a split into no parts");
    }
    let lengths: Vec<Dim> = (0..n).map(|i| Dim::from(size / n + usize::from(i < size % n))).collect();
    parts(cx, x, axis, &lengths)
}

pub(super) fn chunk(cx: &mut Cx<'_, '_>) -> Res<Vec<ValueId>> {
    let x = cx.tensor("self")?;
    let axis = cx.axis_arg("dim", Some(0), cx.rank(x))?;
    if cx.has("sections") {
        return sections(cx, x, axis);
    }
    let chunks = cx.int("chunks")?;
    if chunks < 1 {
        return wrong(format!("a split into {chunks} parts"));
    }
    let size = size(cx, x, axis);
    let per = match cx.result(0).and_then(|t| t.shape.get(axis)) {
        Some(per) => per.clone(),
        None => (&size + &Dim::new(chunks - 1)).floor_div(&Dim::new(chunks)),
    };
    equal_parts(cx, x, axis, &per)
}

pub(super) fn cat(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let list = cx.tensors("tensors")?;
    let first = list.iter().copied().find(|v| cx.rank(*v) > 1).or(list.first().copied());
    let Some(first) = first else { return wrong("expected tensors") };
    let axis = cx.axis_arg("dim", Some(0), cx.rank(first))?;
    join(cx, list, axis)
}

/// Concatenation in the dtype that holds all.
pub(super) fn join(cx: &mut Cx<'_, '_>, list: Vec<ValueId>, axis: usize) -> Res<ValueId> {
    let operands: Vec<Operand> = list.iter().map(|v| Operand::Tensor(*v)).collect();
    let dtype = elementwise::result_type(cx, &operands.iter().collect::<Vec<_>>())?;
    let rank = list.iter().map(|v| cx.rank(*v)).max().unwrap_or(0);
    let mut cast = Vec::new();
    for v in list {
        // Empty vectors are ignored, whatever the others look like.
        if rank > 1 && cx.ty(v).shape == [Dim::new(0)] {
            continue;
        }
        cast.push(cx.cast(v, dtype)?);
    }
    match cast.as_slice() {
        [one] => Ok(*one),
        many => cx.emit(Concat { axis }, many),
    }
}

pub(super) fn stack(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let list = cx.tensors("tensors")?;
    let Some(first) = list.first() else { return wrong("expected tensors") };
    let axis = cx.axis_arg("dim", Some(0), cx.rank(*first) + 1)?;
    let list = list.into_iter().map(|v| cx.unsqueeze(v, axis)).collect::<Res<Vec<_>>>()?;
    join(cx, list, axis)
}

pub(super) fn hstack(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let list = cx.tensors("tensors")?;
    let list =
        list.into_iter().map(|v| if cx.rank(v) == 0 { cx.unsqueeze(v, 0) } else { Ok(v) }).collect::<Res<Vec<_>>>()?;
    let axis = usize::from(list.first().is_some_and(|v| cx.rank(*v) > 1));
    join(cx, list, axis)
}

pub(super) fn vstack(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let list = cx.tensors("tensors")?;
    let mut rows = Vec::new();
    for mut v in list {
        while cx.rank(v) < 2 {
            v = cx.unsqueeze(v, 0)?;
        }
        rows.push(v);
    }
    join(cx, rows, 0)
}
