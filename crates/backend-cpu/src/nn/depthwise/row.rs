//! Some channels of a row of output pixels.

use regraft_ir::ops::Activation;

use super::plan::{Block, Kind};
use crate::simd::{
    Fma, Taps, Vectors,
    activation::map_registers,
    functions::{Function, Relu, Relu6, with_activation},
    vector_fn,
};

/// What some channels of a row of output pixels are computed from.
#[derive(Clone, Copy)]
pub(in crate::nn) struct Row<'a> {
    /// How many channels.
    pub(in crate::nn) channels: usize,
    /// Lines of images from where the taps are counted from, and from the first of the channels on.
    pub(in crate::nn) image: &'a [f32],
    /// Floats between pixels of it.
    pub(in crate::nn) step: usize,
    /// Pixels between those that output pixels next to each other meet with the same tap.
    pub(in crate::nn) stride: usize,
    /// The weights from the first of the channels on.
    pub(in crate::nn) weight: &'a [f32],
    /// How it meets the image.
    pub(in crate::nn) kind: &'a Kind,
    /// One for each channel.
    pub(in crate::nn) bias: Option<&'a [f32]>,
    pub(in crate::nn) blocks: &'a [Block],
    pub(in crate::nn) activation: Activation,
}

impl Row<'_> {
    /// Where the pixel of output pixel `p` of a block is that the block's taps are counted from.
    fn start(&self, block: &Block, p: usize) -> usize {
        (block.column + p * self.stride) * self.step
    }

    /// The taps that the pixels of a block meet.
    fn taps(&self, block: &Block) -> &Taps {
        &self.kind.taps[block.columns]
    }

    /// Whether there are so many floats at each pixel and weight that a block meets, be they of other channels.
    fn fills_registers(&self, block: &Block, floats: usize) -> bool {
        let [pixel, weight] = self.taps(block).reach();
        self.start(block, block.pixels - 1) + pixel + floats <= self.image.len() && weight + floats <= self.weight.len()
    }
}

vector_fn! {
    /// Computes some channels of a row of output pixels into `out`, where pixels are `step` floats apart.
    pub(in crate::nn) fn compute_row<S>(simd, row: Row<'_>, out: &mut [f32], step: usize) {
        // Bounds are applied to sums while they are in registers.
        let bounded = matches!(row.activation, Activation::None | Activation::Relu | Activation::Relu6);
        for block in row.blocks {
            let out = &mut out[block.x * step..];
            let few = row.channels < S::LANES && !row.fills_registers(block, S::LANES);
            match block.pixels {
                _ if few => few_channels::<S::F>(&row, block, out, step),
                8 => all_channels::<S, 8, 1>(simd, &row, block, out, step),
                7 => all_channels::<S, 7, 1>(simd, &row, block, out, step),
                6 => all_channels::<S, 6, 2>(simd, &row, block, out, step),
                4 => all_channels::<S, 4, 2>(simd, &row, block, out, step),
                3 => all_channels::<S, 3, 2>(simd, &row, block, out, step),
                2 => all_channels::<S, 2, 4>(simd, &row, block, out, step),
                _ => all_channels::<S, 1, 4>(simd, &row, block, out, step),
            }
            if few || !bounded {
                with_activation!(row.activation, A => {
                    for out in out.chunks_mut(step).take(block.pixels) {
                        map_registers::<S, A>(simd, &mut out[..row.channels]);
                    }
                });
            }
        }
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
        0 | 1 => some_channels::<S, P, 1>(simd, row, block, out, step),
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
        let first = first.min(row.channels.saturating_sub(Q * S::LANES));
        let mut sums = block_of_pixels::<S, P, Q>(simd, row, first, block);
        match row.activation {
            Activation::Relu => bound::<S, Relu>(simd, sums.as_flattened_mut()),
            Activation::Relu6 => bound::<S, Relu6>(simd, sums.as_flattened_mut()),
            _ => {}
        }
        for (p, sums) in sums.into_iter().enumerate() {
            for (q, sum) in sums.into_iter().enumerate() {
                let at = p * step + first + q * S::LANES;
                simd.store_some(sum, &mut out[at..][..S::LANES.min(row.channels)]);
            }
        }
    }
}

#[inline(always)]
fn bound<S: Vectors, A: Function>(simd: S, sums: &mut [S::V]) {
    for sum in sums {
        *sum = A::of(simd, *sum);
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
            let bias = simd.load_some(&bias[first + q * S::LANES..][..S::LANES.min(row.channels)]);
            sums.iter_mut().for_each(|sum| sum[q] = bias);
        }
    }
    let image = &row.image[row.start(block, 0) + first..];
    simd.mul_add_taps(&mut sums, row.taps(block), (image, row.stride * row.step), &row.weight[first..]);
    sums
}

/// A block of output pixels of fewer channels than a register holds, behind which there is nothing that may be read.
#[inline(always)]
fn few_channels<F: Fma>(row: &Row<'_>, block: &Block, out: &mut [f32], step: usize) {
    for (p, out) in out.chunks_mut(step).take(block.pixels).enumerate() {
        let (out, start) = (&mut out[..row.channels], row.start(block, p));
        match row.bias {
            Some(bias) => out.copy_from_slice(bias),
            None => out.fill(0.0),
        }
        for [pixel, weight] in row.taps(block).at() {
            let (xs, ws) = (&row.image[start + pixel..][..out.len()], &row.weight[*weight..][..out.len()]);
            for ((sum, x), w) in out.iter_mut().zip(xs).zip(ws) {
                *sum = F::mul_add(*x, *w, *sum);
            }
        }
    }
}
