//! Functions of one or two values that take several ops.

use regraft_ir::ops::{BinaryFn, CompareFn, UnaryFn};
use regraft_tensor::DType;

use super::elementwise::{apply, float_arg, result_type, to_float, two, value};
use crate::pt2::args::{Cx, Number, Operand, Res, ValueId, unsupported, wrong};

/// Both operands as floats of one dtype.
pub(super) fn floats(cx: &mut Cx<'_, '_>) -> Res<(ValueId, ValueId)> {
    let (a, b) = two(cx)?;
    let dtype = to_float(result_type(cx, &[&a, &b])?);
    Ok((value(cx, &a, dtype)?, value(cx, &b, dtype)?))
}

/// A function of two floats; integers count as floats.
pub(super) fn binary_float(cx: &mut Cx<'_, '_>, f: BinaryFn) -> Res<ValueId> {
    let (a, b) = floats(cx)?;
    cx.binary(f, a, b)
}

/// `x·2^y`.
pub(super) fn ldexp(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, y) = two(cx)?;
    let dtype = cx.result_dtype().unwrap_or(DType::F32);
    let two = Operand::Number(Number::Float(2.0));
    let inner = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let power = apply(cx, BinaryFn::Pow, &two, &y, inner)?;
    let out = apply(cx, BinaryFn::Mul, &x, &Operand::Tensor(power), inner)?;
    cx.cast(out, dtype)
}

/// `x·log(y)`, or `x·log(1 + y)`: 0 where `x` is, NaN where `y` is.
pub(super) fn x_log_y(cx: &mut Cx<'_, '_>, log: UnaryFn) -> Res<ValueId> {
    let (x, y) = floats(cx)?;
    let logarithm = cx.unary(log, y)?;
    let product = cx.binary(BinaryFn::Mul, x, logarithm)?;
    let none = cx.compare_with(CompareFn::Eq, x, 0.0)?;
    let zero = cx.float_like(0.0, x)?;
    let out = cx.select(none, zero, product)?;
    let nan = cx.is_nan(y)?;
    cx.select(nan, y, out)
}

/// `log(e^a + e^b)` by the greater of both, which overflows nowhere; to base 2 likewise.
pub(super) fn log_add_exp(cx: &mut Cx<'_, '_>, base2: bool) -> Res<ValueId> {
    let (a, b) = floats(cx)?;
    let high = cx.binary(BinaryFn::Max, a, b)?;
    let apart = cx.binary(BinaryFn::Sub, a, b)?;
    let apart = cx.unary(UnaryFn::Abs, apart)?;
    let scale = if base2 { std::f64::consts::LN_2 } else { 1.0 };
    let apart = cx.with_literal(BinaryFn::Mul, apart, -scale)?;
    let power = cx.unary(UnaryFn::Exp, apart)?;
    let rest = cx.unary(UnaryFn::Log1p, power)?;
    let rest = cx.with_literal(BinaryFn::Mul, rest, 1.0 / scale)?;
    let sum = cx.binary(BinaryFn::Add, high, rest)?;
    // Equal infinities have no difference.
    let same = cx.compare(CompareFn::Eq, a, b)?;
    let size = cx.unary(UnaryFn::Abs, a)?;
    let endless = cx.compare_with(CompareFn::Eq, size, f64::INFINITY)?;
    let same = cx.binary(BinaryFn::And, same, endless)?;
    cx.select(same, a, sum)
}

/// 0 or 1 by the sign of `x`, the second operand where it is 0.
pub(super) fn heaviside(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, values) = two(cx)?;
    let dtype = result_type(cx, &[&x, &values])?;
    let (x, values) = (value(cx, &x, dtype)?, value(cx, &values, dtype)?);
    let zero = cx.number_value(&Number::Int(0), dtype)?;
    let above = cx.compare(CompareFn::Gt, x, zero)?;
    let above = cx.cast(above, dtype)?;
    let none = cx.compare(CompareFn::Eq, x, zero)?;
    cx.select(none, values, above)
}

