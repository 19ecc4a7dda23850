//! Depthwise convolution: every channel has a kernel of its own,
//! `out[n, z, y, x, c] = act(bias[c] + sum over taps of image[n, z s + kz d - p, y s + ky d - p, x s + kx d - p, c] * weight[tap, c])`.

use std::ops::Range;

use regraft_ir::ops::Activation;

use super::{
    rows_per_task, widened,
    window::{lines_met, lines_of},
    workers,
};
use crate::{
    Isa, Scratch, Threads,
    gemm::Window3,
    pack::{panel_bytes, widen_panel},
    scratch::bytes_of,
    simd::{
        Float, FloatType, Floats, Fma, Taps, Vectors, activation::map_registers, functions::with_activation, vector_fn,
    },
};

/// To whose multiple the channels of packed weights are padded.
const CHANNELS: usize = 32;

/// Floats between the taps of packed depthwise weights.
pub fn tap_stride(channels: usize) -> usize {
    channels.next_multiple_of(CHANNELS)
}

/// A depthwise convolution over a channels-last image.
#[derive(Clone, Copy, Debug)]
pub struct DepthwiseArgs<'a> {
    /// Where windows are.
    pub window: Window3,
    /// Channels of input and output.
    pub channels: usize,
    /// The input, `[batch, depth, height, width, channels]`.
    pub image: Floats<'a>,
    /// The weights, `[taps, channels]`, as one panel of [`tap_stride`] columns.
    pub weight: Floats<'a>,
    /// One addend for each channel.
    pub bias: Option<Floats<'a>>,
    /// Applied to the sum.
    pub activation: Activation,
}

/// Floats that a worker widens lines of the image and of the result into.
fn buffers(window: &Window3, channels: usize, image: FloatType, out: FloatType) -> [usize; 2] {
    let rows =
        if image == FloatType::F32 { 0 } else { window.kernel[0] * window.kernel[1] * window.input[2] * channels };
    [rows, if out == FloatType::F32 { 0 } else { window.output[2] * channels }]
}

/// Bytes of scratch that [`depthwise`] needs.
pub fn depthwise_scratch(threads: &Threads, window: &Window3, channels: usize, [image, out]: [FloatType; 2]) -> usize {
    let [rows, row] = buffers(window, channels, image, out);
    bytes_of::<f32>(channels)
        + bytes_of::<f32>(window.taps() * tap_stride(channels))
        + workers(threads) * (bytes_of::<f32>(rows) + bytes_of::<f32>(row))
}

/// Computes a depthwise convolution into `out`, `[batch, depth, height, width, channels]`.
///
/// # Panics
///
/// If a slice has the wrong length, or the scratch is shorter than [`depthwise_scratch`].
pub fn depthwise<T: Float>(
    threads: &Threads,
    isa: Isa,
    args: &DepthwiseArgs<'_>,
    out: &mut [T],
    scratch: &mut Scratch<'_>,
) {
    let DepthwiseArgs { window, channels, .. } = *args;
    assert_eq!(args.image.len(), window.batch * window.pixels_in() * channels);
    let stride = tap_stride(channels);
    assert_eq!(args.weight.bytes().len(), panel_bytes(args.weight.ty(), window.taps(), stride));
    assert_eq!(out.len(), window.pixels() * channels);
    assert!(args.bias.is_none_or(|b| b.len() == channels));
    let mut scratch = scratch.again();
    let bias = widened(isa, args.bias, &mut scratch);
    let weight: &[f32] = if let Floats::F32(weight) = args.weight {
        weight
    } else {
        let wide = scratch.take(window.taps() * stride);
        widen_panel(isa, stride, args.weight, wide);
        wide
    };
    let [rows, row] = buffers(&window, channels, args.image.ty(), T::TYPE);
    let mut buffers: Vec<_> = (0..workers(threads)).map(|_| (scratch.take(rows), scratch.take(row))).collect();
    let [line, width] = [window.output[2], window.input[2]].map(|pixels| (pixels * channels).max(1));
    let (blocks, parts) = (Blocks::new(&window), parts(&window, channels));
    // Neighboring rows read the same lines, which one thread then has in its caches.
    let per_task = rows_per_task(threads, out.len() / line, line);
    // What is not f32 is widened for one row at a time.
    let together = if args.image.ty() == FloatType::F32 && T::TYPE == FloatType::F32 { per_task } else { 1 };
    threads.for_each_chunk_with(&mut buffers, out, per_task * line, |(rows, buffer), task, out| {
        for (i, out) in out.chunks_mut(together * line).enumerate() {
            let first = task * per_task + i * together;
            let (image, copies): (&[f32], bool) = if let Floats::F32(image) = args.image {
                (image, false)
            } else {
                for (source, copy) in lines_met(&window, first).zip(rows.chunks_exact_mut(width)) {
                    args.image.load(isa, source * width, copy);
                }
                (rows, true)
            };
            let taps: Vec<Vec<Taps>> = (0..out.len() / line)
                .map(|row| blocks.taps(&window, lines_of(&window, first + row, copies), [channels, stride]))
                .collect();
            let (result, narrower) = match T::as_f32_mut(out) {
                Some(out) => (out, false),
                None => (&mut **buffer, true),
            };
            for part in &parts {
                for (taps, out) in taps.iter().zip(result.chunks_exact_mut(line)) {
                    let row = Row {
                        channels: part.len(),
                        image: &image[part.start..],
                        step: channels,
                        stride: window.stride[2],
                        weight: &weight[part.start..],
                        taps,
                        bias: bias.map(|bias| &bias[part.clone()]),
                        blocks: &blocks,
                        activation: args.activation,
                    };
                    compute_row(isa, row, &mut out[part.start..], channels);
                }
            }
            if narrower {
                T::narrow(isa, buffer, out);
            }
        }
    });
}

