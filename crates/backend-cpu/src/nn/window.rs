//! The taps of a window that lie inside the image.

use crate::gemm::Conv2d;

/// Walks along one row of output pixels.
pub(super) struct Taps<'a> {
    conv: &'a Conv2d,
    /// For each row of the kernel that meets the image: its first tap and the first pixel of the image row.
    rows: Vec<(usize, usize)>,
    taps: Vec<(usize, usize)>,
}

/// The rows of an image that a row of windows meets, as one after the other: what they are widened into.
pub(super) fn rows_met(conv: &Conv2d, row: usize) -> impl Iterator<Item = usize> {
    let (image, y, conv) = (row / conv.output[0], row % conv.output[0], *conv);
    (0..conv.kernel[0]).filter_map(move |ky| Some(image * conv.input[0] + conv.source(0, y, ky)?))
}

impl<'a> Taps<'a> {
    /// As [`new`](Self::new), for rows of the image that were copied one after the other, as [`rows_met`] counts them.
    pub(super) fn of_copies(conv: &'a Conv2d, row: usize) -> Self {
        let mut taps = Taps::new(conv, row);
        taps.rows.iter_mut().enumerate().for_each(|(i, (_, pixel))| *pixel = i * conv.input[1]);
        taps
    }

    /// `row` counts the output rows of all images.
    pub(super) fn new(conv: &'a Conv2d, row: usize) -> Self {
        let (image, y) = (row / conv.output[0], row % conv.output[0]);
        let meets = |ky: usize| {
            let source = image * conv.input[0] + conv.source(0, y, ky)?;
            Some((ky * conv.kernel[1], source * conv.input[1]))
        };
        Taps { conv, rows: (0..conv.kernel[0]).filter_map(meets).collect(), taps: Vec::with_capacity(conv.taps()) }
    }

    /// For each row of the kernel that meets the image: its first tap and the first pixel of the image row.
    pub(super) fn rows(&self) -> impl Iterator<Item = (usize, usize)> {
        self.rows.iter().copied()
    }

    /// `(pixel of the image, tap)` for every tap of output column `x` inside the image, in the order of the taps.
    pub(super) fn at(&mut self, x: usize) -> &[(usize, usize)] {
        self.taps.clear();
        for (tap, pixel) in &self.rows {
            let meets = |kx| Some((pixel + self.conv.source(1, x, kx)?, tap + kx));
            self.taps.extend((0..self.conv.kernel[1]).filter_map(meets));
        }
        &self.taps
    }
}
