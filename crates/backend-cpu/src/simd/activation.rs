//! The IR's activations: the functions that may end a layer, applied to a layer's result while it is still in cache.

use regraft_ir::ops::Activation;

use super::{Fma, math, simd_fn};

/// Applies the function to every element of `xs` in place.
pub fn apply(isa: super::Isa, act: Activation, xs: &mut [f32]) {
    if act != Activation::None {
        apply_all(isa, act, xs);
    }
}

/// [`apply`] inside code that is already compiled for an instruction set.
#[inline(always)]
pub(crate) fn apply_lanes<F: Fma>(act: Activation, xs: &mut [f32]) {
    #[inline(always)]
    fn map(xs: &mut [f32], f: impl Fn(f32) -> f32) {
        for x in xs {
            *x = f(*x);
        }
    }
    match act {
        Activation::None => {}
        Activation::Relu => map(xs, math::relu),
        Activation::Relu6 => map(xs, |x| math::clamp(x, 0.0, 6.0)),
        Activation::Gelu => map(xs, math::gelu::<F>),
        Activation::GeluTanh => map(xs, math::gelu_tanh::<F>),
        Activation::Silu => map(xs, math::silu::<F>),
        Activation::Sigmoid => map(xs, math::sigmoid::<F>),
        Activation::Tanh => map(xs, math::tanh::<F>),
        Activation::Hardswish => map(xs, math::hardswish),
        Activation::Hardsigmoid => map(xs, math::hardsigmoid),
    }
}

simd_fn! {
    fn apply_all<F>(act: Activation, xs: &mut [f32]) {
        apply_lanes::<F>(act, xs);
    }
}
