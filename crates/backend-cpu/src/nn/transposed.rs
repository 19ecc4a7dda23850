//! Transposed convolutions of channels-first images. Positions of the result whose distance is a whole number of steps meet the same
//! taps: they are a *phase*, and each phase is a plain convolution by its taps alone, so nothing is multiplied with zeros.

use super::workers;
use crate::{
    Isa, Scratch, Threads,
    gemm::{Epilogue, Operand, Panels, Rows, Window3, Workspace, gathered_bytes, multiply_block, panel_width},
    scratch::bytes_of,
    simd::{Float, Floats},
    threads::{TileGrid, TileMut},
};

/// The most columns of a panel.
const MAX_WIDTH: usize = 64;

/// A tap that a phase meets, and what is added to a position's number within the phase to find the element of the image.
type Tap = (usize, isize);

/// A phase of a result: its residues along the axes, and the taps that it meets.
#[derive(Clone, Debug)]
struct Phase {
    residues: [usize; 3],
    taps: [Vec<Tap>; 3],
    /// Where its rows of the weight start in the scratch.
    start: usize,
}

impl Phase {
    fn taps(&self) -> usize {
        self.taps.iter().map(Vec::len).product()
    }
}

/// The sizes of a transposed convolution, and its phases.
#[derive(Clone, Debug)]
pub struct Transposed {
    window: Window3,
    channels: [usize; 2],
    groups: usize,
    phases: Vec<Phase>,
}

/// The tensors of a transposed convolution.
#[derive(Clone, Copy, Debug)]
pub struct TransposedArgs<'a> {
    /// The images, `[batch, channels, pixels]`.
    pub image: Floats<'a>,
    /// The weight, `[in, out / groups, taps]`.
    pub weight: Floats<'a>,
    /// One addend for each output channel.
    pub bias: Option<Floats<'a>>,
}

impl Transposed {
    /// `window` steps over the result; its padding is cut off there. `groups` divides both numbers of `channels`, those of the
    /// image and of the result.
    pub fn new(window: Window3, channels: [usize; 2], groups: usize) -> Transposed {
        let phases = |axis: usize| -> Vec<(usize, Vec<Tap>)> {
            let stride = window.stride[axis];
            let taps = |residue: usize| {
                (0..window.kernel[axis]).filter_map(move |tap| {
                    let shift = (residue + window.padding[axis]) as isize - (tap * window.dilation[axis]) as isize;
                    (shift.rem_euclid(stride as isize) == 0).then(|| (tap, shift.div_euclid(stride as isize)))
                })
            };
            (0..stride.min(window.output[axis])).map(|residue| (residue, taps(residue).collect())).collect()
        };
        let mut transposed = Transposed { window, channels, groups, phases: Vec::new() };
        let mut start = 0;
        for (z, in_z) in phases(0) {
            for (y, in_y) in phases(1) {
                for (x, in_x) in phases(2) {
                    let phase = Phase { residues: [z, y, x], taps: [in_z.clone(), in_y.clone(), in_x], start };
                    start += channels[0] / groups * phase.taps() * channels[1];
                    transposed.phases.push(phase);
                }
            }
        }
        transposed
    }

    /// Channels of a group of the image, and of the result.
    fn group(&self) -> [usize; 2] {
        self.channels.map(|channels| channels / self.groups)
    }

    /// The largest `k` of a phase.
    fn longest(&self) -> usize {
        self.group()[0] * self.phases.iter().map(Phase::taps).max().unwrap_or(0)
    }

    fn weights(&self) -> usize {
        self.phases.last().map_or(0, |last| last.start + self.group()[0] * last.taps() * self.channels[1])
    }

    /// Bytes of scratch that [`transposed`] needs.
    pub fn scratch(&self, isa: Isa, threads: &Threads) -> usize {
        let ([_, rows], k, nr) = (self.group(), self.longest(), panel_width(isa));
        let worker = bytes_of::<f32>(k * nr) + bytes_of::<f32>(rows * nr) + bytes_of::<u8>(gathered_bytes(rows, 1, k));
        bytes_of::<f32>(self.weights()) + workers(threads) * worker
    }

