//! Operators that move elements and compute nothing.

use regraft_ir::{
    Scalar,
    ops::{BinaryFn, Compare, CompareFn, Concat, Flip, Iota, Pad, PadMode, Select, Slice, infer_reshape},
};
use regraft_tensor::{DType, Dim};

use super::elementwise;
use crate::pt2::args::{Cx, Number, Operand, Problem, Res, ValueId, row_major, simpler, unsupported, wrong};

/// The size of an axis; 1 for a number.
fn size(cx: &Cx<'_, '_>, x: ValueId, axis: usize) -> Dim {
    cx.ty(x).shape.get(axis).cloned().unwrap_or(Dim::new(1))
}

// ---- other shapes ----

fn to_shape(cx: &mut Cx<'_, '_>, x: ValueId, shape: Vec<Dim>) -> Res<ValueId> {
    let shape = infer_reshape(&cx.shape(x), &shape).map_err(|e| Problem::Wrong(e.to_string()))?;
    let shape = cx.refine(0, shape);
    cx.reshape(x, shape)
}

pub(super) fn view(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    // `view` says `size`, `reshape` says `shape`.
    let shape = cx.dims(if cx.has("shape") { "shape" } else { "size" })?;
    to_shape(cx, x, shape)
}

pub(super) fn view_as(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, other) = (cx.tensor("self")?, cx.tensor("other")?);
    let shape = cx.shape(other);
    cx.reshape(x, shape)
}

pub(super) fn flatten(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let rank = cx.rank(x);
    let (start, end) = (cx.axis_arg("start_dim", Some(0), rank)?, cx.axis_arg("end_dim", Some(-1), rank)?);
    let shape = cx.shape(x);
    if rank == 0 {
        return cx.reshape(x, vec![Dim::new(1)]);
    }
    let (Some(before), Some(inner), Some(after)) = (shape.get(..start), shape.get(start..=end), shape.get(end + 1..))
    else {
        return wrong(format!("axes {start} to {end} of a tensor with {rank} axes"));
    };
    let joined = inner.iter().fold(Dim::new(1), |n, d| &n * d);
    to_shape(cx, x, [before, &[joined], after].concat())
}

pub(super) fn ravel(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let n = cx.ty(x).numel();
    cx.reshape(x, vec![n])
}

pub(super) fn unflatten(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let axis = cx.axis_arg("dim", None, cx.rank(x))?;
    let parts = cx.dims("sizes")?;
    let parts = infer_reshape(&[size(cx, x, axis)], &parts).map_err(|e| Problem::Wrong(e.to_string()))?;
    let mut shape = cx.shape(x);
    if axis < shape.len() {
        shape.splice(axis..=axis, parts);
    }
    to_shape(cx, x, shape)
}

pub(super) fn squeeze(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let rank = cx.rank(x);
    let axes: Vec<usize> = if cx.has("dim") {
        cx.ints("dim")?.into_iter().map(|a| cx.axis(a, rank)).collect::<Res<_>>()?
    } else {
        (0..rank).collect()
    };
    let shape = cx.shape(x);
    let kept = shape.iter().enumerate().filter(|(i, d)| !(axes.contains(i) && d.is(1))).map(|(_, d)| d.clone());
    let shape = kept.collect();
    cx.reshape(x, shape)
}

pub(super) fn unsqueeze(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let axis = cx.axis_arg("dim", None, cx.rank(x) + 1)?;
    cx.unsqueeze(x, axis)
}

/// A view by strides, where both sides are row-major: another shape of the same elements.
pub(super) fn as_strided(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let (shape, strides) = (cx.dims("size")?, cx.dims("stride")?);
    let offset = cx.optional_dim("storage_offset")?.unwrap_or(Dim::new(0));
    let numel = shape.iter().fold(Dim::new(1), |n, d| &n * d);
    let same = numel == cx.ty(x).numel() && offset.is(0) && cx.first_is_row_major();
    if !same || strides.len() != shape.len() || !row_major(&shape, &strides) {
        return super::forms::strided(cx);
    }
    cx.reshape(x, shape)
}

// ---- other orders ----

