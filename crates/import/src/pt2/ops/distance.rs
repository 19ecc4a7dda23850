//! Norms of matrices, and distances.

use regraft_ir::ops::{BinaryFn, CompareFn, ReduceFn, UnaryFn};
use regraft_tensor::{DType, Dim};

use super::{
    elementwise::{result_type, to_float, value},
    reduce::{euclidean, norm},
    spectral,
};
use crate::pt2::args::{Cx, Operand, Res, ValueId, unsupported, wrong};

/// Two tensors as floats of one dtype.
fn pair(cx: &mut Cx<'_, '_>, a: &str, b: &str) -> Res<(ValueId, ValueId)> {
    let (a, b) = (Operand::Tensor(cx.tensor(a)?), Operand::Tensor(cx.tensor(b)?));
    let dtype = to_float(result_type(cx, &[&a, &b])?);
    Ok((value(cx, &a, dtype)?, value(cx, &b, dtype)?))
}

/// `x` divided by its length along an axis, of which lengths below `eps` count as `eps`.
fn direction(cx: &mut Cx<'_, '_>, x: ValueId, axis: usize, eps: f64) -> Res<ValueId> {
    let axes: &[usize] = if cx.rank(x) == 0 { &[] } else { &[axis] };
    let length = euclidean(cx, x, axes, true)?;
    let length = cx.with_literal(BinaryFn::Max, length, eps)?;
    cx.binary(BinaryFn::Div, x, length)
}

pub(super) fn cosine_of(cx: &mut Cx<'_, '_>, a: ValueId, b: ValueId, axis: usize, eps: f64) -> Res<ValueId> {
    let (a, b) = (direction(cx, a, axis, eps)?, direction(cx, b, axis, eps)?);
    let product = cx.binary(BinaryFn::Mul, a, b)?;
    let axes: &[usize] = if cx.rank(product) == 0 { &[] } else { &[axis] };
    cx.reduce(ReduceFn::Sum, product, axes, false)
}

pub(super) fn cosine_similarity(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b) = pair(cx, "x1", "x2")?;
    let shapes = [cx.ty(a).clone(), cx.ty(b).clone()];
    let Ok(shape) = regraft_ir::ops::broadcast_types(shapes.iter()) else { return wrong("shapes do not broadcast") };
    let axis = cx.axis_arg("dim", Some(1), shape.len())?;
    let (a, b) = (cx.expand(a, shape.clone())?, cx.expand(b, shape)?);
    let eps = cx.float_or("eps", 1e-8)?;
    cosine_of(cx, a, b, axis, eps)
}

pub(super) fn pairwise_distance(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b) = pair(cx, "x1", "x2")?;
    distance(cx, a, b, "eps", 1e-6)
}

/// `‖a - b + eps‖` along the last axis.
pub(super) fn distance(cx: &mut Cx<'_, '_>, a: ValueId, b: ValueId, eps: &str, default: f64) -> Res<ValueId> {
    let apart = cx.binary(BinaryFn::Sub, a, b)?;
    let eps = cx.float_or(eps, default)?;
    let apart = cx.with_literal(BinaryFn::Add, apart, eps)?;
    let Some(last) = cx.rank(apart).checked_sub(1) else { return wrong("expected tensors with axes") };
    let (p, keep) = (cx.float_or("p", 2.0)?, cx.bool_or("keepdim", false)?);
    norm(cx, apart, p, &[last], keep)
}

/// The distance of all.
pub(super) fn dist(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b) = pair(cx, "self", "other")?;
    let apart = cx.binary(BinaryFn::Sub, a, b)?;
    let axes: Vec<usize> = (0..cx.rank(apart)).collect();
    norm(cx, apart, cx.float_or("p", 2.0)?, &axes, false)
}

/// The distance of each row of one matrix from each of another.
pub(super) fn cdist(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b) = pair(cx, "x1", "x2")?;
    let (Some(ra), Some(rb)) = (cx.rank(a).checked_sub(1), cx.rank(b).checked_sub(2)) else {
        return wrong("expected matrices");
    };
    let (a, b) = (cx.unsqueeze(a, ra)?, cx.unsqueeze(b, rb)?);
    let apart = cx.binary(BinaryFn::Sub, a, b)?;
    let Some(last) = cx.rank(apart).checked_sub(1) else { return wrong("expected matrices") };
    norm(cx, apart, cx.float_or("p", 2.0)?, &[last], false)
}

