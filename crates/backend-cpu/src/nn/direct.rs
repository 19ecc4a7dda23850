//! Convolutions of channels-first images of any number of axes: windows are written as panels, pixel by pixel, and the weight's rows
//! are multiplied with them. It needs no packed weight, so the weight may be computed.

use regraft_ir::ops::Activation;

use super::workers;
use crate::{
    Isa, Scratch, Threads,
    gemm::{Epilogue, Operand, Panels, Rows, Window3, Workspace, gathered_bytes, multiply_block, panel_width},
    scratch::bytes_of,
    simd::{Float, FloatType, Floats, activation},
    threads::{TileGrid, TileMut},
};

/// A convolution of channels-first images.
#[derive(Clone, Copy, Debug)]
pub struct DirectArgs<'a> {
    /// Where windows are.
    pub window: Window3,
    /// Channels of input and output.
    pub channels: [usize; 2],
    /// Groups; divides both.
    pub groups: usize,
    /// The images, `[batch, channels, pixels]`.
    pub image: Floats<'a>,
    /// The weight, `[out, in / groups, taps]`.
    pub weight: Floats<'a>,
    /// One addend for each output channel.
    pub bias: Option<Floats<'a>>,
    /// What is added to the result, of its shape.
    pub residual: Option<Floats<'a>>,
    /// Applied to the sum.
    pub activation: Activation,
    /// Whether the residual is added after the activation.
    pub act_before_residual: bool,
}

/// What the scratch of a direct convolution depends on.
#[derive(Clone, Copy, Debug)]
pub struct DirectShape {
    /// `k` of the product: channels of a group times taps.
    pub k: usize,
    /// Output channels of a group.
    pub rows: usize,
    /// Element type of the weight.
    pub weight: FloatType,
}

impl DirectShape {
    /// Bytes of scratch that [`direct`] needs.
    pub fn scratch(&self, isa: Isa, threads: &Threads) -> usize {
        let nr = panel_width(isa);
        let gathered = gathered_bytes(self.rows, 1, self.k);
        workers(threads) * (bytes_of::<f32>(self.k * nr) + bytes_of::<f32>(self.rows * nr) + bytes_of::<u8>(gathered))
    }
}

/// Computes a convolution into `out`, `[batch, channels, pixels]`.
///
/// # Panics
///
/// If a length does not fit, or the scratch is shorter than [`DirectShape::scratch`].
pub fn direct<T: Float>(threads: &Threads, isa: Isa, args: &DirectArgs<'_>, out: &mut [T], scratch: &mut Scratch<'_>) {
    let DirectArgs { window, channels: [c_in, c_out], groups, .. } = *args;
    let (batch, group_in, rows, pixels) = (window.batch, c_in / groups, c_out / groups, window.pixels_out());
    let (k, nr) = (group_in * window.taps(), panel_width(isa));
    assert!(args.image.len() >= batch * c_in * window.pixels_in() && args.weight.len() >= c_out * k);
    assert!(out.len() == batch * c_out * pixels && args.bias.is_none_or(|b| b.len() >= c_out));
    assert!(args.residual.is_none_or(|r| r.len() >= out.len()));
    let mut scratch = scratch.again();
    let mut parts: Vec<_> = (0..workers(threads))
        .map(|_| {
            let (panel, sums) = (scratch.take::<f32>(k * nr), scratch.take::<f32>(rows * nr));
            (panel, sums, Workspace { a: scratch.take(gathered_bytes(rows, 1, k)), sums: &mut [] })
        })
        .collect();
    let outer = [(batch, c_out * pixels), (groups, rows * pixels)];
    let grid = TileGrid { outer: &outer, rows, cols: pixels, row_stride: pixels, tile_rows: rows, tile_cols: nr };
    threads.for_each_tile_with(&mut parts, out, &grid, |(panel, sums, work), at, mut tile| {
        let (n, group, cols) = (at.matrix / groups, at.matrix % groups, tile.cols());
        fill_panel(args, isa, n * c_in + group * group_in, at.col, cols, nr, panel);
        let weight = args.weight.from(group * rows * k);
        let a = Operand::new(weight, Rows::Strided { lda: k }, rows, 1, k);
        let panels = Panels::new(nr, Floats::F32(panel), k, cols);
        let product = TileMut::new(sums, rows, cols, nr);
        multiply_block(isa, &a, 0, &panels, 0, product, &Epilogue::default(), work);
        let mut addend = [0f32; 64];
        for (r, sums) in sums.chunks_exact_mut(nr).enumerate() {
            let channel = group * rows + r;
            let sums = &mut sums[..cols];
            if let Some(bias) = args.bias {
                let mut value = [0f32];
                bias.load(isa, channel, &mut value);
                sums.iter_mut().for_each(|x| *x += value[0]);
            }
            if args.act_before_residual {
                activation::apply(isa, args.activation, sums);
            }
            if let Some(residual) = args.residual {
                let place = (n * c_out + channel) * pixels + at.col;
                let residual = residual.read(isa, place, &mut addend[..cols]);
                sums.iter_mut().zip(residual).for_each(|(x, r)| *x += r);
            }
            if !args.act_before_residual {
                activation::apply(isa, args.activation, sums);
            }
            T::narrow(isa, sums, tile.row(r));
        }
    });
}

