//! Convolutions with one channel a group, over channels-last images.

use regraft_backend::{BackendError, Candidate, DataError, FormatId, KernelId, NodeSpec, OperandType, WeightLayout};
use regraft_ir::{
    Op, TensorType,
    ops::{Conv, Permute, Reshape, SpatialLayout},
};
use regraft_tensor::Dim;

use super::{
    CpuKernel, Cx, Family,
    conv::geometry,
    support::{Types, all_floats, expect_packed, expect_plain, never_strided, operand, optional, unsupported},
};
use crate::{
    Isa, Scratch,
    format::Panels,
    gemm::Conv2d,
    nn::depthwise::{DepthwiseArgs, depthwise, depthwise_scratch, tap_stride},
    pack::panel_bytes,
    simd::{FloatType, with_floats_mut},
};

const TAPS: &str = "conv.depthwise";

pub(super) const FAMILY: Family = Family { ids: &[TAPS], candidates, reads_strided: never_strided, prepare };

/// Whether each channel of the result comes of one channel of its own.
fn is_depthwise(op: &Conv, weight: &[usize], rank: usize) -> bool {
    op.layout == SpatialLayout::Nhwc && matches!(rank, 3 | 4) && weight[1] == 1 && op.groups == weight[0]
}

fn candidates(_: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    let Op::Conv(op) = op else { return Vec::new() };
    let (Some(x), Some(w)) = (inputs[0], inputs[1]) else { return Vec::new() };
    let Some(weight) = w.ty.sizes() else { return Vec::new() };
    let residual = inputs.get(3).copied().flatten().is_some();
    if !w.known || residual || !all_floats(inputs) || !is_depthwise(op, &weight, x.ty.rank()) {
        return Vec::new();
    }
    let Some(ty) = FloatType::of(w.ty.dtype) else { return Vec::new() };
    let layout = WeightLayout { operand: 1, prepare: taps_of(&weight), format: format(ty, weight[0]) };
    vec![Candidate { kernel: KernelId::new(TAPS), weights: vec![layout] }]
}

/// The ops that make `[taps, channels]` of a weight `[channels, 1, kernel...]`.
fn taps_of(weight: &[usize]) -> Vec<Op> {
    let (channels, taps) = (weight[0], weight[2..].iter().product::<usize>());
    vec![Reshape { shape: vec![Dim::from(channels), Dim::from(taps)] }.into(), Permute { perm: vec![1, 0] }.into()]
}

/// One panel: all channels of a tap side by side, padded to whole vectors.
fn format(ty: FloatType, channels: usize) -> FormatId {
    Panels { ty, nr: tap_stride(channels) }.id()
}

struct Prepared {
    cx: Cx,
    op: Conv,
    types: Types,
    geometry: Conv2d,
    channels: usize,
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    let Op::Conv(op) = node.op else { return Err(unsupported(node, "it is not a convolution")) };
    let (x, w) = (operand(node, 0)?, operand(node, 1)?);
    if !is_depthwise(op, w.shape, x.shape.len()) || optional(node, 3).is_some() {
        return Err(unsupported(node, "it is not depthwise"));
    }
    let (channels, taps) = (w.shape[0], w.shape[2..].iter().product());
    let types = Types::expect(node, 0..3)?;
    expect_packed(node, 1, &format(types.of(1), channels), &[taps, channels])?;
    expect_plain(node, [0, 2])?;
    let geometry = geometry(op, x.shape, &w.shape[2..], node.outputs[0].shape);
    Ok(Box::new(Prepared { cx: cx.clone(), op: op.clone(), types, geometry, channels }))
}

impl CpuKernel for Prepared {
    fn scratch(&self) -> usize {
        depthwise_scratch(&self.cx.threads, &self.geometry, self.channels, [self.types.of(0), self.types.out()])
    }

    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], scratch: &mut [u8]) -> Result<(), DataError> {
        let (conv, channels, types) = (self.geometry, self.channels, &self.types);
        let panel = panel_bytes(types.of(1), conv.taps(), tap_stride(channels)) / types.of(1).size();
        let args = DepthwiseArgs {
            conv,
            channels,
            image: types.read(inputs, 0).first(conv.batch * conv.input[0] * conv.input[1] * channels),
            weight: types.read(inputs, 1).first(panel),
            bias: types.optional(inputs, 2).map(|b| b.first(channels)),
            activation: self.op.act,
        };
        with_floats_mut!(types.out(), &mut *outputs[0], out => {
            if !out.is_empty() {
                depthwise(&self.cx.threads, self.cx.isa, &args, out, &mut Scratch::new(scratch));
            }
        });
        Ok(())
    }
}
