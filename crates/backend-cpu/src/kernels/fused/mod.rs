//! Chains of elementwise ops: one pass over memory, a block at a time, each step a vectorized loop over the block.

mod interpret;
mod lanes;
mod registers;

use regraft_backend::{BackendError, Candidate, DataError, NodeSpec, Operand, OperandType};
use regraft_ir::{Op, TensorType, ops::Fused};
use regraft_tensor::DType;

use self::{interpret::Program, registers::Registers};
use super::{
    CpuKernel, Cx, Family,
    support::{Seen, Why, expect_plain, plain, unsupported},
    walk::Walk,
};
use crate::{Isa, Scratch, threads::MAX_WORKERS};

const FUSED: &str = "fused.blocks";

/// Elements that a task computes.
const TASK: usize = 8 << 10;

pub(super) const FAMILY: Family = Family { ids: &[FUSED], candidates, reads_strided, prepare };

/// A chain whose steps take their arguments.
fn accept<'a>(node: &Seen<'a>) -> Result<&'a Fused, Why> {
    let Op::Fused(op) = node.op else { return Err(Why("it is not fused")) };
    if fuses(op, &node.dtypes()) { Ok(op) } else { Err(Why("a step does not take its arguments")) }
}

fn candidates(_: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    plain(accept(&Seen::of_types(op, inputs)).map(|_| FUSED))
}

/// Whether every step takes its arguments, given operands of these dtypes.
pub(crate) fn fuses(op: &Fused, operands: &[DType]) -> bool {
    Program::new(op, operands, &[], 1).is_some()
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
    let seen = Seen::of_node(node);
    let op = accept(&seen).map_err(|why| unsupported(node, why.0))?;
    expect_plain(node, 0..node.inputs.len())?;
    let operands: Vec<_> = node.inputs.iter().flatten().map(|o| (o.shape, o.strides)).collect();
    let walk = Walk::new(node.outputs[0].shape, &operands).joined();
    let program = Program::new(op, &seen.dtypes(), &walk.is_contiguous(), walk.repeated());
    let program = program.ok_or_else(|| unsupported(node, "a step does not take its arguments"))?;
    Ok(Box::new(Prepared { cx: cx.clone(), program, walk }))
}

impl Prepared {
    /// Computes elements `from ..` of a row, as many as `out` holds, block by block.
    fn run_part<'a>(
        &self,
        registers: &mut Registers<'a>,
        operands: &[&'a [u8]],
        row: usize,
        from: usize,
        out: &mut [u8],
    ) {
        let (isa, size, block) = (self.cx.isa, self.program.out_size(), self.program.block());
        for (i, out) in out.chunks_mut(block * size).enumerate() {
            for (index, &bytes) in operands.iter().enumerate() {
                let (position, len) = (self.walk.position(index, row, from + i * block), out.len() / size);
                // What is the same all along the row is there since the first block, which is the longest.
                if self.walk.repeats(index) {
                    if i == 0 {
                        self.program.load_repeated(isa, registers, (index, bytes), position, self.walk.repeated(), len);
                    }
                } else if i == 0 || position.1 != 0 {
                    self.program.load(isa, registers, (index, bytes), position, len);
                }
            }
            self.program.run(isa, registers, out);
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
        let mut registers: Vec<_> = (0..workers).map(|_| self.program.registers(&mut scratch)).collect();
        // Tasks are whole rows where rows are short, whole blocks of a row where they are long.
        if inner > TASK {
            let part = (TASK / self.program.block()).max(1) * self.program.block();
            for (row, out) in out.chunks_exact_mut(inner * size).enumerate() {
                threads.for_each_chunk_with(&mut registers, out, part * size, |registers, task, out| {
                    self.run_part(registers, &operands, row, task * part, out);
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
