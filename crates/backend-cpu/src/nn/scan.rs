//! Running sums, positions of extrema, and reductions of numbers other than short floats.

use bytemuck::Pod;
use half::{bf16, f16};

use super::{rows_of_tile, rows_per_task};
use crate::{
    Isa, Threads,
    simd::{lanes, simd_fn},
    threads::{TileGrid, TileMut},
};

/// A number that is added up and multiplied in a wider one: floats in f64, integers in themselves, wrapping.
pub trait Summed: Pod + Send + Sync {
    /// What sums and products are kept in.
    type Sum: Copy + Send + Sync;
    /// Nothing.
    const ZERO: Self::Sum;
    /// One.
    const ONE: Self::Sum;
    /// `sum + x`.
    fn add(sum: Self::Sum, x: Self) -> Self::Sum;
    /// `product * x`.
    fn mul(product: Self::Sum, x: Self) -> Self::Sum;
    /// The sum, rounded.
    fn of(sum: Self::Sum) -> Self;
}

macro_rules! summed_integers {
    ($($t:ty),*) => {$(
        impl Summed for $t {
            type Sum = $t;
            const ZERO: $t = 0;
            const ONE: $t = 1;
            #[inline(always)]
            fn add(sum: $t, x: $t) -> $t {
                sum.wrapping_add(x)
            }
            #[inline(always)]
            fn mul(product: $t, x: $t) -> $t {
                product.wrapping_mul(x)
            }
            #[inline(always)]
            fn of(sum: $t) -> $t {
                sum
            }
        }
    )*};
}
summed_integers!(i64, i32, i16, i8, u8, u16, u32, u64);

macro_rules! summed_floats {
    ($($t:ty, $wide:expr, $narrow:expr;)*) => {$(
        impl Summed for $t {
            type Sum = f64;
            const ZERO: f64 = 0.0;
            const ONE: f64 = 1.0;
            #[inline(always)]
            fn add(sum: f64, x: $t) -> f64 {
                sum + $wide(x)
            }
            #[inline(always)]
            fn mul(product: f64, x: $t) -> f64 {
                product * $wide(x)
            }
            #[inline(always)]
            fn of(sum: f64) -> $t {
                $narrow(sum)
            }
        }
    )*};
}
summed_floats! {
    f64, |x| x, |x| x;
    f32, f64::from, |x| x as f32;
    f16, |x: f16| f64::from(x.to_f32()), |x| f16::from_f32(x as f32);
    bf16, |x: bf16| f64::from(x.to_f32()), |x| bf16::from_f32(x as f32);
}

/// Columns of a task.
const COLUMNS: usize = 256;