pub(super) fn permute(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let rank = cx.rank(x);
    let perm = cx.ints("dims")?.into_iter().map(|a| cx.axis(a, rank)).collect::<Res<Vec<_>>>()?;
    if perm.len() != rank {
        return wrong(format!("expected {rank} axes, found {perm:?}"));
    }
    cx.permute(x, perm)
}

pub(super) fn movedim(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let rank = cx.rank(x);
    let axes =
        |cx: &Cx<'_, '_>, name: &str| cx.ints(name)?.into_iter().map(|a| cx.axis(a, rank)).collect::<Res<Vec<_>>>();
    let (from, to) = (axes(cx, "source")?, axes(cx, "destination")?);
    let mut slots: Vec<Option<usize>> = vec![None; rank];
    for (f, t) in from.iter().zip(&to) {
        if let Some(slot) = slots.get_mut(*t) {
            *slot = Some(*f);
        }
    }
    let mut rest = (0..rank).filter(|i| !from.contains(i));
    let perm: Option<Vec<usize>> = slots.into_iter().map(|s| s.or_else(|| rest.next())).collect();
    match perm {
        Some(perm) => cx.permute(x, perm),
        None => wrong("expected as many sources as destinations"),
    }
}

fn swapped(cx: &mut Cx<'_, '_>, x: ValueId, a: usize, b: usize) -> Res<ValueId> {
    let mut perm: Vec<usize> = (0..cx.rank(x)).collect();
    if a < perm.len() && b < perm.len() {
        perm.swap(a, b);
    }
    cx.permute(x, perm)
}

pub(super) fn transpose(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let rank = cx.rank(x);
    let (first, second) = if cx.has("axis0") { ("axis0", "axis1") } else { ("dim0", "dim1") };
    let (a, b) = (cx.axis_arg(first, None, rank)?, cx.axis_arg(second, None, rank)?);
    swapped(cx, x, a, b)
}

pub(super) fn t(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let perm = (0..cx.rank(x)).rev().collect();
    cx.permute(x, perm)
}

pub(super) fn mt(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    match cx.rank(x).checked_sub(2) {
        Some(a) => swapped(cx, x, a, a + 1),
        None => wrong("expected a matrix"),
    }
}

// ---- repetition ----

pub(super) fn expand(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let mut shape = cx.dims("size")?;
    let Some(new) = shape.len().checked_sub(cx.rank(x)) else { return wrong("expand to fewer axes") };
    for (i, d) in shape.iter_mut().enumerate() {
        if d.is(-1) && i >= new {
            *d = size(cx, x, i - new);
        }
    }
    let shape = cx.refine(0, shape);
    cx.expand(x, shape)
}

pub(super) fn expand_as(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, other) = (cx.tensor("self")?, cx.tensor("other")?);
    let shape = cx.shape(other);
    cx.expand(x, shape)
}

pub(super) fn broadcast_tensors(cx: &mut Cx<'_, '_>) -> Res<Vec<ValueId>> {
    let list = cx.tensors("tensors")?;
    let mut shape = Vec::new();
    for v in &list {
        shape = regraft_ir::ops::broadcast(&shape, &cx.shape(*v)).map_err(|e| Problem::Wrong(e.to_string()))?;
    }
    list.into_iter().map(|v| cx.expand(v, shape.clone())).collect()
}

pub(super) fn meshgrid(cx: &mut Cx<'_, '_>) -> Res<Vec<ValueId>> {
    let list = cx.tensors("tensors")?;
    let xy = cx.optional_text("indexing")? == Some("xy") && list.len() >= 2;
    let sizes: Vec<Dim> = list.iter().map(|v| cx.ty(*v).numel()).collect();
    let n = list.len();
    // With `xy` the first two axes are swapped.
    let axis_of = |i: usize| if xy && i < 2 { 1 - i } else { i };
    let mut full = sizes.clone();
    if xy {
        full.swap(0, 1);
    }
    list.into_iter()
        .zip(sizes)
        .enumerate()
        .map(|(i, (v, d))| {
            let mut shape = vec![Dim::new(1); n];
            if let Some(slot) = shape.get_mut(axis_of(i)) {
                *slot = d;
            }
            let v = cx.reshape(v, shape)?;
            cx.expand(v, full.clone())
        })
        .collect()
}

