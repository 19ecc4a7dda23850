//! Reductions of a slice in an order that vectorizes: 32 partial results, then a tree. The order depends on the length alone.

use super::Fma;

/// Partial results of a reduction: of f32 two vectors of AVX-512, four of AVX2.
pub(crate) const LANES: usize = 32;

/// Reduces `xs` with `step`, starting every lane from `start`, and joins the lanes with `join`.
#[inline(always)]
pub(crate) fn fold<T: Copy, A: Copy>(xs: &[T], start: A, step: impl Fn(A, T) -> A, join: impl Fn(A, A) -> A) -> A {
    joined(reduced(xs, start, step), join)
}

/// The result of each lane for its elements.
#[inline(always)]
pub(crate) fn reduced<T: Copy, A: Copy>(xs: &[T], start: A, step: impl Fn(A, T) -> A) -> [A; LANES] {
    let (blocks, rest) = xs.as_chunks::<LANES>();
    let mut acc = [start; LANES];
    for block in blocks {
        for (a, x) in acc.iter_mut().zip(block) {
            *a = step(*a, *x);
        }
        // Nothing is moved across: or else the compiler gathers one lane of many blocks, which takes ten times as long.
        std::hint::black_box(());
    }
    // What follows has no say in how lanes are kept: or else half of them are, two by two, for the tree that joins them.
    let mut acc = std::hint::black_box(acc);
    for (a, x) in acc.iter_mut().zip(rest) {
        *a = step(*a, *x);
    }
    acc
}

/// The lanes joined as a tree.
#[inline(always)]
pub(crate) fn joined<A: Copy>(lanes: [A; LANES], join: impl Fn(A, A) -> A) -> A {
    let lanes: [A; LANES / 2] = halved(lanes, &join);
    let lanes: [A; LANES / 4] = halved(lanes, &join);
    let lanes: [A; LANES / 8] = halved(lanes, &join);
    let lanes: [A; LANES / 16] = halved(lanes, &join);
    join(lanes[0], lanes[1])
}

/// The first half joined to the second. A new array each time stays in registers; one that is written to does not.
#[inline(always)]
fn halved<A: Copy, const N: usize, const HALF: usize>(acc: [A; N], join: &impl Fn(A, A) -> A) -> [A; HALF] {
    std::array::from_fn(|i| join(acc[i], acc[i + HALF]))
}

/// The sum.
#[inline(always)]
pub(crate) fn sum(xs: &[f32]) -> f32 {
    fold(xs, 0.0, |a, x| a + x, |a, b| a + b)
}

/// The sum of `(x - center)^2`.
#[inline(always)]
pub(crate) fn sum_of_squares<F: Fma>(xs: &[f32], center: f32) -> f32 {
    fold(xs, 0.0, |a, x| F::mul_add(x - center, x - center, a), |a, b| a + b)
}

/// The greater of two, or NaN if either is.
#[inline(always)]
pub(crate) fn greater(a: f32, b: f32) -> f32 {
    if b > a || b.is_nan() { b } else { a }
}

/// The lesser of two, or NaN if either is.
#[inline(always)]
pub(crate) fn lesser(a: f32, b: f32) -> f32 {
    if b < a || b.is_nan() { b } else { a }
}

/// The maximum, or NaN if there is one.
#[inline(always)]
pub(crate) fn max(xs: &[f32]) -> f32 {
    fold(xs, f32::NEG_INFINITY, greater, greater)
}

/// The minimum, or NaN if there is one.
#[inline(always)]
pub(crate) fn min(xs: &[f32]) -> f32 {
    fold(xs, f32::INFINITY, lesser, lesser)
}

/// Replaces every `x` by `f(x)` and returns the sum of the results.
#[inline(always)]
pub(crate) fn map_sum(xs: &mut [f32], f: impl Fn(f32) -> f32) -> f32 {
    let (blocks, rest) = xs.as_chunks_mut::<LANES>();
    let mut acc = [0f32; LANES];
    for block in blocks {
        for (a, x) in acc.iter_mut().zip(block) {
            *x = f(*x);
            *a += *x;
        }
    }
    for (a, x) in acc.iter_mut().zip(rest) {
        *x = f(*x);
        *a += *x;
    }
    sum(&acc)
}
