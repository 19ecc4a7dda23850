//! Depthwise convolution: every channel has a kernel of its own,
//! `out[n, z, y, x, c] = act(bias[c] + sum over taps of image[n, z s + kz d - p, y s + ky d - p, x s + kx d - p, c] * weight[tap, c])`.

use std::ops::Range;

use regraft_ir::ops::Activation;

use super::{
    widened,
    window::{Taps, lines_met},
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
    let mut buffers: Vec<_> = (0..workers(threads)).map(|_| (scratch.take(rows), scratch.take(row))).collect();
    let width = window.input[2] * channels;
    let blocks = blocks(&window);
    threads.for_each_chunk_with(&mut buffers, out, window.output[2] * channels, |(rows, buffer), row, out| {
        let (image, copies): (&[f32], bool) = if let Floats::F32(image) = args.image {
            (image, false)
        } else {
            for (source, copy) in lines_met(&window, row).zip(rows.chunks_exact_mut(width.max(1))) {
                args.image.load(isa, source * width, copy);
            }
            (rows, true)
        };
        if let Some(out) = T::as_f32_mut(out) {
            return compute_row(isa, args, (image, copies), (weight, bias), &blocks, row, out);
        }
        compute_row(isa, args, (image, copies), (weight, bias), &blocks, row, buffer);
        T::narrow(isa, buffer, out);
    });
}

vector_fn! {
    fn compute_row<S>(
        simd,
        args: &DepthwiseArgs<'_>,
        image: (&[f32], bool),
        weights: (&[f32], Option<&[f32]>),
        blocks: &[Block],
        row: usize,
        out: &mut [f32],
    ) {
        let (window, channels) = (&args.window, args.channels);
        let (image, copies) = image;
        let mut taps = if copies { Taps::of_copies(window, row) } else { Taps::new(window, row) };
        if channels < S::LANES {
            for (x, out) in out.chunks_exact_mut(channels).enumerate() {
                few_channels::<S::F>(image, weights, taps.at(x), out);
            }
        } else {
            let width = window.input[2] * channels;
            let rows: Vec<(usize, &[f32])> =
                taps.lines().map(|(tap, pixel)| (tap, &image[pixel * channels..][..width])).collect();
            for first in (0..channels).step_by(S::LANES) {
                // The last register begins where it fits, and computes some channels twice.
                let first = first.min(channels - S::LANES);
                for block in blocks {
                    let (at, out) = ((first, block), &mut out[block.x * channels + first..]);
                    match block.pixels {
                        8 => block_of_pixels::<S, 8>(simd, args, &rows, weights, at, out),
                        4 => block_of_pixels::<S, 4>(simd, args, &rows, weights, at, out),
                        2 => block_of_pixels::<S, 2>(simd, args, &rows, weights, at, out),
                        _ => block_of_pixels::<S, 1>(simd, args, &rows, weights, at, out),
                    }
                }
            }
        }
        activation::apply_lanes::<S::F>(args.activation, out);
    }
}

/// Output pixels of a row whose sums are in registers at once, so that each weight is fetched once for all of them.
struct Block {
    /// The first.
    x: usize,
    /// How many: one of [`BLOCKS`].
    pixels: usize,
    /// The columns of the kernel that meet the image, the same for all.
    taps: Range<usize>,
    /// The input column that the first of both meet.
    column: usize,
}

/// How many pixels a block may have.
const BLOCKS: [usize; 4] = [8, 4, 2, 1];

/// Cuts a row of output pixels into blocks. Those that the whole kernel meets are taken together, others one by one.
fn blocks(window: &Window3) -> Vec<Block> {
    let [out, width, taps, stride, dilation, padding] =
        [window.output, window.input, window.kernel, window.stride, window.dilation, window.padding]
            .map(|sizes| sizes[2]);
    let reach = (width + padding).checked_sub(dilation * taps.saturating_sub(1) + 1);
    let end = reach.map_or(0, |last| last / stride + 1).min(out);
    let whole = padding.div_ceil(stride).min(end)..end;
    let (mut blocks, mut x) = (Vec::new(), 0);
    while x < out {
        // Pixels from here on that the whole kernel meets.
        let run = if whole.contains(&x) { whole.end - x } else { 1 };
        let pixels = BLOCKS.into_iter().find(|pixels| *pixels <= run).unwrap_or(1);
        let met = |kx: &usize| window.source(2, x, *kx).is_some();
        let first = (0..taps).find(met).unwrap_or(taps);
        let met = first..(0..taps).rfind(met).map_or(first, |last| last + 1);
        let column = window.source(2, x, met.start).unwrap_or(0);
        blocks.push(Block { x, pixels, taps: met, column });
        x += pixels;
    }
    blocks
}

/// A register of channels from `first` on, of a block of `N` output pixels; `out` begins at its first pixel's.
#[inline(always)]
fn block_of_pixels<S: Vectors, const N: usize>(
    simd: S,
    args: &DepthwiseArgs<'_>,
    rows: &[(usize, &[f32])],
    (weight, bias): (&[f32], Option<&[f32]>),
    (first, block): (usize, &Block),
    out: &mut [f32],
) {
    let (channels, [.., stride], [.., dilation]) = (args.channels, args.window.stride, args.window.dilation);
    let start = match bias {
        Some(bias) => simd.load(&bias[first..]),
        None => simd.splat(0.0),
    };
    let mut sums = [start; N];
    for (tap, row) in rows {
        let mut at = block.column * channels + first;
        for kx in block.taps.clone() {
            let w = simd.load(&weight[(tap + kx) * tap_stride(channels) + first..]);
            simd.mul_add_each(&mut sums, &row[at..], stride * channels, w);
            at += dilation * channels;
        }
    }
    for (p, sum) in sums.into_iter().enumerate() {
        simd.store(sum, &mut out[p * channels..]);
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
