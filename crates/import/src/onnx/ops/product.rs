//! Matrix products and determinants.

use regraft_ir::ops::{BinaryFn, Matmul};
use regraft_tensor::DType;

use crate::{
    build::{determinant as determinant_of, einsum as sum_of_products, linear_op, product, transposed},
    onnx::args::{Cx, Res, ValueId, wrong},
};

pub(super) fn matmul(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b) = (cx.input(0)?, cx.input(1)?);
    product(cx, a, b)
}

pub(super) fn einsum(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let equation = cx.text("equation", "")?;
    let values = cx.inputs()?;
    sum_of_products(cx, equation, values)
}

/// `alpha·A'·B' + beta·C`. What a linear layer is becomes `linear`.
pub(super) fn gemm(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (mut a, b, c) = (cx.input(0)?, cx.input(1)?, cx.optional(2)?);
    let (alpha, beta) = (cx.float_attr("alpha", 1.0)?, cx.float_attr("beta", 1.0)?);
    let (turn_a, turn_b) = (cx.flag("transA", false)?, cx.flag("transB", false)?);
    if cx.rank(a) != 2 || cx.rank(b) != 2 {
        return wrong("expected two matrices");
    }
    if turn_a {
        a = transposed(cx, a)?;
    }
    let floats = cx.dtype_of(a).is_float();
    let weight = cx.is_constant(b) && !cx.is_constant(a) && floats;
    let bias = c.filter(|c| weight && alpha == 1.0 && beta == 1.0 && cx.rank(*c) == 1 && cx.is_constant(*c));
    let columns = cx.ty(b).shape.get(usize::from(!turn_b)).cloned();
    let bias = bias.filter(|c| cx.ty(*c).shape.first() == columns.as_ref());
    let mut out = if weight {
        let b = if turn_b { b } else { transposed(cx, b)? };
        cx.emit_opt(linear_op(), vec![Some(a), Some(b), bias])?
    } else {
        cx.emit(Matmul { transpose_b: turn_b }, &[a, b])?
    };
    if bias.is_some() {
        return Ok(out);
    }
    let scaled = |cx: &mut Cx<'_, '_>, x: ValueId, factor: f64| match factor {
        1.0 => Ok(x),
        factor if floats => cx.with_literal(BinaryFn::Mul, x, factor),
        _ => wrong("factors of whole numbers"),
    };
    out = scaled(cx, out, alpha)?;
    match c {
        Some(c) if beta != 0.0 => {
            let c = scaled(cx, c, beta)?;
            cx.binary(BinaryFn::Add, out, c)
        }
        _ => Ok(out),
    }
}

/// A product of whole numbers, each less its zero point. Computed in f64, which holds all sums that fit.
pub(super) fn integers(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b) = (cx.input(0)?, cx.input(1)?);
    let a = shifted(cx, a, 2, true)?;
    let b = shifted(cx, b, 3, false)?;
    let out = cx.emit(Matmul { transpose_b: false }, &[a, b])?;
    cx.cast(out, DType::I32)
}

fn shifted(cx: &mut Cx<'_, '_>, x: ValueId, zero: usize, rows: bool) -> Res<ValueId> {
    let x = cx.cast(x, DType::F64)?;
    let Some(mut zero) = cx.optional(zero)? else { return Ok(x) };
    zero = cx.cast(zero, DType::F64)?;
    // One for each row of the first operand, or for each column of the second.
    if rows && cx.rank(zero) == 1 {
        zero = cx.unsqueeze(zero, 1)?;
    }
    cx.binary(BinaryFn::Sub, x, zero)
}

/// The determinant of square matrices in the last two axes.
pub(super) fn determinant(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    determinant_of(cx, x)
}
