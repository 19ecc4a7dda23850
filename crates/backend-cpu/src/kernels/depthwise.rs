//! Convolutions with one channel a group, over channels-last images.

use regraft_backend::{BackendError, Candidate, DataError, FormatId, KernelId, NodeSpec, OperandType, WeightLayout};
use regraft_ir::{
    Op, TensorType,
    ops::{Conv, Permute, Reshape, SpatialLayout},
};
use regraft_tensor::Dim;

use super::{
    CpuKernel, Cx, Family,
    conv::windows_of,
    support::{Seen, Types, Why, expect_packed, expect_plain, never_strided, operand, unsupported},
};
use crate::{
    Isa, Scratch,
    format::Panels,
    gemm::Window3,
    nn::depthwise::{DepthwiseArgs, Plan, depthwise, depthwise_scratch, plan, tap_stride},
    pack::panel_bytes,
    simd::{FloatType, with_floats_mut},
};

const TAPS: &str = "conv.depthwise";

pub(super) const FAMILY: Family = Family { ids: &[TAPS], candidates, reads_strided: never_strided, prepare };

/// A depthwise convolution.
struct Spec<'a> {
    op: &'a Conv,
    ty: FloatType,
    /// Sizes of the weight.
    weight: Vec<usize>,
}

/// Channels-last images of floats; each channel of the result comes of one channel of its own, by a weight that can be packed
/// ahead.
fn accept<'a>(node: &Seen<'a>) -> Result<Spec<'a>, Why> {
    let Op::Conv(op) = node.op else { return Err(Why("it is not a convolution")) };
    if op.layout != SpatialLayout::Nhwc {
        return Err(Why("images must be channels-last"));
    }
    if node.has(3) {
        return Err(Why("nothing can be added to its result"));
    }
    node.all_floats()?;
    let (ty, weight) = node.weight(1)?;
    if weight[1] != 1 || op.groups != weight[0] {
        return Err(Why("it is not depthwise"));
    }
    Ok(Spec { op, ty, weight })
}

fn candidates(_: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    let Ok(spec) = accept(&Seen::of_types(op, inputs)) else { return Vec::new() };
    let (prepare, format) = (taps_of(&spec.weight), format(spec.ty, spec.weight[0]));
    vec![Candidate { kernel: KernelId::new(TAPS), weights: vec![WeightLayout { operand: 1, prepare, format }] }]
}

/// The ops that make `[taps, channels]` of a weight `[channels, 1, kernel...]`.
pub(super) fn taps_of(weight: &[usize]) -> Vec<Op> {
    let (channels, taps) = (weight[0], weight[2..].iter().product::<usize>());
    vec![Reshape { shape: vec![Dim::from(channels), Dim::from(taps)] }.into(), Permute { perm: vec![1, 0] }.into()]
}

/// One panel: all channels of a tap side by side, padded to whole vectors.
pub(super) fn format(ty: FloatType, channels: usize) -> FormatId {
    Panels { ty, nr: tap_stride(channels) }.id()
}

struct Prepared {
    cx: Cx,
    op: Conv,
    types: Types,
    window: Window3,
    plan: Plan,
    channels: usize,
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    let Spec { op, ty, weight } = accept(&Seen::of_node(node)).map_err(|why| unsupported(node, why.0))?;
    let (channels, taps) = (weight[0], weight[2..].iter().product());
    expect_packed(node, 1, &format(ty, channels), &[taps, channels])?;
    expect_plain(node, [0, 2])?;
    let types = Types::expect(node, 0..3)?;
    let window = windows_of(op, operand(node, 0)?.shape, &weight[2..], node.outputs[0].shape);
    let plan = plan(&window, channels, types.of(0));
    Ok(Box::new(Prepared { cx: cx.clone(), op: op.clone(), types, window, plan, channels }))
}

impl CpuKernel for Prepared {
    fn scratch(&self) -> usize {
        depthwise_scratch(&self.cx.threads, &self.window, self.channels, [self.types.of(0), self.types.out()])
    }

    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], scratch: &mut [u8]) -> Result<(), DataError> {
        let (window, channels, types) = (self.window, self.channels, &self.types);
        let panel = panel_bytes(types.of(1), window.taps(), tap_stride(channels)) / types.of(1).size();
        let args = DepthwiseArgs {
            window,
            plan: &self.plan,
            channels,
            image: types.read(inputs, 0).first(window.batch * window.pixels_in() * channels),
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
