//! Reductions over neighbouring axes.

use regraft_backend::{BackendError, Candidate, DataError, NodeSpec, Operand, OperandType};
use regraft_ir::{Op, TensorType, ops::ReduceFn};
use regraft_tensor::DType;

use super::{
    CpuKernel, Cx, Family,
    support::{all_are, elements, elements_mut, expect_f32, expect_plain, operand, read, unsupported},
};
use crate::{
    Isa,
    nn::reduce::{Reduction, reduce},
};

const AXES: &str = "reduce.axes";

pub(super) const FAMILY: Family = Family { ids: &[AXES], candidates, reads_strided, prepare };

fn reduction(f: ReduceFn) -> Option<Reduction> {
    match f {
        ReduceFn::Sum => Some(Reduction::Sum),
        ReduceFn::Mean => Some(Reduction::Mean),
        ReduceFn::Max => Some(Reduction::Max),
        ReduceFn::Min => Some(Reduction::Min),
        ReduceFn::Prod | ReduceFn::Any | ReduceFn::All => None,
    }
}

fn neighbouring(axes: &[usize]) -> bool {
    !axes.is_empty() && axes.windows(2).all(|w| w[1] == w[0] + 1)
}

fn candidates(_: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    match op {
        Op::Reduce(op) if all_are(inputs, DType::F32) && reduction(op.f).is_some() && neighbouring(&op.axes) => {
            vec![Candidate::plain(AXES)]
        }
        _ => Vec::new(),
    }
}

fn reads_strided(_: &Op, _: usize, _: &Operand<'_>) -> bool {
    false
}

struct Prepared {
    cx: Cx,
    reduction: Reduction,
    sizes: [usize; 3],
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    expect_plain(node, [0])?;
    expect_f32(node, [0])?;
    let shape = operand(node, 0)?.shape;
    let (reduction, axes) = match node.op {
        Op::Reduce(op) if neighbouring(&op.axes) => (reduction(op.f), &op.axes),
        _ => (None, &Vec::new()),
    };
    let reduction = reduction.ok_or_else(|| unsupported(node, "it is no reduction over neighbouring axes"))?;
    let (first, last) = (axes[0], axes[axes.len() - 1]);
    let product = |sizes: &[usize]| sizes.iter().product();
    let sizes = [product(&shape[..first]), product(&shape[first..=last]), product(&shape[last + 1..])];
    Ok(Box::new(Prepared { cx: cx.clone(), reduction, sizes }))
}

impl CpuKernel for Prepared {
    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], _: &mut [u8]) -> Result<(), DataError> {
        let x = &elements(read(inputs, 0))[..self.sizes.iter().product()];
        reduce(&self.cx.threads, self.cx.isa, self.reduction, x, self.sizes, elements_mut(outputs[0]));
        Ok(())
    }
}
