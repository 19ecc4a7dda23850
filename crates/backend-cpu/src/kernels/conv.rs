//! Convolutions of channels-last images as matrix products, the weight packed ahead.
//!
//! A pixel's window is a row of the left matrix, found through offsets (`conv.panels`); a 1×1 window at stride 1 is the
//! pixel itself. Or windows are written out first (`conv.im2col`), which pays where channels are so few that a tap is too short
//! for the micro-kernel. The weight's rows run over `(ky, kx, channel)` either way.

use regraft_backend::{BackendError, Candidate, DataError, KernelId, NodeSpec, OperandType, WeightLayout};
use regraft_ir::{
    Op, TensorType,
    ops::{Conv, Permute, Reshape, SpatialLayout},
};
use regraft_tensor::Dim;

use super::{
    CpuKernel, Cx, Family,
    support::{
        Types, all_floats, elements, elements_mut, expect_panels, expect_plain, never_strided, operand, unsupported,
        with_size,
    },
};
use crate::{
    Isa, Scratch,
    format::Panels,
    gemm::{Conv2d, Epilogue, GemmArgs, GemmShape, Residual, Rows, conv2d_offsets, gemm, panel_widths_of},
    nn::im2col::im2col,
    scratch::bytes_of,
    simd::{Float, FloatType, Floats, with_floats_mut},
};

const PANELS: &str = "conv.panels";
const IM2COL: &str = "conv.im2col";

/// Below this many channels windows are written out unless tuning says otherwise.
const FEW_CHANNELS: usize = 8;

/// Pixels that one product should at least have; small images are taken together.
const PIXELS: usize = 512;

pub(super) const FAMILY: Family = Family { ids: &[PANELS, IM2COL], candidates, reads_strided: never_strided, prepare };

fn candidates(isa: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    let Op::Conv(op) = op else { return Vec::new() };
    let (Some(x), Some(w)) = (inputs[0], inputs[1]) else { return Vec::new() };
    let Some(weight) = w.ty.sizes() else { return Vec::new() };
    let images = op.layout == SpatialLayout::Nhwc && matches!(x.ty.rank(), 3 | 4);
    let Some(ty) = FloatType::of(w.ty.dtype).filter(|_| images && w.known && all_floats(inputs)) else {
        return Vec::new();
    };
    let taps: usize = weight[2..].iter().product();
    let kernels: &[&str] = match op.groups == 1 && taps > 1 {
        false => &[PANELS],
        true if weight[1] < FEW_CHANNELS => &[IM2COL, PANELS],
        true => &[PANELS, IM2COL],
    };
    let packed = |kernel: &str, nr| {
        let (prepare, format) = (matrix_of(&weight, op.groups), Panels { ty, nr }.id());
        Candidate { kernel: KernelId::new(kernel), weights: vec![WeightLayout { operand: 1, prepare, format }] }
    };
    kernels.iter().flat_map(|kernel| panel_widths_of(isa, ty).map(|nr| packed(kernel, nr))).collect()
}