pub(super) fn scaled_angle(cx: &mut Cx<'_, '_>, factor: f64) -> Res<ValueId> {
    let x = float_arg(cx, "self")?;
    cx.with_literal(BinaryFn::Mul, x, factor)
}

/// `sin(πx)/(πx)`.
pub(super) fn sinc(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = float_arg(cx, "self")?;
    let angle = cx.with_literal(BinaryFn::Mul, x, std::f64::consts::PI)?;
    let sine = cx.unary(UnaryFn::Sin, angle)?;
    let ratio = cx.binary(BinaryFn::Div, sine, angle)?;
    let none = cx.compare_with(CompareFn::Eq, x, 0.0)?;
    let one = cx.float_like(1.0, x)?;
    cx.select(none, one, ratio)
}

/// `-x·log(x)`, 0 at 0 and -inf below.
pub(super) fn entr(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = float_arg(cx, "self")?;
    let log = cx.unary(UnaryFn::Log, x)?;
    let product = cx.binary(BinaryFn::Mul, x, log)?;
    let out = cx.unary(UnaryFn::Neg, product)?;
    let (zero, least) = (cx.float_like(0.0, x)?, cx.float_like(f64::NEG_INFINITY, x)?);
    let none = cx.compare(CompareFn::Eq, x, zero)?;
    let out = cx.select(none, zero, out)?;
    let below = cx.compare(CompareFn::Lt, x, zero)?;
    cx.select(below, least, out)
}

/// The normal distribution: `erfc(-x/√2)/2`.
pub(super) fn ndtr(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = float_arg(cx, "self")?;
    let x = cx.with_literal(BinaryFn::Mul, x, -std::f64::consts::FRAC_1_SQRT_2)?;
    let area = cx.unary(UnaryFn::Erfc, x)?;
    cx.with_literal(BinaryFn::Mul, area, 0.5)
}

/// The logarithm of `ndtr`, for small arguments by the scaled `erfc`, which does not underflow.
pub(super) fn log_ndtr(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = float_arg(cx, "self")?;
    let t = cx.with_literal(BinaryFn::Mul, x, std::f64::consts::FRAC_1_SQRT_2)?;
    let minus = cx.unary(UnaryFn::Neg, t)?;
    let scaled = cx.unary(UnaryFn::Erfcx, minus)?;
    let scaled = cx.with_literal(BinaryFn::Mul, scaled, 0.5)?;
    let low = cx.unary(UnaryFn::Log, scaled)?;
    let square = cx.binary(BinaryFn::Mul, t, t)?;
    let low = cx.binary(BinaryFn::Sub, low, square)?;
    let area = cx.unary(UnaryFn::Erfc, t)?;
    let area = cx.with_literal(BinaryFn::Mul, area, -0.5)?;
    let high = cx.unary(UnaryFn::Log1p, area)?;
    let below = cx.compare_with(CompareFn::Lt, x, -1.0)?;
    cx.select(below, low, high)
}

/// `e^-|x|·I(x)`, in f64, where the factors neither overflow nor vanish for what f32 holds of use.
pub(super) fn scaled_bessel(cx: &mut Cx<'_, '_>, f: UnaryFn) -> Res<ValueId> {
    let x = float_arg(cx, "self")?;
    let dtype = cx.dtype_of(x);
    let x = cx.cast(x, DType::F64)?;
    let bessel = cx.unary(f, x)?;
    let size = cx.unary(UnaryFn::Abs, x)?;
    let size = cx.unary(UnaryFn::Neg, size)?;
    let scale = cx.unary(UnaryFn::Exp, size)?;
    let out = cx.binary(BinaryFn::Mul, bessel, scale)?;
    cx.cast(out, dtype)
}

/// `K(x)` from what is scaled by `e^x`, in f64.
pub(super) fn bessel_k(cx: &mut Cx<'_, '_>, f: UnaryFn) -> Res<ValueId> {
    let x = float_arg(cx, "self")?;
    let dtype = cx.dtype_of(x);
    let x = cx.cast(x, DType::F64)?;
    let scaled = cx.unary(f, x)?;
    let minus = cx.unary(UnaryFn::Neg, x)?;
    let scale = cx.unary(UnaryFn::Exp, minus)?;
    let out = cx.binary(BinaryFn::Mul, scaled, scale)?;
    cx.cast(out, dtype)
}

