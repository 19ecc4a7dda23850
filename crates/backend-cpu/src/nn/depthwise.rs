//! Depthwise convolution: every channel has a kernel of its own,
//! `out[n, z, y, x, c] = act(bias[c] + sum over taps of image[n, z s + kz d - p, y s + ky d - p, x s + kx d - p, c] * weight[tap, c])`.

use std::ops::Range;

use regraft_ir::ops::Activation;

use super::{
    rows_per_task, widened,
    window::{Taps, lines_met, lines_of},
    workers,
};
use crate::{
    Isa, Scratch, Threads,
    gemm::Window3,
    pack::{panel_bytes, widen_panel},
    scratch::bytes_of,
    simd::{Float, FloatType, Floats, Fma, Vectors, activation, vector_fn},
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
    let mut buffers: Vec<_> =
        (0..workers(threads)).map(|_| (scratch.take(rows), scratch.take(row), Vec::new())).collect();
    let [line, width] = [window.output[2], window.input[2]].map(|pixels| pixels * channels);
    let blocks = blocks(&window);
    // Neighboring rows read the same lines, which one thread then has in its caches.
    let per_task = rows_per_task(threads, out.len() / line.max(1), line);
    threads.for_each_chunk_with(&mut buffers, out, per_task * line, |(rows, buffer, lines), task, out| {
        for (i, out) in out.chunks_exact_mut(line.max(1)).enumerate() {
            let row = task * per_task + i;
            let (image, copies): (&[f32], bool) = if let Floats::F32(image) = args.image {
                (image, false)
            } else {
                for (source, copy) in lines_met(&window, row).zip(rows.chunks_exact_mut(width.max(1))) {
                    args.image.load(isa, source * width, copy);
                }
                (rows, true)
            };
            lines.clear();
            lines.extend(lines_of(&window, row, copies));
            let (window, activation) = (&window, args.activation);
            let row = Row { window, channels, image, lines, weight, bias, blocks: &blocks, activation };
            if let Some(out) = T::as_f32_mut(out) {
                compute_row(isa, row, out);
                continue;
            }
            compute_row(isa, row, buffer);
            T::narrow(isa, buffer, out);
        }
    });
}

/// What a row of output pixels is computed from.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    /// Where windows are.
    pub(super) window: &'a Window3,
    pub(super) channels: usize,
    /// The lines of images that are met, and perhaps others.
    pub(super) image: &'a [f32],
    /// For each line of the kernel that meets the image: its first tap and the first pixel of the line.
    pub(super) lines: &'a [(usize, usize)],
    pub(super) weight: &'a [f32],
    pub(super) bias: Option<&'a [f32]>,
    pub(super) blocks: &'a [Block],
    pub(super) activation: Activation,
}

vector_fn! {
    /// Computes a row of output pixels.
    pub(super) fn compute_row<S>(simd, row: Row<'_>, out: &mut [f32]) {
        let channels = row.channels;
        if channels < S::LANES {
            let mut taps = Taps::of_lines(row.window, row.lines);
            for (x, out) in out.chunks_exact_mut(channels).enumerate() {
                few_channels::<S::F>(row.image, (row.weight, row.bias), taps.at(x), out);
            }
            activation::apply_lanes::<S::F>(row.activation, out);
        } else {
            compute_blocks(simd, &row, out);
        }
    }
}

/// Block after block: what is read of the image then lies side by side.
#[inline(always)]
fn compute_blocks<S: Vectors>(simd: S, row: &Row<'_>, out: &mut [f32]) {
    for block in row.blocks {
        let out = &mut out[block.x * row.channels..][..block.pixels * row.channels];
        match block.pixels {
            8 => all_channels::<S, 8, 1>(simd, row, block, out),
            7 => all_channels::<S, 7, 1>(simd, row, block, out),
            6 => all_channels::<S, 6, 1>(simd, row, block, out),
            4 => all_channels::<S, 4, 2>(simd, row, block, out),
            3 => all_channels::<S, 3, 2>(simd, row, block, out),
            2 => all_channels::<S, 2, 4>(simd, row, block, out),
            _ => all_channels::<S, 1, 4>(simd, row, block, out),
        }
        activation::apply_registers(simd, row.activation, out);
    }
}

/// Output pixels of a row that meet the image with the same columns of the kernel, and whose sums are in registers at once, so that each
/// weight is fetched once for all of them.
pub(super) struct Block {
    /// The first.
    x: usize,
    /// How many: one of [`BLOCKS`].
    pixels: usize,
    /// The columns of the kernel.
    met: Range<usize>,
    /// The input column that the first pixel meets with the first of them.
    column: usize,
}

