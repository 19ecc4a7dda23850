//! The IR's activations over [`Vectors`] of any width, one float among them: each formula is written once.
//!
//! As in [`math`](super::math) the relative error is at most about 3e-7, and not-a-number goes in and out.

use super::{
    Vectors,
    math::{LN2_HI, LN2_LO, ROUND, tanh as tanh_of},
};

/// A function of each lane.
pub(crate) trait Function {
    /// Its values for `x`.
    fn of<S: Vectors>(simd: S, x: S::V) -> S::V;
}

/// Defines a type for each function.
macro_rules! functions {
    ($($(#[$meta:meta])* $name:ident = $of:path;)*) => {
        $(
            $(#[$meta])*
            pub(crate) struct $name;

            impl Function for $name {
                #[inline(always)]
                fn of<S: Vectors>(simd: S, x: S::V) -> S::V {
                    $of(simd, x)
                }
            }
        )*
    };
}

functions! {
    /// `x`.
    Same = same;
    /// `max(x, 0)`.
    Relu = Vectors::relu;
    /// `clamp(x, 0, 6)`.
    Relu6 = relu6;
    /// See [`gelu`].
    Gelu = gelu;
    /// See [`gelu_tanh`].
    GeluTanh = gelu_tanh;
    /// See [`silu`].
    Silu = silu;
    /// See [`sigmoid`].
    Sigmoid = sigmoid;
    /// Hyperbolic tangent.
    Tanh = tanh;
    /// See [`hardswish`].
    Hardswish = hardswish;
    /// See [`hardsigmoid`].
    Hardsigmoid = hardsigmoid;
}

/// Runs `$body` with `$A` as the [`Function`] of an activation.
macro_rules! with_activation {
    ($act:expr, $A:ident => $body:expr) => {
        $crate::simd::functions::with_activation!(@each $act, $A, $body,
            None Same, Relu Relu, Relu6 Relu6, Gelu Gelu, GeluTanh GeluTanh, Silu Silu, Sigmoid Sigmoid, Tanh Tanh,
            Hardswish Hardswish, Hardsigmoid Hardsigmoid)
    };
    (@each $act:expr, $A:ident, $body:expr, $($from:ident $to:ident),*) => {
        match $act {
            $(regraft_ir::ops::Activation::$from => {
                type $A = $crate::simd::functions::$to;
                $body
            })*
        }
    };
}
pub(crate) use with_activation;

#[inline(always)]
fn same<S: Vectors>(_: S, x: S::V) -> S::V {
    x
}

#[inline(always)]
fn relu6<S: Vectors>(simd: S, x: S::V) -> S::V {
    simd.at_most(simd.at_least(x, 0.0), 6.0)
}

#[inline(always)]
fn tanh<S: Vectors>(simd: S, x: S::V) -> S::V {
    simd.map(x, tanh_of::<S::F>)
}

/// `1 / (1 + e^{-x})`. Where `e^{-x}` is subnormal the sum is 1 without it, so that one power of two will do: `-x = n ln 2 - q`, and a
/// polynomial for `2 e^{-q}` times `2^(n-1)`, whose exponent stands in the low mantissa bits of the rounded number.
#[inline(always)]
pub(super) fn sigmoid<S: Vectors>(simd: S, x: S::V) -> S::V {
    const BIASED: f32 = ROUND + 126.0;
    let x = simd.at_most(simd.at_least(x, -89.0), 87.0);
    let shifted = simd.mul_add(x, simd.splat(-std::f32::consts::LOG2_E), simd.splat(BIASED));
    let power = simd.to_exponents(shifted);
    let n = simd.add(shifted, simd.splat(-BIASED));
    let q = simd.mul_add(n, simd.splat(LN2_HI), x);
    let q = simd.mul_add(n, simd.splat(LN2_LO), q);
    let terms = [2.767_160_3e-3, -1.675_129e-2, 8.333_658e-2, -3.333_282_2e-1, 9.999_998e-1, -2.0, 2.0];
    let p = polynomial(simd, q, &terms);
    simd.div(simd.splat(1.0), simd.mul_add(p, power, simd.splat(1.0)))
}

/// `e^x` for a difference from a maximum: `x` that is at most zero, or above it by rounding. Results below 2^-126 are zero, so that one
/// power of two will do, as in [`sigmoid`].
#[inline(always)]
pub(crate) fn exp_of_difference<S: Vectors>(simd: S, x: S::V) -> S::V {
    const BIASED: f32 = ROUND + 127.0;
    let x = simd.at_least(x, -88.0);
    let shifted = simd.mul_add(x, simd.splat(std::f32::consts::LOG2_E), simd.splat(BIASED));
    let power = simd.to_exponents(shifted);
    let n = simd.add(shifted, simd.splat(-BIASED));
    let r = simd.mul_add(n, simd.splat(-LN2_HI), x);
    let r = simd.mul_add(n, simd.splat(-LN2_LO), r);
    let terms = [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5, 1.0, 1.0];
    simd.mul(polynomial(simd, r, &terms), power)
}

/// `x Phi(x)`, exact form, as `x / 2 + |x| (Phi(|x|) - 1/2)`. As in that formula the error is relative to `|x|`, not to the tiny values of
/// the negative tail, so `Phi` needs few digits where it is near 1/2: one polynomial in `x^2`, which reaches 1/2 a little beyond the
/// last square that it is made for, is shorter than the error function and needs no second branch.
#[inline(always)]
pub(super) fn gelu<S: Vectors>(simd: S, x: S::V) -> S::V {
    const LIMIT: f32 = 5.1 * 5.1;
    let (size, square) = (simd.abs(x), simd.at_most(simd.mul(x, x), LIMIT));
    // From -1 to 1, where powers do not grow.
    let z = simd.mul_add(square, simd.splat(2.0 / LIMIT), simd.splat(-1.0));
    let terms = [
        -3.512_726_4e-4,
        9.545_202_5e-4,
        -1.022_152e-3,
        1.632_564_6e-3,
        -4.163_561_4e-3,
        7.593_828_7e-3,
        -1.158_987_45e-2,
        1.714_901e-2,
        -2.411_072_3e-2,
        3.177_651_4e-2,
        -4.021_039e-2,
        5.077_883e-2,
        -6.900_345e-2,
        1.386_053_3e-1,
    ];
    let beyond = simd.at_most(simd.mul(size, polynomial(simd, z, &terms)), 0.5);
    simd.mul_add(size, beyond, simd.mul(simd.splat(0.5), x))
}

/// The sum of `terms`, that of the highest power first.
#[inline(always)]
fn polynomial<S: Vectors, const N: usize>(simd: S, x: S::V, terms: &[f32; N]) -> S::V {
    let mut sum = simd.splat(terms[0]);
    for term in &terms[1..] {
        sum = simd.mul_add(sum, x, simd.splat(*term));
    }
    sum
}

/// The tanh form of gelu, `x / 2 (1 + tanh(u))` with `u = sqrt(2 / pi) (x + 0.044715 x^3)`, as `x sigmoid(2 u)`.
#[inline(always)]
pub(super) fn gelu_tanh<S: Vectors>(simd: S, x: S::V) -> S::V {
    const TWO_SQRT_2_OVER_PI: f32 = 1.595_769;
    let cube = simd.mul(simd.mul(simd.splat(0.044_715), x), x);
    let u = simd.mul(simd.splat(TWO_SQRT_2_OVER_PI), simd.mul_add(cube, x, x));
    simd.mul(x, sigmoid(simd, u))
}

/// `x sigmoid(x)`.
#[inline(always)]
pub(super) fn silu<S: Vectors>(simd: S, x: S::V) -> S::V {
    simd.mul(x, sigmoid(simd, x))
}

/// `clamp(x + 3, 0, 6) / 6`.
#[inline(always)]
pub(super) fn hardsigmoid<S: Vectors>(simd: S, x: S::V) -> S::V {
    simd.mul(relu6(simd, simd.add(x, simd.splat(3.0))), simd.splat(1.0 / 6.0))
}

/// `x clamp(x + 3, 0, 6) / 6`.
#[inline(always)]
pub(super) fn hardswish<S: Vectors>(simd: S, x: S::V) -> S::V {
    simd.mul(x, hardsigmoid(simd, x))
}

#[cfg(test)]
mod tests {
    use regraft_ir::ops::Activation;

    use super::*;
    use crate::simd::{Isa, One, vector_fn};

    vector_fn! {
        fn by_registers<S>(simd, act: Activation, xs: &mut [f32]) {
            for at in (0..xs.len()).step_by(S::LANES) {
                let x = simd.load(&xs[at..]);
                simd.store(with_activation!(act, A => A::of(simd, x)), &mut xs[at..]);
            }
        }
    }

    vector_fn! {
        fn one_by_one<S>(_simd, act: Activation, xs: &mut [f32]) {
            for x in xs {
                *x = with_activation!(act, A => A::of(One::<S::F>::default(), *x));
            }
        }
    }

    #[test]
    fn registers_and_single_floats_have_the_same_bits() {
        let mut xs: Vec<f32> = (0..u32::MAX).step_by(100_003).map(f32::from_bits).collect();
        xs.extend((0..4096).map(|i| (i as f32 - 2048.0) / 150.0));
        xs.extend([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY]);
        xs.resize(xs.len().next_multiple_of(16), f32::NAN);
        for (isa, act) in
            Isa::available().into_iter().flat_map(|isa| Activation::ALL.iter().map(move |act| (isa, *act)))
        {
            let (mut some, mut each) = (xs.clone(), xs.clone());
            by_registers(isa, act, &mut some);
            one_by_one(isa, act, &mut each);
            for ((x, a), b) in xs.iter().zip(&some).zip(&each) {
                assert!(a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan(), "{isa} {act:?} of {x}: {a} and {b}");
            }
        }
    }
}
