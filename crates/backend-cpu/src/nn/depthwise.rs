//! Depthwise convolution: every channel has a kernel of its own,
//! `out[n, y, x, c] = act(bias[c] + sum over taps of image[n, y s + ky d - p, x s + kx d - p, c] * weight[tap, c])`.

use regraft_ir::ops::Activation;

use super::{
    widened,
    window::{Taps, rows_met},
    workers,
};
use crate::{
    Isa, Scratch, Threads,
    gemm::Conv2d,
    pack::{panel_bytes, widen_panel},
    scratch::bytes_of,
    simd::{Float, FloatType, Floats, Fma, activation, simd_fn},
};

/// Channels that are computed together, and to whose multiple packed weights are padded.
const CHANNELS: usize = 32;

/// Floats between the taps of packed depthwise weights.
pub fn tap_stride(channels: usize) -> usize {
    channels.next_multiple_of(CHANNELS)
}

/// A depthwise convolution over a channels-last image.
#[derive(Clone, Copy, Debug)]
pub struct DepthwiseArgs<'a> {
    /// The geometry.
    pub conv: Conv2d,
    /// Channels of input and output.
    pub channels: usize,
    /// The input, `[batch, height, width, channels]`.
    pub image: Floats<'a>,
    /// The weights, `[kh * kw, channels]`, as one panel of [`tap_stride`] columns.
    pub weight: Floats<'a>,
    /// One addend for each channel.
    pub bias: Option<Floats<'a>>,
    /// Applied to the sum.
    pub activation: Activation,
}

/// Floats that a worker widens rows of the image and of the result into.
fn buffers(conv: &Conv2d, channels: usize, image: FloatType, out: FloatType) -> [usize; 2] {
    let rows = if image == FloatType::F32 { 0 } else { conv.kernel[0] * conv.input[1] * channels };
    [rows, if out == FloatType::F32 { 0 } else { conv.output[1] * channels }]
}

/// Bytes of scratch that [`depthwise`] needs.
pub fn depthwise_scratch(threads: &Threads, conv: &Conv2d, channels: usize, [image, out]: [FloatType; 2]) -> usize {
    let [rows, row] = buffers(conv, channels, image, out);
    bytes_of::<f32>(channels)
        + bytes_of::<f32>(conv.taps() * tap_stride(channels))
        + workers(threads) * (bytes_of::<f32>(rows) + bytes_of::<f32>(row))
}

/// Computes a depthwise convolution into `out`, `[batch, height, width, channels]`.
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
    let DepthwiseArgs { conv, channels, .. } = *args;
    assert_eq!(args.image.len(), conv.batch * conv.input[0] * conv.input[1] * channels);
    let stride = tap_stride(channels);
    assert_eq!(args.weight.bytes().len(), panel_bytes(args.weight.ty(), conv.taps(), stride));
    assert_eq!(out.len(), conv.pixels() * channels);
    assert!(args.bias.is_none_or(|b| b.len() == channels));
    let mut scratch = scratch.again();
    let bias = widened(isa, args.bias, &mut scratch);
    let weight: &[f32] = if let Floats::F32(weight) = args.weight {
        weight
    } else {
        let wide = scratch.take(conv.taps() * stride);
        widen_panel(isa, stride, args.weight, wide);
        wide
    };
    let [rows, row] = buffers(&conv, channels, args.image.ty(), T::TYPE);
    let mut buffers: Vec<_> = (0..workers(threads)).map(|_| (scratch.take(rows), scratch.take(row))).collect();
    let width = conv.input[1] * channels;
    threads.for_each_chunk_with(&mut buffers, out, conv.output[1] * channels, |(rows, buffer), row, out| {
        let (image, copies): (&[f32], bool) = if let Floats::F32(image) = args.image {
            (image, false)
        } else {
            for (source, copy) in rows_met(&conv, row).zip(rows.chunks_exact_mut(width.max(1))) {
                args.image.load(isa, source * width, copy);
            }
            (rows, true)
        };
        if let Some(out) = T::as_f32_mut(out) {
            return compute_row(isa, args, (image, copies), (weight, bias), row, out);
        }
        compute_row(isa, args, (image, copies), (weight, bias), row, buffer);
        T::narrow(isa, buffer, out);
    });
}

simd_fn! {
    fn compute_row<F>(
        args: &DepthwiseArgs<'_>,
        image: (&[f32], bool),
        weights: (&[f32], Option<&[f32]>),
        row: usize,
        out: &mut [f32],
    ) {
        let (image, copies) = image;
        let mut taps = if copies { Taps::of_copies(&args.conv, row) } else { Taps::new(&args.conv, row) };
        for (x, out) in out.chunks_exact_mut(args.channels).enumerate() {
            pixel::<F>(args.channels, image, weights, taps.at(x), out);
        }
        activation::apply_lanes::<F>(args.activation, out);
    }
}

