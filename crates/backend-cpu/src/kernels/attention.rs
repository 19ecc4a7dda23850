//! Scaled dot-product attention, each operand with strides of its own: heads need no transposed copies.

use regraft_backend::{BackendError, Candidate, DataError, NodeSpec, Operand, OperandType};
use regraft_ir::{
    Op, TensorType,
    ops::{Attention, HeadsLayout},
};
use regraft_tensor::DType;

use super::{
    CpuKernel, Cx, Family,
    support::{Seen, Types, Why, expect_plain, operand, optional, plain, read, unsupported},
};
use crate::{
    Isa, Scratch,
    nn::attention::{AttentionArgs, AttentionShape, HeadStrides, HeadTensor, Mask, MaskValues, attention},
    simd::{FloatType, Floats, with_floats_mut},
};

const ATTENTION: &str = "attention.blocks";

pub(super) const FAMILY: Family = Family { ids: &[ATTENTION], candidates, reads_strided, prepare };

/// Floats, with a mask of floats or of bool.
fn accept<'a>(node: &Seen<'a>) -> Result<&'a Attention, Why> {
    let Op::Attention(op) = node.op else { return Err(Why("it is not an attention")) };
    node.floats(0..3)?;
    if node.dtype(3) != Some(DType::Bool) {
        node.floats([3])?;
    }
    Ok(op)
}

fn candidates(_: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    plain(accept(&Seen::of_types(op, inputs)).map(|_| ATTENTION))
}

fn reads_strided(_: &Op, index: usize, operand: &Operand<'_>) -> bool {
    index == 3 || operand.strides.last() == Some(&1) || operand.shape.last() == Some(&1)
}

struct Prepared {
    cx: Cx,
    op: Attention,
    types: Types,
    q: ([usize; 4], HeadStrides),
    k: ([usize; 4], HeadStrides),
    v: ([usize; 4], HeadStrides),
    mask: Option<(DType, [usize; 4])>,
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    let op = accept(&Seen::of_node(node)).map_err(|why| unsupported(node, why.0))?;
    expect_plain(node, 0..4)?;
    let types = Types::expect(node, 0..3)?;
    let head = |index: usize| {
        let o = operand(node, index)?;
        let whole = reads_strided(node.op, index, &o);
        let (Ok(shape), &[batch, head, seq, _]) = (<[usize; 4]>::try_from(o.shape), o.strides) else {
            return Err(unsupported(node, "operands have four axes"));
        };
        if whole { Ok((shape, HeadStrides { batch, head, seq })) } else { Err(unsupported(node, "strided heads")) }
    };
    let mask = optional(node, 3).map(|m| (m.dtype, mask_strides(&m)));
    Ok(Box::new(Prepared { cx: cx.clone(), op: op.clone(), types, q: head(0)?, k: head(1)?, v: head(2)?, mask }))
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

impl Prepared {
    fn args<'a>(&self, [q, k, v]: [Floats<'a>; 3], mask: Option<MaskValues<'a>>) -> AttentionArgs<'a> {
        let ([batch, heads, q_len, head_dim], [_, kv_heads, kv_len, _]) = (self.q.0, self.k.0);
        let value_dim = self.v.0[3];
        let (head, seq) = match self.op.out {
            HeadsLayout::Bhsd => (q_len * value_dim, value_dim),
            HeadsLayout::Bshd => (value_dim, heads * value_dim),
        };
        let mask = self.mask.zip(mask).map(|((_, strides), values)| Mask { values, strides });
        AttentionArgs {
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
            q: HeadTensor { data: q, strides: self.q.1 },
            k: HeadTensor { data: k, strides: self.k.1 },
            v: HeadTensor { data: v, strides: self.v.1 },
            out_strides: HeadStrides { batch: heads * q_len * value_dim, head, seq },
        }
    }
}

impl CpuKernel for Prepared {
    fn scratch(&self) -> usize {
        let ([batch, .., head_dim], [_, kv_heads, kv_len, _], value_dim) = (self.q.0, self.k.0, self.v.0[3]);
        let types = [self.types.of(1), self.types.of(2), self.types.out()];
        let shape = AttentionShape { batch, kv_heads, kv_len, head_dim, value_dim, types };
        shape.scratch(self.cx.isa, &self.cx.threads)
    }

    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], scratch: &mut [u8]) -> Result<(), DataError> {
        let mask = self.mask.map(|(dtype, _)| match FloatType::of(dtype) {
            None => MaskValues::Keep(read(inputs, 3)),
            Some(ty) => MaskValues::Add(Floats::of_bytes(ty, read(inputs, 3))),
        });
        let args = self.args([0, 1, 2].map(|i| self.types.read(inputs, i)), mask);
        with_floats_mut!(self.types.out(), &mut *outputs[0], out => {
            if !out.is_empty() {
                attention(&self.cx.threads, self.cx.isa, &args, out, &mut Scratch::new(scratch));
            }
        });
        Ok(())
    }
}
