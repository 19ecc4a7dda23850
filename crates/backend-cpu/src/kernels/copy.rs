//! Joining values along an axis.

use regraft_backend::{BackendError, Candidate, DataError, NodeSpec, Operand, OperandType};
use regraft_ir::{Op, TensorType, ops::Concat};

use super::{
    CpuKernel, Cx, Family,
    support::{Seen, Why, expect_plain, never_strided, plain, unsupported},
};

use crate::Isa;

const CONCAT: &str = "concat.runs";

/// Bytes that a task writes, at least.
const TASK: usize = 64 << 10;

pub(super) const FAMILY: Family = Family { ids: &[CONCAT], candidates, reads_strided: never_strided, prepare };

fn accept<'a>(node: &Seen<'a>) -> Result<&'a Concat, Why> {
    match node.op {
        Op::Concat(op) => Ok(op),
        _ => Err(Why("it joins nothing")),
    }
}

fn candidates(_: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    plain(accept(&Seen::of_types(op, inputs)).map(|_| CONCAT))
}

struct Prepared {
    cx: Cx,
    /// Bytes that each operand brings to one row of the result.
    runs: Vec<usize>,
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    let op = accept(&Seen::of_node(node)).map_err(|why| unsupported(node, why.0))?;
    expect_plain(node, 0..node.inputs.len())?;
    let run = |o: &Operand<'_>| o.shape[op.axis..].iter().product::<usize>() * o.dtype.size();
    let runs = node.inputs.iter().flatten().map(run).collect();
    Ok(Box::new(Prepared { cx: cx.clone(), runs }))
}

impl CpuKernel for Prepared {
    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], _: &mut [u8]) -> Result<(), DataError> {
        let row: usize = self.runs.iter().sum();
        if row == 0 {
            return Ok(());
        }
        let rows_per_task = TASK.div_ceil(row);
        self.cx.threads.for_each_chunk(outputs[0], rows_per_task * row, |task, out| {
            for (i, mut out) in out.chunks_exact_mut(row).enumerate() {
                let i = task * rows_per_task + i;
                for (from, &run) in inputs.iter().flatten().zip(&self.runs) {
                    let (to, rest) = out.split_at_mut(run);
                    to.copy_from_slice(&from[i * run..(i + 1) * run]);
                    out = rest;
                }
            }
        });
        Ok(())
    }
}
