//! `x·Wᵀ` with an epilogue, the weight packed ahead.

use regraft_backend::{BackendError, Candidate, DataError, KernelId, NodeSpec, Operand, OperandType, WeightLayout};
use regraft_ir::{
    Op, TensorType,
    ops::{Linear, Permute},
};

use super::{
    CpuKernel, Cx, Family,
    support::{Seen, Types, Why, expect_panels, expect_plain, operand, optional, uniform_rows, unsupported},
};
use crate::{
    Isa, Scratch,
    format::Panels,
    gemm::{Epilogue, GemmArgs, GemmShape, Residual, Rows, gemm, panel_widths_of},
    simd::{FloatType, with_floats_mut},
};

const PANELS: &str = "linear.panels";

pub(super) const FAMILY: Family = Family { ids: &[PANELS], candidates, reads_strided, prepare };

/// Floats, with a weight that can be packed ahead; the type of the weight.
fn accept<'a>(node: &Seen<'a>) -> Result<(&'a Linear, FloatType), Why> {
    let Op::Linear(op) = node.op else { return Err(Why("it is not a linear")) };
    node.all_floats()?;
    Ok((op, node.known_floats(1)?))
}

fn candidates(isa: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    let Ok((_, ty)) = accept(&Seen::of_types(op, inputs)) else { return Vec::new() };
    let packed = |nr| {
        let prepare = vec![Permute { perm: vec![1, 0] }.into()];
        let layout = WeightLayout { operand: 1, prepare, format: Panels { ty, nr }.id() };
        Candidate { kernel: KernelId::new(PANELS), weights: vec![layout] }
    };
    panel_widths_of(isa, ty).map(packed).collect()
}

fn reads_strided(_: &Op, index: usize, operand: &Operand<'_>) -> bool {
    matches!(index, 0 | 3) && uniform_rows(operand).is_some()
}

struct Prepared {
    cx: Cx,
    op: Linear,
    types: Types,
    shape: GemmShape,
    lda: usize,
    residual_ld: usize,
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    let (op, _) = accept(&Seen::of_node(node)).map_err(|why| unsupported(node, why.0))?;
    let (x, w) = (operand(node, 0)?, operand(node, 1)?);
    let (n, k) = (w.shape[0], w.shape[1]);
    let Panels { nr, .. } = expect_panels(node, cx.isa, 1, &[k, n])?;
    expect_plain(node, [0, 2, 3])?;
    let types = Types::expect(node, 0..4)?;
    let strided = || unsupported(node, "rows are not equally far apart");
    let (m, lda) = uniform_rows(&x).ok_or_else(strided)?;
    let residual_ld = match optional(node, 3) {
        Some(residual) => uniform_rows(&residual).ok_or_else(strided)?.1,
        None => n,
    };
    let (a, b, c) = (types.of(0), types.of(1), types.out());
    let shape = GemmShape { m, n, k_tap: k, taps: 1, nr, a, b, c };
    Ok(Box::new(Prepared { cx: cx.clone(), op: op.clone(), types, shape, lda, residual_ld }))
}

impl CpuKernel for Prepared {
    fn scratch(&self) -> usize {
        self.shape.scratch(self.cx.isa, &self.cx.threads)
    }

    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], scratch: &mut [u8]) -> Result<(), DataError> {
        let (types, GemmShape { m, n, k_tap, taps, nr, .. }) = (&self.types, self.shape);
        let (a, b, rows) = (types.read(inputs, 0), types.read(inputs, 1), Rows::Strided { lda: self.lda });
        let epilogue = Epilogue {
            bias: types.optional(inputs, 2).map(|b| b.first(n)),
            residual: types.optional(inputs, 3).map(|data| Residual { data, ld: self.residual_ld }),
            activation: self.op.act,
            act_before_residual: self.op.act_first,
        };
        let (threads, isa) = (&self.cx.threads, self.cx.isa);
        with_floats_mut!(types.out(), &mut *outputs[0], c => {
            let args = GemmArgs { m, n, k_tap, taps, a, rows, b, nr, c, ldc: n, epilogue };
            gemm(threads, isa, args, &mut Scratch::new(scratch));
        });
        Ok(())
    }
}
