//! Scaled dot-product attention.

use regraft_tensor::{DType, Dim, Tensor};

use super::{
    OpDef, Operands,
    support::{broadcast_f64, broadcast_i64, differ, elements, input, join, optional, sizes},
};
use crate::{EvalError, OpError, TensorType, attrs, word_enum};

word_enum! {
    /// Where the heads axis of attention operands stands.
    pub enum HeadsLayout {
        /// `[.., heads, sequence, head_dim]`, PyTorch's
        Bhsd = "bhsd",
        /// `[.., sequence, heads, head_dim]`
        Bshd = "bshd",
    }
}

attrs! {
    /// `softmax(scale·q·kᵀ + mask)·v` for `q: [b, h, s, d]`, `k: [b, hk, t, d]`, `v: [b, hk, t, e]`, giving
    /// `[b, h, s, e]`: `torch.nn.functional.scaled_dot_product_attention`. `hk` divides `h`; query head `i` reads
    /// key head `i / (h / hk)`. The mask broadcasts to `[b, h, s, t]`: `f32` is added, `bool` keeps where true. A row that
    /// a mask or causality leaves nothing of gives zeros. Operands always have rank 4 and layout `bhsd`.
    pub struct Attention {
        /// Factor of the scores.
        pub scale: f64,
        /// Whether query `i` sees keys up to `i` only (aligned to the upper left).
        pub causal: bool = false,
        /// Layout of the result; `bshd` is `[b, s, h, e]`.
        pub out: HeadsLayout = HeadsLayout::Bhsd,
    }
}

impl OpDef for Attention {
    const OPERANDS: &'static [&'static str] = &["q", "k", "v", "mask?"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        operands.expect_dtype(0, DType::is_float, "a float")?;
        operands.expect_same_dtype([1, 2])?;
        (0..3).try_for_each(|i| operands.expect_rank(i, 4..=4))?;
        let (q, k, v) = (operands.get(0), &operands.get(1).shape, &operands.get(2).shape);
        let batch = join(&join(&q.shape[0], &k[0]), &v[0]);
        let fits = [&q.shape[0], &k[0], &v[0]].iter().all(|b| !differ(b, &batch))
            && !differ(&q.shape[3], &k[3])
            && !differ(&k[1], &v[1])
            && !differ(&k[2], &v[2]);
        if !fits {
            return Err(OpError::Shape(format!("q {q}, k {k:?} and v {v:?} do not fit together")));
        }
        if let (Some(h), Some(hk)) = (q.shape[1].as_const(), join(&k[1], &v[1]).as_const())
            && (hk < 1 || h % hk != 0)
        {
            return Err(OpError::Shape(format!("{h} query heads cannot share {hk} key heads")));
        }
        let (heads, queries, width) = (q.shape[1].clone(), q.shape[2].clone(), v[3].clone());
        check_mask(operands, &[batch.clone(), heads.clone(), queries.clone(), join(&k[2], &v[2])])?;
        let shape = match self.out {
            HeadsLayout::Bhsd => vec![batch, heads, queries, width],
            HeadsLayout::Bshd => vec![batch, queries, heads, width],
        };
        Ok(vec![TensorType::new(q.dtype, shape)])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let (q, k, v) = (input(inputs, 0), input(inputs, 1), input(inputs, 2));
        let (batch, heads, s, d) = (q.shape()[0], q.shape()[1], q.shape()[2], q.shape()[3]);
        let (kv_heads, t, e) = (k.shape()[1], k.shape()[2], v.shape()[3]);
        let mask = optional(inputs, 3).map(|m| addends(m, &[batch, heads, s, t]));
        let (vq, vk, vv) = (q.to_f64_vec(), k.to_f64_vec(), v.to_f64_vec());
        let mut out = vec![0.0; batch * heads * s * e];
        for row in 0..batch * heads * s {
            let (b, h, i) = (row / s / heads, row / s % heads, row % s);
            let kv = b * kv_heads + h / (heads / kv_heads);
            let query = &vq[row * d..][..d];
            let score = |j: usize| {
                let dot: f64 = query.iter().zip(&vk[(kv * t + j) * d..][..d]).map(|(q, k)| q * k).sum();
                let hidden = self.causal && j > i;
                if hidden {
                    f64::NEG_INFINITY
                } else {
                    self.scale * dot + mask.as_ref().map_or(0.0, |m| m[row * t + j])
                }
            };
            let to = match self.out {
                HeadsLayout::Bhsd => row,
                HeadsLayout::Bshd => (b * s + i) * heads + h,
            };
            for (j, weight) in weights((0..t).map(score).collect()).into_iter().enumerate() {
                let value = &vv[(kv * t + j) * e..][..e];
                out[to * e..][..e].iter_mut().zip(value).for_each(|(o, v)| *o += weight * v);
            }
        }
        Ok(vec![Tensor::from_f64(types[0].dtype, &sizes(&types[0]), &out)])
    }

    fn flops(&self, inputs: &[Option<&[usize]>], outputs: &[&[usize]]) -> u64 {
        // Causal attention looks at half of the keys.
        let keys = inputs[1].map_or(0, |k| k[2] as u64);
        2 * (inputs[0].map_or(0, elements) + elements(outputs[0])) * keys / if self.causal { 2 } else { 1 }
    }
}

