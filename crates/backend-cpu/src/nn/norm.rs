//! Normalisations: layer norm, RMS norm, group norm.

use super::for_each_row;
use crate::{
    Isa, Threads,
    simd::{lanes, simd_fn},
    threads::{TileGrid, TileMut},
};

/// A normalisation of rows of `cols` elements.
#[derive(Clone, Copy, Debug)]
pub struct RowNorm<'a> {
    /// Input, `[rows, cols]`.
    pub x: &'a [f32],
    /// Added to the input first.
    pub residual: Option<&'a [f32]>,
    /// Length of a row.
    pub cols: usize,
    /// A factor for each column.
    pub weight: Option<&'a [f32]>,
    /// An addend for each column.
    pub bias: Option<&'a [f32]>,
    /// Added to the variance (or mean square).
    pub eps: f32,
}

impl RowNorm<'_> {
    fn check(&self, out: &[f32]) {
        assert_eq!(self.x.len(), out.len());
        assert!(self.residual.is_none_or(|r| r.len() == out.len()));
        assert!(self.weight.is_none_or(|w| w.len() == self.cols) && self.bias.is_none_or(|b| b.len() == self.cols));
    }

    /// Row `i` of the input, in `out`.
    fn load(&self, i: usize, out: &mut [f32]) {
        let at = i * self.cols;
        out.copy_from_slice(&self.x[at..][..self.cols]);
        if let Some(residual) = self.residual {
            out.iter_mut().zip(&residual[at..][..self.cols]).for_each(|(y, r)| *y += r);
        }
    }
}

/// `y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias` over every row, with the biased variance.
///
/// # Panics
///
/// If a slice has the wrong length.
pub fn layer_norm(threads: &Threads, isa: Isa, norm: &RowNorm<'_>, out: &mut [f32]) {
    norm.check(out);
    for_each_row(threads, out, norm.cols, |i, out| {
        norm.load(i, out);
        let (mean, factor) = moments(isa, out, norm.eps);
        scale_shift(isa, out, mean, factor, norm.weight, norm.bias);
    });
}

/// `y = x / sqrt(mean(x^2) + eps) * weight + bias` over every row.
///
/// # Panics
///
/// If a slice has the wrong length.
pub fn rms_norm(threads: &Threads, isa: Isa, norm: &RowNorm<'_>, out: &mut [f32]) {
    norm.check(out);
    for_each_row(threads, out, norm.cols, |i, out| {
        norm.load(i, out);
        let factor = 1.0 / (square_sum(isa, out, 0.0) / norm.cols as f32 + norm.eps).sqrt();
        scale_shift(isa, out, 0.0, factor, norm.weight, norm.bias);
    });
}

/// `mean(x)` and `1 / sqrt(var(x) + eps)`.
fn moments(isa: Isa, row: &[f32], eps: f32) -> (f32, f32) {
    let n = row.len() as f32;
    let mean = sum(isa, row) / n;
    (mean, 1.0 / (square_sum(isa, row, mean) / n + eps).sqrt())
}

simd_fn! {
    fn sum<F>(xs: &[f32]) -> f32 {
        lanes::sum(xs)
    }
}

simd_fn! {
    fn square_sum<F>(xs: &[f32], center: f32) -> f32 {
        lanes::sum_of_squares::<F>(xs, center)
    }
}

simd_fn! {
    fn scale_shift<F>(row: &mut [f32], mean: f32, factor: f32, weight: Option<&[f32]>, bias: Option<&[f32]>) {
        match (weight, bias) {
            (Some(w), Some(b)) => {
                for ((x, w), b) in row.iter_mut().zip(w).zip(b) {
                    *x = F::mul_add((*x - mean) * factor, *w, *b);
                }
            }
            (Some(w), None) => row.iter_mut().zip(w).for_each(|(x, w)| *x = (*x - mean) * factor * w),
            (None, Some(b)) => row.iter_mut().zip(b).for_each(|(x, b)| *x = F::mul_add(*x - mean, factor, *b)),
            (None, None) => row.iter_mut().for_each(|x| *x = (*x - mean) * factor),
        }
    }
}

/// Group norm: channels are cut into groups; each group of each image is normalised over its channels and positions, then every
/// channel gets its own factor and addend. With as many groups as channels this is instance norm.
#[derive(Clone, Copy, Debug)]
pub struct GroupNorm<'a> {
    /// Input: `[batch, channels, positions]`, or `[batch, positions, channels]` if `channels_last`.
    pub x: &'a [f32],
    /// Images.
    pub batch: usize,
    /// Channels.
    pub channels: usize,
    /// Positions: height times width.
    pub positions: usize,
    /// Groups; divides `channels`.
    pub groups: usize,
    /// Which dimension varies fastest.
    pub channels_last: bool,
    /// A factor for each channel.
    pub weight: Option<&'a [f32]>,
    /// An addend for each channel.
    pub bias: Option<&'a [f32]>,
    /// Added to the variance.
    pub eps: f32,
}

