//! Matrix products. A product with a matrix of weights becomes `linear`, one of two computed values `matmul`.

use regraft_ir::{
    Op,
    ops::{Linear, Matmul},
};

use super::{Builder, Res, ValueId, wrong};

/// `linear` without an epilogue.
pub(crate) fn linear_op() -> Linear {
    Linear { act: regraft_ir::ops::Activation::None, act_first: false }
}

/// `b` with its last two axes swapped: the operand of a permutation that did the same, when there is one.
pub(crate) fn transposed(g: &mut Builder, b: ValueId) -> Res<ValueId> {
    let rank = g.rank(b);
    let mut perm: Vec<usize> = (0..rank).collect();
    if rank >= 2 {
        perm.swap(rank - 1, rank - 2);
    }
    if let Some(id) = g.graph.producer(b) {
        let node = g.graph.node(id);
        if let (Op::Permute(p), [Some(from)]) = (&node.op, node.inputs.as_slice())
            && p.perm == perm
        {
            return Ok(*from);
        }
    }
    g.permute(b, perm)
}

/// `a · b` for operands with at least two axes.
pub(crate) fn matrices(g: &mut Builder, a: ValueId, b: ValueId) -> Res<ValueId> {
    if g.rank(b) == 2 && g.is_constant(b) && !g.is_constant(a) && g.dtype_of(a).is_float() {
        let weight = transposed(g, b)?;
        return g.emit(linear_op(), &[a, weight]);
    }
    g.emit(Matmul { transpose_b: false }, &[a, b])
}

/// `torch.matmul`, for all numbers of axes.
pub(crate) fn product(g: &mut Builder, a: ValueId, b: ValueId) -> Res<ValueId> {
    let (ra, rb) = (g.rank(a), g.rank(b));
    if ra == 0 || rb == 0 {
        return wrong("a product of matrices with a number");
    }
    let left = if ra == 1 { g.unsqueeze(a, 0)? } else { a };
    let right = if rb == 1 { g.unsqueeze(b, 1)? } else { b };
    let mut out = matrices(g, left, right)?;
    if rb == 1 {
        out = g.squeeze(out, g.rank(out).saturating_sub(1))?;
    }
    if ra == 1 {
        let last = g.rank(out).saturating_sub(if rb == 1 { 1 } else { 2 });
        out = g.squeeze(out, last)?;
    }
    Ok(out)
}
