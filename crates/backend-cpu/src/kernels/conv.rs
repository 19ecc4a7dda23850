//! Convolutions of channels-last images as matrix products, the weight packed ahead.
//!
//! A pixel's window is a row of the left matrix, found through offsets (`conv.panels`); a window of one pixel at stride 1 is the
//! pixel itself. Or lines of the images are copied with their padding (`conv.lines`), so that all taps along a line are one, which
//! pays where channels are so few that a tap is too short for the micro-kernel. The weight's rows run over `(kz, ky, kx, channel)`
//! either way.

use regraft_backend::{BackendError, Candidate, DataError, KernelId, NodeSpec, OperandType, WeightLayout};
use regraft_ir::{
    Op, TensorType,
    ops::{Conv, Permute, Reshape, SpatialLayout},
};
use regraft_tensor::Dim;

use super::{
    CpuKernel, Cx, Family,
    support::{
        Seen, Types, Why, elements, elements_mut, expect_panels, expect_plain, never_strided, operand, three,
        unsupported, with_size,
    },
};
use crate::{
    Isa, Scratch,
    format::Panels,
    gemm::{ConvPart, ConvRows, Epilogue, GemmArgs, GemmShape, Residual, Rows, Window3, gemm, panel_widths_for},
    nn::lines::{Lines, over_lines, pad_lines},
    scratch::bytes_of,
    simd::{Float, FloatType, Floats, with_floats_mut},
};

const PANELS: &str = "conv.panels";
const LINES: &str = "conv.lines";
/// What earlier engine files name instead of `conv.lines`, or of `conv.panels` where lines cannot be copied: it has the same slots.
const IM2COL: &str = "conv.im2col";

/// Below this many channels lines are copied unless tuning says otherwise.
const FEW_CHANNELS: usize = 8;

pub(super) const FAMILY: Family = Family { ids: &[PANELS, IM2COL], candidates, reads_strided: never_strided, prepare };

/// Lines are copied wherever their elements are: images that come channels-first are not put in order before that.
pub(super) const OF_LINES: Family =
    Family { ids: &[LINES], candidates: |_, _, _, _| Vec::new(), reads_strided: |_, index, _| index == 0, prepare };

/// A convolution that is a product over panels.
struct Spec<'a> {
    op: &'a Conv,
    ty: FloatType,
    /// Sizes of the weight.
    weight: Vec<usize>,
}

impl Spec<'_> {
    /// Whether the taps along a line lie side by side in the image, and are several.
    fn has_lines(&self) -> bool {
        let [.., width] = three(&self.weight[2..], 1);
        self.op.groups == 1 && width > 1 && self.op.dilation.last() == Some(&1)
    }
}

/// Channels-last images of floats, with a weight that can be packed ahead.
fn accept<'a>(node: &Seen<'a>) -> Result<Spec<'a>, Why> {
    let Op::Conv(op) = node.op else { return Err(Why("it is not a convolution")) };
    if op.layout != SpatialLayout::Nhwc {
        return Err(Why("images must be channels-last"));
    }
    node.all_floats()?;
    let (ty, weight) = node.weight(1)?;
    Ok(Spec { op, ty, weight })
}

fn candidates(isa: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    let Ok(spec) = accept(&Seen::of_types(op, inputs)) else { return Vec::new() };
    let kernels: &[&str] = match spec.has_lines() {
        false => &[PANELS],
        true if spec.weight[1] < FEW_CHANNELS => &[LINES, PANELS],
        true => &[PANELS, LINES],
    };
    let packed = |kernel: &str, nr| {
        let (prepare, format) = (matrix_of(&spec.weight, spec.op.groups), Panels { ty: spec.ty, nr }.id());
        Candidate { kernel: KernelId::new(kernel), weights: vec![WeightLayout { operand: 1, prepare, format }] }
    };
    let widths = panel_widths_for(isa, spec.ty, spec.weight[0] / spec.op.groups);
    kernels.iter().flat_map(|kernel| widths.iter().map(|nr| packed(kernel, *nr))).collect()
}

/// The ops that make `[groups?, taps·channels, out/groups]` of a weight `[out, channels, kernel...]`.
pub(super) fn matrix_of(weight: &[usize], groups: usize) -> Vec<Op> {
    let dims = |sizes: &[usize]| sizes.iter().map(|&d| Dim::from(d)).collect::<Vec<_>>();
    let (out, channels, kernel) = (weight[0], weight[1], &weight[2..]);
    let k = channels * kernel.iter().product::<usize>();
    let spatial = kernel.len();
    if groups == 1 {
        let perm = (2..2 + spatial).chain([1, 0]).collect();
        return vec![Permute { perm }.into(), Reshape { shape: dims(&[k, out]) }.into()];
    }
    let mut split = vec![groups, out / groups, channels];
    split.extend(kernel);
    let perm = std::iter::once(0).chain(3..3 + spatial).chain([2, 1]).collect();
    vec![
        Reshape { shape: dims(&split) }.into(),
        Permute { perm }.into(),
        Reshape { shape: dims(&[groups, k, out / groups]) }.into(),
    ]
}

