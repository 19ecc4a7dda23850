//! Group norm: channels are cut into groups, and those of an image are normalized together over all positions.
//!
//! Where channels vary fastest a group is a few numbers at each position. So sums are taken of each channel, for many at once, over some
//! positions after the other; the groups' sums are those of their channels. Such a block of positions is as long whatever the number of
//! threads, so that results are the same bits.

use super::{
    norm::{square_sum, sum},
    widened, workers,
};
use crate::{
    Isa, Scratch, Threads,
    scratch::bytes_of,
    simd::{Float, FloatType, Floats, Several, Vectors, vector_fn},
    threads::{TileGrid, TileMut},
};

/// Each group of each image is normalized over its channels and positions, then every channel gets its own factor and addend. With as
/// many groups as channels this is instance norm.
#[derive(Clone, Copy, Debug)]
pub struct GroupNorm<'a> {
    /// Input: `[batch, channels, positions]`, or `[batch, positions, channels]` if `channels_last`.
    pub x: Floats<'a>,
    /// Sizes and order of the input.
    pub shape: GroupShape,
    /// A factor for each channel.
    pub weight: Option<Floats<'a>>,
    /// An addend for each channel.
    pub bias: Option<Floats<'a>>,
    /// Added to the variance.
    pub eps: f32,
}

/// Sizes of what a [`GroupNorm`] reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct GroupShape {
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
}

/// Floats of a block of positions: they stay in a first-level cache.
const BLOCK: usize = 8 * 1024;

/// The most positions of a block: a channel's sum over them is rounded to f32.
const LONGEST: usize = 64;

impl GroupShape {
    fn numel(&self) -> usize {
        self.batch * self.channels * self.positions
    }

    /// Positions of a block.
    fn block(&self) -> usize {
        (BLOCK / self.channels.max(1)).min(self.positions).clamp(1, LONGEST)
    }

    /// Blocks of an image.
    fn blocks(&self) -> usize {
        self.positions.div_ceil(self.block())
    }

    /// Floats that a worker needs for what it reads and what it writes, where that is not f32.
    fn buffers(&self, x: FloatType, out: FloatType) -> [usize; 2] {
        let floats = |ty: FloatType, floats: usize| if ty == FloatType::F32 { 0 } else { floats };
        match self.channels_last {
            true => [x, out].map(|ty| floats(ty, self.block() * self.channels)),
            false => [0, floats(out, self.channels / self.groups.max(1) * self.positions)],
        }
    }

    /// Bytes of scratch that [`group_norm`] of `x` into `out` needs.
    pub fn scratch(&self, threads: &Threads, x: FloatType, out: FloatType) -> usize {
        let of = |times: usize| bytes_of::<f32>(self.batch * times * 2 * self.channels);
        let sums = if self.channels_last { of(self.blocks()) + of(1) } else { 0 };
        2 * bytes_of::<f32>(self.channels)
            + sums
            + workers(threads) * self.buffers(x, out).map(bytes_of::<f32>).iter().sum::<usize>()
    }
}

/// Computes a [`GroupNorm`] into `out`, which has the layout of the input.
///
/// # Panics
///
/// If a slice has the wrong length, the groups do not divide the channels, or the scratch is shorter than
/// [`GroupShape::scratch`].
pub fn group_norm<T: Float>(
    threads: &Threads,
    isa: Isa,
    norm: &GroupNorm<'_>,
    out: &mut [T],
    scratch: &mut Scratch<'_>,
) {
    let GroupShape { channels, groups, .. } = norm.shape;
    assert!(norm.x.len() == out.len() && out.len() == norm.shape.numel());
    assert!(groups > 0 && channels.is_multiple_of(groups), "{groups} groups do not divide {channels} channels");
    assert!(norm.weight.is_none_or(|w| w.len() == channels) && norm.bias.is_none_or(|b| b.len() == channels));
    if out.is_empty() {
        return;
    }
    let mut scratch = scratch.again();
    let affine = (widened(isa, norm.weight, &mut scratch), widened(isa, norm.bias, &mut scratch));
    if norm.shape.channels_last {
        channels_last(threads, isa, norm, affine, out, &mut scratch);
    } else {
        channels_first(threads, isa, norm, affine, out, &mut scratch);
    }
}

type Affine<'a> = (Option<&'a [f32]>, Option<&'a [f32]>);