/// The spherical Bessel function of order 0, `sin(x)/x`.
pub(super) fn spherical_bessel(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = float_arg(cx, "x")?;
    let sine = cx.unary(UnaryFn::Sin, x)?;
    let ratio = cx.binary(BinaryFn::Div, sine, x)?;
    let none = cx.compare_with(CompareFn::Eq, x, 0.0)?;
    let (zero, one) = (cx.float_like(0.0, x)?, cx.float_like(1.0, x)?);
    let out = cx.select(none, one, ratio)?;
    let size = cx.unary(UnaryFn::Abs, x)?;
    let endless = cx.compare_with(CompareFn::Eq, size, f64::INFINITY)?;
    cx.select(endless, zero, out)
}

/// The `n`-th derivative of `digamma`: `(-1)^(n+1)·n!·ζ(n + 1, x)`.
pub(super) fn polygamma(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = float_arg(cx, "self")?;
    let order = cx.int("n")?;
    if !(0..=150).contains(&order) {
        return unsupported(format!("polygamma of order {order}"), "use an order from 0 to 150");
    }
    if order == 0 {
        return cx.unary(UnaryFn::Digamma, x);
    }
    let dtype = cx.dtype_of(x);
    // The factorial overflows f32.
    let x = cx.cast(x, DType::F64)?;
    let exponent = cx.float((order + 1) as f64, DType::F64)?;
    let zeta = cx.binary(BinaryFn::Zeta, exponent, x)?;
    let factorial: f64 = (1..=order).map(|i| i as f64).product();
    let factor = if order % 2 == 0 { -factorial } else { factorial };
    let out = cx.with_literal(BinaryFn::Mul, zeta, factor)?;
    cx.cast(out, dtype)
}

/// The logarithm of the multivariate gamma function.
pub(super) fn mvlgamma(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = float_arg(cx, "self")?;
    let p = cx.int("p")?;
    if !(1..=64).contains(&p) {
        return wrong(format!("a multivariate gamma function in {p} dimensions"));
    }
    let start = (p * (p - 1)) as f64 / 4.0 * std::f64::consts::PI.ln();
    let mut sum = cx.float_like(start, x)?;
    for i in 0..p {
        let moved = cx.with_literal(BinaryFn::Sub, x, i as f64 / 2.0)?;
        let part = cx.unary(UnaryFn::Lgamma, moved)?;
        sum = cx.binary(BinaryFn::Add, sum, part)?;
    }
    Ok(sum)
}

/// `round(x, decimals=n)`.
pub(super) fn round_decimals(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let decimals = cx.int_or("decimals", 0)?;
    if !cx.dtype_of(x).is_float() {
        return if decimals >= 0 {
            Ok(x)
        } else {
            unsupported("rounding integers to tens", "divide, round and multiply")
        };
    }
    let Some(power) = i32::try_from(decimals.unsigned_abs()).ok().map(|d| 10f64.powi(d)) else {
        return wrong(format!("rounding to {decimals} decimals"));
    };
    let (there, back) = if decimals >= 0 { (BinaryFn::Mul, BinaryFn::Div) } else { (BinaryFn::Div, BinaryFn::Mul) };
    let x = if decimals == 0 { x } else { cx.with_literal(there, x, power)? };
    let x = cx.unary(UnaryFn::Round, x)?;
    if decimals == 0 { Ok(x) } else { cx.with_literal(back, x, power) }
}

/// Whether `x` is the infinity of this sign.
pub(super) fn is_infinity(cx: &mut Cx<'_, '_>, infinity: f64) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    if !cx.dtype_of(x).is_float() {
        return cx.is_nan(x);
    }
    cx.compare_with(CompareFn::Eq, x, infinity)
}

