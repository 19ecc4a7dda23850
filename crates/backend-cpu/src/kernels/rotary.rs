//! Rotary position embeddings, of rows that lie anywhere.

use regraft_backend::{BackendError, Candidate, DataError, NodeSpec, Operand, OperandType};
use regraft_ir::{Op, TensorType};

use super::{
    CpuKernel, Cx, Family,
    support::{Seen, Types, Why, expect_plain, operand, plain, unsupported},
    walk::Walk,
};
use crate::{
    Isa, Scratch,
    nn::rotary::{Rotary, rotary},
    simd::with_floats_mut,
};

const ROWS: &str = "rotary.rows";

pub(super) const FAMILY: Family = Family { ids: &[ROWS], candidates, reads_strided, prepare };

/// Floats of any kind.
fn accept(node: &Seen<'_>) -> Result<&'static str, Why> {
    match node.op {
        Op::Rotary(_) => node.all_floats().map(|()| ROWS),
        _ => Err(Why("it is not a rotary embedding")),
    }
}

fn candidates(_: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    plain(accept(&Seen::of_types(op, inputs)))
}

fn reads_strided(_: &Op, _: usize, operand: &Operand<'_>) -> bool {
    operand.strides.last() == Some(&1)
}

struct Prepared {
    cx: Cx,
    types: Types,
    /// Over all axes but the last.
    walk: Walk,
    cols: usize,
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    accept(&Seen::of_node(node)).map_err(|why| unsupported(node, why.0))?;
    expect_plain(node, 0..3)?;
    let leading = |index: usize| {
        let o = operand(node, index)?;
        match (o.shape.split_last(), o.strides.split_last()) {
            (Some((_, shape)), Some((1, strides))) => Ok((shape, strides)),
            _ => Err(unsupported(node, format!("the rows of operand {index} do not lie in one piece"))),
        }
    };
    let leading = [leading(0)?, leading(1)?, leading(2)?];
    let cols = operand(node, 0)?.shape.last().copied().unwrap_or(0);
    let walk = Walk::new(leading[0].0, &leading);
    Ok(Box::new(Prepared { cx: cx.clone(), types: Types::expect(node, 0..3)?, walk, cols }))
}

impl CpuKernel for Prepared {
    fn scratch(&self) -> usize {
        Rotary::scratch(&self.cx.threads, self.cols, self.types.out())
    }

    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], scratch: &mut [u8]) -> Result<(), DataError> {
        if outputs[0].is_empty() {
            return Ok(());
        }
        let [x, cos, sin] = [0, 1, 2].map(|i| self.types.read(inputs, i));
        let rows = Rotary { x, cos, sin, cols: self.cols };
        let inner = self.walk.inner();
        let starts = |row: usize| [0, 1, 2].map(|i| self.walk.position(i, row / inner, row % inner).0);
        with_floats_mut!(self.types.out(), &mut *outputs[0], out => {
            rotary(&self.cx.threads, self.cx.isa, &rows, starts, out, &mut Scratch::new(scratch));
        });
        Ok(())
    }
}