/// How many pixels a block may have: about eight sums keep the arithmetic units busy. Blocks of fewer take more channels at once.
const BLOCKS: [usize; 7] = [8, 7, 6, 4, 3, 2, 1];

/// Cuts a row of output pixels into blocks, into equal ones if they can be long.
pub(super) fn blocks(window: &Window3) -> Vec<Block> {
    let (out, taps) = (window.output[2], window.kernel[2]);
    let met = |x: usize| {
        let meets = |kx: &usize| window.source(2, x, *kx).is_some();
        let first = (0..taps).find(meets).unwrap_or(0);
        first..(first..taps).rfind(meets).map_or(first, |last| last + 1)
    };
    let (mut blocks, mut x) = (Vec::new(), 0);
    while x < out {
        let columns = met(x);
        let run = (x..out).take_while(|x| met(*x) == columns).count();
        let even = BLOCKS[..3].iter().copied().find(|pixels| run.is_multiple_of(*pixels));
        let end = x + run;
        while x < end {
            let fits = BLOCKS.into_iter().find(|pixels| *pixels <= end - x).unwrap_or(1);
            let (pixels, column) = (even.unwrap_or(fits), window.source(2, x, columns.start).unwrap_or(0));
            blocks.push(Block { x, pixels, met: columns.clone(), column });
            x += pixels;
        }
    }
    blocks
}

/// All channels of a block of `P` output pixels, which are those of `out`, `Q` registers at a time if there are so many.
#[inline(always)]
fn all_channels<S: Vectors, const P: usize, const Q: usize>(simd: S, row: &Row<'_>, block: &Block, out: &mut [f32]) {
    if row.channels < Q * S::LANES {
        return some_channels::<S, P, 1>(simd, row, block, out);
    }
    some_channels::<S, P, Q>(simd, row, block, out);
}

#[inline(always)]
fn some_channels<S: Vectors, const P: usize, const Q: usize>(simd: S, row: &Row<'_>, block: &Block, out: &mut [f32]) {
    for first in (0..row.channels).step_by(Q * S::LANES) {
        // The last ones begin where they fit, and are computed in part twice.
        let first = first.min(row.channels - Q * S::LANES);
        block_of_pixels::<S, P, Q>(simd, row, (first, block), &mut out[first..]);
    }
}

/// `Q` registers of channels from `first` on, of a block of `P` output pixels; `out` begins at its first pixel's.
#[inline(always)]
fn block_of_pixels<S: Vectors, const P: usize, const Q: usize>(
    simd: S,
    row: &Row<'_>,
    (first, block): (usize, &Block),
    out: &mut [f32],
) {
    let (channels, window) = (row.channels, row.window);
    let (step, dilation, width) = (window.stride[2] * channels, window.dilation[2], window.input[2] * channels);
    let mut sums = [[simd.splat(0.0); Q]; P];
    if let Some(bias) = row.bias {
        for q in 0..Q {
            let bias = simd.load(&bias[first + q * S::LANES..]);
            sums.iter_mut().for_each(|sum| sum[q] = bias);
        }
    }
    for (tap, pixel) in row.lines {
        let line = &row.image[pixel * channels..][..width];
        let weights = &row.weight[tap * tap_stride(channels) + first..];
        for (i, kx) in block.met.clone().enumerate() {
            let xs = &line[(block.column + i * dilation) * channels + first..];
            let weights = &weights[kx * tap_stride(channels)..];
            let mut w = [simd.splat(0.0); Q];
            for (q, w) in w.iter_mut().enumerate() {
                *w = simd.load(&weights[q * S::LANES..]);
            }
            simd.mul_add_each(&mut sums, xs, step, &w);
        }
    }
    for (p, sums) in sums.into_iter().enumerate() {
        for (q, sum) in sums.into_iter().enumerate() {
            simd.store(sum, &mut out[p * channels + q * S::LANES..]);
        }
    }
}

/// One output pixel of fewer channels than a register holds.
#[inline(always)]
fn few_channels<F: Fma>(
    image: &[f32],
    (weight, bias): (&[f32], Option<&[f32]>),
    taps: &[(usize, usize)],
    out: &mut [f32],
) {
    let channels = out.len();
    match bias {
        Some(bias) => out.copy_from_slice(bias),
        None => out.fill(0.0),
    }
    for (pixel, tap) in taps {
        let xs = &image[pixel * channels..][..channels];
        let ws = &weight[tap * tap_stride(channels)..][..channels];
        for ((sum, x), w) in out.iter_mut().zip(xs).zip(ws) {
            *sum = F::mul_add(*x, *w, *sum);
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