/// Where the windows of a convolution lie.
pub(super) fn windows_of(op: &Conv, x: &[usize], kernel: &[usize], out: &[usize]) -> Window3 {
    Window3 {
        batch: x[0],
        input: three(op.layout.spatial(x), 1),
        output: three(op.layout.spatial(out), 1),
        kernel: three(kernel, 1),
        stride: three(&op.stride, 1),
        dilation: three(&op.dilation, 1),
        padding: three(&op.padding, 0),
    }
}

/// How the rows of the left matrix are found.
enum Windows {
    /// Each pixel is its own row.
    Pixels,
    /// Through offsets into the images.
    Offsets(ConvRows),
    /// Through offsets into copies of lines.
    Lines(ConvRows),
}

impl Windows {
    fn new(window: &Window3, channels: usize, lines: bool) -> Option<Windows> {
        if lines {
            return ConvRows::new(&over_lines(window), channels).map(Windows::Lines);
        }
        if window.kernel == [1; 3] && window.stride == [1; 3] && window.padding == [0; 3] {
            return Some(Windows::Pixels);
        }
        ConvRows::new(window, channels).map(Windows::Offsets)
    }
}

struct Prepared {
    cx: Cx,
    op: Conv,
    window: Window3,
    /// Channels of the input and the output, all groups.
    channels: (usize, usize),
    types: Types,
    /// Elements of one group's panels.
    panels: usize,
    /// Columns of a panel.
    nr: usize,
    windows: Windows,
    /// Where lines of the images are.
    image: Lines,
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    let spec = accept(&Seen::of_node(node)).map_err(|why| unsupported(node, why.0))?;
    let (op, weight) = (spec.op, &spec.weight);
    let lines = node.kernel.0 == LINES || node.kernel.0 == IM2COL && spec.has_lines();
    if lines && !spec.has_lines() {
        return Err(unsupported(node, "its taps do not lie side by side"));
    }
    let x = operand(node, 0)?;
    let window = windows_of(op, x.shape, &weight[2..], node.outputs[0].shape);
    let (last, inner) = (x.strides.len() - 1, three(op.layout.spatial(x.strides), 0));
    let image = Lines {
        planes: [x.strides[0], inner[0]],
        depth: window.input[0],
        line: inner[1],
        height: window.input[1],
        pixel: inner[2],
        channel: x.strides[last],
        channels: x.shape[last],
    };
    let (channels, columns) = (weight[1] * op.groups, weight[0] / op.groups);
    let k = window.taps() * weight[1];
    let matrix = if op.groups == 1 { vec![k, columns] } else { vec![op.groups, k, columns] };
    let format = expect_panels(node, cx.isa, 1, &matrix)?;
    expect_plain(node, [0, 2, 3])?;
    let types = Types::expect(node, 0..4)?;
    let (nr, panels) = (format.nr, format.matrix_bytes(k, columns) / format.ty.size());
    let windows = Windows::new(&window, channels, lines).ok_or_else(|| unsupported(node, "the image is too large"))?;
    let channels = (channels, weight[0]);
    Ok(Box::new(Prepared { cx: cx.clone(), op: op.clone(), window, channels, types, panels, nr, windows, image }))
}

/// A product to be made: `m` pixels whose windows start in `a`.
struct Part<'a> {
    m: usize,
    /// First pixel of the result.
    first: usize,
    a: Floats<'a>,
    rows: Rows<'a>,
    taps: usize,
    k_tap: usize,
}

impl Prepared {
    fn multiply<C: Float>(&self, part: &Part<'_>, inputs: &[Option<&[u8]>], out: &mut [C], scratch: &mut Scratch<'_>) {
        let (channels, columns) = self.channels;
        let (group_in, group_out) = (channels / self.op.groups, columns / self.op.groups);
        let (bias, residual) = (self.types.optional(inputs, 2), self.types.optional(inputs, 3));
        let (b, start) = (self.types.read(inputs, 1), part.first * columns);
        for group in 0..self.op.groups {
            let first = group * group_out;
            let args = GemmArgs {
                m: part.m,
                n: group_out,
                k_tap: part.k_tap,
                taps: part.taps,
                a: part.a.from(group * group_in),
                rows: part.rows,
                b: b.from(group * self.panels).first(self.panels),
                nr: self.nr,
                c: &mut out[start + first..],
                ldc: columns,
                epilogue: Epilogue {
                    bias: bias.map(|b| b.from(first).first(group_out)),
                    residual: residual.map(|data| Residual { data: data.from(start + first), ld: columns }),
                    activation: self.op.act,
                    act_before_residual: self.op.act_first,
                },
            };
            gemm(&self.cx.threads, self.cx.isa, args, scratch);
        }
    }

