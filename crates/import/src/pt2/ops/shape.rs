//! The same elements under other shapes and in other orders, and repeated.

use regraft_ir::ops::infer_reshape;
use regraft_tensor::Dim;

use crate::pt2::args::{Cx, Problem, Res, ValueId, row_major, wrong};

/// The size of an axis; 1 for a number.
pub(super) fn size(cx: &Cx<'_, '_>, x: ValueId, axis: usize) -> Dim {
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
    let joined = inner.iter().product::<Dim>();
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
    let numel = shape.iter().product::<Dim>();
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
    let (x, joined) = cx.repeated(x, &shape, &times)?;
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
