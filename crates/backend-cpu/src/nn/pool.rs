//! Pooling over channels-last images: maximum and average.

use super::{
    window::{Taps, rows_met},
    workers,
};
use crate::{
    Isa, Scratch, Threads,
    gemm::Conv2d,
    scratch::bytes_of,
    simd::{Float, FloatType, Floats, lanes, simd_fn},
};

/// What is taken of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pooling {
    /// The maximum of what lies inside the image; NaN if there is one.
    Max,
    /// The sum of what lies inside the image, divided by the number of window elements.
    Average {
        /// Whether padding (as much below and right as above and left) counts; what `ceil` mode adds beyond it never does.
        include_padding: bool,
    },
}

/// Floats that a worker widens rows of the image and of the result into.
fn buffers(conv: &Conv2d, channels: usize, image: FloatType, out: FloatType) -> [usize; 2] {
    let rows = if image == FloatType::F32 { 0 } else { conv.kernel[0] * conv.input[1] * channels };
    [rows, if out == FloatType::F32 { 0 } else { conv.output[1] * channels }]
}

/// Bytes of scratch that [`pool`] needs.
pub fn pool_scratch(threads: &Threads, conv: &Conv2d, channels: usize, [image, out]: [FloatType; 2]) -> usize {
    let [rows, row] = buffers(conv, channels, image, out);
    workers(threads) * (bytes_of::<f32>(rows) + bytes_of::<f32>(row))
}

/// Pools windows of `image` (`[batch, height, width, channels]`) into `out`. The output size is that of `conv`: with `ceil` mode
/// the caller has rounded up.
///
/// # Panics
///
/// If a slice has the wrong length, or the scratch is shorter than [`pool_scratch`].
#[expect(clippy::too_many_arguments, reason = "what, from where and to where")]
pub fn pool<T: Float>(
    threads: &Threads,
    isa: Isa,
    pooling: Pooling,
    conv: &Conv2d,
    channels: usize,
    image: Floats<'_>,
    out: &mut [T],
    scratch: &mut Scratch<'_>,
) {
    assert_eq!(image.len(), conv.batch * conv.input[0] * conv.input[1] * channels);
    assert_eq!(out.len(), conv.pixels() * channels);
    let [rows, row] = buffers(conv, channels, image.ty(), T::TYPE);
    let mut scratch = scratch.again();
    let mut buffers: Vec<_> = (0..workers(threads)).map(|_| (scratch.take(rows), scratch.take(row))).collect();
    let width = conv.input[1] * channels;
    threads.for_each_chunk_with(&mut buffers, out, conv.output[1] * channels, |(rows, buffer), row, out| {
        let (image, copies): (&[f32], bool) = if let Floats::F32(image) = image {
            (image, false)
        } else {
            for (source, copy) in rows_met(conv, row).zip(rows.chunks_exact_mut(width.max(1))) {
                image.load(isa, source * width, copy);
            }
            (rows, true)
        };
        if let Some(out) = T::as_f32_mut(out) {
            return pool_row(isa, pooling, conv, (channels, image, copies), row, out);
        }
        pool_row(isa, pooling, conv, (channels, image, copies), row, buffer);
        T::narrow(isa, buffer, out);
    });
}

simd_fn! {
    fn pool_row<F>(
        pooling: Pooling,
        conv: &Conv2d,
        source: (usize, &[f32], bool),
        row: usize,
        out: &mut [f32],
    ) {
        let (channels, image, copies) = source;
        let mut taps = if copies { Taps::of_copies(conv, row) } else { Taps::new(conv, row) };
        for (x, out) in out.chunks_exact_mut(channels).enumerate() {
            let taps = taps.at(x);
            let pixels = taps.iter().map(|(pixel, _)| &image[pixel * channels..][..channels]);
            match pooling {
                Pooling::Max => {
                    out.fill(f32::NEG_INFINITY);
                    pixels.for_each(|xs| out.iter_mut().zip(xs).for_each(|(y, x)| *y = lanes::greater(*y, *x)));
                }
                Pooling::Average { include_padding } => {
                    out.fill(0.0);
                    pixels.for_each(|xs| out.iter_mut().zip(xs).for_each(|(y, x)| *y += x));
                    let padded = padded_extent(conv, 0, row % conv.output[0]) * padded_extent(conv, 1, x);
                    let factor = 1.0 / (if include_padding { padded } else { taps.len() }) as f32;
                    out.iter_mut().for_each(|y| *y *= factor);
                }
            }
        }
    }
}

