//! Chains of elementwise ops: one pass over memory, a block at a time, each step a vectorised loop over the block.

mod interpret;
mod walk;

use std::cell::Cell;

use regraft_backend::{BackendError, Candidate, DataError, NodeSpec, Operand, OperandType};
use regraft_ir::{Op, TensorType, ops::Fused};
use regraft_tensor::DType;

use self::{
    interpret::{BLOCK, Program, Registers},
    walk::Walk,
};
use super::{
    CpuKernel, Cx, Family,
    support::{expect_plain, unsupported},
};

use crate::Isa;

const FUSED: &str = "fused.blocks";

/// Elements that a task computes.
const TASK: usize = 16 * BLOCK;

pub(super) const FAMILY: Family = Family { ids: &[FUSED], candidates, reads_strided, prepare };

thread_local! {
    static REGISTERS: Cell<Registers> = const { Cell::new(Registers::new()) };
}

fn candidates(_: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    let Op::Fused(op) = op else { return Vec::new() };
    let operands: Vec<DType> = inputs.iter().flatten().map(|o| o.ty.dtype).collect();
    if fuses(op, &operands) { vec![Candidate::plain(FUSED)] } else { Vec::new() }
}

/// Whether every step has a vectorised form on operands of these dtypes.
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
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    let Op::Fused(op) = node.op else { return Err(unsupported(node, "it is not fused")) };
    expect_plain(node, 0..node.inputs.len())?;
    let dtypes: Vec<DType> = node.inputs.iter().flatten().map(|o| o.dtype).collect();
    let program = Program::new(op, &dtypes).ok_or_else(|| unsupported(node, "a step has no vectorised form"))?;
    let operands: Vec<_> = node.inputs.iter().flatten().map(|o| (o.shape, o.strides)).collect();
    Ok(Box::new(Prepared { cx: cx.clone(), program, walk: Walk::new(node.outputs[0].shape, &operands) }))
}

impl CpuKernel for Prepared {
    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], _: &mut [u8]) -> Result<(), DataError> {
        let operands: Vec<&[u8]> = inputs.iter().flatten().copied().collect();
        let size = self.program.out_dtype().size();
        let inner = self.walk.inner();
        if inner == 0 || outputs[0].is_empty() {
            return Ok(());
        }
        // Tasks are whole rows where rows are short, parts of a row where they are long.
        let rows_per_task = (TASK / inner).max(1);
        let part = inner.min(TASK);
        let chunk = if rows_per_task > 1 { rows_per_task * inner } else { part };
        let parts = inner.div_ceil(part);
        if parts > 1 {
            return self.run_long_rows(&operands, outputs[0], part, size);
        }
        self.cx.threads.for_each_chunk(outputs[0], chunk * size, |task, out| {
            let mut registers = REGISTERS.take();
            for (i, out) in out.chunks_exact_mut(inner * size).enumerate() {
                self.run_part(&mut registers, &operands, task * rows_per_task + i, 0, out);
            }
            REGISTERS.set(registers);
        });
        Ok(())
    }
}

impl Prepared {
    fn run_long_rows(&self, operands: &[&[u8]], out: &mut [u8], part: usize, size: usize) -> Result<(), DataError> {
        let inner = self.walk.inner();
        for (row, out) in out.chunks_exact_mut(inner * size).enumerate() {
            self.cx.threads.for_each_chunk(out, part * size, |task, out| {
                let mut registers = REGISTERS.take();
                self.run_part(&mut registers, operands, row, task * part, out);
                REGISTERS.set(registers);
            });
        }
        Ok(())
    }

    /// Computes elements `from ..` of a row, as many as `out` holds, block by block.
    fn run_part(&self, registers: &mut Registers, operands: &[&[u8]], row: usize, from: usize, out: &mut [u8]) {
        let size = self.program.out_dtype().size();
        registers.reserve(&self.program);
        for (i, out) in out.chunks_mut(BLOCK * size).enumerate() {
            let len = out.len() / size;
            for (index, bytes) in operands.iter().enumerate() {
                let (start, stride) = self.walk.position(index, row, from + i * BLOCK);
                registers.load(&self.program, index, bytes, start, stride, len);
            }
            self.program.run(self.cx.isa, registers, len);
            registers.store(&self.program, out);
        }
    }
}

#[cfg(test)]
mod tests;
