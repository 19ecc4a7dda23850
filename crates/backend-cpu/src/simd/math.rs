//! Elementary functions on one lane, written so that a loop over them vectorizes: clamp, polynomial, bit tricks, no branch.
//!
//! Relative error is at most about 3e-7 over the whole range; NaN goes in and out; infinities give the limit. Where a
//! select has to let NaN through it is spelled `if x < lo { lo } else { x }`, since `f32::max` would drop it.

use super::{Fma, One, functions};

/// `x` limited to `[lo, hi]`; NaN stays NaN.
#[inline(always)]
pub fn clamp(x: f32, lo: f32, hi: f32) -> f32 {
    let x = if x < lo { lo } else { x };
    if x > hi { hi } else { x }
}

/// `max(x, 0)`; NaN stays NaN.
#[inline(always)]
pub fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

/// Adding and subtracting this rounds a small float to an integer, which then stands in the low mantissa bits.
pub(super) const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23

/// `ln 2` in two parts, of which the first has so few digits that small whole multiples of it are exact.
pub(super) const LN2_HI: f32 = 0.693_359_4;
pub(super) const LN2_LO: f32 = -2.121_944_4e-4;

/// `2^n` for `n` in `-126..=127`.
#[inline(always)]
fn exp2_int(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// `e^x`: `x = n ln 2 + r`, a polynomial for `e^r`, and `2^n` in two factors so that subnormal results are right too.
#[inline(always)]
pub fn exp<F: Fma>(x: f32) -> f32 {
    let x = clamp(x, -104.0, 89.0);
    let shifted = F::mul_add(x, std::f32::consts::LOG2_E, ROUND);
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let nf = shifted - ROUND;
    let r = F::mul_add(nf, -LN2_HI, x);
    let r = F::mul_add(nf, -LN2_LO, r);
    let p = F::mul_add(r, 1.987_569_1e-4, 1.398_2e-3);
    let p = F::mul_add(p, r, 8.333_452e-3);
    let p = F::mul_add(p, r, 4.166_579_6e-2);
    let p = F::mul_add(p, r, 1.666_666_5e-1);
    let p = F::mul_add(p, r, 0.5);
    let p = F::mul_add(p, r * r, r) + 1.0;
    let half = n >> 1;
    p * exp2_int(half) * exp2_int(n - half)
}

/// Natural logarithm: the mantissa is brought to `[sqrt(1/2), sqrt(2))`, then a polynomial in `m - 1`.
#[inline(always)]
pub fn log<F: Fma>(x: f32) -> f32 {
    let tiny = x < f32::MIN_POSITIVE;
    let scaled = if tiny { x * 8_388_608.0 } else { x }; // 2^23: subnormals become normal
    let bits = scaled.to_bits() as i32;
    let shifted = bits.wrapping_sub(0x3f35_04f3); // sqrt(1/2)
    let e = shifted >> 23;
    let m = f32::from_bits(((shifted & 0x007f_ffff) + 0x3f35_04f3) as u32);
    let e = e as f32 - if tiny { 23.0 } else { 0.0 };
    let f = m - 1.0;
    let z = f * f;
    let p = F::mul_add(f, 7.037_683_6e-2, -1.151_461e-1);
    let p = F::mul_add(p, f, 1.167_699_9e-1);
    let p = F::mul_add(p, f, -1.242_014_1e-1);
    let p = F::mul_add(p, f, 1.424_932_3e-1);
    let p = F::mul_add(p, f, -1.666_805_8e-1);
    let p = F::mul_add(p, f, 2.000_071_5e-1);
    let p = F::mul_add(p, f, -2.499_999_4e-1);
    let p = F::mul_add(p, f, 3.333_333e-1);
    let y = F::mul_add(e, LN2_LO, p * f * z);
    let y = F::mul_add(z, -0.5, y) + f;
    let y = F::mul_add(e, LN2_HI, y);
    let y = if x == f32::INFINITY { f32::INFINITY } else { y };
    let y = if x == 0.0 { f32::NEG_INFINITY } else { y };
    if x >= 0.0 { y } else { f32::NAN }
}

/// `log(1 + x)`: the logarithm of the rounded sum, corrected for what rounding took.
#[inline(always)]
pub fn log1p<F: Fma>(x: f32) -> f32 {
    let u = 1.0 + x;
    let corrected = log::<F>(u) * (x / (u - 1.0));
    let y = if u == 1.0 { x } else { corrected };
    let y = if x == f32::INFINITY { x } else { y };
    if x == -1.0 { f32::NEG_INFINITY } else { y }
}

/// `e^x - 1`: a Taylor polynomial near zero, the difference beyond.
#[inline(always)]
pub fn expm1<F: Fma>(x: f32) -> f32 {
    let p = F::mul_add(x, 1.0 / 40320.0, 1.0 / 5040.0);
    let p = F::mul_add(p, x, 1.0 / 720.0);
    let p = F::mul_add(p, x, 1.0 / 120.0);
    let p = F::mul_add(p, x, 1.0 / 24.0);
    let p = F::mul_add(p, x, 1.0 / 6.0);
    let p = F::mul_add(p, x, 0.5);
    let small = F::mul_add(p * x, x, x);
    let large = exp::<F>(x) - 1.0;
    if x.abs() < 0.5 { small } else { large }
}

/// `log(1 + e^x)`, and `x` itself above 20.
#[inline(always)]
pub fn softplus<F: Fma>(x: f32) -> f32 {
    let y = log1p::<F>(exp::<F>(x));
    if x > 20.0 { x } else { y }
}

/// Beyond this sine and cosine are left to the library, whose reduction of the argument has as many digits as it takes.
pub const TRIGONOMETRIC_LIMIT: f32 = 1e6;

/// `x - n pi/2` for the nearest `n`, and `n`, in f64: exact to f32 for `|x|` up to [`TRIGONOMETRIC_LIMIT`].
#[inline(always)]
fn quadrant(x: f32) -> (f64, i32) {
    const TO_INT: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52
    const HIGH: f64 = 1.570_796_310_901_641_8; // the first 25 bits of pi/2
    const LOW: f64 = 1.589_325_477_352_819_6e-8;
    let x = f64::from(x);
    let shifted = x * std::f64::consts::FRAC_2_PI + TO_INT;
    let n = shifted - TO_INT;
    (x - n * HIGH - n * LOW, shifted.to_bits() as i32)
}

/// Sine of a reduced argument.
#[inline(always)]
fn sin_reduced(x: f64) -> f64 {
    let z = x * x;
    let p = z * 2.718_311_493_989_822e-6 - 1.983_933_483_609_663_2e-4;
    let p = p * z + 8.333_329_385_889_463e-3;
    let p = p * z - 1.666_666_664_162_655_3e-1;
    x + x * z * p
}

/// Cosine of a reduced argument.
#[inline(always)]
fn cos_reduced(x: f64) -> f64 {
    let z = x * x;
    let p = z * 2.439_044_879_627_741_6e-5 - 1.388_676_377_460_993e-3;
    let p = p * z + 4.166_662_332_373_906e-2;
    let p = p * z - 4.999_999_972_510_31e-1;
    1.0 + z * p
}

/// Sine of `x + turns pi/2`.
#[inline(always)]
fn sin_of(x: f32, turns: i32) -> f32 {
    let (r, n) = quadrant(x);
    let n = n.wrapping_add(turns);
    let y = if n & 1 == 0 { sin_reduced(r) } else { cos_reduced(r) };
    (if n & 2 == 0 { y } else { -y }) as f32
}

/// Sine, for `|x|` up to [`TRIGONOMETRIC_LIMIT`].
#[inline(always)]
pub fn sin(x: f32) -> f32 {
    sin_of(x, 0)
}

/// Cosine, for `|x|` up to [`TRIGONOMETRIC_LIMIT`].
#[inline(always)]
pub fn cos(x: f32) -> f32 {
    sin_of(x, 1)
}

/// Hyperbolic tangent: an odd polynomial near zero, `1 - 2 / (e^{2|x|} + 1)` with the sign of `x` beyond.
#[inline(always)]
pub fn tanh<F: Fma>(x: f32) -> f32 {
    let z = x * x;
    let p = F::mul_add(z, -5.704_988_7e-3, 2.063_909e-2);
    let p = F::mul_add(p, z, -5.373_971_6e-2);
    let p = F::mul_add(p, z, 1.333_144_2e-1);
    let p = F::mul_add(p, z, -3.333_328e-1);
    let small = F::mul_add(p * z, x, x);
    let large = (1.0 - 2.0 / (exp::<F>(2.0 * x.abs()) + 1.0)).copysign(x);
    if x.abs() < 0.625 { small } else { large }
}

/// `1 / (1 + e^{-x})`.
#[inline(always)]
pub fn sigmoid<F: Fma>(x: f32) -> f32 {
    functions::sigmoid(One::<F>::default(), x)
}

/// Error function: an odd polynomial near zero, `1 - e^{q(|x|)}` beyond (coefficients after N. Juffa).
#[inline(always)]
pub fn erf<F: Fma>(x: f32) -> f32 {
    let s = x * x;
    let p = F::mul_add(s, -5.967_617e-4, 4.991_194_2e-3);
    let p = F::mul_add(p, s, -2.676_813_5e-2);
    let p = F::mul_add(p, s, 1.128_199_25e-1);
    let p = F::mul_add(p, s, -3.761_253_4e-1);
    let p = F::mul_add(p, s, 1.283_791_7e-1);
    let small = F::mul_add(p, x, x);

    let t = if x.abs() > 6.0 { 6.0 } else { x.abs() }; // erf(6) rounds to 1
    let s = t * t;
    let q = F::mul_add(t, -1.728_534_7e-5, 3.831_971_3e-4);
    let u = F::mul_add(t, -3.883_964_4e-3, 2.425_462_2e-2);
    let q = F::mul_add(q, s, u);
    let q = F::mul_add(q, t, -1.067_778_8e-1);
    let q = F::mul_add(q, t, -6.348_467e-1);
    let q = F::mul_add(q, t, -1.287_175_1e-1);
    let q = F::mul_add(q, t, -t);
    let large = (1.0 - exp::<F>(q)).copysign(x);
    if x.abs() > 0.927_734_4 { large } else { small }
}

/// IEEE half precision bits to `f32`, exactly, subnormals and NaN included.
#[inline(always)]
pub fn f16_to_f32(bits: u16) -> f32 {
    let bits = u32::from(bits);
    let magnitude = (bits & 0x7fff) << 13;
    // Exponent bias 15 -> 127 by a multiplication, which also normalizes subnormals.
    let value = (f32::from_bits(magnitude) * f32::from_bits(0x7780_0000)).to_bits();
    let value = if magnitude >= 0x0f80_0000 { magnitude | 0x7f80_0000 } else { value };
    f32::from_bits(value | (bits & 0x8000) << 16)
}

/// bfloat16 bits to `f32`, exactly.
#[inline(always)]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[cfg(test)]
#[path = "math_tests.rs"]
mod tests;
