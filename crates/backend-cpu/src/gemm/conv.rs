//! Where windows lie, and the offsets that make a convolution a matrix product.

use std::{collections::HashMap, ops::Range};

use super::Rows;

/// Windows over channels-last or channels-first images of up to three axes, slowest first; axes that are not there have size 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window3 {
    /// Images.
    pub batch: usize,
    /// Sizes of an image.
    pub input: [usize; 3],
    /// Sizes of a result.
    pub output: [usize; 3],
    /// Sizes of the kernel.
    pub kernel: [usize; 3],
    /// Steps of the window.
    pub stride: [usize; 3],
    /// Distances between taps.
    pub dilation: [usize; 3],
    /// Elements before the image that count as zero.
    pub padding: [usize; 3],
}

impl Window3 {
    /// Pixels of an image.
    pub fn pixels_in(&self) -> usize {
        self.input.iter().product()
    }

    /// Pixels of a result.
    pub fn pixels_out(&self) -> usize {
        self.output.iter().product()
    }

    /// Pixels of all results: the `m` of the product.
    pub fn pixels(&self) -> usize {
        self.batch * self.pixels_out()
    }

    /// Kernel positions.
    pub fn taps(&self) -> usize {
        self.kernel.iter().product()
    }

    /// The image's index along `axis` that position `out` of the result meets at kernel position `tap`, unless it is padding.
    #[inline]
    pub fn source(&self, axis: usize, out: usize, tap: usize) -> Option<usize> {
        let at = (out * self.stride[axis] + tap * self.dilation[axis]).checked_sub(self.padding[axis])?;
        (at < self.input[axis]).then_some(at)
    }

    /// The three indices of number `i` of `sizes`.
    #[inline]
    pub(crate) fn split(sizes: [usize; 3], i: usize) -> [usize; 3] {
        [i / sizes[2] / sizes[1], i / sizes[2] % sizes[1], i % sizes[2]]
    }

    /// The planes of the images, counted over all of them, that the taps of plane `plane` of the results meet.
    fn planes_met(&self, plane: usize) -> impl Iterator<Item = Option<usize>> {
        let (image, z) = (plane / self.output[0], plane % self.output[0]);
        (0..self.kernel[0]).map(move |tap| Some(image * self.input[0] + self.source(0, z, tap)?))
    }
}

/// Pixels that one product should at least have: small planes are taken together.
const PIXELS: usize = 512;

/// A run of planes of the results: one product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvPart {
    /// The planes, counted over all results.
    pub planes: Range<usize>,
    /// The planes that they read, counted over all images.
    pub reads: Range<usize>,
    table: usize,
}

/// A convolution as products over runs of planes. Runs that lie alike in their images share their offsets, so that there are few of
/// them however large a volume is.
#[derive(Clone, Debug)]
pub struct ConvRows {
    parts: Vec<ConvPart>,
    tables: Vec<Vec<u32>>,
}

impl ConvRows {
    /// The products for channels-last images whose pixels are `pixel_stride` elements apart; `None` if what a product reads does not
    /// fit into offsets of 32 bits.
    pub fn new(window: &Window3, pixel_stride: usize) -> Option<ConvRows> {
        let (depth, planes) = (window.output[0].max(1), window.batch * window.output[0]);
        let wanted = PIXELS.div_ceil((window.output[1] * window.output[2]).max(1)).clamp(1, planes.max(1));
        // Runs of whole images, or of planes of one image: others would seldom lie alike.
        let run = if wanted < depth { wanted } else { wanted.next_multiple_of(depth) };
        let mut rows = ConvRows { parts: Vec::new(), tables: Vec::new() };
        let mut known = HashMap::new();
        for image in (0..planes).step_by(run.max(depth)) {
            let end = planes.min(image + run.max(depth));
            for first in (image..end).step_by(run) {
                let run = first..end.min(first + run);
                let met: Vec<Option<usize>> = run.clone().flat_map(|plane| window.planes_met(plane)).collect();
                let base = met.iter().flatten().min().copied().unwrap_or(0);
                let reads = base..met.iter().flatten().max().map_or(base, |last| last + 1);
                let elements = [window.input[1], window.input[2], pixel_stride];
                let read = elements.iter().try_fold(reads.len(), |product, size| product.checked_mul(*size))?;
                if read >= Rows::ZERO as usize {
                    return None;
                }
                let met: Vec<Option<usize>> = met.iter().map(|plane| plane.map(|plane| plane - base)).collect();
                let table = *known.entry(met).or_insert_with_key(|met| {
                    rows.tables.push(offsets(window, met, pixel_stride));
                    rows.tables.len() - 1
                });
                rows.parts.push(ConvPart { planes: run, reads, table });
            }
        }
        Some(rows)
    }

    /// The same rows with their `taps` taps in the opposite order.
    #[must_use]
    pub fn reversed(mut self, taps: usize) -> ConvRows {
        let rows = self.tables.iter_mut().flat_map(|table| table.chunks_exact_mut(taps.max(1)));
        rows.for_each(<[u32]>::reverse);
        self
    }

