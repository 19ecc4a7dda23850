//! The IR's activations: the functions that may end a layer, applied to a layer's result while it is still in cache.

use regraft_ir::ops::Activation;

use super::{
    Fma, One, Several, Vectors,
    functions::{Function, with_activation},
    vector_fn,
};

/// Applies the function to every element of `xs` in place.
pub fn apply(isa: super::Isa, act: Activation, xs: &mut [f32]) {
    if act != Activation::None {
        apply_all(isa, act, xs);
    }
}

/// Replaces every `x` by its function.
#[inline(always)]
pub(crate) fn map_registers<S: Vectors, A: Function>(simd: S, xs: &mut [f32]) {
    let xs = map_whole::<Several<S, 4>, A>(Several(simd), xs);
    let xs = map_whole::<Several<S, 2>, A>(Several(simd), xs);
    let rest = map_whole::<S, A>(simd, xs);
    if !rest.is_empty() {
        simd.store_some(A::of(simd, simd.load_some(rest)), rest);
    }
}

/// Does it to as many as fill registers, and gives back the others.
#[inline(always)]
fn map_whole<S: Vectors, A: Function>(simd: S, xs: &mut [f32]) -> &mut [f32] {
    let (whole, rest) = xs.split_at_mut(xs.len() / S::LANES * S::LANES);
    for xs in whole.chunks_exact_mut(S::LANES) {
        simd.store(A::of(simd, simd.load(xs)), xs);
    }
    rest
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

vector_fn! {
    fn apply_all<S>(simd, act: Activation, xs: &mut [f32]) {
        with_activation!(act, A => map_registers::<S, A>(simd, xs));
    }
}
