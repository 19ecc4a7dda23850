//! Softmax over the last axis.

use regraft_backend::{BackendError, Candidate, DataError, NodeSpec, Operand, OperandType};
use regraft_ir::{Op, TensorType};
use regraft_tensor::DType;

use super::{
    CpuKernel, Cx, Family,
    support::{all_are, elements, elements_mut, expect_f32, expect_plain, operand, read, unsupported},
};
use crate::{
    Isa,
    nn::softmax::{log_softmax, softmax},
};

const ROWS: &str = "softmax.rows";

pub(super) const FAMILY: Family = Family { ids: &[ROWS], candidates, reads_strided, prepare };

fn candidates(_: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], outputs: &[&TensorType]) -> Vec<Candidate> {
    match op {
        Op::Softmax(op) if all_are(inputs, DType::F32) && op.axis + 1 == outputs[0].rank() => {
            vec![Candidate::plain(ROWS)]
        }
        _ => Vec::new(),
    }
}

fn reads_strided(_: &Op, _: usize, _: &Operand<'_>) -> bool {
    false
}

struct Prepared {
    cx: Cx,
    cols: usize,
    log: bool,
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    let shape = operand(node, 0)?.shape;
    expect_plain(node, [0])?;
    expect_f32(node, [0])?;
    match node.op {
        Op::Softmax(op) if op.axis + 1 == shape.len() => {
            Ok(Box::new(Prepared { cx: cx.clone(), cols: shape[op.axis], log: op.log }))
        }
        _ => Err(unsupported(node, "it is no softmax over the last axis")),
    }
}

impl CpuKernel for Prepared {
    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], _: &mut [u8]) -> Result<(), DataError> {
        let out = elements_mut::<f32>(outputs[0]);
        let x = &elements(read(inputs, 0))[..out.len()];
        let rows = if self.log { log_softmax } else { softmax };
        rows(&self.cx.threads, self.cx.isa, x, self.cols, out);
        Ok(())
    }
}
