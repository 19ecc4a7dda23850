//! Scaled dot-product attention, each operand with strides of its own: heads need no transposed copies.

use std::cell::Cell;

use regraft_backend::{BackendError, Candidate, Kernel, KernelError, Operand, OperandType, Problem};
use regraft_ir::{
    Op, TensorType,
    ops::{Attention, HeadsLayout},
};
use regraft_tensor::DType;

use super::{
    Cx, Family,
    support::{elements, elements_mut, expect_f32, expect_plain, operand, optional, read, unsupported},
};
use crate::nn::attention::{AttentionArgs, HeadStrides, HeadTensor, Mask, MaskValues, attention};

const ATTENTION: &str = "attention.blocks";

pub(super) const FAMILY: Family = Family { ids: &[ATTENTION], candidates, reads_strided, prepare };

thread_local! {
    /// Packed keys and values, and scores; grows to the largest that the thread has needed.
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

fn candidates(_: &Cx, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    let Op::Attention(_) = op else { return Vec::new() };
    let floats = inputs[..3].iter().flatten().all(|o| o.ty.dtype == DType::F32);
    let mask = inputs.get(3).copied().flatten().is_none_or(|m| matches!(m.ty.dtype, DType::F32 | DType::Bool));
    if floats && mask { vec![Candidate::plain(ATTENTION)] } else { Vec::new() }
}

fn reads_strided(_: &Op, index: usize, operand: &Operand<'_>) -> bool {
    index == 3 || operand.strides.last() == Some(&1) || operand.shape.last() == Some(&1)
}

struct Prepared {
    cx: Cx,
    op: Attention,
    q: ([usize; 4], HeadStrides),
    k: ([usize; 4], HeadStrides),
    v: ([usize; 4], HeadStrides),
    mask: Option<(DType, [usize; 4])>,
}

fn prepare(cx: &Cx, problem: &Problem<'_>) -> Result<Box<dyn Kernel>, BackendError> {
    let Op::Attention(op) = problem.op else { return Err(unsupported(problem, "it is no attention")) };
    expect_plain(problem, 0..4)?;
    expect_f32(problem, 0..3)?;
    if optional(problem, 3).is_some_and(|m| !matches!(m.dtype, DType::F32 | DType::Bool)) {
        return Err(unsupported(problem, "a mask is f32 or bool"));
    }
    let head = |index: usize| {
        let o = operand(problem, index)?;
        let whole = reads_strided(problem.op, index, &o);
        let (Ok(shape), &[batch, head, seq, _]) = (<[usize; 4]>::try_from(o.shape), o.strides) else {
            return Err(unsupported(problem, "operands have four axes"));
        };
        if whole { Ok((shape, HeadStrides { batch, head, seq })) } else { Err(unsupported(problem, "strided heads")) }
    };
    let mask = optional(problem, 3).map(|m| (m.dtype, mask_strides(&m)));
    Ok(Box::new(Prepared { cx: cx.clone(), op: op.clone(), q: head(0)?, k: head(1)?, v: head(2)?, mask }))
}

/// Strides of a mask along batch, head, query and key; 0 where it broadcasts.
fn mask_strides(mask: &Operand<'_>) -> [usize; 4] {
    let mut strides = [0; 4];
    let first = 4 - mask.shape.len();
    for (i, (&size, &stride)) in mask.shape.iter().zip(mask.strides).enumerate() {
        strides[first + i] = if size == 1 { 0 } else { stride };
    }
    strides
}

impl Kernel for Prepared {
    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]]) -> Result<(), KernelError> {
        let ([batch, heads, q_len, head_dim], [_, kv_heads, kv_len, _]) = (self.q.0, self.k.0);
        let value_dim = self.v.0[3];
        let tensor = |i: usize, strides: HeadStrides| HeadTensor { data: elements(read(inputs, i)), strides };
        let mask = self.mask.map(|(dtype, strides)| {
            let bytes = read(inputs, 3);
            let values = if dtype == DType::Bool { MaskValues::Keep(bytes) } else { MaskValues::Add(elements(bytes)) };
            Mask { values, strides }
        });
        let (head, seq) = match self.op.out {
            HeadsLayout::Bhsd => (q_len * value_dim, value_dim),
            HeadsLayout::Bshd => (value_dim, heads * value_dim),
        };
        let args = AttentionArgs {
            batch,
            heads,
            kv_heads,
            q_len,
            kv_len,
            head_dim,
            value_dim,
            scale: self.op.scale as f32,
            causal: self.op.causal,
            mask,
            q: tensor(0, self.q.1),
            k: tensor(1, self.k.1),
            v: tensor(2, self.v.1),
            out_strides: HeadStrides { batch: heads * q_len * value_dim, head, seq },
        };
        let out = elements_mut(outputs[0]);
        if out.is_empty() {
            return Ok(());
        }
        // Taken, not borrowed: while this thread waits for others it may run another session's attention.
        let mut scratch = SCRATCH.take();
        let len = args.scratch_len(self.cx.isa, &self.cx.threads);
        if scratch.len() < len {
            scratch.resize(len, 0.0);
        }
        attention(&self.cx.threads, self.cx.isa, &args, out, &mut scratch);
        SCRATCH.set(scratch);
        Ok(())
    }
}