/// Whether the sign bit is set: also that of -0.
pub(super) fn signbit(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let dtype = cx.dtype_of(x);
    if dtype == DType::Bool {
        return cx.is_nan(x);
    }
    let sign = if dtype.is_float() {
        let one = cx.float(1.0, dtype)?;
        cx.binary(BinaryFn::Copysign, one, x)?
    } else {
        x
    };
    let zero = cx.number_like(&Number::Int(0), sign)?;
    cx.compare(CompareFn::Lt, sign, zero)
}

/// Of real numbers all are.
pub(super) fn isreal(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let truth = cx.literal(regraft_ir::Scalar::Int(1), DType::Bool)?;
    let shape = cx.shape(x);
    cx.expand(truth, shape)
}

/// `|a - b| ≤ atol + rtol·|b|`, or equal.
pub(super) fn isclose(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b) = (cx.tensor("self")?, cx.tensor("other")?);
    let (rtol, atol) = (cx.float_or("rtol", 1e-5)?, cx.float_or("atol", 1e-8)?);
    let mut close = cx.compare(CompareFn::Eq, a, b)?;
    let dtype = cx.dtype_of(a);
    if dtype.is_float() && cx.bool_or("equal_nan", false)? {
        let (left, right) = (cx.is_nan(a)?, cx.is_nan(b)?);
        let both = cx.binary(BinaryFn::And, left, right)?;
        close = cx.binary(BinaryFn::Or, close, both)?;
    }
    if rtol == 0.0 && atol == 0.0 {
        return Ok(close);
    }
    let (a, b) = (cx.cast(a, to_float(dtype))?, cx.cast(b, to_float(dtype))?);
    let size = cx.unary(UnaryFn::Abs, b)?;
    let allowed = cx.with_literal(BinaryFn::Mul, size, rtol)?;
    let allowed = cx.with_literal(BinaryFn::Add, allowed, atol)?;
    let apart = cx.binary(BinaryFn::Sub, a, b)?;
    let apart = cx.unary(UnaryFn::Abs, apart)?;
    let finite = cx.compare_with(CompareFn::Lt, apart, f64::INFINITY)?;
    let near = cx.compare(CompareFn::Le, apart, allowed)?;
    let near = cx.binary(BinaryFn::And, finite, near)?;
    cx.binary(BinaryFn::Or, close, near)
}

/// The greater or lesser of two, of which NaN is neither.
pub(super) fn number_extreme(cx: &mut Cx<'_, '_>, f: BinaryFn) -> Res<ValueId> {
    let (a, b) = two(cx)?;
    let dtype = result_type(cx, &[&a, &b])?;
    let (a, b) = (value(cx, &a, dtype)?, value(cx, &b, dtype)?);
    let out = cx.binary(f, a, b)?;
    if !dtype.is_float() {
        return Ok(out);
    }
    let nan = cx.is_nan(a)?;
    let out = cx.select(nan, b, out)?;
    let nan = cx.is_nan(b)?;
    cx.select(nan, a, out)
}

/// A power in f64.
pub(super) fn float_power(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b) = two(cx)?;
    let (a, b) = (value(cx, &a, DType::F64)?, value(cx, &b, DType::F64)?);
    cx.binary(BinaryFn::Pow, a, b)
}

/// Least common multiple: of nothing it is 0.
pub(super) fn lcm(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b) = two(cx)?;
    let dtype = result_type(cx, &[&a, &b])?;
    let (a, b) = (value(cx, &a, dtype)?, value(cx, &b, dtype)?);
    let divisor = cx.binary(BinaryFn::Gcd, a, b)?;
    let part = cx.binary(BinaryFn::TruncDiv, a, divisor)?;
    let product = cx.binary(BinaryFn::Mul, part, b)?;
    cx.unary(UnaryFn::Abs, product)
}

/// The angle of a real number: 0 or π.
pub(super) fn angle(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = float_arg(cx, "self")?;
    let dtype = cx.dtype_of(x);
    let below = cx.compare_with(CompareFn::Lt, x, 0.0)?;
    let (turn, zero) = (cx.float(std::f64::consts::PI, dtype)?, cx.float(0.0, dtype)?);
    let out = cx.select(below, turn, zero)?;
    let nan = cx.is_nan(x)?;
    cx.select(nan, x, out)
}
