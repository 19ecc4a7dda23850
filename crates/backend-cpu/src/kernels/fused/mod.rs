//! Chains of elementwise ops: one pass over memory, a block at a time, each step a vectorised loop over the block.

mod interpret;
mod walk;

use std::cell::Cell;

use regraft_backend::{BackendError, Candidate, Kernel, KernelError, Operand, OperandType, Problem};
use regraft_ir::{Op, TensorType};
use regraft_tensor::DType;

use self::{
    interpret::{BLOCK, Program, Registers},
    walk::Walk,
};
use super::{
    Cx, Family,
    support::{expect_plain, unsupported},
};

const FUSED: &str = "fused.blocks";

/// Elements that a task computes.
const TASK: usize = 16 * BLOCK;

pub(super) const FAMILY: Family = Family { ids: &[FUSED], candidates, reads_strided, prepare };

thread_local! {
    static REGISTERS: Cell<Registers> = const { Cell::new(Registers::new()) };
}

fn candidates(_: &Cx, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    let Op::Fused(op) = op else { return Vec::new() };
    let operands: Vec<DType> = inputs.iter().flatten().map(|o| o.ty.dtype).collect();
    if Program::new(op, &operands).is_some() { vec![Candidate::plain(FUSED)] } else { Vec::new() }
}

fn reads_strided(_: &Op, _: usize, _: &Operand<'_>) -> bool {
    true
}

struct Prepared {
    cx: Cx,
    program: Program,
    walk: Walk,
}

fn prepare(cx: &Cx, problem: &Problem<'_>) -> Result<Box<dyn Kernel>, BackendError> {
    let Op::Fused(op) = problem.op else { return Err(unsupported(problem, "it is not fused")) };
    expect_plain(problem, 0..problem.inputs.len())?;
    let dtypes: Vec<DType> = problem.inputs.iter().flatten().map(|o| o.dtype).collect();
    let program = Program::new(op, &dtypes).ok_or_else(|| unsupported(problem, "a step has no vectorised form"))?;
    let operands: Vec<_> = problem.inputs.iter().flatten().map(|o| (o.shape, o.strides)).collect();
    Ok(Box::new(Prepared { cx: cx.clone(), program, walk: Walk::new(problem.outputs[0].shape, &operands) }))
}

impl Kernel for Prepared {
    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]]) -> Result<(), KernelError> {
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
    fn run_long_rows(&self, operands: &[&[u8]], out: &mut [u8], part: usize, size: usize) -> Result<(), KernelError> {
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
