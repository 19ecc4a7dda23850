//! Products of matrices and vectors beside those that are one op.

use regraft_ir::ops::{BinaryFn, CompareFn, Index, Matmul, ReduceFn};
use regraft_tensor::{DType, Dim};

use super::elementwise::{apply, result_type, value};
use crate::pt2::args::{Cx, Number, Operand, Res, ValueId, wrong};

/// `beta·self + alpha·product`, in the dtype of the product. What `beta` 0 leaves out is not looked at.
fn added(cx: &mut Cx<'_, '_>, product: ValueId) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let (beta, alpha) = (cx.number_or("beta", Number::Int(1))?, cx.number_or("alpha", Number::Int(1))?);
    let dtype = cx.dtype_of(product);
    if dtype == DType::Bool {
        return if beta.is(0.0) { Ok(product) } else { cx.binary(BinaryFn::Or, product, x) };
    }
    let out = apply(cx, BinaryFn::Mul, &Operand::Tensor(product), &Operand::Number(alpha), dtype)?;
    if beta.is(0.0) {
        let shape = cx.result(0).map(|t| t.shape.clone()).unwrap_or(cx.shape(out));
        return cx.expand(out, shape);
    }
    let x = cx.cast(x, dtype)?;
    let x = apply(cx, BinaryFn::Mul, &Operand::Tensor(x), &Operand::Number(beta), dtype)?;
    cx.binary(BinaryFn::Add, x, out)
}

pub(super) fn addmv(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b) = (cx.tensor("mat")?, cx.tensor("vec")?);
    let product = crate::build::product(cx, a, b)?;
    added(cx, product)
}

pub(super) fn addr(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b) = (cx.tensor("vec1")?, cx.tensor("vec2")?);
    let x = cx.tensor("self")?;
    let dtype = result_type(cx, &[&Operand::Tensor(a), &Operand::Tensor(b), &Operand::Tensor(x)])?;
    let (a, b) = (cx.cast(a, dtype)?, cx.cast(b, dtype)?);
    let a = cx.unsqueeze(a, 1)?;
    let product = cx.binary(BinaryFn::Mul, a, b)?;
    added(cx, product)
}

pub(super) fn addbmm(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b) = (cx.tensor("batch1")?, cx.tensor("batch2")?);
    // The sum over batches is part of the sum over columns.
    let (sa, sb) = (cx.shape(a), cx.shape(b));
    let ([batch, rows, inner], [_, _, columns]) = (sa.as_slice(), sb.as_slice()) else {
        return wrong("expected batches of matrices");
    };
    let joined = batch * inner;
    let a = cx.permute(a, vec![1, 0, 2])?;
    let a = cx.reshape(a, vec![rows.clone(), joined.clone()])?;
    let b = cx.reshape(b, vec![joined, columns.clone()])?;
    let product = cx.emit(Matmul { transpose_b: false }, &[a, b])?;
    added(cx, product)
}

/// Sums of products along the last axis of both.
pub(super) fn inner(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b) = (cx.tensor("self")?, cx.tensor("other")?);
    if cx.rank(a) == 0 || cx.rank(b) == 0 {
        return cx.binary(BinaryFn::Mul, a, b);
    }
    contract(cx, a, b, &[cx.rank(a) - 1], &[cx.rank(b) - 1])
}

/// Sums of products along axes of one and of the other; the axes that stay stand in order.
fn contract(cx: &mut Cx<'_, '_>, a: ValueId, b: ValueId, of_a: &[usize], of_b: &[usize]) -> Res<ValueId> {
    let kept = |cx: &Cx<'_, '_>, v: ValueId, axes: &[usize]| -> Vec<usize> {
        (0..cx.rank(v)).filter(|i| !axes.contains(i)).collect()
    };
    let (left, right) = (kept(cx, a, of_a), kept(cx, b, of_b));
    let sizes = |cx: &Cx<'_, '_>, v: ValueId, axes: &[usize]| -> Vec<Dim> {
        axes.iter().filter_map(|i| cx.ty(v).shape.get(*i).cloned()).collect()
    };
    let product = |list: &[Dim]| list.iter().product::<Dim>();
    let (rows, columns) = (sizes(cx, a, &left), sizes(cx, b, &right));
    // An axis of one element stands for as many as the other has.
    let (mut a, mut b) = (a, b);
    for (i, j) in of_a.iter().zip(of_b) {
        let (n, m) = (sizes(cx, a, &[*i]), sizes(cx, b, &[*j]));
        if n != m {
            let one = |v: &[Dim]| v.first().is_some_and(|d| d.is(1));
            if one(&n) {
                b = cx.reduce(ReduceFn::Sum, b, &[*j], true)?;
            } else if one(&m) {
                a = cx.reduce(ReduceFn::Sum, a, &[*i], true)?;
            }
        }
    }
    let inner = product(&sizes(cx, a, of_a));
    let a = cx.permute(a, left.iter().chain(of_a).copied().collect())?;
    let b = cx.permute(b, of_b.iter().chain(&right).copied().collect())?;
    let a = cx.reshape(a, vec![product(&rows), inner.clone()])?;
    let b = cx.reshape(b, vec![inner, product(&columns)])?;
    let out = crate::build::product(cx, a, b)?;
    cx.reshape(out, [rows, columns].concat())
}

