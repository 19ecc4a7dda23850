//! Products of f64, of operands as they are.

use std::iter::zip;

use regraft_backend::{BackendError, Candidate, DataError, NodeSpec, Operand, OperandType};
use regraft_ir::{
    Op, TensorType,
    ops::{Activation, Linear, Matmul},
};
use regraft_tensor::DType;

use super::{
    CpuKernel, Cx, Family,
    matmul::{Item, items},
    support::{Seen, Why, elements, elements_mut, expect_plain, operand, plain, read, uniform_rows, unsupported},
};
use crate::{
    Isa, Scratch,
    nn::double::{DoubleArgs, double, double_scratch},
};

const PRODUCT: &str = "product.double";

pub(super) const FAMILY: Family = Family { ids: &[PRODUCT], candidates, reads_strided, prepare };

/// A product.
enum Spec<'a> {
    Matmul(&'a Matmul),
    Linear(&'a Linear),
}

fn accept<'a>(node: &Seen<'a>) -> Result<Spec<'a>, Why> {
    if node.dtypes().iter().any(|dtype| *dtype != DType::F64) {
        return Err(Why("operands must be f64"));
    }
    match node.op {
        Op::Matmul(op) => Ok(Spec::Matmul(op)),
        Op::Linear(op) => Ok(Spec::Linear(op)),
        _ => Err(Why("it is not a product")),
    }
}

fn candidates(_: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    plain(accept(&Seen::of_types(op, inputs)).map(|_| PRODUCT))
}

fn reads_strided(op: &Op, index: usize, operand: &Operand<'_>) -> bool {
    let inner = operand.strides.last() == Some(&1) || operand.shape.last() == Some(&1);
    match op {
        Op::Matmul(_) => index == 1 || inner,
        Op::Linear(_) => index == 0 && uniform_rows(operand).is_some(),
        _ => false,
    }
}

struct Prepared {
    cx: Cx,
    sizes: [usize; 3],
    lda: usize,
    b_strides: [usize; 2],
    activation: Activation,
    act_first: bool,
    /// The products of a batch.
    items: Vec<Item>,
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    let spec = accept(&Seen::of_node(node)).map_err(|why| unsupported(node, why.0))?;
    expect_plain(node, 0..node.inputs.len())?;
    let (a, b, cx) = (operand(node, 0)?, operand(node, 1)?, cx.clone());
    let [.., down, across] = *b.strides else { return Err(unsupported(node, "a matrix has two axes")) };
    Ok(Box::new(match spec {
        Spec::Matmul(op) => {
            let ([lead @ .., m, n], [.., k], [.., lda, _]) = (node.outputs[0].shape, a.shape, a.strides) else {
                return Err(unsupported(node, "a matrix has two axes"));
            };
            if !reads_strided(node.op, 0, &a) {
                return Err(unsupported(node, "the last axis is not contiguous"));
            }
            let b_strides = if op.transpose_b { [across, down] } else { [down, across] };
            let (activation, items) = (Activation::None, items(&a, &b, lead));
            Prepared { cx, sizes: [*m, *n, *k], lda: *lda, b_strides, activation, act_first: false, items }
        }
        Spec::Linear(op) => {
            let (m, lda) = uniform_rows(&a).ok_or_else(|| unsupported(node, "rows are not equally far apart"))?;
            let (sizes, items) = ([m, b.shape[0], b.shape[1]], vec![Item { a: 0, b: 0 }]);
            Prepared { cx, sizes, lda, b_strides: [across, down], activation: op.act, act_first: op.act_first, items }
        }
    }))
}

impl CpuKernel for Prepared {
    fn scratch(&self) -> usize {
        double_scratch(&self.cx.threads, self.sizes[2])
    }

    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], scratch: &mut [u8]) -> Result<(), DataError> {
        let optional = |index: usize| inputs.get(index).copied().flatten().map(elements::<f64>);
        let (a, b) = (elements::<f64>(read(inputs, 0)), elements::<f64>(read(inputs, 1)));
        let [m, n, _] = self.sizes;
        for (item, out) in zip(&self.items, elements_mut(outputs[0]).chunks_exact_mut((m * n).max(1))) {
            let args = DoubleArgs {
                sizes: self.sizes,
                a: a.get(item.a..).unwrap_or(&[]),
                lda: self.lda,
                b: b.get(item.b..).unwrap_or(&[]),
                b_strides: self.b_strides,
                bias: optional(2),
                residual: optional(3),
                activation: self.activation,
                act_before_residual: self.act_first,
            };
            double(&self.cx.threads, self.cx.isa, &args, out, &mut Scratch::new(scratch));
        }
        Ok(())
    }
}
