//! The taps of a window that lie inside the image.

use crate::gemm::Window3;

/// Walks along one line of output pixels.
pub(super) struct Taps<'a> {
    window: &'a Window3,
    /// For each line of the kernel that meets the image: its first tap and the first pixel of the image's line.
    lines: Vec<(usize, usize)>,
    taps: Vec<(usize, usize)>,
}

/// For each line of the kernel that meets the image: its number, and the line of the images, counted over all of them.
fn meetings(window: &Window3, line: usize) -> impl Iterator<Item = (usize, usize)> {
    let (window, [height, kernel]) = (*window, [window.output[1], window.kernel[1]]);
    let (plane, y) = (line / height, line % height);
    let (image, z) = (plane / window.output[0], plane % window.output[0]);
    (0..window.kernel[0] * kernel).filter_map(move |tap| {
        let (sz, sy) = (window.source(0, z, tap / kernel)?, window.source(1, y, tap % kernel)?);
        Some((tap, (image * window.input[0] + sz) * window.input[1] + sy))
    })
}

/// The lines of an image that a line of windows meets, as one after the other: what they are widened into.
pub(super) fn lines_met(window: &Window3, line: usize) -> impl Iterator<Item = usize> {
    meetings(window, line).map(|(_, line)| line)
}

impl<'a> Taps<'a> {
    /// As [`new`](Self::new), for lines of the image that were copied one after the other, as [`lines_met`] counts them.
    pub(super) fn of_copies(window: &'a Window3, line: usize) -> Self {
        let mut taps = Taps::new(window, line);
        taps.lines.iter_mut().enumerate().for_each(|(i, (_, pixel))| *pixel = i * window.input[2]);
        taps
    }

    /// `line` counts the output lines of all images.
    pub(super) fn new(window: &'a Window3, line: usize) -> Self {
        let first = |(tap, line)| (tap * window.kernel[2], line * window.input[2]);
        Taps { window, lines: meetings(window, line).map(first).collect(), taps: Vec::with_capacity(window.taps()) }
    }

    /// For each line of the kernel that meets the image: its first tap and the first pixel of the image's line.
    pub(super) fn lines(&self) -> impl Iterator<Item = (usize, usize)> {
        self.lines.iter().copied()
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
