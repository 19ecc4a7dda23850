//! Transposed convolutions of channels-first images whose kernel is a whole number of steps long, by a weight that is packed ahead.
//!
//! All that lies within one step of the result meets the same elements of the image. So the steps are the pixels of a plain
//! convolution, and the places within a step are channels of its result: a product of windows with panels, whose rows are spread
//! over the result while they are in cache.

use std::ops::Range;

use super::{transpose::copy_strided, widened, workers};
use crate::{
    Isa, Scratch, Threads,
    gemm::{ConvPart, ConvRows, Epilogue, Operand, Panels, Window3, Workspace, gathered_bytes, multiply_block},
    pack::panel_elements,
    scratch::bytes_of,
    simd::{Float, FloatType, Floats, Steps, Strip, transpose_strip},
    threads::{TileGrid, TileMut},
};

/// Steps that a task multiplies at once: enough to use a panel often while it is in cache.
const STEPS: usize = 64;

/// Side of the blocks in which steps and channels change places.
const BLOCK: usize = 16;

/// A transposed convolution as a plain one over steps.
#[derive(Clone, Debug)]
pub struct Subpixel {
    /// The windows of steps.
    window: Window3,
    rows: ConvRows,
    /// Sizes of a step.
    stride: [usize; 3],
    /// Sizes of the result.
    output: [usize; 3],
    /// Elements of the first step that come before the result.
    before: [usize; 3],
    /// Channels of image and result.
    channels: [usize; 2],
    /// Columns of a panel.
    nr: usize,
    /// Element types of image and weight.
    types: [FloatType; 2],
}

/// The tensors of a transposed convolution.
#[derive(Clone, Copy, Debug)]
pub struct SubpixelArgs<'a> {
    /// The images, `[batch, channels, pixels]`.
    pub image: Floats<'a>,
    /// The weight: for every place within a step along the slower axes a matrix `[taps · in, places along the last axis · out]` in
    /// panels.
    pub weight: Floats<'a>,
    /// One addend for each output channel.
    pub bias: Option<Floats<'a>>,
}

/// A part of one plane of a result: whole lines, or a part of one line.
struct Region {
    image: usize,
    z: usize,
    y: Range<usize>,
    x: Range<usize>,
}

/// Memory of one worker.
struct Buffers<'a> {
    /// The product: a row for each step.
    sums: &'a mut [f32],
    /// A line of the result for each channel.
    lines: &'a mut [f32],
    work: Workspace<'a>,
}

impl Subpixel {
    /// `window` steps over the result; its padding, less than the kernel, is cut off there. The kernel is a multiple of the stride, and
    /// there is no dilation. `types` and `nr` are those of [`SubpixelArgs`]. `None` if the image is too large for offsets.
    pub fn new(window: &Window3, channels: [usize; 2], types: [FloatType; 2], nr: usize) -> Option<Subpixel> {
        let Window3 { stride, padding, output, .. } = *window;
        let axes = [0, 1, 2];
        let kernel = axes.map(|a| window.kernel[a] / stride[a]);
        let first = axes.map(|a| padding[a] / stride[a]);
        let before = axes.map(|a| padding[a] % stride[a]);
        let steps = Window3 {
            output: axes.map(|a| (output[a] + before[a]).div_ceil(stride[a])),
            kernel,
            stride: [1; 3],
            dilation: [1; 3],
            padding: axes.map(|a| kernel[a] - 1 - first[a]),
            ..*window
        };
        // A step meets the image backwards: its first tap stands at the step itself.
        let rows = ConvRows::new(&steps, channels[0])?.reversed(steps.taps());
        Some(Subpixel { window: steps, rows, stride, output, before, channels, nr, types })
    }

    /// Rows and columns of a matrix of the weight.
    fn matrix(&self) -> [usize; 2] {
        [self.window.taps() * self.channels[0], self.stride[2] * self.channels[1]]
    }

    /// Whether a task computes a part of a line; else it computes lines.
    fn cuts_lines(&self) -> bool {
        self.window.output[2] > 2 * STEPS
    }

    /// Lines of steps of a task, and the most elements that it computes of a line of the result.
    fn task(&self) -> [usize; 2] {
        if self.cuts_lines() {
            return [1, STEPS * self.stride[2]];
        }
        [(STEPS / self.window.output[2].max(1)).clamp(1, self.window.output[1].max(1)), self.output[2]]
    }

    /// The most steps that a task multiplies at once.
    fn steps(&self) -> usize {
        let [lines, _] = self.task();
        if self.cuts_lines() { STEPS + 1 } else { lines * self.window.output[2] }
    }

