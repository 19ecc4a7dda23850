//! Convolutions of channels-last images as matrix products, the weight packed ahead.
//!
//! A pixel's window is a row of the left matrix, found through offsets (`conv.panels`); a 1×1 window at stride 1 is the
//! pixel itself. Or windows are written out first (`conv.im2col`), which pays where channels are so few that a tap is too short
//! for the micro-kernel. The weight's rows run over `(ky, kx, channel)` either way.

use regraft_backend::{BackendError, Candidate, DataError, KernelId, NodeSpec, Operand, OperandType, WeightLayout};
use regraft_ir::{
    Op, TensorType,
    ops::{Conv, Permute, Reshape, SpatialLayout},
};
use regraft_tensor::{DType, Dim};

use super::{
    CpuKernel, Cx, Family,
    linear::activation,
    support::{
        all_are, elements, elements_mut, expect_f32, expect_panels, expect_plain, operand, optional_f32, read,
        unsupported,
    },
};
use crate::{
    Isa,
    format::Panels,
    gemm::{Conv2d, Epilogue, GemmArgs, Residual, Rows, conv2d_offsets, gemm, panel_widths},
    nn::im2col::im2col,
};

const PANELS: &str = "conv.panels";
const IM2COL: &str = "conv.im2col";

/// Below this many channels windows are written out unless tuning says otherwise.
const FEW_CHANNELS: usize = 8;

/// Pixels that one product should at least have; small images are taken together.
const PIXELS: usize = 512;

pub(super) const FAMILY: Family = Family { ids: &[PANELS, IM2COL], candidates, reads_strided, prepare };

