//! Depthwise convolution: every channel has a kernel of its own,
//! `out[n, y, x, c] = act(bias[c] + sum over taps of image[n, y s + ky d - p, x s + kx d - p, c] * weight[tap, c])`.

use super::window::Taps;
use crate::{
    Isa, Threads,
    gemm::Conv2d,
    simd::{Activation, Fma, simd_fn},
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
    pub image: &'a [f32],
    /// The weights, `[kh * kw, channels]`, rows [`tap_stride`] apart and padded with zeros.
    pub weight: &'a [f32],
    /// One addend for each channel.
    pub bias: Option<&'a [f32]>,
    /// Applied to the sum.
    pub activation: Activation,
}

/// Computes a depthwise convolution into `out`, `[batch, height, width, channels]`.
///
/// # Panics
///
/// If a slice has the wrong length.
pub fn depthwise(threads: &Threads, isa: Isa, args: &DepthwiseArgs<'_>, out: &mut [f32]) {
    let DepthwiseArgs { conv, channels, .. } = *args;
    assert_eq!(args.image.len(), conv.batch * conv.input[0] * conv.input[1] * channels);
    assert_eq!(args.weight.len(), conv.taps() * tap_stride(channels));
    assert_eq!(out.len(), conv.pixels() * channels);
    assert!(args.bias.is_none_or(|b| b.len() == channels));
    threads.for_each_chunk(out, conv.output[1] * channels, |row, out| compute_row(isa, args, row, out));
}

simd_fn! {
    fn compute_row<F>(args: &DepthwiseArgs<'_>, row: usize, out: &mut [f32]) {
        let mut taps = Taps::new(&args.conv, row);
        for (x, out) in out.chunks_exact_mut(args.channels).enumerate() {
            pixel::<F>(args, taps.at(x), out);
        }
        args.activation.apply_lanes::<F>(out);
    }
}

/// One output pixel: blocks of channels, each summed over all taps in registers.
#[inline(always)]
fn pixel<F: Fma>(args: &DepthwiseArgs<'_>, taps: &[(usize, usize)], out: &mut [f32]) {
    let stride = tap_stride(args.channels);
    let whole = args.channels / CHANNELS * CHANNELS;
    let mut acc = [0f32; CHANNELS];
    for first in (0..whole).step_by(CHANNELS) {
        init(&mut acc, args.bias, first);
        for (pixel, tap) in taps {
            let xs = &args.image[pixel * args.channels + first..][..CHANNELS];
            let ws = &args.weight[tap * stride + first..][..CHANNELS];
            for i in 0..CHANNELS {
                acc[i] = F::mul_add(xs[i], ws[i], acc[i]);
            }
        }
        out[first..first + CHANNELS].copy_from_slice(&acc);
    }
    if whole < args.channels {
        let acc = &mut acc[..args.channels - whole];
        init(acc, args.bias, whole);
        for (pixel, tap) in taps {
            let xs = &args.image[pixel * args.channels + whole..][..acc.len()];
            let ws = &args.weight[tap * stride + whole..][..acc.len()];
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
    use crate::nn::testing::{assert_close, numbers, on_every_isa};

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
            let (image, weight) = (numbers(batch * h * w * channels, 1), numbers(channels * conv.taps(), 2));
            let (scale, bias_data) = (numbers(channels, 3), numbers(channels, 4));
            let mut packed = vec![f32::NAN; conv.taps() * tap_stride(channels)];
            pack_depthwise(&weight, channels, conv.taps(), Some(&scale), &mut packed);
            let args = DepthwiseArgs {
                conv, channels, image: &image, weight: &packed, bias: bias.then_some(&bias_data[..]),
                activation: Activation::Relu,
            };
            on_every_isa(conv.pixels() * channels, |threads, isa, out| depthwise(threads, isa, &args, out), |out| {
                for (at, got) in out.iter().enumerate() {
                    let (c, pixel) = (at % channels, at / channels);
                    let (x, y) = (pixel % conv.output[1], pixel / conv.output[1] % conv.output[0]);
                    let n = pixel / conv.output[1] / conv.output[0];
                    let mut want = if bias { f64::from(bias_data[c]) } else { 0.0 };
                    for tap in 0..conv.taps() {
                        let (Some(sy), Some(sx)) = (conv.source(0, y, tap / kernel), conv.source(1, x, tap % kernel)) else {
                            continue;
                        };
                        let weight = f64::from(weight[c * conv.taps() + tap]) * f64::from(scale[c]);
                        want += f64::from(image[((n * h + sy) * w + sx) * channels + c]) * weight;
                    }
                    assert_close(*got, want.max(0.0), 1e-5);
                }
            });
        }
    }
}
