//! Convolution windows written out as rows of a matrix: for images of very few channels, where taps are too short for the
//! indirect product to be fast.

use bytemuck::Pod;

use super::rows_per_task;
use crate::{Threads, gemm::Conv2d};

/// Fills `out[pixel]`, `lda` elements long, with the `taps * channels` inputs of each output pixel in the order `(ky, kx, channel)`;
/// padding gives zeros, and so does the rest of a row.
///
/// # Panics
///
/// If `image` or `out` has the wrong length, or `lda` is too small.
pub fn im2col<T: Pod + Send + Sync>(
    threads: &Threads,
    conv: &Conv2d,
    channels: usize,
    image: &[T],
    lda: usize,
    out: &mut [T],
) {
    assert_eq!(image.len(), conv.batch * conv.input[0] * conv.input[1] * channels);
    assert_eq!(out.len(), conv.pixels() * lda);
    assert!(lda >= conv.taps() * channels && lda > 0);
    let per_task = rows_per_task(threads, conv.pixels(), lda);
    threads.for_each_chunk(out, per_task * lda, |task, chunk| {
        for (i, out) in chunk.chunks_exact_mut(lda).enumerate() {
            window(conv, channels, image, task * per_task + i, out);
        }
    });
}

/// The window of one output pixel.
fn window<T: Pod>(conv: &Conv2d, channels: usize, image: &[T], pixel: usize, out: &mut [T]) {
    let (x, y) = (pixel % conv.output[1], pixel / conv.output[1] % conv.output[0]);
    let first = pixel / conv.output[1] / conv.output[0] * conv.input[0] * conv.input[1];
    out.fill(T::zeroed());
    for (ky, out) in out.chunks_exact_mut(conv.kernel[1] * channels).take(conv.kernel[0]).enumerate() {
        let Some(row) = conv.source(0, y, ky) else { continue };
        let row = &image[(first + row * conv.input[1]) * channels..][..conv.input[1] * channels];
        let start = conv.source(1, x, 0);
        let whole = conv.dilation[1] == 1 && start.is_some_and(|x| x + conv.kernel[1] <= conv.input[1]);
        if let (true, Some(start)) = (whole, start) {
            out.copy_from_slice(&row[start * channels..][..out.len()]);
            continue;
        }
        for (kx, out) in out.chunks_exact_mut(channels).enumerate() {
            if let Some(x) = conv.source(1, x, kx) {
                out.copy_from_slice(&row[x * channels..][..channels]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::numbers;

    #[test]
    fn windows_are_written_out() {
        for (stride, dilation, padding) in [(1, 1, 1), (2, 1, 0), (1, 2, 2), (3, 1, 2)] {
            let (h, w, channels, k) = (7, 6, 3, 3);
            let size = |n: usize| (n + 2 * padding - dilation * (k - 1) - 1) / stride + 1;
            let conv = Conv2d {
                batch: 2,
                input: [h, w],
                output: [size(h), size(w)],
                kernel: [k, k],
                stride: [stride; 2],
                dilation: [dilation; 2],
                padding: [padding; 2],
            };
            let image = numbers(2 * h * w * channels, 1);
            let lda = 30;
            for threads in [Threads::single(), Threads::new(2).unwrap()] {
                let mut out = vec![f32::NAN; conv.pixels() * lda];
                im2col(&threads, &conv, channels, &image, lda, &mut out);
                for (at, got) in out.iter().enumerate() {
                    let (pixel, column) = (at / lda, at % lda);
                    let (c, tap) = (column % channels, column / channels);
                    let (x, y) = (pixel % conv.output[1], pixel / conv.output[1] % conv.output[0]);
                    let n = pixel / conv.output[1] / conv.output[0];
                    let source =
                        (tap < k * k).then(|| Some((conv.source(0, y, tap / k)?, conv.source(1, x, tap % k)?)));
                    let want = source.flatten().map_or(0.0, |(sy, sx)| image[((n * h + sy) * w + sx) * channels + c]);
                    assert_eq!(*got, want, "pixel {pixel}, column {column}");
                }
            }
        }
    }
}
