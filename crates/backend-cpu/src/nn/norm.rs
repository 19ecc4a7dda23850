//! Normalizations of rows: layer norm, RMS norm.

use super::{for_each_float_row, row_scratch, widened};
use crate::{
    Isa, Scratch, Threads,
    scratch::bytes_of,
    simd::{Float, FloatType, Floats, Fma, lanes, simd_fn},
};

/// A normalization of rows of `cols` elements.
#[derive(Clone, Copy, Debug)]
pub struct RowNorm<'a> {
    /// Input, `[rows, cols]`.
    pub x: Floats<'a>,
    /// Added to the input first.
    pub residual: Option<Floats<'a>>,
    /// Length of a row.
    pub cols: usize,
    /// A factor for each column.
    pub weight: Option<Floats<'a>>,
    /// An addend for each column.
    pub bias: Option<Floats<'a>>,
    /// Added to the variance (or mean square).
    pub eps: f32,
}

impl RowNorm<'_> {
    /// Bytes of scratch that a normalization of such rows into `out` needs.
    pub fn scratch(threads: &Threads, cols: usize, out: FloatType) -> usize {
        2 * bytes_of::<f32>(cols) + row_scratch(threads, out, cols)
    }

    fn check(&self, out: usize) {
        assert_eq!(self.x.len(), out);
        assert!(self.residual.is_none_or(|r| r.len() == out));
        assert!(self.weight.is_none_or(|w| w.len() == self.cols) && self.bias.is_none_or(|b| b.len() == self.cols));
    }

    /// Row `i` of the input, where it is all that is normalized: then it is read where it is.
    fn alone(&self, i: usize) -> Option<&[f32]> {
        match self.x {
            Floats::F32(x) if self.residual.is_none() => Some(&x[i * self.cols..][..self.cols]),
            _ => None,
        }
    }

    /// Row `i` of the input with the residual, in `out`.
    fn load(&self, isa: Isa, i: usize, out: &mut [f32]) {
        let at = i * self.cols;
        self.x.load(isa, at, out);
        let Some(residual) = self.residual else { return };
        let mut buffer = [0f32; 256];
        for (at, out) in (at..).step_by(buffer.len()).zip(out.chunks_mut(256)) {
            let residual = residual.read(isa, at, &mut buffer[..out.len()]);
            out.iter_mut().zip(residual).for_each(|(y, r)| *y += r);
        }
    }
}

/// `y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias` over every row, with the biased variance.
///
/// # Panics
///
/// If a slice has the wrong length, or the scratch is shorter than [`RowNorm::scratch`].
pub fn layer_norm<T: Float>(threads: &Threads, isa: Isa, norm: &RowNorm<'_>, out: &mut [T], scratch: &mut Scratch<'_>) {
    rows(threads, isa, norm, out, scratch, |row| moments(isa, row, norm.eps));
}

/// `y = x / sqrt(mean(x^2) + eps) * weight + bias` over every row.
///
/// # Panics
///
/// If a slice has the wrong length, or the scratch is shorter than [`RowNorm::scratch`].
pub fn rms_norm<T: Float>(threads: &Threads, isa: Isa, norm: &RowNorm<'_>, out: &mut [T], scratch: &mut Scratch<'_>) {
    rows(threads, isa, norm, out, scratch, |row| {
        (0.0, 1.0 / (square_sum(isa, row, 0.0) / norm.cols as f32 + norm.eps).sqrt())
    });
}

/// Normalizes every row by the centre and factor that `of` finds.
fn rows<T: Float>(
    threads: &Threads,
    isa: Isa,
    norm: &RowNorm<'_>,
    out: &mut [T],
    scratch: &mut Scratch<'_>,
    of: impl Fn(&[f32]) -> (f32, f32) + Sync,
) {
    norm.check(out.len());
    let mut scratch = scratch.again();
    let weight = widened(isa, norm.weight, &mut scratch);
    let bias = widened(isa, norm.bias, &mut scratch);
    for_each_float_row(threads, isa, out, norm.cols, &mut scratch, |i, out| {
        if let Some(x) = norm.alone(i) {
            let (center, factor) = of(x);
            return scale_shift_to(isa, x, out, center, factor, weight, bias);
        }
        norm.load(isa, i, out);
        let (center, factor) = of(out);
        scale_shift(isa, out, center, factor, weight, bias);
    });
}

/// `mean(x)` and `1 / sqrt(var(x) + eps)`.
fn moments(isa: Isa, row: &[f32], eps: f32) -> (f32, f32) {
    let n = row.len() as f32;
    let mean = sum(isa, row) / n;
    (mean, 1.0 / (square_sum(isa, row, mean) / n + eps).sqrt())
}