    /// The products, in order.
    pub fn parts(&self) -> &[ConvPart] {
        &self.parts
    }

    /// The rows of a product; its left operand starts at the first plane that it reads.
    pub fn rows(&self, part: &ConvPart) -> Rows<'_> {
        Rows::Indirect { offsets: &self.tables[part.table] }
    }
}

/// `[pixel][tap]`: the offsets of planes whose taps along the slowest axis meet the planes `met`.
fn offsets(window: &Window3, met: &[Option<usize>], pixel_stride: usize) -> Vec<u32> {
    let ([_, height, width], [depth_taps, row_taps, column_taps]) = (window.output, window.kernel);
    let mut out = Vec::with_capacity(met.len() * height * width * row_taps * column_taps);
    for met in met.chunks_exact(depth_taps) {
        for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
            for (plane, ky) in met.iter().flat_map(|plane| (0..row_taps).map(move |ky| (plane, ky))) {
                let line = plane.and_then(|plane| Some(plane * window.input[1] + window.source(1, y, ky)?));
                out.extend((0..column_taps).map(|kx| {
                    let pixel = line.and_then(|line| Some(line * window.input[2] + window.source(2, x, kx)?));
                    pixel.map_or(Rows::ZERO, |pixel| (pixel * pixel_stride) as u32)
                }));
            }
        }
    }
    out
}

#[cfg(test)]
pub(crate) mod testing {
    use std::ops::Range;

    use proptest::prelude::*;

    use super::Window3;

    /// Windows along one to three axes that fit into their images at least once.
    pub(crate) fn windows(sizes: Range<usize>, kernels: Range<usize>) -> impl Strategy<Value = Window3> {
        let each = |values: Range<usize>| prop::array::uniform3(values);
        let all = (1..4usize, 1..3usize, each(sizes), each(kernels), each(1..3), each(1..3), each(0..3));
        all.prop_filter_map("a window that fits", |(axes, batch, input, kernel, stride, dilation, padding)| {
            let there = |values: [usize; 3], unit| [0, 1, 2].map(|i| if i + axes < 3 { unit } else { values[i] });
            let (input, kernel, padding) = (there(input, 1), there(kernel, 1), there(padding, 0));
            let (stride, dilation) = (there(stride, 1), there(dilation, 1));
            let room = |i: usize| (input[i] + 2 * padding[i]).checked_sub(dilation[i] * (kernel[i] - 1) + 1);
            let [Some(z), Some(y), Some(x)] = [0, 1, 2].map(|i| Some(room(i)? / stride[i] + 1)) else { return None };
            Some(Window3 { batch, input, output: [z, y, x], kernel, stride, dilation, padding })
        })
    }

    /// Every tap that meets the image at pixel `pixel` of all results, with the pixel of all images.
    pub(crate) fn met(window: &Window3, pixel: usize) -> Vec<(usize, usize)> {
        let at = Window3::split(window.output, pixel % window.pixels_out());
        let meets = |number: usize| {
            let tap = Window3::split(window.kernel, number);
            let [z, y, x] = [0, 1, 2].map(|axis| window.source(axis, at[axis], tap[axis]));
            let image = pixel / window.pixels_out() * window.pixels_in();
            Some((number, image + (z? * window.input[1] + y?) * window.input[2] + x?))
        };
        (0..window.taps()).filter_map(meets).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(batch: usize, input: [usize; 3], kernel: [usize; 3], padding: [usize; 3]) -> Window3 {
        let output = [0, 1, 2].map(|axis| input[axis] + 2 * padding[axis] + 1 - kernel[axis]);
        Window3 { batch, input, output, kernel, stride: [1; 3], dilation: [1; 3], padding }
    }

    #[test]
    fn volumes_share_offsets() {
        let rows = ConvRows::new(&window(2, [40, 32, 32], [3; 3], [1; 3]), 4).unwrap();
        assert_eq!(rows.parts().len(), 2 * 40);
        // The first plane, the last, and all between.
        assert_eq!(rows.tables.len(), 3);
        assert_eq!(rows.parts()[41].reads, 40..43);
    }

    #[test]
    fn small_images_are_taken_together() {
        let rows = ConvRows::new(&window(40, [1, 8, 8], [1, 3, 3], [0, 1, 1]), 4).unwrap();
        let planes: Vec<_> = rows.parts().iter().map(|part| part.planes.clone()).collect();
        assert_eq!(planes, [0..8, 8..16, 16..24, 24..32, 32..40]);
        assert_eq!(rows.tables.len(), 1);
    }

    #[test]
    fn offsets_of_too_many_bits_are_refused() {
        assert!(ConvRows::new(&window(1, [1, 1 << 12, 1 << 12], [1, 3, 3], [0; 3]), 1 << 9).is_none());
    }
}
