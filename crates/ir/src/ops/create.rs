//! Values made from nothing but attributes.

use regraft_tensor::{DType, Dim, Tensor};

use super::{OpDef, Operands, support::sizes};
use crate::{EvalError, OpError, Scalar, TensorType, attrs};

attrs! {
    /// A literal, repeated over a shape: `torch.full`.
    pub struct Full {
        /// The literal.
        pub value: Scalar,
        /// The dtype of the result.
        pub dtype: DType,
        /// The shape of the result.
        pub shape: Vec<Dim>,
    }
}

attrs! {
    /// `[start, start + step, ...]` with `len` elements, an integer `torch.arange`.
    pub struct Iota {
        /// Number of elements.
        pub len: Dim,
        /// The first element.
        pub start: Dim = Dim::new(0),
        /// The difference between neighbors.
        pub step: Dim = Dim::new(1),
        /// The dtype of the result.
        pub dtype: DType = DType::I64,
    }
}

attrs! {
    /// A dimension expression as an `i64` scalar: `torch.scalar_tensor` of a `SymInt`.
    pub struct SizeOf {
        /// The expression.
        pub value: Dim,
    }
}

impl OpDef for Full {
    const OPERANDS: &'static [&'static str] = &[];

    fn infer(&self, _: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        if self.shape.iter().any(|d| d.as_const().is_some_and(|v| v < 0)) {
            return Err(OpError::Attr { name: "shape", why: format!("{:?} has a negative size", self.shape) });
        }
        Ok(vec![TensorType::new(self.dtype, self.shape.clone())])
    }

    fn eval(&self, _: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let shape = sizes(&types[0]);
        let count = Tensor::byte_len(self.dtype, &shape)? / self.dtype.size();
        Ok(vec![match self.value {
            Scalar::Float(v) => Tensor::from_f64(self.dtype, &shape, &vec![v; count]),
            Scalar::Int(v) => Tensor::from_i64(self.dtype, &shape, &vec![v; count]),
        }])
    }
}

impl OpDef for Iota {
    const OPERANDS: &'static [&'static str] = &[];

    fn infer(&self, _: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        if self.dtype == DType::Bool || self.len.as_const().is_some_and(|v| v < 0) {
            return Err(OpError::Attr { name: "len", why: format!("{} elements of {}", self.len, self.dtype) });
        }
        Ok(vec![TensorType::new(self.dtype, vec![self.len.clone()])])
    }

    fn eval(&self, _: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let shape = sizes(&types[0]);
        Tensor::byte_len(self.dtype, &shape)?;
        let (start, step) = (self.start.eval(&[])?, self.step.eval(&[])?);
        let values: Vec<i64> = (0..shape[0] as i64).map(|i| start.wrapping_add(i.wrapping_mul(step))).collect();
        Ok(vec![Tensor::from_i64(self.dtype, &shape, &values)])
    }
}

impl OpDef for SizeOf {
    const OPERANDS: &'static [&'static str] = &[];

    fn infer(&self, _: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        Ok(vec![TensorType::new(DType::I64, vec![])])
    }

    fn eval(&self, _: &[Option<&Tensor>], _: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        Ok(vec![Tensor::from_slice(&[], &[self.value.eval(&[])?])])
    }
}