/// Writes the windows of pixels `first ..` of an image whose first channel is `channel` as a panel of `nr` columns.
fn fill_panel(
    args: &DirectArgs<'_>,
    isa: Isa,
    channel: usize,
    first: usize,
    cols: usize,
    nr: usize,
    panel: &mut [f32],
) {
    let window = &args.window;
    let (plane, taps) = (window.pixels_in(), window.taps());
    let width = window.output[2];
    for (row, line) in panel.chunks_exact_mut(nr).enumerate() {
        let (c, tap) = (row / taps, Window3::split(window.kernel, row % taps));
        let image = args.image.from((channel + c) * plane);
        line.fill(0.0);
        // Pixels of one row of the result lie in one row of the image.
        let mut col = 0;
        while col < cols {
            let [z, y, x] = Window3::split(window.output, first + col);
            let len = (width - x).min(cols - col);
            let line = &mut line[col..col + len];
            col += len;
            let (Some(sz), Some(sy)) = (window.source(0, z, tap[0]), window.source(1, y, tap[1])) else { continue };
            let start = (sz * window.input[1] + sy) * window.input[2];
            if window.stride[2] == 1 {
                // The part of the run inside the image is contiguous.
                let shift = tap[2] * window.dilation[2];
                let from = window.padding[2].saturating_sub(x + shift).min(len);
                let end = (window.input[2] + window.padding[2]).saturating_sub(x + shift).min(len);
                if from < end {
                    image.load(isa, start + x + from + shift - window.padding[2], &mut line[from..end]);
                }
                continue;
            }
            for (i, value) in line.iter_mut().enumerate() {
                let Some(sx) = window.source(2, x + i, tap[2]) else { continue };
                match image {
                    Floats::F32(image) => *value = image[start + sx],
                    Floats::F16(image) => *value = image[start + sx].to_f32(),
                    Floats::Bf16(image) => *value = image[start + sx].to_f32(),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::nn::testing::{Compute, Numbers, assert_close, in_every_type, numbers};

    struct Direct<'a>(DirectArgs<'a>);

    impl Compute for Direct<'_> {
        fn run<T: Float>(&self, threads: &Threads, isa: Isa, out: &mut [T], scratch: &mut Scratch<'_>) {
            direct(threads, isa, &self.0, out, scratch);
        }
        fn scratch(&self, threads: &Threads, isa: Isa, _: FloatType) -> usize {
            let DirectArgs { window, channels, groups, weight, .. } = self.0;
            let (k, rows) = (channels[0] / groups * window.taps(), channels[1] / groups);
            DirectShape { k, rows, weight: weight.ty() }.scratch(isa, threads)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]

        #[test]
        fn convolutions(
            groups in 1usize..3, ic in 1usize..4, oc in 1usize..5, size in 3usize..7, kernel in 1usize..4,
            stride in 1usize..3, dilation in 1usize..3, padding in 0usize..3, flat: bool, bias: bool, residual: bool,
            types in prop::array::uniform2(prop::sample::select(&FloatType::ALL[..])),
        ) {
            let reach = dilation * (kernel - 1) + 1;
            prop_assume!(size + 2 * padding >= reach);
            let o = (size + 2 * padding - reach) / stride + 1;
            let first = |x: usize, unit: usize| if flat { unit } else { x };
            let window = Window3 {
                batch: 2,
                input: [first(size, 1), size, size], output: [first(o, 1), o, o], kernel: [first(kernel, 1), kernel, kernel],
                stride: [first(stride, 1), stride, stride], dilation: [first(dilation, 1), dilation, dilation],
                padding: [first(padding, 0), padding, padding],
            };
            let (c_in, c_out, batch) = (groups * ic, groups * oc, window.batch);
            let image = Numbers::new(types[0], &numbers(batch * c_in * window.pixels_in(), 1));
            let weight = Numbers::new(types[1], &numbers(c_out * ic * window.taps(), 2));
            let b = Numbers::new(types[0], &numbers(c_out, 3));
            let r = Numbers::new(types[1], &numbers(batch * c_out * window.pixels_out(), 4));
            let args = DirectArgs {
                window, channels: [c_in, c_out], groups, image: image.floats(), weight: weight.floats(),
                bias: bias.then(|| b.floats()), residual: residual.then(|| r.floats()),
                activation: Activation::Relu, act_before_residual: true,
            };
            in_every_type(batch * c_out * window.pixels_out(), &Direct(args), |out, rounding| {
                for (at, got) in out.iter().enumerate() {
                    let (pixel, c) = (at % window.pixels_out(), at / window.pixels_out() % c_out);
                    let n = at / window.pixels_out() / c_out;
                    let o = Window3::split(window.output, pixel);
                    let mut want = if bias { b.at(c) } else { 0.0 };
                    for (i, tap) in (0..ic).flat_map(|i| (0..window.taps()).map(move |t| (i, t))) {
                        let t = Window3::split(window.kernel, tap);
                        let [Some(z), Some(y), Some(x)] = [0, 1, 2].map(|a| window.source(a, o[a], t[a])) else { continue };
                        let pixel = (z * window.input[1] + y) * window.input[2] + x;
                        let channel = n * c_in + c / oc * ic + i;
                        want += image.at(channel * window.pixels_in() + pixel) * weight.at((c * ic + i) * window.taps() + tap);
                    }
                    let want = want.max(0.0) + if residual { r.at(at) } else { 0.0 };
                    assert_close(*got, want, 1e-5 + rounding);
                }
            });
        }
    }
}
