//! Softmax.

use regraft_tensor::{DType, Tensor};

use super::{
    OpDef, Operands,
    support::{around, check_axis, input},
};
use crate::{EvalError, OpError, TensorType, attrs};

attrs! {
    /// `exp(x - max)/Σ exp(x - max)` along an axis, or its logarithm: `torch.softmax`, `torch.log_softmax`.
    pub struct Softmax {
        /// The axis.
        pub axis: usize,
        /// Whether the logarithm is taken.
        pub log: bool = false,
    }
}

impl OpDef for Softmax {
    const OPERANDS: &'static [&'static str] = &["x"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        operands.expect_dtype(0, DType::is_float, "a float")?;
        check_axis("axis", self.axis, operands.get(0).rank())?;
        Ok(vec![operands.get(0).clone()])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], _: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let x = input(inputs, 0);
        let (outer, size, inner) = around(x.shape(), self.axis);
        let mut values = x.to_f64_vec();
        for row in 0..outer * inner {
            let at = |k: usize| (row / inner * size + k) * inner + row % inner;
            let max = (0..size).map(|k| values[at(k)]).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = (0..size).map(|k| (values[at(k)] - max).exp()).sum();
            for k in 0..size {
                let shifted = values[at(k)] - max;
                values[at(k)] = if self.log { shifted - sum.ln() } else { shifted.exp() / sum };
            }
        }
        Ok(vec![Tensor::from_f64(x.dtype(), x.shape(), &values)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Op;

    fn softmax(x: &Tensor, axis: usize, log: bool) -> Vec<f64> {
        Op::from(Softmax { axis, log }).eval(&[Some(x)]).expect("x fits")[0].to_f64_vec()
    }

    #[test]
    fn large_values_do_not_overflow() {
        let x = Tensor::from_slice(&[2, 2], &[1e300, 0.0, 1e300, -1e300]);
        assert_eq!(softmax(&x, 0, false), [0.5, 1.0, 0.5, 0.0]);
        let x = Tensor::from_slice(&[2], &[0.0, -1000.0]);
        assert_eq!(softmax(&x, 0, true), [0.0, -1000.0]);
    }

    #[test]
    fn a_row_of_negative_infinities_is_nan() {
        let x = Tensor::from_slice(&[1, 2], &[f32::NEG_INFINITY; 2]);
        assert!(softmax(&x, 1, false).iter().all(|v| v.is_nan()));
        assert!(softmax(&x, 1, true).iter().all(|v| v.is_nan()));
    }
}
