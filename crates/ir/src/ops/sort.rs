//! Sorting.

use std::cmp::Ordering;

use regraft_tensor::{DType, Dim, Tensor};

use super::{
    OpDef, Operands,
    support::{around, check_axis, input, ordered_vec, pick, sizes},
};
use crate::{EvalError, OpError, TensorType, attrs};

attrs! {
    /// The elements in order along an axis, and the position (`i64`) of each in `x`. Equal elements keep their order, NaN
    /// stands above all: `torch.sort(stable=True)`, and `torch.topk` with `keep`.
    pub struct Sort {
        /// The axis.
        pub axis: usize,
        /// Whether the greatest is first.
        pub descending: bool = false,
        /// How many stay, those that come first; all if none is stated.
        pub keep: Option<usize> = None,
    }
}

/// The order of floats, with NaN above all.
fn order(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

/// For each place of the result the position along the axis of the element that goes there.
fn sorted<T: Copy>(
    values: &[T],
    (outer, size, inner): (usize, usize, usize),
    order: impl Fn(T, T) -> Ordering,
) -> Vec<i64> {
    let mut out = vec![0; values.len()];
    let mut row: Vec<usize> = Vec::with_capacity(size);
    for (o, i) in (0..outer).flat_map(|o| (0..inner).map(move |i| (o, i))) {
        let at = |k: usize| (o * size + k) * inner + i;
        row.clear();
        row.extend(0..size);
        row.sort_by(|&a, &b| order(values[at(a)], values[at(b)]));
        row.iter().enumerate().for_each(|(place, &k)| out[at(place)] = k as i64);
    }
    out
}

impl OpDef for Sort {
    const OPERANDS: &'static [&'static str] = &["x"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        let x = operands.get(0);
        check_axis("axis", self.axis, x.rank())?;
        let mut shape = x.shape.clone();
        if let Some(keep) = self.keep {
            if shape[self.axis].as_usize().is_some_and(|size| size < keep) {
                return Err(OpError::Attr { name: "keep", why: format!("{keep} of {}", shape[self.axis]) });
            }
            shape[self.axis] = Dim::from(keep);
        }
        Ok(vec![TensorType::new(x.dtype, shape.clone()), TensorType::new(DType::I64, shape)])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let x = input(inputs, 0);
        let axes = around(x.shape(), self.axis);
        Tensor::byte_len(DType::I64, x.shape())?;
        let turn = |order: Ordering| if self.descending { order.reverse() } else { order };
        let found = if x.dtype().is_float() {
            sorted(&x.to_f64_vec(), axes, |a, b| turn(order(a, b)))
        } else {
            sorted(&ordered_vec(x), axes, |a: i64, b| turn(a.cmp(&b)))
        };
        let (_, size, inner) = axes;
        let shape = sizes(&types[0]);
        let keep = shape[self.axis];
        let kept = |at: usize| (at / inner / keep * size + at / inner % keep) * inner + at % inner;
        let found: Vec<i64> = (0..shape.iter().product()).map(|at| found[kept(at)]).collect();
        let from =
            found.iter().enumerate().map(|(at, &k)| (at / inner / keep * size + k as usize) * inner + at % inner);
        let values = pick(x, &shape, from);
        Ok(vec![values, Tensor::from_i64(DType::I64, &shape, &found)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Op;

    fn run(axis: usize, descending: bool, x: &Tensor) -> Vec<Tensor> {
        Op::from(Sort { axis, descending, keep: None }).eval(&[Some(x)]).expect("x fits")
    }

    #[test]
    fn equal_elements_keep_their_order_either_way() {
        let x = Tensor::from_slice(&[4], &[2i64, 1, 2, 0]);
        assert_eq!(run(0, false, &x)[1].to_i64_vec(), [3, 1, 0, 2]);
        assert_eq!(run(0, true, &x)[1].to_i64_vec(), [0, 2, 1, 3]);
        assert_eq!(run(0, true, &x)[0].to_i64_vec(), [2, 2, 1, 0]);
    }

    #[test]
    fn the_first_of_the_order_stay() {
        let x = Tensor::from_slice(&[2, 3], &[2i64, 1, 3, 4, 6, 5]);
        let top = |axis, keep| Op::from(Sort { axis, descending: true, keep: Some(keep) }).eval(&[Some(&x)]);
        let parts = top(1, 2).expect("two of three");
        assert_eq!((parts[0].to_i64_vec(), parts[1].to_i64_vec()), (vec![3, 2, 6, 5], vec![2, 0, 1, 2]));
        assert_eq!(top(0, 1).expect("one of two")[0].to_i64_vec(), [4, 6, 5]);
        assert!(matches!(top(0, 3), Err(EvalError::Op(OpError::Attr { name: "keep", .. }))));
    }

    #[test]
    fn nan_is_the_greatest_and_axes_are_independent() {
        let x = Tensor::from_slice(&[2, 2], &[f64::NAN, 1.0, 3.0, f64::INFINITY]);
        assert_eq!(run(0, false, &x)[1].to_i64_vec(), [1, 0, 0, 1]);
        assert_eq!(run(1, true, &x)[1].to_i64_vec(), [0, 1, 1, 0]);
        let empty = Tensor::from_slice::<f32>(&[2, 0], &[]);
        assert_eq!(run(1, true, &empty)[0].shape(), [2, 0]);
    }
}
