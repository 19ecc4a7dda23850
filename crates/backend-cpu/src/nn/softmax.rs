//! `softmax(x)_i = e^(x_i - max) / sum_j e^(x_j - max)` over one dimension, and its logarithm.

use super::{for_each_float_row, row_scratch};
use crate::{
    Isa, Scratch, Threads,
    simd::{Float, FloatType, Floats, lanes, math, simd_fn},
    threads::TileGrid,
};

/// Bytes of scratch that [`softmax`] over `[outer, axis, inner]` needs.
pub fn softmax_scratch(threads: &Threads, [_, axis, inner]: [usize; 3], out: FloatType) -> usize {
    if inner == 1 { row_scratch(threads, out, axis) } else { 0 }
}

/// Softmax, or its logarithm, of `x` (`[outer, axis, inner]`) over the middle dimension, into `out`.
///
/// # Panics
///
/// If the lengths do not fit, or the scratch is shorter than [`softmax_scratch`].
pub fn softmax<T: Float>(
    threads: &Threads,
    isa: Isa,
    log: bool,
    x: Floats<'_>,
    [outer, axis, inner]: [usize; 3],
    out: &mut [T],
    scratch: &mut Scratch<'_>,
) {
    assert!(x.len() == out.len() && out.len() == outer * axis * inner);
    if inner == 1 {
        return for_each_float_row(threads, isa, out, axis, scratch, |i, out| {
            x.load(isa, i * axis, out);
            if log { log_softmax_row(isa, out) } else { softmax_row(isa, out) }
        });
    }
    let grid = TileGrid {
        outer: &[(outer, axis * inner)],
        rows: axis,
        cols: inner,
        row_stride: inner,
        tile_rows: axis,
        tile_cols: COLUMNS,
    };
    threads.for_each_tile(out, &grid, |at, mut tile| {
        let (cols, start) = (tile.cols(), at.matrix * axis * inner + at.col);
        let mut buffers = [[0f32; COLUMNS]; 3];
        let [max, sum, buffer] = buffers.each_mut().map(|b| &mut b[..cols]);
        max.fill(f32::NEG_INFINITY);
        for r in 0..axis {
            greatest(isa, x.read(isa, start + r * inner, buffer), max);
        }
        sum.fill(0.0);
        for r in 0..axis {
            add_exponentials(isa, x.read(isa, start + r * inner, buffer), max, sum);
        }
        for r in 0..axis {
            x.load(isa, start + r * inner, buffer);
            if log {
                log_columns(isa, max, sum, buffer)
            } else {
                divide_columns(isa, max, sum, buffer)
            }
            T::narrow(isa, buffer, tile.row(r));
        }
    });
}

/// Columns that are computed together: their maxima and sums stay in the first-level cache.
const COLUMNS: usize = 512;

simd_fn! {
    fn greatest<F>(x: &[f32], max: &mut [f32]) {
        max.iter_mut().zip(x).for_each(|(max, x)| *max = lanes::greater(*max, *x));
    }
}

simd_fn! {
    fn add_exponentials<F>(x: &[f32], max: &[f32], sum: &mut [f32]) {
        for ((sum, max), x) in sum.iter_mut().zip(max).zip(x) {
            *sum += math::exp::<F>(x - max);
        }
    }
}

simd_fn! {
    fn divide_columns<F>(max: &[f32], sum: &[f32], x: &mut [f32]) {
        for ((x, max), sum) in x.iter_mut().zip(max).zip(sum) {
            *x = math::exp::<F>(*x - max) / sum;
        }
    }
}

simd_fn! {
    fn log_columns<F>(max: &[f32], sum: &[f32], x: &mut [f32]) {
        for ((x, max), sum) in x.iter_mut().zip(max).zip(sum) {
            *x = (*x - max) - math::log::<F>(*sum);
        }
    }
}

simd_fn! {
    fn softmax_row<F>(row: &mut [f32]) {
        let max = lanes::max(row);
        let sum = lanes::map_sum(row, |x| math::exp::<F>(x - max));
        let factor = 1.0 / sum;
        row.iter_mut().for_each(|x| *x *= factor);
    }
}

simd_fn! {
    fn log_softmax_row<F>(row: &mut [f32]) {
        let max = lanes::max(row);
        let sum = lanes::fold(row, 0.0, |a, x| a + math::exp::<F>(x - max), |a, b| a + b);
        let shift = math::log::<F>(sum);
        row.iter_mut().for_each(|x| *x = (*x - max) - shift);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::nn::testing::{Compute, Numbers, assert_close, in_every_type, numbers};

    struct Over<'a> {
        x: Floats<'a>,
        log: bool,
        sizes: [usize; 3],
    }

    impl Compute for Over<'_> {
        fn run<T: Float>(&self, threads: &Threads, isa: Isa, out: &mut [T], scratch: &mut Scratch<'_>) {
            softmax(threads, isa, self.log, self.x, self.sizes, out, scratch);
        }
        fn scratch(&self, threads: &Threads, _: Isa, out: FloatType) -> usize {
            softmax_scratch(threads, self.sizes, out)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]

        #[test]
        fn sums_are_one(
            outer in 1usize..9, axis in 1usize..150, inner in prop::sample::select(vec![1, 2, 7, 600]),
            spread in 0.1f32..60.0, ty in prop::sample::select(&FloatType::ALL[..]), log: bool,
        ) {
            let axis = if inner > 100 { axis % 9 + 1 } else { axis };
            let x: Vec<f32> = numbers(outer * axis * inner, 1).iter().map(|x| x * spread).collect();
            let x = Numbers::new(ty, &x);
            let over = Over { x: x.floats(), log, sizes: [outer, axis, inner] };
            in_every_type(outer * axis * inner, &over, |out, rounding| {
                for (o, i) in (0..outer).flat_map(|o| (0..inner).map(move |i| (o, i))) {
                    let place = |a: usize| (o * axis + a) * inner + i;
                    let max = (0..axis).map(|a| x.at(place(a))).fold(f64::MIN, f64::max);
                    let sum: f64 = (0..axis).map(|a| (x.at(place(a)) - max).exp()).sum();
                    for a in 0..axis {
                        let want = x.at(place(a)) - max - sum.ln();
                        assert_close(out[place(a)], if log { want } else { want.exp() }, 1e-6 + rounding);
                    }
                }
            });
        }
    }

    #[test]
    fn nan_and_infinity_spread_as_in_the_formula() {
        let x = [f32::NAN, 0.0, 1.0, f32::NEG_INFINITY, 0.0, 0.0];
        let across = [f32::NAN, f32::NEG_INFINITY, 0.0, 0.0, 1.0, 0.0];
        for (x, sizes, step) in [(x, [2, 3, 1], 1), (across, [1, 3, 2], 2)] {
            let over = Over { x: Floats::F32(&x), log: false, sizes };
            in_every_type(6, &over, |out, _| {
                let second = if step == 1 { 3 } else { 1 };
                assert!((0..3).all(|i| out[i * step].is_nan()));
                assert_eq!([0, 1, 2].map(|i| out[second + i * step]), [0.0, 0.5, 0.5]);
            });
        }
    }
}
