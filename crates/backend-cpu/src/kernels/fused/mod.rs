//! Chains of elementwise ops: one pass over memory, a block at a time, each step a vectorised loop over the block.

mod interpret;
mod lanes;

use regraft_backend::{BackendError, Candidate, DataError, NodeSpec, Operand, OperandType};
use regraft_ir::{Op, TensorType, ops::Fused};
use regraft_tensor::DType;

use self::interpret::{BLOCK, Program, Registers};
use super::{
    CpuKernel, Cx, Family,
    support::{Seen, Why, expect_plain, plain, unsupported},
    walk::Walk,
};
use crate::{Isa, Scratch, threads::MAX_WORKERS};

const FUSED: &str = "fused.blocks";

/// Elements that a task computes.
const TASK: usize = 16 * BLOCK;

pub(super) const FAMILY: Family = Family { ids: &[FUSED], candidates, reads_strided, prepare };

/// Steps that take their arguments, as a program.
fn accept(node: &Seen<'_>) -> Result<Program, Why> {
    let Op::Fused(op) = node.op else { return Err(Why("it is not fused")) };
    Program::new(op, &node.dtypes()).ok_or(Why("a step does not take its arguments"))
}

fn candidates(_: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    plain(accept(&Seen::of_types(op, inputs)).map(|_| FUSED))
}

/// Whether every step takes its arguments, given operands of these dtypes.
pub(crate) fn fuses(op: &Fused, operands: &[DType]) -> bool {
    Program::new(op, operands).is_some()
}

fn reads_strided(_: &Op, _: usize, _: &Operand<'_>) -> bool {
    true
}

struct Prepared {
    cx: Cx,
    program: Program,
    walk: Walk,
    /// Whether the one step is computed without registers.
    alone: bool,
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    let program = accept(&Seen::of_node(node)).map_err(|why| unsupported(node, why.0))?;
    expect_plain(node, 0..node.inputs.len())?;
    let operands: Vec<_> = node.inputs.iter().flatten().map(|o| (o.shape, o.strides)).collect();
    let walk = Walk::new(node.outputs[0].shape, &operands);
    let alone = operands.len() <= 3 && program.is_alone() && walk.is_side_by_side();
    Ok(Box::new(Prepared { cx: cx.clone(), program, walk, alone }))
}

impl Prepared {
    /// Computes elements `from ..` of a row, as many as `out` holds, block by block.
    fn run_part(&self, registers: &mut Registers<'_>, operands: &[&[u8]], row: usize, from: usize, out: &mut [u8]) {
        let (isa, size) = (self.cx.isa, self.program.out_size());
        if self.alone {
            let mut parts: [&[u8]; 3] = [&[]; 3];
            for (index, (part, bytes)) in parts.iter_mut().zip(operands).enumerate() {
                let (start, _) = self.walk.position(index, row, from);
                *part = self.program.bytes_of(index, bytes, start, out.len() / size);
            }
            return self.program.run_alone(isa, &parts[..operands.len()], out);
        }
        for (i, out) in out.chunks_mut(BLOCK * size).enumerate() {
            let len = out.len() / size;
            for (index, bytes) in operands.iter().enumerate() {
                let (start, stride) = self.walk.position(index, row, from + i * BLOCK);
                registers.load(isa, &self.program, index, bytes, start, stride, len);
            }
            self.program.run(isa, registers, len);
            registers.store(isa, &self.program, out);
        }
    }
}

impl CpuKernel for Prepared {
    fn scratch(&self) -> usize {
        self.cx.threads.count().min(MAX_WORKERS) * self.program.scratch()
    }

    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], scratch: &mut [u8]) -> Result<(), DataError> {
        let operands: Vec<&[u8]> = inputs.iter().flatten().copied().collect();
        let (size, inner, threads) = (self.program.out_size(), self.walk.inner(), &self.cx.threads);
        let out = &mut *outputs[0];
        if inner == 0 || out.is_empty() {
            return Ok(());
        }
        let mut scratch = Scratch::new(scratch);
        let workers = threads.count().min(MAX_WORKERS);
        let mut registers: Vec<_> = (0..workers).map(|_| Registers::new(&self.program, &mut scratch)).collect();
        // Tasks are whole rows where rows are short, parts of a row where they are long.
        if inner > TASK {
            for (row, out) in out.chunks_exact_mut(inner * size).enumerate() {
                threads.for_each_chunk_with(&mut registers, out, TASK * size, |registers, task, out| {
                    self.run_part(registers, &operands, row, task * TASK, out);
                });
            }
            return Ok(());
        }
        let rows = TASK / inner;
        threads.for_each_chunk_with(&mut registers, out, rows * inner * size, |registers, task, out| {
            for (i, out) in out.chunks_exact_mut(inner * size).enumerate() {
                self.run_part(registers, &operands, task * rows + i, 0, out);
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
