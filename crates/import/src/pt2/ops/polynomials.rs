//! Orthogonal polynomials. Chebyshev polynomials of four kinds have closed forms: with `x = cos θ`, or `cosh θ` where it is
//! larger.

use regraft_ir::ops::{BinaryFn, CompareFn, UnaryFn};
use regraft_tensor::DType;

use super::functions::floats;
use crate::pt2::args::{Cx, Res, ValueId};

/// Which polynomial.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Kind {
    /// `cos(nθ)`
    First,
    /// `sin((n + 1)θ)/sin(θ)`
    Second,
    /// `cos((n + 1/2)θ)/cos(θ/2)`
    Third,
    /// `sin((n + 1/2)θ)/sin(θ/2)`
    Fourth,
}

/// A polynomial that is an op by itself, in f64.
pub(super) fn by_recurrence(cx: &mut Cx<'_, '_>, f: BinaryFn) -> Res<ValueId> {
    let (x, n) = floats(cx)?;
    let dtype = cx.dtype_of(x);
    let (x, n) = (cx.cast(x, DType::F64)?, cx.cast(n, DType::F64)?);
    let n = cx.unary(UnaryFn::Trunc, n)?;
    let mut out = cx.binary(f, x, n)?;
    if matches!(f, BinaryFn::HermiteH | BinaryFn::HermiteHe) {
        // PyTorch stops where they overflow.
        let over = cx.compare_with(CompareFn::Gt, n, if dtype == DType::F64 { 512.0 } else { 128.0 })?;
        let none = cx.float(f64::NAN, DType::F64)?;
        out = cx.select(over, none, out)?;
    }
    cx.cast(out, dtype)
}

/// The polynomial of degree `n` at `x`, or at `2x - 1`.
pub(super) fn chebyshev(cx: &mut Cx<'_, '_>, kind: Kind, shifted: bool) -> Res<ValueId> {
    let (x, n) = floats(cx)?;
    let dtype = cx.dtype_of(x);
    let (mut x, n) = (cx.cast(x, DType::F64)?, cx.cast(n, DType::F64)?);
    let n = cx.unary(UnaryFn::Trunc, n)?;
    if shifted {
        x = cx.with_literal(BinaryFn::Mul, x, 2.0)?;
        x = cx.with_literal(BinaryFn::Sub, x, 1.0)?;
    }
    let size = cx.unary(UnaryFn::Abs, x)?;
    let of_size = at(cx, kind, size, n)?;
    // At -x the third and fourth kinds are one another, and odd degrees change the sign.
    let mirrored = match kind {
        Kind::Third => at(cx, Kind::Fourth, size, n)?,
        Kind::Fourth => at(cx, Kind::Third, size, n)?,
        Kind::First | Kind::Second => of_size,
    };
    let two = cx.float(2.0, DType::F64)?;
    let odd = cx.binary(BinaryFn::Fmod, n, two)?;
    let sign = cx.with_literal(BinaryFn::Mul, odd, -2.0)?;
    let sign = cx.with_literal(BinaryFn::Add, sign, 1.0)?;
    let mirrored = cx.binary(BinaryFn::Mul, mirrored, sign)?;
    let below = cx.compare_with(CompareFn::Lt, x, 0.0)?;
    let out = cx.select(below, mirrored, of_size)?;
    let none = cx.compare_with(CompareFn::Lt, n, 0.0)?;
    let zero = cx.float(0.0, DType::F64)?;
    let out = cx.select(none, zero, out)?;
    cx.cast(out, dtype)
}

/// The polynomial at `x` of 0 and more.
fn at(cx: &mut Cx<'_, '_>, kind: Kind, x: ValueId, n: ValueId) -> Res<ValueId> {
    let inside = {
        let x = cx.with_literal(BinaryFn::Min, x, 1.0)?;
        let angle = cx.unary(UnaryFn::Acos, x)?;
        ratio(cx, kind, angle, n, [UnaryFn::Cos, UnaryFn::Sin])?
    };
    let outside = {
        let x = cx.with_literal(BinaryFn::Max, x, 1.0)?;
        let angle = cx.unary(UnaryFn::Acosh, x)?;
        ratio(cx, kind, angle, n, [UnaryFn::Cosh, UnaryFn::Sinh])?
    };
    let large = cx.compare_with(CompareFn::Gt, x, 1.0)?;
    let out = cx.select(large, outside, inside)?;
    // Where both sines are 0.
    let limit = match kind {
        Kind::First | Kind::Third => return Ok(out),
        Kind::Second => cx.with_literal(BinaryFn::Add, n, 1.0)?,
        Kind::Fourth => {
            let twice = cx.with_literal(BinaryFn::Mul, n, 2.0)?;
            cx.with_literal(BinaryFn::Add, twice, 1.0)?
        }
    };
    let one = cx.compare_with(CompareFn::Eq, x, 1.0)?;
    cx.select(one, limit, out)
}

fn ratio(cx: &mut Cx<'_, '_>, kind: Kind, angle: ValueId, n: ValueId, [cos, sin]: [UnaryFn; 2]) -> Res<ValueId> {
    let (f, more, part) = match kind {
        Kind::First => (cos, 0.0, None),
        Kind::Second => (sin, 1.0, Some(1.0)),
        Kind::Third => (cos, 0.5, Some(0.5)),
        Kind::Fourth => (sin, 0.5, Some(0.5)),
    };
    let times = cx.with_literal(BinaryFn::Add, n, more)?;
    let times = cx.binary(BinaryFn::Mul, times, angle)?;
    let above = cx.unary(f, times)?;
    let Some(part) = part else { return Ok(above) };
    let below = cx.with_literal(BinaryFn::Mul, angle, part)?;
    let below = cx.unary(f, below)?;
    cx.binary(BinaryFn::Div, above, below)
}
