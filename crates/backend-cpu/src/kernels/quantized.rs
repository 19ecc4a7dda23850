//! Linear layers whose weight is stored as small integers.

use regraft_backend::{
    BackendError, Candidate, DataError, FormatId, KernelId, NodeSpec, Operand, OperandType, WeightLayout,
};
use regraft_ir::{
    Op, TensorType,
    ops::{Permute, QuantLinear, WeightFormat},
};

use super::{
    CpuKernel, Cx, Family,
    support::{
        Seen, Types, Why, elements, expect_packed, expect_plain, operand, optional, read, uniform_rows, unsupported,
    },
};
use crate::{
    Isa, Scratch,
    format::BytePanels,
    gemm::{
        Epilogue, INT4_WIDTH, INT8_STEPS, INT8_WIDTH, Int4Args, Int8Args, Residual, int4_product, int4_scratch,
        int8_product, int8_scratch,
    },
    simd::{FloatType, with_floats_mut},
};

const BYTES: &str = "quant_linear.bytes";
const HALVES: &str = "quant_linear.halves";

pub(super) const FAMILY: Family = Family { ids: &[BYTES, HALVES], candidates, reads_strided, prepare };

/// The kernel, and the format of its weight.
struct Spec<'a> {
    op: &'a QuantLinear,
    id: &'static str,
    panels: BytePanels,
}

fn accept<'a>(node: &Seen<'a>) -> Result<Spec<'a>, Why> {
    let Op::QuantLinear(op) = node.op else { return Err(Why("its weight is not stored as small integers")) };
    if [0, 3, 4].into_iter().filter_map(|i| node.dtype(i)).any(|dtype| FloatType::of(dtype).is_none()) {
        return Err(Why("operands must be f32, f16 or bf16"));
    }
    Ok(match op.format {
        WeightFormat::Int8 => Spec { op, id: BYTES, panels: BytePanels { nr: INT8_WIDTH, steps: INT8_STEPS } },
        WeightFormat::Int4 => Spec { op, id: HALVES, panels: BytePanels { nr: INT4_WIDTH, steps: 1 } },
    })
}

fn candidates(_: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    let Ok(spec) = accept(&Seen::of_types(op, inputs)) else { return Vec::new() };
    if ![1, 2].into_iter().all(|i| inputs[i].is_some_and(|o| o.known)) {
        return Vec::new();
    }
    let layout = |operand, format| WeightLayout { operand, prepare: vec![Permute { perm: vec![1, 0] }.into()], format };
    let weights = vec![layout(1, spec.panels.id()), layout(2, FormatId::PLAIN)];
    vec![Candidate { kernel: KernelId::new(spec.id), weights }]
}

fn reads_strided(_: &Op, index: usize, operand: &Operand<'_>) -> bool {
    matches!(index, 0 | 4) && uniform_rows(operand).is_some()
}

struct Prepared {
    cx: Cx,
    op: QuantLinear,
    /// Of `x`, bias and residual; the others are none of floats that round.
    x: FloatType,
    bias: Option<FloatType>,
    residual: Option<(FloatType, usize)>,
    out: FloatType,
    sizes: [usize; 3],
    lda: usize,
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    let spec = accept(&Seen::of_node(node)).map_err(|why| unsupported(node, why.0))?;
    let (x, w, scale) = (operand(node, 0)?, operand(node, 1)?, operand(node, 2)?);
    expect_plain(node, [0, 3, 4])?;
    expect_packed(node, 1, &spec.panels.id(), &[w.shape[1], w.shape[0]])?;
    expect_packed(node, 2, &FormatId::PLAIN, &[scale.shape[1], scale.shape[0]])?;
    let (n, k) = (w.shape[0], x.shape[x.shape.len() - 1]);
    let types = Types::expect(node, 0..1)?;
    let strided = || unsupported(node, "rows are not equally far apart");
    let (m, lda) = uniform_rows(&x).ok_or_else(strided)?;
    let residual = match optional(node, 4) {
        Some(o) => Some((types.out(), uniform_rows(&o).ok_or_else(strided)?.1)),
        None => None,
    };
    Ok(Box::new(Prepared {
        cx: cx.clone(),
        op: spec.op.clone(),
        x: types.of(0),
        bias: optional(node, 3).and_then(|o| FloatType::of(o.dtype)),
        residual,
        out: types.out(),
        sizes: [m, n, k],
        lda,
    }))
}

impl CpuKernel for Prepared {
    fn scratch(&self) -> usize {
        let [m, _, k] = self.sizes;
        match self.op.format {
            WeightFormat::Int8 => int8_scratch(&self.cx.threads, m, k),
            WeightFormat::Int4 => int4_scratch(self.cx.isa, &self.cx.threads, [m, k], self.x),
        }
    }

    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], scratch: &mut [u8]) -> Result<(), DataError> {
        let (threads, isa, [m, n, k], lda) = (&self.cx.threads, self.cx.isa, self.sizes, self.lda);
        let floats = |ty, index| crate::simd::Floats::of_bytes(ty, read(inputs, index));
        let epilogue = Epilogue {
            bias: self.bias.map(|ty| floats(ty, 3).first(n)),
            residual: self.residual.map(|(ty, ld)| Residual { data: floats(ty, 4), ld }),
            activation: self.op.act,
            act_before_residual: self.op.act_first,
        };
        let (a, b, scales) = (floats(self.x, 0), read(inputs, 1), elements(read(inputs, 2)));
        let scratch = &mut Scratch::new(scratch);
        with_floats_mut!(self.out, &mut *outputs[0], c => match self.op.format {
            _ if c.is_empty() => {}
            WeightFormat::Int8 => {
                let args = Int8Args { m, n, k, a, lda, b: bytemuck::cast_slice(b), scales, epilogue };
                int8_product(threads, isa, &args, c, scratch);
            }
            WeightFormat::Int4 => {
                int4_product(threads, isa, &Int4Args { m, n, k, a, lda, b, scales, epilogue }, c, scratch);
            }
        });
        Ok(())
    }
}
