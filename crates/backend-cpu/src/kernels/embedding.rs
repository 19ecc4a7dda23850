//! Rows of a table by index.

use regraft_backend::{BackendError, Candidate, DataError, NodeSpec, Operand, OperandType};
use regraft_ir::{Op, TensorType};
use regraft_tensor::DType;

use super::{
    CpuKernel, Cx, Family,
    support::{elements, expect_plain, operand, read, unsupported},
};
use crate::{Isa, nn::embedding::embedding};

const ROWS: &str = "embedding.rows";

pub(super) const FAMILY: Family = Family { ids: &[ROWS], candidates, reads_strided, prepare };

fn candidates(_: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    match op {
        Op::Embedding(_) if inputs[1].is_some_and(|ids| ids.ty.dtype == DType::I64) => vec![Candidate::plain(ROWS)],
        _ => Vec::new(),
    }
}

fn reads_strided(_: &Op, _: usize, _: &Operand<'_>) -> bool {
    false
}

struct Prepared {
    cx: Cx,
    table: usize,
    row: usize,
    ids: usize,
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    let Op::Embedding(_) = node.op else { return Err(unsupported(node, "it is no embedding")) };
    expect_plain(node, [0, 1])?;
    let (table, ids) = (operand(node, 0)?, operand(node, 1)?);
    if ids.dtype != DType::I64 {
        return Err(unsupported(node, "indices must be i64"));
    }
    let row = table.shape[1..].iter().product::<usize>() * table.dtype.size();
    let table = table.shape[0] * row;
    Ok(Box::new(Prepared { cx: cx.clone(), table, row, ids: ids.shape.iter().product() }))
}

impl CpuKernel for Prepared {
    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], _: &mut [u8]) -> Result<(), DataError> {
        if self.row == 0 {
            return Ok(());
        }
        // Rows are moved, not computed with: bytes do for every dtype.
        let (table, ids) = (&read(inputs, 0)[..self.table], &elements::<i64>(read(inputs, 1))[..self.ids]);
        embedding(&self.cx.threads, table, self.row, ids, outputs[0])
            .map_err(|bad| DataError::Index { index: bad.id, size: bad.rows })
    }
}
