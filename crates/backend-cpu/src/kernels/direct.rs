//! Convolutions that no other family takes: channels-first images, three spatial axes, weights that are computed.

use regraft_backend::{BackendError, Candidate, DataError, NodeSpec, OperandType};
use regraft_ir::{
    Op, TensorType,
    ops::{Activation, Conv, SpatialLayout},
};

use super::{
    CpuKernel, Cx, Family,
    conv::windows_of,
    support::{Seen, Types, Why, expect_plain, never_strided, operand, plain, unsupported},
};
use crate::{
    Isa, Scratch,
    gemm::Window3,
    nn::direct::{DirectArgs, DirectShape, direct},
    simd::with_floats_mut,
};

const PIXELS: &str = "conv.direct";

pub(super) const FAMILY: Family = Family { ids: &[PIXELS], candidates, reads_strided: never_strided, prepare };

/// Channels-first images of floats.
fn accept<'a>(node: &Seen<'a>) -> Result<&'a Conv, Why> {
    match node.op {
        Op::Conv(op) if op.layout == SpatialLayout::Nchw => node.all_floats().map(|()| op),
        _ => Err(Why("it is not a convolution of channels-first images")),
    }
}

fn candidates(_: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    plain(accept(&Seen::of_types(op, inputs)).map(|_| PIXELS))
}

struct Prepared {
    cx: Cx,
    types: Types,
    window: Window3,
    channels: [usize; 2],
    groups: usize,
    activation: Activation,
    act_first: bool,
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    let op = accept(&Seen::of_node(node)).map_err(|why| unsupported(node, why.0))?;
    let (x, w, out) = (operand(node, 0)?.shape, operand(node, 1)?.shape, node.outputs[0].shape);
    expect_plain(node, 0..4)?;
    let types = Types::expect(node, 0..4)?;
    let window = windows_of(op, x, &w[2..], out);
    Ok(Box::new(Prepared {
        cx: cx.clone(),
        types,
        window,
        channels: [x[1], w[0]],
        groups: op.groups,
        activation: op.act,
        act_first: op.act_first,
    }))
}

impl CpuKernel for Prepared {
    fn scratch(&self) -> usize {
        let (k, rows) = (self.channels[0] / self.groups * self.window.taps(), self.channels[1] / self.groups);
        DirectShape { k, rows, weight: self.types.of(1) }.scratch(self.cx.isa, &self.cx.threads)
    }

    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], scratch: &mut [u8]) -> Result<(), DataError> {
        let args = DirectArgs {
            window: self.window,
            channels: self.channels,
            groups: self.groups,
            image: self.types.read(inputs, 0),
            weight: self.types.read(inputs, 1),
            bias: self.types.optional(inputs, 2),
            residual: self.types.optional(inputs, 3),
            activation: self.activation,
            act_before_residual: self.act_first,
        };
        with_floats_mut!(self.types.out(), &mut *outputs[0], out => {
            if !out.is_empty() {
                direct(&self.cx.threads, self.cx.isa, &args, out, &mut Scratch::new(scratch));
            }
        });
        Ok(())
    }
}
