//! Normalizations: layer norm, RMS norm, group norm.

use super::{for_each_float_row, row_scratch, widened, workers};
use crate::{
    Isa, Scratch, Threads,
    scratch::bytes_of,
    simd::{Float, FloatType, Floats, Fma, lanes, simd_fn},
    threads::{TileGrid, TileMut},
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

/// Group norm: channels are cut into groups; each group of each image is normalized over its channels and positions, then every
/// channel gets its own factor and addend. With as many groups as channels this is instance norm.
#[derive(Clone, Copy, Debug)]
pub struct GroupNorm<'a> {
    /// Input: `[batch, channels, positions]`, or `[batch, positions, channels]` if `channels_last`.
    pub x: Floats<'a>,
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
    pub weight: Option<Floats<'a>>,
    /// An addend for each channel.
    pub bias: Option<Floats<'a>>,
    /// Added to the variance.
    pub eps: f32,
}

impl GroupNorm<'_> {
    /// Bytes of scratch that a group norm into `out` needs.
    pub fn scratch(threads: &Threads, channels: usize, positions: usize, groups: usize, out: FloatType) -> usize {
        let group = if out == FloatType::F32 { 0 } else { channels / groups.max(1) * positions };
        2 * bytes_of::<f32>(channels) + workers(threads) * bytes_of::<f32>(group)
    }
}

/// Computes a [`GroupNorm`] into `out`, which has the layout of the input.
///
/// # Panics
///
/// If a slice has the wrong length, the groups do not divide the channels, or the scratch is shorter than
/// [`GroupNorm::scratch`].
pub fn group_norm<T: Float>(
    threads: &Threads,
    isa: Isa,
    norm: &GroupNorm<'_>,
    out: &mut [T],
    scratch: &mut Scratch<'_>,
) {
    let GroupNorm { batch, channels, positions, groups, .. } = *norm;
    assert!(norm.x.len() == out.len() && out.len() == batch * channels * positions);
    assert!(groups > 0 && channels.is_multiple_of(groups), "{groups} groups do not divide {channels} channels");
    assert!(norm.weight.is_none_or(|w| w.len() == channels) && norm.bias.is_none_or(|b| b.len() == channels));
    let mut scratch = scratch.again();
    let affine = (widened(isa, norm.weight, &mut scratch), widened(isa, norm.bias, &mut scratch));
    let width = channels / groups;
    // A group is a matrix of positions by channels or the other way round.
    let (rows, cols, row_stride, group_stride) = if norm.channels_last {
        (positions, width, channels, width)
    } else {
        (width, positions, positions, width * positions)
    };
    let outer = [(batch, channels * positions), (groups, group_stride)];
    let grid = TileGrid { outer: &outer, rows, cols, row_stride, tile_rows: rows, tile_cols: cols };
    let group = if T::TYPE == FloatType::F32 { 0 } else { rows * cols };
    let mut buffers = scratch.parts::<f32>(workers(threads), group);
    threads.for_each_tile_with(&mut buffers, out, &grid, |buffer, at, mut out| {
        let (image, group) = (at.matrix / groups, at.matrix % groups);
        let start = image * channels * positions + group * group_stride;
        let fill = |tile: &mut TileMut<'_, f32>| {
            (0..rows).for_each(|r| norm.x.load(isa, start + r * row_stride, tile.row(r)));
            normalize_group(isa, norm, affine, group * width, tile);
        };
        if let Some(mut tile) = out.cast::<f32>() {
            return fill(&mut tile);
        }
        let mut tile = TileMut::new(buffer, rows, cols, cols);
        fill(&mut tile);
        (0..rows).for_each(|r| T::narrow(isa, tile.row(r), out.row(r)));
    });
}

/// Normalizes the group whose first channel is `first`. The sums of rows are added in `f64`: there may be very many.
fn normalize_group(
    isa: Isa,
    norm: &GroupNorm<'_>,
    (weight, bias): (Option<&[f32]>, Option<&[f32]>),
    first: usize,
    tile: &mut TileMut<'_, f32>,
) {
    let (rows, cols) = (tile.rows(), tile.cols());
    let count = (rows * cols) as f64;
    let mean = ((0..rows).map(|r| f64::from(sum(isa, tile.row(r)))).sum::<f64>() / count) as f32;
    let squares: f64 = (0..rows).map(|r| f64::from(square_sum(isa, tile.row(r), mean))).sum();
    let factor = (1.0 / (squares / count + f64::from(norm.eps)).sqrt()) as f32;
    for r in 0..rows {
        if norm.channels_last {
            let weight = weight.map(|w| &w[first..first + cols]);
            let bias = bias.map(|b| &b[first..first + cols]);
            scale_shift(isa, tile.row(r), mean, factor, weight, bias);
        } else {
            let factor = weight.map_or(factor, |w| factor * w[first + r]);
            let bias = bias.map_or(0.0, |b| b[first + r]);
            tile.row(r).iter_mut().for_each(|x| *x = (*x - mean) * factor + bias);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::nn::testing::{Compute, Numbers, assert_close, in_every_type, numbers};

    fn normalized(xs: &[f64], centered: bool, eps: f64) -> Vec<f64> {
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

    struct Groups<'a>(GroupNorm<'a>);

    impl Compute for Groups<'_> {
        fn run<T: Float>(&self, threads: &Threads, isa: Isa, out: &mut [T], scratch: &mut Scratch<'_>) {
            group_norm(threads, isa, &self.0, out, scratch);
        }
        fn scratch(&self, threads: &Threads, _: Isa, out: FloatType) -> usize {
            GroupNorm::scratch(threads, self.0.channels, self.0.positions, self.0.groups, out)
        }
    }

    fn any_type() -> impl Strategy<Value = FloatType> {
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

        #[test]
        fn groups(
            batch in 1usize..3, groups in 1usize..4, width in 1usize..9, positions in 1usize..40, last: bool, affine: bool,
            ty in any_type(),
        ) {
            let channels = groups * width;
            let x = Numbers::new(ty, &numbers(batch * channels * positions, 1));
            let (w, b) = (Numbers::new(ty, &numbers(channels, 3)), Numbers::new(FloatType::F32, &numbers(channels, 4)));
            let norm = GroupNorm {
                x: x.floats(), batch, channels, positions, groups, channels_last: last,
                weight: affine.then(|| w.floats()), bias: affine.then(|| b.floats()), eps: 1e-3,
            };
            let place = |n: usize, c: usize, p: usize| {
                n * channels * positions + if last { p * channels + c } else { c * positions + p }
            };
            in_every_type(batch * channels * positions, &Groups(norm), |out, rounding| {
                for (n, g) in (0..batch).flat_map(|n| (0..groups).map(move |g| (n, g))) {
                    let places: Vec<(usize, usize)> = (g * width..(g + 1) * width)
                        .flat_map(|c| (0..positions).map(move |p| (c, p))).map(|(c, p)| (c, place(n, c, p))).collect();
                    let row: Vec<f64> = places.iter().map(|(_, at)| x.at(*at)).collect();
                    for ((c, at), y) in places.iter().zip(normalized(&row, true, 1e-3)) {
                        let want = if affine { y * w.at(*c) + b.at(*c) } else { y };
                        assert_close(out[*at], want, 1e-4 + rounding);
                    }
                }
            });
        }
    }
}