/// Floats of the lines that a row of output pixels meets, so that they stay in a first-level cache.
const LINES: usize = 6 * 1024;

/// The fewest channels of a part, two cache lines: processors fetch lines in pairs.
const LEAST: usize = 32;

/// Cuts channels into parts, with each of which a task goes through all its rows before the next: each line of the image is then fetched
/// once for all rows that meet it.
fn parts(window: &Window3, channels: usize) -> Vec<Range<usize>> {
    let pixels = window.kernel[0] * window.kernel[1] * window.input[2];
    let most = (LINES / pixels.max(1) / LEAST).max(1) * LEAST;
    let count = (channels / most).max(1);
    // The last one has what is left: fewer channels than a register's would take as long.
    (0..count).map(|i| i * most..if i + 1 == count { channels } else { (i + 1) * most }).collect()
}

/// What some channels of a row of output pixels are computed from.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    /// How many channels.
    pub(super) channels: usize,
    /// The lines of images that are met, and perhaps others, from the first of the channels on.
    pub(super) image: &'a [f32],
    /// Floats between pixels of it.
    pub(super) step: usize,
    /// Pixels between those that output pixels next to each other meet with the same tap.
    pub(super) stride: usize,
    /// The weights from the first of the channels on.
    pub(super) weight: &'a [f32],
    /// What [`Blocks::taps`] gives.
    pub(super) taps: &'a [Taps],
    /// One for each channel.
    pub(super) bias: Option<&'a [f32]>,
    pub(super) blocks: &'a Blocks,
    pub(super) activation: Activation,
}

impl Row<'_> {
    /// Where the pixel of output pixel `p` of a block is that the block's taps are counted from.
    fn start(&self, block: &Block, p: usize) -> usize {
        (block.column + p * self.stride) * self.step
    }
}

vector_fn! {
    /// Computes some channels of a row of output pixels into `out`, where pixels are `step` floats apart.
    pub(super) fn compute_row<S>(simd, row: Row<'_>, out: &mut [f32], step: usize) {
        for block in &row.blocks.blocks {
            let out = &mut out[block.x * step..];
            if row.channels < S::LANES {
                few_channels::<S::F>(&row, block, out, step);
                continue;
            }
            match block.pixels {
                8 => all_channels::<S, 8, 1>(simd, &row, block, out, step),
                7 => all_channels::<S, 7, 1>(simd, &row, block, out, step),
                6 => all_channels::<S, 6, 1>(simd, &row, block, out, step),
                4 => all_channels::<S, 4, 2>(simd, &row, block, out, step),
                3 => all_channels::<S, 3, 2>(simd, &row, block, out, step),
                2 => all_channels::<S, 2, 4>(simd, &row, block, out, step),
                _ => all_channels::<S, 1, 4>(simd, &row, block, out, step),
            }
        }
        if row.activation != Activation::None {
            with_activation!(row.activation, A => {
                for out in out.chunks_mut(step) {
                    map_registers::<S, A>(simd, &mut out[..row.channels]);
                }
            });
        }
    }
}

