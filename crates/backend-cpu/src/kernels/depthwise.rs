//! Convolutions with one channel a group, over channels-last images.

use regraft_backend::{
    BackendError, Candidate, DataError, FormatId, KernelId, NodeSpec, Operand, OperandType, WeightLayout,
};
use regraft_ir::{
    Op, TensorType,
    ops::{Conv, Permute, Reshape, SpatialLayout},
};
use regraft_tensor::{DType, Dim};

use super::{
    CpuKernel, Cx, Family,
    conv::geometry,
    linear::activation,
    support::{
        all_are, elements, elements_mut, expect_f32, expect_packed, expect_plain, operand, optional, optional_f32,
        read, unsupported,
    },
};
use crate::{
    Isa,
    format::Panels,
    gemm::Conv2d,
    nn::depthwise::{DepthwiseArgs, depthwise, tap_stride},
};

const TAPS: &str = "conv.depthwise";

pub(super) const FAMILY: Family = Family { ids: &[TAPS], candidates, reads_strided, prepare };

/// Whether each channel of the result comes of one channel of its own.
fn is_depthwise(op: &Conv, weight: &[usize], rank: usize) -> bool {
    op.layout == SpatialLayout::Nhwc && matches!(rank, 3 | 4) && weight[1] == 1 && op.groups == weight[0]
}

fn candidates(_: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    let Op::Conv(op) = op else { return Vec::new() };
    let (Some(x), Some(w)) = (inputs[0], inputs[1]) else { return Vec::new() };
    let Some(weight) = w.ty.sizes() else { return Vec::new() };
    let residual = inputs.get(3).copied().flatten().is_some();
    if !w.known || residual || !all_are(inputs, DType::F32) || !is_depthwise(op, &weight, x.ty.rank()) {
        return Vec::new();
    }
    let layout = WeightLayout { operand: 1, prepare: taps_of(&weight), format: format(weight[0]) };
    vec![Candidate { kernel: KernelId::new(TAPS), weights: vec![layout] }]
}

/// The ops that make `[taps, channels]` of a weight `[channels, 1, kernel...]`.
fn taps_of(weight: &[usize]) -> Vec<Op> {
    let (channels, taps) = (weight[0], weight[2..].iter().product::<usize>());
    vec![Reshape { shape: vec![Dim::from(channels), Dim::from(taps)] }.into(), Permute { perm: vec![1, 0] }.into()]
}

/// One panel: all channels of a tap side by side, padded to whole vectors.
fn format(channels: usize) -> FormatId {
    Panels { nr: tap_stride(channels) }.id()
}

fn reads_strided(_: &Op, _: usize, _: &Operand<'_>) -> bool {
    false
}

struct Prepared {
    cx: Cx,
    op: Conv,
    geometry: Conv2d,
    channels: usize,
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    let Op::Conv(op) = node.op else { return Err(unsupported(node, "it is no convolution")) };
    let (x, w) = (operand(node, 0)?, operand(node, 1)?);
    if !is_depthwise(op, w.shape, x.shape.len()) || optional(node, 3).is_some() {
        return Err(unsupported(node, "it is not depthwise"));
    }
    let (channels, taps) = (w.shape[0], w.shape[2..].iter().product());
    expect_packed(node, 1, &format(channels), &[taps, channels])?;
    expect_plain(node, [0, 2])?;
    expect_f32(node, 0..3)?;
    let geometry = geometry(op, x.shape, &w.shape[2..], node.outputs[0].shape);
    Ok(Box::new(Prepared { cx: cx.clone(), op: op.clone(), geometry, channels }))
}

impl CpuKernel for Prepared {
    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], _: &mut [u8]) -> Result<(), DataError> {
        let (conv, channels) = (self.geometry, self.channels);
        let args = DepthwiseArgs {
            conv,
            channels,
            image: &elements(read(inputs, 0))[..conv.batch * conv.input[0] * conv.input[1] * channels],
            weight: &elements(read(inputs, 1))[..conv.taps() * tap_stride(channels)],
            bias: optional_f32(inputs, 2).map(|b| &b[..channels]),
            activation: activation(self.op.act),
        };
        let out = elements_mut(outputs[0]);
        if !out.is_empty() {
            depthwise(&self.cx.threads, self.cx.isa, &args, out);
        }
        Ok(())
    }
}