pub(super) fn tensordot(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b) = (cx.tensor("self")?, cx.tensor("other")?);
    let (ra, rb) = (cx.rank(a), cx.rank(b));
    let of_a = cx.ints("dims_self")?.into_iter().map(|d| cx.axis(d, ra)).collect::<Res<Vec<_>>>()?;
    let of_b = cx.ints("dims_other")?.into_iter().map(|d| cx.axis(d, rb)).collect::<Res<Vec<_>>>()?;
    contract(cx, a, b, &of_a, &of_b)
}

/// `x1·W·x2` for each output feature, with a bias.
pub(super) fn bilinear(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b, weight) = (cx.tensor("input1")?, cx.tensor("input2")?, cx.tensor("weight")?);
    let bias = cx.optional_tensor("bias")?;
    let (Some(la), Some(lb)) = (cx.rank(a).checked_sub(1), cx.rank(b).checked_sub(1)) else {
        return wrong("expected tensors with axes");
    };
    // [.., 1, i] × [o, i, j] -> [.., o, j], then the sum with [.., 1, j].
    let (rows, shape) = (cx.unsqueeze(a, la)?, cx.shape(weight));
    let [o, i, j] = shape.as_slice() else { return wrong("expected a weight with three axes") };
    let flat = cx.permute(weight, vec![1, 0, 2])?;
    let flat = cx.reshape(flat, vec![i.clone(), o * j])?;
    let half = crate::build::product(cx, rows, flat)?;
    let mut split = cx.shape(a);
    split.pop();
    split.extend([o.clone(), j.clone()]);
    let half = cx.reshape(half, split)?;
    let right = cx.unsqueeze(b, lb)?;
    let products = cx.binary(BinaryFn::Mul, half, right)?;
    let last = cx.rank(products).saturating_sub(1);
    let out = cx.reduce(ReduceFn::Sum, products, &[last], false)?;
    match bias {
        Some(bias) => cx.binary(BinaryFn::Add, out, bias),
        None => Ok(out),
    }
}

pub(super) fn vecdot(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b) = (cx.tensor("x")?, cx.tensor("y")?);
    let product = cx.binary(BinaryFn::Mul, a, b)?;
    let axis = cx.axis_arg("dim", Some(-1), cx.rank(product))?;
    cx.reduce(ReduceFn::Sum, product, &[axis], false)
}

pub(super) fn multi_dot(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let list = cx.tensors("tensors")?;
    let mut rest = list.into_iter();
    let Some(mut out) = rest.next() else { return wrong("expected tensors") };
    for v in rest {
        out = crate::build::product(cx, out, v)?;
    }
    Ok(out)
}

/// Each element of one times all of the other.
pub(super) fn kron(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b) = (Operand::Tensor(cx.tensor("self")?), Operand::Tensor(cx.tensor("other")?));
    let dtype = result_type(cx, &[&a, &b])?;
    let (a, b) = (value(cx, &a, dtype)?, value(cx, &b, dtype)?);
    let rank = cx.rank(a).max(cx.rank(b));
    let whole = |cx: &Cx<'_, '_>, v: ValueId| {
        let mut shape = vec![Dim::new(1); rank - cx.rank(v)];
        shape.extend(cx.shape(v));
        shape
    };
    let (sa, sb) = (whole(cx, a), whole(cx, b));
    let (mut left, mut right, mut joined) = (Vec::new(), Vec::new(), Vec::new());
    for (m, n) in sa.iter().zip(&sb) {
        left.extend([m.clone(), Dim::new(1)]);
        right.extend([Dim::new(1), n.clone()]);
        joined.push(m * n);
    }
    let (a, b) = (cx.reshape(a, left)?, cx.reshape(b, right)?);
    let out = cx.binary(BinaryFn::Mul, a, b)?;
    cx.reshape(out, joined)
}

/// Rows times the matrix of their group, of which `offs` says where each ends: experts of a mixture. Rows behind the last
/// group are zero.
pub(super) fn grouped(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, weight, ends) = (cx.tensor("input")?, cx.tensor("weight")?, cx.tensor("offs")?);
    let (Some(rows), Some(groups)) = (cx.ty(x).shape.first().cloned(), cx.ty(weight).shape.first().cloned()) else {
        return wrong("expected rows and matrices");
    };
    // Every matrix times all rows: which rows it is for, only running tells.
    let mut wide = vec![groups.clone()];
    wide.extend(cx.shape(x));
    let wide = cx.expand(x, wide)?;
    let all = cx.emit(Matmul { transpose_b: false }, &[wide, weight])?;
    let row = cx.iota(rows, 0, 1)?;
    let column = cx.unsqueeze(row, 1)?;
    let ends = cx.cast(ends, DType::I64)?;
    let behind = cx.compare(CompareFn::Ge, column, ends)?;
    let behind = cx.cast(behind, DType::I64)?;
    let group = cx.reduce(ReduceFn::Sum, behind, &[1], false)?;
    let count = cx.dim_value(&groups, DType::I64)?;
    let inside = cx.compare(CompareFn::Lt, group, count)?;
    let inside = cx.unsqueeze(inside, 1)?;
    let last = cx.dim_value(&(&groups - &Dim::new(1)), DType::I64)?;
    let group = cx.binary(BinaryFn::Min, group, last)?;
    let out = cx.emit(Index { axis: 0 }, &[all, group, row])?;
    let zero = cx.float_like(0.0, out)?;
    cx.select(inside, out, zero)
}

pub(super) fn einsum(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let equation = cx.optional_text("equation")?.unwrap_or("");
    let values = cx.tensors("tensors")?;
    crate::build::einsum(cx, equation, values)
}