/// The distance of each row from each that follows.
pub(super) fn pdist(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let rows = cx.size(x, 0)?;
    if rows > 512 {
        return unsupported(format!("pdist() of {rows} rows"), "use cdist()");
    }
    let p = cx.float_or("p", 2.0)?;
    let mut parts = Vec::new();
    for row in 1..rows {
        let one = cx.slice(x, 0, Dim::from(row - 1), Dim::from(row))?;
        let rest = cx.slice(x, 0, Dim::from(row), Dim::from(rows))?;
        let apart = cx.binary(BinaryFn::Sub, rest, one)?;
        parts.push(norm(cx, apart, p, &[1], false)?);
    }
    if parts.is_empty() {
        let none = cx.float_like(0.0, x)?;
        return cx.expand(none, vec![Dim::new(0)]);
    }
    cx.concat(&parts, 0)
}

/// Slices along an axis whose norm is above a bound, scaled down to it.
pub(super) fn renorm(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let axis = cx.axis_arg("dim", None, cx.rank(x))?;
    let (p, most) = (cx.float_or("p", 2.0)?, cx.float_or("maxnorm", 1.0)?);
    let axes: Vec<usize> = (0..cx.rank(x)).filter(|i| *i != axis).collect();
    let length = norm(cx, x, p, &axes, true)?;
    let above = cx.compare_with(CompareFn::Gt, length, most)?;
    let safe = cx.with_literal(BinaryFn::Add, length, 1e-7)?;
    let most = cx.float_like(most, length)?;
    let factor = cx.binary(BinaryFn::Div, most, safe)?;
    let one = cx.float_like(1.0, factor)?;
    let factor = cx.select(above, factor, one)?;
    cx.binary(BinaryFn::Mul, x, factor)
}

/// Norms of matrices.
pub(super) fn matrix(cx: &mut Cx<'_, '_>, x: ValueId, ord: &str, axes: [usize; 2], keep: bool) -> Res<ValueId> {
    let [rows, columns] = axes;
    let (along, f) = match ord {
        "fro" => {
            let mut both = axes;
            both.sort_unstable();
            return euclidean(cx, x, &both, keep);
        }
        "1" => (rows, ReduceFn::Max),
        "-1" => (rows, ReduceFn::Min),
        "inf" => (columns, ReduceFn::Max),
        "-inf" => (columns, ReduceFn::Min),
        "2" | "-2" | "nuc" => {
            let mut perm: Vec<usize> = (0..cx.rank(x)).filter(|i| !axes.contains(i)).collect();
            perm.extend(axes);
            let moved = cx.permute(x, perm)?;
            let out = spectral::norm(cx, moved, ord)?;
            if !keep {
                return Ok(out);
            }
            let mut shape = cx.shape(x);
            for axis in axes {
                if let Some(slot) = shape.get_mut(axis) {
                    *slot = Dim::new(1);
                }
            }
            return cx.reshape(out, shape);
        }
        other => return wrong(format!("`{other}` is not a norm of a matrix")),
    };
    let size = cx.unary(UnaryFn::Abs, x)?;
    let sums = cx.reduce(ReduceFn::Sum, size, &[along], true)?;
    let other = if along == rows { columns } else { rows };
    let out = cx.reduce(f, sums, &[other], true)?;
    if keep {
        return Ok(out);
    }
    let out = cx.squeeze(out, rows.max(columns))?;
    cx.squeeze(out, rows.min(columns))
}

fn in_dtype(cx: &mut Cx<'_, '_>, name: &str) -> Res<ValueId> {
    let x = cx.tensor(name)?;
    let wanted = cx.dtype("dtype")?.unwrap_or(cx.dtype_of(x));
    let wide = if wanted == DType::F64 { wanted } else { DType::F32 };
    cx.cast(x, wide)
}

pub(super) fn order_name(p: f64) -> String {
    if p.is_infinite() { if p > 0.0 { "inf".into() } else { "-inf".into() } } else { format!("{p}") }
}