fn candidates(isa: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    let Op::Conv(op) = op else { return Vec::new() };
    let (Some(x), Some(w)) = (inputs[0], inputs[1]) else { return Vec::new() };
    let Some(weight) = w.ty.sizes() else { return Vec::new() };
    let images = op.layout == SpatialLayout::Nhwc && matches!(x.ty.rank(), 3 | 4);
    if !images || !w.known || !all_are(inputs, DType::F32) {
        return Vec::new();
    }
    let taps: usize = weight[2..].iter().product();
    let kernels: &[&str] = match op.groups == 1 && taps > 1 {
        false => &[PANELS],
        true if weight[1] < FEW_CHANNELS => &[IM2COL, PANELS],
        true => &[PANELS, IM2COL],
    };
    let packed = |kernel: &str, nr| {
        let (prepare, format) = (matrix_of(&weight, op.groups), Panels { nr }.id());
        Candidate { kernel: KernelId::new(kernel), weights: vec![WeightLayout { operand: 1, prepare, format }] }
    };
    kernels.iter().flat_map(|kernel| panel_widths(isa).map(|nr| packed(kernel, nr))).collect()
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

fn reads_strided(_: &Op, _: usize, _: &Operand<'_>) -> bool {
    false
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
    /// Floats of one group's panels.
    panels: usize,
    /// Columns of a panel.
    nr: usize,
    windows: Windows,
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    let Op::Conv(op) = node.op else { return Err(unsupported(node, "it is no convolution")) };
    let (x, w, out) = (operand(node, 0)?, operand(node, 1)?, node.outputs[0].shape);
    if op.layout != SpatialLayout::Nhwc || !matches!(x.shape.len(), 3 | 4) {
        return Err(unsupported(node, "images must be channels-last"));
    }
    let geometry = geometry(op, x.shape, &w.shape[2..], out);
    let (channels, columns) = (w.shape[1] * op.groups, w.shape[0] / op.groups);
    let k = geometry.taps() * w.shape[1];
    let matrix = if op.groups == 1 { vec![k, columns] } else { vec![op.groups, k, columns] };
    let nr = expect_panels(node, cx.isa, 1, &matrix)?;
    expect_plain(node, [0, 2, 3])?;
    expect_f32(node, 0..4)?;
    let panels = crate::pack::panels_len(k, columns, nr);
    let windows = if node.kernel.0 == IM2COL {
        if op.groups != 1 {
            return Err(unsupported(node, "windows of groups are not written out"));
        }
        Windows::Columns
    } else {
        windows(&geometry, channels).ok_or_else(|| unsupported(node, "the image is too large"))?
    };
    let channels = (channels, w.shape[0]);
    Ok(Box::new(Prepared { cx: cx.clone(), op: op.clone(), geometry, channels, panels, nr, windows }))
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
    a: &'a [f32],
    rows: Rows<'a>,
    taps: usize,
    k_tap: usize,
}

impl Prepared {
    fn multiply(&self, part: &Part<'_>, inputs: &[Option<&[u8]>], out: &mut [f32]) {
        let (channels, columns) = self.channels;
        let (group_in, group_out) = (channels / self.op.groups, columns / self.op.groups);
        let (bias, residual) = (optional_f32(inputs, 2), optional_f32(inputs, 3));
        let start = part.first * columns;
        for group in 0..self.op.groups {
            let first = group * group_out;
            let args = GemmArgs {
                m: part.m,
                n: group_out,
                k_tap: part.k_tap,
                taps: part.taps,
                a: &part.a[group * group_in..],
                rows: part.rows,
                b: &elements(read(inputs, 1))[group * self.panels..][..self.panels],
                nr: self.nr,
                c: &mut out[start + first..],
                ldc: columns,
                epilogue: Epilogue {
                    bias: bias.map(|b| &b[first..][..group_out]),
                    residual: residual.map(|data| Residual { data: &data[start + first..], ld: columns }),
                    activation: activation(self.op.act),
                    act_before_residual: self.op.act_first,
                },
            };
            gemm(&self.cx.threads, self.cx.isa, args);
        }
    }

    /// One image, and the elements of a window in it.
    fn one_image(&self) -> (Conv2d, usize) {
        let one = Conv2d { batch: 1, ..self.geometry };
        (one, one.taps() * self.channels.0)
    }

    /// Windows written out into `columns`, image by image.
    fn multiply_columns(&self, x: &[f32], inputs: &[Option<&[u8]>], columns: &mut [f32], out: &mut [f32]) {
        let (one, k) = self.one_image();
        let image = one.input[0] * one.input[1] * self.channels.0;
        for i in 0..self.geometry.batch {
            im2col(&self.cx.threads, &one, self.channels.0, &x[i * image..][..image], k, columns);
            let part = Part {
                m: one.pixels(),
                first: i * one.pixels(),
                a: columns,
                rows: Rows::Strided { lda: k },
                taps: 1,
                k_tap: k,
            };
            self.multiply(&part, inputs, out);
        }
    }
}

impl CpuKernel for Prepared {
    fn scratch(&self) -> usize {
        match self.windows {
            Windows::Columns => {
                let (one, k) = self.one_image();
                4 * one.pixels() * k
            }
            Windows::Pixels | Windows::Offsets { .. } => 0,
        }
    }

    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], scratch: &mut [u8]) -> Result<(), DataError> {
        let geometry = &self.geometry;
        let (channels, k_tap) = (self.channels.0, self.channels.0 / self.op.groups);
        let image = geometry.input[0] * geometry.input[1] * channels;
        let x = &elements::<f32>(read(inputs, 0))[..geometry.batch * image];
        let out = elements_mut::<f32>(outputs[0]);
        if out.is_empty() {
            return Ok(());
        }
        match &self.windows {
            Windows::Pixels => {
                let rows = Rows::Strided { lda: channels };
                let part = Part { m: geometry.pixels(), first: 0, a: x, rows, taps: 1, k_tap };
                self.multiply(&part, inputs, out);
            }
            Windows::Offsets { images, offsets } => {
                let pixels = geometry.output[0] * geometry.output[1];
                for first in (0..geometry.batch).step_by(*images) {
                    let count = (*images).min(geometry.batch - first);
                    let part = Part {
                        m: count * pixels,
                        first: first * pixels,
                        a: &x[first * image..][..count * image],
                        rows: Rows::Indirect { offsets: &offsets[..count * pixels * geometry.taps()] },
                        taps: geometry.taps(),
                        k_tap,
                    };
                    self.multiply(&part, inputs, out);
                }
            }
            Windows::Columns => self.multiply_columns(x, inputs, elements_mut(scratch), out),
        }
        Ok(())
    }
}
