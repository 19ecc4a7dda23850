//! Depthwise convolution: every channel has a kernel of its own,
//! `out[n, z, y, x, c] = act(bias[c] + sum over taps of image[n, z s + kz d - p, y s + ky d - p, x s + kx d - p, c] * weight[tap, c])`.

use std::ops::Range;

use regraft_ir::ops::Activation;

pub use self::plan::Plan;
pub(super) use self::{
    kept::KeptLines,
    plan::{Place, places},
    row::{Row, compute_row},
};
use super::{rows_per_task, widened, workers};
use crate::{
    Isa, Scratch, Threads,
    gemm::Window3,
    pack::{panel_bytes, widen_panel},
    scratch::bytes_of,
    simd::{Float, FloatType, Floats, activation::apply_into},
};

mod kept;
mod plan;
mod row;

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
    /// What [`plan`] gives for them.
    pub plan: &'a Plan,
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

/// Finds out what [`depthwise`] needs to know about a shape.
pub fn plan(window: &Window3, channels: usize, image: FloatType) -> Plan {
    let place = if image == FloatType::F32 { Place::Images } else { Place::Kept(places(window)) };
    Plan::new(window, place, [channels, tap_stride(channels)])
}

/// Floats that a worker widens lines of the image and of the result into.
fn buffers(window: &Window3, channels: usize, image: FloatType, out: FloatType) -> [usize; 2] {
    let [line, width] = [window.output[2], window.input[2]].map(|pixels| pixels * channels);
    [if image == FloatType::F32 { 0 } else { places(window) * width }, if out == FloatType::F32 { 0 } else { line }]
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
    let [kept, row] = buffers(&window, channels, args.image.ty(), T::TYPE);
    let [line, width] = [window.output[2], window.input[2]].map(|pixels| (pixels * channels).max(1));
    let mut buffers: Vec<_> =
        (0..workers(threads)).map(|_| (KeptLines::new(scratch.take(kept), width), scratch.take(row))).collect();
    let parts = parts(&window, channels);
    let floats = if let Floats::F32(floats) = args.image { Some(floats) } else { None };
    // Neighboring rows read the same lines, which one thread then has in its caches.
    let per_task = rows_per_task(threads, out.len() / line, line);
    // What is not f32 is widened for one row at a time.
    let together = if floats.is_some() && T::TYPE == FloatType::F32 { per_task } else { 1 };
    threads.for_each_chunk_with(&mut buffers, out, per_task * line, |(kept, buffer), task, out| {
        for (i, out) in out.chunks_mut(together * line).enumerate() {
            let first = task * per_task + i * together;
            if floats.is_none() {
                let (kind, line) = args.plan.row(first);
                kept.hold(line, &kind.lines, |line, to| args.image.load(isa, line * width, to));
            }
            let (result, narrower) = match T::as_f32_mut(out) {
                Some(out) => (out, false),
                None => (&mut **buffer, true),
            };
            for part in &parts {
                for (row, out) in result.chunks_exact_mut(line).enumerate() {
                    let (kind, line) = args.plan.row(first + row);
                    let image = floats.map_or(kept.floats(), |image| &image[line * width..]);
                    let row = Row {
                        channels: part.len(),
                        image: &image[part.start..],
                        step: channels,
                        stride: window.stride[2],
                        weight: &weight[part.start..],
                        kind,
                        bias: bias.map(|bias| &bias[part.clone()]),
                        blocks: args.plan.blocks(),
                        activation: if narrower { Activation::None } else { args.activation },
                    };
                    compute_row(isa, row, &mut out[part.start..], channels);
                }
            }
            if narrower {
                apply_into(isa, args.activation, buffer, out);
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
            let plan = plan(&window, channels, ty);
            let args = DepthwiseArgs {
                window, plan: &plan, channels, image: image.floats(), weight: Floats::F32(&packed), bias: bias.then(|| bias_data.floats()),
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
