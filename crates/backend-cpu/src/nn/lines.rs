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

/// Copies lines of `line` elements to `out`, where they are `padded` long: `before` zeros, the line, and zeros.
///
/// # Panics
///
/// If a line with the zeros before it is longer than `padded`, or `out` does not hold the lines of `image`.
pub fn pad_lines<T: Pod + Send + Sync>(
    threads: &Threads,
    image: &[T],
    line: usize,
    before: usize,
    padded: usize,
    out: &mut [T],
) {
    assert!(before + line <= padded);
    assert_eq!(image.len() * padded, out.len() * line, "one line for each");
    for_each_row(threads, out, padded, |i, out| {
        let (zeros, rest) = out.split_at_mut(before);
        let (copy, after) = rest.split_at_mut(line);
        zeros.fill(T::zeroed());
        copy.copy_from_slice(&image[i * line..][..line]);
        after.fill(T::zeroed());
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::numbers;

    #[test]
    fn lines_get_their_padding() {
        let (line, before, padded) = (12, 3, 18);
        let image = numbers(5 * line, 1);
        for threads in [Threads::single(), Threads::new(2).unwrap()] {
            let mut out = vec![f32::NAN; 5 * padded];
            pad_lines(&threads, &image, line, before, padded, &mut out);
            for (at, got) in out.iter().enumerate() {
                let inside = (at % padded).checked_sub(before).filter(|i| *i < line);
                assert_eq!(*got, inside.map_or(0.0, |i| image[at / padded * line + i]), "element {at}");
            }
        }
    }
}
