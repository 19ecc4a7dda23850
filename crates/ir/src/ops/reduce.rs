//! Reductions.

use regraft_tensor::{DType, Dim, Tensor};

use super::{
    OpDef, Operands,
    elementwise::BinaryFn,
    support::{around, broadcast_positions, check_axis, input, ordered_vec, sizes},
};
use crate::{EvalError, OpError, TensorType, attrs, word_enum};

word_enum! {
    /// How elements are reduced to one.
    pub enum ReduceFn {
        /// Sum
        Sum = "sum",
        /// Arithmetic mean; floats only
        Mean = "mean",
        /// Greatest; NaN if any is
        Max = "max",
        /// Least; NaN if any is
        Min = "min",
        /// Product
        Prod = "prod",
        /// Whether any is non-zero; gives `bool`
        Any = "any",
        /// Whether all are non-zero; gives `bool`
        All = "all",
    }
}

attrs! {
    /// A reduction over some axes. Sums of integers stay in their dtype.
    pub struct Reduce {
        /// How.
        pub f: ReduceFn,
        /// The axes, ascending.
        pub axes: Vec<usize>,
        /// Whether reduced axes stay with size 1.
        pub keep: bool = false,
    }
}

word_enum! {
    /// Which position is sought.
    pub enum ArgReduceFn {
        /// Of the greatest element, the first of equals
        Max = "max",
        /// Of the least element, the first of equals
        Min = "min",
    }
}

attrs! {
    /// The index (`i64`) of an extremum along one axis: `torch.argmax`.
    pub struct ArgReduce {
        /// Which.
        pub f: ArgReduceFn,
        /// The axis.
        pub axis: usize,
        /// Whether the axis stays with size 1.
        pub keep: bool = false,
    }
}

attrs! {
    /// Running sum along an axis, in the dtype of `x`: `torch.cumsum`.
    pub struct Cumsum {
        /// The axis.
        pub axis: usize,
    }
}

impl ReduceFn {
    /// The function that joins two elements, with its neutral element as float and as integer.
    fn joining(self) -> (BinaryFn, f64, i64) {
        match self {
            ReduceFn::Sum | ReduceFn::Mean => (BinaryFn::Add, 0.0, 0),
            ReduceFn::Prod => (BinaryFn::Mul, 1.0, 1),
            ReduceFn::Max => (BinaryFn::Max, f64::NEG_INFINITY, i64::MIN),
            ReduceFn::Min => (BinaryFn::Min, f64::INFINITY, i64::MAX),
            ReduceFn::Any => (BinaryFn::Or, 0.0, 0),
            ReduceFn::All => (BinaryFn::And, 1.0, 1),
        }
    }

    const fn gives_bool(self) -> bool {
        matches!(self, ReduceFn::Any | ReduceFn::All)
    }
}

/// The shape that is left of `shape` after a reduction of `axes`.
fn reduced<T: Clone>(shape: &[T], axes: &[usize], one: Option<T>) -> Vec<T> {
    let left = |(i, d): (usize, &T)| if axes.contains(&i) { one.clone() } else { Some(d.clone()) };
    shape.iter().enumerate().filter_map(left).collect()
}

/// Joins every element into the result that `targets` names for it.
fn join_all<T: Copy>(values: Vec<T>, targets: &[usize], start: Vec<T>, join: impl Fn(T, T) -> T) -> Vec<T> {
    let mut out = start;
    values.into_iter().zip(targets).for_each(|(v, &to)| out[to] = join(out[to], v));
    out
}