/// The ops that make `[groups?, taps·channels, out/groups]` of a weight `[out, channels, kernel...]`.
fn matrix_of(weight: &[usize], groups: usize) -> Vec<Op> {
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

/// The geometry of a convolution; one-dimensional images are one row high.
pub(super) fn geometry(op: &Conv, x: &[usize], kernel: &[usize], out: &[usize]) -> Conv2d {
    let pair = |values: &[usize], unit: usize| match *values {
        [w] => [unit, w],
        [h, w, ..] => [h, w],
        [] => [unit, unit],
    };
    Conv2d {
        batch: x[0],
        input: pair(op.layout.spatial(x), 1),
        output: pair(op.layout.spatial(out), 1),
        kernel: pair(kernel, 1),
        stride: pair(&op.stride, 1),
        dilation: pair(&op.dilation, 1),
        padding: pair(&op.padding, 0),
    }
}

/// How the rows of the left matrix are found.
enum Windows {
    /// Each pixel is its own row.
    Pixels,
    /// Offsets for as many images as one product takes.
    Offsets { images: usize, offsets: Vec<u32> },
    /// Written out.
    Columns,
}

struct Prepared {
    cx: Cx,
    op: Conv,
    geometry: Conv2d,
    /// Channels of the input and the output, all groups.
    channels: (usize, usize),
    types: Types,
    /// Elements of one group's panels.
    panels: usize,
    /// Columns of a panel.
    nr: usize,
    windows: Windows,
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    let Op::Conv(op) = node.op else { return Err(unsupported(node, "it is not a convolution")) };
    let (x, w, out) = (operand(node, 0)?, operand(node, 1)?, node.outputs[0].shape);
    if op.layout != SpatialLayout::Nhwc || !matches!(x.shape.len(), 3 | 4) {
        return Err(unsupported(node, "images must be channels-last"));
    }
    let geometry = geometry(op, x.shape, &w.shape[2..], out);
    let (channels, columns) = (w.shape[1] * op.groups, w.shape[0] / op.groups);
    let k = geometry.taps() * w.shape[1];
    let matrix = if op.groups == 1 { vec![k, columns] } else { vec![op.groups, k, columns] };
    let format = expect_panels(node, cx.isa, 1, &matrix)?;
    expect_plain(node, [0, 2, 3])?;
    let types = Types::expect(node, 0..4)?;
    let (nr, panels) = (format.nr, format.matrix_bytes(k, columns) / format.ty.size());
    let windows = if node.kernel.0 == IM2COL {
        if op.groups != 1 {
            return Err(unsupported(node, "windows of groups are not written out"));
        }
        Windows::Columns
    } else {
        windows(&geometry, channels).ok_or_else(|| unsupported(node, "the image is too large"))?
    };
    let channels = (channels, w.shape[0]);
    Ok(Box::new(Prepared { cx: cx.clone(), op: op.clone(), geometry, channels, types, panels, nr, windows }))
}

fn windows(geometry: &Conv2d, channels: usize) -> Option<Windows> {
    let one = |pair: [usize; 2]| pair == [1, 1];
    if one(geometry.kernel) && one(geometry.stride) && geometry.padding == [0, 0] {
        return Some(Windows::Pixels);
    }
    let pixels = geometry.output[0] * geometry.output[1];
    let images = PIXELS.div_ceil(pixels.max(1)).clamp(1, geometry.batch.max(1));
    let part = Conv2d { batch: images, ..*geometry };
    let floats = images.checked_mul(part.input[0])?.checked_mul(part.input[1])?.checked_mul(channels)?;
    if floats >= Rows::ZERO as usize {
        return None;
    }
    let mut offsets = vec![0; part.pixels() * part.taps()];
    conv2d_offsets(&part, channels, &mut offsets);
    Some(Windows::Offsets { images, offsets })
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
    /// The shape of one group's product of `m` pixels.
    fn shape(&self, m: usize, taps: usize, k_tap: usize) -> GemmShape {
        let (a, b, c) = (self.types.of(0), self.types.of(1), self.types.out());
        GemmShape { m, n: self.channels.1 / self.op.groups, k_tap, taps, nr: self.nr, a, b, c }
    }

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

    /// One image, and the elements of a window in it.
    fn one_image(&self) -> (Conv2d, usize) {
        let one = Conv2d { batch: 1, ..self.geometry };
        (one, one.taps() * self.channels.0)
    }

    /// Bytes of one image's windows written out.
    fn columns(&self) -> usize {
        let (one, k) = self.one_image();
        one.pixels() * k * self.types.of(0).size()
    }

    /// Windows written out, image by image.
    fn multiply_columns<C: Float>(&self, x: &[u8], inputs: &[Option<&[u8]>], out: &mut [C], scratch: &mut Scratch<'_>) {
        let ((one, k), ty) = (self.one_image(), self.types.of(0));
        let image = one.input[0] * one.input[1] * self.channels.0;
        let columns = scratch.take::<u8>(self.columns());
        for i in 0..self.geometry.batch {
            let x = &x[i * image * ty.size()..][..image * ty.size()];
            with_size!(ty.size(), T => {
                let (x, columns) = (elements::<T>(x), elements_mut(columns));
                im2col(&self.cx.threads, &one, self.channels.0, x, k, columns);
            });
            let part = Part {
                m: one.pixels(),
                first: i * one.pixels(),
                a: Floats::of_bytes(ty, columns),
                rows: Rows::Strided { lda: k },
                taps: 1,
                k_tap: k,
            };
            self.multiply(&part, inputs, out, scratch);
        }
    }

    fn compute<C: Float>(&self, inputs: &[Option<&[u8]>], out: &mut [C], scratch: &mut Scratch<'_>) {
        let geometry = &self.geometry;
        let (channels, k_tap) = (self.channels.0, self.channels.0 / self.op.groups);
        let image = geometry.input[0] * geometry.input[1] * channels;
        let x = self.types.read(inputs, 0).first(geometry.batch * image);
        match &self.windows {
            Windows::Pixels => {
                let rows = Rows::Strided { lda: channels };
                let part = Part { m: geometry.pixels(), first: 0, a: x, rows, taps: 1, k_tap };
                self.multiply(&part, inputs, out, scratch);
            }
            Windows::Offsets { images, offsets } => {
                let pixels = geometry.output[0] * geometry.output[1];
                for first in (0..geometry.batch).step_by(*images) {
                    let count = (*images).min(geometry.batch - first);
                    let part = Part {
                        m: count * pixels,
                        first: first * pixels,
                        a: x.from(first * image).first(count * image),
                        rows: Rows::Indirect { offsets: &offsets[..count * pixels * geometry.taps()] },
                        taps: geometry.taps(),
                        k_tap,
                    };
                    self.multiply(&part, inputs, out, scratch);
                }
            }
            Windows::Columns => self.multiply_columns(x.bytes(), inputs, out, scratch),
        }
    }
}

impl CpuKernel for Prepared {
    fn scratch(&self) -> usize {
        let (taps, k_tap) = (self.geometry.taps(), self.channels.0 / self.op.groups);
        let product = |m, taps, k_tap| self.shape(m, taps, k_tap).scratch(self.cx.isa, &self.cx.threads);
        match &self.windows {
            Windows::Pixels => product(self.geometry.pixels(), 1, k_tap),
            Windows::Offsets { images, .. } => {
                // A last part of fewer images has fewer rows, and so more of them may share a task's run of `k`.
                let pixels = self.geometry.output[0] * self.geometry.output[1];
                let rest = self.geometry.batch % images;
                product(images * pixels, taps, k_tap).max(product(rest * pixels, taps, k_tap))
            }
            Windows::Columns => {
                let (one, k) = self.one_image();
                bytes_of::<u8>(self.columns()) + product(one.pixels(), 1, k)
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
