//! Activations: the functions that may end a layer.

use super::{Fma, math, simd_fn};

/// An element-wise function applied to a layer's result while it is still in cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x`.
    #[default]
    None,
    /// `max(x, 0)`.
    Relu,
    /// `min(max(x, 0), 6)`.
    Relu6,
    /// `x / 2 (1 + erf(x / sqrt 2))`.
    Gelu,
    /// The tanh approximation of gelu.
    GeluTanh,
    /// `x sigmoid(x)`.
    Silu,
    /// `1 / (1 + e^-x)`.
    Sigmoid,
    /// Hyperbolic tangent.
    Tanh,
    /// `x clamp(x + 3, 0, 6) / 6`.
    Hardswish,
    /// `clamp(x + 3, 0, 6) / 6`.
    Hardsigmoid,
}

impl Activation {
    /// Every activation, for tests and tables.
    pub const ALL: [Activation; 10] = [
        Activation::None,
        Activation::Relu,
        Activation::Relu6,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Silu,
        Activation::Sigmoid,
        Activation::Tanh,
        Activation::Hardswish,
        Activation::Hardsigmoid,
    ];

    /// Applies the function to every element of `xs` in place.
    pub fn apply(self, isa: super::Isa, xs: &mut [f32]) {
        if self != Activation::None {
            apply(isa, self, xs);
        }
    }

    /// Applies the function inside code that is already compiled for an instruction set.
    #[inline(always)]
    pub(crate) fn apply_lanes<F: Fma>(self, xs: &mut [f32]) {
        #[inline(always)]
        fn map(xs: &mut [f32], f: impl Fn(f32) -> f32) {
            for x in xs {
                *x = f(*x);
            }
        }
        match self {
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
}

simd_fn! {
    fn apply<F>(activation: Activation, xs: &mut [f32]) {
        activation.apply_lanes::<F>(xs);
    }
}
