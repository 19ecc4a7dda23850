//! Scaled dot-product attention.

use regraft_ir::ops::{Attention, BinaryFn, CompareFn, HeadsLayout, Matmul};
use regraft_tensor::{DType, Dim};

use super::softmax;
use crate::pt2::args::{Cx, Res, ValueId, unsupported, wrong};

pub(super) fn sdpa(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (q, k, v) = (cx.tensor("query")?, cx.tensor("key")?, cx.tensor("value")?);
    let mask = if cx.has("attn_bias") { "attn_bias" } else { "attn_mask" };
    let mask = cx.optional_tensor(mask)?;
    attention(cx, q, k, v, mask)
}

/// Attention of these operands; scale and causality are the node's.
pub(super) fn attention(
    cx: &mut Cx<'_, '_>,
    q: ValueId,
    k: ValueId,
    v: ValueId,
    mask: Option<ValueId>,
) -> Res<ValueId> {
    if cx.float_or("dropout_p", 0.0)? != 0.0 {
        return unsupported("attention with dropout", "call model.eval() before exporting");
    }
    let rank = cx.rank(q);
    if cx.rank(k) != rank || cx.rank(v) != rank || rank < 2 {
        return unsupported("attention on operands with different numbers of axes", "expand them to the same number");
    }
    let shape = cx.shape(q);
    let scale = match cx.optional_float("scale")? {
        Some(scale) => scale,
        None => 1.0 / (cx.size(q, rank - 1)? as f64).sqrt(),
    };
    let lead = |cx: &Cx<'_, '_>, x: ValueId| -> Vec<Dim> {
        let mut lead = cx.shape(x);
        lead.truncate(rank.saturating_sub(2));
        lead
    };
    // Batches broadcast; heads do by themselves.
    let batch = if rank >= 4 { rank - 3 } else { rank - 2 };
    let mut full: Vec<Dim> = Vec::new();
    for i in 0..batch {
        let sizes = [q, k, v].map(|x| cx.shape(x).get(i).cloned().unwrap_or(Dim::new(1)));
        let [a, b, c] = &sizes;
        full.push([a, b, c].into_iter().find(|d| !d.is(1)).cloned().unwrap_or(Dim::new(1)));
    }
    let four = |cx: &mut Cx<'_, '_>, x: ValueId| -> Res<ValueId> {
        let mut shape = cx.shape(x);
        let short = shape.iter().zip(&full).any(|(d, f)| d.is(1) && !f.is(1));
        let mut x = x;
        if short {
            for (d, f) in shape.iter_mut().zip(&full) {
                *d = f.clone();
            }
            x = cx.expand(x, shape.clone())?;
        }
        match rank {
            2 => {
                shape.splice(0..0, [Dim::new(1), Dim::new(1)]);
                cx.reshape(x, shape)
            }
            3 => {
                shape.insert(1, Dim::new(1));
                cx.reshape(x, shape)
            }
            4 => Ok(x),
            _ => {
                let tail = shape.split_off(rank - 3);
                let n = shape.iter().product::<Dim>();
                cx.reshape(x, [&[n][..], &tail[..]].concat())
            }
        }
    };
    let (q4, k4, v4) = (four(cx, q)?, four(cx, k)?, four(cx, v)?);
    let mask = match mask {
        None => None,
        Some(mask) => {
            let mask = if cx.dtype_of(mask) == DType::Bool { mask } else { cx.cast(mask, DType::F32)? };
            let m = cx.rank(mask);
            Some(match (rank, m) {
                (_, 0..=2) | (4, 3 | 4) => mask,
                (3, 3) => cx.unsqueeze(mask, 1)?,
                _ if m > 4 && m == rank => {
                    let mut shape = cx.shape(mask);
                    let tail = shape.split_off(m - 3);
                    if shape != lead(cx, q).get(..m - 3).unwrap_or(&[]) {
                        shape = full.clone();
                        let wide = [&shape[..], &tail[..]].concat();
                        let wide = cx.expand(mask, wide)?;
                        let n = shape.iter().product::<Dim>();
                        cx.reshape(wide, [&[n][..], &tail[..]].concat())?
                    } else {
                        let n = shape.iter().product::<Dim>();
                        cx.reshape(mask, [&[n][..], &tail[..]].concat())?
                    }
                }
                _ => {
                    return unsupported(
                        format!("an attention mask with {m} axes for operands with {rank}"),
                        "expand the mask",
                    );
                }
            })
        }
    };
    let causal = cx.bool_or("is_causal", false)?;
    let op = Attention { scale, causal, out: HeadsLayout::Bhsd };
    let out = cx.emit_opt(op, vec![Some(q4), Some(k4), Some(v4), mask])?;
    if rank == 4 {
        return Ok(out);
    }
    let Some(e) = cx.shape(v).last().cloned() else { return wrong("expected axes") };
    let mut wanted = shape;
    for (d, f) in wanted.iter_mut().zip(&full) {
        *d = f.clone();
    }
    if let Some(last) = wanted.last_mut() {
        *last = e;
    }
    cx.reshape(out, wanted)
}

/// The forms with statistics for the backward pass, of which there are `count` results.
pub(super) fn sdpa_many(cx: &mut Cx<'_, '_>, count: usize) -> Res<Vec<Option<ValueId>>> {
    let out = sdpa(cx)?;
    let mut results = vec![None; count];
    if let Some(first) = results.first_mut() {
        *first = Some(out);
    }
    if cx.node.target.contains("flash_attention_for_cpu")
        && let Some(second) = results.get_mut(1)
    {
        *second = Some(cx.in_f32(log_sums)?);
    }
    Ok(results)
}

/// The logarithm of the sum of exponentials of each row of scores, in f32. Nodes for what is not read go.
fn log_sums(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (q, k) = (cx.tensor("query")?, cx.tensor("key")?);
    let (queries, rank) = (cx.shape(q), cx.rank(q));
    let (Some(width), true) = (queries.last().and_then(Dim::as_usize), rank == 4) else {
        return unsupported("statistics of attention of this form", "use scaled_dot_product_attention()");
    };
    let scale = cx.float_or("scale", 1.0 / (width as f64).sqrt())?;
    let scores = cx.emit(Matmul { transpose_b: true }, &[q, k])?;
    let mut scores = cx.with_literal(BinaryFn::Mul, scores, scale)?;
    let least = cx.float_like(f64::NEG_INFINITY, scores)?;
    if let Some(mask) = cx.optional_tensor("attn_mask")? {
        scores = if cx.dtype_of(mask) == DType::Bool {
            cx.select(mask, scores, least)?
        } else {
            cx.binary(BinaryFn::Add, scores, mask)?
        };
    }
    if cx.bool_or("is_causal", false)? {
        let (_, m, n) = cx.matrix_shape(scores)?;
        let seen = cx.band(CompareFn::Le, &m, &n, 0)?;
        scores = cx.select(seen, scores, least)?;
    }
    softmax::log_sum_exp(cx, scores, &[rank - 1], false)
}
