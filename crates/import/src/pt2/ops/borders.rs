//! Borders around tensors, and elements moved or replaced within them.

use regraft_ir::{
    Scalar,
    ops::{BinaryFn, CompareFn, Concat, Flip, Pad, PadMode},
};
use regraft_tensor::{DType, Dim};

use super::{parts::join, shape::size};
use crate::pt2::args::{Cx, Number, Res, ValueId, simpler, unsupported, wrong};

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
        other => wrong(format!("`{other}` is not a padding mode")),
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
    cx.triangle(x, f, diagonal)
}

pub(super) fn tril(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    triangle(cx, CompareFn::Le)
}

pub(super) fn triu(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    triangle(cx, CompareFn::Ge)
}

/// Differences of neighbors.
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
    let length = super::shape::size(cx, src, axis);
    if simpler(&(&end - &start), &length) == length {
        end = &start + &length;
    }
    replaced(cx, x, src, axis, start, end)
}
