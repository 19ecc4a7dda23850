//! The IR's activations: the functions that may end a layer, applied to a layer's result while it is still in cache.

use regraft_ir::ops::Activation;

use super::{
    Fma, One, Vectors,
    functions::{Function, with_activation},
    simd_fn,
};

/// Applies the function to every element of `xs` in place.
pub fn apply(isa: super::Isa, act: Activation, xs: &mut [f32]) {
    if act != Activation::None {
        apply_all(isa, act, xs);
    }
}

/// [`apply`] inside code that is already compiled for an instruction set.
#[inline(always)]
pub(crate) fn apply_lanes<F: Fma>(act: Activation, xs: &mut [f32]) {
    each::<F>(act, xs.iter_mut().map(|x| (*x, x)));
}

/// [`apply`] inside code over registers.
#[inline(always)]
pub(crate) fn apply_registers<S: Vectors>(simd: S, act: Activation, xs: &mut [f32]) {
    if act == Activation::None {
        return;
    }
    with_activation!(act, A => map_registers::<S, A>(simd, xs));
}

/// Replaces every `x` by its function.
#[inline(always)]
pub(crate) fn map_registers<S: Vectors, A: Function>(simd: S, xs: &mut [f32]) {
    let (xs, rest) = xs.split_at_mut(xs.len() / S::LANES * S::LANES);
    for xs in xs.chunks_exact_mut(S::LANES) {
        simd.store(A::of(simd, simd.load(xs)), xs);
    }
    if !rest.is_empty() {
        simd.store_some(A::of(simd, simd.load_some(rest)), rest);
    }
}

/// Writes the function of the first of each pair to the second.
#[inline(always)]
pub(crate) fn each<'a, F: Fma>(act: Activation, pairs: impl Iterator<Item = (f32, &'a mut f32)>) {
    with_activation!(act, A => {
        // A loop and no `for_each`: the body of that would be a function for no instruction set in particular.
        for (x, y) in pairs {
            *y = A::of(One::<F>::default(), x);
        }
    });
}

simd_fn! {
    fn apply_all<F>(act: Activation, xs: &mut [f32]) {
        apply_lanes::<F>(act, xs);
    }
}