    /// Elements of a line's copy.
    fn padded(&self) -> usize {
        over_lines(&self.window).input[2] * self.channels.0
    }

    /// Bytes of the copies of all lines that a product reads.
    fn copied(&self, part: &ConvPart) -> usize {
        part.reads.len() * self.window.input[1] * self.padded() * self.types.of(0).size()
    }

    /// Copies the lines that a product reads.
    fn copy_lines(&self, part: &ConvPart, x: Floats<'_>, copy: &mut [u8]) {
        let (before, padded) = (self.window.padding[2] * self.channels.0, self.padded());
        let (first, width) = (part.reads.start * self.window.input[1], self.window.input[2]);
        with_size!(self.types.of(0).size(), T => {
            let image = elements::<T>(x.bytes());
            pad_lines(&self.cx.threads, image, &self.image, first, width, before, padded, elements_mut(copy));
        });
    }

    fn part<'a>(&self, part: &ConvPart, a: Floats<'a>, rows: Rows<'a>, [taps, k_tap]: [usize; 2]) -> Part<'a> {
        let plane = self.window.output[1] * self.window.output[2];
        Part { m: part.planes.len() * plane, first: part.planes.start * plane, a, rows, taps, k_tap }
    }

    fn compute<C: Float>(&self, inputs: &[Option<&[u8]>], out: &mut [C], scratch: &mut Scratch<'_>) {
        let (window, channels) = (&self.window, self.channels.0);
        let x = self.types.read(inputs, 0);
        let in_order = || x.first(window.batch * window.pixels_in() * channels);
        match &self.windows {
            Windows::Pixels => {
                let (rows, k_tap) = (Rows::Strided { lda: channels }, channels / self.op.groups);
                let part = Part { m: window.pixels(), first: 0, a: in_order(), rows, taps: 1, k_tap };
                self.multiply(&part, inputs, out, scratch);
            }
            Windows::Offsets(rows) => {
                let read = window.input[1] * window.input[2] * channels;
                for p in rows.parts() {
                    let a = in_order().from(p.reads.start * read).first(p.reads.len() * read);
                    let part = self.part(p, a, rows.rows(p), [window.taps(), channels / self.op.groups]);
                    self.multiply(&part, inputs, out, scratch);
                }
            }
            Windows::Lines(rows) => {
                let (taps, k_tap) = (over_lines(window).taps(), window.kernel[2] * channels);
                let most = rows.parts().iter().map(|p| self.copied(p)).max().unwrap_or(0);
                let copy = scratch.take::<u8>(most);
                for p in rows.parts() {
                    let copy = &mut copy[..self.copied(p)];
                    self.copy_lines(p, x, copy);
                    let part = self.part(p, Floats::of_bytes(self.types.of(0), copy), rows.rows(p), [taps, k_tap]);
                    self.multiply(&part, inputs, out, scratch);
                }
            }
        }
    }
}

impl CpuKernel for Prepared {
    fn scratch(&self) -> usize {
        let (a, b, c) = (self.types.of(0), self.types.of(1), self.types.out());
        let product = |m, taps, k_tap| {
            let shape = GemmShape { m, n: self.channels.1 / self.op.groups, k_tap, taps, nr: self.nr, a, b, c };
            shape.scratch(self.cx.isa, &self.cx.threads)
        };
        let plane = self.window.output[1] * self.window.output[2];
        // A part of fewer pixels has fewer rows, and so more of them may share a task's run of `k`.
        let products = |rows: &ConvRows, taps, k_tap| {
            rows.parts().iter().map(|p| product(p.planes.len() * plane, taps, k_tap)).max().unwrap_or(0)
        };
        let channels = self.channels.0;
        match &self.windows {
            Windows::Pixels => product(self.window.pixels(), 1, channels / self.op.groups),
            Windows::Offsets(rows) => products(rows, self.window.taps(), channels / self.op.groups),
            Windows::Lines(rows) => {
                let copies = rows.parts().iter().map(|p| self.copied(p)).max().unwrap_or(0);
                let (taps, k_tap) = (over_lines(&self.window).taps(), self.window.kernel[2] * channels);
                bytes_of::<u8>(copies) + products(rows, taps, k_tap)
            }
        }
    }

    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], scratch: &mut [u8]) -> Result<(), DataError> {
        with_floats_mut!(self.types.out(), &mut *outputs[0], out => {
            if !out.is_empty() {
                self.compute(inputs, out, &mut Scratch::new(scratch));
            }
        });
        Ok(())
    }
}
