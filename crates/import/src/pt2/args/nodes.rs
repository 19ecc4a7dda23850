//! Ways to add nodes to the graph.

use regraft_ir::{
    Op, Scalar,
    ops::{Binary, BinaryFn, Cast, Expand, Full, Permute, Reshape, SizeOf, Slice, Unary, UnaryFn},
};
use regraft_tensor::{DType, Dim};

use super::{Cx, Number, Res, ValueId, wrong};

impl Cx<'_, '_> {
    pub(crate) fn emit(&mut self, op: impl Into<Op>, inputs: &[ValueId]) -> Res<ValueId> {
        let inputs: Vec<_> = inputs.iter().map(|&v| Some(v)).collect();
        self.emit_all(op, inputs)?.first().copied().map_or_else(|| wrong("the operator has no result"), Ok)
    }

    pub(crate) fn emit_opt(&mut self, op: impl Into<Op>, mut inputs: Vec<Option<ValueId>>) -> Res<ValueId> {
        while inputs.last() == Some(&None) {
            inputs.pop();
        }
        self.emit_all(op, inputs)?.first().copied().map_or_else(|| wrong("the operator has no result"), Ok)
    }

    pub(crate) fn emit_all(&mut self, op: impl Into<Op>, inputs: Vec<Option<ValueId>>) -> Res<Vec<ValueId>> {
        self.t.add(op.into(), inputs, &self.scope)
    }

    pub(crate) fn cast(&mut self, v: ValueId, dtype: DType) -> Res<ValueId> {
        if self.dtype_of(v) == dtype { Ok(v) } else { self.emit(Cast { dtype }, &[v]) }
    }

    pub(crate) fn unary(&mut self, f: UnaryFn, v: ValueId) -> Res<ValueId> {
        self.emit(Unary { f }, &[v])
    }

    pub(crate) fn binary(&mut self, f: BinaryFn, a: ValueId, b: ValueId) -> Res<ValueId> {
        self.emit(Binary { f }, &[a, b])
    }

    /// A literal of rank 0.
    pub(crate) fn literal(&mut self, value: Scalar, dtype: DType) -> Res<ValueId> {
        // A float literal of an integer dtype truncates, an integer literal of a float dtype is that float.
        let value = match value {
            Scalar::Float(v) if !dtype.is_float() && dtype != DType::Bool => Scalar::Int(v as i64),
            Scalar::Int(v) if dtype.is_float() => Scalar::Float(v as f64),
            value => value,
        };
        self.emit(Full { value, dtype, shape: vec![] }, &[])
    }

    pub(crate) fn float(&mut self, value: f64, dtype: DType) -> Res<ValueId> {
        self.literal(Scalar::Float(value), dtype)
    }

    /// A number as a value of rank 0.
    pub(crate) fn number_value(&mut self, number: &Number, dtype: DType) -> Res<ValueId> {
        match number {
            Number::Dim(value) => {
                let v = self.emit(SizeOf { value: value.clone() }, &[])?;
                self.cast(v, dtype)
            }
            number => match number.scalar() {
                Some(scalar) => self.literal(scalar, dtype),
                None => wrong("expected a number"),
            },
        }
    }

    /// `f(x, value)` with a float literal in the dtype of `x`.
    pub(crate) fn with_literal(&mut self, f: BinaryFn, v: ValueId, value: f64) -> Res<ValueId> {
        let literal = self.float(value, self.dtype_of(v))?;
        self.binary(f, v, literal)
    }

    pub(crate) fn reshape(&mut self, v: ValueId, shape: Vec<Dim>) -> Res<ValueId> {
        if self.ty(v).shape == shape { Ok(v) } else { self.emit(Reshape { shape }, &[v]) }
    }

    pub(crate) fn permute(&mut self, v: ValueId, perm: Vec<usize>) -> Res<ValueId> {
        if perm.iter().copied().eq(0..perm.len()) { Ok(v) } else { self.emit(Permute { perm }, &[v]) }
    }

    pub(crate) fn expand(&mut self, v: ValueId, shape: Vec<Dim>) -> Res<ValueId> {
        if self.ty(v).shape == shape { Ok(v) } else { self.emit(Expand { shape }, &[v]) }
    }

    pub(crate) fn slice(&mut self, v: ValueId, axis: usize, start: Dim, end: Dim) -> Res<ValueId> {
        if start.is(0) && self.ty(v).shape.get(axis) == Some(&end) {
            return Ok(v);
        }
        self.emit(Slice { axis, start, end, step: 1 }, &[v])
    }

    /// A new axis of size 1 at `axis`.
    pub(crate) fn unsqueeze(&mut self, v: ValueId, axis: usize) -> Res<ValueId> {
        let mut shape = self.shape(v);
        shape.insert(axis.min(shape.len()), Dim::new(1));
        self.reshape(v, shape)
    }

    /// The value without axis `axis`, whose size is 1.
    pub(crate) fn squeeze(&mut self, v: ValueId, axis: usize) -> Res<ValueId> {
        let mut shape = self.shape(v);
        if axis < shape.len() {
            shape.remove(axis);
        }
        self.reshape(v, shape)
    }
}