pub(super) fn repeat(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let mut times = cx.dims(if cx.has("repeats") { "repeats" } else { "dims" })?;
    let mut shape = cx.shape(x);
    // `tile` may name fewer axes than there are.
    while times.len() < shape.len() {
        times.insert(0, Dim::new(1));
    }
    while shape.len() < times.len() {
        shape.insert(0, Dim::new(1));
    }
    let (mut split, mut wide, mut joined) = (Vec::new(), Vec::new(), Vec::new());
    for (d, n) in shape.iter().zip(&times) {
        if !n.is(1) {
            split.push(Dim::new(1));
            wide.push(n.clone());
        }
        split.push(d.clone());
        wide.push(d.clone());
        joined.push(d * n);
    }
    let x = cx.reshape(x, split)?;
    let x = cx.expand(x, wide)?;
    let joined = cx.refine(0, joined);
    cx.reshape(x, joined)
}

pub(super) fn repeat_interleave(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let mut x = cx.tensor("self")?;
    let times = cx.dim("repeats")?;
    let axis = match cx.optional_int("dim")? {
        Some(dim) => cx.axis(dim, cx.rank(x))?,
        None => {
            let n = cx.ty(x).numel();
            x = cx.reshape(x, vec![n])?;
            0
        }
    };
    if cx.rank(x) == 0 {
        x = cx.unsqueeze(x, 0)?;
    }
    let mut joined = cx.shape(x);
    if let Some(d) = joined.get_mut(axis) {
        *d = &*d * &times;
    }
    let x = cx.unsqueeze(x, axis + 1)?;
    let mut wide = cx.shape(x);
    if let Some(d) = wide.get_mut(axis + 1) {
        *d = times;
    }
    let x = cx.expand(x, wide)?;
    let joined = cx.refine(0, joined);
    cx.reshape(x, joined)
}

// ---- parts ----

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

// ---- joins ----

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

// ---- borders ----

fn padded(cx: &mut Cx<'_, '_>, mode: PadMode, name: &str, value: Option<Number>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let list = cx.ints(name)?;
    let rank = cx.rank(x);
    if list.len() % 2 != 0 || list.len() / 2 > rank {
        return wrong(format!("padding {list:?} of a tensor with {rank} axes"));
    }
    // Pairs stand from the last axis on.
    let (mut before, mut after) = (vec![0; rank], vec![0; rank]);
    for (i, pair) in list.chunks_exact(2).enumerate() {
        if let ([b, a], Some(axis)) = (pair, rank.checked_sub(i + 1))
            && let (Some(slot_b), Some(slot_a)) = (before.get_mut(axis), after.get_mut(axis))
        {
            (*slot_b, *slot_a) = (*b, *a);
        }
    }
    if before.iter().chain(&after).all(|p| *p == 0) {
        return Ok(x);
    }
    if mode != PadMode::Constant && before.iter().chain(&after).any(|p| *p < 0) {
        let positive = |list: &[i64]| list.iter().map(|p| (*p).max(0)).collect();
        let wide = Pad { before: positive(&before), after: positive(&after), value: Scalar::Float(0.0), mode };
        let x = cx.emit(wide, &[x])?;
        return cut(cx, x, &before, &after);
    }
    let value = match value.map_or(Some(Scalar::Float(0.0)), |n| n.scalar()) {
        Some(value) => value,
        None => return unsupported("padding with a size", "give a number"),
    };
    cx.emit(Pad { before, after, value, mode }, &[x])
}

/// Cuts off what negative padding says.
fn cut(cx: &mut Cx<'_, '_>, x: ValueId, before: &[i64], after: &[i64]) -> Res<ValueId> {
    let mut out = x;
    for (axis, (b, a)) in before.iter().zip(after).enumerate() {
        if *b < 0 || *a < 0 {
            let (start, end) = (Dim::new(b.saturating_neg().max(0)), &size(cx, out, axis) + &Dim::new((*a).min(0)));
            out = cx.slice(out, axis, start, end)?;
        }
    }
    Ok(out)
}