/// `[outer, axis, inner]` in tiles of all of the axis and some columns.
fn columns<T: Pod + Send + Sync>(
    threads: &Threads,
    [outer, axis, inner]: [usize; 3],
    out: &mut [T],
    task: impl Fn(usize, TileMut<'_, T>) + Sync,
) {
    let outers = [(outer, axis * inner)];
    let grid =
        TileGrid { outer: &outers, rows: axis, cols: inner, row_stride: inner, tile_rows: axis, tile_cols: COLUMNS };
    threads.for_each_tile(out, &grid, |at, tile| task(at.matrix * axis * inner + at.col, tile));
}

/// What each element of `x` (`[outer, axis, inner]`) makes with all before it along the middle dimension: `step` takes what was made so
/// far, the element and its position, and `of` rounds.
///
/// # Panics
///
/// If a length does not fit.
pub fn scan<T: Pod + Send + Sync, A: Copy + Send + Sync, O: Pod + Send + Sync>(
    threads: &Threads,
    x: &[T],
    sizes: [usize; 3],
    start: A,
    step: impl Fn(A, T, usize) -> A + Sync,
    of: impl Fn(A) -> O + Sync,
    out: &mut [O],
) {
    assert!(x.len() >= out.len() && out.len() == sizes.iter().product::<usize>());
    let [_, axis, inner] = sizes;
    if axis == 0 {
        return;
    }
    if inner == 1 {
        let per_task = rows_per_task(threads, out.len() / axis, axis);
        return threads.for_each_chunk(out, per_task * axis, |task, out| {
            let x = &x[task * per_task * axis..][..out.len()];
            for (out, x) in out.chunks_exact_mut(axis).zip(x.chunks_exact(axis)) {
                let mut made = start;
                for (i, (y, x)) in out.iter_mut().zip(x).enumerate() {
                    made = step(made, *x, i);
                    *y = of(made);
                }
            }
        });
    }
    columns(threads, sizes, out, |begin, mut tile| {
        let mut made = [start; COLUMNS];
        for i in 0..axis {
            let out = tile.row(i);
            let x = &x[begin + i * inner..][..out.len()];
            for ((y, x), made) in out.iter_mut().zip(x).zip(&mut made) {
                *made = step(*made, *x, i);
                *y = of(*made);
            }
        }
    });
}

/// Running sums.
///
/// # Panics
///
/// As [`scan`].
pub fn cumsum<T: Summed>(threads: &Threads, x: &[T], sizes: [usize; 3], out: &mut [T]) {
    scan(threads, x, sizes, T::ZERO, |sum, x, _| T::add(sum, x), T::of, out);
}

/// Running products.
///
/// # Panics
///
/// As [`scan`].
pub fn cumprod<T: Summed>(threads: &Threads, x: &[T], sizes: [usize; 3], out: &mut [T]) {
    scan(threads, x, sizes, T::ONE, |product, x, _| T::mul(product, x), T::of, out);
}

/// Running logarithms of sums of exponentials.
///
/// # Panics
///
/// As [`scan`].
pub fn log_cum_sum_exp<T: Summed<Sum = f64>>(threads: &Threads, x: &[T], sizes: [usize; 3], out: &mut [T]) {
    let step = |sum, x, _| log_add_exp(sum, T::add(0.0, x));
    scan(threads, x, sizes, f64::NEG_INFINITY, step, T::of, out);
}

/// `log(e^a + e^b)`, of which equal infinities are themselves.
fn log_add_exp(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() {
        return f64::NAN;
    }
    let (low, high) = (a.min(b), a.max(b));
    if low == high && high.is_infinite() || low == f64::NEG_INFINITY { high } else { high + (low - high).exp().ln_1p() }
}

/// The position of the greatest (or least) element so far: the last of equals, and NaN before everything.
///
/// # Panics
///
/// As [`scan`].
pub fn arg_so_far<T: Ordered>(threads: &Threads, greatest: bool, x: &[T], sizes: [usize; 3], out: &mut [i64]) {
    let nan = |v: T::Key| v.partial_cmp(&v).is_none();
    let step = |(best, at): (T::Key, i64), x: T, i: usize| {
        let x = x.key();
        let wins = i == 0 || nan(x) || (!nan(best) && if greatest { x >= best } else { x <= best });
        if wins { (x, i as i64) } else { (best, at) }
    };
    scan(threads, x, sizes, (T::zeroed().key(), 0), step, |(_, at)| at, out);
}

/// A number that is compared.
pub trait Ordered: Pod + Send + Sync {
    /// What it is compared as.
    type Key: Copy + PartialOrd + Send + Sync;
    /// The value to compare.
    fn key(self) -> Self::Key;
}

macro_rules! ordered {
    ($($t:ty, $key:ty, $f:expr;)*) => {$(
        impl Ordered for $t {
            type Key = $key;
            #[inline(always)]
            fn key(self) -> $key {
                $f(self)
            }
        }
    )*};
}
ordered! {
    f64, f64, |x| x;
    f32, f32, |x| x;
    f16, f32, f16::to_f32;
    bf16, f32, bf16::to_f32;
    i64, i64, |x| x;
    i32, i32, |x| x;
    i16, i16, |x| x;
    i8, i8, |x| x;
    u8, u8, |x| x;
    u16, u16, |x| x;
    u32, u32, |x| x;
    u64, u64, |x| x;
}

/// The position of the greatest (or least) element along the middle dimension of `x` (`[outer, axis, inner]`): the first of equals,
/// and NaN before everything.
///
/// # Panics
///
/// If a length does not fit or the dimension is empty.
pub fn arg_extremum<T: Ordered>(threads: &Threads, greatest: bool, x: &[T], sizes: [usize; 3], out: &mut [i64]) {
    let [outer, axis, inner] = sizes;
    assert!(axis > 0 && x.len() >= outer * axis * inner && out.len() == outer * inner);
    let beats = |a: T::Key, b: T::Key| {
        let nan = |v: T::Key| v.partial_cmp(&v).is_none();
        (if greatest { a > b } else { a < b }) || (nan(a) && !nan(b))
    };
    let work = (axis * inner.min(COLUMNS)).max(1);
    let tile_rows = rows_of_tile(threads, outer, work);
    let grid = TileGrid { outer: &[], rows: outer, cols: inner, row_stride: inner, tile_rows, tile_cols: COLUMNS };
    threads.for_each_tile(out, &grid, |at, mut tile| {
        for r in 0..tile.rows() {
            let slab = &x[(at.row + r) * axis * inner..][..axis * inner];
            let out = tile.row(r);
            if inner == 1 {
                out[0] = position(slab, beats);
                continue;
            }
            out.fill(0);
            let first = &slab[at.col..][..out.len()];
            let mut best = [first[0].key(); COLUMNS];
            best.iter_mut().zip(first).for_each(|(best, x)| *best = x.key());
            for (i, row) in slab.chunks_exact(inner).enumerate().skip(1) {
                for ((out, best), x) in out.iter_mut().zip(&mut best).zip(&row[at.col..]) {
                    let wins = beats(x.key(), *best);
                    *out = if wins { i as i64 } else { *out };
                    *best = if wins { x.key() } else { *best };
                }
            }
        }
    });
}

/// Elements whose extremum is found before its position: the first vectorizes.
const BLOCK: usize = 1024;

/// The position of the element that no other beats.
fn position<T: Ordered>(xs: &[T], beats: impl Fn(T::Key, T::Key) -> bool) -> i64 {
    let (mut best, mut at) = (xs[0].key(), 0);
    for (block, xs) in xs.chunks(BLOCK).enumerate() {
        let mut lanes = [best; 16];
        for xs in xs.chunks(16) {
            for (lane, x) in lanes.iter_mut().zip(xs) {
                *lane = if beats(x.key(), *lane) { x.key() } else { *lane };
            }
        }
        let winner = lanes.iter().fold(best, |best, x| if beats(*x, best) { *x } else { best });
        if beats(winner, best) {
            let found = xs.iter().position(|x| !beats(winner, x.key()));
            (best, at) = (winner, block * BLOCK + found.unwrap_or(0));
        }
    }
    at as i64
}

/// `out[o, i]` is `x[o, .., i]` joined, from `start` on and in order; `x` is `[outer, reduce, inner]`. `last` makes the result of what
/// was joined.
///
/// # Panics
///
/// If a length does not fit.
#[expect(clippy::too_many_arguments, reason = "what is joined, and how")]
pub fn join<T: Pod + Send + Sync, A: Copy + Send + Sync, O: Send>(
    threads: &Threads,
    isa: Isa,
    x: &[T],
    [outer, reduce, inner]: [usize; 3],
    start: A,
    of: impl Fn(T) -> A + Sync,
    step: impl Fn(A, A) -> A + Sync,
    last: impl Fn(A) -> O + Sync,
    out: &mut [O],
) {
    assert!(x.len() >= outer * reduce * inner && out.len() == outer * inner);
    let work = (reduce * inner.min(COLUMNS)).max(1);
    let tile_rows = rows_of_tile(threads, outer, work);
    let grid = TileGrid { outer: &[], rows: outer, cols: inner, row_stride: inner, tile_rows, tile_cols: COLUMNS };
    threads.for_each_tile(out, &grid, |at, mut tile| {
        for r in 0..tile.rows() {
            let slab = &x[(at.row + r) * reduce * inner..][..reduce * inner];
            let out = tile.row(r);
            if inner == 1 {
                out[0] = last(join_run(isa, slab, start, &of, &step));
                continue;
            }
            let mut sums = [start; COLUMNS];
            join_columns(isa, slab, inner, at.col, &mut sums[..out.len()], &of, &step);
            out.iter_mut().zip(sums).for_each(|(y, sum)| *y = last(sum));
        }
    });
}

simd_fn! {
    fn join_run<F, T: Copy, A: Copy>(xs: &[T], start: A, of: impl Fn(T) -> A, step: impl Fn(A, A) -> A) -> A {
        lanes::fold(xs, start, |a, x| step(a, of(x)), &step)
    }
}

simd_fn! {
    /// Joins columns from `first` on of rows of `inner` elements, as many as there are of `sums`.
    fn join_columns<F, T: Copy, A: Copy>(
        xs: &[T],
        inner: usize,
        first: usize,
        sums: &mut [A],
        of: impl Fn(T) -> A,
        step: impl Fn(A, A) -> A,
    ) {
        for row in xs.chunks_exact(inner) {
            for (sum, x) in sums.iter_mut().zip(&row[first..]) {
                *sum = step(*sum, of(*x));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place([_, axis, inner]: [usize; 3], o: usize, a: usize, i: usize) -> usize {
        (o * axis + a) * inner + i
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn formulas(
            outer in 1usize..5, axis in 1usize..3000, inner in prop::sample::select(vec![1, 2, 7, 300]), greatest: bool,
        ) {
            let axis = if inner > 1 { axis % 40 + 1 } else { axis };
            let sizes = [outer, axis, inner];
            let ints: Vec<i64> = (0..outer * axis * inner).map(|i| (i as i64 * 7919 % 101) - 50).collect();
            let mut floats: Vec<f32> = ints.iter().map(|i| *i as f32 * 0.25).collect();
            if axis > 30 {
                floats[axis * inner - 3] = f32::NAN;
            }
            for threads in [Threads::single(), Threads::new(2).unwrap()] {
                let (mut sums, mut found, mut total) =
                    (vec![0; ints.len()], vec![-1; outer * inner], vec![0; outer * inner]);
                cumsum(&threads, &ints, sizes, &mut sums);
                arg_extremum(&threads, greatest, &floats, sizes, &mut found);
                join(&threads, Isa::detect(), &ints, sizes, 0i64, |x| x, i64::wrapping_add, |x| x, &mut total);
                for (o, i) in (0..outer).flat_map(|o| (0..inner).map(move |i| (o, i))) {
                    let mut sum = 0;
                    let mut best = 0;
                    for a in 0..axis {
                        sum += ints[place(sizes, o, a, i)];
                        assert_eq!(sums[place(sizes, o, a, i)], sum);
                        let (new, old) = (floats[place(sizes, o, a, i)], floats[place(sizes, o, best, i)]);
                        if (if greatest { new > old } else { new < old }) || (new.is_nan() && !old.is_nan()) {
                            best = a;
                        }
                    }
                    assert_eq!(total[o * inner + i], sum);
                    assert_eq!(found[o * inner + i], best as i64);
                }
            }
        }
    }
}