/// Output pixels of a row that meet the image with the same columns of the kernel, and whose sums are in registers at once, so that each
/// weight is fetched once for all of them.
struct Block {
    /// The first.
    x: usize,
    /// How many: one of [`SIZES`].
    pixels: usize,
    /// Which of [`Blocks::columns`] they are.
    columns: usize,
    /// The input column that the first pixel meets with the first of them.
    column: usize,
}

/// How many pixels a block may have: about eight sums keep the arithmetic units busy. Blocks of fewer take more channels at once.
const SIZES: [usize; 7] = [8, 7, 6, 4, 3, 2, 1];

/// How rows of output pixels are cut into blocks.
pub(super) struct Blocks {
    blocks: Vec<Block>,
    /// The columns of the kernel that some blocks meet the image with.
    columns: Vec<Range<usize>>,
}

impl Blocks {
    /// Equal ones where they can be long.
    pub(super) fn new(window: &Window3) -> Self {
        let (out, kernel) = (window.output[2], window.kernel[2]);
        let met = |x: usize| {
            let meets = |kx: &usize| window.source(2, x, *kx).is_some();
            let first = (0..kernel).find(meets).unwrap_or(0);
            first..(first..kernel).rfind(meets).map_or(first, |last| last + 1)
        };
        let (mut blocks, mut columns, mut x) = (Vec::new(), Vec::new(), 0);
        while x < out {
            let these = met(x);
            let run = (x..out).take_while(|x| met(*x) == these).count();
            let even = SIZES[..3].iter().copied().find(|pixels| run.is_multiple_of(*pixels));
            let end = x + run;
            while x < end {
                let fits = SIZES.into_iter().find(|pixels| *pixels <= end - x).unwrap_or(1);
                let (pixels, column) = (even.unwrap_or(fits), window.source(2, x, these.start).unwrap_or(0));
                blocks.push(Block { x, pixels, columns: columns.len(), column });
                x += pixels;
            }
            columns.push(these);
        }
        Blocks { blocks, columns }
    }

    /// Where the taps of a row are that meets `lines` of the image, counted from the input column of a block, for each of the ranges of
    /// columns: pixels and taps are so many floats apart.
    pub(super) fn taps(
        &self,
        window: &Window3,
        lines: impl Iterator<Item = (usize, usize)> + Clone,
        [step, weight_step]: [usize; 2],
    ) -> Vec<Taps> {
        let of = |columns: &Range<usize>| {
            let mut taps = Taps::default();
            for (tap, pixel) in lines.clone() {
                for (i, kx) in columns.clone().enumerate() {
                    taps.push((pixel + i * window.dilation[2]) * step, (tap + kx) * weight_step);
                }
            }
            taps
        };
        self.columns.iter().map(of).collect()
    }
}

/// All channels of a block of `P` output pixels, of which `out` begins with the first, `Q` registers at a time if there are so many.
#[inline(always)]
fn all_channels<S: Vectors, const P: usize, const Q: usize>(
    simd: S,
    row: &Row<'_>,
    block: &Block,
    out: &mut [f32],
    step: usize,
) {
    match row.channels / S::LANES {
        1 => some_channels::<S, P, 1>(simd, row, block, out, step),
        // Panels may be as narrow.
        2 | 3 if Q > 2 => some_channels::<S, P, 2>(simd, row, block, out, step),
        _ => some_channels::<S, P, Q>(simd, row, block, out, step),
    }
}

#[inline(always)]
fn some_channels<S: Vectors, const P: usize, const Q: usize>(
    simd: S,
    row: &Row<'_>,
    block: &Block,
    out: &mut [f32],
    step: usize,
) {
    for first in (0..row.channels).step_by(Q * S::LANES) {
        // The last ones begin where they fit, and are computed in part twice.
        let first = first.min(row.channels - Q * S::LANES);
        let sums = block_of_pixels::<S, P, Q>(simd, row, first, block);
        for (p, sums) in sums.into_iter().enumerate() {
            for (q, sum) in sums.into_iter().enumerate() {
                simd.store(sum, &mut out[p * step + first + q * S::LANES..]);
            }
        }
    }
}

