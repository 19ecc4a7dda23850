//! Lines of images with the padding of a convolution: then the taps along a line lie side by side, and are one tap of the product.
//! For images of very few channels, whose taps are too short for the indirect product to be fast.

use bytemuck::Pod;

use super::for_each_row;
use crate::{Threads, gemm::Window3};

/// The windows of `window` over such lines, where all taps along a line are one.
pub fn over_lines(window: &Window3) -> Window3 {
    let mut lines = *window;
    lines.input[2] += 2 * window.padding[2];
    (lines.kernel[2], lines.padding[2]) = (1, 0);
    lines
}

/// Where the elements of images are: distances along each axis.
#[derive(Clone, Copy, Debug)]
pub struct Lines {
    /// Between images, and between planes of one.
    pub planes: [usize; 2],
    /// Planes of an image.
    pub depth: usize,
    /// Between lines.
    pub line: usize,
    /// Lines of a plane.
    pub height: usize,
    /// Between pixels.
    pub pixel: usize,
    /// Between channels.
    pub channel: usize,
    /// Channels of a pixel.
    pub channels: usize,
}

impl Lines {
    /// The first element of line `i`, counted over all images.
    fn start(&self, i: usize) -> usize {
        let (plane, y) = (i / self.height, i % self.height);
        plane / self.depth * self.planes[0] + plane % self.depth * self.planes[1] + y * self.line
    }

    /// Writes the `width` pixels of line `i` one after the other.
    fn copy<T: Pod>(&self, image: &[T], i: usize, width: usize, out: &mut [T]) {
        let (image, channels) = (&image[self.start(i)..], self.channels);
        if self.channel == 1 && self.pixel == channels {
            out.copy_from_slice(&image[..width * channels]);
            return;
        }
        let plane = |channel: usize| &image[channel * self.channel..];
        if channels == 3 && self.pixel == 1 {
            // The planes of an image in colors.
            let [r, g, b] = [0, 1, 2].map(|channel| &plane(channel)[..width]);
            for (((out, r), g), b) in out.as_chunks_mut::<3>().0.iter_mut().zip(r).zip(g).zip(b) {
                *out = [*r, *g, *b];
            }
            return;
        }
        for channel in 0..channels {
            let plane = plane(channel);
            out[channel..].iter_mut().step_by(channels).enumerate().for_each(|(x, out)| *out = plane[x * self.pixel]);
        }
    }
}

/// Copies lines of `width` pixels, from number `first` on, to `out`, where they are `padded` elements long: `before` zeros, the line, and
/// zeros.
///
/// # Panics
///
/// If a line with the zeros before it is longer than `padded`, or `image` has fewer lines than `out`.
#[expect(clippy::too_many_arguments, reason = "where lines are, and where they go")]
pub fn pad_lines<T: Pod + Send + Sync>(
    threads: &Threads,
    image: &[T],
    lines: &Lines,
    first: usize,
    width: usize,
    before: usize,
    padded: usize,
    out: &mut [T],
) {
    let line = width * lines.channels;
    assert!(before + line <= padded);
    for_each_row(threads, out, padded, |i, out| {
        let (zeros, rest) = out.split_at_mut(before);
        let (copy, after) = rest.split_at_mut(line);
        zeros.fill(T::zeroed());
        lines.copy(image, first + i, width, copy);
        after.fill(T::zeroed());
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::numbers;

    #[test]
    fn lines_get_their_padding_wherever_their_elements_are() {
        let (images, depth, height, width, before, padded) = (2, 2, 3, 5, 4, 30);
        for channels in [1, 3, 4] {
            let plane = height * width;
            let last = Lines {
                planes: [depth * plane * channels, plane * channels],
                depth,
                line: width * channels,
                height,
                pixel: channels,
                channel: 1,
                channels,
            };
            let first = Lines {
                planes: [channels * depth * plane, plane],
                line: width,
                pixel: 1,
                channel: depth * plane,
                ..last
            };
            let image = numbers(images * depth * plane * channels, 1);
            for (lines, threads) in
                [(last, Threads::single()), (first, Threads::single()), (first, Threads::new(2).unwrap())]
            {
                let mut out = vec![f32::NAN; 7 * padded];
                pad_lines(&threads, &image, &lines, 5, width, before, padded, &mut out);
                for (at, got) in out.iter().enumerate() {
                    let (line, column) = (5 + at / padded, (at % padded).checked_sub(before));
                    let want = column.filter(|i| *i < width * channels).map_or(0.0, |i| {
                        let (n, z, y) = (line / height / depth, line / height % depth, line % height);
                        let element = n * lines.planes[0] + z * lines.planes[1] + y * lines.line;
                        image[element + i / channels * lines.pixel + i % channels * lines.channel]
                    });
                    assert_eq!(*got, want, "element {at}");
                }
            }
        }
    }
}
