//! Pooling over channels-last images: maximum and average.

use super::{
    window::{LineTaps, lines_met},
    workers,
};
use crate::{
    Isa, Scratch, Threads,
    gemm::Window3,
    scratch::bytes_of,
    simd::{Float, FloatType, Floats, Several, Vectors, vector_fn},
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
fn buffers(window: &Window3, channels: usize, image: FloatType, out: FloatType) -> [usize; 2] {
    let rows =
        if image == FloatType::F32 { 0 } else { window.kernel[0] * window.kernel[1] * window.input[2] * channels };
    [rows, if out == FloatType::F32 { 0 } else { window.output[2] * channels }]
}

/// Bytes of scratch that [`pool`] needs.
pub fn pool_scratch(threads: &Threads, window: &Window3, channels: usize, [image, out]: [FloatType; 2]) -> usize {
    let [rows, row] = buffers(window, channels, image, out);
    workers(threads) * (bytes_of::<f32>(rows) + bytes_of::<f32>(row))
}

/// Pools windows of `image` (`[batch, depth, height, width, channels]`) into `out`. The output size is that of `window`: with `ceil`
/// mode the caller has rounded up.
///
/// # Panics
///
/// If a slice has the wrong length, or the scratch is shorter than [`pool_scratch`].
#[expect(clippy::too_many_arguments, reason = "what, from where and to where")]
pub fn pool<T: Float>(
    threads: &Threads,
    isa: Isa,
    pooling: Pooling,
    window: &Window3,
    channels: usize,
    image: Floats<'_>,
    out: &mut [T],
    scratch: &mut Scratch<'_>,
) {
    assert_eq!(image.len(), window.batch * window.pixels_in() * channels);
    assert_eq!(out.len(), window.pixels() * channels);
    let [rows, row] = buffers(window, channels, image.ty(), T::TYPE);
    let mut scratch = scratch.again();
    let mut buffers: Vec<_> = (0..workers(threads)).map(|_| (scratch.take(rows), scratch.take(row))).collect();
    let width = window.input[2] * channels;
    threads.for_each_chunk_with(&mut buffers, out, window.output[2] * channels, |(rows, buffer), row, out| {
        let (image, copies): (&[f32], bool) = if let Floats::F32(image) = image {
            (image, false)
        } else {
            for ((_, source), copy) in lines_met(window, row).zip(rows.chunks_exact_mut(width.max(1))) {
                image.load(isa, source * width, copy);
            }
            (rows, true)
        };
        if let Some(out) = T::as_f32_mut(out) {
            return pool_row(isa, pooling, window, (channels, image, copies), row, out);
        }
        pool_row(isa, pooling, window, (channels, image, copies), row, buffer);
        T::narrow(isa, buffer, out);
    });
}

vector_fn! {
    fn pool_row<S>(
        simd,
        pooling: Pooling,
        window: &Window3,
        source: (usize, &[f32], bool),
        row: usize,
        out: &mut [f32],
    ) {
        let (channels, image, copies) = source;
        let [_, z, y] = Window3::split([usize::MAX, window.output[0], window.output[1]], row);
        let padded = padded_extent(window, 0, z) * padded_extent(window, 1, y);
        let mut taps = LineTaps::new(window, row, copies);
        let (several, whole) = (Several::<S, 4>(simd), <Several<S, 4> as Vectors>::LANES);
        for (x, out) in out.chunks_exact_mut(channels).enumerate() {
            let taps = taps.at(x);
            let elements = match pooling {
                Pooling::Average { include_padding: true } => padded * padded_extent(window, 2, x),
                _ => taps.len(),
            };
            for first in (0..channels).step_by(whole) {
                if channels - first >= whole {
                    pool_pixel(several, pooling, taps, (channels, first, image), elements, &mut out[first..][..whole]);
                    continue;
                }
                for at in (first..channels).step_by(S::LANES) {
                    let width = S::LANES.min(channels - at);
                    pool_pixel(simd, pooling, taps, (channels, at, image), elements, &mut out[at..][..width]);
                }
            }
        }
    }
}

/// Pools some channels, no more than a register holds, of the pixels that `taps` names, into `out`.
#[inline(always)]
fn pool_pixel<S: Vectors>(
    simd: S,
    pooling: Pooling,
    taps: &[(usize, usize)],
    (channels, first, image): (usize, usize, &[f32]),
    elements: usize,
    out: &mut [f32],
) {
    let max = pooling == Pooling::Max;
    let mut all = simd.splat(if max { f32::NEG_INFINITY } else { 0.0 });
    for (pixel, _) in taps {
        let x = simd.load_some(&image[pixel * channels + first..][..out.len()]);
        all = if max { simd.greater(all, x) } else { simd.add(all, x) };
    }
    if !max {
        all = simd.mul(all, simd.splat(1.0 / elements as f32));
    }
    simd.store_some(all, out);
}

/// How many kernel positions at output position `out` lie inside the image with its padding.
fn padded_extent(window: &Window3, axis: usize, out: usize) -> usize {
    let end = window.input[axis] + 2 * window.padding[axis];
    (0..window.kernel[axis]).filter(|tap| out * window.stride[axis] + tap * window.dilation[axis] < end).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        gemm::conv::testing::{met, windows},
        nn::testing::{Compute, Numbers, assert_close, in_every_type, numbers},
    };

    struct Pool<'a>(Pooling, Window3, usize, Floats<'a>);

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
        fn pools(
            drawn in windows(4..9, 2..4), channels in 1usize..40, ceil: bool,
            pooling in prop::sample::select(vec![
                Pooling::Max,
                Pooling::Average { include_padding: false },
                Pooling::Average { include_padding: true },
            ]),
            ty in prop::sample::select(&FloatType::ALL[..]),
        ) {
            let mut window = Window3 { dilation: [1; 3], ..drawn };
            for axis in 0..3 {
                window.padding[axis] = window.padding[axis].min(window.kernel[axis] / 2);
                let (n, stride, padding) = (window.input[axis], window.stride[axis], window.padding[axis]);
                let size = (n + 2 * padding - window.kernel[axis] + if ceil { stride - 1 } else { 0 }) / stride + 1;
                // PyTorch drops a last window that starts beyond image and padding.
                window.output[axis] = if ceil && (size - 1) * stride >= n + padding { size - 1 } else { size };
            }
            let image = Numbers::new(ty, &numbers(window.batch * window.pixels_in() * channels, 1));
            in_every_type(window.pixels() * channels, &Pool(pooling, window, channels, image.floats()), |out, rounding| {
                for (at, got) in out.iter().enumerate() {
                    let (c, pixel) = (at % channels, at / channels);
                    let values: Vec<f64> =
                        met(&window, pixel).into_iter().map(|(_, source)| image.at(source * channels + c)).collect();
                    // As PyTorch counts: the window, cut off at the end of the padded image.
                    let at = Window3::split(window.output, pixel % window.pixels_out());
                    let extent = |axis: usize| {
                        let (start, end) = (at[axis] * window.stride[axis], window.input[axis] + 2 * window.padding[axis]);
                        (start + window.kernel[axis]).min(end) - start
                    };
                    let want = match pooling {
                        Pooling::Max => values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
                        Pooling::Average { include_padding: false } => values.iter().sum::<f64>() / values.len() as f64,
                        Pooling::Average { .. } => values.iter().sum::<f64>() / (extent(0) * extent(1) * extent(2)) as f64,
                    };
                    assert_close(*got, want, 1e-5 + rounding);
                }
            });
        }
    }
}