/// Computes a [`GroupNorm`] into `out`, which has the layout of the input.
///
/// # Panics
///
/// If a slice has the wrong length or the groups do not divide the channels.
pub fn group_norm(threads: &Threads, isa: Isa, norm: &GroupNorm<'_>, out: &mut [f32]) {
    let GroupNorm { batch, channels, positions, groups, .. } = *norm;
    assert!(norm.x.len() == out.len() && out.len() == batch * channels * positions);
    assert!(groups > 0 && channels.is_multiple_of(groups), "{groups} groups do not divide {channels} channels");
    assert!(norm.weight.is_none_or(|w| w.len() == channels) && norm.bias.is_none_or(|b| b.len() == channels));
    let width = channels / groups;
    // A group is a matrix of positions by channels or the other way round.
    let (rows, cols, row_stride, group_stride) = if norm.channels_last {
        (positions, width, channels, width)
    } else {
        (width, positions, positions, width * positions)
    };
    let outer = [(batch, channels * positions), (groups, group_stride)];
    let grid = TileGrid { outer: &outer, rows, cols, row_stride, tile_rows: rows, tile_cols: cols };
    threads.for_each_tile(out, &grid, |at, mut tile| {
        let (image, group) = (at.matrix / groups, at.matrix % groups);
        let start = image * channels * positions + group * group_stride;
        for r in 0..rows {
            tile.row(r).copy_from_slice(&norm.x[start + r * row_stride..][..cols]);
        }
        normalise_group(isa, norm, group * width, &mut tile);
    });
}

/// Normalises the group whose first channel is `first`. The sums of rows are added in `f64`: there may be very many.
fn normalise_group(isa: Isa, norm: &GroupNorm<'_>, first: usize, tile: &mut TileMut<'_, f32>) {
    let (rows, cols) = (tile.rows(), tile.cols());
    let count = (rows * cols) as f64;
    let mean = ((0..rows).map(|r| f64::from(sum(isa, tile.row(r)))).sum::<f64>() / count) as f32;
    let squares: f64 = (0..rows).map(|r| f64::from(square_sum(isa, tile.row(r), mean))).sum();
    let factor = (1.0 / (squares / count + f64::from(norm.eps)).sqrt()) as f32;
    for r in 0..rows {
        if norm.channels_last {
            let weight = norm.weight.map(|w| &w[first..first + cols]);
            let bias = norm.bias.map(|b| &b[first..first + cols]);
            scale_shift(isa, tile.row(r), mean, factor, weight, bias);
        } else {
            let factor = norm.weight.map_or(factor, |w| factor * w[first + r]);
            let bias = norm.bias.map_or(0.0, |b| b[first + r]);
            tile.row(r).iter_mut().for_each(|x| *x = (*x - mean) * factor + bias);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::nn::testing::{assert_close, numbers, on_every_isa};

    fn normalised(xs: &[f64], centered: bool, eps: f64) -> Vec<f64> {
        let n = xs.len() as f64;
        let mean = if centered { xs.iter().sum::<f64>() / n } else { 0.0 };
        let variance = xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        xs.iter().map(|x| (x - mean) / (variance + eps).sqrt()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]

        #[test]
        fn rows(rows in 1usize..20, cols in 1usize..150, layer: bool, res: bool, weight: bool, bias: bool) {
            let (x, r) = (numbers(rows * cols, 1), numbers(rows * cols, 2));
            let (w, b) = (numbers(cols, 3), numbers(cols, 4));
            let norm = RowNorm {
                x: &x, residual: res.then_some(&r[..]), cols,
                weight: weight.then_some(&w[..]), bias: bias.then_some(&b[..]), eps: 1e-3,
            };
            let routine = if layer { layer_norm } else { rms_norm };
            on_every_isa(x.len(), |threads, isa, out| routine(threads, isa, &norm, out), |out| {
                for (i, out) in out.chunks(cols).enumerate() {
                    let input = |j: usize| f64::from(x[i * cols + j] + if res { r[i * cols + j] } else { 0.0 });
                    let row: Vec<f64> = (0..cols).map(input).collect();
                    for (j, y) in normalised(&row, layer, 1e-3).into_iter().enumerate() {
                        let y = y * if weight { f64::from(w[j]) } else { 1.0 } + if bias { f64::from(b[j]) } else { 0.0 };
                        assert_close(out[j], y, 1e-4);
                    }
                }
            });
        }

        #[test]
        fn groups(batch in 1usize..3, groups in 1usize..4, width in 1usize..9, positions in 1usize..40, last: bool, affine: bool) {
            let channels = groups * width;
            let x = numbers(batch * channels * positions, 1);
            let (w, b) = (numbers(channels, 3), numbers(channels, 4));
            let norm = GroupNorm {
                x: &x, batch, channels, positions, groups, channels_last: last,
                weight: affine.then_some(&w[..]), bias: affine.then_some(&b[..]), eps: 1e-3,
            };
            let place = |n: usize, c: usize, p: usize| {
                n * channels * positions + if last { p * channels + c } else { c * positions + p }
            };
            on_every_isa(x.len(), |threads, isa, out| group_norm(threads, isa, &norm, out), |out| {
                for (n, g) in (0..batch).flat_map(|n| (0..groups).map(move |g| (n, g))) {
                    let places: Vec<(usize, usize)> = (g * width..(g + 1) * width)
                        .flat_map(|c| (0..positions).map(move |p| (c, p))).map(|(c, p)| (c, place(n, c, p))).collect();
                    let row: Vec<f64> = places.iter().map(|(_, at)| f64::from(x[*at])).collect();
                    for ((c, at), y) in places.iter().zip(normalised(&row, true, 1e-3)) {
                        let want = if affine { y * f64::from(w[*c]) + f64::from(b[*c]) } else { y };
                        assert_close(out[*at], want, 1e-4);
                    }
                }
            });
        }
    }
}
