//! `x·Wᵀ` with an epilogue, the weight packed ahead.

use regraft_backend::{BackendError, Candidate, DataError, KernelId, NodeSpec, Operand, OperandType, WeightLayout};
use regraft_ir::{
    Op, TensorType,
    ops::{self, Linear, Permute},
};
use regraft_tensor::DType;

use super::{
    CpuKernel, Cx, Family,
    support::{
        all_are, elements, elements_mut, expect_f32, expect_panels, expect_plain, operand, optional, optional_f32,
        read, uniform_rows, unsupported,
    },
};
use crate::{
    Isa,
    format::Panels,
    gemm::{Epilogue, GemmArgs, Residual, Rows, gemm, panel_widths},
    simd::Activation,
};

const PANELS: &str = "linear.panels";

pub(super) const FAMILY: Family = Family { ids: &[PANELS], candidates, reads_strided, prepare };

fn candidates(isa: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    let Op::Linear(_) = op else { return Vec::new() };
    if !all_are(inputs, DType::F32) || !inputs[1].is_some_and(|w| w.known) {
        return Vec::new();
    }
    let packed = |nr| {
        let prepare = vec![Permute { perm: vec![1, 0] }.into()];
        let layout = WeightLayout { operand: 1, prepare, format: Panels { nr }.id() };
        Candidate { kernel: KernelId::new(PANELS), weights: vec![layout] }
    };
    panel_widths(isa).map(packed).collect()
}

fn reads_strided(_: &Op, index: usize, operand: &Operand<'_>) -> bool {
    matches!(index, 0 | 3) && uniform_rows(operand).is_some()
}

/// The activation of an epilogue in this crate's terms.
pub(super) fn activation(act: ops::Activation) -> Activation {
    match act {
        ops::Activation::None => Activation::None,
        ops::Activation::Relu => Activation::Relu,
        ops::Activation::Relu6 => Activation::Relu6,
        ops::Activation::Gelu => Activation::Gelu,
        ops::Activation::GeluTanh => Activation::GeluTanh,
        ops::Activation::Silu => Activation::Silu,
        ops::Activation::Sigmoid => Activation::Sigmoid,
        ops::Activation::Tanh => Activation::Tanh,
        ops::Activation::Hardswish => Activation::Hardswish,
        ops::Activation::Hardsigmoid => Activation::Hardsigmoid,
    }
}

struct Prepared {
    cx: Cx,
    op: Linear,
    m: usize,
    n: usize,
    k: usize,
    /// Columns of a panel of the weight.
    nr: usize,
    lda: usize,
    residual_ld: usize,
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    let Op::Linear(op) = node.op else { return Err(unsupported(node, "it is no linear")) };
    let (x, w) = (operand(node, 0)?, operand(node, 1)?);
    let (n, k) = (w.shape[0], w.shape[1]);
    let nr = expect_panels(node, cx.isa, 1, &[k, n])?;
    expect_plain(node, [0, 2, 3])?;
    expect_f32(node, 0..4)?;
    let strided = || unsupported(node, "rows are not equally far apart");
    let (m, lda) = uniform_rows(&x).ok_or_else(strided)?;
    let residual_ld = match optional(node, 3) {
        Some(residual) => uniform_rows(&residual).ok_or_else(strided)?.1,
        None => n,
    };
    Ok(Box::new(Prepared { cx: cx.clone(), op: op.clone(), m, n, k, nr, lda, residual_ld }))
}

impl CpuKernel for Prepared {
    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], _: &mut [u8]) -> Result<(), DataError> {
        let args = GemmArgs {
            m: self.m,
            n: self.n,
            k_tap: self.k,
            taps: 1,
            a: elements(read(inputs, 0)),
            rows: Rows::Strided { lda: self.lda },
            b: elements(read(inputs, 1)),
            nr: self.nr,
            c: elements_mut(outputs[0]),
            ldc: self.n,
            epilogue: Epilogue {
                bias: optional_f32(inputs, 2).map(|b| &b[..self.n]),
                residual: optional_f32(inputs, 3).map(|data| Residual { data, ld: self.residual_ld }),
                activation: activation(self.op.act),
                act_before_residual: self.op.act_first,
            },
        };
        gemm(&self.cx.threads, self.cx.isa, args);
        Ok(())
    }
}