impl OpDef for Reduce {
    const OPERANDS: &'static [&'static str] = &["x"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        match self.f {
            ReduceFn::Mean => operands.expect_dtype(0, DType::is_float, "a float")?,
            ReduceFn::Sum | ReduceFn::Prod => operands.expect_dtype(0, |d| d != DType::Bool, "a number")?,
            ReduceFn::Max | ReduceFn::Min | ReduceFn::Any | ReduceFn::All => {}
        }
        let x = operands.get(0);
        self.axes.iter().try_for_each(|&a| check_axis("axes", a, x.rank()))?;
        if self.axes.windows(2).any(|w| w[0] >= w[1]) {
            return Err(OpError::Attr { name: "axes", why: format!("{:?} does not ascend", self.axes) });
        }
        if matches!(self.f, ReduceFn::Max | ReduceFn::Min) && self.axes.iter().any(|&a| x.shape[a].is(0)) {
            return Err(OpError::Shape(format!("an empty axis of {x} has no `{}`", self.f.name())));
        }
        let dtype = if self.f.gives_bool() { DType::Bool } else { x.dtype };
        Ok(vec![TensorType::new(dtype, reduced(&x.shape, &self.axes, self.keep.then(|| Dim::new(1))))])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let (x, shape, dtype) = (input(inputs, 0), sizes(&types[0]), types[0].dtype);
        Tensor::byte_len(dtype, &shape)?;
        let targets = broadcast_positions(&reduced(x.shape(), &self.axes, Some(1)), x.shape());
        let len = shape.iter().product();
        let (f, start, start_int) = self.f.joining();
        Ok(vec![if dtype.is_float() {
            let count: usize = self.axes.iter().map(|&a| x.shape()[a]).product();
            let divisor = if self.f == ReduceFn::Mean { count as f64 } else { 1.0 };
            let out = join_all(x.to_f64_vec(), &targets, vec![start; len], |a, b| f.apply_f64(a, b));
            Tensor::from_f64(dtype, &shape, &out.iter().map(|v| v / divisor).collect::<Vec<_>>())
        } else {
            let values = match self.f.gives_bool() {
                true => x.to_f64_vec().into_iter().map(|v| i64::from(v != 0.0)).collect(),
                false => x.to_i64_vec(),
            };
            // No u64 is less than 0 or greater than all ones.
            let start = match self.f {
                ReduceFn::Max if dtype == DType::U64 => 0,
                ReduceFn::Min if dtype == DType::U64 => -1,
                _ => start_int,
            };
            let out = join_all(values, &targets, vec![start; len], |a, b| f.apply_int(dtype, a, b));
            Tensor::from_i64(dtype, &shape, &out)
        }])
    }
}

impl ArgReduceFn {
    /// The position of the extremum among `values`; NaN beats everything, as in PyTorch.
    fn position<T: PartialOrd + Copy>(self, values: impl Iterator<Item = T>) -> i64 {
        let nan = |v: T| v.partial_cmp(&v).is_none();
        let beats = |a: T, b: T| match self {
            ArgReduceFn::Max => a > b,
            ArgReduceFn::Min => a < b,
        };
        let best = values
            .enumerate()
            .reduce(|best, next| if beats(next.1, best.1) || (nan(next.1) && !nan(best.1)) { next } else { best });
        best.map_or(0, |(i, _)| i as i64)
    }
}

impl OpDef for ArgReduce {
    const OPERANDS: &'static [&'static str] = &["x"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        operands.expect_dtype(0, |d| d != DType::Bool, "a number")?;
        let x = operands.get(0);
        check_axis("axis", self.axis, x.rank())?;
        if x.shape[self.axis].is(0) {
            return Err(OpError::Shape(format!("axis {} of {x} is empty", self.axis)));
        }
        let shape = reduced(&x.shape, &[self.axis], self.keep.then(|| Dim::new(1)));
        Ok(vec![TensorType::new(DType::I64, shape)])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let x = input(inputs, 0);
        let (outer, size, inner) = around(x.shape(), self.axis);
        let row = |r: usize| (0..size).map(move |k| (r / inner * size + k) * inner + r % inner);
        let rows = 0..outer * inner;
        let found: Vec<i64> = if x.dtype().is_float() {
            let values = x.to_f64_vec();
            rows.map(|r| self.f.position(row(r).map(|at| values[at]))).collect()
        } else {
            let values = ordered_vec(x);
            rows.map(|r| self.f.position(row(r).map(|at| values[at]))).collect()
        };
        Ok(vec![Tensor::from_i64(DType::I64, &sizes(&types[0]), &found)])
    }
}

/// Adds to every element the one before it along the axis.
fn accumulate<T: Copy>(values: &mut [T], (outer, size, inner): (usize, usize, usize), add: impl Fn(T, T) -> T) {
    for at in 0..outer * size * inner {
        if at / inner % size > 0 {
            values[at] = add(values[at - inner], values[at]);
        }
    }
}

