//! Shapes by their other names, and copies that move elements in ways that are not a view.

use regraft_ir::ops::{Flip, Index, UnaryFn};
use regraft_tensor::{DType, Dim};

use super::borders;
use super::{elementwise, parts};
use crate::pt2::args::{Cx, Number, Operand, Res, ValueId, unsupported, wrong};

/// At least `rank` axes, as `atleast_1d`, `atleast_2d` and `atleast_3d` add them.
fn raised(cx: &mut Cx<'_, '_>, x: ValueId, rank: usize) -> Res<ValueId> {
    let mut x = cx.with_axis(x)?;
    if rank >= 2 && cx.rank(x) == 1 {
        x = cx.unsqueeze(x, 0)?;
    }
    if rank >= 3 && cx.rank(x) == 2 { cx.unsqueeze(x, 2) } else { Ok(x) }
}

pub(super) fn atleast(cx: &mut Cx<'_, '_>, rank: usize) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    raised(cx, x, rank)
}

pub(super) fn atleast_each(cx: &mut Cx<'_, '_>, rank: usize) -> Res<Vec<ValueId>> {
    cx.tensors("tensors")?.into_iter().map(|v| raised(cx, v, rank)).collect()
}

pub(super) fn dstack(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let list = cx.tensors("tensors")?.into_iter().map(|v| raised(cx, v, 3)).collect::<Res<Vec<_>>>()?;
    parts::join(cx, list, 2)
}

pub(super) fn column_stack(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let mut columns = Vec::new();
    for v in cx.tensors("tensors")? {
        columns.push(match cx.rank(v) {
            0 => cx.reshape(v, vec![Dim::new(1), Dim::new(1)])?,
            1 => cx.unsqueeze(v, 1)?,
            _ => v,
        });
    }
    parts::join(cx, columns, 1)
}

/// Elements in reverse along one axis.
pub(super) fn flipped(cx: &mut Cx<'_, '_>, axis: usize) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    if axis >= cx.rank(x) {
        return wrong(format!("no axis {axis} to flip"));
    }
    cx.emit(Flip { axes: vec![axis] }, &[x])
}

pub(super) fn rot90(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let rank = cx.rank(x);
    let dims = cx.ints("dims")?;
    let dims = if dims.is_empty() { vec![0, 1] } else { dims };
    let axes = dims.into_iter().map(|d| cx.axis(d, rank)).collect::<Res<Vec<_>>>()?;
    let [a, b] = axes.as_slice() else { return wrong("a rotation has two axes") };
    let mut swap: Vec<usize> = (0..rank).collect();
    swap.swap(*a, *b);
    let flip = |cx: &mut Cx<'_, '_>, v: ValueId, axes: Vec<usize>| {
        let mut axes = axes;
        axes.sort_unstable();
        cx.emit(Flip { axes }, &[v])
    };
    match cx.int_or("k", 1)?.rem_euclid(4) {
        1 => {
            let v = flip(cx, x, vec![*b])?;
            cx.permute(v, swap)
        }
        2 => flip(cx, x, vec![*a, *b]),
        3 => {
            let v = flip(cx, x, vec![*a])?;
            cx.permute(v, swap)
        }
        _ => Ok(x),
    }
}

/// The axis that `hsplit`, `vsplit` and `dsplit` cut.
fn split_axis(cx: &Cx<'_, '_>, x: ValueId) -> usize {
    let name = &cx.node.target;
    if name.contains("dsplit") {
        2
    } else if name.contains("vsplit") {
        0
    } else {
        usize::from(cx.rank(x) > 1)
    }
}

/// `hsplit` and its kind, into equal parts or at positions.
pub(super) fn split_by_name(cx: &mut Cx<'_, '_>) -> Res<Vec<ValueId>> {
    let x = cx.tensor("self")?;
    let axis = split_axis(cx, x);
    if cx.has("sections") {
        return parts::sections(cx, x, axis);
    }
    at_positions(cx, x, axis)
}