fn channels_first<T: Float>(
    threads: &Threads,
    isa: Isa,
    norm: &GroupNorm<'_>,
    (weight, bias): Affine<'_>,
    out: &mut [T],
    scratch: &mut Scratch<'_>,
) {
    let shape @ GroupShape { batch, channels, positions, groups, .. } = norm.shape;
    let width = channels / groups;
    let outer = [(batch * groups, width * positions)];
    let (rows, cols) = (width, positions);
    let grid = TileGrid { outer: &outer, rows, cols, row_stride: cols, tile_rows: rows, tile_cols: cols };
    let [_, group] = shape.buffers(norm.x.ty(), T::TYPE);
    let mut buffers = scratch.parts::<f32>(workers(threads), group);
    threads.for_each_tile_with(&mut buffers, out, &grid, |buffer, at, mut out| {
        let fill = |tile: &mut TileMut<'_, f32>| {
            (0..rows).for_each(|r| norm.x.load(isa, (at.matrix * width + r) * positions, tile.row(r)));
            let (mean, factor) = moments(isa, tile, norm.eps);
            for r in 0..rows {
                let channel = at.matrix % groups * width + r;
                let factor = weight.map_or(factor, |w| factor * w[channel]);
                let bias = bias.map_or(0.0, |b| b[channel]);
                tile.row(r).iter_mut().for_each(|x| *x = (*x - mean) * factor + bias);
            }
        };
        if let Some(mut tile) = out.cast::<f32>() {
            return fill(&mut tile);
        }
        let mut tile = TileMut::new(buffer, rows, cols, cols);
        fill(&mut tile);
        (0..rows).for_each(|r| T::narrow(isa, tile.row(r), out.row(r)));
    });
}

/// `mean(x)` and `1 / sqrt(var(x) + eps)`. The sums of rows are added in `f64`: there may be very many.
fn moments(isa: Isa, tile: &mut TileMut<'_, f32>, eps: f32) -> (f32, f32) {
    let (rows, count) = (tile.rows(), (tile.rows() * tile.cols()) as f64);
    let mean = ((0..rows).map(|r| f64::from(sum(isa, tile.row(r)))).sum::<f64>() / count) as f32;
    let squares: f64 = (0..rows).map(|r| f64::from(square_sum(isa, tile.row(r), mean))).sum();
    (mean, (1.0 / (squares / count + f64::from(eps)).sqrt()) as f32)
}

fn channels_last<T: Float>(
    threads: &Threads,
    isa: Isa,
    norm: &GroupNorm<'_>,
    affine: Affine<'_>,
    out: &mut [T],
    scratch: &mut Scratch<'_>,
) {
    let shape @ GroupShape { batch, channels, positions, .. } = norm.shape;
    let (block, blocks) = (shape.block(), shape.blocks());
    let sums = scratch.take::<f32>(batch * blocks * 2 * channels);
    let ends = scratch.take::<f32>(batch * 2 * channels);
    let [wide, narrow] = shape.buffers(norm.x.ty(), T::TYPE);
    let mut buffers: Vec<_> =
        (0..workers(threads)).map(|_| [wide, narrow].map(|floats| scratch.take(floats))).collect();
    threads.for_each_chunk_with(&mut buffers, sums, 2 * channels, |[buffer, _], i, sums| {
        let (image, first) = (i / blocks, i % blocks * block);
        let at = (image * positions + first) * channels;
        let rows = read(isa, norm.x, at, block.min(positions - first) * channels, buffer);
        sum_channels(isa, rows, sums);
    });
    for (ends, sums) in ends.chunks_mut((2 * channels).max(1)).zip(sums.chunks((blocks * 2 * channels).max(1))) {
        finish(norm, affine.0, sums, ends);
    }
    let outer = [(batch, channels * positions)];
    let grid = TileGrid {
        outer: &outer,
        rows: positions,
        cols: channels,
        row_stride: channels,
        tile_rows: block,
        tile_cols: channels,
    };
    threads.for_each_tile_with(&mut buffers, out, &grid, |[wide, narrow], at, mut tile| {
        let out = tile.contiguous().expect("rows of all channels follow each other");
        let ends = &ends[at.matrix * 2 * channels..][..2 * channels];
        let x = read(isa, norm.x, (at.matrix * positions + at.row) * channels, out.len(), wide);
        if let Some(out) = T::as_f32_mut(out) {
            return normalize(isa, x, ends, affine.1, out);
        }
        let narrow = &mut narrow[..out.len()];
        normalize(isa, x, ends, affine.1, narrow);
        T::narrow(isa, narrow, out);
    });
}

/// So many floats, where they are or in `buffer`.
fn read<'a>(isa: Isa, x: Floats<'a>, at: usize, len: usize, buffer: &'a mut [f32]) -> &'a [f32] {
    match x {
        Floats::F32(x) => &x[at..][..len],
        _ => x.read(isa, at, &mut buffer[..len]),
    }
}

/// Sets `ends` to a mean and a factor for each channel of an image, from what [`sum_channels`] found in each of its blocks.
fn finish(norm: &GroupNorm<'_>, weight: Option<&[f32]>, sums: &[f32], ends: &mut [f32]) {
    let GroupShape { channels, positions, groups, .. } = norm.shape;
    let (block, width) = (norm.shape.block(), channels / groups);
    let (means, factors) = ends.split_at_mut(channels);
    for first in (0..channels).step_by(width) {
        let (group, count) = (first..first + width, (width * positions) as f64);
        let (mut total, mut squares) = (0f64, 0f64);
        for sums in sums.chunks_exact(2 * channels) {
            total += sums[group.clone()].iter().map(|sum| f64::from(*sum)).sum::<f64>();
        }
        let mean = total / count;
        for (i, sums) in sums.chunks_exact(2 * channels).enumerate() {
            let (positions, (sums, spreads)) = (block.min(positions - i * block) as f64, sums.split_at(channels));
            for (sum, spread) in sums[group.clone()].iter().zip(&spreads[group.clone()]) {
                // From the mean of the channel in the block, and from that to the group's.
                squares += f64::from(*spread) + positions * (f64::from(*sum) / positions - mean).powi(2);
            }
        }
        let factor = (1.0 / (squares / count + f64::from(norm.eps)).sqrt()) as f32;
        for channel in group {
            means[channel] = mean as f32;
            factors[channel] = weight.map_or(factor, |weight| factor * weight[channel]);
        }
    }
}

