//! Transposed convolutions.

use regraft_backend::{BackendError, Candidate, DataError, NodeSpec, OperandType};
use regraft_ir::{Op, TensorType, ops::ConvTranspose};

use super::{
    CpuKernel, Cx, Family,
    support::{Seen, Types, Why, expect_plain, never_strided, operand, plain, three, unsupported},
};
use crate::{
    Isa, Scratch,
    gemm::Window3,
    nn::transposed::{Transposed, TransposedArgs, transposed},
    simd::with_floats_mut,
};

const PHASES: &str = "conv_transpose.phases";

pub(super) const FAMILY: Family = Family { ids: &[PHASES], candidates, reads_strided: never_strided, prepare };

/// The most phases: each has lists of its own.
const MOST_PHASES: usize = 1 << 12;

/// Any of floats, with strides that a model has.
fn accept<'a>(node: &Seen<'a>) -> Result<&'a ConvTranspose, Why> {
    let Op::ConvTranspose(op) = node.op else { return Err(Why("it is not a transposed convolution")) };
    if op.stride.iter().fold(1, |phases: usize, stride| phases.saturating_mul(*stride)) > MOST_PHASES {
        return Err(Why("its strides are too large"));
    }
    node.all_floats().map(|()| op)
}

fn candidates(_: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    plain(accept(&Seen::of_types(op, inputs)).map(|_| PHASES))
}

struct Prepared {
    cx: Cx,
    types: Types,
    plan: Transposed,
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    let op = accept(&Seen::of_node(node)).map_err(|why| unsupported(node, why.0))?;
    expect_plain(node, 0..3)?;
    let types = Types::expect(node, 0..3)?;
    let (x, w, out) = (operand(node, 0)?.shape, operand(node, 1)?.shape, node.outputs[0].shape);
    let window = Window3 {
        batch: x[0],
        input: three(&x[2..], 1),
        output: three(&out[2..], 1),
        kernel: three(&w[2..], 1),
        stride: three(&op.stride, 1),
        dilation: three(&op.dilation, 1),
        padding: three(&op.padding, 0),
    };
    let plan = Transposed::new(window, [x[1], out[1]], op.groups);
    Ok(Box::new(Prepared { cx: cx.clone(), types, plan }))
}

impl CpuKernel for Prepared {
    fn scratch(&self) -> usize {
        self.plan.scratch(self.cx.isa, &self.cx.threads)
    }

    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], scratch: &mut [u8]) -> Result<(), DataError> {
        let (image, weight) = (self.types.read(inputs, 0), self.types.read(inputs, 1));
        let args = TransposedArgs { image, weight, bias: self.types.optional(inputs, 2) };
        with_floats_mut!(self.types.out(), &mut *outputs[0], out => {
            if !out.is_empty() {
                transposed(&self.cx.threads, self.cx.isa, &self.plan, &args, out, &mut Scratch::new(scratch));
            }
        });
        Ok(())
    }
}
