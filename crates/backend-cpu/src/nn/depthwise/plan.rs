//! Where the windows of a depthwise convolution are in memory.

use std::{collections::HashMap, ops::Range};

use crate::{gemm::Window3, nn::window::lines_met, simd::Taps};

/// What is found out about a shape once, before any run.
#[derive(Debug)]
pub struct Plan {
    blocks: Vec<Block>,
    kinds: Vec<Kind>,
    rows: Vec<PlannedRow>,
}

/// A row of output pixels of some image.
#[derive(Clone, Copy, Debug)]
struct PlannedRow {
    /// Number of its kind.
    kind: usize,
    /// The first line that it meets, counted over all images.
    first: usize,
}

/// How some rows meet the images.
#[derive(Debug)]
pub(in crate::nn) struct Kind {
    /// The lines that are met, counted from the first of them.
    pub(in crate::nn) lines: Vec<usize>,
    /// Where the taps are for each of the ranges of columns of the kernel that some blocks meet the image with, counted from the input
    /// column of a block.
    pub(super) taps: Vec<Taps>,
}

/// Where the lines of the images are that rows meet.
#[derive(Clone, Copy, Debug)]
pub(in crate::nn) enum Place {
    /// In the images; taps are counted from the first line that a row meets.
    Images,
    /// In so many places, each in that of its number modulo their count.
    Kept(usize),
}

/// The number of places for lines that are kept: for those that one row meets, and those that it skips, unless an image has fewer. What
/// the next row meets first then follows in memory.
pub(in crate::nn) fn places(window: &Window3) -> usize {
    let [planes, lines, _] = window.kernel;
    let between = window.dilation[0] * planes.saturating_sub(1) * window.input[1];
    let met = (between + window.dilation[1] * lines.saturating_sub(1) + 1).next_multiple_of(window.stride[1].max(1));
    met.min(window.input[0] * window.input[1]).max(1)
}

impl Plan {
    /// For images whose pixels, and weights whose taps, are so many floats apart.
    pub(in crate::nn) fn new(window: &Window3, place: Place, [step, weight_step]: [usize; 2]) -> Plan {
        let (blocks, columns) = blocks_of(window);
        let (mut kinds, mut numbers) = (Vec::new(), HashMap::new());
        let plan_row = |row: usize| {
            let first = lines_met(window, row).next().map_or(0, |(_, line)| line);
            let met: Vec<(usize, usize)> = lines_met(window, row).map(|(tap, line)| (tap, line - first)).collect();
            let at = |line: usize| match place {
                Place::Images => line,
                Place::Kept(places) => (first + line) % places,
            };
            let kind = *numbers.entry((met, at(0))).or_insert_with_key(|(met, _)| {
                let of = |columns: &Range<usize>| {
                    let mut taps = Taps::default();
                    for (tap, line) in met {
                        for (i, kx) in columns.clone().enumerate() {
                            let pixel = at(*line) * window.input[2] + i * window.dilation[2];
                            taps.push(pixel * step, (tap + kx) * weight_step);
                        }
                    }
                    taps
                };
                let lines = met.iter().map(|(_, line)| *line).collect();
                kinds.push(Kind { lines, taps: columns.iter().map(of).collect() });
                kinds.len() - 1
            });
            PlannedRow { kind, first }
        };
        let rows = (0..window.batch * window.output[0] * window.output[1]).map(plan_row).collect();
        Plan { blocks, kinds, rows }
    }

    /// How a row, counted over all images, meets them, and the first line that it meets.
    pub(in crate::nn) fn row(&self, row: usize) -> (&Kind, usize) {
        let PlannedRow { kind, first } = self.rows[row];
        (&self.kinds[kind], first)
    }

    /// How a row of output pixels is cut.
    pub(in crate::nn) fn blocks(&self) -> &[Block] {
        &self.blocks
    }
}

/// Output pixels of a row that meet the image with the same columns of the kernel, and whose sums are in registers at once, so that each
/// weight is fetched once for all of them.
#[derive(Debug)]
pub(in crate::nn) struct Block {
    /// The first.
    pub(super) x: usize,
    /// How many: one of [`SIZES`].
    pub(super) pixels: usize,
    /// The number of these columns among those that blocks meet.
    pub(super) columns: usize,
    /// The input column that the first pixel meets with the first of them.
    pub(super) column: usize,
}

/// How many pixels a block may have: about eight sums keep the arithmetic units busy. Blocks of fewer take more channels at once.
const SIZES: [usize; 7] = [8, 7, 6, 4, 3, 2, 1];

/// Cuts rows of output pixels into blocks, equal ones where they can be long. Then come the columns of the kernel that some blocks meet the
/// image with.
fn blocks_of(window: &Window3) -> (Vec<Block>, Vec<Range<usize>>) {
    let (out, kernel) = (window.output[2], window.kernel[2]);
    let met = |x: usize| {
        let meets = |kx: &usize| window.source(2, x, *kx).is_some();
        let first = (0..kernel).find(meets).unwrap_or(0);
        first..(first..kernel).rfind(meets).map_or(first, |last| last + 1)
    };
    let (mut blocks, mut columns, mut x) = (Vec::new(), Vec::new(), 0);
    while x < out {
        let these = met(x);
        let run = (x..out).take_while(|x| met(*x) == these).count();
        let even = SIZES[..3].iter().copied().find(|pixels| run.is_multiple_of(*pixels));
        let end = x + run;
        while x < end {
            let fits = SIZES.into_iter().find(|pixels| *pixels <= end - x).unwrap_or(1);
            let (pixels, column) = (even.unwrap_or(fits), window.source(2, x, these.start).unwrap_or(0));
            blocks.push(Block { x, pixels, columns: columns.len(), column });
            x += pixels;
        }
        columns.push(these);
    }
    (blocks, columns)
}