pub(super) fn tensor_split_indices(cx: &mut Cx<'_, '_>) -> Res<Vec<ValueId>> {
    let x = cx.tensor("self")?;
    let axis = cx.axis_arg("dim", Some(0), cx.rank(x))?;
    at_positions(cx, x, axis)
}

fn at_positions(cx: &mut Cx<'_, '_>, x: ValueId, axis: usize) -> Res<Vec<ValueId>> {
    let Some(size) = cx.ty(x).shape.get(axis).cloned() else { return wrong("expected an axis") };
    let (mut out, mut start) = (Vec::new(), Dim::new(0));
    let indices = cx.dims("indices")?;
    for index in indices.iter().map(Some).chain([None]) {
        let end = match index {
            Some(index) => cx.clamp_index(index, &size),
            None => size.clone(),
        };
        let stop = if cx.surely_le(&start, &end) { end.clone() } else { start.clone() };
        out.push(cx.slice(x, axis, start, stop)?);
        start = end;
    }
    Ok(out)
}

/// A view by any strides of a tensor that is dense and row-major, read element by element. Writing through it is refused.
pub(super) fn strided(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let at = strided_places(cx)?;
    let flat = cx.flat(x)?;
    cx.emit(Index { axis: 0 }, &[flat, at])
}

/// The position of each element of such a view.
pub(super) fn strided_places(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (sizes, strides) = (cx.ints("size")?, cx.ints("stride")?);
    let offset = cx.int_or("storage_offset", 0)?;
    if !cx.first_is_row_major() || sizes.len() != strides.len() {
        return unsupported("as_strided() of a tensor that is not contiguous", "call contiguous() before");
    }
    let rank = sizes.len();
    let mut at = cx.literal(regraft_ir::Scalar::Int(offset), DType::I64)?;
    for (axis, (size, stride)) in sizes.iter().zip(&strides).enumerate() {
        let along = cx.iota(Dim::new(*size), 0, *stride)?;
        let along = cx.along(along, rank, axis)?;
        at = cx.binary(regraft_ir::ops::BinaryFn::Add, at, along)?;
    }
    cx.expand(at, sizes.iter().map(|s| Dim::new(*s)).collect())
}

/// `torch.combinations`: every choice of `r` elements of a vector, in order.
pub(super) fn combinations(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    const MOST: usize = 1024;
    let x = cx.tensor("self")?;
    let (r, again) = (cx.int_or("r", 2)?, cx.bool_or("with_replacement", false)?);
    let n = cx.size(x, 0)?;
    let Some(r) = usize::try_from(r).ok().filter(|r| (1..=MOST).contains(r)) else {
        return unsupported(format!("combinations of {r} elements"), format!("use 1 to {MOST}"));
    };
    let mut rows: Vec<Vec<usize>> = vec![Vec::new()];
    for _ in 0..r {
        let mut longer = Vec::new();
        for row in rows {
            let first = row.last().map_or(0, |last| if again { *last } else { last + 1 });
            longer.extend((first..n).map(|next| [&row[..], &[next]].concat()));
            if longer.len().saturating_mul(r) > MOST {
                return unsupported(format!("the combinations of {r} of {n} elements"), "take fewer");
            }
        }
        rows = longer;
    }
    let places: Vec<Dim> = rows.iter().flatten().map(|at| Dim::from(*at)).collect();
    let places = cx.int_vector(&places)?;
    let places = cx.reshape(places, vec![Dim::from(rows.len()), Dim::from(r)])?;
    cx.take(x, 0, places)
}

/// Tensors cut along an axis into as many parts as others, with zeros behind, and joined part by part.
pub(super) fn chunk_cat(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let list = cx.tensors("tensors")?;
    let chunks = cx.int("num_chunks")?;
    let Some(chunks) = usize::try_from(chunks).ok().filter(|n| (1..1 << 20).contains(n)) else {
        return wrong(format!("{chunks} parts"));
    };
    let mut parts = Vec::new();
    let mut at = 0;
    for v in list {
        let axis = cx.axis_arg("dim", None, cx.rank(v))?;
        at = axis + 1;
        let size = cx.size(v, axis)?;
        let more = size.next_multiple_of(chunks) - size;
        let mut shape = cx.shape(v);
        let mut whole = v;
        if more > 0 {
            let zero = cx.literal_like(regraft_ir::Scalar::Int(0), v)?;
            if let Some(slot) = shape.get_mut(axis) {
                *slot = Dim::from(more);
            }
            let zeros = cx.expand(zero, shape)?;
            whole = parts::join(cx, vec![v, zeros], axis)?;
            shape = cx.shape(whole);
        }
        let (front, behind) = shape.split_at(axis);
        let each = behind.iter().product::<Dim>().floor_div(&Dim::from(chunks));
        let split = front.iter().cloned().chain([Dim::from(chunks), each]).collect();
        parts.push(cx.reshape(whole, split)?);
    }
    parts::join(cx, parts, at)
}