/// One output pixel: blocks of channels, each summed over all taps in registers.
#[inline(always)]
fn pixel<F: Fma>(
    channels: usize,
    image: &[f32],
    (weight, bias): (&[f32], Option<&[f32]>),
    taps: &[(usize, usize)],
    out: &mut [f32],
) {
    let stride = tap_stride(channels);
    let whole = channels / CHANNELS * CHANNELS;
    let mut acc = [0f32; CHANNELS];
    for first in (0..whole).step_by(CHANNELS) {
        init(&mut acc, bias, first);
        for (pixel, tap) in taps {
            let xs = &image[pixel * channels + first..][..CHANNELS];
            let ws = &weight[tap * stride + first..][..CHANNELS];
            for i in 0..CHANNELS {
                acc[i] = F::mul_add(xs[i], ws[i], acc[i]);
            }
        }
        out[first..first + CHANNELS].copy_from_slice(&acc);
    }
    if whole < channels {
        let acc = &mut acc[..channels - whole];
        init(acc, bias, whole);
        for (pixel, tap) in taps {
            let xs = &image[pixel * channels + whole..][..acc.len()];
            let ws = &weight[tap * stride + whole..][..acc.len()];
            for ((acc, x), w) in acc.iter_mut().zip(xs).zip(ws) {
                *acc = F::mul_add(*x, *w, *acc);
            }
        }
        out[whole..].copy_from_slice(acc);
    }
}

#[inline(always)]
fn init(acc: &mut [f32], bias: Option<&[f32]>, first: usize) {
    match bias {
        Some(bias) => acc.copy_from_slice(&bias[first..first + acc.len()]),
        None => acc.fill(0.0),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::nn::testing::{Compute, Numbers, assert_close, in_every_type, numbers};

    struct Depthwise<'a>(DepthwiseArgs<'a>);

    impl Compute for Depthwise<'_> {
        fn run<T: Float>(&self, threads: &Threads, isa: Isa, out: &mut [T], scratch: &mut Scratch<'_>) {
            depthwise(threads, isa, &self.0, out, scratch);
        }
        fn scratch(&self, threads: &Threads, _: Isa, out: FloatType) -> usize {
            depthwise_scratch(threads, &self.0.conv, self.0.channels, [self.0.image.ty(), out])
        }
    }

    /// `[channels, 1, kh, kw]` as the kernel wants it, each channel times its scale.
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
            batch in 1usize..3, channels in 1usize..80, h in 4usize..9, w in 4usize..9,
            kernel in 1usize..4, stride in 1usize..3, dilation in 1usize..3, padding in 0usize..3, bias: bool,
            ty in prop::sample::select(&FloatType::ALL[..]),
        ) {
            let reach = dilation * (kernel - 1) + 1;
            prop_assume!(h + 2 * padding >= reach && w + 2 * padding >= reach);
            let conv = Conv2d {
                batch,
                input: [h, w],
                output: [(h + 2 * padding - reach) / stride + 1, (w + 2 * padding - reach) / stride + 1],
                kernel: [kernel; 2],
                stride: [stride; 2],
                dilation: [dilation; 2],
                padding: [padding; 2],
            };
            let image = Numbers::new(ty, &numbers(batch * h * w * channels, 1));
            let (weight, scale) = (numbers(channels * conv.taps(), 2), numbers(channels, 3));
            let bias_data = Numbers::new(ty, &numbers(channels, 4));
            let mut packed = vec![f32::NAN; conv.taps() * tap_stride(channels)];
            pack_depthwise(&weight, channels, conv.taps(), Some(&scale), &mut packed);
            let args = DepthwiseArgs {
                conv, channels, image: image.floats(), weight: Floats::F32(&packed), bias: bias.then(|| bias_data.floats()),
                activation: Activation::Relu,
            };
            in_every_type(conv.pixels() * channels, &Depthwise(args), |out, rounding| {
                for (at, got) in out.iter().enumerate() {
                    let (c, pixel) = (at % channels, at / channels);
                    let (x, y) = (pixel % conv.output[1], pixel / conv.output[1] % conv.output[0]);
                    let n = pixel / conv.output[1] / conv.output[0];
                    let mut want = if bias { bias_data.at(c) } else { 0.0 };
                    for tap in 0..conv.taps() {
                        let (Some(sy), Some(sx)) = (conv.source(0, y, tap / kernel), conv.source(1, x, tap % kernel)) else {
                            continue;
                        };
                        let weight = f64::from(weight[c * conv.taps() + tap]) * f64::from(scale[c]);
                        want += image.at(((n * h + sy) * w + sx) * channels + c) * weight;
                    }
                    assert_close(*got, want.max(0.0), 1e-5 + rounding);
                }
            });
        }
    }
}