    /// Floats of a worker: of sums, with what whole blocks reach beyond them, and of lines.
    fn floats(&self) -> [usize; 2] {
        let ([_, out], [_, longest]) = (self.channels, self.task());
        let places = self.steps() * self.stride[2] + BLOCK;
        [places * out + BLOCK, longest.next_multiple_of(BLOCK) * out.next_multiple_of(BLOCK)]
    }

    /// Elements of the images.
    fn elements(&self) -> usize {
        self.window.batch * self.window.pixels_in() * self.channels[0]
    }

    /// Bytes of scratch that [`subpixel`] needs.
    pub fn scratch(&self, threads: &Threads) -> usize {
        let ([sums, lines], [_, columns]) = (self.floats(), self.matrix());
        let gathered = gathered_bytes(self.steps(), self.window.taps(), self.channels[0]);
        bytes_of::<u8>(self.elements() * self.types[0].size())
            + bytes_of::<f32>(self.channels[1])
            + bytes_of::<f32>(columns)
            + workers(threads) * (bytes_of::<f32>(sums) + bytes_of::<f32>(lines) + bytes_of::<u8>(gathered))
    }

    /// Elements of a matrix of the weight.
    fn panels(&self) -> usize {
        let [k, n] = self.matrix();
        panel_elements(self.types[1], k, n, self.nr)
    }

    /// The product that the steps of plane `plane`, counted over all images, are a part of, and the first row of theirs.
    fn part(&self, plane: usize) -> (usize, usize) {
        let parts: &[ConvPart] = self.rows.parts();
        let part = parts.partition_point(|part| part.planes.end <= plane);
        (part, (plane - parts[part].planes.start) * self.window.output[1] * self.window.output[2])
    }
}

/// Computes a transposed convolution into `out`, `[batch, channels, pixels]`.
///
/// # Panics
///
/// If a length does not fit, or the scratch is shorter than [`Subpixel::scratch`].
pub fn subpixel<T: Float>(
    threads: &Threads,
    isa: Isa,
    plan: &Subpixel,
    args: &SubpixelArgs<'_>,
    out: &mut [T],
    scratch: &mut Scratch<'_>,
) {
    let ([_, c_out], [depth, height, width]) = (plan.channels, plan.output);
    let pixels = depth * height * width;
    assert_eq!([args.image.ty(), args.weight.ty()], plan.types);
    assert!(args.weight.len() >= plan.stride[0] * plan.stride[1] * plan.panels());
    assert!(args.bias.is_none_or(|b| b.len() >= c_out));
    assert_eq!(out.len(), plan.window.batch * c_out * pixels);
    let mut scratch = scratch.again();
    let image = channels_last(threads, isa, plan, args.image, &mut scratch);
    let bias = widened(isa, args.bias.map(|bias| bias.first(c_out)), &mut scratch).map(|bias| {
        let columns = scratch.take::<f32>(plan.matrix()[1]);
        columns.chunks_exact_mut(c_out).for_each(|columns| columns.copy_from_slice(bias));
        Floats::F32(columns)
    });
    let epilogue = Epilogue { bias, ..Epilogue::default() };
    let operands = operands(plan, image);
    let ([sums, lines], [_, longest]) = (plan.floats(), plan.task());
    let gathered = gathered_bytes(plan.steps(), plan.window.taps(), plan.channels[0]);
    let mut buffers: Vec<_> = (0..workers(threads))
        .map(|_| Buffers {
            sums: scratch.take(sums),
            lines: scratch.take(lines),
            work: Workspace { a: scratch.take(gathered), sums: &mut [] },
        })
        .collect();
    let outer = [(plan.window.batch, c_out * pixels), (depth, height * width), (height, width)];
    let (outer, cols, tile_cols) = if plan.cuts_lines() {
        (&outer[..], width, longest)
    } else {
        (&outer[..2], height * width, plan.task()[0] * plan.stride[1] * width)
    };
    let grid = TileGrid { outer, rows: c_out, cols, row_stride: pixels, tile_rows: c_out, tile_cols };
    threads.for_each_tile_with(&mut buffers, out, &grid, |buffers, at, tile| {
        let region = if plan.cuts_lines() {
            let (plane, y) = (at.matrix / height, at.matrix % height);
            Region { image: plane / depth, z: plane % depth, y: y..y + 1, x: at.col..at.col + tile.cols() }
        } else {
            let y = at.col / width;
            Region { image: at.matrix / depth, z: at.matrix % depth, y: y..y + tile.cols() / width, x: 0..width }
        };
        compute(isa, plan, &operands, args.weight, &epilogue, &region, buffers, tile);
    });
}

