//! Numbers among the arguments.

use regraft_ir::Scalar;
use regraft_tensor::{DType, Dim};

use super::ValueId;

/// A number among the arguments.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Number {
    Bool(bool),
    Int(i64),
    Float(f64),
    /// An integer that depends on sizes.
    Dim(Dim),
}

impl Number {
    /// The literal, unless it depends on sizes.
    pub(crate) fn scalar(&self) -> Option<Scalar> {
        Some(match self {
            Number::Bool(v) => Scalar::Int(i64::from(*v)),
            Number::Int(v) => Scalar::Int(*v),
            Number::Float(v) => Scalar::Float(*v),
            Number::Dim(_) => return None,
        })
    }

    pub(crate) fn as_f64(&self) -> Option<f64> {
        self.scalar().map(Scalar::as_f64)
    }

    pub(crate) fn is(&self, value: f64) -> bool {
        self.as_f64() == Some(value)
    }

    /// The dtype PyTorch gives a tensor made of it.
    pub(crate) fn dtype(&self) -> DType {
        match self {
            Number::Bool(_) => DType::Bool,
            Number::Int(_) | Number::Dim(_) => DType::I64,
            Number::Float(_) => DType::F32,
        }
    }
}

/// An operand that may be a tensor or a number.
#[derive(Clone, Debug)]
pub(crate) enum Operand {
    Tensor(ValueId),
    Number(Number),
}