impl OpDef for Cumsum {
    const OPERANDS: &'static [&'static str] = &["x"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        operands.expect_dtype(0, |d| d != DType::Bool, "a number")?;
        check_axis("axis", self.axis, operands.get(0).rank())?;
        Ok(vec![operands.get(0).clone()])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], _: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let x = input(inputs, 0);
        let axes = around(x.shape(), self.axis);
        Ok(vec![if x.dtype().is_float() {
            let mut values = x.to_f64_vec();
            accumulate(&mut values, axes, |a, b| a + b);
            Tensor::from_f64(x.dtype(), x.shape(), &values)
        } else {
            let mut values = x.to_i64_vec();
            accumulate(&mut values, axes, i64::wrapping_add);
            Tensor::from_i64(x.dtype(), x.shape(), &values)
        }])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Op;

    fn reduce(f: ReduceFn, axes: &[usize], x: &Tensor) -> Result<Tensor, EvalError> {
        Op::from(Reduce { f, axes: axes.to_vec(), keep: false }).eval(&[Some(x)]).map(|mut out| out.remove(0))
    }

    fn values(f: ReduceFn, axes: &[usize], x: &Tensor) -> Vec<f64> {
        reduce(f, axes, x).expect("x fits").to_f64_vec()
    }

    #[test]
    fn axes_need_not_be_neighbors() {
        let x = Tensor::from_slice(&[2, 2, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        assert_eq!(values(ReduceFn::Sum, &[0, 2], &x), [14.0, 22.0]);
        assert_eq!(values(ReduceFn::Mean, &[1], &x), [2.0, 3.0, 6.0, 7.0]);
        assert_eq!(values(ReduceFn::Max, &[], &x), x.to_f64_vec());
        assert_eq!(values(ReduceFn::Prod, &[0, 1, 2], &x), [40320.0]);
        let x = TensorType::of_sizes(DType::F32, &[2, 3, 4]);
        let op = |axes: &[usize]| Op::from(Reduce { f: ReduceFn::Any, axes: axes.to_vec(), keep: true });
        assert_eq!(op(&[0, 2]).infer(&[Some(&x)]).expect("x fits")[0].to_string(), "bool[1, 3, 1]");
        assert!(matches!(op(&[2, 0]).infer(&[Some(&x)]), Err(OpError::Attr { .. })));
    }

    #[test]
    fn empty_axes_give_neutral_elements() {
        let x = Tensor::from_slice::<f32>(&[1, 0], &[]);
        assert_eq!(values(ReduceFn::Sum, &[1], &x), [0.0]);
        assert_eq!(values(ReduceFn::Prod, &[1], &x), [1.0]);
        assert_eq!(values(ReduceFn::All, &[1], &x), [1.0]);
        assert!(values(ReduceFn::Mean, &[1], &x)[0].is_nan());
        assert!(reduce(ReduceFn::Max, &[1], &x).is_err());
        assert!(reduce(ReduceFn::Max, &[0], &x).is_ok());
    }

    #[test]
    fn nan_and_fractions_are_true_and_nan_is_extreme() {
        let x = Tensor::from_slice(&[3], &[0.5, f64::NAN, -1.0]);
        assert_eq!(values(ReduceFn::All, &[0], &x), [1.0]);
        assert!(values(ReduceFn::Min, &[0], &x)[0].is_nan());
        let x = Tensor::from_slice(&[2, 2], &[1.0, f64::NAN, 1.0, 0.0]);
        let arg =
            |f, axis| Op::from(ArgReduce { f, axis, keep: false }).eval(&[Some(&x)]).expect("x fits")[0].to_i64_vec();
        assert_eq!(arg(ArgReduceFn::Min, 1), [1, 1]);
        assert_eq!(arg(ArgReduceFn::Max, 0), [0, 0]);
    }

    #[test]
    fn large_integers_keep_their_last_bits() {
        let x = Tensor::from_slice(&[3], &[1i64 << 60, 1, (1 << 60) + 1]);
        assert_eq!(reduce(ReduceFn::Sum, &[0], &x).expect("x fits").to_i64_vec(), [(1 << 61) + 2]);
        let arg = Op::from(ArgReduce { f: ArgReduceFn::Max, axis: 0, keep: true });
        assert_eq!(arg.eval(&[Some(&x)]).expect("x fits")[0].to_i64_vec(), [2]);
    }

    #[test]
    fn running_sums_are_along_the_axis() {
        let x = Tensor::from_slice(&[2, 2], &[1i32, 2, 3, 4]);
        let sums = |axis| Op::from(Cumsum { axis }).eval(&[Some(&x)]).expect("x fits")[0].to_i64_vec();
        assert_eq!((sums(0), sums(1)), (vec![1, 2, 4, 6], vec![1, 3, 3, 7]));
    }
}
