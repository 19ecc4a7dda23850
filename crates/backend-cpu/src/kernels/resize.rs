//! Resampling with blending.

use regraft_backend::{BackendError, Candidate, DataError, NodeSpec, OperandType};
use regraft_ir::{
    Op, TensorType,
    ops::{Resize, ResizeMode, SpatialLayout},
};

use super::{
    CpuKernel, Cx, Family,
    support::{Seen, Types, Why, expect_plain, never_strided, operand, plain, unsupported},
};
use crate::{
    Isa, Scratch,
    nn::resize::{Blend, Tap, blend},
    simd::with_floats_mut,
};

const BLEND: &str = "resize.blend";

pub(super) const FAMILY: Family = Family { ids: &[BLEND], candidates, reads_strided: never_strided, prepare };

fn accept<'a>(node: &Seen<'a>) -> Result<&'a Resize, Why> {
    match node.op {
        Op::Resize(op) if op.mode != ResizeMode::Nearest => node.all_floats().map(|()| op),
        _ => Err(Why("it does not blend")),
    }
}

fn candidates(_: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    plain(accept(&Seen::of_types(op, inputs)).map(|_| BLEND))
}

struct Prepared {
    cx: Cx,
    types: Types,
    plan: Blend,
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    let op = accept(&Seen::of_node(node)).map_err(|why| unsupported(node, why.0))?;
    expect_plain(node, [0])?;
    let (x, types) = (operand(node, 0)?, Types::expect(node, 0..1)?);
    let (input, output) = (op.layout.spatial(x.shape), op.layout.spatial(node.outputs[0].shape));
    let channels = x.shape[op.layout.channel_axis(x.shape.len())];
    let (batch, inner) = match op.layout {
        SpatialLayout::Nchw => (x.shape[0] * channels, 1),
        SpatialLayout::Nhwc => (x.shape[0], channels),
    };
    let taps = |(i, (&from, &to)): (usize, (&usize, &usize))| {
        let tap = |(place, weight)| Tap { place, weight: weight as f32 };
        op.taps(i, from, to, x.dtype).into_iter().map(tap).collect()
    };
    let taps = input.iter().zip(output).enumerate().map(taps).collect();
    let plan = Blend { batch, input: input.to_vec(), per: op.mode.taps(), taps, inner };
    Ok(Box::new(Prepared { cx: cx.clone(), types, plan }))
}

impl CpuKernel for Prepared {
    fn scratch(&self) -> usize {
        self.plan.scratch(&self.cx.threads, self.types.out())
    }

    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], scratch: &mut [u8]) -> Result<(), DataError> {
        let x = self.types.read(inputs, 0);
        with_floats_mut!(self.types.out(), &mut *outputs[0], out => {
            blend(&self.cx.threads, self.cx.isa, &self.plan, x, out, &mut Scratch::new(scratch));
        });
        Ok(())
    }
}
