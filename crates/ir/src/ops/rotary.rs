//! Rotary position embeddings.

use regraft_tensor::{DType, Tensor};

use super::{
    OpDef, Operands,
    support::{broadcast_f64, differ, elements, input},
};
use crate::{EvalError, OpError, TensorType, attrs};

attrs! {
    /// `x·cos + cat(-x₂, x₁)·sin`, where `x₁` and `x₂` are the halves of the last axis of `x`: the pairs `(x₁[i], x₂[i])` are turned by
    /// the angles of their position. From RoFormer (Su et al., 2021, <https://arxiv.org/abs/2104.09864>), with the pairs as GPT-NeoX and
    /// Hugging Face's `apply_rotary_pos_emb` have them: half an axis apart, not side by side.
    ///
    /// `x`: `[.., d]`, any float, `d` even. `cos`, `sin`: `[.., d]` of one float type, that of `x` or another; their other axes broadcast to
    /// those of `x`. The result has the type of `x`.
    pub struct Rotary {}
}

impl OpDef for Rotary {
    const OPERANDS: &'static [&'static str] = &["x", "cos", "sin"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        (0..3).try_for_each(|i| operands.expect_dtype(i, DType::is_float, "a float"))?;
        (0..3).try_for_each(|i| operands.expect_rank(i, 1..))?;
        let (x, cos) = (operands.get(0), operands.get(1));
        operands.expect_dtype(2, |dtype| dtype == cos.dtype, cos.dtype.name())?;
        if x.shape.last().and_then(|d| d.as_usize()).is_some_and(|d| d % 2 != 0) {
            return Err(OpError::Shape(format!("the last axis of {x} has no halves")));
        }
        for angles in [cos, operands.get(2)] {
            let mut axes = x.shape.iter().rev().zip(angles.shape.iter().rev()).enumerate();
            let fits = axes.all(|(i, (to, from))| (i > 0 && from.is(1)) || !differ(from, to));
            if angles.rank() > x.rank() || !fits {
                return Err(OpError::Shape(format!("angles of {angles} do not broadcast to rows of {x}")));
            }
        }
        Ok(vec![x.clone()])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], _: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let x = input(inputs, 0);
        let size = x.shape().last().copied().unwrap_or(0);
        let (values, half) = (x.to_f64_vec(), size / 2);
        let [cos, sin] = [1, 2].map(|i| broadcast_f64(input(inputs, i), x.shape()));
        let turned = |at: usize| if at % size < half { -values[at + half] } else { values[at - half] };
        let out: Vec<f64> = (0..values.len()).map(|at| values[at] * cos[at] + turned(at) * sin[at]).collect();
        Ok(vec![Tensor::from_f64(x.dtype(), x.shape(), &out)])
    }

    fn flops(&self, _: &[Option<&[usize]>], outputs: &[&[usize]]) -> u64 {
        outputs.iter().map(|shape| 3 * elements(shape)).sum()
    }
}

#[cfg(test)]
mod tests {
    use regraft_tensor::{Dim, Symbol};

    use super::*;
    use crate::Op;

    fn infer(types: [&TensorType; 3]) -> Result<Vec<TensorType>, OpError> {
        Op::from(Rotary {}).infer(&types.map(Some))
    }

    fn of(dtype: DType, shape: &[usize]) -> TensorType {
        TensorType::of_sizes(dtype, shape)
    }

    #[test]
    fn pairs_half_an_axis_apart_are_turned() {
        // Two heads of two pairs; a quarter turn of the first pair, none of the second.
        let x = Tensor::from_slice(&[2, 1, 4], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        let cos = Tensor::from_slice(&[1, 4], &[0.0, 1.0, 0.0, 1.0]);
        let sin = Tensor::from_slice(&[1, 4], &[1.0, 0.0, 1.0, 0.0]);
        let y = Op::from(Rotary {}).eval(&[Some(&x), Some(&cos), Some(&sin)]).expect("they fit");
        assert_eq!(y[0].to_f64_vec(), [-3.0, 2.0, 1.0, 4.0, -7.0, 6.0, 5.0, 8.0]);
        let empty = Tensor::from_slice::<f32>(&[0, 1, 4], &[]);
        let y = Op::from(Rotary {}).eval(&[Some(&empty), Some(&cos), Some(&sin)]).expect("they fit");
        assert_eq!(y[0].shape(), [0, 1, 4]);
    }

    #[test]
    fn angles_broadcast_to_x_and_may_be_of_another_float() {
        let x = of(DType::BF16, &[2, 4, 5, 8]);
        for shape in [&[8][..], &[5, 8], &[2, 1, 5, 8], &[1, 1, 1, 8]] {
            let angles = of(DType::F32, shape);
            assert_eq!(infer([&x, &angles, &angles]).expect("they fit"), std::slice::from_ref(&x));
        }
        let row = of(DType::F32, &[8]);
        for shape in [&[1][..], &[4], &[3, 8], &[2, 2, 4, 5, 8], &[]] {
            let angles = of(DType::F32, shape);
            assert!(matches!(infer([&x, &angles, &row]), Err(OpError::Shape(_))), "{angles}");
            assert!(matches!(infer([&x, &row, &angles]), Err(OpError::Shape(_))), "{angles}");
        }
        let half = of(DType::BF16, &[8]);
        assert!(matches!(infer([&x, &row, &half]), Err(OpError::DType { operand: "sin", .. })));
        let whole = of(DType::I64, &[8]);
        assert!(matches!(infer([&whole, &row, &row]), Err(OpError::DType { operand: "x", .. })));
    }

    #[test]
    fn the_last_axis_has_two_halves() {
        let odd = of(DType::F32, &[2, 3]);
        assert!(matches!(infer([&odd, &odd, &odd]), Err(OpError::Shape(_))));
        let open = TensorType::new(DType::F32, [Dim::new(2), Dim::sym(Symbol(0))]);
        assert_eq!(infer([&open, &open, &open]).expect("a run checks it"), [open]);
    }
}
