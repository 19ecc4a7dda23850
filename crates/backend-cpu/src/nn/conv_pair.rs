//! A convolution of single pixels and the depthwise one behind it: of the image between them a task has the lines that its next row of
//! output pixels meets, which stay in its caches.

use regraft_ir::ops::Activation;

use super::{
    depthwise::{Row, blocks, compute_row, tap_stride},
    window::lines_of,
    workers,
};
use crate::{
    Isa, Scratch, Threads,
    gemm::{Epilogue, Operand, Panels, Rows, Window3, Workspace, gathered_bytes, multiply_block},
    scratch::bytes_of,
    simd::Floats,
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

/// Lines between that one row meets, and those that it skips.
fn reach(window: &Window3) -> usize {
    window.dilation[1] * (window.kernel[1] - 1) + 1
}

/// Bytes of scratch that [`conv_pair`] needs.
pub fn conv_pair_scratch(threads: &Threads, window: &Window3, [channels, between]: [usize; 2]) -> usize {
    let (width, lines) = (window.input[2], reach(window));
    let gathered = gathered_bytes(width, 1, channels);
    workers(threads) * (bytes_of::<f32>(lines * width * between) + bytes_of::<u8>(gathered))
}

/// Memory of one task.
struct Work<'a> {
    /// Lines between; number `i` of the images has its place at `i` modulo their count.
    between: &'a mut [f32],
    /// Which line is at each place.
    held: Vec<usize>,
    product: Workspace<'a>,
    lines: Vec<(usize, usize)>,
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
    let (places, blocks) = (reach(&window), blocks(&window));
    let mut scratch = scratch.again();
    let mut works: Vec<Work<'_>> = (0..workers(threads))
        .map(|_| Work {
            between: scratch.take(places * width * between),
            held: vec![usize::MAX; places],
            product: Workspace { a: scratch.take(gathered_bytes(width, 1, channels)), sums: &mut [] },
            lines: Vec::new(),
        })
        .collect();
    let row = window.output[2] * between;
    let bands = if threads.count() == 1 { 1 } else { BANDS_PER_THREAD * threads.count() };
    let per_task = (window.batch * window.output[1]).div_ceil(bands).max(1);
    threads.for_each_chunk_with(&mut works, out, per_task * row, |work, task, out| {
        for (i, out) in out.chunks_exact_mut(row.max(1)).enumerate() {
            work.lines.clear();
            work.lines.extend(lines_of(&window, task * per_task + i, false));
            for (_, pixel) in &mut work.lines {
                let line = *pixel / width;
                let place = line % places;
                if work.held[place] != line {
                    let to = &mut work.between[place * width * between..][..width * between];
                    let to = TileMut::new(to, width, between, between);
                    multiply_block(isa, &a, line * width, &panels, 0, to, &epilogue, &mut work.product);
                    work.held[place] = line;
                }
                *pixel = place * width;
            }
            let row = Row {
                window: &window,
                channels: between,
                image: work.between,
                lines: &work.lines,
                weight: args.weight,
                bias: args.bias,
                blocks: &blocks,
                activation: args.activation,
            };
            compute_row(isa, row, out);
        }
    });
}