vector_fn! {
    /// Sets `sums` to the sum of each channel over the positions of `xs`, and then to that of the squares of its differences from its mean.
    fn sum_channels<S>(simd, xs: &[f32], sums: &mut [f32]) {
        let (sums, squares) = sums.split_at_mut(sums.len() / 2);
        let (channels, several) = (sums.len(), Several::<S, 4>(simd));
        let lanes = <Several<S, 4> as Vectors>::LANES;
        for first in (0..channels).step_by(lanes) {
            let (sums, squares) = (&mut sums[first..], &mut squares[first..]);
            if channels - first >= lanes {
                sum_some(several, &xs[first..], channels, &mut sums[..lanes], &mut squares[..lanes]);
                continue;
            }
            for (i, (sums, squares)) in sums.chunks_mut(S::LANES).zip(squares.chunks_mut(S::LANES)).enumerate() {
                sum_some(simd, &xs[first + i * S::LANES..], channels, sums, squares);
            }
        }
    }
}

/// Some channels, no more than a register holds; `xs` begins with the first of them, and positions are `step` floats apart.
#[inline(always)]
fn sum_some<S: Vectors>(simd: S, xs: &[f32], step: usize, sums: &mut [f32], squares: &mut [f32]) {
    let width = sums.len();
    let (mut sum, mut square, mut count) = (simd.splat(0.0), simd.splat(0.0), 0f32);
    for xs in xs.chunks(step) {
        sum = simd.add(sum, simd.load_some(&xs[..width]));
        count += 1.0;
    }
    let minus_mean = simd.mul(sum, simd.splat(-1.0 / count));
    for xs in xs.chunks(step) {
        let x = simd.add(simd.load_some(&xs[..width]), minus_mean);
        square = simd.mul_add(x, x, square);
    }
    simd.store_some(sum, sums);
    simd.store_some(square, squares);
}

vector_fn! {
    /// Writes `(x - mean) * factor + bias` for all of `xs`, of which each position has the means and factors of `ends`.
    fn normalize<S>(simd, xs: &[f32], ends: &[f32], bias: Option<&[f32]>, out: &mut [f32]) {
        let channels = ends.len() / 2;
        let (means, factors) = ends.split_at(channels);
        for (xs, out) in xs.chunks_exact(channels).zip(out.chunks_exact_mut(channels)) {
            for first in (0..channels).step_by(S::LANES) {
                let some = first..channels.min(first + S::LANES);
                let minus_mean = simd.mul(simd.load_some(&means[some.clone()]), simd.splat(-1.0));
                let x = simd.add(simd.load_some(&xs[some.clone()]), minus_mean);
                let addend = match bias {
                    Some(bias) => simd.load_some(&bias[some.clone()]),
                    None => simd.splat(0.0),
                };
                simd.store_some(simd.mul_add(x, simd.load_some(&factors[some.clone()]), addend), &mut out[some]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::nn::{
        norm::tests::{any_type, normalized},
        testing::{Compute, Numbers, assert_close, in_every_type, numbers},
    };

    struct Groups<'a>(GroupNorm<'a>);

    impl Compute for Groups<'_> {
        fn run<T: Float>(&self, threads: &Threads, isa: Isa, out: &mut [T], scratch: &mut Scratch<'_>) {
            group_norm(threads, isa, &self.0, out, scratch);
        }
        fn scratch(&self, threads: &Threads, _: Isa, out: FloatType) -> usize {
            self.0.shape.scratch(threads, self.0.x.ty(), out)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn groups(
            batch in 1usize..3, groups in 1usize..6, width in 1usize..30, positions in 1usize..150, channels_last: bool,
            affine: bool, offset in prop::sample::select(vec![0.0, 30.0]), ty in any_type(),
        ) {
            let channels = groups * width;
            let drawn: Vec<f32> = numbers(batch * channels * positions, 1).iter().map(|x| x + offset).collect();
            let x = Numbers::new(ty, &drawn);
            let (w, b) = (Numbers::new(ty, &numbers(channels, 3)), Numbers::new(FloatType::F32, &numbers(channels, 4)));
            let norm = GroupNorm {
                x: x.floats(), shape: GroupShape { batch, channels, positions, groups, channels_last },
                weight: affine.then(|| w.floats()), bias: affine.then(|| b.floats()), eps: 1e-3,
            };
            let place = |n: usize, c: usize, p: usize| {
                n * channels * positions + if channels_last { p * channels + c } else { c * positions + p }
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
