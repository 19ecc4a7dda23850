//! Matrix products. A product with a matrix of weights becomes `linear`, one of two computed values `matmul`.

use regraft_ir::ops::{BinaryFn, CompareFn, Matmul, UnaryFn};
use regraft_tensor::{DType, Dim};

use super::{elementwise, linalg};
use crate::{
    build::{LARGEST_BY_MINORS, determinant, linear_op, matrices, product, transposed},
    pt2::args::{Cx, Number, Operand, Res, ValueId},
};

pub(super) fn linear(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, weight, bias) = (cx.tensor("input")?, cx.tensor("weight")?, cx.optional_tensor("bias")?);
    if cx.rank(weight) != 2 {
        // A vector of weights: a dot product.
        let out = product(cx, x, weight)?;
        return match bias {
            Some(bias) => cx.binary(BinaryFn::Add, out, bias),
            None => Ok(out),
        };
    }
    if !cx.dtype_of(x).is_float() {
        let turned = transposed(cx, weight)?;
        let out = product(cx, x, turned)?;
        return match bias {
            Some(bias) => cx.binary(BinaryFn::Add, out, bias),
            None => Ok(out),
        };
    }
    cx.emit_opt(linear_op(), vec![Some(x), Some(weight), bias])
}

fn matrix(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    cx.tensor(if cx.has("A") { "A" } else { "self" })
}

/// Whether the minors of the first rows are few; of larger matrices there are factors.
fn is_small(cx: &Cx<'_, '_>, x: ValueId) -> bool {
    cx.ty(x).shape.last().and_then(Dim::as_usize).is_some_and(|n| n <= LARGEST_BY_MINORS)
}

pub(super) fn det(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = matrix(cx)?;
    if is_small(cx, x) {
        return determinant(cx, x);
    }
    let dtype = cx.dtype_of(x);
    let x = cx.cast(x, DType::F64)?;
    let det = linalg::determinant(cx, x)?;
    cx.cast(det, dtype)
}

pub(super) fn logdet(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let [sign, log] = sign_and_log(cx)?;
    // A negative determinant has no logarithm.
    let none = cx.float_like(f64::NAN, log)?;
    let below = cx.compare_with(CompareFn::Lt, sign, 0.0)?;
    cx.select(below, none, log)
}

fn sign_and_log(cx: &mut Cx<'_, '_>) -> Res<[ValueId; 2]> {
    let x = matrix(cx)?;
    if is_small(cx, x) {
        let det = determinant(cx, x)?;
        let size = cx.unary(UnaryFn::Abs, det)?;
        return Ok([cx.unary(UnaryFn::Sign, det)?, cx.unary(UnaryFn::Log, size)?]);
    }
    let dtype = cx.dtype_of(x);
    let x = cx.cast(x, DType::F64)?;
    let [sign, log] = linalg::sign_and_log(cx, x)?;
    Ok([cx.cast(sign, dtype)?, cx.cast(log, dtype)?])
}

/// The sign of the determinant, and the logarithm of its size.
pub(super) fn slogdet(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    Ok(sign_and_log(cx)?.map(Some).to_vec())
}

pub(super) fn matmul(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b) = (cx.tensor("self")?, cx.tensor("other")?);
    product(cx, a, b)
}

pub(super) fn mm(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b) = (cx.tensor("self")?, cx.tensor("mat2")?);
    matrices(cx, a, b)
}

pub(super) fn bmm(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b) = (cx.tensor("self")?, cx.tensor("mat2")?);
    cx.emit(Matmul { transpose_b: false }, &[a, b])
}

pub(super) fn mv(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b) = (cx.tensor("self")?, cx.tensor("vec")?);
    product(cx, a, b)
}

pub(super) fn dot(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    // `vdot`, which conjugates complex numbers, calls it `other`.
    let b = if cx.has("tensor") { "tensor" } else { "other" };
    let (a, b) = (cx.tensor("self")?, cx.tensor(b)?);
    product(cx, a, b)
}

pub(super) fn outer(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b) = (cx.operand("self")?, cx.operand("vec2")?);
    let dtype = elementwise::result_type(cx, &[&a, &b])?;
    let (a, b) = (elementwise::value(cx, &a, dtype)?, elementwise::value(cx, &b, dtype)?);
    let a = cx.unsqueeze(a, 1)?;
    cx.binary(BinaryFn::Mul, a, b)
}

/// `beta·x`, `None` for beta 0.
fn scaled(cx: &mut Cx<'_, '_>, x: ValueId, factor: &Number) -> Res<Option<ValueId>> {
    if factor.is(0.0) {
        return Ok(None);
    }
    if factor.is(1.0) {
        return Ok(Some(x));
    }
    let dtype = cx.dtype_of(x);
    elementwise::apply(cx, BinaryFn::Mul, &Operand::Tensor(x), &Operand::Number(factor.clone()), dtype).map(Some)
}

fn factors(cx: &Cx<'_, '_>) -> Res<(Number, Number)> {
    Ok((cx.number_or("beta", Number::Int(1))?, cx.number_or("alpha", Number::Int(1))?))
}

/// `beta·self + alpha·(a · b)`, which PyTorch rounds once.
fn add_product(cx: &mut Cx<'_, '_>, a: ValueId, b: ValueId, batched: bool) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let (beta, alpha) = factors(cx)?;
    let out = if batched { cx.emit(Matmul { transpose_b: false }, &[a, b])? } else { matrices(cx, a, b)? };
    let out = match scaled(cx, out, &alpha)? {
        Some(out) => out,
        None => cx.with_literal(BinaryFn::Mul, out, 0.0)?,
    };
    match scaled(cx, x, &beta)? {
        Some(x) => cx.binary(BinaryFn::Add, out, x),
        None => Ok(out),
    }
}

pub(super) fn addmm(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, a, b) = (cx.tensor("self")?, cx.tensor("mat1")?, cx.tensor("mat2")?);
    let (beta, alpha) = factors(cx)?;
    let columns = cx.ty(b).shape.get(1).cloned().unwrap_or(Dim::new(1));
    let is_bias = cx.ty(x).shape == [columns] && cx.dtype_of(x) != DType::Bool;
    if is_bias && beta.is(1.0) && alpha.is(1.0) && cx.is_constant(b) && cx.dtype_of(a).is_float() {
        let weight = transposed(cx, b)?;
        return cx.emit(linear_op(), &[a, weight, x]);
    }
    let out = cx.in_f32(|cx| {
        let (a, b) = (cx.tensor("mat1")?, cx.tensor("mat2")?);
        add_product(cx, a, b, false)
    })?;
    cx.narrowed(0, out)
}

pub(super) fn baddbmm(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b) = (cx.tensor("batch1")?, cx.tensor("batch2")?);
    add_product(cx, a, b, true)
}