/// How many kernel positions at output position `out` lie inside the image with its padding.
fn padded_extent(conv: &Conv2d, axis: usize, out: usize) -> usize {
    let end = conv.input[axis] + 2 * conv.padding[axis];
    (0..conv.kernel[axis]).filter(|tap| out * conv.stride[axis] + tap * conv.dilation[axis] < end).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::nn::testing::{Compute, Numbers, assert_close, in_every_type, numbers};

    struct Pool<'a>(Pooling, Conv2d, usize, Floats<'a>);

    impl Compute for Pool<'_> {
        fn run<T: Float>(&self, threads: &Threads, isa: Isa, out: &mut [T], scratch: &mut Scratch<'_>) {
            pool(threads, isa, self.0, &self.1, self.2, self.3, out, scratch);
        }
        fn scratch(&self, threads: &Threads, _: Isa, out: FloatType) -> usize {
            pool_scratch(threads, &self.1, self.2, [self.3.ty(), out])
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]

        #[test]
        fn windows(
            batch in 1usize..3, channels in 1usize..40, h in 4usize..9, w in 4usize..9,
            kernel in 2usize..4, stride in 1usize..4, padding in 0usize..2, ceil: bool,
            pooling in prop::sample::select(vec![
                Pooling::Max,
                Pooling::Average { include_padding: false },
                Pooling::Average { include_padding: true },
            ]),
            ty in prop::sample::select(&FloatType::ALL[..]),
        ) {
            let size = |n: usize| {
                let size = (n + 2 * padding - kernel + if ceil { stride - 1 } else { 0 }) / stride + 1;
                // PyTorch drops a last window that starts beyond image and padding.
                if ceil && (size - 1) * stride >= n + padding { size - 1 } else { size }
            };
            let conv = Conv2d {
                batch,
                input: [h, w],
                output: [size(h), size(w)],
                kernel: [kernel; 2],
                stride: [stride; 2],
                dilation: [1; 2],
                padding: [padding; 2],
            };
            let image = Numbers::new(ty, &numbers(batch * h * w * channels, 1));
            in_every_type(conv.pixels() * channels, &Pool(pooling, conv, channels, image.floats()), |out, rounding| {
                for (at, got) in out.iter().enumerate() {
                    let (c, pixel) = (at % channels, at / channels);
                    let (x, y) = (pixel % conv.output[1], pixel / conv.output[1] % conv.output[0]);
                    let n = pixel / conv.output[1] / conv.output[0];
                    let taps = (0..kernel).flat_map(|ky| (0..kernel).map(move |kx| (ky, kx)));
                    let values: Vec<f64> = taps.filter_map(|(ky, kx)| {
                        let (sy, sx) = (conv.source(0, y, ky)?, conv.source(1, x, kx)?);
                        Some(image.at(((n * h + sy) * w + sx) * channels + c))
                    }).collect();
                    // As PyTorch counts: the window, cut off at the end of the padded image.
                    let extent = |o: usize, n: usize| (o * stride + kernel).min(n + 2 * padding) - o * stride;
                    let want = match pooling {
                        Pooling::Max => values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
                        Pooling::Average { include_padding: false } => values.iter().sum::<f64>() / values.len() as f64,
                        Pooling::Average { .. } => values.iter().sum::<f64>() / (extent(y, h) * extent(x, w)) as f64,
                    };
                    assert_close(*got, want, 1e-5 + rounding);
                }
            });
        }
    }
}
