//! The exponential of matrices, by scaling and squaring, in f64 and rounded once.

use regraft_ir::ops::{BinaryFn, CompareFn, ReduceFn, UnaryFn};
use regraft_tensor::DType;

use super::linalg::wide;
use crate::pt2::args::{Cx, Res, ValueId};

/// The largest norm for which the Taylor polynomial is as exact as f64: its rest is below `0.5^13/13!`.
const NORM: f64 = 0.5;
/// How often a matrix is halved at most, and squared again. One whose norm is larger than this allows gives NaN: squaring
/// would have lost its digits anyway.
const HALVINGS: i32 = 24;

/// `e^A`, of each matrix with as many squarings as it needs: all are computed, and those that a matrix does not need are not
/// taken.
pub(super) fn matrix_exp(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, dtype) = wide(cx, "self")?;
    if cx.ty(a).shape.last().is_some_and(|size| size.is(0)) {
        return cx.cast(a, dtype);
    }
    let rank = cx.rank(a);
    let size = cx.unary(UnaryFn::Abs, a)?;
    let columns = cx.reduce(ReduceFn::Sum, size, &[rank - 2], true)?;
    let norm = cx.reduce(ReduceFn::Max, columns, &[rank - 1], true)?;
    // Whether the norm asks for the halving, from the first on.
    let mut needed = Vec::new();
    let mut scaled = a;
    for halving in 0..HALVINGS {
        let need = cx.compare_with(CompareFn::Gt, norm, NORM * f64::from(halving).exp2())?;
        let half = cx.with_literal(BinaryFn::Mul, scaled, 0.5)?;
        scaled = cx.select(need, half, scaled)?;
        needed.push(need);
    }
    let mut power = taylor(cx, scaled)?;
    for need in needed {
        let square = cx.times(power, power)?;
        power = cx.select(need, square, power)?;
    }
    let fits = cx.compare_with(CompareFn::Le, norm, NORM * f64::from(HALVINGS).exp2())?;
    let nan = cx.float(f64::NAN, DType::F64)?;
    let out = cx.select(fits, power, nan)?;
    cx.cast(out, dtype)
}

/// `Σ A^k/k!` up to the twelfth power, by powers of the third.
fn taylor(cx: &mut Cx<'_, '_>, a: ValueId) -> Res<ValueId> {
    let (batch, m, n) = cx.matrix_shape(a)?;
    let one = cx.identity(&batch, &m, &n, DType::F64)?;
    let second = cx.times(a, a)?;
    let third = cx.times(second, a)?;
    let factor = |k: i32| 1.0 / (1..=k).map(f64::from).product::<f64>();
    let mut sum = cx.with_literal(BinaryFn::Mul, one, factor(12))?;
    for block in (0..4).rev() {
        sum = cx.times(sum, third)?;
        for (power, k) in [one, a, second].into_iter().zip(3 * block..) {
            let term = cx.with_literal(BinaryFn::Mul, power, factor(k))?;
            sum = cx.binary(BinaryFn::Add, sum, term)?;
        }
    }
    Ok(sum)
}