/// Checks that the mask, if there, broadcasts to the shape of the scores.
fn check_mask(operands: &Operands<'_>, scores: &[Dim; 4]) -> Result<(), OpError> {
    let Some(mask) = operands.optional(3) else { return Ok(()) };
    let dtype = operands.get(0).dtype;
    operands.expect_dtype(3, |d| d == DType::Bool || d == DType::F32 || d == dtype, "bool, f32 or the dtype of q")?;
    operands.expect_rank(3, 2..=4)?;
    if mask.shape.iter().rev().zip(scores.iter().rev()).any(|(m, s)| !m.is(1) && differ(m, s)) {
        return Err(OpError::Shape(format!("mask {mask} does not broadcast to {scores:?}")));
    }
    Ok(())
}

/// What a mask adds to scores of this shape.
fn addends(mask: &Tensor, shape: &[usize]) -> Vec<f64> {
    if mask.dtype() == DType::Bool {
        let keep = broadcast_i64(mask, shape).into_iter();
        return keep.map(|keep| if keep != 0 { 0.0 } else { f64::NEG_INFINITY }).collect();
    }
    broadcast_f64(mask, shape)
}

/// The softmax of scores; zeros when none is above negative infinity.
fn weights(mut scores: Vec<f64>) -> Vec<f64> {
    if scores.iter().all(|&s| s == f64::NEG_INFINITY) {
        return vec![0.0; scores.len()];
    }
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    scores.iter_mut().for_each(|s| *s = (*s - max).exp());
    let sum: f64 = scores.iter().sum();
    scores.iter_mut().for_each(|s| *s /= sum);
    scores
}

#[cfg(test)]
mod tests {
    use regraft_tensor::Symbol;

    use super::*;
    use crate::Op;

    fn attention(out: HeadsLayout, causal: bool) -> Attention {
        Attention { scale: 1.0, causal, out }
    }

    fn infer(op: Attention, types: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
        Op::from(op).infer(&types.iter().map(|&t| Some(t)).collect::<Vec<_>>())
    }

    #[test]
    fn the_result_takes_batch_and_queries_from_q() {
        let (s0, s1) = (Dim::sym(Symbol(0)), Dim::sym(Symbol(1)));
        let q = TensorType::new(DType::F32, [s0.clone(), Dim::new(8), s1.clone(), Dim::new(64)]);
        let kv = TensorType::new(DType::F32, [s0.clone(), Dim::new(2), &s1 + &Dim::new(7), Dim::new(64)]);
        let mask = TensorType::new(DType::Bool, [s1.clone(), &s1 + &Dim::new(7)]);
        let types = infer(attention(HeadsLayout::Bshd, false), &[&q, &kv, &kv, &mask]).expect("they fit");
        assert_eq!(types[0].to_string(), "f32[s0, s1, 8, 64]");
    }

    #[test]
    fn unfitting_heads_and_masks_are_refused() {
        let q = TensorType::of_sizes(DType::F32, &[1, 8, 4, 16]);
        let kv = TensorType::of_sizes(DType::F32, &[1, 3, 4, 16]);
        let op = attention(HeadsLayout::Bhsd, false);
        assert!(matches!(infer(op.clone(), &[&q, &kv, &kv]), Err(OpError::Shape(_))));
        for mask in [&[2, 4][..], &[4], &[1, 1, 4, 5], &[2, 1, 4, 4]] {
            let mask = TensorType::of_sizes(DType::F32, mask);
            assert!(matches!(infer(op.clone(), &[&q, &q, &q, &mask]), Err(OpError::Shape(_))), "{mask}");
        }
        let mask = TensorType::of_sizes(DType::I64, &[4, 4]);
        assert!(matches!(infer(op, &[&q, &q, &q, &mask]), Err(OpError::DType { operand: "mask?", .. })));
    }

    #[test]
    fn causality_is_aligned_to_the_upper_left() {
        let q = Tensor::from_slice(&[1, 1, 2, 1], &[0.0f32, 0.0]);
        let kv = Tensor::from_slice(&[1, 1, 3, 1], &[2.0f32, 4.0, 9.0]);
        let out = Op::from(attention(HeadsLayout::Bhsd, true)).eval(&[Some(&q), Some(&kv), Some(&kv)]);
        assert_eq!(out.expect("they fit")[0].to_f64_vec(), [2.0, 3.0]);
    }

    #[test]
    fn heads_share_keys_and_an_empty_row_is_zero() {
        let q = Tensor::from_slice(&[1, 4, 2, 1], &[0.0f32; 8]);
        let kv = Tensor::from_slice(&[1, 2, 1, 1], &[5.0f32, 7.0]);
        let mask = Tensor::from_bools(&[2, 1], &[true, false]);
        let out = Op::from(attention(HeadsLayout::Bshd, false)).eval(&[Some(&q), Some(&kv), Some(&kv), Some(&mask)]);
        assert_eq!(out.expect("they fit")[0].to_f64_vec(), [5.0, 5.0, 7.0, 7.0, 0.0, 0.0, 0.0, 0.0]);
    }
}