/// Padding with what stands at the other end; a negative number cuts off.
fn circular(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let list = cx.ints("pad")?;
    let mut out = x;
    for (i, pair) in list.chunks_exact(2).enumerate() {
        let ([before, after], Some(axis)) = (pair, cx.rank(x).checked_sub(i + 1)) else {
            return wrong(format!("padding {list:?} of a tensor with {} axes", cx.rank(x)));
        };
        let size = size(cx, out, axis);
        let start = Dim::new(before.saturating_neg().max(0));
        let end = &size + &Dim::new((*after).min(0));
        let middle = cx.slice(out, axis, start, end)?;
        let mut parts = Vec::new();
        if *before > 0 {
            parts.push(cx.slice(out, axis, &size - &Dim::new(*before), size.clone())?);
        }
        parts.push(middle);
        if *after > 0 {
            parts.push(cx.slice(out, axis, Dim::new(0), Dim::new(*after))?);
        }
        out = cx.concat(&parts, axis)?;
    }
    Ok(out)
}

pub(super) fn pad(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let value = cx.optional_number("value")?;
    match cx.optional_text("mode")?.unwrap_or("constant") {
        "constant" => padded(cx, PadMode::Constant, "pad", value),
        "reflect" => padded(cx, PadMode::Reflect, "pad", None),
        "replicate" => padded(cx, PadMode::Replicate, "pad", None),
        "circular" => circular(cx),
        other => wrong(format!("`{other}` is no padding mode")),
    }
}

pub(super) fn reflection_pad(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    padded(cx, PadMode::Reflect, "padding", None)
}

pub(super) fn replication_pad(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    padded(cx, PadMode::Replicate, "padding", None)
}

pub(super) fn flip(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let rank = cx.rank(x);
    let axes = cx.ints("dims")?.into_iter().map(|a| cx.axis(a, rank)).collect::<Res<Vec<_>>>()?;
    if axes.is_empty() || rank == 0 { Ok(x) } else { cx.emit(Flip { axes }, &[x]) }
}

pub(super) fn roll(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let shifts = cx.ints("shifts")?;
    let dims = cx.ints("dims")?;
    let shape = cx.shape(x);
    let mut out = x;
    if dims.is_empty() {
        let n = cx.ty(x).numel();
        out = cx.reshape(out, vec![n])?;
        out = rolled(cx, out, 0, shifts.first().copied().unwrap_or(0))?;
        return cx.reshape(out, shape);
    }
    if dims.len() != shifts.len() {
        return wrong("expected as many shifts as axes");
    }
    for (dim, shift) in dims.iter().zip(&shifts) {
        let axis = cx.axis(*dim, cx.rank(x))?;
        out = rolled(cx, out, axis, *shift)?;
    }
    Ok(out)
}

pub(super) fn rolled(cx: &mut Cx<'_, '_>, x: ValueId, axis: usize, shift: i64) -> Res<ValueId> {
    let size = size(cx, x, axis);
    // The element that becomes the first.
    let first = match size.as_const() {
        Some(0) => return Ok(x),
        Some(n) => Dim::new((-i128::from(shift)).rem_euclid(i128::from(n)) as i64),
        None if cx.bounds(&size).min >= shift.saturating_abs() => {
            if shift > 0 {
                &size - &Dim::new(shift)
            } else {
                Dim::new(-shift)
            }
        }
        None => Dim::new(shift.saturating_neg()).modulo(&size),
    };
    if first.is(0) {
        return Ok(x);
    }
    let head = cx.slice(x, axis, first.clone(), size)?;
    let tail = cx.slice(x, axis, Dim::new(0), first)?;
    cx.emit(Concat { axis }, &[head, tail])
}