/// `torch.linalg.norm`: of a vector, of a matrix, or of all elements.
pub(super) fn linalg_norm(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let mut x = in_dtype(cx, "self")?;
    let keep = cx.bool_or("keepdim", false)?;
    let rank = cx.rank(x);
    let text = cx.node.target.ends_with("ord_str").then(|| cx.optional_text("ord")).transpose()?.flatten();
    let number = if text.is_none() { cx.optional_float("ord")? } else { None };
    let dims = cx.ints("dim")?;
    let mut axes = dims.iter().map(|d| cx.axis(*d, rank)).collect::<Res<Vec<_>>>()?;
    if axes.is_empty() {
        if text.is_none() && number.is_none() {
            let flat = cx.flat(x)?;
            let out = euclidean(cx, flat, &[0], false)?;
            return if keep { cx.reshape(out, vec![Dim::new(1); rank]) } else { Ok(out) };
        }
        x = cx.with_axis(x)?;
        axes = (0..cx.rank(x)).collect();
    }
    match (axes.as_slice(), text, number) {
        ([_] | [_, _], None, None) => {
            let mut all = axes.clone();
            all.sort_unstable();
            euclidean(cx, x, &all, keep)
        }
        (&[a], None, Some(p)) if rank > 0 => norm(cx, x, p, &[a], keep),
        (&[a, b], Some(text), _) => matrix(cx, x, text, [a, b], keep),
        (&[a, b], None, Some(p)) => matrix(cx, x, &order_name(p), [a, b], keep),
        _ => unsupported("this form of linalg.norm()", "use linalg.vector_norm() or linalg.matrix_norm()"),
    }
}

pub(super) fn matrix_norm(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = in_dtype(cx, "self")?;
    let keep = cx.bool_or("keepdim", false)?;
    let rank = cx.rank(x);
    let dims = cx.ints("dim")?;
    let dims = if dims.is_empty() { vec![-2, -1] } else { dims };
    let axes = dims.iter().map(|d| cx.axis(*d, rank)).collect::<Res<Vec<_>>>()?;
    let [a, b] = axes.as_slice() else { return wrong("a matrix has two axes") };
    let ord = if cx.node.target.ends_with("str_ord") {
        cx.optional_text("ord")?.unwrap_or("fro").to_owned()
    } else {
        order_name(cx.float_or("ord", 2.0)?)
    };
    matrix(cx, x, &ord, [*a, *b], keep)
}

/// The cross product along an axis of three elements.
pub(super) fn cross(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b) = (Operand::Tensor(cx.tensor("self")?), Operand::Tensor(cx.tensor("other")?));
    let dtype = result_type(cx, &[&a, &b])?;
    let (a, b) = (value(cx, &a, dtype)?, value(cx, &b, dtype)?);
    let shapes = [cx.ty(a).clone(), cx.ty(b).clone()];
    let Ok(shape) = regraft_ir::ops::broadcast_types(shapes.iter()) else { return wrong("shapes do not broadcast") };
    let axis = match cx.optional_int("dim")? {
        Some(dim) => cx.axis(dim, shape.len())?,
        None if cx.node.target.contains("linalg_cross") => shape.len().saturating_sub(1),
        None => match shape.iter().position(|d| d.is(3)) {
            Some(axis) => axis,
            None => return wrong("no axis has three elements"),
        },
    };
    let (a, b) = (cx.expand(a, shape.clone())?, cx.expand(b, shape)?);
    let turned = |cx: &mut Cx<'_, '_>, v: ValueId, first: i64| {
        let head = cx.slice(v, axis, Dim::new(first), Dim::new(3))?;
        let tail = cx.slice(v, axis, Dim::new(0), Dim::new(first))?;
        cx.concat(&[head, tail], axis)
    };
    let (a1, b2, a2, b1) = (turned(cx, a, 1)?, turned(cx, b, 2)?, turned(cx, a, 2)?, turned(cx, b, 1)?);
    let (left, right) = (cx.binary(BinaryFn::Mul, a1, b2)?, cx.binary(BinaryFn::Mul, a2, b1)?);
    cx.binary(BinaryFn::Sub, left, right)
}
