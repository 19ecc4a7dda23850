//! The taps of a window that lie inside the image.

use crate::gemm::Window3;

/// Walks along one line of output pixels.
pub(super) struct LineTaps<'a> {
    window: &'a Window3,
    /// For each line of the kernel that meets the image: its first tap and the first pixel of the image's line.
    lines: Vec<(usize, usize)>,
    taps: Vec<(usize, usize)>,
}

/// For each line of the kernel that meets the image: its first tap, and the line of the images, counted over all of them.
pub(super) fn lines_met(window: &Window3, line: usize) -> impl Iterator<Item = (usize, usize)> + Clone {
    let (window, [height, kernel]) = (*window, [window.output[1], window.kernel[1]]);
    let (plane, y) = (line / height, line % height);
    let (image, z) = (plane / window.output[0], plane % window.output[0]);
    (0..window.kernel[0] * kernel).filter_map(move |tap| {
        let (sz, sy) = (window.source(0, z, tap / kernel)?, window.source(1, y, tap % kernel)?);
        Some((tap * window.kernel[2], (image * window.input[0] + sz) * window.input[1] + sy))
    })
}

impl<'a> LineTaps<'a> {
    /// `line` counts the output lines of all images. Instead of the images, perhaps `copies` are read of the lines that are met, which stand
    /// one after the other.
    pub(super) fn new(window: &'a Window3, line: usize, copies: bool) -> Self {
        let lines = lines_met(window, line).enumerate();
        let lines = lines.map(|(i, (tap, line))| (tap, if copies { i } else { line } * window.input[2])).collect();
        LineTaps { window, lines, taps: Vec::with_capacity(window.taps()) }
    }

    /// `(pixel of the image, tap)` for every tap of output column `x` inside the image, in the order of the taps.
    pub(super) fn at(&mut self, x: usize) -> &[(usize, usize)] {
        self.taps.clear();
        for (tap, pixel) in &self.lines {
            let meets = |kx| Some((pixel + self.window.source(2, x, kx)?, tap + kx));
            self.taps.extend((0..self.window.kernel[2]).filter_map(meets));
        }
        &self.taps
    }
}