/// `Q` registers of channels from `first` on, of a block of `P` output pixels.
#[inline(always)]
fn block_of_pixels<S: Vectors, const P: usize, const Q: usize>(
    simd: S,
    row: &Row<'_>,
    first: usize,
    block: &Block,
) -> [[S::V; Q]; P] {
    let mut sums = [[simd.splat(0.0); Q]; P];
    if let Some(bias) = row.bias {
        for q in 0..Q {
            let bias = simd.load(&bias[first + q * S::LANES..]);
            sums.iter_mut().for_each(|sum| sum[q] = bias);
        }
    }
    let image = &row.image[row.start(block, 0) + first..];
    simd.mul_add_taps(&mut sums, &row.taps[block.columns], (image, row.stride * row.step), &row.weight[first..]);
    sums
}

/// A block of output pixels of fewer channels than a register holds.
#[inline(always)]
fn few_channels<F: Fma>(row: &Row<'_>, block: &Block, out: &mut [f32], step: usize) {
    for (p, out) in out.chunks_mut(step).take(block.pixels).enumerate() {
        let (out, start) = (&mut out[..row.channels], row.start(block, p));
        match row.bias {
            Some(bias) => out.copy_from_slice(bias),
            None => out.fill(0.0),
        }
        for [pixel, weight] in row.taps[block.columns].at() {
            let (xs, ws) = (&row.image[start + pixel..][..out.len()], &row.weight[*weight..][..out.len()]);
            for ((sum, x), w) in out.iter_mut().zip(xs).zip(ws) {
                *sum = F::mul_add(*x, *w, *sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        gemm::conv::testing::{met, windows},
        nn::testing::{Compute, Numbers, assert_close, in_every_type, numbers},
    };

    struct Depthwise<'a>(DepthwiseArgs<'a>);

    impl Compute for Depthwise<'_> {
        fn run<T: Float>(&self, threads: &Threads, isa: Isa, out: &mut [T], scratch: &mut Scratch<'_>) {
            depthwise(threads, isa, &self.0, out, scratch);
        }
        fn scratch(&self, threads: &Threads, _: Isa, out: FloatType) -> usize {
            depthwise_scratch(threads, &self.0.window, self.0.channels, [self.0.image.ty(), out])
        }
    }

    /// `[channels, 1, taps]` as the kernel wants it, each channel times its scale.
    fn pack_depthwise(weight: &[f32], channels: usize, taps: usize, scale: Option<&[f32]>, out: &mut [f32]) {
        assert_eq!(weight.len(), channels * taps);
        assert_eq!(out.len(), taps * tap_stride(channels));
        assert!(scale.is_none_or(|s| s.len() == channels));
        for (tap, out) in out.chunks_exact_mut(tap_stride(channels).max(1)).enumerate() {
            for (c, out) in out.iter_mut().enumerate() {
                let value = |c: usize| weight[c * taps + tap] * scale.map_or(1.0, |s| s[c]);
                *out = if c < channels { value(c) } else { 0.0 };
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]

        #[test]
        fn shapes(
            window in windows(4..20, 1..5), channels in 1usize..80, bias: bool,
            ty in prop::sample::select(&FloatType::ALL[..]),
        ) {
            let image = Numbers::new(ty, &numbers(window.batch * window.pixels_in() * channels, 1));
            let (weight, scale) = (numbers(channels * window.taps(), 2), numbers(channels, 3));
            let bias_data = Numbers::new(ty, &numbers(channels, 4));
            let mut packed = vec![f32::NAN; window.taps() * tap_stride(channels)];
            pack_depthwise(&weight, channels, window.taps(), Some(&scale), &mut packed);
            let args = DepthwiseArgs {
                window, channels, image: image.floats(), weight: Floats::F32(&packed), bias: bias.then(|| bias_data.floats()),
                activation: Activation::Relu,
            };
            in_every_type(window.pixels() * channels, &Depthwise(args), |out, rounding| {
                for (at, got) in out.iter().enumerate() {
                    let (c, pixel) = (at % channels, at / channels);
                    let mut want = if bias { bias_data.at(c) } else { 0.0 };
                    for (tap, source) in met(&window, pixel) {
                        let weight = f64::from(weight[c * window.taps() + tap]) * f64::from(scale[c]);
                        want += image.at(source * channels + c) * weight;
                    }
                    assert_close(*got, want.max(0.0), 1e-5 + rounding);
                }
            });
        }
    }
}
