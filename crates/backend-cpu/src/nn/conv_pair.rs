//! A convolution of single pixels and the depthwise one behind it. A task goes through its rows with one panel of channels after another:
//! of the image between it has those channels of the lines that its next row of output pixels meets, which stay in its first-level cache.

use regraft_ir::ops::Activation;

use super::{
    depthwise::{Blocks, Row, compute_row, tap_stride},
    window::lines_of,
    workers,
};
use crate::{
    Isa, Scratch, Threads,
    gemm::{Epilogue, Operand, Panels, Rows, Window3, Workspace, multiply_block},
    scratch::bytes_of,
    simd::{Floats, Taps},
    threads::TileMut,
};

/// Two convolutions of channels-last images.
#[derive(Clone, Copy, Debug)]
pub struct PairArgs<'a> {
    /// Where the depthwise windows are.
    pub window: Window3,
    /// Channels of the images, and of those between.
    pub channels: [usize; 2],
    /// The images.
    pub image: &'a [f32],
    /// The first weight, `[channels, channels between]` in panels of `nr` columns.
    pub pointwise: &'a [f32],
    /// Columns of a panel.
    pub nr: usize,
    /// One addend for each channel between.
    pub inner_bias: Option<&'a [f32]>,
    /// What comes before the depthwise convolution.
    pub inner_activation: Activation,
    /// The weights, `[taps, channels between]`, as one panel of [`tap_stride`] columns.
    pub weight: &'a [f32],
    /// One addend for each channel of the result.
    pub bias: Option<&'a [f32]>,
    /// Applied to the result.
    pub activation: Activation,
}

/// Bands of rows for each of several threads. At its top each computes some lines that the band before computes, too.
const BANDS_PER_THREAD: usize = 2;

/// Lines between that a task keeps: those that one row meets, and those that it skips. What the next row meets first follows in memory.
fn places(window: &Window3) -> usize {
    (window.dilation[1] * (window.kernel[1] - 1) + 1).next_multiple_of(window.stride[1])
}

/// Bytes of scratch that [`conv_pair`] needs for panels of so many columns.
pub fn conv_pair_scratch(threads: &Threads, window: &Window3, nr: usize) -> usize {
    workers(threads) * bytes_of::<f32>(places(window) * window.input[2] * nr)
}

/// What a row of output pixels meets.
struct Met {
    /// Lines of the images.
    lines: Vec<usize>,
    /// Where the taps are in the lines between.
    taps: Vec<Taps>,
}

/// A panel's channels of the lines between that a task has.
struct Lines<'a> {
    /// Number `i` of the images has its place at `i` modulo their count.
    between: &'a mut [f32],
    /// Which line is at each place.
    held: Vec<usize>,
    /// Pixels of a line.
    width: usize,
    /// Floats of a pixel.
    nr: usize,
}

impl Lines<'_> {
    /// Computes what is missing of `lines`: as many as follow each other, and have places that do, at once.
    fn hold(&mut self, lines: &[usize], compute: impl Fn(usize, &mut [f32])) {
        let (places, floats) = (self.held.len(), self.width * self.nr);
        let mut rest = lines;
        while let Some((first, after)) = rest.split_first() {
            let place = first % places;
            let missing = rest
                .iter()
                .enumerate()
                .take_while(|(i, line)| place + i < places && **line == first + i && self.held[place + i] != **line);
            let count = missing.count();
            rest = if count == 0 { after } else { &rest[count..] };
            if count > 0 {
                compute(*first, &mut self.between[place * floats..][..count * floats]);
                (0..count).for_each(|i| self.held[place + i] = first + i);
            }
        }
    }
}

/// Computes both convolutions into `out`, which has the channels between. Images have one plane.
///
/// # Panics
///
/// If a slice has the wrong length, or the scratch is shorter than [`conv_pair_scratch`].
pub fn conv_pair(threads: &Threads, isa: Isa, args: &PairArgs<'_>, out: &mut [f32], scratch: &mut Scratch<'_>) {
    let PairArgs { window, channels: [channels, between], .. } = *args;
    let (width, pixels) = (window.input[2], window.batch * window.pixels_in());
    assert!(args.image.len() == pixels * channels && out.len() == window.pixels() * between);
    assert!(args.weight.len() == window.taps() * tap_stride(between));
    assert!([args.inner_bias, args.bias].iter().flatten().all(|bias| bias.len() == between));
    let a = Operand::new(Floats::F32(args.image), Rows::Strided { lda: channels }, pixels, 1, channels);
    let panels = Panels::new(args.nr, Floats::F32(args.pointwise), channels, between);
    let (bias, activation) = (args.inner_bias.map(Floats::F32), args.inner_activation);
    let epilogue = Epilogue { bias, activation, ..Epilogue::default() };
    let (places, blocks) = (places(&window), Blocks::new(&window));
    let met = |row: usize| {
        let lines = || lines_of(&window, row, false).map(|(tap, pixel)| (tap, pixel / width));
        let kept = lines().map(|(tap, line)| (tap, line % places * width));
        let taps = blocks.taps(&window, kept, [args.nr, tap_stride(between)]);
        Met { lines: lines().map(|(_, line)| line).collect(), taps }
    };
    let mut scratch = scratch.again();
    let mut lines: Vec<Lines<'_>> = (0..workers(threads))
        .map(|_| Lines {
            between: scratch.take(places * width * args.nr),
            held: vec![usize::MAX; places],
            width,
            nr: args.nr,
        })
        .collect();
    let row = (window.output[2] * between).max(1);
    let bands = if threads.count() == 1 { 1 } else { BANDS_PER_THREAD * threads.count() };
    let per_task = (window.batch * window.output[1]).div_ceil(bands).max(1);
    threads.for_each_chunk_with(&mut lines, out, per_task * row, |lines, task, out| {
        let met: Vec<Met> = (0..out.len() / row).map(|i| met(task * per_task + i)).collect();
        for first in (0..between).step_by(args.nr) {
            let columns = first..between.min(first + args.nr);
            lines.held.fill(usize::MAX);
            for (met, out) in met.iter().zip(out.chunks_exact_mut(row)) {
                lines.hold(&met.lines, |line, to| {
                    let to = TileMut::new(to, to.len() / args.nr, columns.len(), args.nr);
                    // One panel at a time is multiplied by rows where they are.
                    let mut product = Workspace { a: &mut [], sums: &mut [] };
                    multiply_block(isa, &a, line * width, &panels, first, to, &epilogue, &mut product);
                });
                let row = Row {
                    channels: columns.len(),
                    image: lines.between,
                    step: args.nr,
                    stride: window.stride[2],
                    weight: &args.weight[first..],
                    taps: &met.taps,
                    bias: args.bias.map(|bias| &bias[columns.clone()]),
                    blocks: &blocks,
                    activation: args.activation,
                };
                compute_row(isa, row, &mut out[first..], between);
            }
        }
    });
}
