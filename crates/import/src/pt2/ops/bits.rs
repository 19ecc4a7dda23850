//! What floats are made of: mantissa and exponent, and their neighbors. Computed in f64, which holds all narrower floats.

use regraft_ir::ops::{BinaryFn, CompareFn, UnaryFn};
use regraft_tensor::DType;

use super::{
    elementwise::{float_arg, greatest},
    functions::floats,
};
use crate::pt2::args::{Cx, Res, ValueId, unsupported};

/// `log2(x)` rounded down, for `x` above 0: the rounded logarithm may be one off.
fn exponent(cx: &mut Cx<'_, '_>, x: ValueId) -> Res<ValueId> {
    let log = cx.unary(UnaryFn::Log, x)?;
    let log = cx.with_literal(BinaryFn::Mul, log, std::f64::consts::LOG2_E)?;
    let near = cx.unary(UnaryFn::Floor, log)?;
    // x / 2^near lies close to or within 1..2.
    let power = power_of_two(cx, near)?;
    let rest = cx.binary(BinaryFn::Div, x, power)?;
    let low = cx.compare_with(CompareFn::Lt, rest, 1.0)?;
    let high = cx.compare_with(CompareFn::Ge, rest, 2.0)?;
    let (low, high) = (cx.cast(low, DType::F64)?, cx.cast(high, DType::F64)?);
    let near = cx.binary(BinaryFn::Sub, near, low)?;
    cx.binary(BinaryFn::Add, near, high)
}

fn power_of_two(cx: &mut Cx<'_, '_>, exponent: ValueId) -> Res<ValueId> {
    let two = cx.float(2.0, DType::F64)?;
    cx.binary(BinaryFn::Pow, two, exponent)
}

/// Mantissas from 0.5 to 1 and exponents (`i32`), so that `x = mantissa·2^exponent`; 0, infinity and NaN are their own mantissas.
pub(super) fn frexp(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    let x = float_arg(cx, "self")?;
    let dtype = cx.dtype_of(x);
    let x = cx.cast(x, DType::F64)?;
    let size = cx.unary(UnaryFn::Abs, x)?;
    let above = cx.compare_with(CompareFn::Gt, size, 0.0)?;
    let below = cx.compare_with(CompareFn::Lt, size, f64::INFINITY)?;
    let plain = cx.binary(BinaryFn::And, above, below)?;
    let one = cx.float(1.0, DType::F64)?;
    let size = cx.select(plain, size, one)?;
    let exponent = exponent(cx, size)?;
    let power = power_of_two(cx, exponent)?;
    let mantissa = cx.binary(BinaryFn::Div, size, power)?;
    let mantissa = cx.with_literal(BinaryFn::Mul, mantissa, 0.5)?;
    let mantissa = cx.binary(BinaryFn::Copysign, mantissa, x)?;
    let mantissa = cx.select(plain, mantissa, x)?;
    let exponent = cx.with_literal(BinaryFn::Add, exponent, 1.0)?;
    let zero = cx.float(0.0, DType::F64)?;
    let exponent = cx.select(plain, exponent, zero)?;
    Ok(vec![Some(cx.cast(mantissa, dtype)?), Some(cx.cast(exponent, DType::I32)?)])
}

/// The next number of the dtype towards `other`.
pub(super) fn next_after(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, other) = floats(cx)?;
    let dtype = cx.dtype_of(x);
    // Digits behind the first, and the exponent below which there are fewer.
    let (digits, least) = match dtype {
        DType::F32 => (23.0, -126.0),
        DType::F16 => (10.0, -14.0),
        DType::BF16 => (7.0, -126.0),
        _ => return unsupported(format!("nextafter() of {dtype}"), "compute it in f32"),
    };
    let (x, other) = (cx.cast(x, DType::F64)?, cx.cast(other, DType::F64)?);
    let size = cx.unary(UnaryFn::Abs, x)?;
    let zero = cx.compare_with(CompareFn::Eq, x, 0.0)?;
    let endless = cx.compare_with(CompareFn::Eq, size, f64::INFINITY)?;
    let one = cx.float(1.0, DType::F64)?;
    let safe = cx.select(zero, one, size)?;
    let safe = cx.select(endless, one, safe)?;
    let own = exponent(cx, safe)?;
    let lowest = cx.float(least, DType::F64)?;
    let own = cx.select(zero, lowest, own)?;
    let own = cx.with_literal(BinaryFn::Max, own, least)?;
    // Away from 0 by a step; towards it by half of one where a power of two is left.
    let step = cx.with_literal(BinaryFn::Sub, own, digits)?;
    let step = power_of_two(cx, step)?;
    let power = power_of_two(cx, own)?;
    let round = cx.compare(CompareFn::Eq, size, power)?;
    let normal = cx.compare_with(CompareFn::Gt, own, least)?;
    let halved = cx.binary(BinaryFn::And, round, normal)?;
    let half = cx.with_literal(BinaryFn::Mul, step, 0.5)?;
    let back = cx.select(halved, half, step)?;
    let outer = cx.binary(BinaryFn::Add, size, step)?;
    let inner = cx.binary(BinaryFn::Sub, size, back)?;
    let finite = cx.float(greatest(dtype), DType::F64)?;
    let inner = cx.select(endless, finite, inner)?;
    // Towards 0 is where the difference has another sign than `x`.
    let apart = cx.binary(BinaryFn::Sub, other, x)?;
    let sign = cx.binary(BinaryFn::Copysign, one, x)?;
    let along = cx.binary(BinaryFn::Mul, apart, sign)?;
    let towards = cx.compare_with(CompareFn::Lt, along, 0.0)?;
    let not_zero = cx.unary(UnaryFn::Not, zero)?;
    let towards = cx.binary(BinaryFn::And, towards, not_zero)?;
    let out = cx.select(towards, inner, outer)?;
    let sign_of = cx.select(zero, apart, x)?;
    let out = cx.binary(BinaryFn::Copysign, out, sign_of)?;
    let same = cx.compare(CompareFn::Eq, x, other)?;
    let out = cx.select(same, other, out)?;
    let sum = cx.binary(BinaryFn::Add, x, other)?;
    let nan = cx.is_nan(x)?;
    let other_nan = cx.is_nan(other)?;
    let nan = cx.binary(BinaryFn::Or, nan, other_nan)?;
    let out = cx.select(nan, sum, out)?;
    cx.cast(out, dtype)
}
