//! Diagonals of matrices, and matrices made from them.

use regraft_ir::{
    Scalar,
    ops::{BinaryFn, CompareFn, Index, ReduceFn},
};
use regraft_tensor::{DType, Dim};

use crate::pt2::args::{Cx, Number, Res, ValueId, unsupported, wrong};

/// The axes with the two of the matrix in front, and the offset of the diagonal.
pub(super) fn axes_of(cx: &Cx<'_, '_>, x: ValueId) -> Res<(Vec<usize>, i64)> {
    let rank = cx.rank(x);
    let matrix = cx.node.target.contains("linalg_diagonal");
    let (name1, name2, default) = if matrix { ("dim1", "dim2", [-2, -1]) } else { ("dim1", "dim2", [0, 1]) };
    let (a, b) = (cx.axis_arg(name1, Some(default[0]), rank)?, cx.axis_arg(name2, Some(default[1]), rank)?);
    if a == b || rank < 2 {
        return wrong("a diagonal needs two axes");
    }
    let mut perm = vec![a, b];
    perm.extend((0..rank).filter(|i| *i != a && *i != b));
    Ok((perm, cx.int_or("offset", 0)?))
}

/// Rows and columns of a diagonal of the first two axes.
pub(super) fn positions(cx: &mut Cx<'_, '_>, x: ValueId, offset: i64) -> Res<(ValueId, ValueId)> {
    let (rows, columns) = (cx.size(x, 0)? as i64, cx.size(x, 1)? as i64);
    let (row, column) = (offset.saturating_neg().max(0), offset.max(0));
    let len = rows.saturating_sub(row).min(columns.saturating_sub(column)).max(0);
    Ok((cx.iota(Dim::new(len), row, 1)?, cx.iota(Dim::new(len), column, 1)?))
}

/// The diagonal, as the last axis.
pub(super) fn diagonal(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor(if cx.has("A") { "A" } else { "self" })?;
    let (perm, offset) = axes_of(cx, x)?;
    let moved = cx.permute(x, perm)?;
    of(cx, moved, offset)
}

fn of(cx: &mut Cx<'_, '_>, matrix: ValueId, offset: i64) -> Res<ValueId> {
    let (rows, columns) = positions(cx, matrix, offset)?;
    let out = cx.emit(Index { axis: 0 }, &[matrix, rows, columns])?;
    let mut last: Vec<usize> = (0..cx.rank(out)).collect();
    last.rotate_left(1);
    cx.permute(out, last)
}

/// Matrices with the last axis of `x` on a diagonal, in the last two axes.
fn embedded(cx: &mut Cx<'_, '_>, x: ValueId, offset: i64) -> Res<ValueId> {
    let Some(last) = cx.rank(x).checked_sub(1) else { return wrong("expected a tensor with axes") };
    let len = cx.size(x, last)? as i64;
    let shift = offset.saturating_abs();
    let side = Dim::new(len.saturating_add(shift));
    // Row r of the matrix has element r, or r minus the shift below the diagonal.
    let (row, column) = (cx.iota(side.clone(), 0, 1)?, cx.iota(side, offset, 1)?);
    let (row, column) = (cx.unsqueeze(column, 1)?, row);
    let here = cx.compare(CompareFn::Eq, row, column)?;
    let (front, behind) = if offset >= 0 { (0, shift) } else { (shift, 0) };
    let wide = padded(cx, x, last, front, behind)?;
    let wide = cx.unsqueeze(wide, last + 1)?;
    let zero = cx.number_like(&Number::Int(0), x)?;
    cx.select(here, wide, zero)
}

/// `x` with zeros in front and behind along its last axis.
fn padded(cx: &mut Cx<'_, '_>, x: ValueId, last: usize, front: i64, behind: i64) -> Res<ValueId> {
    let zero = cx.number_like(&Number::Int(0), x)?;
    let mut parts = Vec::new();
    for (len, before) in [(front, true), (behind, false)] {
        if before {
            if len > 0 {
                let mut shape = cx.shape(x);
                shape.truncate(last);
                shape.push(Dim::new(len));
                parts.push(cx.expand(zero, shape)?);
            }
            parts.push(x);
        } else if len > 0 {
            let mut shape = cx.shape(x);
            shape.truncate(last);
            shape.push(Dim::new(len));
            parts.push(cx.expand(zero, shape)?);
        }
    }
    cx.concat(&parts, last)
}

pub(super) fn diag_embed(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let rank = cx.rank(x) + 1;
    let (a, b) = (cx.axis_arg("dim1", Some(-2), rank)?, cx.axis_arg("dim2", Some(-1), rank)?);
    let offset = cx.int_or("offset", 0)?;
    // Swapped axes swap the side of the diagonal.
    let out = embedded(cx, x, if a < b { offset } else { offset.saturating_neg() })?;
    let (low, high) = (a.min(b), a.max(b));
    let mut rest = 0..rank.saturating_sub(2);
    let mut perm = Vec::with_capacity(rank);
    for i in 0..rank {
        perm.push(match i {
            _ if i == low => rank - 2,
            _ if i == high => rank - 1,
            _ => rest.next().unwrap_or(0),
        });
    }
    cx.permute(out, perm)
}