/// The images with channels last.
fn channels_last<'s>(
    threads: &Threads,
    isa: Isa,
    plan: &Subpixel,
    image: Floats<'_>,
    scratch: &mut Scratch<'s>,
) -> Floats<'s> {
    let (channels, pixels) = (plan.channels[0], plan.window.pixels_in());
    let (shape, strides) = ([plan.window.batch, pixels, channels], [channels * pixels, 1, pixels]);
    let copy = scratch.take::<u8>(plan.elements() * image.ty().size());
    if copy.is_empty() {
        return Floats::of_bytes(image.ty(), copy);
    }
    macro_rules! copied {
        ($image:expr) => {
            copy_strided(threads, isa, $image, &shape, &strides, bytemuck::cast_slice_mut(copy))
        };
    }
    match image.first(plan.elements()) {
        Floats::F32(image) => copied!(image),
        Floats::F16(image) => copied!(image),
        Floats::Bf16(image) => copied!(image),
    }
    Floats::of_bytes(image.ty(), copy)
}

/// The windows of every product.
fn operands<'a>(plan: &'a Subpixel, image: Floats<'a>) -> Vec<Operand<'a>> {
    let Window3 { input, output, .. } = plan.window;
    let plane = input[1] * input[2] * plan.channels[0];
    let operand = |part: &ConvPart| {
        let image = image.from(part.reads.start * plane).first(part.reads.len() * plane);
        let steps = part.planes.len() * output[1] * output[2];
        Operand::new(image, plan.rows.rows(part), steps, plan.window.taps(), plan.channels[0])
    };
    plan.rows.parts().iter().map(operand).collect()
}

/// Computes a region of a result, whose channels are the rows of `tile`.
#[expect(clippy::too_many_arguments, reason = "a product, and where its parts go")]
fn compute<T: Float>(
    isa: Isa,
    plan: &Subpixel,
    operands: &[Operand<'_>],
    weight: Floats<'_>,
    epilogue: &Epilogue<'_>,
    region: &Region,
    buffers: &mut Buffers<'_>,
    mut tile: TileMut<'_, T>,
) {
    let ([k, n], width) = (plan.matrix(), plan.window.output[2]);
    let ([sz, sy, sx], [z, y, x]) = (plan.stride, plan.before);
    let (z, place_z) = ((region.z + z) / sz, (region.z + z) % sz);
    let (part, plane) = plan.part(region.image * plan.window.output[0] + z);
    let columns = (region.x.start + x) / sx..(region.x.end + x).div_ceil(sx);
    for place in 0..sy {
        // The lines of steps whose line at this place belongs to the region.
        let line = |end: usize| (end + y).saturating_sub(place).div_ceil(sy);
        let lines = line(region.y.start)..line(region.y.end);
        if lines.is_empty() {
            continue;
        }
        let matrix = weight.from((place_z * sy + place) * plan.panels()).first(plan.panels());
        let (first, rows) = (plane + lines.start * width + columns.start, (lines.len() - 1) * width + columns.len());
        let product = TileMut::new(buffers.sums, rows, n, n);
        let panels = Panels::new(plan.nr, matrix, k, n);
        multiply_block(isa, &operands[part], first, &panels, 0, product, epilogue, &mut buffers.work);
        for (i, line) in lines.enumerate() {
            let sums = &buffers.sums[i * width * n + (region.x.start + x - columns.start * sx) * plan.channels[1]..];
            let at = (line * sy + place - y - region.y.start) * region.x.len();
            spread(isa, sums, region.x.len(), buffers.lines, &mut tile, at);
        }
    }
}

/// Writes `count` rows of `sums`, a number for each channel in each, to places `at ..` of the channels.
fn spread<T: Float>(isa: Isa, sums: &[f32], count: usize, lines: &mut [f32], tile: &mut TileMut<'_, T>, at: usize) {
    let (channels, line_stride) = (tile.rows(), count.next_multiple_of(BLOCK));
    let steps: Vec<(usize, usize)> = (0..channels.next_multiple_of(BLOCK)).map(|channel| (channel, channel)).collect();
    let steps = Steps::new(&steps);
    for first in (0..count).step_by(BLOCK) {
        let (src, dst) = (&sums[first * channels..], &mut lines[first..]);
        let strip = Strip { src, row_stride: channels, product: None, scale: None, dst, line_stride, stream: false };
        transpose_strip(isa, strip, steps);
    }
    for (channel, line) in lines.chunks_exact(line_stride).take(channels).enumerate() {
        T::narrow(isa, &line[..count], &mut tile.row(channel)[at..at + count]);
    }
}
