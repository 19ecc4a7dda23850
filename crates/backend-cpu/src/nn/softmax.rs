//! `softmax(x)_i = e^(x_i - max) / sum_j e^(x_j - max)` over the last dimension, and its logarithm.

use super::for_each_row;
use crate::{
    Isa, Threads,
    simd::{lanes, math, simd_fn},
};

/// Softmax of every row of `cols` elements of `x` (`[rows, cols]`), into `out`.
///
/// # Panics
///
/// If the lengths differ or are no multiple of `cols`.
pub fn softmax(threads: &Threads, isa: Isa, x: &[f32], cols: usize, out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    for_each_row(threads, out, cols, |i, out| {
        out.copy_from_slice(&x[i * cols..][..cols]);
        softmax_row(isa, out);
    });
}

/// `x_i - max - log(sum_j e^(x_j - max))` of every row of `cols` elements of `x`, into `out`.
///
/// # Panics
///
/// If the lengths differ or are no multiple of `cols`.
pub fn log_softmax(threads: &Threads, isa: Isa, x: &[f32], cols: usize, out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    for_each_row(threads, out, cols, |i, out| log_softmax_row(isa, &x[i * cols..][..cols], out));
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
    fn log_softmax_row<F>(x: &[f32], out: &mut [f32]) {
        let max = lanes::max(x);
        let sum = lanes::fold(x, 0.0, |a, x| a + math::exp::<F>(x - max), |a, b| a + b);
        let shift = math::log::<F>(sum);
        out.iter_mut().zip(x).for_each(|(y, x)| *y = (x - max) - shift);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::nn::testing::{assert_close, numbers, on_every_isa};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]

        #[test]
        fn rows_are_normalised(rows in 1usize..20, cols in 1usize..150, spread in 0.1f32..60.0) {
            let x: Vec<f32> = numbers(rows * cols, 1).iter().map(|x| x * spread).collect();
            for log in [false, true] {
                let routine = if log { log_softmax } else { softmax };
                on_every_isa(x.len(), |threads, isa, out| routine(threads, isa, &x, cols, out), |out| {
                    for (row, out) in x.chunks(cols).zip(out.chunks(cols)) {
                        let max = row.iter().copied().fold(f32::MIN, f32::max);
                        let sum: f64 = row.iter().map(|x| f64::from(x - max).exp()).sum();
                        for (x, y) in row.iter().zip(out) {
                            let want = f64::from(x - max) - sum.ln();
                            assert_close(*y, if log { want } else { want.exp() }, 1e-6);
                        }
                    }
                });
            }
        }
    }

    #[test]
    fn nan_and_infinity_spread_as_in_the_formula() {
        on_every_isa(
            6,
            |threads, isa, out| {
                softmax(threads, isa, &[f32::NAN, 0.0, 1.0, f32::NEG_INFINITY, 0.0, 0.0], 3, out);
            },
            |out| {
                assert!(out[..3].iter().all(|x| x.is_nan()));
                assert_eq!(out[3..], [0.0, 0.5, 0.5]);
            },
        );
    }
}