/// `x` where `column - row` compares to `diagonal`, zero elsewhere.
fn triangle(cx: &mut Cx<'_, '_>, f: CompareFn) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let diagonal = cx.int_or("diagonal", 0)?;
    let Some(rows) = cx.rank(x).checked_sub(2) else { return wrong("expected a matrix") };
    let (m, n) = (size(cx, x, rows), size(cx, x, rows + 1));
    let iota = |len: Dim, start: i64| Iota { len, start: Dim::new(start), step: Dim::new(1), dtype: DType::I64 };
    let row = cx.emit(iota(m, diagonal), &[])?;
    let row = cx.unsqueeze(row, 1)?;
    let column = cx.emit(iota(n, 0), &[])?;
    let keep = cx.emit(Compare { f }, &[column, row])?;
    if cx.dtype_of(x) == DType::Bool {
        return cx.binary(BinaryFn::And, x, keep);
    }
    let zero = cx.number_like(&Number::Int(0), x)?;
    cx.emit(Select {}, &[keep, x, zero])
}

pub(super) fn tril(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    triangle(cx, CompareFn::Le)
}

pub(super) fn triu(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    triangle(cx, CompareFn::Ge)
}

/// Differences of neighbours.
pub(super) fn diff(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let mut x = cx.tensor("self")?;
    let axis = cx.axis_arg("dim", Some(-1), cx.rank(x))?;
    if cx.int_or("n", 1)? == 0 {
        return Ok(x);
    }
    let mut list = Vec::new();
    list.extend(cx.optional_tensor("prepend")?);
    list.push(x);
    list.extend(cx.optional_tensor("append")?);
    if list.len() > 1 {
        x = join(cx, list, axis)?;
    }
    let n = cx.int_or("n", 1)?;
    if !(1..=64).contains(&n) {
        return wrong(format!("differences of order {n}"));
    }
    for _ in 0..n {
        let size = size(cx, x, axis);
        let rest = &size - &Dim::new(1);
        let right = cx.slice(x, axis, Dim::new(1), size)?;
        let left = cx.slice(x, axis, Dim::new(0), rest)?;
        // Of conditions the difference is whether they differ.
        let f = if cx.dtype_of(x) == DType::Bool { BinaryFn::Xor } else { BinaryFn::Sub };
        x = cx.binary(f, right, left)?;
    }
    Ok(x)
}

/// `x` with a range of an axis replaced.
fn replaced(cx: &mut Cx<'_, '_>, x: ValueId, src: ValueId, axis: usize, start: Dim, end: Dim) -> Res<ValueId> {
    let size = size(cx, x, axis);
    let mut list = Vec::new();
    if !start.is(0) {
        list.push(cx.slice(x, axis, Dim::new(0), start)?);
    }
    list.push(cx.cast_like(src, x)?);
    if end != size {
        list.push(cx.slice(x, axis, end, size)?);
    }
    match list.as_slice() {
        [one] => Ok(*one),
        many => cx.emit(Concat { axis }, many),
    }
}

pub(super) fn select_scatter(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, src) = (cx.tensor("self")?, cx.tensor("src")?);
    let axis = cx.axis_arg("dim", None, cx.rank(x))?;
    let index = cx.dim("index")?;
    let index = cx.clamp_index(&index, &size(cx, x, axis));
    let src = cx.unsqueeze(src, axis)?;
    let end = &index + &Dim::new(1);
    replaced(cx, x, src, axis, index, end)
}

pub(super) fn slice_scatter(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, src) = (cx.tensor("self")?, cx.tensor("src")?);
    let axis = cx.axis_arg("dim", Some(0), cx.rank(x))?;
    let size = size(cx, x, axis);
    let start = cx.optional_dim("start")?.unwrap_or(Dim::new(0));
    let end = cx.optional_dim("end")?.unwrap_or(Dim::new(i64::MAX));
    let start = cx.clamp_index(&start, &size);
    let step = cx.int_or("step", 1)?;
    if step != 1 {
        return super::scatter::put_range(cx, x, src, axis, &start, step);
    }
    let mut end = cx.clamp_index(&end, &size);
    // What is written has the length of what is replaced.
    let length = self::size(cx, src, axis);
    if simpler(&(&end - &start), &length) == length {
        end = &start + &length;
    }
    replaced(cx, x, src, axis, start, end)
}