/// `torch.cartesian_prod`: every choice of one element of each.
pub(super) fn cartesian_prod(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let list = cx.tensors("tensors")?;
    if let [one] = list.as_slice() {
        return Ok(*one);
    }
    let n = list.len();
    let sizes: Vec<Dim> = list.iter().map(|v| cx.ty(*v).numel()).collect();
    let mut columns = Vec::new();
    for (i, v) in list.into_iter().enumerate() {
        let v = cx.flat(v)?;
        let v = cx.along(v, n, i)?;
        let v = cx.expand(v, sizes.clone())?;
        let v = cx.flat(v)?;
        columns.push(cx.unsqueeze(v, 1)?);
    }
    parts::join(cx, columns, 1)
}

/// `start` to `end` in equal steps, from tensors without axes; powers of `base` for `logspace`.
pub(super) fn spaced(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (start, end) = (cx.operand("start")?, cx.operand("end")?);
    let steps = cx.int("steps")?;
    if !(0..=1 << 24).contains(&steps) {
        return wrong(format!("{steps} steps"));
    }
    let dtype = match cx.dtype("dtype")? {
        Some(dtype) => dtype,
        None => cx.result_dtype().unwrap_or(DType::F32),
    };
    let whole = [&start, &end].iter().all(|o| match o {
        Operand::Tensor(v) => !cx.dtype_of(*v).is_float(),
        Operand::Number(n) => !matches!(n, Number::Float(_)),
    });
    let (mut start, mut end) = (elementwise::value(cx, &start, DType::F64)?, elementwise::value(cx, &end, DType::F64)?);
    if !dtype.is_float() && !whole {
        if steps > 1 {
            return unsupported("a range of integers between floats", "cast a range of floats");
        }
        (start, end) = (cx.unary(UnaryFn::Trunc, start)?, cx.unary(UnaryFn::Trunc, end)?);
    }
    let (start, end) = (cx.reshape(start, vec![])?, cx.reshape(end, vec![])?);
    let count = cx.iota(Dim::new(steps), 0, 1)?;
    let count = cx.cast(count, DType::F64)?;
    let span = cx.binary(regraft_ir::ops::BinaryFn::Sub, end, start)?;
    let step = cx.with_literal(regraft_ir::ops::BinaryFn::Div, span, (steps - 1).max(1) as f64)?;
    let moved = cx.binary(regraft_ir::ops::BinaryFn::Mul, count, step)?;
    let mut out = cx.binary(regraft_ir::ops::BinaryFn::Add, start, moved)?;
    if cx.node.target.contains("logspace") {
        let base = cx.float_or("base", 10.0)?;
        let base = cx.float(base, DType::F64)?;
        out = cx.binary(regraft_ir::ops::BinaryFn::Pow, base, out)?;
    }
    if !dtype.is_float() {
        out = cx.unary(UnaryFn::Trunc, out)?;
    }
    cx.cast(out, dtype)
}

/// The spectrum with its zero frequency moved to the middle, or back.
pub(super) fn fftshift(cx: &mut Cx<'_, '_>, back: bool) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let axes = cx.axes("dim", cx.rank(x))?;
    let mut out = x;
    for axis in axes {
        let size = cx.size(out, axis)? as i64;
        let shift = if back { (size + 1) / 2 } else { size / 2 };
        out = borders::rolled(cx, out, axis, shift)?;
    }
    Ok(out)
}