    /// Pixels that a task computes of a channel: every phase should fill a panel.
    fn pixels_of_task(&self, nr: usize) -> usize {
        let ([_, stride, step], width) = (self.window.stride, self.window.output[2]);
        match nr * step {
            enough if width >= 2 * enough => 2 * enough,
            enough if width >= enough => width,
            enough => enough.div_ceil(width.max(1)) * stride * width,
        }
        .max(1)
    }

    /// Writes the rows of each phase one after the other: `[phase][out][in of the group][tap]`.
    fn sort_weights<W: Copy + Sync>(&self, threads: &Threads, weight: &[W], wide: fn(W) -> f32, out: &mut [f32]) {
        let ([group_in, rows], all) = (self.group(), self.window.taps());
        let [_, height, width] = self.window.kernel;
        for phase in &self.phases {
            let k = group_in * phase.taps();
            let out = &mut out[phase.start..phase.start + k * self.channels[1]];
            threads.for_each_chunk(out, k, |channel, line| {
                let (group, row) = (channel / rows, channel % rows);
                let mut line = line.iter_mut();
                for c in 0..group_in {
                    let taps = &weight[((group * group_in + c) * rows + row) * all..][..all];
                    let [z, y, x] = &phase.taps;
                    let each = z.iter().flat_map(|z| y.iter().map(move |y| z.0 * height + y.0));
                    for (at, value) in each.flat_map(|at| x.iter().map(move |x| at * width + x.0)).zip(&mut line) {
                        *value = wide(taps[at]);
                    }
                }
            });
        }
    }
}

/// Computes a transposed convolution into `out`, `[batch, channels, pixels]`.
///
/// # Panics
///
/// If a length does not fit, or the scratch is shorter than [`Transposed::scratch`].
pub fn transposed<T: Float>(
    threads: &Threads,
    isa: Isa,
    plan: &Transposed,
    args: &TransposedArgs<'_>,
    out: &mut [T],
    scratch: &mut Scratch<'_>,
) {
    let ([c_in, c_out], [_, rows], pixels) = (plan.channels, plan.group(), plan.window.pixels_out());
    assert!(args.image.len() >= plan.window.batch * c_in * plan.window.pixels_in());
    assert!(args.weight.len() >= c_in * rows * plan.window.taps() && args.bias.is_none_or(|b| b.len() >= c_out));
    assert_eq!(out.len(), plan.window.batch * c_out * pixels);
    let (k, nr) = (plan.longest(), panel_width(isa));
    let mut scratch = scratch.again();
    let weights = scratch.take::<f32>(plan.weights());
    match args.weight {
        Floats::F32(weight) => plan.sort_weights(threads, weight, |x| x, weights),
        Floats::F16(weight) => plan.sort_weights(threads, weight, half::f16::to_f32, weights),
        Floats::Bf16(weight) => plan.sort_weights(threads, weight, half::bf16::to_f32, weights),
    }
    let weights = &*weights;
    let mut parts: Vec<_> = (0..workers(threads))
        .map(|_| {
            let (panel, sums) = (scratch.take::<f32>(k * nr), scratch.take::<f32>(rows * nr));
            (panel, sums, Workspace { a: scratch.take(gathered_bytes(rows, 1, k)), sums: &mut [] })
        })
        .collect();
    let outer = [(plan.window.batch, c_out * pixels), (plan.groups, rows * pixels)];
    let tile_cols = plan.pixels_of_task(nr);
    let grid = TileGrid { outer: &outer, rows, cols: pixels, row_stride: pixels, tile_rows: rows, tile_cols };
    threads.for_each_tile_with(&mut parts, out, &grid, |(panel, sums, work), at, mut tile| {
        let (n, group) = (at.matrix / plan.groups, at.matrix % plan.groups);
        for phase in &plan.phases {
            let runs = Run::all(&plan.window, phase, at.col, tile.cols());
            let image = args.image.from((n * c_in + group * plan.group()[0]) * plan.window.pixels_in());
            for runs in Run::blocks(runs, nr, plan.window.stride[2]) {
                let cols = runs.iter().map(|run| run.len).sum();
                let k = plan.group()[0] * phase.taps();
                if k > 0 {
                    fill_panel(isa, plan, phase, image, &runs, nr, &mut panel[..k * nr]);
                    let weight = Floats::F32(&weights[phase.start + group * rows * k..][..rows * k]);
                    let a = Operand::new(weight, Rows::Strided { lda: k }, rows, 1, k);
                    let panels = Panels::new(nr, Floats::F32(&panel[..k * nr]), k, cols);
                    let product = TileMut::new(sums, rows, cols, nr);
                    multiply_block(isa, &a, 0, &panels, 0, product, &Epilogue::default(), work);
                } else {
                    sums.fill(0.0);
                }
                for (r, sums) in sums.chunks_exact_mut(nr).enumerate() {
                    if let Some(bias) = args.bias {
                        let mut value = [0f32];
                        bias.load(isa, group * rows + r, &mut value);
                        sums[..cols].iter_mut().for_each(|x| *x += value[0]);
                    }
                    let mut rounded = [T::zeroed(); MAX_WIDTH];
                    T::narrow(isa, &sums[..cols], &mut rounded[..cols]);
                    spread(&runs, plan.window.stride[2], &rounded[..cols], tile.row(r));
                }
            }
        }
    });
}