simd_fn! {
    pub(super) fn sum<F>(xs: &[f32]) -> f32 {
        lanes::sum(xs)
    }
}

simd_fn! {
    pub(super) fn square_sum<F>(xs: &[f32], center: f32) -> f32 {
        lanes::sum_of_squares::<F>(xs, center)
    }
}

simd_fn! {
    fn scale_shift<F>(row: &mut [f32], mean: f32, factor: f32, weight: Option<&[f32]>, bias: Option<&[f32]>) {
        affine::<F>(row.iter_mut().map(|x| (*x, x)), mean, factor, weight, bias);
    }
}

simd_fn! {
    fn scale_shift_to<F>(
        x: &[f32],
        out: &mut [f32],
        mean: f32,
        factor: f32,
        weight: Option<&[f32]>,
        bias: Option<&[f32]>,
    ) {
        affine::<F>(x.iter().copied().zip(out), mean, factor, weight, bias);
    }
}

/// Writes each of a row of numbers, normalized, to the place beside it.
#[inline(always)]
fn affine<'a, F: Fma>(
    row: impl Iterator<Item = (f32, &'a mut f32)>,
    mean: f32,
    factor: f32,
    weight: Option<&[f32]>,
    bias: Option<&[f32]>,
) {
    match (weight, bias) {
        (Some(w), Some(b)) => {
            for (((x, y), w), b) in row.zip(w).zip(b) {
                *y = F::mul_add((x - mean) * factor, *w, *b);
            }
        }
        (Some(w), None) => {
            for ((x, y), w) in row.zip(w) {
                *y = (x - mean) * factor * w;
            }
        }
        (None, Some(b)) => {
            for ((x, y), b) in row.zip(b) {
                *y = F::mul_add(x - mean, factor, *b);
            }
        }
        (None, None) => {
            for (x, y) in row {
                *y = (x - mean) * factor;
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::nn::testing::{Compute, Numbers, assert_close, in_every_type, numbers};

    pub(in crate::nn) fn normalized(xs: &[f64], centered: bool, eps: f64) -> Vec<f64> {
        let n = xs.len() as f64;
        let mean = if centered { xs.iter().sum::<f64>() / n } else { 0.0 };
        let variance = xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        xs.iter().map(|x| (x - mean) / (variance + eps).sqrt()).collect()
    }

    struct Rows<'a>(RowNorm<'a>, bool);

    impl Compute for Rows<'_> {
        fn run<T: Float>(&self, threads: &Threads, isa: Isa, out: &mut [T], scratch: &mut Scratch<'_>) {
            if self.1 {
                layer_norm(threads, isa, &self.0, out, scratch);
            } else {
                rms_norm(threads, isa, &self.0, out, scratch);
            }
        }
        fn scratch(&self, threads: &Threads, _: Isa, out: FloatType) -> usize {
            RowNorm::scratch(threads, self.0.cols, out)
        }
    }

    pub(in crate::nn) fn any_type() -> impl Strategy<Value = FloatType> {
        prop::sample::select(&FloatType::ALL[..])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]

        #[test]
        fn rows(
            rows in 1usize..20, cols in 1usize..150, layer: bool, res: bool, weight: bool, bias: bool,
            ty in any_type(), affine_ty in any_type(),
        ) {
            let (x, r) = (Numbers::new(ty, &numbers(rows * cols, 1)), Numbers::new(affine_ty, &numbers(rows * cols, 2)));
            let (w, b) = (Numbers::new(affine_ty, &numbers(cols, 3)), Numbers::new(ty, &numbers(cols, 4)));
            let norm = RowNorm {
                x: x.floats(), residual: res.then(|| r.floats()), cols,
                weight: weight.then(|| w.floats()), bias: bias.then(|| b.floats()), eps: 1e-3,
            };
            in_every_type(rows * cols, &Rows(norm, layer), |out, rounding| {
                for (i, out) in out.chunks(cols).enumerate() {
                    let input = |j: usize| x.at(i * cols + j) + if res { r.at(i * cols + j) } else { 0.0 };
                    let row: Vec<f64> = (0..cols).map(input).collect();
                    for (j, y) in normalized(&row, layer, 1e-3).into_iter().enumerate() {
                        let y = y * if weight { w.at(j) } else { 1.0 } + if bias { b.at(j) } else { 0.0 };
                        assert_close(out[j], y, 1e-4 + rounding);
                    }
                }
            });
        }
    }
}
