//! Softmax over one axis.

use regraft_backend::{BackendError, Candidate, DataError, NodeSpec, OperandType};
use regraft_ir::{Op, TensorType, ops::Softmax};

use super::{
    CpuKernel, Cx, Family,
    support::{Seen, Types, Why, around, expect_plain, never_strided, operand, plain, unsupported},
};
use crate::{
    Isa, Scratch,
    nn::softmax::{softmax, softmax_scratch},
    simd::with_floats_mut,
};

const AXIS: &str = "softmax.axis";

pub(super) const FAMILY: Family = Family { ids: &[AXIS], candidates, reads_strided: never_strided, prepare };

fn accept<'a>(node: &Seen<'a>) -> Result<&'a Softmax, Why> {
    match node.op {
        Op::Softmax(op) => node.all_floats().map(|()| op),
        _ => Err(Why("it is not a softmax")),
    }
}

fn candidates(_: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    plain(accept(&Seen::of_types(op, inputs)).map(|_| AXIS))
}

struct Prepared {
    cx: Cx,
    types: Types,
    sizes: [usize; 3],
    log: bool,
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    let op = accept(&Seen::of_node(node)).map_err(|why| unsupported(node, why.0))?;
    expect_plain(node, [0])?;
    let (types, sizes) = (Types::expect(node, 0..1)?, around(operand(node, 0)?.shape, op.axis));
    Ok(Box::new(Prepared { cx: cx.clone(), types, sizes, log: op.log }))
}

impl CpuKernel for Prepared {
    fn scratch(&self) -> usize {
        softmax_scratch(&self.cx.threads, self.sizes, self.types.out())
    }

    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], scratch: &mut [u8]) -> Result<(), DataError> {
        let x = self.types.read(inputs, 0).first(self.sizes.iter().product());
        with_floats_mut!(self.types.out(), &mut *outputs[0], out => {
            softmax(&self.cx.threads, self.cx.isa, self.log, x, self.sizes, out, &mut Scratch::new(scratch));
        });
        Ok(())
    }
}