/// The diagonal of a matrix, or the matrix with a vector on its diagonal.
pub(super) fn diag(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let offset = cx.int_or("diagonal", 0)?;
    match cx.rank(x) {
        1 => embedded(cx, x, offset),
        2 => of(cx, x, offset),
        rank => wrong(format!("diag() of a tensor with {rank} axes")),
    }
}

pub(super) fn diagflat(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let flat = cx.flat(x)?;
    let offset = cx.int_or("offset", 0)?;
    embedded(cx, flat, offset)
}

pub(super) fn trace(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let row = of(cx, x, 0)?;
    let row = if cx.dtype_of(row).is_float() { row } else { cx.cast(row, DType::I64)? };
    cx.reduce(ReduceFn::Sum, row, &[0], false)
}

/// Matrices along the diagonal of one.
pub(super) fn block_diag(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let mut blocks = Vec::new();
    for v in cx.tensors("tensors")? {
        blocks.push(match cx.rank(v) {
            0 => cx.reshape(v, vec![Dim::new(1), Dim::new(1)])?,
            1 => cx.unsqueeze(v, 0)?,
            2 => v,
            rank => return wrong(format!("a block with {rank} axes")),
        });
    }
    let Some(dtype) = cx.result_dtype() else { return wrong("expected a result") };
    let mut widths = Vec::new();
    for v in &blocks {
        widths.push(cx.size(*v, 1)?);
    }
    let total: usize = widths.iter().sum();
    let (mut rows, mut before) = (Vec::new(), 0);
    for (v, width) in blocks.into_iter().zip(widths) {
        let v = cx.cast(v, dtype)?;
        let behind = total - before - width;
        rows.push(padded(cx, v, 1, before as i64, behind as i64)?);
        before += width;
    }
    cx.concat(&rows, 0)
}

/// Rows and columns of the lower or upper triangle, as `tril_indices` lists them.
pub(super) fn triangle_indices(cx: &mut Cx<'_, '_>, upper: bool) -> Res<ValueId> {
    let (rows, columns, offset) = (cx.int("row")?, cx.int("col")?, cx.int_or("offset", 0)?);
    if !(0..=1024).contains(&rows) || !(0..=1024).contains(&columns) {
        return unsupported("indices of a large triangle", "use tril() or a comparison of positions");
    }
    let dtype = cx.result_dtype().unwrap_or(DType::I64);
    let inside = |r: i64, c: i64| if upper { c - r >= offset } else { c - r <= offset };
    let mut parts = Vec::new();
    // A row of the triangle is a range of columns.
    for row in 0..rows {
        let mut range = (0..columns).filter(|c| inside(row, *c));
        let Some(first) = range.next() else { continue };
        let len = Dim::new(1 + range.count() as i64);
        let at = cx.literal(Scalar::Int(row), DType::I64)?;
        let at = cx.expand(at, vec![len.clone()])?;
        let column = cx.iota(len, first, 1)?;
        let (at, column) = (cx.unsqueeze(at, 0)?, cx.unsqueeze(column, 0)?);
        parts.push(cx.concat(&[at, column], 0)?);
    }
    if parts.is_empty() {
        let none = cx.literal(Scalar::Int(0), dtype)?;
        return cx.expand(none, vec![Dim::new(2), Dim::new(0)]);
    }
    let out = cx.concat(&parts, 1)?;
    cx.cast(out, dtype)
}

/// Powers of a vector as columns.
pub(super) fn vander(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("x")?;
    let x = if cx.dtype_of(x).is_float() { x } else { cx.cast(x, DType::I64)? };
    let x = cx.with_axis(x)?;
    let Some(axis) = cx.rank(x).checked_sub(1) else { return wrong("expected a vector") };
    let count = match cx.optional_int("N")? {
        Some(n) => usize::try_from(n).or_else(|_| wrong("a negative number of powers"))?,
        None => cx.size(x, axis)?,
    };
    if count > 1024 {
        return unsupported(format!("{count} powers of a vector"), "compute them with pow()");
    }
    let one = cx.number_like(&Number::Int(1), x)?;
    let mut power = {
        let shape = cx.shape(x);
        cx.expand(one, shape)?
    };
    let mut columns = Vec::new();
    for _ in 0..count {
        columns.push(cx.unsqueeze(power, axis + 1)?);
        power = cx.binary(BinaryFn::Mul, power, x)?;
    }
    cx.concat(&columns, axis + 1)
}
