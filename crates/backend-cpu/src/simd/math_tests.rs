use regraft_ir::ops::Activation;

use super::*;
use crate::simd::{
    Fused, Isa, Unfused, activation,
    functions::{Function, Gelu, GeluTanh, Hardsigmoid, Hardswish, Silu},
    simd_fn,
};

/// A function of single floats.
fn single<A: Function, F: Fma>(x: f32) -> f32 {
    A::of(One::<F>::default(), x)
}

/// Floats that cover the range densely: every 1009th bit pattern, both signs, plus the corners.
fn dense() -> impl Iterator<Item = f32> {
    let corners = [0.0, -0.0, 1.0, -1.0, f32::MIN_POSITIVE, f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY];
    (0..u32::MAX).step_by(1009).map(f32::from_bits).chain(corners)
}

/// Compares both markers with `want` where `want` is a normal number; `scale` says what the error is relative to.
fn check(name: &str, fused: fn(f32) -> f32, unfused: fn(f32) -> f32, want: fn(f64) -> f64, scale: fn(f64, f64) -> f64) {
    for x in dense() {
        let exact = want(f64::from(x));
        for got in [fused(x), unfused(x)] {
            if x.is_nan() || exact.is_nan() {
                assert!(got.is_nan() || !x.is_finite(), "{name}({x}) = {got}");
            } else if exact.abs() >= f64::from(f32::MAX) || x.is_infinite() {
                assert!(f64::from(got) == exact || got == exact as f32, "{name}({x}) = {got}, want {exact}");
            } else {
                let bound = 3e-7 * scale(f64::from(x), exact) + 1.2e-38;
                let error = (f64::from(got) - exact).abs();
                assert!(error <= bound, "{name}({x:e}) = {got:e}, want {exact:e}, error {:e}", error / exact.abs());
            }
        }
    }
}

fn relative(_x: f64, y: f64) -> f64 {
    y.abs()
}

/// erf in f64: a Taylor series below 2.5, a continued fraction beyond.
fn erf64(x: f64) -> f64 {
    let t = x.abs();
    if t < 2.5 {
        let (mut term, mut sum) = (x, x);
        for n in 1..80 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return sum * std::f64::consts::FRAC_2_SQRT_PI;
    }
    if t > 7.0 {
        return 1f64.copysign(x);
    }
    let tail = (1..=80).rev().fold(t, |f, n| t + f64::from(n) / 2.0 / f);
    (1.0 - (-t * t).exp() / tail / std::f64::consts::PI.sqrt()).copysign(x)
}

