//! The IR's activations: the functions that may end a layer, applied to a layer's result while it is still in cache.

use half::bf16;
use regraft_ir::ops::Activation;

use super::{
    Float, Fma, One, Several, Vectors,
    functions::{Function, with_activation},
    vector_fn,
};

/// Applies the function to every element of `xs` in place.
pub fn apply(isa: super::Isa, act: Activation, xs: &mut [f32]) {
    if act != Activation::None {
        apply_all(isa, act, xs);
    }
}

/// Writes the function of each of `xs`, sums of products, rounded; what is left in `xs` is anything.
///
/// # Panics
/// When the lengths differ.
pub(crate) fn apply_into<T: Float>(isa: super::Isa, act: Activation, xs: &mut [f32], to: &mut [T]) {
    assert_eq!(xs.len(), to.len(), "as many floats as there are functions of");
    if let Some(to) = T::as_bf16_mut(to) {
        return round_all(isa, act, xs, to);
    }
    apply(isa, act, xs);
    T::narrow(isa, xs, to);
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

vector_fn! {
    product:
    fn round_all<S>(simd, act: Activation, xs: &[f32], to: &mut [bf16]) {
        let several = Several::<S, 4>(simd);
        let lanes = <Several<S, 4> as Vectors>::LANES;
        let whole = xs.len() / lanes * lanes;
        with_activation!(act, A => {
            for (xs, to) in xs[..whole].chunks_exact(lanes).zip(to[..whole].chunks_exact_mut(lanes)) {
                several.store_bf16(A::of(several, several.load(xs)), to);
            }
            for (xs, to) in xs[whole..].chunks(S::LANES).zip(to[whole..].chunks_mut(S::LANES)) {
                simd.store_bf16(A::of(simd, simd.load_some(xs)), to);
            }
        });
    }
}
