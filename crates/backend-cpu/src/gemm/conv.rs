//! Offsets that make a convolution a matrix product.

use super::Rows;

/// The geometry of a 2-D convolution or pooling over a channels-last image `[batch, height, width, channels]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2d {
    /// Images.
    pub batch: usize,
    /// Height and width of the input.
    pub input: [usize; 2],
    /// Height and width of the output.
    pub output: [usize; 2],
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// Step of the window.
    pub stride: [usize; 2],
    /// Distance between taps.
    pub dilation: [usize; 2],
    /// Rows above and columns left of the image that count as zero.
    pub padding: [usize; 2],
}

impl Conv2d {
    /// Output pixels in all images: the `m` of the product.
    pub fn pixels(&self) -> usize {
        self.batch * self.output[0] * self.output[1]
    }

    /// Kernel positions.
    pub fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// The input row (or column, by `axis`) that output position `out` meets at kernel position `tap`, unless it is padding.
    #[inline]
    pub fn source(&self, axis: usize, out: usize, tap: usize) -> Option<usize> {
        let at = (out * self.stride[axis] + tap * self.dilation[axis]).checked_sub(self.padding[axis])?;
        (at < self.input[axis]).then_some(at)
    }
}

/// Fills `out[pixel][tap]` with the offsets of [`Rows::Indirect`] for an image whose pixels are `pixel_stride` floats apart.
///
/// # Panics
///
/// If `out` is not `pixels * taps` long or an offset does not fit into 32 bits; split the batch then.
pub fn conv2d_offsets(conv: &Conv2d, pixel_stride: usize, out: &mut [u32]) {
    assert_eq!(out.len(), conv.pixels() * conv.taps());
    let last = conv.batch * conv.input[0] * conv.input[1] * pixel_stride;
    assert!(last < Rows::ZERO as usize, "an image batch of {last} floats is too large for 32-bit offsets");
    let mut out = out.iter_mut();
    for image in 0..conv.batch {
        for (y, x) in (0..conv.output[0]).flat_map(|y| (0..conv.output[1]).map(move |x| (y, x))) {
            for ky in 0..conv.kernel[0] {
                let row = conv.source(0, y, ky).map(|y| (image * conv.input[0] + y) * conv.input[1]);
                for kx in 0..conv.kernel[1] {
                    let pixel = row.and_then(|row| Some(row + conv.source(1, x, kx)?));
                    if let Some(out) = out.next() {
                        *out = pixel.map_or(Rows::ZERO, |pixel| (pixel * pixel_stride) as u32);
                    }
                }
            }
        }
    }
}