/// Positions of a phase that follow each other along a line of the result.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// Their numbers within the phase, along the slower axes; the first's along the fastest.
    at: [usize; 3],
    /// How many there are.
    len: usize,
    /// Where the first stands in the task's pixels.
    place: usize,
}

impl Run {
    /// The positions of a phase among the `count` pixels from `first` on.
    fn all(window: &Window3, phase: &Phase, first: usize, count: usize) -> Vec<Run> {
        let ([_, height, width], [sz, sy, sx], [z, y, x]) = (window.output, window.stride, phase.residues);
        let end = first + count;
        let line = |line: usize| {
            let at = [line / height, line % height];
            if at[0] % sz != z || at[1] % sy != y {
                return None;
            }
            let (from, to) = (first.max(line * width) - line * width, end.min((line + 1) * width) - line * width);
            let number = from.saturating_sub(x).div_ceil(sx);
            let start = x + number * sx;
            let len = to.saturating_sub(start).div_ceil(sx);
            let run = Run { at: [at[0] / sz, at[1] / sy, number], len, place: line * width + start - first };
            (len > 0).then_some(run)
        };
        (first / width..end.div_ceil(width)).filter_map(line).collect()
    }

    /// The same positions in blocks of at most `nr`; neighbors of a phase are `step` pixels apart.
    fn blocks(runs: Vec<Run>, nr: usize, step: usize) -> Vec<Vec<Run>> {
        let (mut blocks, mut room): (Vec<Vec<Run>>, usize) = (Vec::new(), 0);
        for run in runs {
            let mut done = 0;
            while done < run.len {
                if room == 0 {
                    blocks.push(Vec::new());
                    room = nr;
                }
                let (len, [z, y, x]) = (room.min(run.len - done), run.at);
                if let Some(block) = blocks.last_mut() {
                    block.push(Run { at: [z, y, x + done], len, place: run.place + done * step });
                }
                (done, room) = (done + len, room - len);
            }
        }
        blocks
    }
}

/// Writes what the taps of a phase meet at some positions as a panel of `nr` columns.
fn fill_panel(
    isa: Isa,
    plan: &Transposed,
    phase: &Phase,
    image: Floats<'_>,
    runs: &[Run],
    nr: usize,
    panel: &mut [f32],
) {
    let ([depth, height, width], plane) = (plan.window.input, plan.window.pixels_in());
    let [z, y, x] = &phase.taps;
    let taps = z.iter().flat_map(|z| y.iter().flat_map(move |y| x.iter().map(move |x| [z.1, y.1, x.1])));
    let taps: Vec<[isize; 3]> = taps.collect();
    for (row, line) in panel.chunks_exact_mut(nr).enumerate() {
        let (image, tap) = (image.from(row / taps.len() * plane), taps[row % taps.len()]);
        let mut col = 0;
        line.fill(0.0);
        for run in runs {
            let line = &mut line[col..col + run.len];
            col += run.len;
            let inside = |axis: usize, size: usize| run.at[axis].checked_add_signed(tap[axis]).filter(|at| *at < size);
            let (Some(z), Some(y)) = (inside(0, depth), inside(1, height)) else { continue };
            // Neighbors of a phase meet neighbors of the image.
            let first = run.at[2] as isize + tap[2];
            let from = (-first).clamp(0, run.len as isize) as usize;
            let end = (width as isize - first).clamp(0, run.len as isize) as usize;
            if from < end {
                image.load(isa, (z * height + y) * width + first.max(0) as usize, &mut line[from..end]);
            }
        }
    }
}

