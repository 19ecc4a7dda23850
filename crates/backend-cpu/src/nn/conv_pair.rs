//! A convolution of single pixels and the depthwise one behind it. A task goes through its rows with one panel of channels after another:
//! of the image between it has those channels of the lines that its next row of output pixels meets, which stay in its first-level cache.

use regraft_ir::ops::Activation;

use super::{
    depthwise::{KeptLines, Place, Plan, Row, compute_row, places, tap_stride},
    workers,
};
use crate::{
    Isa, Scratch, Threads,
    gemm::{Epilogue, Operand, Panels, Rows, Window3, Workspace, multiply_block},
    scratch::bytes_of,
    simd::Floats,
    threads::TileMut,
};

/// Two convolutions of channels-last images.
#[derive(Clone, Copy, Debug)]
pub struct PairArgs<'a> {
    /// Where the depthwise windows are.
    pub window: Window3,
    /// What [`plan`] gives for them.
    pub plan: &'a Plan,
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

/// Finds out what [`conv_pair`] needs to know about a shape, for panels of so many columns.
pub fn plan(window: &Window3, between: usize, nr: usize) -> Plan {
    Plan::new(window, Place::Kept(places(window)), [nr, tap_stride(between)])
}

/// Bytes of scratch that [`conv_pair`] needs for panels of so many columns.
pub fn conv_pair_scratch(threads: &Threads, window: &Window3, nr: usize) -> usize {
    workers(threads) * bytes_of::<f32>(places(window) * window.input[2] * nr)
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
    let (mut scratch, line) = (scratch.again(), width * args.nr);
    let mut kept: Vec<KeptLines<'_>> =
        (0..workers(threads)).map(|_| KeptLines::new(scratch.take(places(&window) * line), line)).collect();
    let row = (window.output[2] * between).max(1);
    // One band of rows for each thread: at its top each computes some lines that the band before computes, too.
    let per_task = (window.batch * window.output[1]).div_ceil(threads.count()).max(1);
    threads.for_each_chunk_with(&mut kept, out, per_task * row, |kept, task, out| {
        for first in (0..between).step_by(args.nr) {
            let columns = first..between.min(first + args.nr);
            kept.forget();
            for (i, out) in out.chunks_exact_mut(row).enumerate() {
                let (kind, line) = args.plan.row(task * per_task + i);
                kept.hold(line, &kind.lines, |line, to| {
                    let to = TileMut::new(to, to.len() / args.nr, columns.len(), args.nr);
                    // One panel at a time is multiplied by rows where they are.
                    let mut product = Workspace { a: &mut [], sums: &mut [] };
                    multiply_block(isa, &a, line * width, &panels, first, to, &epilogue, &mut product);
                });
                let row = Row {
                    channels: columns.len(),
                    image: kept.floats(),
                    step: args.nr,
                    stride: window.stride[2],
                    weight: &args.weight[first..],
                    kind,
                    bias: args.bias.map(|bias| &bias[columns.clone()]),
                    blocks: args.plan.blocks(),
                    activation: args.activation,
                };
                compute_row(isa, row, &mut out[first..], between);
            }
        }
    });
}
