//! Ways to add nodes to the graph.

use regraft_ir::{
    Op, Scalar,
    ops::{
        Binary, BinaryFn, Cast, Compare, CompareFn, Concat, Expand, Full, Index, Iota, Permute, Reduce, ReduceFn,
        Reshape, Select, SizeOf, Slice, Unary, UnaryFn,
    },
};
use regraft_tensor::{DType, Dim};

use super::{Builder, Number, Res, ValueId, wrong};

impl Builder {
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
        let scope = self.scope.clone();
        self.add(op.into(), inputs, &scope)
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

    /// A float literal in the dtype of `v`.
    pub(crate) fn float_like(&mut self, value: f64, v: ValueId) -> Res<ValueId> {
        self.float(value, self.dtype_of(v))
    }

    /// A literal in the dtype of `v`.
    pub(crate) fn literal_like(&mut self, value: Scalar, v: ValueId) -> Res<ValueId> {
        self.literal(value, self.dtype_of(v))
    }

    /// A number in the dtype of `v`.
    pub(crate) fn number_like(&mut self, number: &Number, v: ValueId) -> Res<ValueId> {
        self.number_value(number, self.dtype_of(v))
    }

    /// A size in the dtype of `v`.
    pub(crate) fn dim_like(&mut self, dim: &Dim, v: ValueId) -> Res<ValueId> {
        self.dim_value(dim, self.dtype_of(v))
    }

    /// `x` in the dtype of `v`.
    pub(crate) fn cast_like(&mut self, x: ValueId, v: ValueId) -> Res<ValueId> {
        self.cast(x, self.dtype_of(v))
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

    /// `v`, read as `shape`, so many times along each axis. The result still has the repeats as axes of their own: the second
    /// value is the shape that joins them.
    pub(crate) fn repeated(&mut self, v: ValueId, shape: &[Dim], times: &[Dim]) -> Res<(ValueId, Vec<Dim>)> {
        let (mut split, mut wide, mut joined) = (Vec::new(), Vec::new(), Vec::new());
        for (d, n) in shape.iter().zip(times) {
            if !n.is(1) {
                split.push(Dim::new(1));
                wide.push(n.clone());
            }
            split.push(d.clone());
            wide.push(d.clone());
            joined.push(d * n);
        }
        let v = self.reshape(v, split)?;
        Ok((self.expand(v, wide)?, joined))
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

    pub(crate) fn select(&mut self, cond: ValueId, a: ValueId, b: ValueId) -> Res<ValueId> {
        self.emit(Select {}, &[cond, a, b])
    }

    pub(crate) fn compare(&mut self, f: CompareFn, a: ValueId, b: ValueId) -> Res<ValueId> {
        self.emit(Compare { f }, &[a, b])
    }

    /// `x f value`, as a condition.
    pub(crate) fn compare_with(&mut self, f: CompareFn, x: ValueId, value: f64) -> Res<ValueId> {
        let value = self.float(value, self.dtype_of(x))?;
        self.compare(f, x, value)
    }

    pub(crate) fn is_nan(&mut self, x: ValueId) -> Res<ValueId> {
        // Only NaN differs from itself.
        self.compare(CompareFn::Ne, x, x)
    }

    /// A size as a value of rank 0.
    pub(crate) fn dim_value(&mut self, dim: &Dim, dtype: DType) -> Res<ValueId> {
        match dim.as_const() {
            Some(v) => self.literal(Scalar::Int(v), dtype),
            None => self.number_value(&Number::Dim(dim.clone()), dtype),
        }
    }

    /// `start, start + step, ...` as `i64`.
    pub(crate) fn iota(&mut self, len: Dim, start: i64, step: i64) -> Res<ValueId> {
        self.emit(Iota { len, start: Dim::new(start), step: Dim::new(step), dtype: DType::I64 }, &[])
    }

    /// The position along `axis`, in a shape of `rank` axes that broadcasts: `0, 1, ..` up to `len`.
    pub(crate) fn position(&mut self, rank: usize, axis: usize, len: Dim) -> Res<ValueId> {
        let row = self.iota(len.clone(), 0, 1)?;
        self.along(row, rank, axis)
    }

    /// A vector seen along `axis` of `rank` axes.
    pub(crate) fn along(&mut self, row: ValueId, rank: usize, axis: usize) -> Res<ValueId> {
        let mut shape = vec![Dim::new(1); rank];
        if let (Some(slot), Some(len)) = (shape.get_mut(axis), self.ty(row).shape.first()) {
            slot.clone_from(len);
        }
        self.reshape(row, shape)
    }

    /// A reduction; over no axes it is the value, or whether it is non-zero.
    pub(crate) fn reduce(&mut self, f: ReduceFn, x: ValueId, axes: &[usize], keep: bool) -> Res<ValueId> {
        if axes.is_empty() {
            let truth = matches!(f, ReduceFn::Any | ReduceFn::All);
            return if truth { self.cast(x, DType::Bool) } else { Ok(x) };
        }
        self.emit(Reduce { f, axes: axes.to_vec(), keep }, &[x])
    }

    pub(crate) fn concat(&mut self, parts: &[ValueId], axis: usize) -> Res<ValueId> {
        match parts {
            [one] => Ok(*one),
            parts => self.emit(Concat { axis }, parts),
        }
    }

    /// Elements of an axis by an `i64` tensor of positions, whose axes take the place of that axis.
    pub(crate) fn take(&mut self, x: ValueId, axis: usize, positions: ValueId) -> Res<ValueId> {
        self.emit(Index { axis }, &[x, positions])
    }

    /// The value as a vector.
    pub(crate) fn flat(&mut self, x: ValueId) -> Res<ValueId> {
        let n = self.ty(x).numel();
        self.reshape(x, vec![n])
    }

    /// A value of rank 0 as a vector of one element; others as they are.
    pub(crate) fn with_axis(&mut self, x: ValueId) -> Res<ValueId> {
        if self.rank(x) == 0 { self.unsqueeze(x, 0) } else { Ok(x) }
    }
}
