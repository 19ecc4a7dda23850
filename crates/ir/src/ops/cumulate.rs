//! Running products, extremes and the like along an axis.

use regraft_tensor::{DType, Tensor};

use super::{
    OpDef, Operands,
    support::{around, check_axis, input, ordered_vec},
};
use crate::{EvalError, OpError, TensorType, attrs, word_enum};

word_enum! {
    /// What runs along the axis.
    pub enum CumulateFn {
        /// Product: `torch.cumprod`
        Prod = "prod",
        /// Logarithm of the sum of exponentials, floats only: `torch.logcumsumexp`
        LogSumExp = "log_sum_exp",
        /// Position of the greatest element so far, the last of equals, NaN above all: the indices of `torch.cummax`
        ArgMax = "arg_max",
        /// Position of the least element so far, likewise: the indices of `torch.cummin`
        ArgMin = "arg_min",
    }
}

attrs! {
    /// Each element joined with all before it along an axis. Positions are `i64`, everything else is in the dtype of `x`.
    pub struct Cumulate {
        /// What runs.
        pub f: CumulateFn,
        /// The axis.
        pub axis: usize,
    }
}

impl CumulateFn {
    const fn gives_positions(self) -> bool {
        matches!(self, CumulateFn::ArgMax | CumulateFn::ArgMin)
    }

    /// Whether the current element takes the place of the best so far.
    fn beats(self, new: f64, best: f64) -> bool {
        match self {
            CumulateFn::ArgMax => new.is_nan() || (!best.is_nan() && new >= best),
            _ => new.is_nan() || (!best.is_nan() && new <= best),
        }
    }

    fn beats_int(self, new: i64, best: i64) -> bool {
        if self == CumulateFn::ArgMax { new >= best } else { new <= best }
    }
}

/// `log(e^a + e^b)`, of which equal infinities are themselves.
fn log_add_exp(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() {
        return f64::NAN;
    }
    let (low, high) = (a.min(b), a.max(b));
    if low == high && high.is_infinite() || low == f64::NEG_INFINITY { high } else { high + (low - high).exp().ln_1p() }
}

/// Joins each element with the one before it along the axis.
fn accumulate<T: Copy>(values: &mut [T], (_, size, inner): (usize, usize, usize), join: impl Fn(T, T) -> T) {
    for at in 0..values.len() {
        if at / inner % size > 0 {
            values[at] = join(values[at - inner], values[at]);
        }
    }
}

/// The position along the axis of the best element so far.
fn positions<T: Copy>(values: &[T], axes: (usize, usize, usize), beats: impl Fn(T, T) -> bool) -> Vec<i64> {
    let (_, size, inner) = axes;
    let mut best: Vec<i64> = vec![0; values.len()];
    for at in 0..values.len() {
        let along = at / inner % size;
        if along > 0 {
            let before = best[at - inner];
            let champion = values[at - (along - before as usize) * inner];
            best[at] = if beats(values[at], champion) { along as i64 } else { before };
        }
    }
    best
}

impl OpDef for Cumulate {
    const OPERANDS: &'static [&'static str] = &["x"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        match self.f {
            CumulateFn::LogSumExp => operands.expect_dtype(0, DType::is_float, "a float")?,
            CumulateFn::Prod => operands.expect_dtype(0, |d| d != DType::Bool, "a number")?,
            CumulateFn::ArgMax | CumulateFn::ArgMin => {}
        }
        let x = operands.get(0);
        check_axis("axis", self.axis, x.rank())?;
        let dtype = if self.f.gives_positions() { DType::I64 } else { x.dtype };
        Ok(vec![TensorType::new(dtype, x.shape.clone())])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let x = input(inputs, 0);
        let axes = around(x.shape(), self.axis);
        Tensor::byte_len(types[0].dtype, x.shape())?;
        if self.f.gives_positions() {
            let found = if x.dtype().is_float() {
                positions(&x.to_f64_vec(), axes, |a, b| self.f.beats(a, b))
            } else {
                positions(&ordered_vec(x), axes, |a, b| self.f.beats_int(a, b))
            };
            return Ok(vec![Tensor::from_i64(DType::I64, x.shape(), &found)]);
        }
        Ok(vec![if x.dtype().is_float() {
            let mut values = x.to_f64_vec();
            match self.f {
                CumulateFn::LogSumExp => accumulate(&mut values, axes, log_add_exp),
                _ => accumulate(&mut values, axes, |a, b| a * b),
            }
            Tensor::from_f64(x.dtype(), x.shape(), &values)
        } else {
            let mut values = x.to_i64_vec();
            accumulate(&mut values, axes, i64::wrapping_mul);
            Tensor::from_i64(x.dtype(), x.shape(), &values)
        }])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Op;

    fn run(f: CumulateFn, axis: usize, x: &Tensor) -> Tensor {
        Op::from(Cumulate { f, axis }).eval(&[Some(x)]).expect("x fits").remove(0)
    }

    #[test]
    fn products_and_sums_of_exponentials_run_along_the_axis() {
        let x = Tensor::from_slice(&[2, 2], &[2i64, 3, 4, 5]);
        assert_eq!(run(CumulateFn::Prod, 0, &x).to_i64_vec(), [2, 3, 8, 15]);
        assert_eq!(run(CumulateFn::Prod, 1, &x).to_i64_vec(), [2, 6, 4, 20]);
        // torch.logcumsumexp(torch.tensor([-inf, -1000., 0.]), 0)
        let x = Tensor::from_slice(&[3], &[f64::NEG_INFINITY, -1000.0, 0.0]);
        assert_eq!(run(CumulateFn::LogSumExp, 0, &x).to_f64_vec(), [f64::NEG_INFINITY, -1000.0, 0.0]);
    }

    #[test]
    fn running_extremes_have_pytorchs_positions() {
        // torch.cummax and torch.cummin: the last of equals, and NaN from where it stands on.
        let x = Tensor::from_slice(&[6], &[1.0, 3.0, 3.0, 2.0, f64::NAN, 5.0]);
        assert_eq!(run(CumulateFn::ArgMax, 0, &x).to_i64_vec(), [0, 1, 2, 2, 4, 4]);
        assert_eq!(run(CumulateFn::ArgMin, 0, &x).to_i64_vec(), [0, 0, 0, 0, 4, 4]);
        let empty = Tensor::from_slice::<f32>(&[0, 2], &[]);
        assert!(run(CumulateFn::ArgMin, 0, &empty).to_i64_vec().is_empty());
        assert!(Op::from(Cumulate { f: CumulateFn::Prod, axis: 1 }).eval(&[Some(&x)]).is_err());
    }
}