/// Writes the values of some positions to their places.
fn spread<T: Copy>(runs: &[Run], step: usize, values: &[T], out: &mut [T]) {
    let mut values = values.iter();
    for run in runs {
        let places = out[run.place..].iter_mut().step_by(step);
        places.zip(values.by_ref().take(run.len)).for_each(|(y, x)| *y = *x);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        nn::testing::{Compute, Numbers, assert_close, in_every_type, numbers},
        simd::FloatType,
    };

    struct Case<'a>(&'a Transposed, TransposedArgs<'a>);

    impl Compute for Case<'_> {
        fn run<T: Float>(&self, threads: &Threads, isa: Isa, out: &mut [T], scratch: &mut Scratch<'_>) {
            transposed(threads, isa, self.0, &self.1, out, scratch);
        }
        fn scratch(&self, threads: &Threads, isa: Isa, _: FloatType) -> usize {
            self.0.scratch(isa, threads)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]

        #[test]
        fn every_product_lands_where_it_belongs(
            groups in 1usize..3, ic in 1usize..4, oc in 1usize..4, size in 1usize..7, wide in 1usize..200, kernel in 1usize..5,
            stride in 1usize..4, dilation in 1usize..3, padding in 0usize..3, extra in 0usize..2, axes in 1usize..4, bias: bool,
            types in prop::array::uniform2(prop::sample::select(&FloatType::ALL[..])),
        ) {
            let grown = |n: usize| ((n - 1) * stride + dilation * (kernel - 1) + 1 + extra).checked_sub(2 * padding);
            let wide = if axes == 1 { wide } else { size };
            let (Some(tall), Some(long)) = (grown(size), grown(wide)) else { return Ok(()) };
            let pick = |x: usize, last: usize, unit: usize| [if axes == 3 { x } else { unit }, if axes > 1 { x } else { unit }, last];
            let window = Window3 {
                batch: 2,
                input: pick(size, wide, 1), output: pick(tall, long, 1), kernel: pick(kernel, kernel, 1),
                stride: pick(stride, stride, 1), dilation: pick(dilation, dilation, 1), padding: pick(padding, padding, 0),
            };
            let (c_in, c_out, batch, taps) = (groups * ic, groups * oc, window.batch, window.taps());
            let image = Numbers::new(types[0], &numbers(batch * c_in * window.pixels_in(), 1));
            let weight = Numbers::new(types[1], &numbers(c_in * oc * taps, 2));
            let b = Numbers::new(types[0], &numbers(c_out, 3));
            let pixels = window.pixels_out();
            let mut want: Vec<f64> = (0..batch * c_out * pixels).map(|at| if bias { b.at(at / pixels % c_out) } else { 0.0 }).collect();
            let split = |sizes: [usize; 3], i: usize| [i / sizes[2] / sizes[1], i / sizes[2] % sizes[1], i % sizes[2]];
            for at in 0..batch * c_in * window.pixels_in() {
                let (n, c, pixel) = (at / window.pixels_in() / c_in, at / window.pixels_in() % c_in, at % window.pixels_in());
                let pixel = split(window.input, pixel);
                for (tap, o) in (0..taps).flat_map(|t| (0..oc).map(move |o| (t, o))) {
                    let t = split(window.kernel, tap);
                    let to = [0, 1, 2].map(|a| {
                        let to = (pixel[a] * window.stride[a] + t[a] * window.dilation[a]).checked_sub(window.padding[a])?;
                        (to < window.output[a]).then_some(to)
                    });
                    let [Some(z), Some(y), Some(x)] = to else { continue };
                    let channel = n * c_out + c / ic * oc + o;
                    want[channel * pixels + (z * window.output[1] + y) * window.output[2] + x] +=
                        image.at(at) * weight.at((c * oc + o) * taps + tap);
                }
            }
            let plan = Transposed::new(window, [c_in, c_out], groups);
            let args = TransposedArgs { image: image.floats(), weight: weight.floats(), bias: bias.then(|| b.floats()) };
            in_every_type(want.len(), &Case(&plan, args), |out, rounding| {
                out.iter().zip(&want).for_each(|(got, want)| assert_close(*got, *want, 1e-5 + rounding));
            });
        }
    }
}