fn sigmoid64(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn gelu64(x: f64) -> f64 {
    0.5 * x * (1.0 + erf64(x / 2f64.sqrt()))
}

fn gelu_tanh64(x: f64) -> f64 {
    x * sigmoid64((8.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x))
}

#[test]
fn exp_is_close() {
    check("exp", exp::<Fused>, exp::<Unfused>, f64::exp, relative);
}

#[test]
fn log_is_close() {
    check("log", log::<Fused>, log::<Unfused>, f64::ln, relative);
    assert_eq!(log::<Fused>(0.0), f32::NEG_INFINITY);
    assert!(log::<Fused>(-1.0).is_nan());
}

#[test]
fn log1p_and_expm1_are_close() {
    check("log1p", log1p::<Fused>, log1p::<Unfused>, f64::ln_1p, |_, y| 2.0 * y.abs());
    check("expm1", expm1::<Fused>, expm1::<Unfused>, f64::exp_m1, |_, y| 2.0 * y.abs());
    check(
        "softplus",
        softplus::<Fused>,
        softplus::<Unfused>,
        |x| if x > 20.0 { x } else { x.exp().ln_1p() },
        |_, y| 2.0 * y.abs(),
    );
    assert_eq!(log1p::<Fused>(-1.0), f32::NEG_INFINITY);
    assert!(log1p::<Fused>(-1.5).is_nan());
}

#[test]
fn sine_and_cosine_are_close() {
    let mut inputs: Vec<f32> = dense().filter(|x| x.abs() <= TRIGONOMETRIC_LIMIT || x.is_nan()).collect();
    // Close to the zeros, where few digits are left.
    inputs.extend((-2000..2000).map(|n| (f64::from(n) * std::f64::consts::FRAC_PI_2) as f32));
    for x in inputs {
        for (name, got, want) in [("sin", sin(x), f64::from(x).sin()), ("cos", cos(x), f64::from(x).cos())] {
            let error = (f64::from(got) - want).abs();
            assert!(
                error <= 1.2e-7 * want.abs() + 1e-44 || (x.is_nan() && got.is_nan()),
                "{name}({x:e}) = {got:e}, {want:e}"
            );
        }
    }
    assert!(sin(f32::INFINITY).is_nan() && cos(f32::NEG_INFINITY).is_nan());
}

#[test]
fn tanh_is_close() {
    check("tanh", tanh::<Fused>, tanh::<Unfused>, f64::tanh, relative);
}

#[test]
fn sigmoid_is_close() {
    check("sigmoid", sigmoid::<Fused>, sigmoid::<Unfused>, sigmoid64, relative);
}

#[test]
fn erf_is_close() {
    check("erf", erf::<Fused>, erf::<Unfused>, erf64, relative);
}

#[test]
fn gelu_is_close() {
    check("gelu", single::<Gelu, Fused>, single::<Gelu, Unfused>, gelu64, |x, _| x.abs());
    // The argument of the exponential carries a rounding error of its own size.
    check("gelu_tanh", single::<GeluTanh, Fused>, single::<GeluTanh, Unfused>, gelu_tanh64, |x, _| x.abs());
}

#[test]
fn silu_and_the_hard_ones_are_close() {
    // Below -88 the sigmoid is subnormal and goes to zero; the product does too.
    check("silu", single::<Silu, Fused>, single::<Silu, Unfused>, |x| x * sigmoid64(x), |_, y| y.abs() + 1e-29);
    let hard = |x: f64| (x + 3.0).clamp(0.0, 6.0) / 6.0;
    let (hardsigmoid, hardswish) = (single::<Hardsigmoid, Unfused>, single::<Hardswish, Unfused>);
    assert!(hardsigmoid(f32::NAN).is_nan());
    for x in (-1000..1000).map(|i| i as f32 * 0.01) {
        assert!((f64::from(hardsigmoid(x)) - hard(f64::from(x))).abs() < 1e-6);
        assert!((f64::from(hardswish(x)) - f64::from(x) * hard(f64::from(x))).abs() < 1e-6);
    }
}

#[test]
fn half_precision_is_exact() {
    for bits in 0..=u16::MAX {
        let (f, b) = (half::f16::from_bits(bits).to_f32(), half::bf16::from_bits(bits).to_f32());
        assert!(f.is_nan() && f16_to_f32(bits).is_nan() || f.to_bits() == f16_to_f32(bits).to_bits());
        assert!(b.is_nan() && bf16_to_f32(bits).is_nan() || b.to_bits() == bf16_to_f32(bits).to_bits());
    }
}

simd_fn! {
    fn exp_all<F>(xs: &mut [f32]) {
        for x in xs {
            *x = exp::<F>(*x);
        }
    }
}

#[test]
fn every_isa_computes_the_lane_function() {
    let input: Vec<f32> = (0..1003).map(|i| (i as f32 - 500.0) * 0.21).collect();
    for isa in Isa::available() {
        let mut got = input.clone();
        exp_all(isa, &mut got);
        for (x, y) in input.iter().zip(&got) {
            let want = if isa == Isa::Portable { exp::<Unfused>(*x) } else { exp::<Fused>(*x) };
            assert_eq!(want.to_bits(), y.to_bits(), "{isa} exp({x})");
        }
        for &act in Activation::ALL {
            let (mut together, mut alone) = (input.clone(), input.clone());
            activation::apply(isa, act, &mut together);
            alone.iter_mut().for_each(|x| activation::apply(isa, act, std::slice::from_mut(x)));
            assert_eq!(together, alone, "{isa} {act:?}");
        }
    }
}
